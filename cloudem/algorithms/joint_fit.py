"""One joint fit of poses, defocus and aberrations: blocks of equations, what is eliminated, and steps.

The log-likelihood of an image is ``-½ sum |X - m|² / σ²``. Near its maximum it is quadratic in the parameters of the
image (rotation, shift, defocus; scale and B-factor by option), of its micrograph (the mean defocus, about which those
of its images scatter; astigmatism by option) and of its optics group (magnification, odd and even aberrations). What
an image and a micrograph know of their own is eliminated (the Schur complement), so that a 13 × 13 matrix for each
optics group is all that sums over images have to hold. Eliminated parameters are brought to their maximum before: the
sums are then the gradient and the precision of the profile likelihood of the group's parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cloudem.kernels.fourier import HalfDisc
from cloudem.kernels.model_fit import COLUMNS, DEFOCUS, EVEN, FALL_OFF, RESIDUAL, SCALE, TRACE, model_products
from cloudem.model.poses import rotate

Float64 = NDArray[np.float64]
IntArray = NDArray[np.int64]

MEAN_SPREAD = 300.0
"""Standard deviation in Å by which the mean defocus of a micrograph is expected to differ from what its table says."""

SCALE_SPREAD, FALL_OFF_SPREAD = 0.3, 50.0
"""The same of the logarithm of an image's scale, and of its B-factor in Å²."""

LONGEST = (0.05, 2.0, 400.0, 0.3, 40.0)
"""No single step turns further (radians), shifts further (pixels), moves the defocus (Å), the logarithm of the scale or
the B-factor (Å²) by more."""

TRUSTED = 0.05
"""An image whose next step, after the first of a pass, promises to gain less log-likelihood than this takes none."""

UNSEEN = 0.5
"""A step that promises less than this, a move by one standard error, is taken without looking: slices jump by some
thousandths where a window reaches the next voxels, so that a likelihood says nothing of such gains. Were steps refused
for it, images would not follow their aberrations."""

IMAGE_COLUMNS = 6
"""Rotation, shift and defocus: what is fitted to every image."""


@dataclass(frozen=True)
class Freedom:
    """What is fitted.

    Attributes
    ----------
    scale, fall_off
        An intensity, and a B-factor, of each image.
    astigmatism
        Of each micrograph; that of the optics group is then left out.
    trace
        Trace of the magnification matrix: the pixel size.
    """

    scale: bool = False
    fall_off: bool = False
    astigmatism: bool = False
    trace: bool = False

    @property
    def image(self) -> IntArray:
        """Columns of :mod:`cloudem.kernels.model_fit` that are fitted to each image."""
        more = [SCALE] * self.scale + [FALL_OFF] * self.fall_off
        return np.array([*range(IMAGE_COLUMNS), *more])

    @property
    def micrograph(self) -> IntArray:
        """The same of each micrograph, besides its mean defocus."""
        return np.array([EVEN.start, EVEN.start + 1] if self.astigmatism else [], np.int64)

    @property
    def group(self) -> IntArray:
        """The same of each optics group."""
        unused = set(range(IMAGE_COLUMNS)) | {SCALE, FALL_OFF, RESIDUAL, *self.micrograph.tolist()}
        if not self.trace:
            unused.add(TRACE)
        return np.array([column for column in range(COLUMNS) if column not in unused])


@dataclass(frozen=True)
class Fitted:
    """Parameters of images: rotations (b, 3, 3), shifts (b, 2) in pixels, and changes of all others, (b,) and (b, 2).

    ``astigmatism`` is that of the micrograph, as coefficients of k² cos 2φ and k² sin 2φ, radians Å².
    """

    rotations: Float64
    shifts: Float64
    defocus: Float64
    log_scale: Float64
    fall_off: Float64
    astigmatism: Float64

    def take(self, rows: IntArray | NDArray[np.bool_] | slice) -> Fitted:
        """Return some of the images."""
        return Fitted(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))

    def put(self, rows: NDArray[np.bool_], other: Fitted) -> Fitted:
        """Return these with some images as in another."""
        names = self.__dataclass_fields__
        return Fitted(
            *(
                np.where(rows.reshape(-1, *(1,) * (getattr(self, n).ndim - 1)), getattr(other, n), getattr(self, n))
                for n in names
            )
        )


def join_fitted(parts: list[Fitted]) -> Fitted:
    """Return all images of several parts."""
    return Fitted(*(np.concatenate([getattr(part, name) for part in parts]) for name in Fitted.__dataclass_fields__))


class ImageOptics(NamedTuple):
    """What the model needs of optics, for each image: M (b, 2, 2), phase (b, 12), odd (b, 12), and ``pi lambda``, (b,).

    As :func:`cloudem.kernels.model_fit.model_products` takes them, before what is fitted to images and micrographs.
    """

    magnification: Float64
    phase: Float64
    odd: Float64
    per_defocus: Float64

    def take(self, rows: IntArray | slice) -> ImageOptics:
        """Return some of the images."""
        return ImageOptics(*(part[rows] for part in self))


class Pictures(NamedTuple):
    """Images of some micrographs: transforms (b, p), 1 / σ² (b, p), the scale of each, and their half disc."""

    transforms: NDArray[np.complex64]
    precision: NDArray[np.float32]
    scale: Float64
    disc: HalfDisc
    box: int
    pixel_size: float
    padding: float


def phases_of(optics: ImageOptics, fitted: Fitted) -> Float64:
    """Return the phase polynomials (b, 12) with what was fitted to images and micrographs."""
    phase = optics.phase.copy()
    change = optics.per_defocus * fitted.defocus
    phase[:, 1] += change - fitted.astigmatism[:, 0]
    phase[:, 2] -= 2 * fitted.astigmatism[:, 1]
    phase[:, 3] += change + fitted.astigmatism[:, 0]
    phase[:, [9, 11]] += fitted.fall_off[:, None]
    return phase


def image_products(
    volumes: list[NDArray[np.complex64]],
    half: NDArray[np.int8],
    pictures: Pictures,
    optics: ImageOptics,
    fitted: Fitted,
    rows: IntArray,
) -> Float64:
    """Return the products of some of the images, each with the map of its own half-set, (r, 23, 23)."""
    out = np.zeros((len(rows), COLUMNS, COLUMNS))
    step = 1 / (pictures.box * pictures.pixel_size)
    for number, volume in enumerate(volumes, 1):
        here = np.flatnonzero(half[rows] == number)
        if not len(here):
            continue
        own = rows[here]
        part, seen = fitted.take(own), optics.take(own)
        out[here] = model_products(
            volume, part.rotations, part.shifts, seen.magnification, phases_of(seen, part), seen.odd,
            pictures.scale[own] * np.exp(part.log_scale), seen.per_defocus, pictures.transforms[own],
            pictures.precision[own], pictures.disc.kx, pictures.disc.ky, pictures.padding, pictures.box, step,
        )  # fmt: skip
    return out


class Blocks(NamedTuple):
    """Equations of images: matrices (b, q, q) and gradients (b, q) over an image's, a micrograph's, a group's columns.

    ``image`` and ``micrograph`` are the numbers of columns of the former two. The first of a micrograph's is its mean
    defocus, which only the prior knows; ``mean`` is that, (m,).
    """

    matrix: Float64
    gradient: Float64
    image: int
    micrograph: int
    mean: Float64


def mean_defocus(defocus: Float64, micrograph: IntArray, spread: float) -> Float64:
    """Return the most probable mean defocus of each micrograph, (m,), given that of its images, which scatter."""
    count, total = np.bincount(micrograph), np.bincount(micrograph, defocus)
    return np.asarray(total / spread**2 / (count / spread**2 + 1 / MEAN_SPREAD**2))


def prior_cost(fitted: Fitted, micrograph: IntArray, spread: float, freedom: Freedom) -> Float64:
    """Return minus the logarithm of each image's prior, (b,); that of a micrograph is shared by its images."""
    mean = mean_defocus(fitted.defocus, micrograph, spread)
    cost = ((fitted.defocus - mean[micrograph]) / spread) ** 2 / 2
    cost += ((mean / MEAN_SPREAD) ** 2 / 2 / np.maximum(np.bincount(micrograph), 1))[micrograph]
    if freedom.scale:
        cost += (fitted.log_scale / SCALE_SPREAD) ** 2 / 2
    if freedom.fall_off:
        cost += (fitted.fall_off / FALL_OFF_SPREAD) ** 2 / 2
    return np.asarray(cost)


def blocks_of(found: Float64, fitted: Fitted, micrograph: IntArray, spread: float, freedom: Freedom) -> Blocks:
    """Return the equations of images, priors included."""
    image, shared, group = freedom.image, freedom.micrograph, freedom.group
    columns = np.concatenate([image, [DEFOCUS], shared, group])  # the mean's are overwritten
    matrix = found[:, columns[:, None], columns]
    gradient = found[:, columns, RESIDUAL]
    mean = len(image)
    matrix[:, mean, :] = matrix[:, :, mean] = 0
    precision = 1 / spread**2
    middle = mean_defocus(fitted.defocus, micrograph, spread)
    away = fitted.defocus - middle[micrograph]
    matrix[:, DEFOCUS, DEFOCUS] += precision
    matrix[:, mean, mean] = precision
    matrix[:, DEFOCUS, mean] = matrix[:, mean, DEFOCUS] = -precision
    gradient[:, DEFOCUS] -= precision * away
    gradient[:, mean] = precision * away
    for column, value, width in (
        (SCALE, fitted.log_scale, SCALE_SPREAD),
        (FALL_OFF, fitted.fall_off, FALL_OFF_SPREAD),
    ):
        for place in np.flatnonzero(image == column):
            matrix[:, place, place] += 1 / width**2
            gradient[:, place] -= value / width**2
    return Blocks(matrix, gradient, len(image), 1 + len(shared), middle)


class Eliminated(NamedTuple):
    """What is left once images, and then micrographs, are eliminated.

    Attributes
    ----------
    matrix, gradient
        Of the groups' columns, by micrograph: (m, g, g), (m, g).
    step
        Of each image's parameters at fixed aberrations, (b, i).
    shared
        Of each micrograph's, its mean defocus first, (m, s).
    variance
        Of each image's defocus, what it shares with its micrograph included, aberrations being known, (b,).
    gain
        Log-likelihood that the step promises, (b,).
    """

    matrix: Float64
    gradient: Float64
    step: Float64
    shared: Float64
    variance: Float64
    gain: Float64


def eliminate(blocks: Blocks, micrograph: IntArray, damping: Float64 | float = 0.0) -> Eliminated:
    """Eliminate images and then micrographs.

    Parameters
    ----------
    blocks
        Of images.
    micrograph
        Number of each image's micrograph, (b,).
    damping
        Levenberg-Marquardt damping of each image, relative to the diagonal.
    """
    i, s = blocks.image, blocks.micrograph
    own = blocks.matrix[:, :i, :i]
    diagonal = np.einsum("caa->ca", own)
    floor = 1e-9 * np.maximum(diagonal, 1e-30) + 1e-30
    damped = own + (np.reshape(damping, (-1, 1)) * diagonal + floor)[:, :, None] * np.eye(i)
    root = 1 / np.sqrt(np.einsum("caa->ca", damped))  # units differ by orders of magnitude
    scaled = damped * root[:, :, None] * root[:, None, :]
    right = np.concatenate([blocks.gradient[:, :i, None], blocks.matrix[:, :i, i:]], axis=2)
    wanted = np.concatenate([right * root[:, :, None], np.eye(i)[None].repeat(len(own), 0)], axis=2)
    solved = np.linalg.solve(scaled, wanted) * root[:, :, None]
    inverse = solved[:, :, right.shape[2] :] * root[:, None, :]
    solved = solved[:, :, : right.shape[2]]
    across = np.swapaxes(blocks.matrix[:, :i, i:], 1, 2)
    left = blocks.matrix[:, i:, i:] - across @ solved[:, :, 1:]
    slope = blocks.gradient[:, i:] - (across @ solved[:, :, :1])[:, :, 0]
    count = int(micrograph.max()) + 1
    summed, tilted = np.zeros((count, *left.shape[1:])), np.zeros((count, left.shape[1]))
    np.add.at(summed, micrograph, left)
    np.add.at(tilted, micrograph, slope)
    summed[:, 0, 0] += 1 / MEAN_SPREAD**2
    tilted[:, 0] -= blocks.mean / MEAN_SPREAD**2
    # images that do not count say nothing of their micrograph's astigmatism
    floor = 1e-12 * np.einsum("caa->ca", summed[:, :s, :s]) + 1e-30
    shared = summed[:, :s, :s] + floor[:, :, None] * np.eye(s)
    back = np.linalg.solve(shared, np.concatenate([tilted[:, :s, None], summed[:, :s, s:]], axis=2))
    crossed = np.swapaxes(summed[:, :s, s:], 1, 2)
    matrix = summed[:, s:, s:] - crossed @ back[:, :, 1:]
    gradient = tilted[:, s:] - (crossed @ back[:, :, :1])[:, :, 0]
    moved = back[:, :, 0]
    step = solved[:, :, 0] - np.einsum("cis,cs->ci", solved[:, :, 1 : 1 + s], moved[micrograph])
    spread = np.linalg.inv(shared)[micrograph]
    by_shared = solved[:, DEFOCUS, 1 : 1 + s]
    variance = inverse[:, DEFOCUS, DEFOCUS] + np.einsum("cs,cst,ct->c", by_shared, spread, by_shared)
    gain = np.einsum("ci,ci->c", blocks.gradient[:, :i], step) / 2
    return Eliminated(matrix, gradient, step, moved, variance, gain)


def moved_images(fitted: Fitted, step: Float64, shared: Float64, freedom: Freedom) -> Fitted:
    """Return images after a step (b, i) of their own and one of their micrographs (b, s); long ones are cut."""
    turn = np.linalg.norm(step[:, :3], axis=1)
    shift = np.linalg.norm(step[:, 3:5], axis=1)
    sizes = [turn, shift, np.abs(step[:, 5])]
    more = {int(column): step[:, place] for place, column in enumerate(freedom.image) if place >= IMAGE_COLUMNS}
    nothing = np.zeros(len(step))
    scale, fall = more.get(SCALE, nothing), more.get(FALL_OFF, nothing)
    sizes += [np.abs(scale), np.abs(fall)]
    shorter = np.minimum(1, 1 / np.maximum(np.max([s / m for s, m in zip(sizes, LONGEST, strict=True)], axis=0), 1e-12))
    turned = shorter[:, None] * step
    # all images of a micrograph share its astigmatism, whatever became of their own steps
    astigmatism = fitted.astigmatism + (shared[:, 1:] if freedom.astigmatism else 0.0)
    return Fitted(
        rotate(fitted.rotations, turned[:, :3]),
        fitted.shifts + turned[:, 3:5],
        fitted.defocus + turned[:, 5],
        fitted.log_scale + shorter * scale,
        fitted.fall_off + shorter * fall,
        astigmatism,
    )


class Solved(NamedTuple):
    """Images at their maximum, aberrations being fixed.

    Attributes
    ----------
    fitted
        Their parameters.
    variance
        Of each image's defocus, Å².
    cost
        Minus the logarithm of each image's likelihood, prior included, (b,).
    matrix, gradient
        Of the group's columns, by micrograph.
    """

    fitted: Fitted
    variance: Float64
    cost: Float64
    matrix: Float64
    gradient: Float64


def solve_images(
    volumes: list[NDArray[np.complex64]],
    half: NDArray[np.int8],
    micrograph: IntArray,
    pictures: Pictures,
    optics: ImageOptics,
    fitted: Fitted,
    weight: Float64,
    spread: float,
    freedom: Freedom,
    steps: int,
) -> Solved:
    """Bring images and micrographs to their maximum and eliminate them.

    Parameters
    ----------
    volumes
        Padded half-volumes of the two half-sets' maps.
    half, micrograph
        Of each image, (b,); micrographs count from 0.
    pictures, optics, fitted
        Images, and where to start.
    weight
        Of each image in what becomes of the group, (b,).
    spread
        Standard deviation of the defocus about its micrograph's mean, Å.
    freedom
        What is fitted.
    steps
        Most steps.
    """
    everything = np.arange(len(half))
    found = image_products(volumes, half, pictures, optics, fitted, everything)
    cost = found[:, RESIDUAL, RESIDUAL] / 2 + prior_cost(fitted, micrograph, spread, freedom)
    damping = np.full(len(half), 1e-4)
    for number in range(steps):
        done = eliminate(blocks_of(found, fitted, micrograph, spread, freedom), micrograph, damping)
        # all take the first step: where aberrations moved, each gains little by following, and all together much
        moving = done.gain > (TRUSTED if number else 0.0)
        if freedom.astigmatism:  # one moves with its neighbours
            moving = (np.bincount(micrograph, moving) > 0)[micrograph]
        if not moving.any():
            break
        rows = np.flatnonzero(moving)
        tried = fitted.put(moving, moved_images(fitted, done.step, done.shared[micrograph], freedom))
        there = found.copy()
        there[rows] = image_products(volumes, half, pictures, optics, tried, rows)
        after = there[:, RESIDUAL, RESIDUAL] / 2 + prior_cost(tried, micrograph, spread, freedom)
        better = moving & ((after < cost) | (done.gain < UNSEEN))
        if freedom.astigmatism:
            gained, promised = np.bincount(micrograph, cost - after), np.bincount(micrograph, done.gain)
            better = moving & ((gained > 0) | (promised < UNSEEN))[micrograph]
        fitted = fitted.put(better, tried)
        found[better] = there[better]
        cost = found[:, RESIDUAL, RESIDUAL] / 2 + prior_cost(fitted, micrograph, spread, freedom)
        # a step that failed is halved, or more: an image that stays away from its maximum would pull at its group
        damping = np.where(better, damping / 10, np.where(moving, np.maximum(damping * 10, 1.0), damping))
    blocks = blocks_of(found, fitted, micrograph, spread, freedom)
    variance = eliminate(blocks, micrograph).variance
    weighed = blocks._replace(matrix=blocks.matrix * weight[:, None, None], gradient=blocks.gradient * weight[:, None])
    done = eliminate(weighed, micrograph)
    return Solved(fitted, variance, cost, done.matrix, done.gradient)


def start_fitted(rotations: Float64, shifts: Float64) -> Fitted:
    """Return poses with nothing changed but these; shifts in pixels."""
    nothing = np.zeros(len(rotations))
    return Fitted(rotations, shifts, nothing, nothing, nothing, np.zeros((len(rotations), 2)))
