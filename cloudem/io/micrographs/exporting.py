"""Micrographs of a result as files for RELION: their table, and their images where RELION cannot read them."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from cloudem.errors import ParameterError
from cloudem.io.formats.mrc_writer import write_stack
from cloudem.io.formats.relion import micrographs_to_blocks
from cloudem.io.formats.star import write_star
from cloudem.io.micrographs.images import open_micrograph_image
from cloudem.io.micrographs.tables import read_micrograph_table
from cloudem.io.storage.location import join
from cloudem.model.micrographs import Micrographs
from cloudem.model.table import TEXT

CTF_STAR, PLAIN_STAR, IMAGES = "micrographs_ctf.star", "micrographs.star", "micrographs"
"""The table with CTFs, the table without, and the folder of images."""


def export_micrographs(
    url: str,
    folder: str,
    *,
    images: bool,
    on_progress: Callable[[int], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> list[str]:
    """Write the micrographs of a result that are of use as a STAR file.

    Parameters
    ----------
    url
        Of the results.
    folder
        Where the files go.
    images
        Also write the images, as MRC files; the table then refers to these.
    on_progress
        Called with the number of images written since the last call.
    say
        Called with a sentence about each thing that the files have no place for.

    Returns
    -------
    names
        The files written.

    Raises
    ------
    ParameterError
        None is of use, or they have several pixel sizes.
    CloudemError
        The table or an image is lost or damaged.
    """
    table = read_micrograph_table(url)
    if "problem" in table:
        good = table["problem"] == ""
        if not good.all() and say is not None:
            say(f"{int((~good).sum()):,} of {len(table):,} micrographs are of no use and left out")
        table = table.take(good)
    if not len(table):
        raise ParameterError(f"{url} holds no micrographs that are of use; nothing is exported")
    sizes = table["pixel_size"]
    if np.ptp(sizes) > 1e-4 * sizes[0]:
        raise ParameterError(f"{url} mixes pixel sizes from {sizes.min():g} to {sizes.max():g} Å; export them apart")
    written, names = _names(table, folder, images, on_progress)
    if not images and say is not None and not all(re.search(r"\.(mrcs?|tiff?)$", name, re.I) for name in names):
        say("images are in a form that RELION cannot read; give --stack to export them too")
    columns = {name: values for name, values in table.columns.items() if name != "micrograph"}
    unknown = [name for name, values in columns.items() if values.dtype.kind == "f" and not np.isfinite(values).all()]
    plain = Micrographs(table.optics, {"micrograph": np.array(names, TEXT), **columns}).without_columns(unknown)
    star = CTF_STAR if "defocus_u" in plain else PLAIN_STAR
    write_star(join(folder, star), micrographs_to_blocks(plain, pixel_size=float(sizes[0])))
    return [*written, star]


def _names(
    table: Micrographs, folder: str, images: bool, on_progress: Callable[[int], None] | None
) -> tuple[list[str], list[str]]:
    """Return the files written, and the name of each micrograph's image as the table is to have it."""
    places = table["image"].tolist()
    if not images:  # a table of RELION goes back with the names that its project knows
        known = table["micrograph"].tolist()
        return [], [name if place.endswith(f"/{name}") else place for name, place in zip(known, places, strict=True)]
    safe = [re.sub(r"[^A-Za-z0-9._-]+", "_", name) for name in table["micrograph"].tolist()]
    names = [f"{IMAGES}/{each if safe.count(each) == 1 else f'{at:06d}_{each}'}.mrc" for at, each in enumerate(safe)]
    for place, name in zip(places, names, strict=True):
        opened = open_micrograph_image(place)
        write_stack(join(folder, name), [opened.read()[None]], 1, float(table["pixel_size"][0]))
        if on_progress is not None:
            on_progress(1)
    return names, names
