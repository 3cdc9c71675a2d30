"""A workflow does what is missing or changed, and nothing else; it deletes what is its own, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cloudem.cli import main
from cloudem.cli.graph import print_graph
from cloudem.errors import OutputExistsError, ParameterError
from cloudem.execution.executor import SerialExecutor
from cloudem.io.formats.mrc import read_volume
from cloudem.io.formats.mrc_writer import write_volume
from cloudem.io.particle_store import write_particles
from cloudem.io.storage.groups import delete_result, has_group, read_attributes, write_group
from cloudem.io.storage.location import contents, exists
from cloudem.io.storage.outputs import withdraw
from cloudem.jobs import base
from cloudem.jobs.artefacts import kinds_at
from cloudem.jobs.base import Job
from cloudem.jobs.changes import change_of, make_room
from cloudem.jobs.provenance import differences, is_of, job_record
from cloudem.jobs.runner import run_job
from cloudem.runs.preflight import Outlook, preflight
from cloudem.runs.workflow import Workflow, workflow_of
from tests.runs.test_preflight import BALL, PIXEL, flow, project

SIMULATE = {"job": "simulate", "name": "sim", "demo": True, "count": 24, "box_px": 16, "pixel_size_A": 15}
RECONSTRUCT = {"job": "reconstruct", "particles": "sim/particles.zarr", "report": False}
MASK = {"job": "mask", "map": "reconstruct", "out": "mask.mrc", "low_pass_A": 40}
EXPORT = {"job": "export", "source": "reconstruct", "out": "files"}
STEPS: list[dict[str, Any]] = [SIMULATE, RECONSTRUCT, MASK, EXPORT]


def run_all(workflow: Workflow) -> list[str]:
    """Run a workflow as the command line does; return the names of the steps that ran."""
    preflight(workflow)
    ran = []
    for step in workflow.steps:
        progress = run_job(step.job, lambda gpus: SerialExecutor(), step=step.name, replaces=True)
        ran += [step.name] if progress.timings() else []
    return ran


def due(outlook: Outlook) -> dict[str, str]:
    return {name: f"{change.status}: {change.why}" for name, change in outlook.changes.items()}


def test_only_what_is_missing_or_changed_runs(tmp_path: Path) -> None:
    folder = str(tmp_path / "project")
    assert set(due(preflight(flow(folder, *STEPS))).values()) == {"run: "}
    assert run_all(flow(folder, *STEPS)) == ["sim", "reconstruct", "mask", "export"]
    assert run_all(flow(folder, *STEPS)) == []
    assert preflight(flow(folder, *STEPS)).left.steps == ()

    Path(folder, "files", "export.json").unlink()  # files that nobody vouches for
    with pytest.raises(OutputExistsError, match="files exists already"):
        preflight(flow(folder, *STEPS))
    withdraw(f"{folder}/files")
    assert run_all(flow(folder, *STEPS)) == ["export"]

    wider = [SIMULATE, RECONSTRUCT, {**MASK, "extend_A": 9.0}, EXPORT]
    before = read_volume(f"{folder}/mask.mrc").data
    assert run_all(flow(folder, *wider)) == ["mask"]
    assert (read_volume(f"{folder}/mask.mrc").data != before).any()

    other = [SIMULATE, {**RECONSTRUCT, "seed": 7, "symmetry": "C2"}, *wider[2:]]
    assert due(preflight(flow(folder, *other))) == {
        "sim": "unchanged: ",
        "reconstruct": "changed: --symmetry differs, --seed differs",
        "mask": "changed: MAP redone by reconstruct",
        "export": "changed: SOURCE redone by reconstruct",
    }
    assert run_all(flow(folder, *other)) == ["reconstruct", "mask", "export"]
    assert (read_attributes(f"{folder}/reconstruct", "") or {})["parameters"]["symmetry"] == "C2"

    more = [{**SIMULATE, "count": 26}, *other[1:]]
    assert due(preflight(flow(folder, *more)))["reconstruct"] == "changed: --particles redone by sim"
    # an interruption between steps: what is left is known by what the results say of their inputs
    run_job(flow(folder, *more).steps[0].job, lambda gpus: SerialExecutor(), replaces=True)
    assert due(preflight(flow(folder, *more)))["reconstruct"] == "changed: --particles was made anew"
    assert run_all(flow(folder, *more)) == ["reconstruct", "mask", "export"]
    assert run_all(flow(folder, *more)) == []


def test_nothing_is_deleted_before_all_steps_are_checked(tmp_path: Path) -> None:
    folder = project(str(tmp_path))
    steps = [{"job": "mask", "map": "start.mrc", "out": "m.mrc"}, {"job": "export", "source": "p.zarr", "out": "files"}]
    assert run_all(flow(folder, *steps)) == ["mask", "export"]
    kept = Path(folder, "m.mrc").read_bytes()
    changed = [{**steps[0], "extend_A": 20.0}, {**steps[1], "stack": True}]
    (tmp_path / "files" / "notes.txt").touch()
    file = tmp_path / "w.toml"
    file.write_text(as_toml(folder, changed))
    with pytest.raises(SystemExit):
        main(["run", str(file), "--executor", "serial"])
    with pytest.raises(OutputExistsError, match=r"step export: .*also contains notes\.txt, which export does not"):
        preflight(flow(folder, *changed))
    assert Path(folder, "m.mrc").read_bytes() == kept
    (tmp_path / "files" / "notes.txt").unlink()
    with pytest.raises(SystemExit) as end:
        main(["run", str(file), "--executor", "serial"])
    assert end.value.code == 0
    assert Path(folder, "m.mrc").read_bytes() != kept


def as_toml(folder: str, steps: list[dict[str, Any]]) -> str:
    lines = [f"project = {json.dumps(folder)}"]
    for step in steps:
        lines += ["[[step]]", *(f"{name} = {json.dumps(value)}" for name, value in step.items())]
    return "\n".join(lines)


def test_a_job_file_replaces_nothing_unless_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = project(str(tmp_path))
    file = tmp_path / "job.toml"

    def run(edge: float, *options: str) -> int | str | None:
        file.write_text(f'job = "mask"\nmap = "{folder}/start.mrc"\nout = "{folder}/m.mrc"\nedge_A = {edge}')
        with pytest.raises(SystemExit) as end:
            main(["run", str(file), "--executor", "serial", *options])
        return end.value.code

    assert run(12) == 0
    kept = Path(folder, "m.mrc").read_bytes()
    assert run(16) == 1
    assert "already exists" in capsys.readouterr().err
    assert Path(folder, "m.mrc").read_bytes() == kept
    assert run(16, "--replace") == 0
    assert Path(folder, "m.mrc").read_bytes() != kept


def test_what_another_job_or_a_user_made_is_never_deleted(tmp_path: Path) -> None:
    folder = project(str(tmp_path))
    for out, job in (("tiny.mrc", "mask"), ("p.zarr", "export")):
        step = {"job": job, **({"map": "start.mrc"} if job == "mask" else {"source": "p.zarr"}), "out": out}
        with pytest.raises(OutputExistsError):
            preflight(flow(folder, step))
    write_group(f"{folder}/out", "", {}, {"kind": "result", "job": "postprocess", "parameters": {}})
    job = flow(folder, {"job": "reconstruct", "particles": "p.zarr", "out": "out"}).steps[0].job
    with pytest.raises(OutputExistsError, match="contains the results of postprocess"):
        make_room(job, lambda: None)
    assert has_group(f"{folder}/out", "")


def test_a_result_goes_and_what_lies_beside_it_stays(tmp_path: Path) -> None:
    url = str(tmp_path / "out")
    write_group(url, "", {}, {"kind": "result", "job": "any"})
    for name in ("result", "particles", "iterations/001", "iterations/002"):
        write_group(url, name, {"x": np.zeros(3)}, {})
    write_particles(f"{url}/p.zarr", *_two(), box=16, pixel_size=PIXEL)
    write_group(f"{url}/more", "inner", {}, {"kind": "result", "job": "any"})
    for name in ("notes.txt", "log.txt", "report.html"):
        Path(url, name).touch()
    calls: list[int] = []
    delete_result(url, ("report.html",), lambda: calls.append(1))
    assert contents(url) == ["log.txt", "more", "notes.txt", "p.zarr"]
    assert len(calls) == 4
    assert has_group(f"{url}/more", "inner")


def _two() -> Any:
    from tests.runs.test_preflight import COUNT, table

    return table(), [np.ones((COUNT, 16, 16), np.float32)]


def test_a_changed_store_on_s3_is_made_anew(s3: Any) -> None:
    folder = f"s3://{s3.bucket()}/flow"
    assert run_all(flow(folder, SIMULATE, {**EXPORT, "source": "sim/particles.zarr"})) == ["sim", "export"]
    more = flow(folder, {**SIMULATE, "count": 25}, {**EXPORT, "source": "sim/particles.zarr"})
    assert due(preflight(more))["export"] == "changed: SOURCE redone by sim"
    withdraw(f"{folder}/sim/particles.zarr")  # as far as a run comes that is killed after it
    assert not exists(f"{folder}/sim/particles.zarr/zarr.json")
    assert run_all(more) == ["sim", "export"]
    assert run_all(more) == []


def test_a_record_that_is_older_than_an_option_is_one_of_its_default() -> None:
    job = base.find_job("postprocess")(halves="/nowhere/refine", out="/nowhere/out")
    record = job_record(job)
    del record["parameters"]["guinier_from_A"]
    assert is_of(record, job)
    assert differences(record, job.model_copy(update={"guinier_from_A": 12.0})) == (["guinier_from_A"], [])
    assert not is_of({"job": "postprocess"}, job)


def test_iterations_go_on_or_are_done_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(base.JOBS, "halving", "tests.toys.halving:Halving")

    def job(**values: Any) -> Job:
        return base.find_job("halving")(out=str(tmp_path / "out"), **values)

    def run(**values: Any) -> bool:
        return bool(run_job(job(**values), lambda gpus: SerialExecutor(), replaces=True).timings())

    assert run(max_iterations=2)
    assert run(max_iterations=3)
    assert read_attributes(str(tmp_path / "out"), "iterations/001") is not None
    assert run(max_iterations=25)
    assert change_of(job(max_iterations=30)).status == "unchanged"  # it has converged
    assert not run(max_iterations=30)
    assert change_of(job(largest=50.0, max_iterations=30)).replaces
    assert run(largest=50.0, max_iterations=30)
    assert not run(largest=50.0, max_iterations=30)


WRONG_KINDS: dict[str, tuple[list[dict[str, Any]], str]] = {
    "made": (
        [SIMULATE, {"job": "mask", "map": "sim/particles.zarr", "out": "m.mrc"}],
        r"step mask: MAP: .*zarr is made by step sim and holds particles; mask needs a map or half-maps there",
    ),
    "not made": (
        [SIMULATE, {**RECONSTRUCT, "particles": "sim/p.zarr"}],
        r"--particles is .*sim/p\.zarr, which step sim does not make; it makes .*particles\.zarr \(particles\)",
    ),
    "a store that is there": (
        [{"job": "postprocess", "halves": "p.zarr"}],
        "halves: .*p.zarr holds particles; postprocess needs half-maps there",
    ),
    "a result that is there": (
        [{"job": "reconstruct", "particles": "sharp"}],
        "sharp holds a map, a mask and curves; reconstruct needs particles there",
    ),
    "sharpened halves": (
        [{"job": "postprocess", "halves": "x.mrc"}, {"job": "postprocess", "name": "again", "halves": "postprocess"}],
        "made by step postprocess and holds a map, a mask and curves; postprocess needs half-maps there",
    ),
}


@pytest.mark.parametrize("case", WRONG_KINDS)
def test_kinds_are_checked_before_anything_runs(case: str, tmp_path: Path) -> None:
    folder = project(str(tmp_path))
    write_group(f"{folder}/sharp", "", {}, {"kind": "result", "job": "postprocess"})
    write_volume(f"{folder}/x.mrc", BALL, PIXEL)
    steps, message = WRONG_KINDS[case]
    steps = [{**step, "half2": "start.mrc"} if step.get("halves") == "x.mrc" else step for step in steps]
    with pytest.raises(ParameterError, match=message):
        preflight(flow(folder, *steps))
    assert kinds_at(f"{folder}/start.mrc") == kinds_at(f"{folder}/nowhere") == ()


def test_results_are_maps_and_masks_too(tmp_path: Path) -> None:
    folder = project(str(tmp_path))
    arrays = {"map": BALL.astype(np.float32), "mask": BALL.astype(np.float32)}
    write_group(f"{folder}/sharp", "", {}, {"kind": "result", "job": "postprocess"})
    write_group(f"{folder}/sharp", "result", arrays, {"pixel_size_A": PIXEL, "box": 16})
    refine = {"job": "refine3d", "particles": "p.zarr", "reference": "sharp", "mask": "sharp", "diameter_A": 60}
    preflight(flow(folder, refine))
    masks = [{"job": "mask", "map": name, "out": f"of-{name}"} for name in ("sharp", "start.mrc")]
    masks[0]["out"] += ".mrc"
    assert run_all(flow(folder, *masks)) == ["mask", "mask-2"]
    assert (read_volume(f"{folder}/of-sharp.mrc").data == read_volume(f"{folder}/of-start.mrc").data).all()


def test_the_graph_fits_and_says_what_comes_from_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = "/data/" + "a-long-folder/" * 4 + "project"
    print_graph(preflight(workflow_of({"project": folder, "step": [*STEPS, {"job": "report", "out": "sim"}]}, "all")))
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert max(map(len, lines[1:])) <= 100
    at = lines.index("● mask  run")
    assert lines[at + 1].split() == ["←", "reconstruct", "from", "reconstruct"]
    assert lines[at + 2].split() == ["→", "mask.mrc", "a", "mask"]
    assert "  →  reconstruct         to mask, export: particles, half-maps, a map, a mask and curves" in lines
