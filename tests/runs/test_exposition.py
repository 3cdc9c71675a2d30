"""A project as Prometheus reads it: the figures of jobs and runs, and labels that cannot count up."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from cloudem.cloud.money import account
from cloudem.execution.executor import SerialExecutor
from cloudem.io.storage.location import join, write_bytes
from cloudem.jobs.base import Job
from cloudem.jobs.live import LIVE_FILE, read_live
from cloudem.jobs.progress import Progress, RunningStage
from cloudem.jobs.refine3d.job import Refine3D
from cloudem.jobs.runner import run_job
from cloudem.model.columns import Value
from cloudem.runs.exposition import (
    MOST_JOBS,
    Disk,
    JobFigures,
    RunFigures,
    disk_of,
    exposition,
    job_figures,
    poses_kept,
    run_figures,
    scrape,
)
from cloudem.traffic import Traffic
from tests.jobs.conftest import Scene, make_scene
from tests.runs.test_controller import World

Samples = Mapping[tuple[str, tuple[tuple[str, str], ...]], float]


def samples(text: bytes) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def of(found: Samples, name: str, **labels: str) -> float:
    return found[name, tuple(sorted(labels.items()))]


@dataclasses.dataclass(frozen=True)
class Stage:
    name: str
    wall_s: float
    done: int


@dataclasses.dataclass(frozen=True)
class View:
    """What a job says of itself."""

    state: str = "running"
    updated: float = 1.8e9
    stage: str = ""
    done: int = 0
    total: int | None = None
    stage_s: float = 0.0
    timings: tuple[Stage, ...] = ()
    moved: Mapping[str, Traffic] = dataclasses.field(default_factory=dict)
    resolution_A: float | None = None


def test_a_running_stage_counts_with_what_it_has_done() -> None:
    timings = (Stage("align", 10.0, 300), Stage("solve", 2.0, 0))
    aligning = View(stage="align", done=40, total=300, stage_s=1.5, timings=timings)
    found = job_figures(aligning)
    assert (found.images, found.seconds, found.waiting) == (340, {"align": 11.5, "solve": 2.0}, {"align": 260})
    assert job_figures(View(stage="solve", stage_s=1.0, timings=timings)).images == 300
    over = job_figures(dataclasses.replace(aligning, state="failed"))  # what ran then is not known to be done
    assert (over.images, over.waiting, over.seconds["align"]) == (300, {}, 10.0)


def figures(updated: float = 1.0, resolution: float | None = 3.1) -> JobFigures:
    return JobFigures("running", updated, resolution, 7, 9, {"images": 5}, {"images": 6}, {"align": 1.5}, {"align": 2})


def test_every_figure_is_there_under_its_name() -> None:
    runs = {"apo-1": RunFigures(True, False, 5.0, 4.2, 10.0, 1.5, 2, 3)}
    found = samples(exposition({"refine": figures()}, runs, Disk(1000, 250)))
    job = {"job": "refine"}
    assert of(found, "cloudem_job_running", **job) == 1
    assert of(found, "cloudem_job_failed", **job) == 0
    assert of(found, "cloudem_job_images_aligned_total", **job) == 7
    assert of(found, "cloudem_job_poses", **job) == 9
    assert of(found, "cloudem_job_resolution_angstroms", **job) == 3.1
    assert of(found, "cloudem_job_bytes_received_total", **job, purpose="images") == 5
    assert of(found, "cloudem_job_bytes_sent_total", **job, purpose="images") == 6
    assert of(found, "cloudem_job_step_seconds_total", **job, step="align") == 1.5
    assert of(found, "cloudem_job_items_waiting", **job, step="align") == 2
    values = {"spent_usd": 4.2, "cap_usd": 10.0, "usd_per_hour": 1.5, "workers": 2, "nodes_lost_total": 3, "running": 1}
    for name, value in values.items():
        assert of(found, f"cloudem_run_{name}", job="apo-1") == value
    assert of(found, "cloudem_project_disk_free_bytes") == 250
    assert of(found, "cloudem_project_disk_size_bytes") == 1000
    assert {name for _, labels in found for name, _ in labels} == {"job", "step", "purpose"}


def test_what_is_not_known_is_not_said() -> None:
    found = samples(exposition({"mask": JobFigures("finished", 5.0)}))
    told = ("running", "failed", "updated_timestamp_seconds")
    assert {name for name, _ in found} == {f"cloudem_job_{each}" for each in told}
    assert samples(exposition({})) == {}


@given(st.dictionaries(st.text(max_size=8), st.floats(0, 1e10), max_size=4), st.text(max_size=6))
def test_any_name_comes_back_as_it_is(names: dict[str, float], purpose: str) -> None:
    jobs = {name: figures(at)._replace(received={purpose: 1}) for name, at in names.items()}
    found = samples(exposition(jobs))
    assert {dict(labels)["job"] for name, labels in found} == names.keys()
    for name, at in names.items():
        assert of(found, "cloudem_job_updated_timestamp_seconds", job=name) == at
        assert of(found, "cloudem_job_bytes_received_total", job=name, purpose=purpose) == 1


def test_of_many_jobs_the_newest_are_shown_and_nothing_is_kept() -> None:
    before = list(REGISTRY.collect())
    found = samples(exposition({f"j{n}": figures(float(n)) for n in range(MOST_JOBS + 50)}))
    shown = {dict(labels)["job"] for _, labels in found}
    assert shown == {f"j{n}" for n in range(50, MOST_JOBS + 50)}
    assert {each.name for each in before} == {each.name for each in REGISTRY.collect()}


def test_the_disk_of_a_folder_and_of_a_bucket(tmp_path: Path) -> None:
    found = disk_of(str(tmp_path))
    assert found is not None
    assert 0 < found.free <= found.size
    assert disk_of("s3://bucket/project") is None
    assert disk_of(str(tmp_path / "none")) is None


# --- what really ran --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return make_scene(tmp_path_factory.mktemp("scene"), count=200)


class Watched(Progress):
    """Keeps the stage that runs, and shows nothing."""

    stage_now: RunningStage | None = None

    def show_facts(self, facts: Mapping[str, str]) -> None:
        pass

    def show_stage(self, stage: RunningStage) -> None:
        self.stage_now = stage

    def show_advance(self, stage: RunningStage) -> None:
        pass

    def show_end(self, stage: RunningStage) -> None:
        self.stage_now = None

    def show_iteration(self, row: Mapping[str, Value]) -> None:
        pass


def view_of(progress: Watched, state: str = "finished") -> View:
    rows, timings, now = progress.iterations(), progress.timings(), progress.stage_now
    seen = View(
        state=state,
        timings=tuple(Stage(each.name, each.wall_s, each.done) for each in timings),
        moved=progress.moved(),
        resolution_A=float(rows[-1]["resolution_A"]) if rows else None,
    )
    if now is None:
        return seen
    return dataclasses.replace(seen, stage=now.name, done=now.done, total=now.total, stage_s=now.elapsed)


def watched(job: Job, progress: Watched) -> None:
    """Run a job, watched."""
    run_job(job, lambda _: SerialExecutor(), lambda log: contextlib.nullcontext(progress))


def test_a_refinement_is_told_as_its_log_has_it(scene: Scene, tmp_path: Path) -> None:
    job = Refine3D(**scene.refinement(tmp_path / "out", max_iterations=2, max_resolution_A=14.0, report=False))
    progress = Watched()
    watched(job, progress)
    rows = progress.iterations()
    poses = poses_kept(job.out)
    assert poses is not None
    assert poses >= 200
    found = samples(exposition({"out": job_figures(view_of(progress), poses)}))
    assert of(found, "cloudem_job_images_aligned_total", job="out") == 200 * len(rows)
    assert of(found, "cloudem_job_resolution_angstroms", job="out") == rows[-1]["resolution_A"]
    aligned_s = of(found, "cloudem_job_step_seconds_total", job="out", step="align")
    assert aligned_s == pytest.approx(sum(200 / float(row["images_per_s"]) for row in rows), rel=0.1, abs=0.2)
    for purpose, moved in progress.moved().items():
        assert of(found, "cloudem_job_bytes_received_total", job="out", purpose=purpose) == moved.received
    assert poses_kept(str(tmp_path / "none")) is None


def run_with_a_loss(world: World) -> RunFigures:
    """Return the figures of a run that lost a node and goes on."""
    controller = world.controller()
    world.tick(controller, 30)
    world.provider.terminate([world.alive()[0]])
    world.tick(controller, 120)
    found = run_figures(world.store)
    assert found is not None
    return found


def test_a_run_is_told_as_its_ledger_has_it(tmp_path: Path) -> None:
    world = World(tmp_path)
    assert run_figures(world.store) is None
    figures = run_with_a_loss(world)
    found = samples(exposition({}, {"apo": figures}))
    spent = account(world.store.ledger(), figures.updated)
    assert of(found, "cloudem_run_spent_usd", job="apo") == pytest.approx(spent.total, abs=1e-9)
    assert of(found, "cloudem_run_usd_per_hour", job="apo") == pytest.approx(spent.rate_per_hour)
    assert of(found, "cloudem_run_cap_usd", job="apo") == 5.0
    assert of(found, "cloudem_run_nodes_lost_total", job="apo") == 1
    assert of(found, "cloudem_run_workers", job="apo") == len(world.alive()) == 2


def test_a_project_is_scraped_while_its_job_runs_and_when_it_has_ended(scene: Scene, tmp_path: Path) -> None:
    project = tmp_path / "project"
    job = Refine3D(**scene.refinement(project / "refine", max_iterations=2, max_resolution_A=14.0, report=False))
    world = World(project)
    run_with_a_loss(world)
    watched(job, progress := Watched())
    found = samples(scrape(str(project)))
    rows = progress.iterations()
    assert of(found, "cloudem_job_running", job="refine") == 0
    assert of(found, "cloudem_job_images_aligned_total", job="refine") == 200 * len(rows)
    assert of(found, "cloudem_job_resolution_angstroms", job="refine") == rows[-1]["resolution_A"]
    name = world.store.record().name
    assert of(found, "cloudem_run_nodes_lost_total", job=name) == 1
    assert of(found, "cloudem_run_running", job=name) == 1
    assert of(found, "cloudem_project_disk_size_bytes") > 0
    live = read_live(job.out)
    assert live is not None
    again = live.model_copy(update={"state": "running", "stage": "align", "done": 50, "total": 200})
    write_bytes(join(job.out, LIVE_FILE), again.model_dump_json().encode())
    found = samples(scrape(str(project)))
    assert of(found, "cloudem_job_images_aligned_total", job="refine") == 200 * len(rows) + 50
    assert of(found, "cloudem_job_items_waiting", job="refine", step="align") == 150
    assert of(found, "cloudem_job_poses", job="refine") >= 200
