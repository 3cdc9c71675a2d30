"""The picture of a plan."""

from __future__ import annotations

import re

import pytest

from cloudem.errors import ParameterError
from cloudem.report.sections.planning import Point, plan_figure, save_plan_figure

POINTS = [
    Point((300, 600, 1800), (2.0, 5.0, 9.0), "64 × fast.8xlarge spot"),
    Point((1800, 3600, 7200), (0.5, 1.0, 2.0), "1 × slow.large spot", chosen=True),
    Point((1810, 3610, 7210), (0.49, 0.99, 2.0), "another so near that it has no room"),
]


def test_the_plan_and_what_else_there_is_are_named_with_the_limits() -> None:
    svg = plan_figure(POINTS, "cheapest in eu-central-1", max_usd=7, max_hours=1.5)
    texts = [text.strip() for text in re.findall(r">([^<>]+)</text>", svg)]
    assert "1 × slow.large spot" in texts
    assert "64 × fast.8xlarge spot" in texts
    assert not any("no room" in text for text in texts)
    assert {"$7", "1.5 h", "1 h", "20 min", "$1", "cheapest in eu-central-1"} <= set(texts)


def test_it_is_drawn_into_files(tmp_path) -> None:
    for name, start in (("a.png", b"\x89PNG"), ("a.svg", b"<?xml"), ("a.pdf", b"%PDF")):
        save_plan_figure(str(tmp_path / name), POINTS, "title")
        assert (tmp_path / name).read_bytes().startswith(start)
    with pytest.raises(ParameterError, match=r"ends in \.png, \.svg, \.pdf"):
        save_plan_figure(str(tmp_path / "a.txt"), POINTS, "title")
