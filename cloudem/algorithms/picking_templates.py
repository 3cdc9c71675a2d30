"""Templates of picking: projections of a map, or class averages, turned in the plane; with the micrograph's CTF.

The image, its spectrum flattened, and multiplied by the CTF of the micrograph where that is known, is correlated with
every template in every orientation, each divided by the deviation that it has on noise. That is the matched filter of a
particle that the CTF has changed. The many templates are combinations of a few images (their principal components), so
that only these are correlated through Fourier transforms.
"""

from __future__ import annotations

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from scipy import ndimage

from cloudem.algorithms.picking import Float32, MicroscopeState
from cloudem.errors import ParameterError
from cloudem.kernels.ctf import ctf_terms, ctf_values
from cloudem.model.poses import sphere_directions

VIEW_STEP, TURN_STEP = 25.0, 15.0
"""Degrees between the views of a map, and between orientations in the plane."""

BOX = 1.3
"""Side of a template, diameters."""

COMPONENTS = 40
"""Principal components of the templates that are kept, at most."""

KEPT = 0.98
"""Share of the templates' power that the components must hold."""

ALIKE_BY = 0.98
"""Templates that correlate by more are one."""

SHELLS = 200
"""Of the spectrum that is flattened."""


def views_of_map(volume: Float32, pixel_size: float, diameter: float, to_pixel_size: float) -> Float32:
    """Return projections of a map from all sides.

    Parameters
    ----------
    volume
        (n, n, n), protein positive.
    pixel_size, diameter, to_pixel_size
        Å: of the map, of the particle, and of the projections.

    Returns
    -------
    Shape (views, m, m), m odd.
    """
    small = _rescaled(volume.astype(np.float32), pixel_size / to_pixel_size)
    side = _odd_side(diameter, to_pixel_size)
    middle = (np.array(small.shape) - 1) / 2 if small.shape[0] % 2 else np.array(small.shape) / 2
    grid = np.indices((side,) * 3).reshape(3, -1)[::-1] - side // 2  # x, y, z
    views = []
    for rotation in _rotations():
        places = (rotation.T @ grid)[::-1] + middle[:, None]
        turned = ndimage.map_coordinates(small, places, order=1, mode="constant")
        views.append(turned.reshape((side,) * 3).sum(0))
    half = np.array(views, np.float32)
    return np.concatenate([half, half[:, :, ::-1]])  # seen from the other side, a projection is its mirror image


def views_of_averages(averages: Float32, pixel_size: float, diameter: float, to_pixel_size: float) -> Float32:
    """Return class averages at another pixel size, cut to the side of templates; protein positive.

    Raises
    ------
    ParameterError
        There is no average.
    """
    if averages.ndim != 3 or not len(averages):
        raise ParameterError(
            "there are no class averages to pick with; give the results of cloudem classify2d or a map"
        )
    side = _odd_side(diameter, to_pixel_size)
    views = []
    for average in averages:
        small = _rescaled(average.astype(np.float32), pixel_size / to_pixel_size)
        page = np.zeros((side + small.shape[0],) * 2, np.float32)
        page[: small.shape[0], : small.shape[1]] = small
        centre = small.shape[0] // 2
        page = np.roll(page, (side // 2 - centre, side // 2 - centre), (0, 1))
        views.append(page[:side, :side])
    return np.array(views, np.float32)


def turned_templates(views: Float32) -> Float32:
    """Return views in all orientations in the plane: mean 0, norm 1, zero outside the circle; (k, m, m).

    Those that are nearly the same are one, and views whose values are all alike are left out.
    """
    side = views.shape[1]
    y, x = np.mgrid[:side, :side] - side // 2
    rim = np.clip(side / 2 - np.hypot(x, y), 0, 2) / 2
    templates = []
    for view in views:
        for angle in np.arange(0, 360, TURN_STEP):
            image = ndimage.rotate(view, angle, reshape=False, order=1) * rim
            image = image - rim * (image.sum() / rim.sum())
            norm = np.sqrt((image.astype(np.float64) ** 2).sum())
            if norm > 1e-12:
                templates.append(image / norm)
    if not templates:
        raise ParameterError("the templates are empty; check the map or the classes")
    return _unlike(np.array(templates, np.float32))


def _unlike(templates: Float32) -> Float32:
    """Return the templates of which no two correlate by more than `ALIKE_BY`; of a symmetric molecule they are few."""
    flat = templates.reshape(len(templates), -1)
    left = np.ones(len(templates), bool)
    kept = []
    for at in range(len(templates)):
        if left[at]:
            kept.append(at)
            left &= flat @ flat[at] <= ALIKE_BY
    return templates[kept]


def template_score(
    even: Float32, templates: Float32, pixel_size: float, state: MicroscopeState | None = None
) -> Float32:
    """Return the greatest normalised correlation of each pixel with any of the templates.

    Parameters
    ----------
    even
        Even image, ``(rows, columns)``.
    templates
        Of `turned_templates`.
    pixel_size
        Å.
    state
        Of the microscope; None where it is not known, so that templates are taken as they are.
    """
    side = templates.shape[1]
    padded = tuple(int(scipy.fft.next_fast_len(count + side, real=True)) for count in even.shape)
    spectrum = scipy.fft.rfft2(even, s=padded)
    spectrum /= np.sqrt(_radial_power(spectrum, padded))
    norms = np.ones(len(templates))
    if state is not None:
        spectrum *= transfer_of(padded, pixel_size, state)
        power = np.abs(scipy.fft.rfft2(templates)) ** 2
        twice = np.full(power.shape[2], 2.0)  # columns of the other half of the frequencies
        twice[0] = 1.0
        weight = transfer_of((side, side), pixel_size, state) ** 2 * twice
        norms = np.sqrt((power * weight).sum((1, 2)) / side**2)
    parts, shares = _components((templates / norms[:, None, None]).astype(np.float32))
    maps = []
    for part in parts:
        page = np.zeros(padded, np.float32)
        page[:side, :side] = part
        page = np.roll(page, (-(side // 2), -(side // 2)), (0, 1))
        found = scipy.fft.irfft2(spectrum * np.conj(scipy.fft.rfft2(page)), s=padded)
        maps.append(found[: even.shape[0], : even.shape[1]].astype(np.float32).ravel())
    stack = np.array(maps)
    best = np.empty(even.size, np.float32)
    for first in range(0, even.size, 8192):
        best[first : first + 8192] = (shares @ stack[:, first : first + 8192]).max(0)
    return best.reshape(even.shape)


def _components(templates: Float32) -> tuple[Float32, Float32]:
    """Return principal components (c, m, m), and what each template takes of them, (k, c)."""
    flat = templates.reshape(len(templates), -1).astype(np.float64)
    values, vectors = np.linalg.eigh(flat.T @ flat)
    order = np.argsort(values)[::-1]
    kept = int(np.searchsorted(np.cumsum(values[order]) / values.sum(), KEPT)) + 1
    chosen = vectors[:, order[: min(kept, COMPONENTS)]]
    side = templates.shape[1]
    return chosen.T.reshape(-1, side, side).astype(np.float32), (flat @ chosen).astype(np.float32)


def _radial_power(spectrum: NDArray[np.complexfloating], shape: tuple[int, ...]) -> NDArray[np.float64]:
    ky, kx = np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])
    radius = np.hypot(ky, kx) * 2 * SHELLS
    shell = np.minimum(radius.astype(int), SHELLS)
    power = np.abs(spectrum) ** 2
    mean = np.bincount(shell.ravel(), power.ravel()) / np.bincount(shell.ravel())
    mean[0] = mean[1]
    scaled = mean / (shape[0] * shape[1])
    return np.asarray(np.maximum(np.interp(radius - 0.5, np.arange(len(mean)), scaled), 1e-20))


def transfer_of(shape: tuple[int, ...], pixel_size: float, state: MicroscopeState) -> Float32:
    """Return the CTF at the frequencies that `scipy.fft.rfft2` of an image of this shape has."""
    ky, kx = np.fft.fftfreq(shape[0], pixel_size), np.fft.rfftfreq(shape[1], pixel_size)
    x, y = np.meshgrid(kx, ky)
    terms = ctf_terms(
        voltage=state.voltage,
        spherical_aberration=state.spherical_aberration,
        amplitude_contrast=state.amplitude_contrast,
        defocus_u=np.array([state.defocus_u]),
        defocus_v=np.array([state.defocus_v]),
        defocus_angle=np.array([state.defocus_angle]),
        phase_shift=state.phase_shift,
    )
    return np.asarray(ctf_values(x.ravel(), y.ravel(), terms, 1.0)[0].reshape(x.shape), np.float32)


def _rescaled(image: Float32, factor: float) -> Float32:
    """Return an image or a map at another size, low-passed before it is made smaller."""
    if factor < 1:
        image = ndimage.gaussian_filter(image, 0.4 / factor)
    count = max(4, round(image.shape[0] * factor))
    places = (np.arange(count) - count // 2) / factor + image.shape[0] // 2
    grids = np.meshgrid(*[places] * image.ndim, indexing="ij")
    return np.asarray(ndimage.map_coordinates(image, grids, order=1, mode="nearest"), np.float32)


def _odd_side(diameter: float, pixel_size: float) -> int:
    return 2 * round(BOX * diameter / pixel_size / 2) + 1


def _rotations() -> list[NDArray[np.float64]]:
    """Return a rotation for each direction of view; its third row is the direction."""
    rotations = []
    for direction in sphere_directions(np.radians(VIEW_STEP)):
        other = np.eye(3)[int(np.argmin(np.abs(direction)))]
        across = np.cross(other, direction)
        across /= np.linalg.norm(across)
        rotations.append(np.stack([across, np.cross(direction, across), direction]))
    return rotations
