"""Resolution of two half-maps, and the sharpened map that the resolution allows.

Gold-standard FSC with the effect of the mask removed by phase randomisation (Chen et al. 2013,
10.1016/j.ultramic.2013.06.004); B-factor from the Guinier plot and figure-of-merit weighting (Rosenthal & Henderson
2003, 10.1016/j.jmb.2003.07.013). Curves are indexed by Fourier shell, 0 to n // 2.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from cloudem.algorithms.significance import mask_fraction
from cloudem.algorithms.spectra import (
    extent_of,
    is_finite,
    map_of,
    mixed_of,
    multiply,
    products,
    randomise,
    to_spectrum,
)
from cloudem.backend.threads import over_slabs
from cloudem.conventions import FSC_THRESHOLD
from cloudem.errors import InconsistentDataError, ParameterError
from cloudem.kernels.fourier import shell_index
from cloudem.kernels.pruned import slab_of
from cloudem.kernels.shells import correlation, crossing

RANDOMISE_BELOW = 0.8
"""Phases are randomised from the first shell whose unmasked FSC falls below this (the rule of RELION)."""

RANDOMISE_MARGIN = 2
"""Shells after that one which still show the seam between kept and randomised phases; they are left uncorrected."""

GUINIER_LOW_A = 10.0
"""The Guinier plot of a protein is straight only beyond about 10 Å (Rosenthal & Henderson 2003)."""

GUINIER_LOWEST_A = 20.0
"""The fit may start this low when too few shells lie between 10 Å and the resolution."""

GUINIER_SHELLS = 6
"""Fewest shells to fit a line through."""


GUINIER_TRUSTED_A = 6.0
"""A map that ends coarser than this never reaches the part of the Guinier plot that is a line."""

MOST_BOOST = 3.0
"""Such a map is sharpened no further than to multiply the amplitudes at its resolution by this."""


class FscCurves(NamedTuple):
    """FSC between two half-maps, each curve of shape (n // 2 + 1,) float64."""

    unmasked: NDArray[np.float64]
    masked: NDArray[np.float64]
    phase_randomised: NDArray[np.float64]
    corrected: NDArray[np.float64]
    randomise_from: int
    """First shell whose phases were randomised; n // 2 + 1 if none was."""
    fraction: float = 1.0
    """Of voxels that are independent inside the mask (`cloudem.algorithms.significance.mask_fraction`)."""

    def by_name(self) -> dict[str, NDArray[np.float64]]:
        """Return the four curves as the arrays of a result: ``fsc_unmasked`` and so on."""
        names = ("unmasked", "masked", "phase_randomised", "corrected")
        return {f"fsc_{name}": getattr(self, name) for name in names}


class GuinierFit(NamedTuple):
    """Line through ln(amplitude) against 1/d²."""

    b_factor: float
    """B in Å² of the map's fall-off ``exp(-B / (4 d²))``; sharpening multiplies with the inverse. 0 without a fit."""
    correlation: float
    """Pearson correlation of the fitted points."""
    shells: tuple[int, int]
    """First shell fitted, and the one after the last; equal when too few shells could be fitted."""


class Postprocessed(NamedTuple):
    """What :func:`postprocess` makes of two half-maps."""

    map: NDArray[np.float32]
    """(n, n, n), sharpened, FSC-weighted and filtered; not masked."""
    fsc: FscCurves
    resolution: float
    """Å, where the corrected FSC falls below 0.143."""
    fit: GuinierFit
    b_factor: float
    """The B-factor that the map was sharpened with, Å²: the fitted one unless another was asked for."""


def frequency_radius(box: int, planes: slice = slice(None)) -> NDArray[np.float32]:
    """Return ``|k|`` of each coefficient of an rfftn of a (box, box, box) volume, shape (box, box, box // 2 + 1).

    Of some of its planes where they are named.
    """
    k2 = np.fft.fftfreq(box, 1 / box).astype(np.float32) ** 2
    half = np.arange(box // 2 + 1, dtype=np.float32) ** 2
    return np.asarray(np.sqrt(k2[planes, None, None] + k2[None, :, None] + half))


def multiply_shells(volume: NDArray[np.float32], curve: NDArray[np.floating]) -> NDArray[np.float32]:
    """Multiply a volume's transform with a radial curve, linear between shells and zero beyond the last one.

    Parameters
    ----------
    volume
        (n, n, n) float32.
    curve
        (n // 2 + 1,), the factor at ``|k|`` = 0, 1, ….

    Returns
    -------
        (n, n, n) float32.
    """
    box = volume.shape[0]
    if curve.shape != (box // 2 + 1,):
        raise ParameterError(f"a filter curve for box {box} has {box // 2 + 1} shells, not {curve.shape[0]}")
    transform = fft.rfftn(np.asarray(volume, np.float32))
    shells, factors = np.arange(curve.size), np.asarray(curve, np.float64)

    def multiply_planes(first: int, last: int) -> None:
        radius = frequency_radius(box, slice(first, last))
        transform[first:last] *= np.interp(radius, shells, factors, right=0.0).astype(np.float32)

    over_slabs(multiply_planes, box, slab_of(box, box // 2 + 1))
    return np.asarray(fft.irfftn(transform, s=volume.shape, overwrite_x=True), np.float32)


def low_pass_curve(box: int, pixel_size: float, resolution: float, edge: float = 2.0) -> NDArray[np.float64]:
    """Return a low-pass filter with a raised-cosine edge, centred on the resolution.

    Parameters
    ----------
    box, pixel_size
        Voxels, Å.
    resolution
        Where the filter has fallen to one half, Å.
    edge
        Width of the edge, shells.
    """
    shell = np.arange(box // 2 + 1)
    cut = box * pixel_size / resolution
    return np.asarray(0.5 + 0.5 * np.cos(np.pi * np.clip((shell - cut) / max(edge, 1e-6) + 0.5, 0, 1)))


def low_pass(
    volume: NDArray[np.float32], pixel_size: float, resolution: float, edge: float = 2.0
) -> NDArray[np.float32]:
    """Filter an (n, n, n) volume to a resolution in Å; `edge` is the width of the soft edge in shells."""
    return multiply_shells(volume, low_pass_curve(volume.shape[0], pixel_size, resolution, edge))


def randomise_phases(volume: NDArray[np.float32], first_shell: int, seed: int) -> NDArray[np.float32]:
    """Give the Fourier coefficients from a shell on random phases; amplitudes stay.

    Parameters
    ----------
    volume
        (n, n, n) float32.
    first_shell
        First shell, ``round(|k|)``, to lose its phases.
    seed
        Seed of the phases.
    """
    mixed = mixed_of(volume)
    to_spectrum(mixed)
    randomise(mixed, first_shell, seed)
    return map_of(mixed, len(volume))


def masked_fsc(
    half1: NDArray[np.float32],
    half2: NDArray[np.float32],
    mask: NDArray[np.float32] | None,
    seed: int = 0,
    *,
    for_good: bool = False,
) -> FscCurves:
    """Compute the FSC of two half-maps without mask, with mask, and with the mask's own contribution taken out.

    ``corrected = (masked - randomised) / (1 - randomised)`` from two shells after `randomise_from` on, where both
    half-maps have lost their phases and all correlation that remains is the mask's; never below 0 where the mask alone
    correlates better (Chen et al. 2013).

    Parameters
    ----------
    half1, half2
        (n, n, n) float32, independent half-maps.
    mask
        (n, n, n) float32 in 0..1, or None: masked and corrected curve are then the unmasked one.
    seed
        Seed of the random phases; the two half-maps draw different ones.
    for_good
        Phases are randomised from where the unmasked FSC falls below `RANDOMISE_BELOW` to stay there, instead of from
        the first shell below. That is for a map and an atomic model: where the transform of a hollow or round molecule
        is nearly zero, solvent and disorder, which a model lacks, lower a shell or two, in which no noise begins.

    Raises
    ------
    InconsistentDataError
        The volumes have different shapes or contain NaN.
    """
    for name, volume in (("half-map 1", half1), ("half-map 2", half2), ("mask", mask)):
        if volume is None:
            continue
        if volume.shape != half1.shape:
            raise InconsistentDataError(
                f"{name} has the shape {volume.shape}, half-map 1 {half1.shape}; give volumes of one box"
            )
        if not is_finite(volume):
            raise InconsistentDataError(f"{name} holds NaN or infinite voxels; an FSC needs finite ones")
    if mask is None:
        unmasked = correlation(*products(mixed_of(half1), mixed_of(half2)))
        nothing = np.zeros_like(unmasked)
        return FscCurves(unmasked, unmasked.copy(), nothing, unmasked.copy(), _randomise_from(unmasked, for_good))
    extent = extent_of(mask)
    plane = extent.first_plane
    masked = correlation(*products(mixed_of(half1, mask, extent), mixed_of(half2, mask, extent), plane))
    one, other = mixed_of(half1), mixed_of(half2)
    unmasked = correlation(*products(one, other, keep=True))
    first = _randomise_from(unmasked, for_good)
    for spectrum, own in zip((one, other), np.random.SeedSequence(seed).generate_state(2), strict=True):
        randomise(spectrum, first, int(own))
    randomised = correlation(*products(multiply(one, mask, extent), multiply(other, mask, extent), plane))
    corrected = _correct(masked, randomised, first + RANDOMISE_MARGIN)
    return FscCurves(unmasked, masked, randomised, corrected, first, mask_fraction(mask))


def _randomise_from(unmasked: NDArray[np.float64], for_good: bool) -> int:
    if for_good:
        high = np.flatnonzero(unmasked >= RANDOMISE_BELOW)
        return max(int(high[-1]) + 1, 1) if high.size else 1
    low = np.flatnonzero(unmasked[1:] < RANDOMISE_BELOW)
    return int(low[0]) + 1 if low.size else unmasked.size


def _correct(masked: NDArray[np.float64], randomised: NDArray[np.float64], first: int) -> NDArray[np.float64]:
    corrected = masked.copy()
    top, noise = masked[first:], randomised[first:]
    corrected[first:] = np.where(noise < top, (top - noise) / np.maximum(1 - noise, 1e-6), 0.0)
    return corrected


def resolution_at(fsc: NDArray[np.float64], box: int, pixel_size: float, threshold: float = FSC_THRESHOLD) -> float:
    """Return the resolution in Å at which an FSC curve first falls below a threshold.

    Interpolated linearly between the two shells. 2 `pixel_size` if the curve never falls below; ``box * pixel_size``
    (shell 1) if it is below from the start. NaN counts as no correlation.
    """
    shell = crossing(fsc, threshold)
    return 2.0 * pixel_size if np.isnan(shell) else box * pixel_size / max(shell, 1.0)


def fsc_weight(fsc: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ``sqrt(2 FSC / (1 + FSC))``, the expected correlation of the full map with the truth, 0 where FSC <= 0."""
    positive = np.clip(np.nan_to_num(fsc, nan=0.0), 0.0, 1.0)
    return np.asarray(np.sqrt(2 * positive / (1 + positive)))


def shell_amplitudes(volume: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the mean amplitude of the unnormalised transform in each shell, (n // 2 + 1,) float64."""
    box = volume.shape[0]
    shell = shell_index(box).ravel()
    amplitude = np.abs(fft.rfftn(np.asarray(volume, np.float32))).ravel()
    count = np.bincount(shell)[: box // 2 + 1]
    return np.asarray(np.bincount(shell, amplitude)[: box // 2 + 1] / count)


def b_factor(
    volume: NDArray[np.float32],
    fsc: NDArray[np.float64],
    pixel_size: float,
    resolution: float,
    low_resolution: float = GUINIER_LOW_A,
) -> GuinierFit:
    """Fit the Guinier plot of a map between `low_resolution` and `resolution`.

    Amplitudes are FSC-weighted first, so that the line follows the signal and not the noise. If fewer than
    `GUINIER_SHELLS` shells lie in the range, it begins at a lower resolution, at most at `GUINIER_LOWEST_A`; a map
    that does not even reach that gets B = 0. Give the map within the mask for which the FSC was computed: the solvent's
    noise would flatten the plot (simulated ribosome, 10 to 7.8 Å: 287 Å² with mask, 178 Å² without, truth 293 Å²).

    Parameters
    ----------
    volume
        (n, n, n) float32, mean of the half-maps (masked).
    fsc
        (n // 2 + 1,), corrected FSC.
    pixel_size, resolution, low_resolution
        Å.
    """
    extent = volume.shape[0] * pixel_size
    stop = min(int(extent / resolution), volume.shape[0] // 2) + 1
    start = min(int(np.ceil(extent / low_resolution)), stop - GUINIER_SHELLS)
    start = max(start, int(np.ceil(extent / max(GUINIER_LOWEST_A, low_resolution))), 1)
    amplitude = shell_amplitudes(volume) * fsc_weight(fsc)
    shells = np.arange(start, max(stop, start))
    shells = shells[amplitude[shells] > 0]
    if shells.size < GUINIER_SHELLS:
        return GuinierFit(0.0, 0.0, (start, start))
    inverse_d2, logarithm = (shells / extent) ** 2, np.log(amplitude[shells])
    slope = np.polyfit(inverse_d2 - inverse_d2.mean(), logarithm, 1)[0]
    spread = float(np.ptp(logarithm))
    correlation = float(np.corrcoef(inverse_d2, logarithm)[0, 1]) if spread > 0 else 0.0
    return GuinierFit(float(-4 * slope), correlation, (start, stop))


def sharpening(fit: GuinierFit, resolution: float) -> float:
    """Return the B-factor in Å² to sharpen with: that of the fit, within what the fit is worth, never below 0."""
    most = np.inf if resolution <= GUINIER_TRUSTED_A else 4 * resolution**2 * np.log(MOST_BOOST)
    return float(np.clip(fit.b_factor, 0.0, most))


def sharpen(
    volume: NDArray[np.float32],
    fsc: NDArray[np.float64],
    pixel_size: float,
    resolution: float,
    b_factor: float = 0.0,
    edge: float = 2.0,
) -> NDArray[np.float32]:
    """Return the map to look at: FSC-weighted, its fall-off of `b_factor` Å² undone, filtered to `resolution` Å.

    Parameters
    ----------
    volume
        (n, n, n) float32, mean of the half-maps.
    fsc
        (n // 2 + 1,), corrected FSC.
    pixel_size, resolution
        Å.
    b_factor
        Positive sharpens: coefficients are multiplied with ``exp(b_factor / (4 d²))``.
    edge
        Width of the low-pass filter's soft edge, shells.
    """
    box = volume.shape[0]
    inverse_d = np.arange(box // 2 + 1) / (box * pixel_size)
    curve = low_pass_curve(box, pixel_size, resolution, edge) * fsc_weight(fsc)
    # The exponent is bounded so that an absurd B-factor cannot overflow float32.
    return multiply_shells(volume, curve * np.exp(np.minimum(b_factor * inverse_d**2 / 4, 40.0)))


def postprocess(
    half1: NDArray[np.float32],
    half2: NDArray[np.float32],
    mask: NDArray[np.float32] | None,
    pixel_size: float,
    *,
    seed: int = 0,
    b_factor_given: float | None = None,
    low_resolution: float = GUINIER_LOW_A,
) -> Postprocessed:
    """Find the resolution of two half-maps and sharpen their mean.

    Parameters
    ----------
    half1, half2, mask, seed
        As for :func:`masked_fsc`.
    pixel_size
        Å.
    b_factor_given
        Sharpen with this B-factor, Å², instead of the fitted one. A fit that comes out negative does not sharpen.
    low_resolution
        Where the Guinier fit begins, Å.
    """
    curves = masked_fsc(half1, half2, mask, seed)
    resolution = resolution_at(curves.corrected, half1.shape[0], pixel_size)
    mean = (half1 + half2) / np.float32(2)
    fit = b_factor(mean if mask is None else mean * mask, curves.corrected, pixel_size, resolution, low_resolution)
    used = sharpening(fit, resolution) if b_factor_given is None else b_factor_given
    return Postprocessed(sharpen(mean, curves.corrected, pixel_size, resolution, used), curves, resolution, fit, used)
