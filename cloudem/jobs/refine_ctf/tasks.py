"""The tasks of a CTF refinement: whole micrographs are fitted, or compared with the maps.

A task is a pure function of the particles, both half-sets' maps, and what travels with it: the parameters so far.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.bricks import pack_reference
from cloudem.algorithms.ctf_refinement import microscope_of
from cloudem.algorithms.joint_fit import Fitted, Freedom, Pictures, join_fitted, solve_images
from cloudem.algorithms.phase_sums import PhaseSums, phase_sums
from cloudem.algorithms.reconstruct import Sums, levelled_shells, reference_volume, solve
from cloudem.execution.executor import Added, Fold
from cloudem.jobs.dataset import BATCH, Dataset, groups_of, image_batches
from cloudem.kernels.fourier import HalfDisc, fourier_images, half_disc, sample_half_disc
from cloudem.kernels.slices import padded_box

Float64 = NDArray[np.float64]
IntArray = NDArray[np.int64]
Volume = NDArray[np.complex64]
R = TypeVar("R", bound=tuple[NDArray[Any], ...])

MOST_TOGETHER = 512
"""Images of a micrograph that share a mean defocus; larger micrographs are cut, so that a task stays small."""


class FitItem(NamedTuple):
    """Whole micrographs.

    Attributes
    ----------
    indices
        Of their images in the store, (b,).
    half, weight
        Half-set, and weight in what is fitted to optics groups, of each.
    micrograph
        Number of each image's micrograph, from 0, rising.
    fitted
        Parameters so far.
    """

    indices: IntArray
    half: NDArray[np.int8]
    weight: Float64
    micrograph: IntArray
    fitted: Fitted

    def take(self, rows: slice | IntArray) -> FitItem:
        """Return some of the images, micrographs counted from 0."""
        first = self.micrograph[rows] - self.micrograph[rows][0]
        return FitItem(self.indices[rows], self.half[rows], self.weight[rows], first, self.fitted.take(rows))


class FitView(NamedTuple):
    """What stays the same in a pass.

    Attributes
    ----------
    k_max
        Last shell that is compared.
    sigma2
        Noise by half-set, optics group and shell, (2, g, n // 2 + 1); None where it is not known yet.
    gain
        Factor on the map, by half-set and shell, (2, n // 2 + 1).
    change
        Aberrations beyond those of the table, (g, 14).
    spread
        Of the defocus about that of its micrograph, Å.
    freedom
        What is fitted.
    steps
        Most steps of an image.
    """

    k_max: int
    sigma2: Float64 | None
    gain: Float64
    change: Float64
    spread: float
    freedom: Freedom
    steps: int


class GroupRows(NamedTuple):
    """Sums by optics group, see `cloudem.algorithms.ctf_refinement.GroupSums`: (g, c, c), (g, c), (g,), (g,)."""

    matrix: Float64
    gradient: Float64
    cost: Float64
    weight: Float64


class FitNote(NamedTuple):
    """What became of a task's images: parameters, variance of the defocus (Å²), minus the log-likelihood, (b,)."""

    fitted: Fitted
    variance: Float64
    cost: Float64


def fit_items(
    kept: IntArray, half: NDArray[np.int8], weight: Float64, micrograph: IntArray, fitted: Fitted, size: int
) -> list[tuple[IntArray, FitItem]]:
    """Return tasks of whole micrographs, each with the rows that it has of ``kept``.

    Parameters
    ----------
    kept
        Images by their number in the store, (b,).
    half, weight, micrograph, fitted
        Of each.
    size
        Least images of a task.
    """
    order = np.argsort(micrograph, kind="stable")
    labels = micrograph[order]
    begins = np.flatnonzero(np.r_[True, np.diff(labels) != 0])
    place = np.arange(len(order)) - np.repeat(begins, np.diff(np.r_[begins, len(order)]))
    number = np.cumsum(place % MOST_TOGETHER == 0) - 1
    first = np.flatnonzero(place % MOST_TOGETHER == 0)
    out = []
    for part in groups_of(np.arange(len(order)), size):
        inside = first[(first >= part[0]) & (first <= part[-1])]
        if not len(inside):
            continue
        after = first[first > part[-1]]
        rows = order[inside[0] : after[0] if len(after) else len(order)]
        own = number[inside[0] : inside[0] + len(rows)]
        item = FitItem(kept[rows], half[rows], weight[rows], own - own[0], fitted.take(rows))
        out.append((rows, item))
    return out


def reference_to_fit(sums: Sums, mask: NDArray[np.float32], k_max: int, limit: int, slices: int) -> Volume:
    """Return a half-set's masked map up to shell ``limit`` as slices up to ``k_max`` read it, packed to travel.

    It is not filtered; shells count by their FSC instead. What an image has put into the map by its noise is larger
    the larger its CTF is, and draws the CTF there; of a map of least squares, ``|m|²`` draws it back by as much. A
    filter would leave the former where it takes of the latter, and k⁴ and defocus would be wrong.
    """
    density = solve(sums, len(mask), None, limit, levelled_shells(slices))
    density *= mask
    padding = padded_box(len(mask)) / len(mask)
    return pack_reference(reference_volume(density, k_max), k_max, padding)


def whole_micrographs(
    item: FitItem, dataset: Dataset, disc: HalfDisc
) -> Iterator[tuple[FitItem, NDArray[np.complex64]]]:
    """Yield some micrographs at a time with the transforms of their images."""
    ends = np.flatnonzero(np.r_[np.diff(item.micrograph) != 0, True]) + 1
    waiting: list[NDArray[np.complex64]] = []
    first = read = 0
    for _, images in image_batches(dataset, item.indices):
        waiting.append(sample_half_disc(fourier_images(images), disc))
        read += len(images)
        whole = ends[ends <= read]
        stop = int(whole[-1]) if len(whole) else 0
        if stop - first >= BATCH or (stop == len(item.indices) and stop > first):
            together = np.concatenate(waiting)
            yield item.take(slice(first, stop)), together[: stop - first]
            waiting, first = [together[stop - first :]], stop


def pictures_of(part: FitItem, transforms: Volume, dataset: Dataset, disc: HalfDisc, view: FitView) -> Pictures:
    """Return images with their noise, divided by the factor on the map."""
    table, box = dataset.particles, dataset.store.box
    group = dataset.optics_group[part.indices]
    gain = view.gain.astype(np.float32)[part.half - 1][:, disc.shell]
    precision = gain**2
    if view.sigma2 is not None:
        precision /= view.sigma2.astype(np.float32)[part.half - 1, group][:, disc.shell]
    scale = table.get("intensity_scale", 1.0)[part.indices] * dataset.ctf_scale[part.indices]
    return Pictures(transforms / gain, precision, scale, disc, box, dataset.store.pixel_size, padded_box(box) / box)


def fit_group(
    item: FitItem, dataset: Dataset, first: Volume, second: Volume, view: FitView
) -> Added[int, GroupRows, FitNote]:
    """Fit the images and micrographs of a task, and eliminate them; the ``add`` of a pass."""
    disc = half_disc(dataset.store.box, view.k_max)
    groups, columns = len(dataset.particles.optics), len(view.freedom.group)
    sums = GroupRows(
        np.zeros((groups, columns, columns)), np.zeros((groups, columns)), np.zeros(groups), np.zeros(groups)
    )
    notes = []
    for part, transforms in whole_micrographs(item, dataset, disc):
        found = solve_images(
            [first, second], part.half, part.micrograph,
            pictures_of(part, transforms, dataset, disc, view),
            microscope_of(dataset.particles, part.indices, view.change),
            part.fitted, part.weight, view.spread, view.freedom, view.steps,
        )  # fmt: skip
        group = dataset.optics_group[part.indices]
        of_micrograph = group[np.searchsorted(part.micrograph, np.arange(len(found.matrix)))]
        np.add.at(sums.matrix, of_micrograph, found.matrix)
        np.add.at(sums.gradient, of_micrograph, found.gradient)
        np.add.at(sums.cost, group, found.cost * part.weight)
        np.add.at(sums.weight, group, part.weight)
        notes.append(FitNote(found.fitted, found.variance, found.cost))
    note = FitNote(join_fitted([n.fitted for n in notes]), *(np.concatenate([n[i] for n in notes]) for i in (1, 2)))
    return Added({0: sums}, note)


def match_group(
    item: FitItem, dataset: Dataset, first: Volume, second: Volume, view: FitView, stride: int
) -> Added[int, PhaseSums, None]:
    """Compare images of a task with their half-set's map, pixel by pixel; the ``add`` of a comparison.

    Every how many-th image of each half-set and optics group ``stride`` says.
    """
    disc, table = half_disc(dataset.store.box, view.k_max), dataset.particles
    sums: dict[int, PhaseSums] = {}
    known = view.change.copy()
    known[:, 3:] = 0  # phases are those beyond the table's; where the frequencies lie is not among them
    for part, transforms in whole_micrographs(item, dataset, disc):
        for half, volume in ((1, first), (2, second)):
            rows = np.flatnonzero(part.half == half)
            rows = rows[np.argsort(dataset.optics_group[part.indices[rows]], kind="stable")][::stride]
            if not len(rows):
                continue
            own = part.take(rows)
            found = phase_sums(
                volume,
                pictures_of(own, transforms[rows], dataset, disc, view),
                microscope_of(table, own.indices, view.change),
                microscope_of(table, own.indices, known),
                own.fitted,
                dataset.optics_group[own.indices].astype(np.int64),
                len(table.optics),
            )
            sums[half] = sums[half].plus(found) if half in sums else found
    return Added(sums, None)


def one_key(item: FitItem) -> tuple[int]:
    """Return the key of the sums by optics group."""
    return (0,)


def half_keys(item: FitItem) -> tuple[int, ...]:
    """Return the keys of sums by half-set."""
    return tuple(int(half) for half in np.unique(item.half))


def add_group_rows(earlier: R, later: R) -> R:
    """Add arrays whose rows are optics groups."""
    return _made(earlier, [a + b for a, b in zip(earlier, later, strict=True)])


def cut_rows(sums: R, number: int, count: int) -> R:
    """Return the optics groups of brick ``number`` of ``count``."""
    some = slice(*(len(sums[0]) * at // count for at in (number, number + 1)))
    return _made(sums, [part[some] for part in sums])


def join_rows(bricks: Sequence[R]) -> R:
    """Return the sums that were cut into these."""
    return _made(bricks[0], [np.concatenate(parts) for parts in zip(*bricks, strict=True)])


def _made(like: R, arrays: list[NDArray[Any]]) -> R:
    """Return arrays as a tuple of a kind."""
    kind: Any = type(like)
    made: R = kind(*arrays)
    return made


def fold_of_pass(view: FitView) -> Fold[FitItem, int, GroupRows, FitNote]:
    """Return the fold of a pass of the fit."""
    add: Callable[..., Added[int, GroupRows, FitNote]] = partial(fit_group, view=view)
    return Fold(one_key, add, add_group_rows, cut_rows, join_rows)


def fold_of_comparison(view: FitView, stride: int) -> Fold[FitItem, int, PhaseSums, None]:
    """Return the fold of a comparison of some images with the maps."""
    add: Callable[..., Added[int, PhaseSums, None]] = partial(match_group, view=view, stride=stride)
    return Fold(half_keys, add, add_group_rows, cut_rows, join_rows)
