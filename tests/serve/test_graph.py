"""The graph of jobs: where jobs stand, what is left out, and what the page of the project shows of it."""

from __future__ import annotations

import html
import random
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from cloudem.jobs.project_index import INDEX_FILE, IndexEntry, ProjectIndex
from cloudem.serve.graph import ABOVE, HIGH, MOST_LINES, MOST_SHOWN, PAGE, WIDE, laid_out, maker_of, shortened
from cloudem.serve.pages import Pages

CHAIN = {"mask": ["refine"], "refine": ["particles"], "particles": []}


def graph_of(inputs: Mapping[str, Iterable[str]]) -> object:
    return laid_out(tuple((name, tuple(ones)) for name, ones in inputs.items()))


def places(inputs: Mapping[str, Iterable[str]]) -> dict[str, tuple[float, float]]:
    graph = laid_out(tuple((name, tuple(ones)) for name, ones in inputs.items()))
    assert graph is not None
    assert all(0 <= node.x <= graph.width - WIDE for node in graph.nodes)
    assert all(-1 <= node.y <= graph.height - HIGH + 1 for node in graph.nodes)
    return {node.name: (node.x, node.y) for node in graph.nodes}


def random_jobs(count: int, seed: int) -> dict[str, list[str]]:
    draw = random.Random(seed)
    names = [f"job-{number}" for number in range(count)]
    return {
        name: draw.sample(names[number + 1 :], min(draw.choice((0, 1, 1, 2, 3)), count - number - 1))
        for number, name in enumerate(names)
    }


def test_a_chain_is_a_row() -> None:
    found = places(CHAIN)
    assert found["particles"][0] < found["refine"][0] < found["mask"][0]
    assert len({y for _, y in found.values()}) == 1


@pytest.mark.parametrize("seed", range(8))
def test_jobs_stand_right_of_what_they_were_made_from_and_never_over_each_other(seed: int) -> None:
    jobs = random_jobs(40, seed)
    found = places(jobs)
    for name, ones in jobs.items():
        assert all(found[one][0] + WIDE < found[name][0] for one in ones)
    boxes = sorted(found.values())
    for number, (x, y) in enumerate(boxes):
        for other_x, other_y in boxes[:number]:
            assert abs(x - other_x) >= WIDE or abs(y - other_y) >= HIGH + ABOVE - 0.01
    connected = {one for name, ones in jobs.items() if ones for one in (name, *ones)}
    assert set(found) == connected


def test_a_tree_crosses_nothing() -> None:
    jobs = {f"mask-{number}": [f"refine-{number}"] for number in (3, 0, 2, 1)}
    jobs |= {f"refine-{number}": ["particles"] for number in (1, 3, 0, 2)}
    found = places({**jobs, "particles": []})
    refined = sorted(range(4), key=lambda number: found[f"refine-{number}"][1])
    assert sorted(range(4), key=lambda number: found[f"mask-{number}"][1]) == refined


def test_what_nothing_connects_stands_beside_or_below() -> None:
    jobs = {name: ones for part in range(5) for name, ones in ((f"b{part}", [f"a{part}"]), (f"a{part}", []))}
    found = places(jobs)
    assert max(x for x, _ in found.values()) + WIDE <= PAGE
    assert found["a0"][1] == found["a1"][1] < found["a2"][1]


def test_where_nothing_was_made_from_another_there_is_no_graph() -> None:
    assert graph_of({"a": [], "b": ["elsewhere"], "c": ["c"]}) is None
    assert graph_of({}) is None


def test_records_that_contradict_themselves_are_drawn_without_what_leads_back() -> None:
    found = places({"a": ["b", "a"], "b": ["c"], "c": ["a", "c"]})
    assert set(found) == {"a", "b", "c"}
    long = {f"job-{number}": [f"job-{(number + 1) % 5000}"] for number in range(5000)}
    assert len(places(long)) == MOST_SHOWN


def test_the_newest_are_drawn_with_what_they_were_made_from() -> None:
    jobs = {f"new-{number}": ["old"] for number in range(100)} | {"old": []}
    graph = laid_out(tuple((name, tuple(ones)) for name, ones in jobs.items()))
    assert graph is not None
    assert {node.name for node in graph.nodes} == {"old", *(f"new-{number}" for number in range(MOST_SHOWN - 1))}
    assert graph.left_out == 101 - MOST_SHOWN
    greedy = {f"j{number}": [f"j{one}" for one in range(number + 1, 60)] for number in range(60)}
    found = laid_out(tuple((name, tuple(ones)) for name, ones in greedy.items()))
    assert found is not None
    assert len(found.lines) <= MOST_LINES * 60


def test_what_lies_in_the_folder_of_a_job_is_its_own() -> None:
    jobs = {"data": 1, "a/b": 2}
    assert maker_of("data/particles.zarr", jobs) == "data"
    assert maker_of("a/b", jobs) == "a/b"
    assert maker_of("a", jobs) is None
    assert maker_of("database", jobs) is None


@pytest.mark.parametrize("most", [5, 6, 17])
def test_long_names_lose_their_middle(most: int) -> None:
    said = shortened("a-name-that-somebody-chose", most)
    assert len(said) == most
    assert said[0] == "a"
    assert said[-1] == "e"
    assert shortened("short", most) == "short"


def write_index(folder: Path, jobs: Mapping[str, IndexEntry]) -> None:
    for name in jobs:
        (folder / name).mkdir(exist_ok=True)
    (folder / INDEX_FILE).write_text(ProjectIndex(jobs=dict(jobs)).model_dump_json())


def entry(kind: str, at: float, *inputs: str, **more: object) -> IndexEntry:
    given = {"state": "finished", "began": 1e9 + at, "updated": 1e9 + at + 1, **more}
    return IndexEntry(kind=kind, inputs={f"input{number}": one for number, one in enumerate(inputs)}, **given)


def test_the_page_of_the_project_shows_it_and_so_do_its_news(tmp_path: Path) -> None:
    evil = 'a"><script>x'
    write_index(tmp_path, {
        "data": entry("simulate", 0), "refine": entry("refine3d", 1, "data/particles.zarr", resolution_A=3.25),
        evil: entry(evil, 2, "refine", state="failed", why=evil),
    })  # fmt: skip
    pages = Pages(str(tmp_path))
    page, news = pages.project(), str(pages.project_news()["html"])
    for shown in (page, news):
        graph = shown[shown.index('<div class="graph"') : shown.index("<h2>Jobs")]
        assert graph.count('<path d="M') == 2
        assert re.findall(r'<a href="([^"]*)" class="(\w+)"', graph) == [
            ("./job/a%22%3E%3Cscript%3Ex", "bad"), ("./job/refine", "good"), ("./job/data", "good"),
        ]  # fmt: skip
        assert "refine: refine3d, finished; made from data" in html.unescape(graph)
        assert "refine3d, 3.25 Å" in graph
        assert "<script>x" not in shown
        assert '<a href="./job/data">data/particles.zarr</a>' in shown
    write_index(tmp_path, {"data": entry("simulate", 0), "refine": entry("refine3d", 1, "elsewhere")})
    assert 'class="graph"' not in Pages(str(tmp_path)).project()


def test_what_is_not_drawn_is_said(tmp_path: Path) -> None:
    write_index(
        tmp_path, {"p": entry("import", 0)} | {f"r{number}": entry("refine3d", number, "p") for number in range(80)}
    )
    assert "21 more are not drawn" in Pages(str(tmp_path)).project()
