"""Cards: how a notebook shows a result or a particle store. One piece of HTML with its pictures in it and no script.

It stands in somebody else's page: all style is in the tags, so that nothing leaks out, and texts are cut, so that a
card stays below 100 kB whatever a result says of itself.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cloudem.errors import one_line
from cloudem.report.blocks import templates
from cloudem.report.sections.map_panels import VIEWS, grey_limits, round_length

Array: TypeAlias = NDArray[np.floating[Any]]

SLICE_SIDE, EXAMPLE_SIDE = 128, 96
"""Pixels along a slice of a map, and along an example of the images: noise, the worst case, is a byte for each."""

MOST_LINES = 4
"""Warnings and rows of a table that a card has; the report has all."""

LONGEST_TEXT = 400


@dataclass(frozen=True)
class Picture:
    """A grey picture: PNG, ready for an address, what it shows in words, and what stands below it."""

    data: str
    label: str
    caption: str


@dataclass(frozen=True)
class Strip:
    """Pictures side by side.

    Attributes
    ----------
    pictures
        All of one size.
    words
        What they have in common.
    bar
        Length of a scale bar as per cent of a picture's width, and what it says.
    """

    pictures: Sequence[Picture]
    words: str
    bar: tuple[float, str] | None


@dataclass(frozen=True)
class Card:
    """What a card says; every text is escaped and cut.

    Attributes
    ----------
    title, place
        What it is, and where.
    tiles
        Headline figures, and what each means.
    warnings
        Sentences.
    strips
        Pictures.
    facts
        A table: headings, and rows of texts.
    notes
        Quiet sentences.
    """

    title: str
    place: str
    tiles: Sequence[tuple[str, str]] = ()
    warnings: Sequence[str] = ()
    strips: Sequence[Strip] = ()
    facts: tuple[Sequence[str], Sequence[Sequence[str]]] = ((), ())
    notes: Sequence[str] = ()


def render_card(card: Card) -> str:
    """Render a card."""
    head, rows = card.facts
    return (
        templates()
        .get_template("card.html")
        .render(
            title=_cut(card.title),
            place=_cut(card.place),
            tiles=[(_cut(value), _cut(caption)) for value, caption in card.tiles],
            warnings=_first(card.warnings, "warnings in the report"),
            strips=card.strips,
            head=[_cut(text) for text in head],
            rows=[[_cut(text) for text in row] for row in rows[:MOST_LINES]],
            notes=[
                *([f"{len(rows) - MOST_LINES:,} rows more"] if len(rows) > MOST_LINES else []),
                *(_cut(text) for text in card.notes),
            ],
        )
    )


def _cut(text: str) -> str:
    return one_line(text, LONGEST_TEXT)


def _first(texts: Sequence[str], others: str) -> list[str]:
    rest = len(texts) - MOST_LINES
    return [*(_cut(text) for text in texts[:MOST_LINES]), *([f"{rest:,} more {others}"] if rest > 0 else [])]


def slices_strip(volume: Array, pixel_size: float, words: str) -> Strip:
    """Return the three central slices of a map.

    Parameters
    ----------
    volume
        (n, n, n), z first.
    pixel_size
        Å.
    words
        What it is.
    """
    middle = len(volume) // 2
    images = np.stack([volume.take(middle, axis=axis) for axis, *_ in VIEWS])
    found = [
        Picture(data, f"Central slice across {along}", f"across {along} ({right} right, {up} up)")
        for data, (_, along, right, up) in zip(_pngs(images, SLICE_SIDE), VIEWS, strict=True)
    ]
    return Strip(found, words, _bar(len(volume) * pixel_size))


def examples_strip(images: Array, numbers: Sequence[int], width: float, words: str) -> Strip:
    """Return examples of a store's images.

    Parameters
    ----------
    images
        (b, m, m).
    numbers
        Of the images in their store, b.
    width
        Å along an edge.
    words
        How they were filtered.
    """
    found = [
        Picture(data, f"Image {number}", f"image {number:,}")
        for data, number in zip(_pngs(images, EXAMPLE_SIDE), numbers, strict=True)
    ]
    return Strip(found, words, _bar(width))


def _bar(width: float) -> tuple[float, str]:
    length = round_length(0.4 * width)
    return 100 * length / width, f"{length:g} Å"


def _pngs(images: Array, side: int) -> list[str]:
    """Return images on one grey scale, first row at the bottom, as PNG in base64; what is not finite is drawn as 0."""
    finite = np.nan_to_num(np.asarray(images, np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = grey_limits(finite, 99.9)
    found = []
    for image in finite:
        scaled = ((np.flipud(image) - low) * (255 / (high - low))).astype(np.float32)
        picture = Image.fromarray(scaled)
        if picture.size != (side, side):
            picture = picture.resize((side, side), Image.Resampling.BICUBIC)  # which averages where it makes smaller
        grey = np.clip(np.rint(np.asarray(picture)), 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(grey).save(buffer, "PNG", optimize=True)
        found.append(base64.b64encode(buffer.getvalue()).decode())
    return found
