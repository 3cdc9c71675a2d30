"""``cloudem compare_maps``: how far two maps, or a map and an atomic model, agree once they lie on one another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

from cloudem.cloud.planning.work import Size, Work
from cloudem.jobs.base import Context, Inputs
from cloudem.jobs.map_result import MapResult, check_map_input, even_box, read_map_input, stage_of
from cloudem.jobs.parameters import Kind, Place, parameter
from cloudem.model.columns import Column
from cloudem.report.declaration import COST, MAP, PARAMETERS, PROVENANCE, RESOLUTION, Section, table_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cloudem.io.formats.mrc import Volume

VOXEL_S, SEARCH_S = 8.0e-6, 5.0
"""CPU-seconds of a voxel of the map, and of the search, which does not depend on it."""

MODELS = (".cif", ".mmcif", ".pdb", ".ent", ".cif.gz", ".mmcif.gz", ".pdb.gz", ".ent.gz")
"""Endings of files that are atomic models."""

BANDS_A = (float("inf"), 25.0, 12.0, 8.0, 6.0, 5.0, 4.0, 3.0, 2.0)
"""Edges of the bands whose mean FSC is stated."""

OUTLINE_WAVES = 5.0
"""Maps that agree to no more than so many waves across the particle agree in nothing but their outline: different
proteins of one size, and noise that was laid on a map, reach that."""

BANDS = table_of("Bands", Column("band_name", "from, to"), Column("band_fsc", "mean FSC", form=".3f"))


class CompareMaps(MapResult):
    """Declaration of ``cloudem compare_maps``."""

    name: ClassVar[str] = "compare_maps"
    summary: ClassVar[str] = "Measure the FSC of two maps, or of a map and an atomic model, once they are aligned."
    examples: ClassVar[tuple[str, ...]] = (
        "cloudem compare_maps refine emd_1234.map --out compared",
        "cloudem compare_maps refine 4v1w.cif --assembly 1 --diameter-A 140 --out compared",
        "cloudem compare_maps start refine --either-hand --out compared",
        "cloudem compare_maps refine emd_1234.map --mask mask.mrc --no-align --out compared",
    )
    makes: ClassVar[Mapping[str, tuple[Kind, ...]]] = {"": ("volume", "mask", "curves")}
    columns: ClassVar[tuple[Column, ...]] = ()
    sections: ClassVar[tuple[Section, ...]] = (RESOLUTION, BANDS, MAP, COST, PARAMETERS, PROVENANCE)

    map: Place = parameter(
        meaning="first map: an MRC file or the results of a job; all is compared on its grid",
        positional=True,
        reads=("volume", "halves"),
    )
    other: Place = parameter(
        meaning="second map, which is moved onto the first: an MRC file, the results of a job, or an atomic model",
        positional=True,
        reads=("volume", "halves", "model"),
    )
    mask: Place | None = parameter(
        None,
        meaning="mask on the first map (MRC file, or results of a job); if none, a soft sphere",
        reads=("mask",),
    )
    diameter_A: float | None = parameter(
        None,
        meaning="diameter of a sphere that contains the particle; if none, by the outline of the first map",
        gt=0,
    )
    either_hand: bool = parameter(False, meaning="try the second map's mirror image, too, and keep what agrees better")
    align: bool = parameter(True, meaning="lay the second map on the first; without it, box centres are laid together")
    assembly: str | None = parameter(None, meaning="biological assembly of an atomic model; if none, as deposited")
    model_b_factor_A2: float | None = parameter(
        None, meaning="B-factor for all atoms of a model; if none, their own", ge=0
    )

    def check(self, inputs: Inputs, warn: Callable[[str], None]) -> None:
        """Check the headers, and the model."""
        from cloudem.jobs.checks import check_mask

        if not inputs.awaited(self.map):
            check_map_input(self.map)
        if not inputs.awaited(self.other):
            if is_model(self.other):
                from cloudem.io.formats.atomic_model import read_atoms

                read_atoms(self.other, self.assembly)
            else:
                check_map_input(self.other)
        check_mask(self.mask, inputs)

    def size_of(self, name: str) -> Size | None:
        """Return that a model's size is that of the map."""
        return Size() if name == "other" and is_model(self.other) else None

    def work(self, sizes: Mapping[str, Size]) -> Work:
        """Return stages and needs from the size of the first map."""
        return stage_of("compare", sizes["map"], VOXEL_S, SEARCH_S)

    def made(self, context: Context) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Lay the second map on the first, and correlate."""
        import numpy as np

        from cloudem.algorithms.placing import Superposition, superpose
        from cloudem.algorithms.resolution import masked_fsc, resolution_at
        from cloudem.conventions import FSC_HALF
        from cloudem.jobs.find_symmetry import transform_attributes

        progress = context.progress
        first = read_map_input(self.map).whole
        box, pixel_size = len(first.data), first.pixel_size
        with progress.stage("align"):
            second = self._second(first)
            radius = self._radius(first)
            if self.align:
                pair = ((first.data, pixel_size), (second.data, second.pixel_size))
                found = superpose(*pair, radius, either_hand=self.either_hand)
            else:
                found = Superposition(np.eye(3), np.zeros(3), False, float("nan"), radius)
            moved = found.moved(second.data, second.pixel_size, box, pixel_size)
        with progress.stage("correlate"):
            mask = self._mask(first, found.radius, context)
            curves = masked_fsc(first.data, moved, mask, for_good=True)
        finest = max(pixel_size, second.pixel_size)
        half, low = (resolution_at(curves.corrected, box, pixel_size, t) for t in (FSC_HALF, 0.143))
        names, means = band_means(curves.corrected, box * pixel_size, 2 * finest)
        hand = " with the other hand" if found.mirrored else ""
        ends = " (Nyquist)" if low <= 2 * pixel_size else ""
        progress.message(f"the maps agree{hand} to {half:.2f} Å at FSC 0.5 and {low:.2f} Å at 0.143{ends}")
        progress.message(
            "mean FSC " + ", ".join(f"{name}: {mean:.3f}" for name, mean in zip(names, means, strict=True))
        )
        waves = 2 * found.radius / half
        if not waves > OUTLINE_WAVES:
            progress.warning(
                f"the maps do not agree beyond chance: an FSC of 0.5 at {half:.0f} Å is {waves:.1f} waves across "
                "the particle, which any two maps of one size reach; try --either-hand or another --diameter-A, or "
                "check that both show the same molecule"
            )
        attributes = {
            "pixel_size_A": pixel_size,
            "origin_A": first.origin,
            "resolution_A": low,
            "resolution_half_A": half,
            "resolution_source": "FSC 0.143 between the two maps",
            "agrees": bool(waves > OUTLINE_WAVES),
            **transform_attributes(found.turn, found.shift),
            "mirrored": found.mirrored,
            "correlation": found.agreement if self.align else None,
            "notes": [NOTE],
        }
        arrays = {"map": moved, "mask": mask, "band_name": np.array(names), "band_fsc": np.array(means)}
        return {**arrays, **curves.by_name()}, attributes

    def _second(self, first: Volume) -> Volume:
        from cloudem.algorithms.density import density_of_atoms
        from cloudem.io.formats.atomic_model import read_atoms
        from cloudem.io.formats.mrc import Volume

        if not is_model(self.other):
            return even_box(read_map_input(self.other).whole)
        atoms = read_atoms(self.other, self.assembly)
        data = density_of_atoms(atoms, len(first.data), first.pixel_size, b_factor=self.model_b_factor_A2)
        return Volume(data, first.pixel_size, first.origin)

    def _radius(self, first: Volume) -> float:
        from cloudem.algorithms.mask import particle_sphere

        return self.diameter_A / 2 if self.diameter_A else particle_sphere(first.data, first.pixel_size)[1]

    def _mask(self, first: Volume, radius: float, context: Context) -> NDArray[np.float32]:
        from cloudem.algorithms.mask import soft_sphere
        from cloudem.jobs.maps import read_mask, soft_edge

        box, pixel_size = len(first.data), first.pixel_size
        if self.mask is None:
            within = min(radius / pixel_size, box / 2 - 2)
            return soft_sphere(box, within, soft_edge(box, within))
        return read_mask(self.mask, box, pixel_size, context.progress, origin=first.origin, whose="first map").data


NOTE = "The map that is shown is the second one, moved onto the first; the transform is among the result's attributes."


def is_model(place: str) -> bool:
    """Return whether a file is an atomic model, by its name."""
    return place.lower().endswith(MODELS)


def band_means(fsc: NDArray[np.float64], length: float, finest: float) -> tuple[list[str], list[float]]:
    """Return names and mean FSC of the bands of `BANDS_A`, down to the finest detail that both maps hold.

    Parameters
    ----------
    fsc
        (n // 2 + 1,).
    length, finest
        Of the box, and of the finest detail, Å.
    """
    import numpy as np

    shells = np.arange(1, len(fsc) - 1)
    resolution = length / shells
    names, means = [], []
    for coarse, fine in pairwise(BANDS_A):
        inside = (resolution <= coarse) & (resolution >= max(fine, finest))
        if inside.any():
            names.append(f"{coarse:g} to {fine:g} Å" if np.isfinite(coarse) else f"coarser than {fine:g} Å")
            means.append(float(np.mean(fsc[shells[inside]])))
    return names, means
