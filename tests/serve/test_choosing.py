"""Classes are chosen by clicks: what becomes of them is said, and written only where that was allowed, and by whom."""

from __future__ import annotations

import asyncio
import json
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cloudem.cli.serve import Serve
from cloudem.errors import ParameterError
from cloudem.io.storage.groups import write_group
from cloudem.jobs.provenance import job_record
from cloudem.jobs.select import Select, class_list, class_numbers
from cloudem.jobs.toml import step_toml, value_toml
from cloudem.runs.automatic import AUTO_FILE, automatic_workflow
from cloudem.runs.workflow import read_workflow
from cloudem.serve.choosing import changed_workflow, check_writing, choice_of, write_choice
from tests.serve.browser import Tab, browser, needs_chromium
from tests.serve.conftest import TOKEN, Site, served

COUNT, BOX = 6, 16
CHOICE = "/job/classes/-/choice?classes=1,2,5"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with the classes of a job, as far as a page shows them."""
    from cloudem.jobs.classify2d.job import Classify2D

    folder = tmp_path / "it's a project"
    job = Classify2D(particles="/none", diameter_A=100, out=str(folder / "classes"))
    write_group(job.out, "", {}, {"kind": "result", **job_record(job)})
    images = np.random.default_rng(0).random((COUNT, BOX, BOX)).astype(np.float32)
    arrays = {
        "class_averages": images,
        "class_members": np.arange(60, 0, -10),
        "class_share": np.full(COUNT, 1 / COUNT),
    }
    write_group(job.out, "result", arrays, {"pixel_size_A": 4.0, "box": BOX})
    return folder


@pytest.fixture
def site(project: Path) -> Iterator[Site]:
    with served(project) as found:
        yield found


@pytest.fixture
def writing(project: Path) -> Iterator[Site]:
    with served(project, allow_writing=True) as found:
        yield found


def tomls(project: Path) -> list[str]:
    return sorted(path.name for path in project.glob("*.toml"))


@pytest.mark.parametrize("text", ["1", "1-3", "1,3,5-9", "2,4", "1-2,4,7-100"])
def test_numbers_of_classes_become_text_and_back(text: str) -> None:
    assert class_list(class_numbers(text)) == text
    assert class_list(class_numbers(",".join(map(str, sorted(class_numbers(text), reverse=True))))) == text


def test_the_page_says_the_command_and_the_step(site: Site, project: Path) -> None:
    found = json.loads(site.get(CHOICE).body)
    assert tomllib.loads(found["step"])["step"][0]["classes"] == "1-2,5"
    assert found["file"] == "good.toml"
    for wrong in ("", "0", "x", "3-1", "1;2"):
        answer = site.get(f"/job/classes/-/choice?classes={wrong}")
        assert answer.status == 400
        assert "no number of a class" in json.loads(answer.body)["problem"]
    assert site.get("/job/nothing/-/choice?classes=1").status == 404


def test_the_command_is_one_that_a_shell_reads_as_meant(project: Path) -> None:
    words = shlex.split(choice_of(str(project), "classes", "1,2,5").command)
    given = {"--particles": f"{project}/classes", "--classes": "1-2,5", "--out": f"{project}/good"}
    assert words == ["cloudem", "select", *(word for pair in given.items() for word in pair)]
    alone = choice_of(str(project / "classes"), "", "3")  # what is shown is the results of the job themselves
    assert shlex.split(alone.command)[-1] == f"{project}/classes-good"
    assert alone.file == ""


def test_what_a_selection_has_left_out_can_be_had_back(site: Site, project: Path) -> None:
    job = Select(particles=str(project / "classes"), auto=True, out=str(project / "good"))
    write_group(job.out, "", {}, {"kind": "result", **job_record(job)})
    write_group(job.out, "result", {}, {})
    found = json.loads(site.get("/job/good/-/choice?classes=4").body)
    assert f"--particles {shlex.quote(str(project / 'classes'))} --classes 4" in found["command"]
    assert tomllib.loads(found["step"])["step"][0]["particles"] == "classes"


def test_nothing_is_written_unless_that_was_allowed(site: Site, project: Path) -> None:
    assert site.get(CHOICE, method="POST").status == 405
    assert site.pages.write_choice("classes", "1") is None
    assert tomls(project) == []


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 403),
        ({"Origin": "{here}"}, 403),  # a form of this very page could send no more
        ({"X_Cloudem": "write"}, 403),
        ({"X_Cloudem": "write", "Origin": "null"}, 403),
        ({"X_Cloudem": "write", "Origin": "http://evil.example"}, 403),
        ({"X_Cloudem": "write", "Origin": "http://127.0.0.1:1"}, 403),  # another server of the same host
        ({"X_Cloudem": "write", "Origin": "{here}"}, 200),
    ],
)
def test_only_pages_of_this_very_server_write_by_the_cookie(
    writing: Site, project: Path, headers: dict[str, str], status: int
) -> None:
    cookie = writing.get(f"/?token={TOKEN}", token="").headers["Set-Cookie"].split(";")[0]
    given = {name: value.format(here=f"http://127.0.0.1:{writing.port}") for name, value in headers.items()}
    assert writing.get(CHOICE, token="", method="POST", **given).status == 401
    assert writing.get(CHOICE, token="", method="POST", Cookie=cookie, **given).status == status
    assert tomls(project) == (["good.toml"] if status == 200 else [])


def test_what_is_written_is_a_workflow_and_never_written_over(writing: Site, project: Path) -> None:
    for number, name in enumerate(("good", "good-2", "good-3")):
        found = json.loads(writing.get(f"/job/classes/-/choice?classes={number + 1}", method="POST").body)
        assert found["written"] == f"{project}/{name}.toml"
        (step,) = read_workflow(found["written"]).steps
        assert (step.job.name, step.job.out) == ("select", f"{project}/{name}")
        assert step.job.model_dump()["particles"] == f"{project}/classes"
    (project / "good-4.toml").write_text("mine")
    assert json.loads(writing.get(CHOICE, method="POST").body)["file"] == "good-5.toml"
    assert (project / "good-4.toml").read_text() == "mine"


def test_the_workflow_of_auto_takes_the_classes(writing: Site, project: Path) -> None:
    given = {"project": str(project), "particles": str(project / "p.zarr"), "diameter_A": 100.0, "symmetry": "C1"}
    before = automatic_workflow("cloudem auto p.zarr", **given)
    (project / AUTO_FILE).write_text(before)
    found = json.loads(writing.get(CHOICE, method="POST").body)
    assert (found["file"], tomls(project)) == (AUTO_FILE, [AUTO_FILE])
    after = (project / AUTO_FILE).read_text()
    lines = [set(text.splitlines()) for text in (before, after)]
    assert lines[0] - lines[1] == {"auto = true"}
    assert lines[1] - lines[0] == {'classes = "1-2,5"'}
    again = changed_workflow(after, str(project), f"{project}/classes", {"classes": "7"}, Select)
    assert again is not None
    assert again.text == after.replace("1-2,5", "7")


def test_a_workflow_that_is_not_understood_is_left_alone(project: Path) -> None:
    where, source = str(project), f"{project}/classes"
    step = step_toml("select", "good", {"particles": "classes", "auto": True})
    head = f"project = {value_toml(where)}\n"
    assert changed_workflow(f"{head}{step}", where, source, {"classes": "1"}, Select) is not None
    for text in (
        "",
        "no toml [",
        f"{head}{step}{step.replace('good', 'other')}",  # which one?
        f"project = '/elsewhere'\n{step}",
        f"{head}{step.replace('classes', 'others')}",
        f'{head}step = [{{job = "select", particles = "classes", auto = true}}]',
        f'{head}{step}where = """\nauto = 1\n"""',  # no line of a step, but of its text
        f"{head}step = 3",
    ):
        assert changed_workflow(text, where, source, {"classes": "1"}, Select) is None


def test_a_choice_that_comes_too_late_is_refused(project: Path) -> None:
    choice = choice_of(str(project), "classes", "1")
    write_choice(str(project), choice)
    with pytest.raises(FileExistsError, match="is there by now"):
        write_choice(str(project), choice)


def test_writing_is_for_this_machine_and_for_folders() -> None:
    check_writing("folder", "127.0.0.1", allowed=True)
    check_writing("s3://bucket/project", "0.0.0.0", allowed=False)
    with pytest.raises(ParameterError, match="others could write here"):
        check_writing("folder", "0.0.0.0", allowed=True)
    with pytest.raises(ParameterError, match="is no folder"):
        check_writing("s3://bucket/project", "localhost", allowed=True)
    assert not Serve(project="folder").allow_writing


@needs_chromium
def test_classes_are_clicked_in_a_browser(writing: Site, project: Path) -> None:
    async def choose() -> None:
        async with browser() as tab:
            await tab.open(f"http://localhost:{writing.port}/job/classes?token={TOKEN}")
            await tab.until("document.querySelector('.choice pre')?.innerText.includes('1-6')")
            assert "6 of 6 classes, 210 of 210 images" in await tab.value("document.querySelector('.choice').innerText")
            await tab.value("document.querySelector('figure[data-class=\"3\"]').click()")
            await press(tab, 4, " ")
            await press(tab, 6, "Enter")
            await tab.until("document.querySelector('.choice pre').innerText.includes('--classes 1-2,5 ')")
            assert "3 of 6 classes, 130 of 210 images" in await tab.value("document.querySelector('.choice').innerText")
            assert await tab.value("document.querySelectorAll('figure[aria-checked=true]').length") == 3
            await tab.until("document.querySelector('.write').innerText === 'Write good.toml'")
            await tab.value("document.querySelector('.write').click()")
            await tab.until("document.querySelector('.choice').innerText.includes('Written: ')")
            assert tab.complaints == []
            assert tab.failures == []

    asyncio.run(choose())
    (step,) = read_workflow(str(project / "good.toml")).steps
    assert step.job.model_dump()["classes"] == "1-2,5"


async def press(tab: Tab, number: int, key: str) -> None:
    await tab.value(
        f"document.querySelector('figure[data-class=\"{number}\"]').dispatchEvent(new KeyboardEvent('keydown', "
        f"{{key: {key!r}, bubbles: true}}))"
    )
