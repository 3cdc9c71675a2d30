"""``cloudem align_map``: a map turned and shifted onto another one, or onto the axes of a point group."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from cloudem.cloud.planning.work import Size, Work
from cloudem.errors import ParameterError
from cloudem.jobs.base import Context, Inputs
from cloudem.jobs.map_result import MapInput, MapResult, check_map_input, read_map_input, stage_of
from cloudem.jobs.parameters import Kind, Place, parameter
from cloudem.model.columns import Column
from cloudem.report.declaration import COST, MAP, PARAMETERS, PROVENANCE, Section, table_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

VOXEL_S, SEARCH_S = 4.0e-6, 5.0
"""CPU-seconds of a voxel of the target, and of the search, which does not depend on it."""

TRANSFORM = table_of(
    "How the map was moved", Column("transform_name", "quantity"), Column("transform_value", "value", form=".3f")
)


class AlignMap(MapResult):
    """Declaration of ``cloudem align_map``."""

    name: ClassVar[str] = "align_map"
    summary: ClassVar[str] = "Turn and shift a map onto another map, or onto the axes of its point group."
    examples: ClassVar[tuple[str, ...]] = (
        "cloudem align_map refine --target emd_1234.map --out aligned",
        "cloudem align_map start --target emd_1234.map --either-hand --out aligned",
        "cloudem align_map map.mrc --symmetry D7 --out aligned",
    )
    makes: ClassVar[Mapping[str, tuple[Kind, ...]]] = {"": ("volume",)}
    columns: ClassVar[tuple[Column, ...]] = ()
    sections: ClassVar[tuple[Section, ...]] = (TRANSFORM, MAP, COST, PARAMETERS, PROVENANCE)

    map: Place = parameter(
        meaning="map to move: an MRC file or the results of a job", positional=True, reads=("volume", "halves")
    )
    target: Place | None = parameter(
        None, meaning="map to lay it on (MRC file or results of a job); the result has its grid", reads=("volume",)
    )
    symmetry: str | None = parameter(
        None, meaning="instead of a target: point group on whose axes it is laid, oriented as in RELION"
    )
    either_hand: bool = parameter(False, meaning="try the map's mirror image, too, and keep what agrees better")
    diameter_A: float | None = parameter(
        None, meaning="diameter of a sphere that contains the particle; if none, by its outline", gt=0
    )

    def model_post_init(self, _: Any) -> None:
        """Check what no single field can say."""
        if (self.target is None) == (self.symmetry is None):
            got = "none" if self.target is None else "both"
            raise ParameterError(f"align_map needs exactly one of --target and --symmetry; got {got}")
        if self.symmetry is not None and self.either_hand:
            raise ParameterError("both hands have the same axes: leave out --either-hand with --symmetry")

    def check(self, inputs: Inputs, warn: Callable[[str], None]) -> None:
        """Check the headers and the point group."""
        from cloudem.model.symmetry import operators

        if self.symmetry is not None and len(operators(self.symmetry)) == 1:
            raise ParameterError("C1 has no axes; give another point group, or a map with --target")
        for place in (self.map, self.target):
            if place is not None and not inputs.awaited(place):
                check_map_input(place)

    def work(self, sizes: Mapping[str, Size]) -> Work:
        """Return stages and needs from the size of the map that the result is like."""
        return stage_of("align", sizes.get("target", sizes["map"]), VOXEL_S, SEARCH_S)

    def made(self, context: Context) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Find how the map has to be moved, and move it."""
        given = read_map_input(self.map)
        return self._onto_axes(given, context) if self.target is None else self._onto_target(given, context)

    def _onto_target(self, given: MapInput, context: Context) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        from cloudem.algorithms.placing import superpose
        from cloudem.jobs.find_symmetry import transform_attributes

        target = read_map_input(str(self.target)).whole
        with context.progress.stage("align"):
            whole, radius = given.whole, (self.diameter_A or 0.0) / 2
            pair = ((target.data, target.pixel_size), (whole.data, whole.pixel_size))
            found = superpose(*pair, radius, either_hand=self.either_hand)
            moved = found.moved(whole.data, whole.pixel_size, len(target.data), target.pixel_size)
        hand = "the other hand" if found.mirrored else "the same hand"
        tried = f", {hand} (of both)" if self.either_hand else ", its hand kept"
        context.progress.message(f"the map correlates with the target by {found.agreement:.3f}{tried}")
        attributes = {
            "pixel_size_A": target.pixel_size,
            "origin_A": target.origin,
            **{name: value for name, value in given.kept().items() if name != "symmetry"},
            **transform_attributes(found.turn, found.shift),
            "mirrored": found.mirrored,
            "correlation": found.agreement,
            "notes": [NOTE],
        }
        return {"map": moved, **transform_rows(attributes)}, attributes

    def _onto_axes(self, given: MapInput, context: Context) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        from cloudem.algorithms.mask import particle_sphere
        from cloudem.algorithms.placing import moved_map
        from cloudem.algorithms.point_group import HOLDS, lay_on_axes
        from cloudem.io.formats.mrc import NOWHERE
        from cloudem.jobs.find_symmetry import transform_attributes

        whole, group = given.whole, str(self.symmetry).strip().upper()
        with context.progress.stage("align"):
            centre, radius = particle_sphere(whole.data, whole.pixel_size)
            radius = self.diameter_A / 2 if self.diameter_A else radius
            finest = float(given.attributes.get("filter_A") or 0.0)
            maps = given.halves or (whole.data,)
            found = lay_on_axes(maps, whole.pixel_size, centre, radius, group, finest=finest)
            shift = -found.turn @ found.centre
            moved = moved_map(whole.data, found.turn, shift / whole.pixel_size, mirrored=False)
        context.progress.message(
            f"on the axes of {group}, the map agrees with its mates by {found.share:.2f} of what its noise allows "
            f"({found.least:.2f} about the worst axis)"
        )
        if found.least < HOLDS:
            context.progress.warning(
                f"the map does not have the symmetry {group}: about its worst axis, it agrees with its mate by "
                f"{found.least:.2f} of what is possible; see cloudem find_symmetry"
            )
        attributes = {
            "pixel_size_A": whole.pixel_size,
            "origin_A": NOWHERE,
            **given.kept(),
            **transform_attributes(found.turn, shift),
            "mirrored": False,
            "correlation": found.correlation,
            "symmetry": group if found.least >= HOLDS else "C1",
            "notes": [NOTE],
        }
        return {"map": moved, **transform_rows(attributes)}, attributes


NOTE = (
    "What was at x is now at turn @ x + shift, both from the centre of their box (voxel n // 2), in Å; with the other "
    "hand, at turn @ (-x) + shift. Rot, tilt and psi are the Euler angles of the turn as RELION writes those of a pose."
)


def transform_rows(attributes: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """Return the rows of the report's table of a transform."""
    import numpy as np

    x, y, z = attributes["shift_A"]
    rows = {
        "rot (°)": attributes["turn_rot_deg"],
        "tilt (°)": attributes["turn_tilt_deg"],
        "psi (°)": attributes["turn_psi_deg"],
        "shift along x (Å)": x,
        "shift along y (Å)": y,
        "shift along z (Å)": z,
        "mirrored first (1 is yes)": float(attributes["mirrored"]),
        "correlation": attributes["correlation"],
    }
    return {"transform_name": np.array(list(rows)), "transform_value": np.array(list(rows.values()), np.float64)}
