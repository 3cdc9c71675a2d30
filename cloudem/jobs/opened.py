"""Results in Python: `open_result` reads what is asked for; notebooks show results and particle stores as cards."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cloudem.errors import CloudemError, FormatError, MissingInputError
from cloudem.io.particle_store import RESULT_TABLE, ParticleStore, open_particles
from cloudem.io.storage.groups import has_group, read_attributes, read_group, read_rows, shapes_in
from cloudem.io.storage.location import absolute, contents, exists, join
from cloudem.io.storage.tables import table_from_arrays
from cloudem.jobs.preview import SIDES, cube_of, read_preview
from cloudem.jobs.report import REPORT_FILE, content_of, require_result
from cloudem.model.particles import Particles
from cloudem.text import size

if TYPE_CHECKING:
    from cloudem.report.notebook import Strip

__all__ = ["Result", "open_particles", "open_result"]

EXAMPLES = 6
"""Images that the card of a particle store shows."""

LOOK_A = 20.0
"""Å to which they are low-passed: molecules become visible, and nothing is measured on them."""

Float32 = NDArray[np.float32]


class Result:
    """Finished results of a job; arrays are read when they are asked for.

    ``result["half1"]`` is an array by its name, read each time; the properties keep what they have read.

    Attributes
    ----------
    url
        Where they are.
    job
        Name of the job that made them; empty where that is not known.
    attributes
        What they say of themselves, see `cloudem.jobs.report`.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.attributes: Mapping[str, Any] = read_attributes(url, "result") or {}
        self.job = str((read_attributes(url, "") or {}).get("job", ""))

    def __repr__(self) -> str:
        stated = "" if self.resolution is None else f", {self.resolution:.2f} Å"
        return f"<Result {self.url}: {self.job or 'job not known'}{stated}>"

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Names of the arrays, and the shape of each."""
        return shapes_in(self.url, "result")

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Return an array.

        Raises
        ------
        StorageError
            There is none of that name, or it is lost or changed.
        """
        return read_rows(self.url, "result", [name], 0, sys.maxsize)[name]

    @cached_property
    def map(self) -> Float32:
        """The sharpened map, (n, n, n), z first; density of the molecule is positive."""
        return self["map"]

    @cached_property
    def mask(self) -> Float32:
        """The mask of its FSC, (n, n, n), 0 to 1."""
        return self["mask"]

    @cached_property
    def fsc(self) -> Mapping[str, NDArray[np.float64]]:
        """FSC curves of the half-maps, each (n // 2 + 1,): ``"corrected"``, ``"masked"``, ``"unmasked"`` and others."""
        names = [name for name, shape in self.shapes.items() if name.startswith("fsc_") and len(shape) == 1]
        found = read_rows(self.url, "result", names, 0, sys.maxsize)
        return {name.removeprefix("fsc_"): found[name] for name in names}

    @property
    def frequency(self) -> NDArray[np.float64]:
        """Spatial frequency of each shell of those curves, 1/Å, (n // 2 + 1,)."""
        return np.arange(self.box // 2 + 1) / (self.box * self.pixel_size)

    @property
    def box(self) -> int:
        """Voxels along an edge of the maps."""
        found = next((shape for shape in self.shapes.values() if len(shape) == 3), None)
        if found is None:
            raise MissingInputError(f"{self.url} holds no map; it holds {', '.join(self.shapes) or 'no array'}")
        return found[0]

    @property
    def pixel_size(self) -> float:
        """Å."""
        found = self.attributes.get("pixel_size_A")
        if not isinstance(found, int | float):
            raise MissingInputError(f"{self.url} does not say what its pixel size is: it holds no maps of cloudem's")
        return float(found)

    @property
    def resolution(self) -> float | None:
        """Resolution that the job states, Å; None where it states none."""
        found = self.attributes.get("resolution_A")
        return float(found) if isinstance(found, int | float) else None

    @property
    def warnings(self) -> Sequence[str]:
        """What the job warned of."""
        return [str(text) for text in self.attributes.get("warnings", ())]

    @cached_property
    def iterations(self) -> Sequence[Mapping[str, Any]]:
        """A row for each iteration of a refinement, as its report shows them."""
        return content_of(self.url, whole=False).iterations

    @cached_property
    def particles(self) -> Particles:
        """The table of its particles.

        Raises
        ------
        MissingInputError
            The job leaves no particles.
        """
        self._require_particles()
        return table_from_arrays(Particles, *read_group(self.url, RESULT_TABLE))

    @cached_property
    def particle_store(self) -> ParticleStore:
        """The same with the images, which lie in the store that the job has read."""
        self._require_particles()
        return open_particles(self.url)

    def _require_particles(self) -> None:
        if not has_group(self.url, RESULT_TABLE):
            raise MissingInputError(f"{self.url} holds no particles: {self.job or 'its job'} leaves none")

    def _repr_html_(self) -> str:
        """Return how a notebook shows it."""
        return result_card(self)


def open_result(url: str | os.PathLike[str]) -> Result:
    """Open the finished results of a job, a folder or ``s3://``.

    Raises
    ------
    MissingInputError
        There is nothing under that name.
    StorageError
        There is no finished result.
    FormatError
        It is a particle store, or damaged.
    """
    place = absolute(url)
    if not exists(place):
        raise MissingInputError(f"{place} does not exist; give the --out of a job that has finished")
    if (read_attributes(place, "") or {}).get("kind") == "particles":
        raise FormatError(f"{place} is a particle store, not the results of a job; open it with cloudem.open_particles")
    require_result(place)
    return Result(place)


def result_card(result: Result) -> str:
    """Return HTML that shows a result: tiles as in its report, and three central slices. Little is read."""
    from cloudem.report.notebook import Card, render_card
    from cloudem.report.page import headlines

    try:
        content = content_of(result.url, whole=False)
        strip = _slices(result)
    except CloudemError as error:
        return render_card(Card("This result cannot be shown", result.url, warnings=[str(error)]))
    has_page = REPORT_FILE in contents(result.url)
    notes = [
        f"Arrays: {', '.join(result.shapes)}",
        *([f"All figures: {join(result.url, REPORT_FILE)}"] if has_page else []),
    ]
    return render_card(
        Card(content.title, result.url, headlines(content), content.warnings, [strip] if strip else [], notes=notes)
    )


def _slices(result: Result) -> Strip | None:
    """Return slices of a result's map: of its preview if there is one; None where there is no map."""
    from cloudem.report.notebook import slices_strip

    if len(result.shapes.get("map", ())) != 3:
        return None
    words = "Central slices of the map on one grey scale; density of the molecule is bright."
    for side in reversed(SIDES):
        try:
            preview = read_preview(result.url, side)
        except CloudemError:  # the map itself is there
            continue
        if preview is not None and preview.info.iteration == 0:
            cube = cube_of(preview).astype(np.float32)
            coarse = f" Drawn from {len(cube)} of {result.box} voxels along an edge." if len(cube) < result.box else ""
            return slices_strip(cube, preview.info.pixel_size_A, words + coarse)
    return slices_strip(result["map"], result.pixel_size, words)


def particles_card(store: ParticleStore) -> str:
    """Return HTML that shows a particle store: counts, optics, and a few images low-passed for looking."""
    from cloudem.report.notebook import Card, render_card

    title = f"particles: {store.url.rstrip('/').rpartition('/')[2]}"
    try:
        table = store.columns(("half_set", "defocus_u", "defocus_v"))
        names = list((read_attributes(store.url, store.table_group) or {}).get("columns", {}))
        count = len(store)
    except CloudemError as error:
        return render_card(Card(f"{title} cannot be shown", store.url, warnings=[str(error)]))
    strips, warnings = [], []
    try:
        strips = [_examples(store, count)] if count else []
    except CloudemError as error:
        warnings = [str(error)]
    optics = [
        (
            group.name,
            f"{group.voltage:g} kV",
            f"{group.spherical_aberration / 1e7:g} mm",
            f"{group.amplitude_contrast:g}",
        )
        for group in table.optics
    ]
    notes = [f"Columns: {', '.join(names)}", *([f"Images: {store.image_url}"] if store.is_result else [])]
    head = ("optics group", "voltage", "spherical aberration", "amplitude contrast")
    return render_card(
        Card(title, store.url, _store_tiles(store, table, count), warnings, strips, (head, optics), notes)
    )


def _store_tiles(store: ParticleStore, table: Particles, count: int) -> list[tuple[str, str]]:
    halves = ""
    if "half_set" in table and (table["half_set"] > 0).any():
        halves = ", {:,} + {:,}".format(*(int(np.count_nonzero(table["half_set"] == half)) for half in (1, 2)))
    tiles = [
        (f"{count:,}", f"particles{halves}"),
        (f"{store.box} px", f"box, {store.box * store.pixel_size:.4g} Å"),
        (f"{store.pixel_size:.4g} Å", "pixel size"),
    ]
    if count and {"defocus_u", "defocus_v"} <= table.columns.keys():
        defocus = (table["defocus_u"] + table["defocus_v"]) / 2e4
        tiles.append((f"{defocus.min():.2f} to {defocus.max():.2f} µm", "defocus"))
    bytes_of_one = store.box**2 * np.dtype(store.dtype).itemsize
    tiles.append((size(count * bytes_of_one), f"images, {store.dtype}"))
    return tiles


def _examples(store: ParticleStore, count: int) -> Strip:
    """Return images from all over a store, on as many pixels as are shown."""
    from cloudem.algorithms.coarse import coarse_images, coarse_side
    from cloudem.algorithms.resolution import low_pass_curve
    from cloudem.jobs.dataset import open_dataset
    from cloudem.report.notebook import EXAMPLE_SIDE, examples_strip

    numbers = [int(number) for number in np.unique(np.linspace(0, count - 1, EXAMPLES).astype(np.int64))]
    curve = low_pass_curve(store.box, store.pixel_size, LOOK_A)
    read = store.read_images if store.model is None else open_dataset(store.url).images
    images = coarse_images(read(np.array(numbers)), coarse_side(store.box, EXAMPLE_SIDE), curve)
    words = f"Examples from the whole store on one grey scale, low-passed to {LOOK_A:g} Å for looking only."
    return examples_strip(images, numbers, store.box * store.pixel_size, words)


ParticleStore.drawn_by = particles_card
