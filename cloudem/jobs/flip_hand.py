"""``cloudem flip_hand``: the mirror image of a map, of its half-maps and mask, and of the poses that belong to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from cloudem.cloud.planning.work import Size, Work
from cloudem.jobs.base import Context, Inputs
from cloudem.jobs.map_result import MapResult, check_map_input, read_map_input, stage_of
from cloudem.jobs.parameters import Kind, Place, parameter
from cloudem.model.columns import Column
from cloudem.report.declaration import COST, MAP, PARAMETERS, PROVENANCE, RESOLUTION, Section

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cloudem.io.particle_store import ParticleStore

VOXEL_S, FLAT_S = 2.0e-6, 1.0
"""CPU-seconds of a voxel of the map, and besides."""

MAPS = ("half1", "half2", "map_unfiltered", "map", "mask")

NOTE = (
    "The map is inverted through its centre, which leaves the axes of every point group where they are. Poses have psi "
    "180° larger and the same shifts: images are the same projections of either map."
)


class FlipHand(MapResult):
    """Declaration of ``cloudem flip_hand``."""

    name: ClassVar[str] = "flip_hand"
    summary: ClassVar[str] = "Turn a map into its mirror image, with half-maps, mask and poses."
    examples: ClassVar[tuple[str, ...]] = (
        "cloudem flip_hand refine --out flipped",
        "cloudem flip_hand map.mrc --out flipped",
        "cloudem flip_hand start --particles refine --out flipped",
    )
    makes: ClassVar[Mapping[str, tuple[Kind, ...]]] = {"": ("particles", "halves", "volume", "mask", "curves")}
    columns: ClassVar[tuple[Column, ...]] = ()
    sections: ClassVar[tuple[Section, ...]] = (MAP, RESOLUTION, COST, PARAMETERS, PROVENANCE)

    map: Place = parameter(
        meaning="map to mirror: an MRC file, or the results of a job with all the maps that they hold",
        positional=True,
        reads=("volume", "halves"),
    )
    particles: Place | None = parameter(
        None,
        meaning="particles whose poses are to become those of the mirror image; if none, those of the results MAP",
        reads=("particles",),
    )

    def check(self, inputs: Inputs, warn: Callable[[str], None]) -> None:
        """Check the map's header, and that particles have poses."""
        if not inputs.awaited(self.map):
            check_map_input(self.map)
        if self.particles is not None and not inputs.awaited(self.particles):
            from cloudem.io.particle_store import open_particles

            open_particles(self.particles).particles.require("rot", "tilt", "psi")

    def work(self, sizes: Mapping[str, Size]) -> Work:
        """Return stages and needs from the size of the map."""
        return stage_of("flip", sizes["map"], VOXEL_S, FLAT_S)

    def made(self, context: Context) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Mirror what there is, and write the particles."""
        import numpy as np

        from cloudem.algorithms.placing import inverted
        from cloudem.io.storage.groups import has_group, read_group

        given = read_map_input(self.map)
        with context.progress.stage("flip"):
            found: dict[str, NDArray[Any]] = {"map": given.whole.data}
            curves: dict[str, NDArray[Any]] = {}
            if has_group(self.map, "result"):
                held, _ = read_group(self.map, "result")
                found |= {name: np.asarray(held[name], np.float32) for name in MAPS if name in held}
                curves = {name: values for name, values in held.items() if name.startswith("fsc_")}
            arrays = {name: inverted(volume) for name, volume in found.items()}
        store = self._store()
        if store is not None:
            self._write_poses(store, context)
        said = ", ".join(name.replace("_", " ") for name in arrays)
        context.progress.message(f"mirrored: {said}" + (f", {len(store):,} poses" if store is not None else ""))
        count = {} if store is None else {"particle_count": len(store)}
        attributes = {
            **given.kept(),
            "pixel_size_A": given.whole.pixel_size,
            "origin_A": given.whole.origin,
            **count,
            "notes": [NOTE],
        }
        return {**arrays, **curves}, attributes

    def _store(self) -> ParticleStore | None:
        """Return the particles with poses, if there are any."""
        from cloudem.io.particle_store import open_particles
        from cloudem.io.storage.groups import has_group

        if self.particles is not None:
            return open_particles(self.particles)
        if not has_group(self.map, "particles"):
            return None
        store = open_particles(self.map)
        return store if {"rot", "tilt", "psi"} <= store.particles.columns.keys() else None

    def _write_poses(self, store: ParticleStore, context: Context) -> None:
        import numpy as np

        from cloudem.jobs.results import write_particles_of
        from cloudem.model.poses import euler_to_matrix, matrix_to_euler, mirrored_poses

        table = store.particles
        rot, tilt, psi = matrix_to_euler(mirrored_poses(euler_to_matrix(table["rot"], table["tilt"], table["psi"])))
        rows = table["store_row"] if "store_row" in table else np.arange(len(table))
        write_particles_of(context, table.with_columns(rot=rot, tilt=tilt, psi=psi, store_row=rows), store)
