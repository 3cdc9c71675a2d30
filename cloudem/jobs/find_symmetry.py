"""``cloudem find_symmetry``: the point group of a map, and where its axes are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from cloudem.cloud.planning.work import Size, Work
from cloudem.jobs.base import Context, Inputs
from cloudem.jobs.map_result import MapInput, MapResult, check_map_input, read_map_input, stage_of
from cloudem.jobs.parameters import Kind, Place, parameter
from cloudem.model.columns import Column
from cloudem.report.declaration import COST, MAP, PARAMETERS, PROVENANCE, Section, table_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cloudem.algorithms.point_group import PointGroup, Tried

VOXEL_S, SEARCH_S = 2.5e-6, 6.0
"""CPU-seconds of a voxel of the map, and of the search, which does not depend on it."""

GROUPS = table_of(
    "Point groups",
    Column("group_name", "group"),
    Column("group_verdict", "verdict"),
    Column("group_share", "agreement, of what is possible", form=".2f"),
    Column("group_worst", "worst axis", form=".2f"),
    Column("group_correlation", "correlation", form=".2f"),
    Column("group_deviations", "above random turns", "deviations", ".0f"),
)


class FindSymmetry(MapResult):
    """Declaration of ``cloudem find_symmetry``."""

    name: ClassVar[str] = "find_symmetry"
    summary: ClassVar[str] = "Find the point group of a map and its axes, and turn the map onto them."
    examples: ClassVar[tuple[str, ...]] = (
        "cloudem find_symmetry start --out symmetry",
        "cloudem find_symmetry run_half1_unfil.mrc --half2 run_half2_unfil.mrc --out symmetry",
        "cloudem refine3d --particles good --reference symmetry --symmetry auto --diameter-A 180 --out refine",
    )
    makes: ClassVar[Mapping[str, tuple[Kind, ...]]] = {"": ("volume",)}
    columns: ClassVar[tuple[Column, ...]] = ()
    sections: ClassVar[tuple[Section, ...]] = (
        Section("symmetry:agreement"), GROUPS, MAP, COST, PARAMETERS, PROVENANCE,
    )  # fmt: skip

    map: Place = parameter(
        meaning="map to look at: an MRC file or the results of a job, whose half-maps are used if it has them",
        positional=True,
        reads=("volume", "halves"),
    )
    half2: Place | None = parameter(None, meaning="second half-map (MRC file), if MAP is the first", reads=("volume",))
    diameter_A: float | None = parameter(
        None, meaning="diameter of a sphere that contains the particle; if none, by its outline", gt=0
    )
    finest_A: float = parameter(
        0.0,
        meaning="finest detail of the map that is looked at; 0: as far as it holds more signal than noise; of a map of "
        "abinitio, up to 7.5 waves across the particle",
        ge=0,
    )
    most_fold: int = parameter(12, meaning="highest order of axes that is tried", ge=2, le=24)
    symmetrize: bool = parameter(False, meaning="average the map over the group that was found")

    def check(self, inputs: Inputs, warn: Callable[[str], None]) -> None:
        """Check the headers."""
        if not inputs.awaited(self.map):
            check_map_input(self.map, self.half2)

    def work(self, sizes: Mapping[str, Size]) -> Work:
        """Return stages and needs from the size of the map."""
        return stage_of("symmetry", sizes["map"], VOXEL_S, SEARCH_S)

    def made(self, context: Context) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Find the group, and turn the map."""
        import numpy as np

        from cloudem.algorithms.mask import particle_sphere
        from cloudem.algorithms.placing import moved_map, symmetrised
        from cloudem.algorithms.point_group import find_point_group
        from cloudem.model.symmetry import operators

        progress = context.progress
        given = read_map_input(self.map, self.half2)
        imposed = str(given.attributes.get("symmetry") or "C1")
        if imposed != "C1":
            progress.warning(
                f"{self.map} was made with the symmetry {imposed}, so that its agreement with it is no evidence; look "
                "at a map that was made with --symmetry C1"
            )
        volume, known = given.whole, given.attributes
        finest = self.finest_A or float(known.get("symmetry_finest_A") or known.get("filter_A") or 0.0)
        with progress.stage("symmetry"):
            centre, radius = particle_sphere(volume.data, volume.pixel_size)
            radius = self.diameter_A / 2 if self.diameter_A else radius
            found = find_point_group(
                given.halves or (volume.data,), volume.pixel_size, centre, radius, finest=finest,
                most_fold=self.most_fold,
            )  # fmt: skip
            best, turned = found.best, volume.data
            if best is not None:
                shift = -best.turn @ best.centre / volume.pixel_size
                group = operators(found.name)
                turned = (
                    symmetrised(volume.data, best.turn, shift, group)
                    if self.symmetrize
                    else moved_map(volume.data, best.turn, shift, mirrored=False)
                )
            arrays = {"map": turned, **table_of_groups(found), **curves_of(found)}
        say_symmetry(found, progress.message, progress.warning)
        turn, middle = (best.turn, best.centre) if best is not None else (np.eye(3), np.zeros(3))
        return arrays, {**attributes_of(found, given), **transform_attributes(turn, -turn @ middle)}


def attributes_of(found: PointGroup, given: MapInput) -> dict[str, Any]:
    """Return what the result says of itself, but for how the map was turned."""
    from cloudem.io.formats.mrc import NOWHERE

    best, nearly = found.best, found.nearly
    return {
        **given.kept(),
        "pixel_size_A": given.whole.pixel_size,
        # a map that was moved lies nowhere in particular any more
        "origin_A": given.whole.origin if best is None else NOWHERE,
        "symmetry": found.name or "C1",
        "symmetry_determined": bool(found.name),
        "symmetry_share": best.share if best is not None else 0.0,
        "symmetry_worst_axis": best.least if best is not None else 0.0,
        "symmetry_chance": found.chance,
        "symmetry_nearly": nearly.name if nearly is not None else "",
        "symmetry_judged_to_A": found.prepared.resolution if found.prepared.last_shell else None,
        "notes": [NOTE],
    }


NOTE = (
    "The agreement with the mates is stated as a share of what the map's own noise allows: 1 for a symmetric molecule, "
    "whatever its resolution. The hand of a map says nothing about its point group, and the reverse."
)


def transform_attributes(turn: NDArray[np.float64], shift: NDArray[np.float64]) -> dict[str, Any]:
    """Return a transform as attributes of a result: what was at x, from the centre of the box, is at turn @ x + shift.

    Parameters
    ----------
    turn, shift
        (3, 3); and (3,), Å, x, y, z.
    """
    import numpy as np

    from cloudem.model.poses import matrix_to_euler

    rot, tilt, psi = (float(np.degrees(angle)) for angle in matrix_to_euler(turn))
    return {
        "turn": turn.tolist(),
        "turn_rot_deg": rot,
        "turn_tilt_deg": tilt,
        "turn_psi_deg": psi,
        "shift_A": shift.tolist(),
    }


def table_of_groups(found: PointGroup) -> dict[str, NDArray[Any]]:
    """Return the rows of the report's table, those that agree best first."""
    import numpy as np

    from cloudem.model.symmetry import operators

    rows = sorted(found.tried, key=lambda one: (one.name == found.name, one.least), reverse=True)
    own = len(operators(found.name or "C1"))
    if not rows:
        return {}

    def plain(values: list[float]) -> NDArray[np.float64]:
        return np.round(values, 2) + 0.0  # no minus before what is shown as zero

    def verdict(one: Tried) -> str:
        if one.name == found.name:
            return "the map's group"
        if not found.name:
            return "undetermined"
        held = one.least >= found.bar
        if held and len(operators(one.name)) < own:
            return "a part of it"
        return "nearly" if one.nearly else "no"

    return {
        "group_name": np.array([one.name for one in rows]),
        "group_verdict": np.array([verdict(one) for one in rows]),
        "group_share": plain([one.share for one in rows]),
        "group_worst": plain([one.least for one in rows]),
        "group_correlation": plain([one.correlation for one in rows]),
        "group_deviations": plain([one.deviations for one in rows]),
    }


def curves_of(found: PointGroup) -> dict[str, NDArray[Any]]:
    """Return the curves of the report's figure: by shell of a box of ``agreement_length_A``."""
    import numpy as np

    from cloudem.algorithms.point_group import turns_about_axes
    from cloudem.algorithms.self_agreement import agreement_curve

    frame = found.prepared
    shown = found.best or max(found.tried, key=lambda one: one.least, default=None)
    if shown is None or not frame.last_shell:
        return {}
    shells = np.arange(len(frame.signal))
    counted = (shells >= frame.first_shell) & (shells <= frame.last_shell)
    mates = agreement_curve(frame, turns_about_axes(shown), shown.centre)
    return {
        "agreement_mates": np.where(counted, mates, np.nan),
        "agreement_possible": frame.signal,
        "agreement_shells": np.array([frame.first_shell, frame.last_shell]),
        "agreement_length_A": np.array([frame.length]),
        "agreement_group": np.array([shown.name]),
    }


def say_symmetry(found: PointGroup, message: Callable[[str], None], warning: Callable[[str], None]) -> None:
    """Say what was found, in a sentence or two."""
    to = f"to {found.prepared.resolution:.1f} Å"
    if not found.name:
        warning(
            f"the point group is undetermined: {found.why}. The map is left as it is; go on in C1, or look at a map "
            "with more detail"
        )
        return
    best, nearly = found.best, found.nearly
    if best is None:
        message(
            f"point group C1: no turn of the map agrees with it {to}; a turn by chance agrees by {found.chance:.2f}"
        )
    else:
        message(
            f"point group {best.name}: {to}, the map agrees with its mates by {best.share:.2f} of what its noise "
            f"allows ({best.least:.2f} about the worst axis; by chance {found.chance:.2f}); it was turned onto the axes"
        )
    if nearly is not None:
        warning(
            f"the map is nearly {nearly.name}: {to}, its mates agree by {nearly.share:.2f} of what is possible "
            f"({nearly.least:.2f} about the worst axis), which is too little to impose it; the report shows up to where"
        )
