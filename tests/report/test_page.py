"""The page: sound HTML, nothing to load, nothing that a hostile name can do, and sections that leave themselves out."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from cloudem.errors import ParameterError
from cloudem.jobs.refine3d.job import Refine3D
from cloudem.jobs.report import JUDGED
from cloudem.report.content import ParameterRow, ReportContent, StageRow, TransferRow
from cloudem.report.page import render
from cloudem.traffic import Traffic, total_traffic

VOID = {"meta", "br", "col", "img", "link", "hr", "input"}
HOSTILE = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>$\\frac{&amp;"


class Page(HTMLParser):
    """Reads a page, checks that its tags nest and remembers what it would load and what it says."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> without a start"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)


def row(*values: float) -> dict[str, float]:
    """A row of a refinement: iteration, resolution, limit, share of moving poses, images per second, seconds."""
    names = ("iteration", "resolution_A", "limit_A", "moving", "images_per_s", "seconds")
    return dict(zip(names, values, strict=True))


def full_content(n: int = 32, particles: int = 300) -> ReportContent:
    rng = np.random.default_rng(3)
    z, y, x = np.mgrid[:n, :n, :n] - n // 2
    inside = (x / 10) ** 2 + (y / 7) ** 2 + (z / 5) ** 2
    shell = np.arange(n // 2 + 1)
    fall = {"unmasked": 8, "masked": 11, "phase_randomised": 6, "corrected": 10.5, "truth": 11.5}
    return ReportContent(
        title="refine3d: test molecule",
        map=np.exp(-inside).astype(np.float32) + rng.normal(0, 0.02, (n, n, n)).astype(np.float32),
        mask=(inside < 1.5).astype(np.float32),
        pixel_size=3.0,
        symmetry="C2",
        symmetry_operators=np.array([np.eye(3), np.diag([-1.0, -1.0, 1.0])]),
        fsc={name: 1 / (1 + np.exp((shell - at) / 0.8)) for name, at in fall.items()},
        b_factor=-120.0,
        columns=Refine3D.columns,
        iterations=[row(i, 40 / i, 45 / i, 1 / i, 500.0, 2.0) for i in range(1, 6)],
        rot=rng.uniform(-np.pi, np.pi, particles),
        tilt=np.arccos(rng.uniform(-1, 1, particles)),
        half_set=np.arange(particles) % 2 + 1,
        defocus_u=rng.uniform(1e4, 2e4, particles),
        defocus_v=rng.uniform(1e4, 2e4, particles),
        shift_x=rng.normal(0, 4, particles),
        shift_y=rng.normal(0, 4, particles),
        keep=np.where(np.arange(particles) < 30, 0.1, 0.95),
        noise_evidence=rng.normal(20, 8, particles),
        other_evidence=rng.normal(5, 4, particles),
        stages=[StageRow("expectation", 161.0, 120.0, 800 << 20), StageRow("reconstruction", 10.0, 19.0, 3 << 30)],
        parameters={
            "diameter_A": ParameterRow(320.0, "Å", "diameter"),
            "mask": ParameterRow(None, "", "mask"),
            "float16": ParameterRow(True, "", "images in half precision"),
        },
        versions={"cloudem": "0.1.0"},
        warnings=["7 images were left out"],
        notes=["a remark"],
        command="cloudem refine3d --out refine",
        created="2026-01-01",
    )


def test_full_page_says_everything_and_loads_nothing():
    text = render(full_content())
    page = Page(text)
    headings = ("Map", "Resolution", "Particles", "Time and memory", "Iterations", "Parameters", "How this was made")
    assert all(heading in page.words for heading in headings)
    for words in (
        "300",
        "150 + 150",
        "3 Å",
        "C2",
        "−120 Å²",
        "2 min 51 s",
        "Warning",
        "320 Å",
        "not set",
        "30 (10.0%)",
    ):
        assert words in page.text
    assert page.tags.count("image") >= 6  # three slices, three projections
    assert "http" not in text
    assert "script" not in page.tags
    addresses = [value for name, value in page.attributes if name in {"src", "href", "xlink:href", "action", "data"}]
    assert addresses
    assert all(value.startswith(("data:image/png;base64,", "#")) for value in addresses)
    assert all(target.startswith("#") for target in re.findall(r"url\((.*?)\)", text))
    assert "@import" not in text
    assert len(text.encode()) < 2_000_000


def test_stated_resolution_is_the_crossing_of_the_corrected_curve():
    content = part(full_content(), "fsc")
    at = 10.5 + 0.8 * np.log(1 / 0.143 - 1)  # where the logistic curve is 0.143
    expected = 32 * 3.0 / at
    shown = re.search(r'class="tile"><b>([\d.]+) Å</b>', render(content))
    assert shown is not None
    assert float(shown[1]) == pytest.approx(expected, rel=0.01)
    assert "<b>7.77 Å</b>" in render(replace(content, resolution=7.77))


def test_hostile_text_stays_text():
    content = ReportContent(
        title=HOSTILE,
        symmetry=HOSTILE,
        stages=[StageRow(HOSTILE, 1.0, 1.0, 1)],
        parameters={HOSTILE: ParameterRow(HOSTILE, HOSTILE, HOSTILE)},
        versions={HOSTILE: HOSTILE},
        warnings=[HOSTILE],
        notes=[HOSTILE],
        command=HOSTILE,
        created=HOSTILE,
    )
    page = Page(render(content))
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert page.text.count(HOSTILE) >= 10


def test_equal_content_gives_equal_pages_in_threads_too():
    content = part(full_content(), "fsc", "rot", "tilt", "map", "mask")
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(render, [content, content])
    assert first == second == render(content)


def test_almost_nothing():
    page = Page(render(ReportContent(title="empty")))
    assert page.words.count("empty") == 2
    assert not {"svg", "table", "h2"} & set(page.tags)


PARTS = {
    "Map": ("map", "mask"),
    "Resolution": ("fsc",),
    "Particles": ("rot", "tilt", "half_set", "defocus_u", "defocus_v", "shift_x", "shift_y", *JUDGED),
    "Time and memory": ("stages",),
    "Iterations": ("iterations",),
    "Parameters": ("parameters",),
    "How this was made": ("command", "notes", "versions"),
}


def part(full: ReportContent, *names: str) -> ReportContent:
    return ReportContent(
        title="part", pixel_size=3.0, columns=full.columns, **{name: getattr(full, name) for name in names}
    )


@pytest.mark.parametrize("heading", PARTS)
def test_a_part_alone_has_its_section_and_no_other(heading):
    page = Page(render(part(full_content(), *PARTS[heading])))
    belongs = {heading, "Resolution"} if heading == "Iterations" else {heading}
    assert set(PARTS) & set(page.words) == belongs


def test_what_is_not_finite_does_not_stop_a_report():
    full = full_content()
    holes = {name: np.where(np.arange(17) > 9, np.nan, curve) for name, curve in full.fsc.items()}
    holes["unmasked"] = np.full(17, np.nan)
    volume = full.map.copy()
    volume[3, 3] = np.nan
    rot, defocus = full.rot.copy(), full.defocus_u.copy()
    rot[:50], defocus[:10] = np.nan, np.inf
    nan = float("nan")
    content = replace(
        full,
        fsc=holes,
        map=volume,
        rot=rot,
        defocus_u=defocus,
        resolution=nan,
        b_factor=nan,
        iterations=[row(1, nan, 40.0, nan, nan, nan), row(2, np.inf, 0.0, nan, nan, nan)],
        stages=[StageRow("first", nan, nan, 0)],
    )
    page = Page(render(content))
    assert "nan" not in page.text.lower().split()
    assert "unknown" in page.words


@pytest.mark.parametrize(
    "change",
    [
        {"rot": np.full(300, np.nan), "tilt": np.full(300, np.nan)},
        {"rot": np.zeros(0), "tilt": np.zeros(0), "half_set": np.zeros(0, int)},
        {"rot": np.zeros(1), "tilt": np.zeros(1)},
        {"defocus_u": np.full(30, 15000.0), "defocus_v": np.full(30, 15000.0)},
        {"shift_x": np.full(30, np.nan), "shift_y": np.full(30, np.nan), "particle_count": 30},
        {"iterations": [row(1, 20.0, 30.0, 0.5, 100.0, 3.0)]},
        {"map": np.zeros((8, 8, 8), np.float32), "mask": np.ones((8, 8, 8), np.float32)},
        {"map": np.ones((8, 8, 8), np.float32), "pixel_size": None},
        {"fsc": {"corrected": np.concatenate([[1.0], np.full(16, -0.2)])}},
    ],
)
def test_degenerate_parts_are_drawn(change):
    page = Page(render(replace(ReportContent(title="part", pixel_size=3.0), **change)))
    assert "h2" in page.tags


def test_a_curve_that_never_falls_states_nyquist():
    page = Page(render(ReportContent(title="part", pixel_size=3.0, fsc={"unmasked": np.ones(17)})))
    assert "6.00 Å" in page.words
    assert "Nyquist" in page.text
    assert "not reached" in page.words


def test_total_time_of_the_job_goes_before_the_sum_of_stages():
    page = Page(render(replace(part(full_content(), "stages"), wall_s=30.0, cpu_s=55.0)))
    assert "30.0 s" in page.words
    assert "2 min 51 s" not in page.words


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fsc": {"mystery": np.ones(17)}}, "'mystery'"),
        ({"fsc": {"masked": np.ones(17), "unmasked": np.ones(9)}}, "same number"),
        ({"pixel_size": None}, "pixel size"),
        ({"map": np.zeros((4, 4, 5), np.float32)}, "cube"),
        ({"mask": np.zeros((4, 4, 4), np.float32)}, "equal"),
        ({"tilt": None}, "rot and tilt"),
        ({"defocus_v": np.ones(3)}, "defocus_u and defocus_v"),
    ],
)
def test_content_that_does_not_fit_is_refused(change, words):
    with pytest.raises(ParameterError, match=words):
        replace(full_content(), **change)


def transfers(count: int) -> list[TransferRow]:
    labels = [*map(str, range(1, count + 1)), "otherwise"]
    parts = [{"images": Traffic(300 * 10**6 * i, 0), "poses": Traffic(2000, 7000)} for i in range(1, count + 2)]
    return [TransferRow(label, total_traffic([part])) for label, part in zip(labels, parts, strict=True)]


def test_what_was_moved_is_a_table_and_from_two_iterations_on_a_figure():
    assert "Network" not in Page(render(full_content())).words
    one, two = (render(replace(full_content(), transfers=transfers(count))) for count in (1, 2))
    assert "Bytes received by iteration" not in one
    assert "Bytes received by iteration" in two
    text = Page(two).text
    assert " ".join(("iteration", "images", "poses", "received", "sent")) in " ".join(text.split())
    assert "bricks" not in text
    for words in ("total time (", "workers of a scheduler that was there already come on top"):
        assert (words in Page(render(full_content())).text, words in text) == (
            words.startswith("total"),
            "top" in words,
        )
    for words in ("1 300 MB 2.0 kB 300 MB 7.0 kB", "otherwise 900 MB", "received 1.8 GB 6.0 kB 1.8 GB 21 kB"):
        assert words in text
