"""``cloudem mask``: a soft solvent mask from a map."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from cloudem.cloud.planning.work import MIB, Size, Stage, Work
from cloudem.errors import MissingInputError, OutputExistsError, ParameterError
from cloudem.jobs.base import Context, Inputs, Job
from cloudem.jobs.parameters import Kind, Place, parameter
from cloudem.jobs.provenance import fingerprint_of

if TYPE_CHECKING:
    from cloudem.io.formats.mrc import Volume
    from cloudem.jobs.maps import Grid

LABEL = "cloudem mask, "
"""Begins the label of a mask; the fingerprint of its job follows."""

VOXEL_S = 2.0e-6
"""A voxel of the map: CPU-seconds, one run."""


class Mask(Job):
    """Declaration of ``cloudem mask``."""

    name: ClassVar[str] = "mask"
    summary: ClassVar[str] = "Make a soft solvent mask from a map."
    examples: ClassVar[tuple[str, ...]] = (
        "cloudem mask refine --out mask.mrc",
        "cloudem mask map.mrc --threshold 0.02 --extend-A 4 --out mask.mrc",
    )
    keeps_log: ClassVar[bool] = False
    out_anywhere: ClassVar[bool] = True
    makes: ClassVar[Mapping[str, tuple[Kind, ...]]] = {"": ("mask",)}

    map: Place = parameter(
        meaning="map to make the mask from: an MRC file or the results of a job",
        positional=True,
        reads=("volume", "halves"),
    )
    out: Place = parameter(meaning="file for the mask (MRC)")
    diameter_A: float | None = parameter(
        None, meaning="diameter of a sphere that contains the particle; if none, the whole box", gt=0
    )
    low_pass_A: float = parameter(15.0, meaning="low-pass filter applied to the map first", gt=0)
    threshold: float | None = parameter(
        None, meaning="density in the filtered map above which the molecule lies; if none, estimated"
    )
    extend_A: float = parameter(6.0, meaning="distance by which the mask is extended", ge=0)
    edge_A: float = parameter(10.0, meaning="width of the soft edge beyond that", ge=0)

    def check_out(self) -> None:
        """Check that the mask is a new file."""
        from cloudem.io.storage.location import exists

        if exists(self.out):  # and is not what this very command makes
            raise OutputExistsError(f"{self.out} already exists; choose another name, or remove it first")

    def check(self, inputs: Inputs, warn: Callable[[str], None]) -> None:
        """Check the map's header, and the name of the mask's file."""
        if Path(self.out).suffix.lower() not in (".mrc", ".map"):
            raise ParameterError(f"--out is {self.out}; a mask is an MRC file; choose a name that ends in .mrc")
        if not inputs.awaited(self.map):
            self._grid()

    def work(self, sizes: Mapping[str, Size]) -> Work:
        """Return stages and needs from the size of the map."""
        voxels = sizes["map"].pixels
        stage = Stage("mask", cpu_s=VOXEL_S * voxels, read_bytes=4.0 * voxels)
        makes = {"": sizes["map"]}
        return Work((stage,), base_bytes=200 * MIB + 60 * voxels, stored_bytes=4 * voxels, makes=makes)

    def run(self, context: Context) -> None:
        """Estimate the mask and write it."""
        from cloudem.algorithms.mask import estimate_mask
        from cloudem.io.formats.mrc_writer import require_writable_origin, write_volume

        volume = self._map()
        require_writable_origin(self.out, volume.pixel_size, volume.origin)
        with context.progress.stage("mask"):
            mask = estimate_mask(
                volume.data,
                volume.pixel_size,
                diameter=self.diameter_A,
                low_pass_resolution=self.low_pass_A,
                threshold=self.threshold,
                extend=self.extend_A,
                edge=self.edge_A,
            )
        write_volume(self.out, mask, volume.pixel_size, volume.origin, self._label())
        share = 100 * float(mask.mean())
        context.progress.message(f"the mask covers {share:.1f} % of the box ({(mask > 0.999).sum():,} voxels are 1)")

    def _grid(self) -> Grid:
        from cloudem.io.storage.groups import has_group
        from cloudem.jobs.maps import check_map, result_grid

        if has_group(self.map, "result"):
            with suppress(MissingInputError):  # a result without half-maps has a map
                return result_grid(self.map)
        return check_map(self.map)

    def is_finished(self) -> bool:
        """Return whether the file is what this very command makes: its header carries the fingerprint of both."""
        return self._label_there() == self._label()

    def begun_record(self) -> Mapping[str, Any] | None:
        """Return which job made the file, as far as its header says: it has no room for more than a fingerprint."""
        return {"job": self.name} if self._label_there().startswith(LABEL) else None

    def _label_there(self) -> str:
        from cloudem.io.formats.mrc import first_label
        from cloudem.io.storage.location import folder_of, is_local

        return first_label(self.out) if not is_local(self.out) or folder_of(self.out).is_file() else ""

    def _label(self) -> str:
        return LABEL + fingerprint_of(self)

    def _map(self) -> Volume:
        from cloudem.io.formats.mrc import Volume
        from cloudem.io.storage.groups import has_group
        from cloudem.jobs.maps import read_map
        from cloudem.jobs.postprocess import read_halves

        if has_group(self.map, "result"):
            with suppress(MissingInputError):
                one, two = read_halves(self.map)
                return Volume(0.5 * (one.data + two.data), one.pixel_size, one.origin)
        return read_map(self.map)
