"""What jobs would refuse is refused by every door: plan, dry runs, submit, and the run itself; and nothing else is."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cloudem.cli import main
from cloudem.errors import CloudemError, MissingInputError, OutputExistsError, ParameterError
from cloudem.io.formats.mrc_writer import write_stack, write_volume
from cloudem.io.formats.star import write_star
from cloudem.io.particle_store import write_particles
from cloudem.io.storage.groups import write_group
from cloudem.jobs.base import Inputs, find_job
from cloudem.model.optics import OpticsGroup
from cloudem.model.particles import TEXT, Particles
from cloudem.runs import preflight as module
from cloudem.runs.preflight import preflight, preflight_of_rest
from cloudem.runs.records import RunRecord, RunStore, wishes_of
from cloudem.runs.workflow import Step, Workflow, workflow_of

BOX, PIXEL, COUNT = 16, 5.0, 8
OPTICS = OpticsGroup("one", 300.0, 2.7e7, 0.1)
BALL = np.linalg.norm(np.indices((BOX,) * 3) - BOX // 2, axis=0) < 5


def table(optics: OpticsGroup = OPTICS, **columns: Any) -> Particles:
    zeros = np.zeros(COUNT)
    given = dict.fromkeys(("rot", "tilt", "psi", "defocus_angle"), zeros)
    return Particles((optics,), {**given, "defocus_u": zeros + 1e4, "defocus_v": zeros + 1e4, **columns})


def project(folder: str, particles: Particles | None = None) -> str:
    """Make a project with particles and maps, in a folder or on S3."""
    images = np.random.default_rng(0).normal(size=(COUNT, BOX, BOX)).astype(np.float32)
    write_particles(f"{folder}/p.zarr", particles or table(), [images], box=BOX, pixel_size=PIXEL)
    for name in ("start", "run_half1", "run_half2"):
        write_volume(f"{folder}/{name}.mrc", BALL, PIXEL)
    write_volume(f"{folder}/coarse.mrc", BALL[::2, ::2, ::2], 2 * PIXEL)
    write_volume(f"{folder}/tiny.mrc", BALL[4:12, 4:12, 4:12], PIXEL)
    return folder


REFINE = {"job": "refine3d", "particles": "p.zarr", "reference": "start.mrc", "diameter_A": 60}


def flow(folder: str, *steps: dict[str, Any]) -> Any:
    return workflow_of({"project": folder, "step": list(steps)}, "test")


WRONG_TABLES = {
    "premultiplied": (table(replace(OPTICS, extra={"rlnCtfDataAreCtfPremultiplied": "1"})), "hold their CTF already"),
    "contrast": (table(replace(OPTICS, amplitude_contrast=7.0)), "amplitude contrast of 7"),
    "one half": (table(half_set=np.ones(COUNT, np.int8)), "half-set 2 is empty"),
    "no voltage": (table(replace(OPTICS, voltage=0.0)), "voltage of 0 kV"),
    "NaN": (table(defocus_u=np.full(COUNT, np.nan)), "defocus_u is not a number"),
    "no CTF": (table().without_columns(["defocus_u"]), "no column defocus_u"),
}


@pytest.mark.parametrize("case", WRONG_TABLES)
def test_tables_that_cannot_be_used(case: str, tmp_path: Path) -> None:
    particles, message = WRONG_TABLES[case]
    folder = project(str(tmp_path), particles)
    for job in (REFINE, {"job": "reconstruct", "particles": "p.zarr"}):
        with pytest.raises(CloudemError, match=f"step {job['job']}: .*{message}"):
            preflight(flow(folder, job))


def truncated(folder: str) -> None:
    header = Path(folder, "start.mrc").read_bytes()
    Path(folder, "start.mrc").write_bytes(header[:2000])


def patched(offset: int, value: bytes) -> Callable[[str], None]:
    def change(folder: str) -> None:
        raw = bytearray(Path(folder, "start.mrc").read_bytes())
        raw[offset : offset + len(value)] = value
        Path(folder, "start.mrc").write_bytes(raw)

    return change


def nothing(folder: str) -> None:
    pass


def result_of_other(folder: str) -> None:
    parameters = {**find_job("refine3d")(**{k: v for k, v in REFINE.items() if k != "job"}, out="x").model_dump()}
    record = {"job": "refine3d", "parameters": {**parameters, "diameter_A": 50}}
    write_group(f"{folder}/out", "", {}, record)
    write_group(f"{folder}/out", "result", {}, {})


def lost_shard(folder: str) -> None:
    next(path for path in Path(folder, "p.zarr/images/c").rglob("*") if path.is_file()).unlink()


HALVES = {"job": "postprocess", "halves": "run_half1.mrc"}
WRONG: dict[str, tuple[Callable[[str], None], dict[str, Any], str]] = {
    "no cube": (patched(8, (BOX // 2).to_bytes(4, "little")), REFINE, "a cube is needed"),
    "no pixel size": (patched(40, bytes(12)), REFINE, "states no pixel size"),
    "truncated": (truncated, REFINE, "is truncated"),
    "no map": (nothing, {**REFINE, "reference": "p.zarr/zarr.json"}, "MRC"),
    "reference too small": (
        nothing,
        {**REFINE, "reference": "tiny.mrc"},
        "smaller than the particle of --diameter-A 60",
    ),
    "missing mask": (nothing, {**REFINE, "mask": "none.mrc"}, "none.mrc does not exist"),
    "diameter": (nothing, {**REFINE, "diameter_A": 90}, "does not fit in the images"),
    "group": (nothing, {**REFINE, "symmetry": "Q4"}, "Q4"),
    "other results": (result_of_other, {**REFINE, "out": "out"}, "contains this job with another .*--diameter-A;"),
    "lost shard": (lost_shard, REFINE, "no shard can be read"),
    "no particles": (nothing, {"job": "reconstruct", "particles": "start.mrc"}, "is a file, where a particle store"),
    "results": (
        result_of_other,
        {"job": "reconstruct", "particles": "p.zarr", "out": "out"},
        "already contains results",
    ),
    "other half": (nothing, {**HALVES, "half2": "coarse.mrc"}, "give the two half-maps of one reconstruction"),
    "no half": (nothing, {**HALVES, "halves": "start.mrc"}, "does not have half1 in its name"),
    "mask is there": (
        nothing,
        {"job": "mask", "map": "start.mrc", "out": "tiny.mrc"},
        "already exists; choose another name",
    ),
    "no mask": (nothing, {"job": "mask", "map": "start.mrc", "out": "mask"}, "ends in .mrc"),
    "nothing to export": (nothing, {"job": "export", "source": "none", "out": "files"}, "none does not exist"),
    "is there": (nothing, {"job": "export", "source": "p.zarr", "out": "p.zarr"}, "exists already"),
    "no result": (nothing, {"job": "report", "out": "none"}, "no finished result"),
    "no density": (nothing, {"job": "simulate", "density": "none.mrc", "out": "s"}, "none.mrc does not exist"),
    "no table": (nothing, {"job": "import", "particles": "none.star", "out": "new.zarr"}, "none.star does not exist"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_a_job_refuses_is_known_before_it_runs(case: str, tmp_path: Path) -> None:
    change, step, message = WRONG[case]
    folder = project(str(tmp_path))
    change(folder)
    with pytest.raises(CloudemError, match=message):
        preflight(flow(folder, step), replaces=False)


def test_remote_inputs_are_looked_at_too(s3: Any) -> None:
    folder = project(f"s3://{s3.bucket()}/project", WRONG_TABLES["one half"][0])
    with pytest.raises(ParameterError, match="half-set 2 is empty"):
        preflight(flow(folder, REFINE), planning=True)
    mask = {"job": "mask", "map": "start.mrc", "out": "tiny.mrc"}
    with pytest.raises(OutputExistsError, match="already exists; choose another name"):
        preflight(flow(folder, mask))


def test_storage_that_cannot_be_reached_is_said_in_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "contents", lambda url: (_ for _ in ()).throw(module.StorageError(f"{url}: refused")))
    found = preflight(flow("s3://bucket/project", REFINE), planning=True)
    assert found.lines == ["inputs were not checked: s3://bucket/project: refused"]


def test_what_steps_before_make_need_not_be_there(tmp_path: Path) -> None:
    folder = str(tmp_path)
    steps: list[dict[str, Any]] = [
        {"job": "simulate", "demo": True, "out": "sim"},
        {**REFINE, "particles": "sim/particles.zarr", "reference": "sim/start.mrc", "out": "refine"},
        {"job": "mask", "map": "refine", "out": "mask.mrc"},
        {"job": "postprocess", "halves": "refine", "mask": "mask.mrc"},
        {"job": "reconstruct", "particles": "sim/particles.zarr", "mask": "mask.mrc"},
        {"job": "report", "out": "refine"},
        {"job": "export", "source": "refine", "out": "files"},
    ]
    assert preflight(flow(folder, *steps)).lines == []
    with pytest.raises(MissingInputError, match=r"step refine3d: .*sim/particles\.zarr does not exist"):
        preflight(flow(folder, *steps[1:]))
    with pytest.raises(ParameterError, match="as of a step before; give each its own"):
        preflight(flow(folder, *steps[:2], {**steps[4], "out": "refine"}))
    preflight(flow(folder, {"job": "reconstruct", "particles": "later.zarr"}), described=True)


def test_jobs_of_a_file_are_all_checked_before_the_first_begins(tmp_path: Path) -> None:
    out = tmp_path / "sim"
    simulate = find_job("simulate")(demo=True, out=str(out))
    reconstruct = find_job("reconstruct")(particles=f"{out}/particles.zarr", out=str(tmp_path / "r"), mask="none.mrc")
    with pytest.raises(MissingInputError, match=r"step reconstruct: .*none\.mrc does not exist"):
        preflight(Workflow("", "both", "", (Step("simulate", simulate), Step("reconstruct", reconstruct))))


@pytest.mark.parametrize("door", ["plan", "submit", "job"])
def test_every_door_refuses(door: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = project(str(tmp_path), WRONG_TABLES["contrast"][0])
    lines = [f"project = {json.dumps(folder)}", "[[step]]", *(f"{k} = {json.dumps(v)}" for k, v in REFINE.items())]
    file = tmp_path / "w.toml"
    file.write_text("\n".join(lines))
    job = ["refine3d", "--particles", f"{folder}/p.zarr", "--reference", f"{folder}/start.mrc", "--diameter-A", "60"]
    given = {
        "plan": ["plan", str(file), "--region", "local"],
        "submit": ["submit", str(file), "--region", "local", "--dry-run"],
        "job": [*job, "--out", f"{folder}/out", "--dry-run"],
    }
    with pytest.raises(SystemExit) as end:
        main(given[door])
    assert end.value.code == 1
    assert "amplitude contrast of 7" in capsys.readouterr().err
    assert not Path(folder, "out").exists()


def test_an_import_says_what_later_jobs_will_refuse(tmp_path: Path) -> None:
    write_stack(tmp_path / "p.mrcs", [np.random.default_rng(0).normal(size=(4, BOX, BOX))], 4, PIXEL)
    rows = {
        "rlnImageName": [f"{n + 1}@p.mrcs" for n in range(4)],
        **{f"rlnDefocus{name}": ["10000"] * 4 for name in ("U", "V", "Angle")},
        "rlnVoltage": ["300"] * 4,
        "rlnSphericalAberration": ["2.7"] * 4,
        "rlnAmplitudeContrast": ["0.1"] * 4,
        "rlnRandomSubset": ["1"] * 4,
    }
    write_star(tmp_path / "p.star", {"": {name: np.array(values, TEXT) for name, values in rows.items()}})
    job = find_job("import")(particles=str(tmp_path / "p.star"), out=str(tmp_path / "p.zarr"), pixel_size_A=PIXEL)
    (said,) = job.preflight().warnings
    assert said.startswith("refine3d and reconstruct will refuse these particles: half-set 2 is empty")


def test_a_run_that_goes_on_is_not_kept_from_it_by_its_own_results(tmp_path: Path) -> None:
    folder = project(str(tmp_path))
    steps = [s.job for s in flow(folder, {"job": "mask", "map": "start.mrc", "out": "tiny.mrc"}, REFINE).steps]
    store = RunStore.of(folder, "run-20261121-061300")
    written = tuple({"job": job.name, **job.model_dump(mode="json")} for job in steps)
    record = {"owner": "me", "provider": "local", "region": "local", "plan": {}, "version": "0"}
    store.create(
        RunRecord(name="run-20261121-061300", created=0.0, steps=written, **record), wishes_of(max_usd=1, deadline=9)
    )
    assert preflight_of_rest(store).lines == []
    Path(folder, "start.mrc").unlink()
    store.finish(0, {})
    with pytest.raises(MissingInputError, match=r"step 1-refine3d: .*start\.mrc does not exist"):
        preflight_of_rest(store)


def test_what_is_awaited() -> None:
    inputs = Inputs(("/a/sim",))
    assert inputs.awaited("/a/sim")
    assert inputs.awaited("/a/sim/start.mrc")
    assert not inputs.awaited("/a/similar")
