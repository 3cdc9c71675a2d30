from functools import cache

import numpy as np
import pytest
import scipy.fft

from cloudem.algorithms.bricks import complete
from cloudem.algorithms.mask import soft_sphere
from cloudem.algorithms.reconstruct import (
    Sums,
    empty_sums,
    reference_volume,
    shell_weights,
    shells_of,
    signal_to_noise,
    solve,
)
from cloudem.kernels.ctf import ctf
from cloudem.kernels.fourier import fourier_volume, half_disc, real_volume, shell_index
from cloudem.kernels.shells import fourier_shell_correlation
from cloudem.kernels.slices import (
    correct_gridding,
    crop_volume,
    extract,
    insert,
    padded_box,
    place_volume,
    touched_radius,
)
from cloudem.model.poses import random_rotations
from cloudem.model.symmetry import operators
from tests.phantom import Blobs, blobs

BOX = 40
PADDING = padded_box(BOX) / BOX
K_MAX = BOX // 2 - 1
DISC = half_disc(BOX, K_MAX)
PHANTOM = blobs(15, reach=0.25 * BOX, sigma=(0.8, 1.4))
MASK = soft_sphere(BOX, 0.42 * BOX, 3)
ONE = np.eye(3)[None]
LAST = int(0.9 * BOX / 2)


def truth_of(phantom: Blobs) -> np.ndarray:
    """Return the phantom limited to the frequencies of the box, from its closed form."""
    full = np.fft.fftfreq(BOX, 1 / BOX)
    k = np.stack(np.meshgrid(full, full, np.arange(BOX // 2 + 1), indexing="ij")[::-1], axis=-1)
    return real_volume(phantom.transform(k, BOX)).astype(np.float32)


def gather(
    count: int, seed: int, *, with_ctf: bool = False, noise: float = 0.0, phantom: Blobs = PHANTOM, limit: int = K_MAX
) -> Sums:
    """Insert exact slices at random poses and shifts; noise relative to the signal's root mean square."""
    rng = np.random.default_rng(seed)
    disc = half_disc(BOX, limit)
    rotations, shifts = random_rotations(count, rng), rng.normal(0, 2, (count, 2))
    images = phantom.slices(rotations, disc.kx, disc.ky, BOX)
    images *= np.exp(-2j * np.pi / BOX * (shifts[:, :1] * disc.kx + shifts[:, 1:] * disc.ky))
    contrast = np.ones(images.shape, np.float32)
    if with_ctf:
        u = rng.uniform(8e3, 2e4, count)
        contrast = ctf(
            disc.kx, disc.ky, 3.0, BOX, voltage=300.0, spherical_aberration=2.7e7, amplitude_contrast=0.1,
            defocus_u=u, defocus_v=u + 200, defocus_angle=u,
        )  # fmt: skip
    images *= contrast
    sigma = noise * np.sqrt(np.mean(np.abs(images) ** 2) / 2)
    images += sigma * (rng.standard_normal(images.shape) + 1j * rng.standard_normal(images.shape))
    sums = empty_sums(BOX, limit)
    insert(
        sums.data, sums.weight, np.arange(count, dtype=np.int32), rotations, shifts, np.ones(count),
        (images * contrast).astype(np.complex64), contrast**2, disc.kx, disc.ky, PADDING, BOX,
    )  # fmt: skip
    return sums


@cache
def completed(with_ctf: bool) -> Sums:
    return complete(gather(1000, 0, with_ctf=with_ctf), ONE)


@cache
def truth() -> np.ndarray:
    return truth_of(PHANTOM)


def scale_by_shell(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    a, b = fourier_volume(found * MASK), fourier_volume(expected * MASK)
    shells = shell_index(BOX)
    return np.array(
        [np.sum((a * b.conj()).real[shells == s]) / np.sum(np.abs(b[shells == s]) ** 2) for s in range(BOX // 2)]
    )


@pytest.mark.parametrize("with_ctf", [False, True])
def test_noise_free_slices_return_the_phantom(with_ctf: bool) -> None:
    found = solve(completed(with_ctf), BOX, None, levelled=BOX // 2)
    assert found.dtype == np.float32
    assert fourier_shell_correlation(found * MASK, truth() * MASK)[1 : LAST + 1].min() > (0.998 if with_ctf else 0.999)
    np.testing.assert_allclose(scale_by_shell(found, truth())[1 : LAST + 1], 1, atol=0.02)


@pytest.mark.parametrize("with_ctf", [False, True])
def test_inner_shells_are_right_without_being_asked(with_ctf: bool) -> None:
    """The density of slices falls as 1 / |k|, which a plain quotient of sums does not see."""
    sums = completed(with_ctf)
    found, plain = solve(sums, BOX, None), solve(sums, BOX, None, levelled=0)
    curve = fourier_shell_correlation(found * MASK, truth() * MASK)
    assert curve[1:7].min() > 0.999
    assert curve[7 : LAST + 1].min() > 0.996
    np.testing.assert_allclose(scale_by_shell(found, truth())[1:7], 1, atol=0.02)
    assert np.abs(scale_by_shell(plain, truth())[1:7] - 1).max() > 0.05  # what there is to correct


def test_levelling_does_not_cost_signal_where_noise_decides() -> None:
    sums = complete(gather(300, 2, with_ctf=True, noise=3), ONE)
    curves = [
        fourier_shell_correlation(solve(sums, BOX, None, levelled=last) * MASK, truth() * MASK) for last in (0, 6)
    ]
    assert 0.1 < curves[0][9] < 0.95
    assert np.mean(curves[1][7:LAST] - curves[0][7:LAST]) > -1e-3
    assert np.all(curves[1][1:7] > curves[0][1:7] - 1e-3)


def test_wiener_filter_scales_by_the_signal_to_noise_ratio() -> None:
    sums = completed(False)
    half = solve(sums, BOX, np.ones(BOX // 2 + 1))
    # weights vary about a shell's mean, so that the factor 1 / (1 + 1) holds on average only
    np.testing.assert_allclose(scale_by_shell(half, truth())[8:LAST], 0.5, atol=0.03)
    strong = solve(sums, BOX, np.full(BOX // 2 + 1, 1e6))
    np.testing.assert_allclose(strong, solve(sums, BOX, None), atol=1e-6 * np.abs(strong).max())


@pytest.mark.parametrize("with_ctf", [False, True])
@pytest.mark.parametrize("cut", [5, 9])
def test_a_filter_leaves_alone_the_shells_that_it_passes(with_ctf: bool, cut: int) -> None:
    """A reference without signal beyond a shell is, below that, the map without filter."""
    ssnr = np.where(np.arange(BOX // 2 + 1) <= cut, 1e4, 0.0)
    filtered = np.fft.rfftn(solve(completed(with_ctf), BOX, ssnr))
    plain = np.fft.rfftn(solve(completed(with_ctf), BOX, None))
    shell = shell_index(BOX)
    for s in range(1, cut):
        here = shell == s
        assert np.linalg.norm((filtered - plain)[here]) < 0.11 * np.linalg.norm(plain[here])  # the cut is not sharp


def test_map_ends_at_its_last_shell() -> None:
    found = solve(complete(gather(200, 4), ONE), BOX, None, k_max=10)
    power = np.abs(fourier_volume(found)) ** 2
    shells = shell_index(BOX)
    assert power[shells > 13].max() < 1e-4 * power[shells <= 10].max()
    small = solve(complete(gather(200, 4, limit=10), ONE), BOX, None, k_max=10)
    curve = fourier_shell_correlation(found, small)
    assert curve[1:10].min() > 0.999


def test_nothing_gives_nothing() -> None:
    found = solve(complete(empty_sums(BOX, 5), ONE), BOX, None)
    np.testing.assert_array_equal(found, 0)


def test_shells_and_mean_weights() -> None:
    sums = empty_sums(BOX, 8)
    shells = shells_of(sums, BOX)
    m = shells.shape[2] - 2
    assert shells[m, m, 1] == 0
    assert shells[m, m, 1 + m] == round(m / PADDING)
    sums.weight[:, :, 1:] = 3.0
    np.testing.assert_allclose(shell_weights(sums, BOX)[:9], 3.0)


@pytest.mark.parametrize("name", ["C1", "C2", "C3", "C7", "D3", "D4", "T", "O", "I", "I3"])
def test_completing_with_a_group_is_inserting_at_all_its_poses(name: str) -> None:
    """Amplitudes agree from the centre to the rim; operators that permute axes are exact."""
    group = operators(name)
    limit, count = 14, 60
    phantom = symmetric(group)
    rotations = random_rotations(count, np.random.default_rng(5))
    disc = half_disc(BOX, limit)
    images = phantom.slices(rotations, disc.kx, disc.ky, BOX).astype(np.complex64)
    weights = np.ones(images.shape, np.float32)

    def put(poses: np.ndarray, rows: np.ndarray) -> Sums:
        sums = empty_sums(BOX, limit)
        zero = np.zeros((len(rows), 2))
        insert(
            sums.data, sums.weight, rows.astype(np.int32), poses, zero, np.ones(len(rows)), images, weights,
            disc.kx, disc.ky, PADDING, BOX,
        )  # fmt: skip
        return sums

    every = (rotations[:, None] @ group).reshape(-1, 3, 3)
    one_by_one = complete(put(every, np.repeat(np.arange(count), len(group))), ONE)
    at_once = complete(put(rotations, np.arange(count)), group)
    assert (at_once.data.dtype, at_once.weight.dtype) == (np.complex64, np.float32)
    a, b = (solve(sums, BOX, None, k_max=limit - 1) for sums in (one_by_one, at_once))
    exact = all(np.array_equal(operator, np.rint(operator)) for operator in group)
    z, y, x = np.indices(a.shape) - BOX // 2
    radius = np.sqrt(x * x + y * y + z * z)
    for inner in range(0, 15, 3):
        ring = (radius >= inner) & (radius < inner + 3)
        factor = np.sum(a[ring] * b[ring]) / np.sum(a[ring] ** 2)
        assert abs(factor - 1) < (1e-3 if exact else 0.06 if len(group) == 60 else 0.02)
    assert np.abs(a - b)[radius < 15].max() < (2e-3 if exact else 0.06) * np.abs(a).max()


def symmetric(group: np.ndarray) -> Blobs:
    """Return Gaussians and all their images under a group."""
    base = blobs(6, reach=0.3 * BOX, sigma=(1.2, 1.6))
    centre = np.concatenate([base.centre @ operator.T for operator in group])
    return Blobs(np.tile(base.amplitude, len(group)), centre, np.tile(base.sigma, len(group)))


def test_reference_volume_returns_exact_slices() -> None:
    smooth = blobs(reach=0.3 * BOX)
    reference = reference_volume(smooth.density(BOX), K_MAX)
    assert reference.dtype == np.complex64
    rotations = random_rotations(5, np.random.default_rng(6))
    got = extract(reference, rotations, DISC.kx, DISC.ky, PADDING)
    exact = smooth.slices(rotations, DISC.kx, DISC.ky, BOX)
    assert np.sqrt(np.mean(np.abs(got - exact) ** 2) / np.mean(np.abs(exact) ** 2)) < 2e-3


def test_signal_to_noise() -> None:
    np.testing.assert_allclose(signal_to_noise(np.array([-0.1, 0.0, 0.5, 0.9])), [0, 0, 1, 9])
    assert np.isfinite(signal_to_noise(np.ones(1)))[0]


def test_the_number_of_threads_changes_no_bit() -> None:
    sums, smooth = completed(True), blobs(reach=0.3 * BOX).density(BOX)
    found = []
    for workers in (1, 2, 3):
        with scipy.fft.set_workers(workers):
            found.append(
                [solve(sums, BOX, None), solve(sums, BOX, np.ones(BOX // 2 + 1), 12), reference_volume(smooth, 9)]
            )
    for other in found[1:]:
        for ours, theirs in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(("ssnr", "k_max"), [(None, None), (None, 11), (np.linspace(30, 0.1, BOX // 2 + 1), K_MAX)])
def test_map_is_the_quotient_transformed_in_the_whole_padded_box(ssnr: np.ndarray | None, k_max: int | None) -> None:
    """The plain form of the solution, in double precision, without correction for uneven weights."""
    sums, padded = completed(True), padded_box(BOX)
    shells = np.minimum(shells_of(sums, BOX), BOX // 2)
    mean = shell_weights(sums, BOX)
    added = 1e-3 * mean + 1e-12 * mean.max() if ssnr is None else np.maximum(mean / ssnr, 1e-3 * mean)
    solved = sums.data.astype(np.complex128) / (sums.weight + added[shells])
    solved[shells > (BOX if k_max is None else k_max)] = 0
    expected = correct_gridding(real_volume(place_volume(solved, padded), BOX), padded)
    expected *= soft_sphere(BOX, BOX / 2 - 3, 3)
    found = solve(sums, BOX, ssnr, k_max, levelled=0)
    np.testing.assert_allclose(found, expected, atol=2e-6 * np.abs(expected).max())


@pytest.mark.parametrize("k_max", [7, K_MAX])
def test_reference_volume_is_the_transform_of_the_whole_padded_box(k_max: int) -> None:
    """In double precision, where windows of its shells touch it."""
    density, padded = blobs(reach=0.3 * BOX).density(BOX), padded_box(BOX)
    low = padded // 2 - BOX // 2
    whole = np.pad(correct_gridding(density.astype(np.float64), padded), (low, padded - BOX - low))
    expected = crop_volume(fourier_volume(whole), BOX, k_max)
    found = reference_volume(density, k_max)
    m = found.shape[2] - 2
    rows, half = np.arange(-m, m + 1) ** 2, np.arange(-1, m + 1) ** 2
    touched = rows[:, None, None] + rows[:, None] + half <= touched_radius(k_max, PADDING)
    assert touched.sum() > 0.4 * touched.size
    np.testing.assert_allclose(found[touched], expected[touched], atol=1e-6 * np.abs(expected).max())
