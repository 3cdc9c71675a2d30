"""What ``cloudem subtract`` does: the maps that it subtracts, and the factor with which they fit each image."""

from __future__ import annotations

import hashlib
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.align import start_poses
from cloudem.algorithms.batch import Batch
from cloudem.algorithms.noise import noise_variance
from cloudem.algorithms.refinement import contrasts
from cloudem.algorithms.subtraction import ProjectedMap, amplitude_terms, part_of_half
from cloudem.conventions import FSC_THRESHOLD
from cloudem.errors import ParameterError
from cloudem.execution.executor import Shared, itself
from cloudem.io.particle_store import MODEL, RESULT_TABLE, ModelSource, ParticleStore, open_particles
from cloudem.io.storage.groups import has_group, holds_arrays, read_rows
from cloudem.jobs.base import Context
from cloudem.jobs.dataset import Dataset, image_batches, open_dataset, open_for_tasks
from cloudem.jobs.maps import read_mask
from cloudem.jobs.refine3d.tasks import Item, counter, power_of_group, tasks
from cloudem.jobs.subtracted import poses_in
from cloudem.jobs.table_result import MadeTable

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

NOISE_SAMPLE = 1000
"""Images of each half-set whose power says how shells are weighted."""

FEWEST_SHELLS = 3
"""Where half-maps agree on fewer, they may do so by chance."""

LITTLE = 0.01
"""Share of the map's power that is hardly worth to be subtracted, or to be kept."""

NOTE = (
    "The map shown is what is subtracted, the mean of both half-sets; the mask is what stays. Each image loses "
    "the part of its own half-set's map when it is read: that map, a pose and a factor for each image are all that is "
    "kept."
)


class Subtracting(NamedTuple):
    """What is to be done: parameters of `cloudem.jobs.subtract.Subtract`."""

    particles: str
    maps: str
    mask: str
    group_size: int


def check_same_halves(store: ParticleStore, maps: str) -> None:
    """Make sure that no image is of the half-set whose map is not its own, as far as both tables say.

    Raises
    ------
    ParameterError
        Some are.
    """
    if store.url == maps or not has_group(maps, RESULT_TABLE):
        return
    made_of = open_particles(maps)
    if made_of.image_url != store.image_url:
        return
    known, asked = (_halves_by_row(each) for each in (made_of, store))
    shared = np.intersect1d(known[0], asked[0])
    of_known, of_asked = (half[np.searchsorted(rows, shared)] for rows, half in (known, asked))
    different = int(np.count_nonzero(of_known != of_asked))
    if different:
        raise ParameterError(
            f"{different:,} of {len(shared):,} images are in another half-set in {store.url} than in {maps}: they "
            "would lose what their own noise made of the other half-map; give the results that the particles come from"
        )


def _halves_by_row(store: ParticleStore) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Return the numbers of a store's images, each once and in order, and the half-set of each."""
    rows = np.arange(len(store)) if store.rows is None else store.rows
    numbers, first = np.unique(rows, return_index=True)
    return numbers, store.particles.get("half_set", 0)[first]


def subtracted_table(job: Subtracting, context: Context) -> MadeTable:
    """Make the maps and the table."""
    dataset = open_dataset(job.particles)
    store, table = dataset.store, dataset.particles
    with context.progress.stage("maps"):
        held = read_rows(job.maps, "result", ("half1", "half2"), 0, store.box)
        others = read_rows(job.maps, "result", ("fsc_corrected",), 0, store.box)
        solvent = _solvent(job.maps, store.box)
        keep = read_mask(job.mask, store.box, store.pixel_size, context.progress).data
        _refuse_noise(others["fsc_corrected"], job.maps, store.box * store.pixel_size)
        halves = [np.asarray(held[name], np.float32) for name in ("half1", "half2")]
        wholes = [part_of_half(half, solvent, others["fsc_corrected"]) for half in halves]
        parts = [(whole * (1 - keep)).astype(np.float32) for whole in wholes]
    pairs = zip(parts, wholes, strict=True)
    amount = [float(np.square(part).sum() / max(np.square(whole).sum(), 1e-30)) for part, whole in pairs]
    if min(amount) <= 0:
        raise ParameterError(f"nothing of the half-maps lies outside of {job.mask}: nothing is left to subtract")
    terms = amplitudes_of(job, context, dataset, wholes)
    scale = image_factors(terms, table.get("intensity_scale", 1.0), dataset.optics_group, table["half_set"])
    fingerprint = hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()[:32]
    source = ModelSource(context.url, fingerprint)
    rows = table["store_row"] if "store_row" in table else np.arange(len(table))
    made = table.with_columns(
        store_row=rows,
        subtract_half=table["half_set"],
        subtract_rot=table["rot"],
        subtract_tilt=table["tilt"],
        subtract_psi=table["psi"],
        subtract_x=table.get("shift_x", 0.0),
        subtract_y=table.get("shift_y", 0.0),
        subtract_scale=scale,
    )
    store.model = source
    context.progress.message(
        f"{100 * np.mean(amount):.0f} % of the power of the map lies outside of the mask, and is subtracted of "
        f"{len(made):,} images when they are read"
    )
    if not LITTLE < np.mean(amount) < 1 - LITTLE:
        context.progress.warning(
            f"that is almost {'all' if np.mean(amount) > LITTLE else 'nothing'} of the molecule: the mask is that of "
            "what stays, and must lie where it is in the map"
        )
    arrays = {"map": (parts[0] + parts[1]) / np.float32(2), "mask": keep, "subtract_scale": scale}
    groups = {MODEL: ({"half1": parts[0], "half2": parts[1]}, {"fingerprint": fingerprint, "halves": job.maps})}
    return MadeTable(made, store, arrays, {"subtracted_share": float(np.mean(amount)), "notes": [NOTE]}, groups)


def _refuse_noise(fsc: Float64, maps: str, length: float) -> None:
    below = np.flatnonzero(fsc < FSC_THRESHOLD)
    if len(below) and below[0] < FEWEST_SHELLS:
        raise ParameterError(
            f"the half-maps of {maps} agree to {length / max(below[0], 1):.0f} Å only, so nothing is known of what is "
            "to be subtracted; refine them first"
        )


def _solvent(maps: str, box: int) -> Float32:
    """Return the solvent mask of results: nothing but noise lies outside of it; 1 everywhere where they have none."""
    if not holds_arrays(maps, "result", "mask"):
        return np.ones((box,) * 3, np.float32)
    mask: Float32 = read_rows(maps, "result", ("mask",), 0, box)["mask"]
    return mask


def amplitudes_of(job: Subtracting, context: Context, dataset: Dataset, wholes: list[Float32]) -> Float64:
    """Return what each image says of its amplitude, (n, 2): see `cloudem.algorithms.subtraction.amplitude_terms`.

    In the map of the other half-set: in its own, an image would find its own noise again (1,000 images of an SNR of
    0.06 came out 4 % too strong). Nothing but this number passes from one half-set to the other.
    """
    executor, half_set = context.executor, np.asarray(dataset.particles["half_set"], np.int8)
    data = executor.spread(open_for_tasks, job.particles, local=itself)
    items = tasks(half_set, job.group_size)
    with context.progress.stage("scale", len(half_set)) as stage:
        some = tasks(half_set, job.group_size, NOISE_SAMPLE)
        powers = executor.map(power_of_group, some, shared=lambda _: [data])
        total = np.zeros((2, len(dataset.particles.optics), dataset.store.box // 2 + 2))
        for item, power in zip(some, powers, strict=True):
            total[item.half - 1] += power
        sigma2 = np.array([noise_variance(part[:, :-1], part[:, -1], dataset.store.box) for part in total])
        projected: list[Shared[ProjectedMap]] = [executor.share(ProjectedMap.of, whole) for whole in wholes]
        task = partial(amplitudes_of_group, inverse=(1 / sigma2).astype(np.float32))
        found = executor.map(
            task, items, shared=lambda item: (data, projected[2 - item.half]), on_done=counter(stage, items)
        )
        terms = np.zeros((len(half_set), 2))
        for item, part in zip(items, found, strict=True):
            terms[item.indices] = part
    return terms


def amplitudes_of_group(item: Item, dataset: Dataset, projected: ProjectedMap, inverse: Float32) -> Float64:
    """Return `amplitude_terms` of the images of an item; ``inverse`` is 1 / σ² by half-set, optics group and shell."""
    pixel_size, parts, inverse = dataset.store.pixel_size, [], inverse[item.half - 1]
    for indices, images in image_batches(dataset, item.indices):
        table, group = dataset.particles.take(indices), dataset.optics_group[indices]
        poses = start_poses(
            np.arange(len(indices)), *poses_in(table, "rot", "tilt", "psi", "shift_x", "shift_y", pixel_size)
        )
        known = (dataset.terms[indices], dataset.ctf_scale[indices], group, np.ones(len(indices), bool), poses)
        batch = Batch(images, *known, aberrations=dataset.aberrations)
        parts.append(amplitude_terms(batch, projected, pixel_size, inverse[group]))
    return np.concatenate(parts)


def image_factors(terms: Float64, intensity: Float64, group: NDArray[np.int32], half_set: NDArray[Any]) -> Float64:
    """Return the factor on the map for each image, (n,).

    One factor for each optics group and half-set, by least squares over all its images, times the image's own: that is
    drawn from what fits it best towards its intensity as it was refined, as far as images do not differ from that
    (`cloudem.algorithms.refinement.contrasts`). What fits a faint image best is off by more than images differ, and
    what is left of the map grows by the square of that.

    Parameters
    ----------
    terms
        N and D of each image's amplitude, (n, 2).
    intensity
        Relative to the map, as it was refined; 1 where nothing is known.
    group, half_set
        Of each image.
    """
    number = 2 * group.astype(np.int64) + (np.asarray(half_set) == 2)
    out = np.ones(len(terms))
    for each in np.unique(number):
        rows = np.flatnonzero(number == each)
        known, (numerator, norm) = intensity[rows], terms[rows].T
        factor = max(float(known @ numerator) / max(float(known**2 @ norm), 1e-30), 1e-6)
        fitted = contrasts(numerator * factor, norm * factor**2, known, np.ones(len(rows)))
        out[rows] = factor * fitted
    return out
