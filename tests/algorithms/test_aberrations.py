"""The image model with aberrations, evaluated directly, and everything that looks at images freed of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from cloudem.algorithms.aberrations import NO_ABERRATIONS, Aberrations, aberrations_of, odd_terms, terms_with
from cloudem.algorithms.align import start_poses
from cloudem.algorithms.batch import Batch, insert_weighted
from cloudem.algorithms.bricks import complete
from cloudem.algorithms.evidence import gains
from cloudem.algorithms.expectation import expect, inverse_noise, spectra
from cloudem.algorithms.leading import lay_back
from cloudem.algorithms.marginal import rings_of
from cloudem.algorithms.reconstruct import empty_sums, reference_volume, solve
from cloudem.algorithms.relaxation import witnesses
from cloudem.algorithms.simulate import Recording, Simulator, anisotropic, random_particles
from cloudem.algorithms.states import StateSettings, see, shifted_slices
from cloudem.errors import InconsistentDataError
from cloudem.kernels.aberrations import EVEN_ORDERS, ODD_ORDERS
from cloudem.kernels.ctf import ctf_terms, ctf_values, wavelength
from cloudem.kernels.fourier import fourier_images, half_disc, real_images, sample_half_disc
from cloudem.kernels.shells import fourier_shell_correlation
from cloudem.kernels.slices import extract, padded_box
from cloudem.model.optics import OpticsGroup
from cloudem.model.poses import angle_between, euler_to_matrix
from tests.algorithms.test_expectation import BOX, PHANTOM, PIXEL, PLAN, REFERENCE, model_of, simulate
from tests.algorithms.test_marginal import VIEW
from tests.kernels.test_aberrations import direct

LENGTH = BOX * PIXEL
TILT, ODD, EVEN = (30.0, -18.0), (0.4, 0.0, 900.0, 0.0, 0.0, -600.0), (0.1, 9.0, 0.0, -5.0, 2e4, 0.0, 0.0, 0.0, 1e4)
"""Large enough for a phase of a radian at the few Å of these boxes."""

MATRIX = anisotropic(0.06, 0.5)
NOISELESS = Recording(snr=None, beam_tilt=TILT, odd_zernike=ODD, even_zernike=EVEN, magnification=MATRIX)
SETTINGS = StateSettings(
    whole_box=BOX, box=BOX, length=LENGTH, radius=12.0, last_limit=11, start_limit=11, classes=2, most_iterations=1
)


def group(**aberrations: object) -> OpticsGroup:
    return OpticsGroup("one", 300.0, 2.7e7, 0.1).with_aberrations(**aberrations)  # type: ignore[arg-type]


def test_simulated_images_are_those_of_the_model() -> None:
    """``exp(-2 pi i k.t) exp(i odd(M k)) sin(chi(M k) - even(M k)) V(A^T (M k, 0))``, in float64."""
    particles = random_particles(3, NOISELESS, 4)
    simulator = Simulator(PHANTOM.density(BOX), PIXEL, particles, NOISELESS)
    disc = half_disc(BOX, BOX // 2 - 1)
    found = sample_half_disc(fourier_images(simulator.some_images(np.arange(3))), disc)
    kx, ky = np.reshape(MATRIX, (2, 2)) @ np.stack([disc.kx, disc.ky])  # M k, cycles per box
    x, y = kx / LENGTH, ky / LENGTH
    lam, r2 = float(wavelength(300.0)), x * x + y * y
    odd = direct(ODD_ORDERS[: len(ODD)], np.array(ODD), x, y)
    odd -= 2e-3 * np.pi * 2.7e7 * lam**2 * r2 * (TILT[0] * x + TILT[1] * y)
    even = direct(EVEN_ORDERS, np.array(EVEN), x, y)
    assert min(np.ptp(odd), np.ptp(even)) > 1
    rotations = euler_to_matrix(*(particles[name] for name in ("rot", "tilt", "psi")))
    u, v, angle = (particles[name][:, None] for name in ("defocus_u", "defocus_v", "defocus_angle"))
    defocus = (u + v) / 2 + (u - v) / 2 * np.cos(2 * (np.arctan2(y, x) - angle))
    chi = np.pi * lam * defocus * r2 - np.pi / 2 * 2.7e7 * lam**3 * r2**2 + np.arcsin(0.1)
    shift = (particles["shift_x"][:, None] * disc.kx + particles["shift_y"][:, None] * disc.ky) / LENGTH
    slices = np.array(extract.reference(simulator._volume, rotations, kx, ky, 2))  # type: ignore[arg-type]
    expected = slices * np.sin(chi - even) * np.exp(1j * odd - 2j * np.pi * shift)
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def aberrated_batch(odd: np.ndarray) -> tuple[Batch, Batch, np.ndarray, np.ndarray]:
    """Return images, the same with odd phases in those of the second group, and their poses."""
    batch, rotations, shifts = simulate(6, 3)
    x, y = np.meshgrid(np.arange(BOX // 2 + 1), np.fft.fftfreq(BOX, 1 / BOX))
    powers = [x ** (d - j) * y**j / LENGTH**d for d in (1, 3, 5) for j in range(d + 1)]
    phase = np.tensordot(odd[1], powers, 1)
    phase[BOX // 2], phase[:, BOX // 2] = 0, 0
    transforms = fourier_images(batch.images.astype(float))
    transforms[batch.optics_group == 1] *= np.exp(1j * phase)
    images = real_images(transforms).astype(np.float32)
    return batch, replace(batch, images=images, aberrations=Aberrations(odd)), rotations, shifts


def _inserted(batch: Batch, rotations: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    sums = empty_sums(BOX, 10)
    insert_weighted(batch, start_poses(np.arange(6), rotations, shifts), np.ones(6), PIXEL, 10, sums)
    return sums.data


def _inverse(batch: Batch) -> np.ndarray:
    return inverse_noise(batch, model_of())


USES: dict[str, Callable[[Batch, np.ndarray, np.ndarray], np.ndarray]] = {
    "scored": lambda batch, *_: spectra(batch, PLAN).masked,
    "whole": lambda batch, *_: spectra(batch, PLAN).whole,
    "inserted": _inserted,
    "rings": lambda batch, *_: rings_of(batch, model_of().sigma2, VIEW).imaginary,
    "held out": lambda batch, r, t: gains(batch, r, t, REFERENCE, _inverse(batch), (7, 10), PIXEL),
    "mates": lambda batch, r, t: witnesses(batch, r, t, _inverse(batch), 10, PIXEL).numerators,
    "states": lambda batch, *_: see(batch, model_of().sigma2, SETTINGS, 10).images,
}


@pytest.mark.parametrize("use", USES)
def test_everything_that_looks_at_images_sees_them_free_of_odd_phases(use: str) -> None:
    odd = np.zeros((2, 12))
    odd[1] = odd_terms(group(beam_tilt=TILT, odd_zernike=ODD))
    plain, aberrated, rotations, shifts = aberrated_batch(odd)
    expected, found = (USES[use](batch, rotations, shifts) for batch in (plain, aberrated))
    blind = USES[use](replace(aberrated, aberrations=NO_ABERRATIONS), rotations, shifts)
    scale = np.abs(expected).max()
    assert np.abs(found - expected).max() < 1e-4 * scale
    assert np.abs(blind - expected).max() > 1e-2 * scale


def magnified_batch(count: int, matrix: Sequence[float] = MATRIX) -> tuple[Batch, np.ndarray, np.ndarray]:
    """Return noiseless images of two groups, one of them magnified, and their rotations and shifts in pixels."""
    optics = (group(), group(magnification=np.reshape(matrix, (2, 2)), beam_tilt=TILT))
    particles = random_particles(count, Recording(snr=None, shift_sigma=2.0), 5)
    particles = replace(particles, optics=optics).with_columns(optics_group=np.arange(count, dtype=np.int32) % 2)
    images = np.concatenate(list(Simulator(PHANTOM.density(BOX), PIXEL, particles, Recording(snr=None)).images()))
    defocus = {name: particles[name] for name in ("defocus_u", "defocus_v", "defocus_angle")}
    terms = ctf_terms(voltage=300.0, spherical_aberration=2.7e7, amplitude_contrast=0.1, **defocus)
    number = particles["optics_group"]
    table = (terms_with(terms, optics, number), np.ones(count), number, np.ones(count, bool))
    batch = Batch(images, *table, None, aberrations=aberrations_of(optics))
    rotations = euler_to_matrix(*(particles[name] for name in ("rot", "tilt", "psi")))
    return batch, rotations, np.stack([particles["shift_x"], particles["shift_y"]], axis=1) / PIXEL


def blind_to(batch: Batch) -> Batch:
    """Return the batch with the odd phases and CTFs that it has, and without the magnification of slices."""
    return replace(batch, aberrations=Aberrations(batch.aberrations.odd))


def test_magnified_images_make_the_map() -> None:
    batch, rotations, shifts = magnified_batch(800, anisotropic(0.3, 0.5))
    batch, rotations, shifts = batch.rows(np.arange(1, 800, 2)), rotations[1::2], shifts[1::2]
    poses, truth, curves = start_poses(np.arange(400), rotations, shifts), PHANTOM.density(BOX), []
    for each in (batch, blind_to(batch)):
        sums = empty_sums(BOX, BOX // 2 - 1)
        insert_weighted(each, poses, np.ones(400), PIXEL, BOX // 2 - 1, sums)
        found = solve(complete(sums, np.eye(3)[None]), BOX, None, BOX // 2 - 1)
        curves.append(fourier_shell_correlation(found, truth)[1 : BOX // 2 - 1])
    assert curves[0].min() > 0.97
    assert curves[1].min() < 0.8


def test_poses_of_magnified_images_stay_where_they_are() -> None:
    batch, rotations, shifts = magnified_batch(40)
    plan, model = replace(PLAN, k_search=0, step=0.0, poses=1), replace(model_of(), grid=None)
    angle, left = [], []
    for each in (batch, blind_to(batch)):
        known = replace(each, poses=start_poses(np.arange(40), rotations, shifts))
        found = expect(known, plan, model, empty_sums(BOX, PLAN.k_insert))
        angle.append(np.degrees(angle_between(found.poses.rotations, rotations))[1::2])
        left.append(found.residual[1, : PLAN.k_score - 1].sum())
    assert np.median(angle[0]) < 0.25
    assert np.median(angle[1]) > 0.5
    assert left[0] < 0.2 * left[1]  # the prior of shifts draws poses of the noisier group


def test_slices_of_states_are_those_of_magnified_images() -> None:
    batch, rotations, shifts = magnified_batch(10)
    poses = start_poses(np.arange(10), rotations, shifts)
    left = []
    for each in (batch, blind_to(batch)):
        seen = see(each, model_of().sigma2, SETTINGS, 10)
        residual = seen.residual(shifted_slices(REFERENCE, poses, seen.disc, SETTINGS, seen.magnification))
        left.append(np.sum(np.abs(residual.images[1::2]) ** 2) / np.sum(np.abs(seen.images[1::2]) ** 2))
        assert seen.weighted().magnification is seen.magnification
    assert left[0] < 1e-4
    assert left[1] > 10 * left[0]


def test_residuals_are_laid_back_where_magnified_images_show_them() -> None:
    """A point of the map lies at ``(M^T A r)_xy``."""
    batch, rotations, shifts = magnified_batch(10)
    seen = see(batch, model_of().sigma2, SETTINGS, 10)
    point = np.array([[6.0, -5.0, 4.0]])
    m = batch.aberrations.of(batch.optics_group)
    assert m is not None
    place = np.einsum("bji,bj->bi", m, (rotations @ point[0])[:, :2]) + shifts
    k = place[:, :1] * seen.disc.kx + place[:, 1:] * seen.disc.ky
    images = np.exp(-2j * np.pi / BOX * k).astype(np.complex64)
    weighted = seen.weighted()._replace(numerators=images, denominators=np.ones(images.shape, np.float32))
    poses, flat = start_poses(np.arange(10), rotations, shifts), np.ones(BOX // 2)
    laid, blind = (
        lay_back(each, poses, point, flat, BOX, np.eye(3)[None])[1::2, 0]
        for each in (weighted, weighted._replace(magnification=None))
    )
    centre = lay_back(
        weighted._replace(numerators=np.ones_like(images)), start_poses(np.arange(10), rotations, 0 * shifts),
        np.zeros((1, 3)), flat, BOX, np.eye(3)[None],
    )[0, 0]  # fmt: skip
    assert laid.mean() > 0.9 * centre  # interpolation of the back-projection is linear
    assert blind.mean() < laid.mean()


def test_what_images_say_of_a_map_is_asked_at_magnified_frequencies() -> None:
    batch, rotations, shifts = magnified_batch(8)
    inverse = _inverse(batch)
    volume = reference_volume(PHANTOM.density(BOX), BOX // 2 - 1)
    disc = half_disc(BOX, 9)
    plane = np.einsum("bij,jp->bpi", batch.aberrations.of(batch.optics_group), np.stack([disc.kx, disc.ky]))
    slices = PHANTOM.transform(np.einsum("bpi,bij->bpj", plane, rotations[:, :2]), BOX)
    weight = ctf_values(disc.kx, disc.ky, batch.terms, 1 / LENGTH) * inverse[:, disc.shell]
    phase = np.exp(2j * np.pi / BOX * (shifts[:, :1] * disc.kx + shifts[:, 1:] * disc.ky))
    product = sample_half_disc(batch.transforms(LENGTH), disc) * phase * weight
    product = (product * (slices - np.roll(slices, -4, axis=0)).conj()).real
    expected = np.stack([product[:, disc.shell == shell].sum(axis=1) for shell in range(4, 10)], axis=1)
    found = gains(batch, rotations, shifts, volume, inverse, (4, 10), PIXEL)[:, :-1]
    np.testing.assert_allclose(found, expected, atol=0.03 * np.abs(expected).max())
    seen = witnesses(batch, rotations, shifts, inverse, 10, PIXEL)
    slices = extract(volume, seen.axes, seen.disc.kx, seen.disc.ky, padded_box(BOX) / BOX)
    product = np.sum((seen.numerators * slices.conj()).real, axis=1)
    np.testing.assert_allclose(product, np.sum(seen.denominators * np.abs(slices) ** 2, axis=1), rtol=0.01)


def test_no_pixel_is_asked_beyond_the_last_shell() -> None:
    optics = (group(magnification=np.diag([1.05, 1.05])), group(magnification=np.diag([0.95, 1.0])))
    aberrations, whole = aberrations_of(optics), half_disc(64, 31)
    np.testing.assert_array_equal(aberrations.reach(whole), np.rint(1.05 * np.hypot(whole.kx, whole.ky)))
    wide = aberrations_of(optics[1:])
    disc = wide.pixels(64, 31)
    assert disc.shell.max() > 31  # along x, images show the map's last shell beyond their own
    assert np.hypot(0.95 * disc.kx, disc.ky).max() < 31.5
    assert NO_ABERRATIONS.reach(whole) is whole.shell


def test_groups_without_aberrations_have_none() -> None:
    plain = group()
    zeros = group(beam_tilt=(0, 0), odd_zernike=[0] * 6, even_zernike=[0] * 9, magnification=np.eye(2))
    assert aberrations_of([plain, zeros]) == NO_ABERRATIONS
    terms = np.ones((2, 12))
    assert terms_with(terms, [plain, zeros], np.array([0, 1])) is terms


@pytest.mark.parametrize("matrix", [[[1.3, 0], [0, 1]], [[1, 0], [0, -1]], [[0.01, 0], [0, 0.01]], [[0, 0], [0, 0]]])
def test_a_matrix_that_is_no_magnification_is_refused(matrix: list[list[float]]) -> None:
    with pytest.raises(InconsistentDataError, match=r"rlnMagMat00 to rlnMagMat11 .* one are .*; needed are"):
        aberrations_of([group(magnification=np.array(matrix, float))])
