"""What a report shows, as plain data; whatever is absent leaves its section out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cloudem.errors import ParameterError
from cloudem.model.columns import Column, Value
from cloudem.report.declaration import STANDARD, Section
from cloudem.traffic import Moved

FSC_NAMES = ("unmasked", "masked", "phase_randomised", "corrected", "truth")
"""Curves that a report knows how to label. ``truth`` is the map against a known structure."""


class TransferRow(NamedTuple):
    """What all processes moved over the network in one iteration, or, with another label, beside the iterations."""

    label: str
    moved: Moved


class MicrographPicture(NamedTuple):
    """A micrograph as a gallery shows it.

    Attributes
    ----------
    name
        Of the micrograph.
    grey
        ``(rows, columns)``, the first row at the top.
    circles
        Around particles that were picked: x, y and radius in pixels of the picture.
    """

    name: str
    grey: NDArray[np.uint8]
    circles: Sequence[tuple[float, float, float]] = ()


class StageRow(NamedTuple):
    """What one stage of a job took; NaN (0 for ``peak_bytes``) where it was not measured."""

    name: str
    wall_s: float
    cpu_s: float
    peak_bytes: int
    planned_s: float = float("nan")
    """CPU time that the job's declaration plans on the reference machine."""


class ParameterRow(NamedTuple):
    """One parameter of a job as its user would read it."""

    value: Any
    unit: str
    meaning: str


@dataclass(frozen=True, eq=False)
class ReportContent:
    """Everything that a report can show about one refinement, reconstruction or post-processing.

    Parameters
    ----------
    title : str
    map, mask : (n, n, n) float array, optional
        The final (sharpened) map, indexed [z, y, x], and the mask, 0 to 1, that its FSC was computed with.
    pixel_size : float
        Å.
    symmetry : str
        Point group, for example ``"O"``.
    symmetry_operators : (g, 3, 3) float array, optional
        Its rotation matrices; with them the distribution of views includes the equivalent ones.
    fsc : mapping of name to (n // 2 + 1,) float array
        Names are those of `FSC_NAMES`; the index is the Fourier shell.
    resolution : float, optional
        Resolution in Å that the job states (FSC 0.143). Without it, it is read off the best curve given.
    resolution_source : str
        What it is the resolution of, where the FSC of these maps does not show it.
    b_factor : float, optional
        B-factor, Å², that the map was sharpened with (negative sharpens).
    rot, tilt : (p,) float array, optional
        Euler angles in radians.
    half_set : (p,) int array, optional
        1 or 2; 0 means not assigned.
    defocus_u, defocus_v, shift_x, shift_y : (p,) float array, optional
        Å.
    keep, noise_evidence, other_evidence : (p,) float array, optional
        Whether images show the molecule, see `cloudem.algorithms.junk`.
    iterations : sequence of mapping
        Rows of the history, by the names of ``columns``; those are shown that a row has.
    columns : sequence of Column
        What the job declares of its rows.
    sections : sequence of Section
        What the job declares of its report.
    arrays : mapping of name to array
        All arrays of the result, and the columns of its particles, for sections of the job's own.
    directional : mapping
        What the result says of its resolution by direction (`cloudem.jobs.directions`): ``best_A``, ``worst_A``,
        ``mean_A``, ``worst_direction``, ``deviations``, ``sphericity``, ``sampling_compensation``,
        ``half_angle_deg``; the resolutions themselves are in ``arrays``.
    micrographs : mapping of name to array
        Columns of the table of micrographs, those that were put aside among them.
    aside : mapping of name to text
        Micrographs that are of no use or were put aside, and why.
    pictures : sequence of MicrographPicture
        Of a dozen of them.
    transfers : sequence of Transfer
        Labels are numbers of iterations, and in the end whatever else there was; empty if nothing left the machine.
    particle_count : int, optional
        Only needed where no column of particles is given.
    wall_s, cpu_s : float, optional
        Seconds for the whole job; without them, the sum over ``stages``.
    command, created : str
        The command line, and when it was run.
    notes : sequence of str
        Remarks that are not warnings.

    Raises
    ------
    ParameterError
        If arrays do not fit together, or a curve has an unknown name.
    """

    title: str
    map: NDArray[np.floating[Any]] | None = None
    mask: NDArray[np.floating[Any]] | None = None
    pixel_size: float | None = None
    symmetry: str = ""
    symmetry_operators: NDArray[np.floating[Any]] | None = None
    fsc: Mapping[str, NDArray[np.floating[Any]]] = field(default_factory=dict)
    resolution: float | None = None
    resolution_source: str = ""
    b_factor: float | None = None
    iterations: Sequence[Mapping[str, Value]] = ()
    columns: Sequence[Column] = ()
    sections: Sequence[Section] = STANDARD
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    directional: Mapping[str, Any] = field(default_factory=dict)
    micrographs: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    aside: Mapping[str, str] = field(default_factory=dict)
    pictures: Sequence[MicrographPicture] = ()
    transfers: Sequence[TransferRow] = ()
    rot: NDArray[np.floating[Any]] | None = None
    tilt: NDArray[np.floating[Any]] | None = None
    half_set: NDArray[np.integer[Any]] | None = None
    defocus_u: NDArray[np.floating[Any]] | None = None
    defocus_v: NDArray[np.floating[Any]] | None = None
    shift_x: NDArray[np.floating[Any]] | None = None
    shift_y: NDArray[np.floating[Any]] | None = None
    keep: NDArray[np.floating[Any]] | None = None
    noise_evidence: NDArray[np.floating[Any]] | None = None
    other_evidence: NDArray[np.floating[Any]] | None = None
    particle_count: int | None = None
    stages: Sequence[StageRow] = ()
    wall_s: float | None = None
    cpu_s: float | None = None
    parameters: Mapping[str, ParameterRow] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    notes: Sequence[str] = ()
    command: str = ""
    created: str = ""

    def __post_init__(self) -> None:
        """Refuse what could only be drawn wrongly."""
        if unknown := sorted(set(self.fsc) - set(FSC_NAMES)):
            raise ParameterError(f"FSC curve {unknown[0]!r} is not known to the report; use {', '.join(FSC_NAMES)}")
        if len({len(curve) for curve in self.fsc.values()}) > 1:
            raise ParameterError("FSC curves of one report must have the same number of shells")
        if self.fsc and self.pixel_size is None:
            raise ParameterError("FSC curves need the pixel size in Å; pass pixel_size")
        if self.map is not None and (self.map.ndim != 3 or len(set(self.map.shape)) != 1):
            raise ParameterError(f"the map has shape {self.map.shape}; a report needs a cube (n, n, n)")
        if self.mask is not None and self.map is not None and self.mask.shape != self.map.shape:
            raise ParameterError(f"the mask has shape {self.mask.shape}, the map {self.map.shape}; they must be equal")
        for one, other in (("rot", "tilt"), ("defocus_u", "defocus_v"), ("shift_x", "shift_y")):
            first, second = getattr(self, one), getattr(self, other)
            if (first is None) != (second is None) or (first is not None and len(first) != len(second)):
                raise ParameterError(f"{one} and {other} go together: give both, of the same length, or neither")

    @property
    def directional_resolution(self) -> NDArray[Any] | None:
        """Resolution in Å by direction, (d,), if the result holds it."""
        return self.arrays.get("directional_resolution_A")

    @property
    def box(self) -> int | None:
        """Box size in pixels, from the map or else from the curves."""
        if self.map is not None:
            return int(self.map.shape[0])
        lengths = [len(curve) for curve in self.fsc.values()]
        return 2 * (lengths[0] - 1) if lengths else None

    @property
    def particles(self) -> int | None:
        """Number of particles, from whichever column tells it."""
        if self.particle_count is not None:
            return self.particle_count
        columns = (self.rot, self.half_set, self.defocus_u, self.shift_x)
        return next((len(column) for column in columns if column is not None), None)
