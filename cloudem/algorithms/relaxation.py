"""Whether images bear out a point group: its symmetry relaxed, so that each image may be any of its mates.

A map that was made with a group looks like it whatever the molecule is. Here images keep their poses up to an operator
of the group: which mate an image is decides itself, in a few rounds, by the map without symmetry that others of its
half-set make (`relaxed_map`). Two shares of the half-set take turns, so that no image is compared with itself.

Images of the *other* half-set then say how much better they match that map at their mate than at the mate turned
by an operator (`preferences`). They choose the mate by every other shell and are asked on the shells between, and the
other way round. If the operator is one of the molecule's, the maps at both differ by noise, in which the image has no
part, and it gains nothing on average; if it is not, one map is the molecule's and the other is not.

Only what a slice holds beyond the mean of all mates, scaled shell by shell, is looked at: better and worse images,
thinner and thicker ice, and wrong defoci differ by factors on shells, and would else sort themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.batch import Batch
from cloudem.algorithms.bricks import complete
from cloudem.algorithms.reconstruct import empty_sums, reference_volume, solve
from cloudem.kernels.ctf import ctf_values
from cloudem.kernels.fourier import HalfDisc, half_disc, sample_half_disc
from cloudem.kernels.slices import extract, fast_even, insert, padded_box
from cloudem.model.symmetry import multiplication

Float64 = NDArray[np.float64]
Complex64 = NDArray[np.complex64]

ROUNDS = 6
"""In which images choose their mates, an even number; the two shares take turns."""

CHUNK = 2048
"""Slices that are extracted at a time."""

LEAST_SHARE = 0.02
"""Mates less probable than this are not inserted."""

FIRST_SHELL = 2
"""From which on images are asked: the zero frequency and the first shell hold the background."""

SMALLEST_BOX, BOX_MARGIN = 48, 8
"""Maps are made in a box of at least so many pixels, and so many more than their shells need: it holds the particle."""

MOST_BROKEN = 0.04
"""Share of an operator up to which it is believed, though it may not be exact: real apoferritin in O has up to 0.03,
where some images are of nothing; of operators that are none of the molecule's the worst has 0.06 and more."""

LEAST_CONFIRMED = 0.35
"""Part of a map's asymmetry that images have to confirm: those of apoferritin confirm 0.13 in O, and where a group is
wrong it is 0.6 to 1.3."""

SURELY_BROKEN = 6.0
"""Standard deviations."""

BORNE_OUT = 0.35
"""Operators with less than this times the share of the worst are the molecule's: poses that the others spoiled, and
gaps in maps of few images, leave them a small one. C4 in D4 has 0.27 with 150 images, C7 in D7 0.08 with 1,000."""


@dataclass(frozen=True)
class Witnesses:
    """Images of one half-set, ready to be compared with slices.

    Attributes
    ----------
    box
        Of the maps that they make, pixels: large enough for their shells, and as wide in Å as the images.
    disc
        Their Fourier pixels (p,), in the order of shells.
    numerators, denominators
        C X / σ², shifted to the centre, and C² / σ², (b, p).
    axes
        Poses with the magnification of the images, (b, 3, 3) (:func:`cloudem.kernels.slices.magnified_axes`).
    k_max
        Last shell of the maps.
    """

    box: int
    disc: HalfDisc
    numerators: Complex64
    denominators: NDArray[np.float32]
    axes: Float64
    k_max: int

    def take(self, rows: NDArray[Any] | slice) -> Witnesses:
        """Return some of the images."""
        names = ("numerators", "denominators", "axes")
        return replace(self, **{name: getattr(self, name)[rows] for name in names})


def witnesses(
    batch: Batch, rotations: Float64, shifts: Float64, inverse: NDArray[np.float32], k_max: int, pixel_size: float
) -> Witnesses:
    """Weigh whole images up to a shell.

    Parameters
    ----------
    batch
        Of one half-set.
    rotations, shifts
        Pose of each, (b, 3, 3) and (b, 2) pixels.
    inverse
        1 / σ² by image and shell, (b, n // 2 + 1).
    k_max
        Last shell.
    pixel_size
        Å.
    """
    box = batch.images.shape[-1]
    disc = half_disc(box, k_max)
    disc = disc.take(np.flatnonzero(batch.aberrations.reach(disc) <= k_max))
    disc = disc.take(np.argsort(disc.shell, kind="stable"))
    values = ctf_values(disc.kx, disc.ky, batch.terms, 1 / (box * pixel_size))
    values *= batch.scale.astype(np.float32)[:, None]
    weighted = values * inverse[:, disc.shell]
    images = sample_half_disc(batch.transforms(box * pixel_size), disc) * weighted
    angle = 2 * np.pi / box * (shifts[:, :1] * disc.kx + shifts[:, 1:] * disc.ky)
    images *= np.exp(1j * angle.astype(np.float32))
    small = min(box, fast_even(max(2 * k_max + BOX_MARGIN, SMALLEST_BOX)))
    axes = batch.aberrations.axes(rotations, batch.optics_group)
    return Witnesses(small, disc, images, values * weighted, axes, k_max)


def join_witnesses(*parts: Witnesses) -> Witnesses:
    """Return the images of all parts."""
    names = ("numerators", "denominators", "axes")
    images: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return replace(parts[0], **images)


class Matches(NamedTuple):
    """How images match a map at their mates, by shell.

    Attributes
    ----------
    product, norm
        ``Re ⟨C X / σ², D⟩`` and ``⟨C² / σ², |D|²⟩``, (b, g, shells), where D is what the mate's slice holds beyond its
        projection onto M, the mean of all mates, shell by shell.
    common
        ``Re ⟨C X / σ², M⟩``, (b, shells).
    """

    product: Float64
    norm: Float64
    common: Float64


def matches(images: Witnesses, volume: Complex64, group: Float64) -> Iterator[tuple[slice, Matches]]:
    """Compare images with a padded half-volume at all their mates ``R g``, some images at a time; yields their rows."""
    step, padding, disc = max(1, CHUNK // len(group)), padded_box(images.box) / images.box, images.disc
    starts = np.flatnonzero(np.r_[True, np.diff(disc.shell) > 0])

    def by_shell(values: NDArray[Any]) -> Float64:
        return np.asarray(np.add.reduceat(values, starts, axis=-1), np.float64)

    for first in range(0, len(images.axes), step):
        rows = slice(first, first + step)
        mates = np.einsum("bij,gjk->bgik", images.axes[rows], group)
        slices = extract(volume, mates.reshape(-1, 3, 3), disc.kx, disc.ky, padding)
        slices = slices.reshape(*mates.shape[:2], -1)
        numerators, denominators = images.numerators[rows], images.denominators[rows]
        mean = slices.mean(axis=1)
        weighted = denominators * mean.conj()
        size = by_shell((weighted * mean).real)
        onto = by_shell((weighted[:, None] * slices).real) / np.maximum(size, 1e-30)[:, None]
        common = by_shell((numerators * mean.conj()).real)
        product = by_shell((numerators[:, None] * slices.conj()).real) - onto * common[:, None]
        power = by_shell(denominators[:, None] * (slices.real**2 + slices.imag**2))
        yield rows, Matches(product, power - onto**2 * size[:, None], common)


def mate_weights(images: Witnesses, volume: Complex64, group: Float64) -> Float64:
    """Return the probability of each mate of each image, (b, g)."""
    weights = np.empty((len(images.axes), len(group)))
    for rows, match in matches(images, volume, group):
        score = (match.product - match.norm / 2).sum(axis=2)
        share = np.exp(score - score.max(axis=1, keepdims=True))
        weights[rows] = share / share.sum(axis=1, keepdims=True)
    return weights


def map_of_mates(images: Witnesses, weights: Float64, group: Float64, ssnr: Float64) -> Complex64:
    """Return the padded half-volume of a map without symmetry, from the mates with their weights (b, g)."""
    k_max, box, disc = images.k_max, images.box, images.disc
    sums = empty_sums(box, k_max)
    image, mate = np.nonzero(weights > LEAST_SHARE)
    axes = np.einsum("cij,cjk->cik", images.axes[image], group[mate])
    insert(
        sums.data, sums.weight, image.astype(np.int32), axes, np.zeros((len(image), 2)), weights[image, mate],
        images.numerators, images.denominators, disc.kx, disc.ky, padded_box(box) / box, box,
    )  # fmt: skip
    whole = complete(sums, np.eye(3)[None])
    return reference_volume(solve(whole, box, ssnr[: box // 2 + 1], k_max), k_max)


def relaxed_map(images: Witnesses, group: Float64, ssnr: Float64, seed: int) -> Complex64:
    """Return the padded half-volume of the map that images make where each decides which of its mates it is.

    Parameters
    ----------
    images
        Of one half-set.
    group
        Operators (g, 3, 3).
    ssnr
        Signal-to-noise ratio by shell that a map of all these images has without symmetry, (n // 2 + 1,).
    seed
        Of the mates in the beginning.
    """
    share = np.arange(len(images.axes)) % 2
    shares = [images.take(share == i) for i in (0, 1)]
    start = np.random.default_rng(seed).integers(len(group), size=len(shares[0].axes))
    weights = [np.eye(len(group))[start], np.zeros((len(shares[1].axes), len(group)))]
    for turn in range(ROUNDS):
        one, other = turn % 2, 1 - turn % 2
        volume = map_of_mates(shares[one], weights[one], group, ssnr / 2)
        weights[other] = mate_weights(shares[other], volume, group)
    both = np.empty((len(share), len(group)))
    both[share == 0], both[share == 1] = weights
    return map_of_mates(images, both, group, ssnr)


class Preferences(NamedTuple):
    """What each image says.

    Attributes
    ----------
    gain
        ``Re ⟨C X / σ², D_own - D_turned⟩`` for each operator, (b, g); 0 for the identity.
    common
        ``Re ⟨C X / σ², M⟩`` on the same shells, (b,): what all mates have in common.
    norm
        ``⟨C² / σ², |D_own|²⟩`` on them, (b,): what the gain is where the map's asymmetry is the molecule's, and all
        mates are as different; where it is noise, the gain is 0.
    """

    gain: Float64
    common: Float64
    norm: Float64


def preferences(images: Witnesses, volume: Complex64, group: Float64) -> Preferences:
    """Return how much better images match the other half-set's map at their mate than turned by each operator.

    They choose the mate on every other shell and are asked on the shells between, and the other way round.
    """
    table, shell = multiplication(group), np.unique(images.disc.shell)
    gain = np.zeros((len(images.axes), len(group)))
    common, norm = np.zeros(len(gain)), np.zeros(len(gain))
    for rows, match in matches(images, volume, group):
        for odd in (0, 1):
            chooses, asked = (np.flatnonzero((shell >= FIRST_SHELL) & (shell % 2 == side)) for side in (odd, 1 - odd))
            score = (match.product - match.norm / 2)[:, :, chooses].sum(axis=2)
            chosen, said = score.argmax(axis=1), match.product[:, :, asked].sum(axis=2)
            gain[rows] += np.take_along_axis(said, chosen[:, None], axis=1)
            gain[rows] -= np.take_along_axis(said, table[chosen], axis=1)
            common[rows] += match.common[:, asked].sum(axis=1)
            norm[rows] += np.take_along_axis(match.norm[:, :, asked].sum(axis=2), chosen[:, None], axis=1)[:, 0]
    return Preferences(gain, common, norm)


class Verdict(NamedTuple):
    """What the images say of a group's operators, (g,) each.

    Attributes
    ----------
    share
        What images match better at their own mate than turned by the operator, over what they match at all mates.
    confirmed
        The same over what it would be if all of the maps' asymmetry were the molecule's.
    luck
        By how many standard deviations both differ from 0.
    """

    share: Float64
    confirmed: Float64
    luck: Float64

    @property
    def broken(self) -> bool:
        """Whether an operator is none of the molecule's."""
        real = (self.confirmed > LEAST_CONFIRMED) & (self.luck > SURELY_BROKEN)
        return bool(np.any(real & (self.share > MOST_BROKEN)))

    def kept(self) -> NDArray[np.intp]:
        """Return which operators the images bear out, if others are broken: those with far less than the worst."""
        return np.flatnonzero(self.share < BORNE_OUT * self.share.max())


def verdict_from(parts: list[Preferences]) -> Verdict:
    """Return what the images of both half-sets say together."""
    gain = np.concatenate([part.gain for part in parts])
    common, norm = (max(sum(float(getattr(part, name).sum()) for part in parts), 1e-30) for name in ("common", "norm"))
    total, deviation = gain.sum(axis=0), np.sqrt(np.square(gain).sum(axis=0))
    return Verdict(total / common, total / norm, total / np.maximum(deviation, 1e-30))
