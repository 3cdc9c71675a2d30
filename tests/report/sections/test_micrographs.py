"""Sections about micrographs: axes that outliers do not spoil, the order of a session, names that stay readable."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from cloudem.model.table import TEXT
from cloudem.report.content import MicrographPicture, ReportContent
from cloudem.report.grey_pictures import grey_jpeg, spread
from cloudem.report.micrograph_columns import listed_columns, micrograph_values, order_taken
from cloudem.report.sections.micrographs import (
    limits_of_axis,
    micrograph_gallery,
    session_over_time,
    shortened_name,
)

NAMES = np.array(["b", "a", "c"], TEXT)


def test_a_few_values_far_away_do_not_spoil_an_axis() -> None:
    known = np.append(np.linspace(3, 5, 99), 1e6)
    low, high = limits_of_axis(known)
    assert low < 3
    assert 5 < high < 20
    assert limits_of_axis(known[-3:])[1] > 1e6
    assert limits_of_axis(np.full(30, 7.0)) == pytest.approx((6.94, 7.06), abs=5)
    assert limits_of_axis(np.arange(100.0, 200), counts=True)[0] == 0


def test_micrographs_are_ordered_by_the_clock_where_it_is_known_of_all() -> None:
    clock = np.array(["2026-01-02 10:00", "2026-01-02 09:00", "2026-01-01 23:00"], TEXT)
    assert order_taken({"micrograph": NAMES, "acquired": clock}).tolist() == [2, 1, 0]
    clock[1] = ""
    assert order_taken({"micrograph": NAMES, "acquired": clock}).tolist() == [0, 1, 2]
    assert order_taken({"micrograph": NAMES}).tolist() == [0, 1, 2]


def test_numbers_are_shown_where_they_are_known_and_differ() -> None:
    columns = {
        "micrograph": NAMES, "defocus_u": np.array([2e4, 1e4, np.nan]), "defocus_v": np.array([1e4, 1e4, np.nan]),
        "phase_shift": np.zeros(3), "bits": np.full(3, np.nan),
    }  # fmt: skip
    found = {column.name: values for column, values in listed_columns(columns)}
    assert list(found) == ["defocus", "astigmatism"]
    np.testing.assert_array_equal(found["defocus"], [1.5e4, 1e4, np.nan])
    assert micrograph_values(columns, "bits") is None


def test_long_names_keep_their_end() -> None:
    assert shortened_name("short") == "short"
    name = shortened_name("FoilHole_123456_Data_" + 40 * "x" + "_00017")
    assert len(name) == 46
    assert name.endswith("_00017")


def test_pictures_are_small_and_keep_their_top_row_at_the_top() -> None:
    ramp = spread(np.linspace(-1, 1, 200)[:, None] * np.ones(300))
    assert (ramp[0, 0], ramp[-1, 0]) < (60, 255)
    picture = Image.open(io.BytesIO(grey_jpeg(ramp, 150)))
    assert picture.size == (150, 100)
    assert np.asarray(picture)[0].mean() < np.asarray(picture)[-1].mean()
    assert (spread(np.ones((4, 4))) == 128).all()


def test_sections_show_numbers_pictures_and_why_micrographs_are_put_aside() -> None:
    columns = {"micrograph": NAMES, "motion_total": np.array([10.0, 90, 20])}
    pictures = [
        MicrographPicture("a", np.zeros((40, 60), np.uint8), [(20, 20, 5)]),
        MicrographPicture("gone", np.zeros((4, 4), np.uint8)),
    ]
    content = ReportContent("t", micrographs=columns, aside={"a": "moves <b>90</b> Å"}, pictures=pictures)
    drawn = session_over_time(content)
    assert drawn is not None
    assert "The one that is put aside is red" in drawn.blocks[-1].text  # type: ignore[union-attr]
    shown = micrograph_gallery(content)
    assert shown is not None
    (cell,) = shown.blocks[0].values["cells"]  # type: ignore[union-attr]
    assert (cell["why"], cell["circles"]) == ("moves <b>90</b> Å", [(20, 20, 5)])
    assert session_over_time(ReportContent("t")) is None
    assert micrograph_gallery(ReportContent("t")) is None
