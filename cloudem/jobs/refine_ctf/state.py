"""What is known in the course of a CTF refinement: particles, parameters so far, maps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.ctf_refinement import (
    FIRST,
    Judged,
    refined_defocus,
    refined_optics,
)
from cloudem.algorithms.joint_fit import Fitted, start_fitted
from cloudem.algorithms.resolution import FscCurves
from cloudem.errors import FormatError
from cloudem.execution.executor import Executor, Shared, itself
from cloudem.execution.task_names import labelled
from cloudem.io.formats.mrc import Volume
from cloudem.jobs.base import Context
from cloudem.jobs.dataset import Dataset, kept_rows, left_out, micrograph_numbers, open_dataset, open_for_tasks
from cloudem.jobs.halves import Drawing, half_sets
from cloudem.jobs.maps import stated_symmetry
from cloudem.jobs.refine_ctf.check import few
from cloudem.jobs.refine_ctf.job import RefineCtf
from cloudem.jobs.refine_ctf.tasks import (
    FitItem,
    fit_items,
)
from cloudem.kernels.ctf import wavelength
from cloudem.model.particles import Particles
from cloudem.model.poses import euler_to_matrix, matrix_to_euler

Float64 = NDArray[np.float64]

FIRST_SPREAD = 100.0
"""Å: spread of the defocus about its micrograph's mean to begin with."""


@dataclass
class Fit:
    """What is known so far.

    Attributes
    ----------
    fitted, variance
        Parameters of images, and the variance of their defocus in Å².
    change, free
        Aberrations beyond those of the table (g, 14), and which are fitted.
    precision
        Matrices of the profile likelihood, (g, 14, 14).
    spread
        Of the defocus about its micrograph's mean, Å.
    sigma2, gain
        Noise by half-set, optics group and shell, and the factor on the map by half-set and shell.
    judged
        What is believed of the aberrations of each optics group, once they were fitted.
    """

    fitted: Fitted
    variance: Float64
    change: Float64
    free: NDArray[np.bool_]
    precision: Float64
    spread: float = FIRST_SPREAD
    sigma2: Float64 | None = None
    gain: Float64 | None = None
    judged: list[Judged] = field(default_factory=list)


@dataclass
class FitMaps:
    """Half-maps (2, n, n, n), the map of all, the mask and its origin, FSC, and the last shell that is fitted."""

    halves: NDArray[np.float32]
    whole: NDArray[np.float32]
    mask: Volume
    curves: FscCurves
    limit: int
    volumes: list[Shared[NDArray[np.complex64]]] = field(default_factory=list)


@dataclass(frozen=True)
class CtfRun:
    """What stays the same: particles that take part by their number in the store, half-sets, micrographs, weights."""

    job: RefineCtf
    context: Context
    dataset: Dataset
    data: Shared[Dataset]
    table: Particles
    kept: NDArray[np.int64]
    symmetry: str
    micrograph: NDArray[np.int64]
    weight: Float64

    @property
    def executor(self) -> Executor:
        """Runs the tasks."""
        return self.context.executor

    @property
    def box(self) -> int:
        """Pixels."""
        return self.dataset.store.box

    @property
    def pixel_size(self) -> float:
        """Å."""
        return self.dataset.store.pixel_size

    @property
    def half(self) -> NDArray[np.int8]:
        """Half-set of each particle."""
        return np.asarray(self.table["half_set"], np.int8)

    @property
    def group(self) -> NDArray[np.int64]:
        """Optics group of each particle."""
        return np.asarray(self.dataset.optics_group[self.kept], np.int64)

    def items(self, fit: Fit) -> tuple[list[NDArray[np.int64]], list[FitItem]]:
        """Return the tasks, and which particles each has."""
        parts = fit_items(self.kept, self.half, self.weight, self.micrograph, fit.fitted, self.job.group_size)
        return [rows for rows, _ in parts], [item for _, item in parts]


def opened(job: RefineCtf, context: Context) -> CtfRun:
    """Open the particles."""
    dataset = open_dataset(job.particles)
    store = dataset.store
    context.progress.facts({"particles": f"{len(store):,} of {store.box} px at {store.pixel_size:.4g} Å"})
    halves = half_sets(dataset.particles, Drawing(job.seed), left_out(store, job.skip_damaged))
    kept = np.flatnonzero(halves)
    table = kept_rows(dataset.particles.with_columns(half_set=halves), halves)
    group = dataset.optics_group[kept].astype(np.int64)
    micrograph = micrograph_numbers(table) * len(table.optics) + group
    _, micrograph = np.unique(micrograph, return_inverse=True)
    weight = np.clip(np.asarray(table.get("keep", 1.0), np.float64), 0.0, 1.0)
    with labelled(step="open"):
        data = context.executor.spread(open_for_tasks, job.particles, local=itself)
    symmetry = stated_symmetry(job.symmetry, job.particles)
    return CtfRun(job, context, dataset, data, table, kept, symmetry, micrograph.astype(np.int64), weight)


def start_fit(run: CtfRun) -> Fit:
    """Return where the fit begins: at what the table says."""
    table, groups, columns = run.table, len(run.table.optics), 14
    rotations = euler_to_matrix(*(table[name] for name in ("rot", "tilt", "psi")))
    shifts = np.stack([table.get(name, 0.0) for name in ("shift_x", "shift_y")], axis=1) / run.pixel_size
    free = np.zeros((groups, columns), bool)
    free[:, run.job.freedom.group - FIRST] = True
    count = np.bincount(run.group, minlength=groups)
    for number in np.flatnonzero(count < run.job.least_particles):
        free[number] = False
        run.context.progress.warning(few(table.optics[number].name, int(count[number]), run.job.least_particles))
    precision = np.zeros((groups, columns, columns))
    return Fit(start_fitted(rotations, shifts), np.zeros(len(table)), np.zeros((groups, columns)), free, precision)


def table_after(run: CtfRun, fit: Fit) -> Particles:
    """Return the table of particles with what was fitted."""
    table, fitted = run.table, fit.fitted
    rot, tilt, psi = matrix_to_euler(fitted.rotations)
    voltage = np.array([optics.voltage for optics in table.optics])[run.group]
    defocus = (table["defocus_u"], table["defocus_v"], table["defocus_angle"])
    u, v, angle = refined_defocus(*defocus, fitted, np.pi * wavelength(voltage))
    more = {}
    if run.job.particle_scale:
        more["intensity_scale"] = table.get("intensity_scale", 1.0) * np.exp(fitted.log_scale)
    if run.job.particle_b_factor:
        more["ctf_b_factor"] = table.get("ctf_b_factor", 0.0) + fitted.fall_off
    optics = tuple(refined_optics(group, change) for group, change in zip(table.optics, fit.change, strict=True))
    refined = table.with_columns(
        rot=rot, tilt=tilt, psi=psi,
        shift_x=fitted.shifts[:, 0] * run.pixel_size, shift_y=fitted.shifts[:, 1] * run.pixel_size,
        defocus_u=u, defocus_v=v, defocus_angle=angle, defocus_error=np.sqrt(fit.variance), **more,
    )  # fmt: skip
    return Particles(optics, refined.columns)


def fit_record(fit: Fit, mask: Volume | None) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Return the arrays and attributes of a checkpoint: what the next iteration needs of a fit, and the mask."""
    arrays = {**vars(fit.fitted), "variance": fit.variance, "change": fit.change, "free": fit.free}
    arrays["precision"] = fit.precision
    if mask is not None:
        arrays["mask"] = mask.data
    copied = {name: np.array(values) for name, values in arrays.items()}
    return copied, {"spread": fit.spread, "mask_origin": None if mask is None else list(mask.origin)}


def fit_of(arrays: dict[str, NDArray[Any]], attributes: dict[str, Any], pixel_size: float) -> tuple[Fit, Volume | None]:
    """Return the fit and the mask of a checkpoint.

    Raises
    ------
    FormatError
        Another version of cloudem left it.
    """
    try:
        fitted = Fitted(*(arrays[name] for name in Fitted.__dataclass_fields__))
        variance, change, free, precision = (arrays[name] for name in ("variance", "change", "free", "precision"))
        fit = Fit(fitted, variance, change, free, precision, float(attributes["spread"]))
        if "mask" not in arrays:
            return fit, None
        x, y, z = attributes["mask_origin"]
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(
            "the checkpoint was left by another version of cloudem; run it again with --restart"
        ) from error
    return fit, Volume(arrays["mask"], pixel_size, (float(x), float(y), float(z)))
