"""How near images of a part that turns can bring its map to that of known poses: bounds that no refinement knows.

Poses about the part's middle, from images of which the rest is taken off exactly, or by `subtract`; compared with the
part's true density. Errors of poses that were found are exchanged between images before a map is made: otherwise noise
that was turned towards the truth would count as detail.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bars.focus import MOLECULES, PIXEL_A, TURNED, consensus, diameter_of_part, turned_set
from bars.hinges import HingeSet
from bars.measure import Bench
from cloudem.algorithms.align import Anchors, Poses, Prior, Weighted, evaluate, refine_poses, start_poses
from cloudem.algorithms.batch import Batch, insert_known, mask_scored_to, weigh
from cloudem.algorithms.bricks import complete
from cloudem.algorithms.focus import Focus, centre_of_mass
from cloudem.algorithms.reconstruct import empty_sums, levelled_shells, reference_volume, solve
from cloudem.algorithms.resolution import multiply_shells, resolution_at
from cloudem.io.particle_store import open_particles
from cloudem.jobs.dataset import Dataset, open_dataset
from cloudem.kernels.ctf import ctf_values
from cloudem.kernels.fourier import fourier_images, half_disc
from cloudem.kernels.shells import fourier_shell_correlation
from cloudem.kernels.slices import padded_box
from cloudem.model.particles import Particles
from cloudem.model.poses import angle_between, euler_to_matrix, rotate

EXCHANGES = 4
"""How often errors are exchanged, to average over what a single exchange does by chance."""


@dataclass(frozen=True)
class Part:
    """Images of part B as a local refinement sees them, about its middle.

    Attributes
    ----------
    made
        The set.
    focus, dataset
        Where it looks, and the table that it begins with.
    truth, start
        Poses that are true, and those of the whole molecule.
    radius
        Of the part, pixels.
    """

    made: HingeSet
    focus: Focus
    dataset: Dataset
    truth: Poses
    start: Poses
    radius: float

    @property
    def box(self) -> int:
        return self.focus.box

    @property
    def prior(self) -> Prior:
        """As wide as true poses are spread about those that are known; about these."""
        anchors = Anchors(self.start.rotations, self.start.shifts)
        spread = np.square(Prior(1.0, 1.0, anchors).offsets(self.truth)).mean(axis=0)
        return Prior(float(spread[3:].mean()), float(spread[:3].mean()), anchors)


def part_of(made: HingeSet, table: Path, diameter: float) -> Part:
    """Return part B with the poses of a table."""
    box = len(made.b)
    x, y, z = (int(v) for v in np.rint(centre_of_mass(made.mask_b)))
    focus = Focus((x, y, z), box)
    dataset = replace(open_dataset(str(table)), focus=focus)
    rows = np.arange(len(dataset.particles))
    known = dataset.focused(rows, focus)
    rotations, shifts = pose_of(made.poses_b)
    shifts = shifts + (rotations @ np.array(focus.pivot, float))[:, :2] - known.corners
    truth, start = start_poses(rows, rotations, shifts), start_poses(rows, known.rotations, known.shifts)
    return Part(made, focus, dataset, truth, start, diameter / 2 / PIXEL_A)


def pose_of(table: Particles) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    shifts = np.stack([table["shift_x"], table["shift_y"]], axis=1) / PIXEL_A
    return euler_to_matrix(table["rot"], table["tilt"], table["psi"]), shifts


def scored(part: Part, images: NDArray[np.float32], k_max: int) -> Weighted:
    """Return images ready to be scored up to a shell; their noise has the variance 1."""
    n, dataset = part.box, part.dataset
    disc = half_disc(n, n // 2 - 1)
    masked, _ = mask_scored_to(fourier_images(images), disc, n, part.radius, k_max)
    ctf = ctf_values(disc.kx, disc.ky, dataset.terms, 1 / (n * PIXEL_A)).astype(np.float32)
    inverse = np.full((len(images), n // 2 + 1), n**-2, np.float32)
    return weigh(masked, ctf, inverse, disc, np.flatnonzero(disc.shell <= k_max))


def hinge_bound(bench: Bench) -> None:
    """What images of a turning part allow: the Cramér-Rao bound of its poses, and poses from its true map."""
    bench.warm()
    for seed in bench.seeds:
        for molecule in tuple(MOLECULES)[1:] if bench.quick else MOLECULES:
            for what in tuple(TURNED)[:1] if bench.quick else TURNED:
                bounds(bench, molecule, seed, what)


def bounds(bench: Bench, molecule: str, seed: int, what: str) -> None:
    made = turned_set(bench, molecule, seed, 5.0, what)
    _, less = consensus(bench, made, MOLECULES[molecule][1])
    part = part_of(made, less, diameter_of_part(molecule, what))
    n, rows, rng = part.box, np.arange(len(part.dataset.particles)), np.random.default_rng(seed)
    noisy, clean, clean_b = (open_particles(made.folder / f"{name}.zarr").read_images(rows)
                             for name in ("particles", "clean", "clean_b"))  # fmt: skip
    corners = part.dataset.focused(rows, part.focus).corners
    exact = part.focus.cut(noisy - (clean - clean_b), corners)
    k_max = n // 2 - 1
    # the table does not know of the signal's fall-off, which refined maps have
    fall_off = np.exp(-TURNED[what][1] / 4 * (np.arange(n // 2 + 1) / (n * PIXEL_A)) ** 2)
    seen = multiply_shells(made.b * np.float32(made.scale), fall_off) * made.mask_b
    volume = reference_volume(part.focus.map_about_pivot(seen), k_max)
    padding, prior = padded_box(n) / n, part.prior
    at_truth, _ = evaluate(volume, padding, n, scored(part, exact, k_max), part.truth, prior)
    # `evaluate` adds the prior's precision: the bound is that of whoever knows the spread
    step = np.linalg.cholesky(np.linalg.inv(at_truth.precision)) @ rng.standard_normal((len(rows), 5, 1))
    bound = moved(part.truth, step[:, :, 0])
    results = {"known poses": (exact, [part.truth]), "Cramér-Rao": (exact, [bound])}
    for words, images in (("true map, exact", exact), ("true map, subtracted", part.dataset.images(rows))):
        longest = 0.15 * n / (k_max * part.radius)
        data = scored(part, images, k_max)
        found = refine_poses(volume, padding, n, data, part.start, prior, steps=20, longest_turn=longest)
        results[words] = (images, [exchanged(part.truth, found, rng.permutation(len(rows))) for _ in range(EXCHANGES)])
    row: dict[str, object] = {"seed": seed, "molecule": molecule, "part": what}
    for words, (images, poses) in results.items():
        error = np.degrees(np.median(angle_between(poses[0].rotations, part.truth.rotations)))
        row |= {words: round(true_shell(part, images, poses), 1), f"{words} °": round(float(error), 2)}
    bench.add(row)


def moved(poses: Poses, by: NDArray[np.float64]) -> Poses:
    """Return poses turned and shifted by (c, 5)."""
    return replace(poses, rotations=rotate(poses.rotations, by[:, :3]), shifts=poses.shifts + by[:, 3:])


def exchanged(truth: Poses, found: Poses, order: NDArray[np.int64]) -> Poses:
    """Return true poses with the errors that others were found with."""
    errors = (found.rotations @ np.swapaxes(truth.rotations, 1, 2))[order]
    shifts = truth.shifts + (found.shifts - truth.shifts)[order]
    return replace(truth, rotations=errors @ truth.rotations, shifts=shifts)


def true_shell(part: Part, images: NDArray[np.float32], poses: Sequence[Poses]) -> float:
    """Return the shell where maps of all images in such poses agree with the truth by 0.5, on average."""
    n, dataset, count = part.box, part.dataset, len(images)
    table = (dataset.terms, np.ones(count), dataset.optics_group, np.ones(count, bool))
    mask, curves = part.made.mask_b, []
    for each in poses:
        sums = empty_sums(n, n // 2 - 1)
        insert_known(Batch(images, *table, each), PIXEL_A, n // 2 - 1, sums)
        density = solve(complete(sums, np.eye(3)[None]), n, None, n // 2 - 1, levelled_shells(count))
        curves.append(fourier_shell_correlation(part.focus.map_undone(density, n) * mask, part.made.b * mask))
    return n * PIXEL_A / resolution_at(np.mean(curves, axis=0), n, PIXEL_A, 0.5)
