"""From a particle store or the result of a job to files that RELION reads."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudem.conventions import RESOLUTION_COLOURS
from cloudem.errors import FormatError, InconsistentDataError, MissingInputError, ParameterError, StorageError
from cloudem.io.formats.mrc import NOWHERE
from cloudem.io.formats.mrc_writer import write_stack, write_volume
from cloudem.io.formats.relion import particles_to_blocks
from cloudem.io.formats.star import write_star
from cloudem.io.formats.unapplied import lost_in_star
from cloudem.io.image_store import GROWS
from cloudem.io.micrographs.exporting import export_micrographs
from cloudem.io.micrographs.tables import MICROGRAPH_TABLE
from cloudem.io.particle_store import RESULT_TABLE, ParticleStore, open_particles
from cloudem.io.storage import fsspec_urls
from cloudem.io.storage.groups import has_group, read_attributes, read_group
from cloudem.io.storage.location import (
    UNFINISHED,
    contents,
    exists,
    folder_of,
    is_fsspec,
    is_remote,
    join,
    read_bytes,
    write_bytes,
)
from cloudem.io.storage.outputs import new_prefix
from cloudem.io.storage.tables import table_from_arrays
from cloudem.model.particles import TEXT, Particles

Say = Callable[[str], None] | None
Images = Callable[[NDArray[np.int64]], NDArray[np.float32]]

STACK = "particles.mrcs"
AVERAGES, CLASS_MAP = "class_averages.mrcs", "class{:03d}.mrc"
RECORD = "export.json"
"""How the files were made."""

COLOURED, SCRIPT = "local_resolution", "local_resolution.cxc"
"""Array of a result by which its map is coloured, and the script for ChimeraX that does so."""

MAPS = ("half1", "half2", "map", "mask", COLOURED)
"""Arrays of a result that become MRC files."""

_BATCH_BYTES = 32 * 2**20
_CURVES = {
    "fsc_corrected": "rlnFourierShellCorrelationCorrected",
    "fsc_unmasked": "rlnFourierShellCorrelationUnmaskedMaps",
    "fsc_masked": "rlnFourierShellCorrelationMaskedMaps",
    "fsc_phase_randomised": "rlnCorrectedFourierShellCorrelationPhaseRandomizedMaskedMaps",
}


def export(
    url: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    stack: bool = False,
    particles: str | os.PathLike[str] | None = None,
    on_progress: Callable[[int], None] | None = None,
    guard: Callable[[], None] | None = None,
    record: Mapping[str, Any] | None = None,
    say: Say = None,
    computed: Callable[[str], Images] | None = None,
) -> list[str]:
    """Write what is under `url` as MRC, MRCS and STAR files into a new folder, or under a new prefix on S3.

    Parameters
    ----------
    url
        A particle store, or the results of a job.
    folder
        The new folder or prefix; see `cloudem.io.storage.outputs.new_prefix` for when it counts.
    stack
        Of a result, write the images too; ``particles.star`` then refers to them instead of to the original stacks.
    particles
        The particle store that a result was made from, where it is no longer where the job found it.
    on_progress
        Called with the number of images written since the last call.
    guard
        Called before anything is deleted; raises if somebody else may be writing there.
    record
        How the files were made, for `RECORD`; ready for JSON.
    say
        Called with a sentence about each thing that the files have no place for.
    computed
        Returns what reads the images of the particles under a URL by their numbers, where these are computed: results
        of ``cloudem subtract``, and what was made of them, are always written with their images.

    Returns
    -------
    names
        The files written.

    Raises
    ------
    MissingInputError, FormatError
        There is nothing to export.
    OutputExistsError, StorageError
        The folder is there already; disk full.
    """
    store = check_source(url, stack=stack, particles=particles)
    if store is None:
        with new_prefix(folder, guard) as place:
            _write_record(place, record)
            images = computed(os.fspath(url)) if computed is not None and is_subtracted(url) else None
            return _export_result(os.fspath(url), place, stack, particles, on_progress, say, images)
    with new_prefix(folder, guard) as place:
        _write_record(place, record)
        return _export_particles(store, store.particles, place, on_progress, say)


def check_source(
    url: str | os.PathLike[str], *, stack: bool = False, particles: str | os.PathLike[str] | None = None
) -> ParticleStore | None:
    """Check that `url` can be exported, see `export`; return the particle store that it is, or None for a result."""
    if has_group(url, "result"):
        if stack and has_group(url, "particles"):
            _store_of(os.fspath(url), particles)
        elif stack and not has_group(url, MICROGRAPH_TABLE):
            raise ParameterError(f"{os.fspath(url)} holds no particles; leave out --stack")
        return None
    if is_fsspec(url):
        raise fsspec_urls.refuse(os.fspath(url))
    if not exists(url):
        raise MissingInputError(f"{os.fspath(url)} does not exist; give a particle store or the results of a job")
    is_file = not is_remote(url) and folder_of(url).is_file()
    if not is_file and (read_attributes(url, "") or {}).get("kind") != "particles":
        raise FormatError(f"{os.fspath(url)} holds no finished result and no particle store; run the job to its end")
    return open_particles(url)


def refined_table(url: str, result: Mapping[str, Any]) -> tuple[dict[str, NDArray[Any]], dict[str, Any]] | None:
    """Return the group of the refined particles of a result, or None where its job has none.

    Parameters
    ----------
    url
        Of the results.
    result
        Attributes of the group ``result``.

    Raises
    ------
    StorageError
        They are lost, or part of them is.
    """
    if has_group(url, "particles"):
        return read_group(url, "particles")
    if result.get("particle_count"):
        raise StorageError(f"{url}/particles is missing: the result has lost its particles; copy it again")
    return None


def read_record(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Return how exported files were made; None where there are none, or some are missing."""
    if not {RECORD} <= (found := set(contents(folder))) or UNFINISHED in found:
        return None
    try:
        record = json.loads(read_bytes(join(folder, RECORD)) or b"")
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _write_record(folder: str, record: Mapping[str, Any] | None) -> None:
    if record is not None:
        write_bytes(join(folder, RECORD), json.dumps(record, indent=2).encode())


def is_subtracted(url: str | os.PathLike[str]) -> bool:
    """Return whether something is subtracted of the images of a result when they are read."""
    return (read_attributes(url, RESULT_TABLE) or {}).get("subtracted") is not None


def source_values(
    store: ParticleStore, particles: Particles, indices: NDArray[np.int64], images_of: Images | None = None
) -> NDArray[np.float32]:
    """Return images in the grey values of the source, ``(b, n, n)``, but for the rounding of the store's type.

    ``images_of`` reads them where they are computed.
    """
    if images_of is not None:
        images = images_of(indices)
    else:
        images = store.read_rows(particles["store_row"][indices] if "store_row" in particles else indices)
    std, mean = (particles.get(name, default)[indices] for name, default in (("image_std", 1.0), ("image_mean", 0.0)))
    return images * std[:, None, None].astype(np.float32) + mean[:, None, None].astype(np.float32)


def fsc_block(arrays: Mapping[str, NDArray[Any]], box: int, pixel_size: float) -> dict[str, NDArray[Any]]:
    """Return the loop of an ``fsc.star``: one row for each shell, RELION's labels where it has them."""
    curves = {name: values for name, values in arrays.items() if name.startswith("fsc_") and np.ndim(values) == 1}
    shells = np.arange(max((len(values) for values in curves.values()), default=0))
    frequency = shells / (box * pixel_size)
    block = {
        "rlnSpectralIndex": _text(str(shell) for shell in shells),
        "rlnResolution": _text(f"{value:.6f}" for value in frequency),
        "rlnAngstromResolution": _text(f"{1 / value:.6f}" if value else "999.000000" for value in frequency),
    }
    for name, values in curves.items():
        label = _CURVES.get(name, "cloudem" + "".join(part.capitalize() for part in name.split("_")))
        known = dict(enumerate(values.tolist()))
        block[label] = _text(f"{known.get(int(shell), 0.0):.6f}" for shell in shells)
    return block


def coloured_surface(density: NDArray[np.float32], mask: NDArray[np.float32], values: NDArray[np.float32]) -> str:
    """Return commands for ChimeraX that open a map and colour its surface by the local resolution beside it.

    Parameters
    ----------
    density, mask, values
        The map, its mask and the resolution in Å, (n, n, n). The surface encloses the densest third of what is inside
        the mask.
    """
    inside = mask > 0.5
    level = float(np.percentile(density[inside], 67)) if inside.any() else float(density.mean())
    low, high = (float(v) for v in np.percentile(values[inside] if inside.any() else values, [2, 95]))
    at = np.linspace(low, max(high, low + 0.1), len(RESOLUTION_COLOURS))
    palette = ":".join(f"{value:.3g},{colour}" for value, colour in zip(at, RESOLUTION_COLOURS, strict=True))
    key = " ".join(f"{colour}:{value:.3g}" for value, colour in zip(at, RESOLUTION_COLOURS, strict=True))
    return (
        "# ChimeraX: open this file where map.mrc and local_resolution.mrc lie\n"
        "open map.mrc\nopen local_resolution.mrc\nhide #2 models\n"
        f"volume #1 level {level:.6g} style surface step 1\n"
        f"color sample #1 map #2 palette {palette}\n"
        f"key {key} showTool false\n"
        "2dlabels text 'Local resolution (Å)' xpos 0.7 ypos 0.12 size 18\n"
        "lighting soft\nset bgColor white\nview\n"
    )


def _export_particles(
    store: ParticleStore,
    particles: Particles,
    folder: str,
    on_progress: Callable[[int], None] | None,
    say: Say,
    images_of: Images | None = None,
) -> list[str]:
    """Write stack and table; the name of the original image becomes rlnImageOriginalName."""
    batches = _source_batches(store, particles, on_progress, images_of)
    write_stack(join(folder, STACK), batches, len(particles), store.pixel_size)
    columns = dict(particles.columns)
    if "image_name" in columns:
        columns.setdefault("rln:rlnImageOriginalName", columns["image_name"])
    columns["image_name"] = _text(f"{number + 1:06d}@{STACK}" for number in range(len(particles)))
    _write_table(Particles(particles.optics, columns), folder, store.box, store.pixel_size, say, of_source=False)
    return [STACK, "particles.star"]


def _export_result(
    url: str,
    folder: str,
    stack: bool,
    particles_url: str | os.PathLike[str] | None,
    on_progress: Callable[[int], None] | None,
    say: Say,
    images_of: Images | None,
) -> list[str]:
    if has_group(url, MICROGRAPH_TABLE):
        return export_micrographs(url, folder, images=stack, on_progress=on_progress, say=say)
    arrays, attributes = read_group(url, "result")
    pixel_size = attributes.get("pixel_size_A")
    maps = {name: arrays[name] for name in MAPS if name in arrays}
    table = refined_table(url, attributes)
    if not (maps or table) or not isinstance(pixel_size, int | float) or not 0 < pixel_size < np.inf:
        raise FormatError(
            f"{url} holds a result without maps and particles, or without a pixel size; run the job again"
        )
    box = len(next(iter(maps.values()))) if maps else int(attributes.get("box", 0))
    x, y, z = attributes.get("origin_A", NOWHERE)
    origin = float(x), float(y), float(z)
    written = []
    for name, volume in maps.items():
        write_volume(join(folder, f"{name}.mrc"), volume, pixel_size, origin)
        written.append(f"{name}.mrc")
    if {"map", "mask", COLOURED} <= maps.keys():
        write_bytes(join(folder, SCRIPT), coloured_surface(maps["map"], maps["mask"], maps[COLOURED]).encode())
        written.append(SCRIPT)
    if any(name.startswith("fsc_") for name in arrays):
        write_star(join(folder, "fsc.star"), {"fsc": fsc_block(arrays, box, pixel_size)})
        written.append("fsc.star")
    if "class_averages" in arrays:
        averages = arrays["class_averages"]
        write_stack(join(folder, AVERAGES), [averages], len(averages), pixel_size)
        written.append(AVERAGES)
    for number, volume in enumerate(arrays.get("class_maps", ()), 1):
        write_volume(join(folder, CLASS_MAP.format(number)), volume, pixel_size, origin)
        written.append(CLASS_MAP.format(number))
    if table is not None:
        refined = table_from_arrays(Particles, *table)
        if is_subtracted(url) and images_of is None:
            raise ParameterError(f"part of the images of {url} is subtracted when they are read; export it by its job")
        if stack or images_of is not None or "image_name" not in refined:
            store = _store_of(url, particles_url)
            if len(store) != len(refined) and "store_row" not in refined:
                raise InconsistentDataError(
                    f"{store.url} holds {len(store)} particles, {url} {len(refined)}; give the store that the job read"
                )
            grey = _with_grey_values(refined, store)
            written += _export_particles(store, grey, folder, on_progress, say, images_of)
        else:
            _write_table(refined, folder, box, pixel_size, say, of_source=True)
            written.append("particles.star")
    return written


def _store_of(url: str, particles_url: str | os.PathLike[str] | None) -> ParticleStore:
    """Return a store whose images are those of a result, and which knows their grey values if the result does not."""
    try:
        store = open_particles(particles_url or url)
        return store if GROWS in store.attributes else open_particles(store.image_url)
    except MissingInputError as error:
        raise MissingInputError(f"{error}; if it was moved, give it with --particles") from error


def _with_grey_values(refined: Particles, store: ParticleStore) -> Particles:
    """Take the original grey values from the store; those of a result may have been dropped."""
    table = store.particles
    names = [name for name in ("image_mean", "image_std") if name in table]
    if "store_row" in refined and names:
        table = table.take(store.numbers_of(refined["store_row"]))
    return refined.with_columns(**{name: table[name] for name in names})


def _write_table(particles: Particles, folder: str, box: int, pixel_size: float, say: Say, *, of_source: bool) -> None:
    if say is not None:
        for sentence in lost_in_star(particles):
            say(sentence)
    blocks = particles_to_blocks(particles, box=box, pixel_size=pixel_size, of_source=of_source)
    write_star(join(folder, "particles.star"), blocks)


def _source_batches(
    store: ParticleStore, particles: Particles, on_progress: Callable[[int], None] | None, images_of: Images | None
) -> Iterator[NDArray[np.float32]]:
    step = max(1, _BATCH_BYTES // (4 * store.box * store.box))
    for start in range(0, len(particles), step):
        indices = np.arange(start, min(start + step, len(particles)), dtype=np.int64)
        yield source_values(store, particles, indices, images_of)
        if on_progress is not None:
            on_progress(len(indices))


def _text(values: Iterator[str]) -> NDArray[Any]:
    return np.array(list(values), dtype=TEXT)
