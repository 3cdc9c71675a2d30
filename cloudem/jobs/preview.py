"""Previews of a job's map, for looking only: ``<out>/preview/map-64.u8.gz``, ``map-128.u8.gz`` and a JSON beside each.

Of a result there are also ``half1-64``, ``half2-64`` and ``mask-64``, if the map's JSON says so (`PreviewInfo.others`).
A job makes them where its map is, at each iteration as far as that costs less than `SHARE` of the time, and shows the
last ones to its view (`Previews.show`); the thread that writes ``live.json`` writes them. Nothing reads them but pages.
A cube is one byte for each voxel, z slowest, compressed by gzip; what the bytes mean says the JSON (`PreviewInfo`).
"""

from __future__ import annotations

import gzip
import logging
import threading
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cloudem.errors import FormatError
from cloudem.io.storage.location import join, read_start, write_bytes

PREVIEW_FOLDER = "preview"

SIDES = (64, 128)
"""Voxels along an edge of the cubes, at most; of a box that is no larger than the first there is no second."""

SHARE = 0.01
"""Of a job's time that previews of iterations may take; and again, in its end, those of half-maps and mask."""

Other: TypeAlias = Literal["half1", "half2", "mask"]
"""What there are previews of beside the map, at the coarsest size alone."""

LARGEST_CUBE = 8 << 20
"""Bytes of the largest compressed cube that is read."""

PREVIEW_FILES = tuple(
    f"{PREVIEW_FOLDER}/{name}.{ending}"
    for name in (*(f"map-{side}" for side in SIDES), *(f"{other}-{SIDES[0]}" for other in get_args(Other)))
    for ending in ("json", "u8.gz")
)

Float32 = NDArray[np.float32]


class PreviewInfo(BaseModel):
    """What a cube of bytes means.

    Attributes
    ----------
    shape
        Voxels along z, y, x.
    pixel_size_A
        Å.
    minimum, maximum
        Densities of the bytes 0 and 255; those between are spaced evenly.
    mean, sigma
        Of all densities.
    iteration
        Of which iteration it is; 0: of the result.
    crc32
        Of the compressed bytes: tells whether cube and description belong together.
    others
        Of the map of a result, of what else there are previews: those that lie there and are not named are of an
        earlier result.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    format: Literal[1] = 1
    shape: tuple[int, int, int] = Field()
    pixel_size_A: float = Field(gt=0)
    minimum: float
    maximum: float
    mean: float
    sigma: float
    iteration: int = Field(ge=0)
    crc32: int
    others: tuple[Other, ...] = ()

    def document(self) -> bytes:
        """Return it as JSON, which versions without ``others`` read as long as there are none."""
        return self.model_dump_json(exclude=None if self.others else {"others"}).encode()


@dataclass(frozen=True)
class Preview:
    """A cube, compressed, and what it means; ``name`` is that of its files, such as ``map-64``."""

    info: PreviewInfo
    data: bytes
    name: str = f"map-{SIDES[0]}"


class Previews:
    """The last previews that a job has shown, and whether it is time for others."""

    def __init__(self) -> None:
        self._shown: Sequence[Preview] = ()
        self._cost, self._ended, self._began = 0.0, 0.0, time.monotonic()
        self._lock = threading.Lock()

    def due(self) -> bool:
        """Return whether the next preview of an iteration would take less than `SHARE` of the time since the last."""
        return time.monotonic() - self._ended >= self._cost / SHARE

    def make(self, previews: Callable[[], Sequence[Preview]], log: logging.Logger) -> None:
        """Make previews, take the time that takes, and show them; a job goes on without those that cannot be made."""
        began = time.monotonic()
        try:
            self.show(previews())
        except Exception:  # what a job needs itself fails there, too
            log.debug("no preview was made", exc_info=True)
        self._ended = time.monotonic()
        self._cost = self._ended - began

    def make_result(
        self, density: Float32, others: Mapping[Other, Float32], pixel_size: float, log: logging.Logger
    ) -> None:
        """Make previews of a result and show them: of its map, and of others if these take less than `SHARE`."""

        def made() -> list[Preview]:
            of_map = previews_of_map(density, pixel_size)
            found = self._previews_beside(others, pixel_size)
            names = tuple(others) if found else ()
            told = [replace(one, info=one.info.model_copy(update={"others": names})) for one in of_map]
            return [*found, *told]  # the map's come last: they say that the others are there

        self.make(made, log)

    def _previews_beside(self, others: Mapping[Other, Float32], pixel_size: float) -> list[Preview]:
        """Return previews of all others; none if they would take too long, by what the first one took."""
        found: list[Preview] = []
        began = time.monotonic()
        for name, density in others.items():
            found.append(coarsest_preview(density, pixel_size, name))
            if len(others) * (time.monotonic() - began) / len(found) > SHARE * (began - self._began):
                return []
        return found

    def show(self, previews: Sequence[Preview]) -> None:
        """Show these from now on."""
        with self._lock:
            self._shown = previews

    def take(self) -> Sequence[Preview]:
        """Return what is to be written, once; `give_back` what could not be."""
        with self._lock:
            shown, self._shown = self._shown, ()
        return shown

    def give_back(self, previews: Sequence[Preview]) -> None:
        """Keep what could not be written, unless there are others by now."""
        with self._lock:
            self._shown = self._shown or previews


def preview_sides(box: int) -> tuple[int, ...]:
    """Return the voxels along an edge of the previews of a map: 64 and 128, or fewer where it has no more."""
    from cloudem.algorithms.coarse import coarse_side

    return tuple(coarse_side(box, side) for side in SIDES if side == SIDES[0] or box > SIDES[0])


def finest_spectrum(density: Float32) -> NDArray[np.complex64]:
    """Return the low frequencies that the finest preview of a map holds."""
    from cloudem.algorithms.coarse import coarse_spectrum

    return coarse_spectrum(density, preview_sides(len(density))[-1])


def previews_of_halves(
    first: NDArray[np.complex64],
    second: NDArray[np.complex64],
    fsc: NDArray[np.float64],
    box: int,
    pixel_size: float,
    iteration: int,
) -> list[Preview]:
    """Return previews of two half-maps' mean, of their `finest_spectrum`; shells are weighted by their FSC."""
    from cloudem.algorithms.resolution import fsc_weight

    return _previews((first + second) / np.complex64(2), fsc_weight(fsc), box, pixel_size, iteration)


def previews_of_map(density: Float32, pixel_size: float, iteration: int = 0) -> list[Preview]:
    """Return previews of a map, (n, n, n) at so many Å; those of a result are of no iteration, 0."""
    return _previews(finest_spectrum(density), None, len(density), pixel_size, iteration)


def coarsest_preview(density: Float32, pixel_size: float, name: Other) -> Preview:
    """Return the one preview of what lies beside a map, (n, n, n) at so many Å."""
    from cloudem.algorithms.coarse import coarse_map, coarse_spectrum

    side = preview_sides(len(density))[0]
    coarse = density if side == len(density) else coarse_map(coarse_spectrum(density, side))
    return _preview(coarse, pixel_size * len(density) / side, 0, f"{name}-{SIDES[0]}")


def _previews(
    spectrum: NDArray[np.complex64], curve: Any, box: int, pixel_size: float, iteration: int
) -> list[Preview]:
    from cloudem.algorithms.coarse import coarse_map, coarse_spectrum

    fine = coarse_map(spectrum, curve)
    found = []
    for size, side in zip(SIDES, preview_sides(box), strict=False):
        density = fine if side == len(fine) else coarse_map(coarse_spectrum(fine, side))
        found.append(_preview(density, pixel_size * box / side, iteration, f"map-{size}"))
    return found


def _preview(density: Float32, pixel_size: float, iteration: int, name: str) -> Preview:
    from cloudem.algorithms.coarse import in_levels

    levels = in_levels(density)
    data = gzip.compress(levels.values.tobytes(), 4, mtime=0)
    side = len(density)
    info = PreviewInfo(
        shape=(side, side, side),
        pixel_size_A=pixel_size,
        iteration=iteration,
        crc32=zlib.crc32(data),
        **{field: value for field, value in levels._asdict().items() if field != "values"},
    )
    return Preview(info, data, name)


def write_previews(url: str, previews: Sequence[Preview]) -> None:
    """Write previews beside results, the cube before what it means."""
    for preview in previews:
        place = join(url, PREVIEW_FOLDER, preview.name)
        write_bytes(f"{place}.u8.gz", preview.data)
        write_bytes(f"{place}.json", preview.info.document())


def read_preview_info(url: str, size: int = SIDES[0], of: str = "map") -> PreviewInfo | None:
    """Return what the preview of a job's map, or of another array, means; None where there is none.

    Raises
    ------
    FormatError
        It is damaged.
    """
    place = f"{join(url, PREVIEW_FOLDER)}/{of}-{size}.json"
    said = read_start(place, 1 << 16)
    if said is None:
        return None
    try:
        return PreviewInfo.model_validate_json(said[0])
    except ValidationError as error:
        raise FormatError(f"{place} is damaged; the job's next iteration writes it again") from error


def read_preview(url: str, size: int = SIDES[0], of: str = "map") -> Preview | None:
    """Return the preview of a job's map, or of another array, that is called 64 or 128; None where there is none.

    Raises
    ------
    FormatError
        It is damaged, or was being replaced while it was read.
    """
    info = read_preview_info(url, size, of)
    place = join(url, PREVIEW_FOLDER, f"{of}-{size}")
    cube = None if info is None else read_start(f"{place}.u8.gz", LARGEST_CUBE)
    if info is None or cube is None:
        return None
    if zlib.crc32(cube[0]) != info.crc32:
        raise FormatError(f"{place}.u8.gz is not what {place}.json describes; read both again in a moment")
    return Preview(info, cube[0], f"{of}-{size}")


def cube_of(preview: Preview) -> NDArray[np.uint8]:
    """Return the voxels of a preview, (m, m, m), z first.

    Raises
    ------
    FormatError
        They are not as many as it says.
    """
    count = int(np.prod(preview.info.shape, dtype=np.int64))
    if not 0 < count <= SIDES[-1] ** 3:
        raise FormatError(f"a preview of {count:,} voxels is none of cloudem's; run the job again")
    try:
        raw = zlib.decompressobj(wbits=31).decompress(preview.data, count + 1)
    except zlib.error as error:
        raise FormatError("a preview is damaged; the job's next iteration writes it again") from error
    if len(raw) != count:
        raise FormatError(f"a preview has {len(raw):,} voxels, not the {count:,} that it says; run the job again")
    return np.frombuffer(raw, np.uint8).reshape(preview.info.shape)
