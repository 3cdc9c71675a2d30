"""``cloudem auto``: the workflow that it writes, files that people edited, and where it stops for a human."""

from __future__ import annotations

import hashlib
import re
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import create_model

from cloudem.algorithms.simulate import Recording, random_particles
from cloudem.cli.auto import Auto
from cloudem.cli.command_line import run
from cloudem.errors import ParameterError
from cloudem.io.particle_store import open_particles, write_particles
from cloudem.io.storage.groups import has_group, write_group
from cloudem.jobs.base import Job
from cloudem.jobs.parameters import Place
from cloudem.jobs.provenance import job_record
from cloudem.jobs.toml import step_toml, value_toml
from cloudem.runs.automatic import automatic_workflow, read_head
from cloudem.runs.decisions import FinishedStep, decision_after, doubtful_group
from cloudem.runs.workflow import Step, Workflow, read_workflow, workflow_of

COUNT, BOX = 24, 16


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a particle store of nothing in particular."""
    monkeypatch.chdir(tmp_path)
    images = np.random.default_rng(0).standard_normal((COUNT, BOX, BOX), dtype=np.float32)
    write_particles(
        tmp_path / "particles.zarr", random_particles(COUNT, Recording(), 0), [images], box=BOX, pixel_size=10.0
    )
    return tmp_path


def written(particles: str = "/data/particles.star", project: str = "/data/auto", **values: Any) -> str:
    given = {"diameter_A": 180.0, "symmetry": "C1", **values}
    return automatic_workflow("cloudem auto x", project=project, particles=particles, **given)


def steps_of(text: str) -> Workflow:
    return workflow_of(tomllib.loads(text), "auto")


def test_a_table_is_imported_and_a_store_is_not() -> None:
    jobs = ["import", "classify2d", "select", "abinitio", "refine3d", "postprocess"]
    assert [step.job.name for step in steps_of(written()).steps] == jobs
    assert [step.job.name for step in steps_of(written("/data/particles.CS")).steps] == jobs
    assert [step.job.name for step in steps_of(written("/data/good")).steps] == jobs[1:]


def test_a_symmetry_that_is_not_given_is_looked_for_and_one_that_is_given_is_imposed() -> None:
    looked = {step.name: step.job.model_dump() for step in steps_of(written(symmetry="auto")).steps}
    assert list(looked) == ["import", "classes", "good", "start", "symmetry", "refine", "post"]
    assert (looked["start"]["symmetry"], looked["refine"]["symmetry"]) == ("C1", "auto")
    assert looked["symmetry"]["map"] == looked["start"]["out"]
    assert looked["refine"]["reference"] == looked["symmetry"]["out"]
    given = {step.name: step.job.model_dump() for step in steps_of(written(symmetry="D2")).steps}
    assert given["refine"]["reference"] == given["start"]["out"]
    assert (given["start"]["symmetry"], given["refine"]["symmetry"]) == ("D2", "D2")
    assert Auto(particles="x.star", diameter_A=1).symmetry == "auto"


def test_what_was_asked_for_stands_in_every_step_that_has_it() -> None:
    steps = steps_of(written(symmetry="D2", classes=40, seed=7, invert_contrast=True)).steps
    given = [step.job.model_dump() for step in steps]
    assert {values["symmetry"] for values in given if values["out"] in ("/data/auto/start", "/data/auto/refine")} == {
        "D2"
    }
    assert [values["seed"] for values in given if "seed" in values] == [7, 7, 7, 0]  # the last is that of postprocess
    assert {values["diameter_A"] for values in given if "diameter_A" in values} == {180.0}
    assert given[0]["invert_contrast"] is True
    assert given[1]["classes"] == 40


@pytest.mark.parametrize(
    "place", ['/data/we"ird', "/data/back\\slash", "/data/uml\u00e4ut", "/data/new\nline", "/d/\x7f\x1b"]
)
def test_any_name_of_a_folder_comes_back_from_the_file(place: str) -> None:
    assert steps_of(written(project=place)).project == place
    assert tomllib.loads(f"x = {value_toml(place)}") == {"x": place}


@pytest.mark.parametrize("value", [True, False, 3, 0.1, 1e-9, 123456.789, "a"])
def test_values_come_back_from_toml(value: object) -> None:
    assert tomllib.loads(f"x = {value_toml(value)}") == {"x": value}  # type: ignore[arg-type]


def test_a_step_as_text_leaves_out_what_is_none() -> None:
    text = step_toml("select", "good", {"classes": "1,3", "where": None}, "remark")
    assert tomllib.loads(text) == {"step": [{"job": "select", "name": "good", "classes": "1,3"}]}


def test_a_file_that_was_edited_is_told_from_one_that_was_not() -> None:
    text = written()
    assert read_head(text) == ("cloudem auto x", False)
    assert read_head(text.replace("auto = true", 'classes = "1"')) == ("cloudem auto x", True)
    assert read_head(text + "\n") == ("cloudem auto x", True)
    assert read_head(text.replace("seed", "# seed")).edited
    assert read_head("project = '.'") == ("", True)


def test_dry_run_shows_the_workflow_and_leaves_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run(["auto", "particles.zarr", "--diameter-A", "100", "--classes", "2", "--symmetry", "C1", "--dry-run"]) == 0
    )
    said = capsys.readouterr().out
    assert 'job = "abinitio"' in said
    assert said.count("plan ") == 5
    assert "jobs before it are done" not in said  # all sizes follow from those of the particles
    assert [path.name for path in here.iterdir()] == ["particles.zarr"]


def test_what_no_step_accepts_writes_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, said in (
        (["particles.zarr"], "auto needs --diameter-A"),
        (["particles.zarr", "--diameter-A", "500"], "step classes"),
        (["particles.zarr", "--diameter-A", "100", "--symmetry", "Q3"], "Q3"),
        (["particles.zarr", "--diameter-A", "100", "--invert-contrast"], "is for tables"),
        (["nothing.star", "--diameter-A", "100"], "does not exist"),
    ):
        assert run(["auto", *options]) == 1
        assert said in capsys.readouterr().err
    assert not (here / "auto").exists()


def test_a_file_that_was_edited_is_run_as_it_is_and_never_written_over(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["auto", "particles.zarr", "--diameter-A", "100", "--classes", "2"]
    assert run([*command, "--write-only"]) == 0
    file = here / "auto" / "auto.toml"
    assert not has_group(str(here / "auto" / "classes"), "result")
    written_first = file.read_text()
    assert run([*command[:-2], "--classes", "3", "--write-only"]) == 0  # not edited: written anew
    assert "classes = 3" in file.read_text()
    assert "options were others before" in capsys.readouterr().out

    head = written_first.partition("\nproject")[0]
    kept = step_toml("select", "good", {"particles": str(here / "particles.zarr"), "where": "defocus_u > 0"})
    edited = f"{head}\nproject = {value_toml(str(here / 'auto'))}\n{kept}"
    file.write_text(edited)
    assert run([*command, "--executor", "serial"]) == 0
    said = capsys.readouterr().out
    assert "which was edited" in said
    assert "Done" in said
    assert len(open_particles(here / "auto" / "good").particles) == COUNT
    assert run([*command, "--executor", "serial"]) == 0  # the same again: nothing is done twice
    assert "good: unchanged, skipped" in capsys.readouterr().out

    assert run([*command, "--seed", "1"]) == 1
    assert "was edited" in capsys.readouterr().err
    assert file.read_text() == edited
    assert run([*command, "--seed", "1", "--replace", "--write-only"]) == 0
    assert "seed = 1" in file.read_text()


def test_other_particles_need_another_project(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["auto", "particles.zarr", "--diameter-A", "100", "--classes", "2", "--write-only"]) == 0
    (here / "particles.zarr").rename(here / "others.zarr")
    assert run(["auto", "others.zarr", "--diameter-A", "100", "--classes", "2", "--write-only"]) == 1
    assert "written for other particles" in capsys.readouterr().err


def test_the_command_in_the_file_is_one_that_is_understood() -> None:
    text = Auto(particles="/a b/x.star", diameter_A=180, symmetry="D2", project="/p", invert_contrast=True).command()
    assert text == "cloudem auto '/a b/x.star' --diameter-A 180 --symmetry D2 --project /p --invert-contrast"
    for name in ("/new\nline", "/it's", '/"', "/\x1b"):
        auto = Auto(particles=f"{name}.star", diameter_A=180.5, project=name)
        assert read_head(auto.text()) == (auto.command(), False)
        assert tomllib.loads(auto.text())["project"] == name


def test_a_file_of_another_version_is_gone_on_with(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["auto", "particles.zarr", "--diameter-A", "100", "--classes", "2", "--write-only"]
    assert run(command) == 0
    file = here / "auto" / "auto.toml"
    other = file.read_text().replace("# sorts images", "# puts images")
    parts = other.partition("project = ")
    checksum = hashlib.sha256((parts[1] + parts[2]).encode()).hexdigest()[:12]
    file.write_text(re.sub("written: [0-9a-f]{12}", f"written: {checksum}", parts[0]) + parts[1] + parts[2])
    capsys.readouterr()
    assert run(command) == 0
    assert "edited" not in capsys.readouterr().out
    assert "puts images" in file.read_text()


# --- where a human decides --------------------------------------------------------------------------------------------


def finished(workflow: Workflow, name: str, attributes: dict[str, Any]) -> int:
    """Leave a result of a step that says these things of itself; return the step's number."""
    (number,) = (number for number, step in enumerate(workflow.steps) if step.name == name)
    write_group(workflow.steps[number].job.out, "", {}, {"kind": "result"})
    write_group(workflow.steps[number].job.out, "result", {}, attributes)
    return number


NO_MAP = {"warnings": ["no agreement: no other of 4 starts leads there (9.1), so there is no map in the result. Try"]}


@pytest.mark.parametrize(
    ("name", "attributes", "why"),
    [
        ("start", NO_MAP, "no agreement: no other of 4 starts leads there (9.1)"),
        ("start", {"filter_A": 20.0}, None),
        ("good", {"particle_count": 900, "left_out": {"noise": 100}}, None),
        ("good", {"particle_count": 499, "left_out": {"noise": 100}}, "keeps only 499 of 599"),
        ("good", {"particle_count": 900, "left_out": {"noise": 9000}}, "keeps only 900 of 9,900"),
        ("good", {"particle_count": 200, "left_out": {}}, None),  # there were no more
        ("classes", {}, None),
    ],
)
def test_it_stops_where_a_human_has_to_decide(tmp_path: Path, name: str, attributes: dict[str, Any], why: str) -> None:
    workflow = steps_of(written(project=str(tmp_path)))
    decision = decision_after(workflow, finished(workflow, name, attributes))
    assert (decision is None) == (why is None)
    if decision is not None:
        assert why in decision.why
        assert set(decision.look) <= {"classes", "good", "start"}
        assert all(way.case and way.how for way in decision.ways)


def test_whoever_edits_the_workflow_has_decided(tmp_path: Path) -> None:
    text = written(project=str(tmp_path))
    workflow = steps_of(text.replace('reference = "start"', 'reference = "other.mrc"'))
    assert decision_after(workflow, finished(workflow, "start", NO_MAP)) is None
    workflow = steps_of(text.replace("auto = true", 'classes = "1"'))
    assert decision_after(workflow, finished(workflow, "good", {"particle_count": 9, "left_out": {"a": 90}})) is None


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (("C4", True, ""), None),
        (("C1", True, ""), None),
        (("C1", False, ""), "not determined"),
        (("C1", True, "D2"), "nearly D2, but agrees with no group"),
        (("C2", True, "D2"), "nearly D2, but agrees with C2 only"),
    ],
)
def test_it_stops_where_the_point_group_is_doubtful(tmp_path: Path, said: tuple[str, bool, str], why: str) -> None:
    attributes = dict(zip(("symmetry", "symmetry_determined", "symmetry_nearly"), said, strict=True))
    places = {"reference": "symmetry", "map": "start"}
    found = FinishedStep(
        _step("symmetry", tmp_path, {"map": places["map"]}),
        attributes,
        (_step("refine", tmp_path, {"reference": "symmetry"}, symmetry="auto"),),
        Workflow(str(tmp_path), "auto", "", ()),
    )
    decision = doubtful_group(found)
    assert (decision is None) == (why is None)
    if decision is not None:
        assert why in decision.why
        assert "--symmetry D2" in decision.ways[1].how
    decided = found._replace(later=(_step("refine", tmp_path, {"reference": "symmetry"}, symmetry="C1"),))
    assert doubtful_group(decided) is None


def _step(name: str, project: Path, places: dict[str, str], **values: Any) -> Step:
    """Return a step whose job reads these places of the project, whatever kind of job it is."""
    fields = {key: (Place, f"{project}/{place}") for key, place in places.items()}
    given = {key: (str, value) for key, value in values.items()}
    job = create_model(f"Some{name.title()}", __base__=Job, **fields, **given)(out=f"{project}/{name}")
    return Step(name, job)


@pytest.mark.parametrize("symmetry", ["C1", "auto"])
def test_every_way_on_names_steps_that_there_are(tmp_path: Path, symmetry: str) -> None:
    workflow = steps_of(written(project=str(tmp_path), symmetry=symmetry))
    decision = decision_after(workflow, finished(workflow, "start", NO_MAP))
    assert decision is not None
    named = [name for way in decision.ways for name in re.findall(r"steps? (\w+)(?: and (\w+))?", way.how)]
    between = {"symmetry"} if symmetry == "auto" else set()
    assert {one for pair in named for one in pair if one} == {"good", "start", "refine"} | between


def test_a_stop_has_a_status_of_its_own_and_comes_again(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["auto", "particles.zarr", "--diameter-A", "100", "--classes", "2"]
    assert run([*command, "--write-only"]) == 0
    file = here / "auto" / "auto.toml"
    known = {"particles": str(here / "particles.zarr"), "diameter_A": 100}
    start, refine = (
        step_toml("abinitio", "start", known),
        step_toml("refine3d", "refine", {**known, "reference": "start"}),
    )
    file.write_text(f"{file.read_text().partition('[[step]]')[0]}{start}{refine}")
    (job, *_) = (step.job for step in read_workflow(str(file)).steps)
    write_group(job.out, "", {}, {"kind": "result", **job_record(job)})
    write_group(job.out, "result", {}, NO_MAP)
    for _ in range(2):
        capsys.readouterr()
        assert run([*command, "--executor", "serial"]) == 4
        ended = capsys.readouterr()
        assert ended.err == "cloudem: step start: no agreement: no other of 4 starts leads there (9.1)\n"
        assert "start/report.html" in ended.out
        assert str(file) in ended.out
    assert not (here / "auto" / "refine").exists()


def test_a_wrong_parameter_is_said_in_one_line() -> None:
    with pytest.raises(ParameterError, match="--diameter-A: got -3"):
        Auto(particles="x.star", diameter_A=-3)
