"""Cards of a notebook: small whatever they are given, sound HTML, nothing that runs, loads or leaks."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
from PIL import Image

from cloudem.report.notebook import EXAMPLE_SIDE, Card, Strip, examples_strip, render_card, slices_strip
from tests.report.test_page import HOSTILE, Page

LARGEST = 100_000


def worst_strips() -> list[Strip]:
    """Noise, which no compression makes smaller."""
    noise = np.random.default_rng(0).uniform(size=(64, 64, 64)).astype(np.float32)
    return [slices_strip(noise, 1.0, "noise")]


def test_a_card_is_small_with_noise_and_endless_texts() -> None:
    many = ["x" * 100_000] * 500
    rows = [["long " * 10_000] * 4] * 900
    card = Card("t" * 9999, "p" * 9999, [("1", "one")] * 8, many, worst_strips(), (["a", "b"], rows), ["n" * 9999] * 2)
    page = render_card(card)
    assert len(page.encode()) < LARGEST
    assert "496 more warnings" in Page(page).text
    assert "896 rows more" in Page(page).text


def test_examples_of_pure_noise_are_small() -> None:
    images = np.random.default_rng(0).uniform(size=(6, EXAMPLE_SIDE, EXAMPLE_SIDE)).astype(np.float32)
    page = render_card(Card("t", "p", strips=[examples_strip(images, range(6), 300.0, "noise")]))
    assert 6 * EXAMPLE_SIDE**2 < len(page.encode()) < LARGEST  # the noise is in it, a byte for each pixel at least


def test_hostile_texts_stay_texts_and_no_style_leaks() -> None:
    facts = ([HOSTILE], [[HOSTILE]])
    strips = [Strip(worst_strips()[0].pictures, HOSTILE, (10.0, HOSTILE))]
    text = render_card(Card(HOSTILE, HOSTILE, [(HOSTILE, HOSTILE)], [HOSTILE], strips, facts, [HOSTILE]))
    page = Page(text)
    assert set(page.tags) <= {"div", "img", "table", "tr", "th", "td"}
    assert {name for name, _ in page.attributes} <= {"style", "src", "alt"}
    sources = [value for name, value in page.attributes if name == "src"]
    assert len(sources) == 3
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert page.text.count("<script>alert(1)</script>") == 10  # as words


def test_slices_show_the_map_the_right_way_up() -> None:
    volume = np.zeros((32, 32, 32), np.float32)
    volume[16, 20:28, 2:6] = 1  # in the central slice across z: up, and left
    data = slices_strip(volume, 2.0, "").pictures[0].data
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    rows, columns = (np.average(np.arange(128), weights=picture.sum(axis=axis)) for axis in (1, 0))
    assert abs(rows / 4 - (32 - 24)) < 0.5
    assert abs(columns / 4 - 4) < 0.5


def test_the_bar_is_as_long_as_it_says() -> None:
    bar = slices_strip(np.zeros((16, 16, 16), np.float32), 5.0, "").bar
    assert bar is not None
    length = float(re.fullmatch(r"([\d.]+) Å", bar[1])[1])  # type: ignore[index]
    assert bar[0] / 100 * 16 * 5.0 == length
