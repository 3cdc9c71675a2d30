import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudem.algorithms.mask import soft_circle
from cloudem.kernels.fourier import fourier_images, half_disc, sample_half_disc
from cloudem.kernels.polar import (
    Harmonics,
    Workspace,
    best_rotations,
    decode,
    harmonics,
    polar_grid,
    polar_interpolation,
    rotation_scores,
    shift_samples,
)
from cloudem.model.poses import euler_to_matrix, random_rotations
from tests.conftest import Twin
from tests.phantom import blobs

BOX, K_MAX, RADIUS = 32, 9, 11.0
GRID = polar_grid(K_MAX, RADIUS, BOX)
PHANTOM = blobs(reach=7)
seeds = st.integers(0, 2**32 - 1)


def polar_slices(rotations: np.ndarray) -> np.ndarray:
    """Return exact slices on the polar grid, (b, K, m / 2) complex."""
    return PHANTOM.slices(rotations, GRID.kx, GRID.ky, BOX).reshape(len(rotations), K_MAX, -1)


def harmonics_of(samples: np.ndarray) -> Harmonics:
    parts = (np.ascontiguousarray(part, np.float32) for part in (samples.real, samples.imag))
    return harmonics(*parts, GRID)


def as_complex(part: np.ndarray) -> np.ndarray:
    return part[:, 0] + 1j * part[:, 1]


def close(a: np.ndarray, b: np.ndarray, tolerance: float) -> bool:
    return bool(np.abs(a - b).max() < tolerance * np.abs(b).max())


def test_grid_has_the_harmonics_that_an_object_of_its_radius_needs() -> None:
    assert GRID.angles % 4 == 0
    assert GRID.angles > 2 * GRID.even[-1]
    np.testing.assert_array_equal(np.sort(np.r_[GRID.even, GRID.odd]), np.arange(len(GRID.even) + len(GRID.odd)))
    rings = np.hypot(GRID.kx, GRID.ky).reshape(K_MAX, GRID.angles // 2)
    np.testing.assert_allclose(rings, np.broadcast_to(np.arange(1, K_MAX + 1)[:, None], rings.shape))


def test_harmonics_are_those_of_the_whole_ring() -> None:
    samples = polar_slices(random_rotations(3, np.random.default_rng(0)))
    ring = np.concatenate([samples, samples.conj()], axis=-1)  # Friedel's law gives the other half circle
    exact = np.fft.fft(ring, axis=-1) / GRID.angles
    found = harmonics_of(samples)
    for part, q in ((found.even, GRID.even), (found.odd, GRID.odd)):
        assert part.dtype == np.float32
        assert close(as_complex(part), exact[..., q].transpose(2, 1, 0), 1e-5)


@given(psi=st.floats(-3, 3), seed=seeds)
def test_in_plane_rotation_is_a_phase(psi: float, seed: int) -> None:
    rotation = random_rotations(1, np.random.default_rng(seed))
    plain = harmonics_of(polar_slices(rotation))
    turned = harmonics_of(polar_slices(euler_to_matrix(0, 0, psi) @ rotation))
    for part, other, q in zip(plain, turned, (GRID.even, GRID.odd), strict=True):
        # a slice is not exactly of finite width: what lies beyond the last harmonic folds back
        assert close(as_complex(other), as_complex(part) * np.exp(1j * psi * q)[:, None, None], 2e-3)


@given(seed=seeds)
def test_opposite_direction_conjugates_and_changes_odd_signs(seed: int) -> None:
    rotation = random_rotations(1, np.random.default_rng(seed))
    plain = harmonics_of(polar_slices(rotation))
    opposite = harmonics_of(polar_slices(np.diag([1.0, -1.0, -1.0]) @ rotation))
    assert close(as_complex(opposite.even), as_complex(plain.even).conj(), 2e-3)
    assert close(as_complex(opposite.odd), -as_complex(plain.odd).conj(), 2e-3)


def test_interpolation_to_polar_samples() -> None:
    """Images cut to the circle are known between their pixels, as well as the window can tell."""
    rng = np.random.default_rng(1)
    images = rng.standard_normal((4, BOX, BOX)).astype(np.float32) * soft_circle(BOX, RADIUS - 1, 1)
    disc = half_disc(BOX, BOX // 2 - 1)
    first, second, third = polar_interpolation(GRID, disc, BOX, RADIUS)
    assert {part.dtype for part in (first, second, third)} == {np.dtype(np.float32)}
    transforms = fourier_images(images)
    samples = sample_half_disc(transforms, disc)
    got = samples.real @ first + transforms[:, 0, 0].real[:, None] * third + 1j * (samples.imag @ second)
    axis = np.arange(BOX) - BOX // 2
    x, y = (np.exp(-2j * np.pi / BOX * np.outer(axis, k)) for k in (GRID.kx, GRID.ky))
    exact = np.einsum("bij,js,is->bs", images.astype(complex), x, y)
    error = np.sqrt(np.mean(np.abs(got - exact) ** 2) / np.mean(np.abs(exact) ** 2))
    assert error < 0.01


def test_shift_twins_agree(twin: Twin) -> None:
    rng = np.random.default_rng(2)
    parts = rng.standard_normal((2, 3, len(GRID.kx))).astype(np.float32)
    shifts = rng.normal(0, 3, (3, 5, 2))
    got = twin(shift_samples)(*parts, GRID.kx, GRID.ky, shifts, BOX)
    phase = np.exp(2j * np.pi / BOX * (shifts[..., :1] * GRID.kx + shifts[..., 1:] * GRID.ky))
    exact = (parts[0] + 1j * parts[1])[:, None] * phase
    for part, expected in zip(got, (exact.real, exact.imag), strict=True):
        assert part.dtype == np.float32
        np.testing.assert_allclose(part, expected, atol=2e-5)


def random_scores(seed: int, shifts: int = 3, images: int = 2, directions: int = 5) -> tuple[list[np.ndarray], ...]:
    rng = np.random.default_rng(seed)
    rows = images * shifts

    def some(q: np.ndarray, count: int) -> np.ndarray:
        values = rng.standard_normal((len(q), 2, K_MAX, count)).astype(np.float32)
        values[q == 0, 1] = 0  # the harmonic 0 is real
        return values

    image, reference = (Harmonics(some(GRID.even, n), some(GRID.odd, n)) for n in (rows, directions))
    offset = rng.standard_normal(rows).astype(np.float32)
    return image, reference, offset


def brute_force(image: Harmonics, reference: Harmonics, offset: np.ndarray, side: int) -> np.ndarray:
    """Return all scores (rows, d, angles): Re sum Y S* with S turned by ψ, one angle after the other."""
    scores = []
    for j in range(GRID.angles):
        psi = 2 * np.pi * j / GRID.angles
        total = offset[:, None].astype(float)
        for parity, q in enumerate((GRID.even, GRID.odd)):
            s = as_complex(reference[parity])
            if side:
                s = (1 - 2 * parity) * s.conj()
            turned = s * np.exp(1j * psi * q)[:, None, None]
            total = total + np.einsum("qkr,qkd->rd", as_complex(image[parity]), turned.conj()).real
        scores.append(total)
    return np.stack(scores, axis=-1)


@pytest.mark.parametrize("seed", range(4))
def test_best_rotations_are_those_of_brute_force(seed: int, twin: Twin) -> None:
    shifts, images = 3, 2
    image, reference, offset = random_scores(seed, shifts, images)
    score, code = twin(best_rotations)(*rotation_scores(image, reference, GRID, offset, Workspace()), shifts)
    assert (score.dtype, code.dtype) == (np.float32, np.int32)
    shift, psi = decode(code, GRID.angles)
    for side in (0, 1):
        every = brute_force(image, reference, offset, side).reshape(images, shifts, -1, GRID.angles)
        best = every.max(axis=(1, 3))
        np.testing.assert_allclose(score[:, side], best, atol=1e-3)
        j = np.rint(psi[:, side] / (2 * np.pi / GRID.angles)).astype(int) % GRID.angles
        i, d = np.indices(best.shape)
        np.testing.assert_allclose(every[i, shift[:, side], d, j], best, atol=1e-3)


def test_best_rotation_twins_agree(twin: Twin) -> None:
    sums = rotation_scores(*random_scores(9)[:2], GRID, random_scores(9)[2], Workspace())
    score, code = twin(best_rotations)(*sums, 3)
    expected, expected_code = best_rotations.reference(*sums, 3)
    np.testing.assert_allclose(score, expected, rtol=1e-5, atol=1e-4)
    shift, psi = decode(code, GRID.angles)
    other, other_psi = decode(expected_code, GRID.angles)
    np.testing.assert_array_equal(shift, other)
    np.testing.assert_allclose(np.exp(1j * psi), np.exp(1j * other_psi), atol=1e-9)
