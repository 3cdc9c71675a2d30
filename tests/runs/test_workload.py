"""Estimates against runs that were measured, laws of the model, workflow files, the pilot and the command."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from cloudem.cli.commands import DeclaredCommand
from cloudem.cli.plan import PlanCommand
from cloudem.cloud.nodes import InstanceType
from cloudem.cloud.planning.calibration import SpeedRow, keep, speeds
from cloudem.cloud.planning.capacity import HOST_BYTES, FleetCapacity, fleet_capacity
from cloudem.cloud.planning.estimate import Duration, Fleet, Refusal
from cloudem.cloud.planning.plan import Plan
from cloudem.cloud.planning.work import Size, Work
from cloudem.errors import MissingInputError, ParameterError
from cloudem.execution.executor import SerialExecutor
from cloudem.io.formats.mrc_writer import write_stack
from cloudem.io.formats.star import write_star
from cloudem.jobs.base import Context
from cloudem.jobs.progress import SilentProgress
from cloudem.jobs.refine3d.duration import Alignment, Correction, alignment_work, estimate, packing_seconds
from cloudem.jobs.refine3d.job import Refine3D
from cloudem.jobs.simulate import Simulate
from cloudem.jobs.subtracted import subtracting_seconds
from cloudem.model.particles import TEXT
from cloudem.runs.pilot import pilot_of
from cloudem.runs.preflight import preflight
from cloudem.runs.workflow import Workflow, places, read_workflow
from cloudem.runs.workload import Given, step_estimates

REFERENCE = InstanceType("reference.2", 2, 2, 24.0, network_Gbps=10.0)
CPU = InstanceType("c7a.16xlarge", 64, 64, 128.0, network_Gbps=25.0)
GPU = InstanceType("g6.4xlarge", 16, 8, 64.0, "L4", 1, 22.35, 10.0)

# box, length of the box in Å, diameter, start resolution, symmetry, particles, wall seconds (docs/benchmarks.md)
MEASURED = [
    (64, 240.0, 180.0, 0.0, "C1", 1250, 18.0),
    (64, 240.0, 180.0, 0.0, "C1", 2500, 28.0),
    (64, 240.0, 180.0, 0.0, "C1", 5000, 40.0),
    (64, 240.0, 180.0, 0.0, "C1", 10000, 71.0),
    (96, 240.0, 180.0, 0.0, "C1", 1250, 23.0),
    (128, 240.0, 180.0, 0.0, "C1", 1250, 28.0),
    (192, 240.0, 180.0, 0.0, "C1", 1250, 64.0),
    (96, 358.4, 320.0, 0.0, "C1", 2000, 22.0),
    (128, 358.4, 320.0, 0.0, "C1", 5000, 45.0),
    (64, 185.6, 140.0, 20.0, "O", 2554, 30.0),
]


def work(
    count: int, box: int, length: float = 0.0, diameter: float = 0.0, start: float = 0.0, sym: str = "C1"
) -> Alignment:
    length = length or 1.0 * box
    job = Refine3D(
        particles="/p.zarr", reference="/r.mrc", out="/o", symmetry=sym, initial_resolution_A=start,
        diameter_A=diameter or 0.6 * length,
    )  # fmt: skip
    return job.alignment(Size(count, (box, box), length / box))


def on(fleet: Fleet, task: Alignment) -> Duration | Refusal:
    crew = fleet_capacity(fleet, alignment_work(task), speeds())
    return crew if isinstance(crew, Refusal) else estimate(task, crew)


def surely(fleet: Fleet, task: Alignment) -> Duration:
    found = on(fleet, task)
    assert isinstance(found, Duration)
    return found


@pytest.mark.parametrize(("box", "length", "diameter", "start", "symmetry", "count", "wall"), MEASURED)
def test_measured_refinements_lie_in_the_range(box, length, diameter, start, symmetry, count, wall) -> None:
    found = surely(Fleet(REFERENCE, 1), work(count, box, length, diameter, start, symmetry))
    assert found.seconds.holds(wall)
    assert found.seconds.expected == pytest.approx(wall, rel=0.4)
    assert found.seconds.high < 7 * found.seconds.low
    assert found.measured
    assert sum(found.parts.values()) == pytest.approx(found.seconds.expected)


def test_the_late_iteration_of_a_million_particles_costs_what_the_documented_model_says() -> None:
    """docs/scaling.md: 79 and 90 ms for a particle of 512 px, scored to 0.7 Nyquist."""
    from cloudem.jobs.refine3d import cost

    plan, _ = cost.iterations_of(work(1_000_000, 512).settings, cost.Convergence(9, 0.7, ()), local=True)[-1]  # type: ignore[arg-type]
    assert plan.k_insert == 255
    assert 1e6 * cost.local_seconds(plan) == pytest.approx(84_000, rel=0.02)


def test_images_that_are_cut_to_a_window_are_read_and_projected_whole() -> None:
    """Aligning becomes cheaper; reading, and making the projection that is subtracted, do not."""

    def planned(window: int, subtracted: bool) -> Work:
        job = Refine3D(particles="/p", reference="/r", out="/o", diameter_A=60.0, local=True, window_px=window)
        return job.work({"particles": Size(10_000, (128, 128), 1.0, True, subtracted)})

    whole, cut, less = planned(0, False), planned(64, False), planned(64, True)
    assert cut.stages[0].cpu_s < whole.stages[0].cpu_s / 2
    assert cut.stages[0].read_bytes == whole.stages[0].read_bytes
    assert less.stages[0].cpu_s - cut.stages[0].cpu_s == pytest.approx(subtracting_seconds(less.makes[""]), rel=1e-6)
    assert less.makes[""].shape == (128, 128)
    assert cut.stored_bytes == whole.stored_bytes
    assert whole.memory(1) > less.memory(1) > cut.memory(1)


@given(st.integers(1000, 10**6), st.sampled_from([64, 128, 256]), st.sampled_from([1, 2, 4, 16, 64]))
def test_machines_never_give_more_than_their_number(count, box, machines) -> None:
    task = work(count, box)
    one, many = surely(Fleet(CPU, 1), task), surely(Fleet(CPU, machines), task)
    assert one.seconds.expected / many.seconds.expected <= machines * 1.001
    assert many.seconds.low <= many.seconds.expected <= many.seconds.high
    assert surely(Fleet(CPU, machines), replace(task, count=2 * count)).seconds.expected >= many.seconds.expected * 0.99


def test_scaling_is_sublinear_and_its_end_is_named() -> None:
    task = work(1_000_000, 256)
    times = [surely(Fleet(CPU, n), task) for n in (1, 4, 64)]
    assert times[0].bottleneck == "aligning (CPU)"
    assert times[0].seconds.expected > 2 * times[1].seconds.expected
    assert times[1].seconds.expected < 16 * times[2].seconds.expected
    assert times[2].bottleneck == "too few tasks for so many threads"
    assert times[2].parts["merging"] > times[0].parts["merging"]


def test_gpu_speeds_were_not_measured_and_have_wide_ranges() -> None:
    task = work(1_000_000, 256)
    found = surely(Fleet(GPU, 1), task)
    assert not found.measured
    assert found.bottleneck == "aligning (GPU)"
    assert found.seconds.high > 3 * found.seconds.expected
    assert 1 < found.gpu_GiB < GPU.gpu_memory_GiB
    assert on(Fleet(CPU, 1), task).gpu_GiB == 0  # type: ignore[union-attr]


def test_too_little_memory_is_refused_and_little_memory_limits_the_tasks() -> None:
    small = on(Fleet(InstanceType("c7a.xlarge", 4, 4, 8.0), 1), work(10**6, 512))
    assert isinstance(small, Refusal)
    assert small.reason.startswith("too little memory: ")
    assert 1 <= surely(Fleet(CPU, 1), work(10**6, 512)).tasks < CPU.vcpus
    assert surely(Fleet(CPU, 1), work(10**5, 128)).tasks == CPU.vcpus
    tiny = replace(GPU, gpu_memory_GiB=4.0, memory_GiB=512.0)
    refused = on(Fleet(tiny, 1), work(10**5, 512))
    assert isinstance(refused, Refusal)
    assert refused.reason.startswith("too little GPU memory: ")
    needed = surely(Fleet(replace(tiny, gpu_memory_GiB=80.0), 1), work(10**5, 512))
    assert 10 < needed.gpu_GiB < 80


GPUS = InstanceType("g5.48xlarge", 192, 96, 768.0, "A10G", 8, 22.35, 100.0)


@given(
    st.integers(500, 10**6),
    st.sampled_from([64, 128, 256, 384]),
    st.sampled_from([2, 4, 8]),
    st.sampled_from([1, 4]),
    st.booleans(),
)
def test_all_gpus_of_a_machine_are_faster_and_so_never_dearer_than_one_of_them(count, box, gpus, machines, remote):
    if machines > 1:
        count += 100_000  # fewer leave several machines without work
    task = replace(work(count, box), remote=remote)
    many = surely(Fleet(replace(GPUS, gpus=gpus), machines), task)
    one = surely(Fleet(replace(GPUS, gpus=1), machines), task)
    assert many.seconds.expected < one.seconds.expected  # at the same price per hour
    assert one.seconds.expected <= gpus * many.seconds.expected
    assert (many.tasks, one.tasks) == (gpus, 1)
    assert many.memory_GiB == pytest.approx(gpus * one.memory_GiB)
    assert many.gpu_GiB == one.gpu_GiB


def test_eight_gpus_align_eight_times_as_fast_and_share_processor_and_link() -> None:
    task = replace(work(1_000_000, 256), remote=True)
    many, one = (surely(Fleet(replace(GPUS, gpus=gpus), 1), task) for gpus in (8, 1))
    assert one.parts["aligning"] / many.parts["aligning"] == pytest.approx(8, rel=0.02)
    narrow = replace(GPUS, network_Gbps=2.5)
    many, one = (surely(Fleet(replace(narrow, gpus=gpus), 1), task) for gpus in (8, 1))
    images = 2 * 256**2 * 1e6
    link = 0.7 * 2.5e9 / 8
    assert many.parts["reading images"] + many.parts["aligning"] > images / link  # they read through one link
    spread = replace(GPUS, vcpus=8, cores=4)
    assert surely(Fleet(spread, 1), task).parts["aligning"] > surely(Fleet(GPUS, 1), task).parts["aligning"]


def test_on_a_gpu_an_accumulator_costs_bytes_and_the_less_the_more_symmetric_it_is() -> None:
    def packing(type: InstanceType, symmetry: str = "C1", k_insert: int = 255) -> float:
        task = work(10**5, 512, sym=symmetry)
        crew = fleet_capacity(Fleet(type, 1), alignment_work(task), speeds())
        assert isinstance(crew, FleetCapacity)
        return packing_seconds(task, crew, k_insert, 1)

    line = 1.41e9 / HOST_BYTES  # docs/accumulation.md
    assert line < packing(GPU) < 1.1 * line < packing(CPU) / 10
    assert packing(GPU) / packing(GPU, "D2") > 3
    assert packing(GPU) / packing(GPU, k_insert=127) == pytest.approx(8, rel=0.1)


def test_each_gpu_needs_memory_for_a_process_of_its_own() -> None:
    task = work(10**6, 512)
    each = surely(Fleet(replace(GPUS, gpus=1), 1), task).memory_GiB
    some = surely(Fleet(replace(GPUS, memory_GiB=3.5 * each / 0.95 + 0.4), 1), task)
    assert some.tasks == some.limit(GPUS) == 3
    assert some.memory_GiB == pytest.approx(3 * each)
    assert some.seconds.expected > surely(Fleet(GPUS, 1), task).seconds.expected
    assert surely(Fleet(GPUS, 1), task).limit(GPUS) == 0
    none = on(Fleet(replace(GPUS, memory_GiB=0.9 * each), 1), task)
    assert isinstance(none, Refusal)
    assert none.reason.startswith("too little memory: ")


def test_what_uses_no_gpu_has_a_task_on_each_thread_of_a_machine_with_gpus() -> None:
    found = surely(Fleet(GPUS, 1), replace(work(10**5, 128), settings=None))
    assert (found.gpu_GiB, found.tasks, found.limit(GPUS)) == (0, GPUS.vcpus, 0)


def test_a_pilot_scales_and_narrows_the_estimate() -> None:
    task = work(100_000, 128)
    before = surely(Fleet(CPU, 1), task)
    after = surely(Fleet(CPU, 1), replace(task, correction=Correction(2.0, 2.0, 1.1)))
    assert after.parts["aligning"] == pytest.approx(2 * before.parts["aligning"], rel=0.1)
    same = surely(Fleet(CPU, 1), replace(task, correction=Correction(spread=1.1)))
    assert same.seconds.high / same.seconds.low < before.seconds.high / before.seconds.low


def test_processes_of_this_machine_share_its_cores(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CLOUDEM_CACHE", str(tmp_path))
    keep(SpeedRow("x", 1.0, 1.0, 1.15, "measured", "2026-11-21", "test", cores=2))
    local = InstanceType("local.2", 2, 2, 4.0)
    one, four = (surely(Fleet(local, n), work(5000, 96)).parts["aligning"] for n in (1, 4))
    assert four > 0.9 * one


WORKFLOW = """\
project = "{project}"
name = "First map!"
region = "eu-central-1"

[[step]]
job = "simulate"
demo = true
box_px = 64
pixel_size_A = 4.0
count = 30000
out = "data"

[[step]]
job = "refine3d"
particles = "data/particles.zarr"
reference = "data/start.mrc"
diameter_A = 180
symmetry = "D2"

[[step]]
job = "postprocess"
name = "sharpen"
halves = "refine3d"
"""


def written(tmp_path: Path, text: str, name: str = "workflow.toml") -> str:
    path = tmp_path / name
    path.write_text(text)
    return str(path)


def test_a_workflow_file_means_places_inside_its_project(tmp_path) -> None:
    found = read_workflow(written(tmp_path, WORKFLOW.format(project="s3://some-bucket/prefix")))
    assert (found.project, found.name, found.region) == ("s3://some-bucket/prefix", "first-map", "eu-central-1")
    assert [step.name for step in found.steps] == ["simulate", "refine3d", "sharpen"]
    refine, sharpen = found.steps[1].job, found.steps[2].job
    assert refine.out == "s3://some-bucket/prefix/refine3d"
    assert refine.particles == "s3://some-bucket/prefix/data/particles.zarr"  # type: ignore[attr-defined]
    assert sharpen.halves == refine.out  # type: ignore[attr-defined]


def test_places_of_a_job_are_known() -> None:
    assert places(Refine3D) == {"out", "particles", "reference", "mask"}


def test_a_job_file_is_a_workflow_without_project(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    one = 'job = "refine3d"\nparticles = "p.zarr"\nreference = "r.mrc"\ndiameter_A = 100\nout = "o"\n'
    found = read_workflow(written(tmp_path, one, "My job.toml"))
    assert (found.project, found.name) == ("", "my-job")
    assert found.steps[0].job.out == str(tmp_path / "o")
    two = '[[job]]\nname = "simulate"\ndemo = true\nout = "a"\n[[job]]\nname = "simulate"\ndemo = true\nout = "b"\n'
    assert [step.name for step in read_workflow(written(tmp_path, two)).steps] == ["simulate", "simulate-2"]


IMPORT = "project = 's3://some-bucket/p'\n[[step]]\njob = 'import'\nout = 'p.zarr'\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("project = 3\n[[step]]\njob = 'refine3d'", "project: got 3"),
        ("[[step]]\njob = 'refine3d'", "no project is set"),
        ("project = 's3://some-bucket/p'", "there is no step"),
        ("project = 's3://some-bucket/p'\nstep = [3]", "there is no step"),
        ("project = 's3://some-bucket/p'\ncolour = 1\n[[step]]\njob = 'mask'", "got colour at the top"),
        ("project = 's3://some-bucket/p'\n[[step]]\nout = 'x'", "step 1 names no job"),
        ("project = 's3://some-bucket/p'\n[[step]]\njob = 'refine4d'", "there is no job 'refine4d'"),
        ("project = 's3://some-bucket/p'\n[[step]]\njob = 'refine3d'\nname = 'a'", "step 1, a: refine3d needs"),
        ("project = 's3://some-bucket/p'\n[[step]]\njob = 'export'\nsource = '/data/x'\nout = 'y'", "on this machine"),
        (
            IMPORT + "particles = '/data/p.star'",
            "step 1, import: particles: /data/p.star is on this machine, where nodes",
        ),
        (IMPORT + "particles = 'file:///data/p.star'", "particles: file:///data/p.star is on this machine"),
        (IMPORT + "particles = 'p.star'\nproject_folder = '/data'", "project_folder: /data is on this machine"),
        (IMPORT + "particles = 'p.cs'\npassthrough = '/q.cs'", "passthrough: /q.cs is on this machine"),
        (IMPORT + "particles = 'gopher://bucket/p.star'", "gopher:// locations are not known"),
        (IMPORT + "particles = '../p.star'", "a prefix has no . or .. in it"),
        (
            "project = 's3://some-bucket/p'\n[[step]]\njob = 'export'\nname = 'a'\nsource = 'x'\nout = 'y'\n"
            "[[step]]\njob = 'export'\nname = 'a'\nsource = 'x'\nout = 'z'",
            "has the same name, 'a', as an earlier one",
        ),
        ("project =", "is not valid TOML"),
    ],
)
def test_a_wrong_workflow_is_one_line_that_names_the_file(tmp_path, text, said) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ParameterError) as caught:
        read_workflow(path)
    assert said in str(caught.value)
    assert path in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_workflow_that_is_not_there(tmp_path) -> None:
    with pytest.raises(MissingInputError, match="no such file"):
        read_workflow(str(tmp_path / "none.toml"))
    with pytest.raises(ParameterError, match="is a folder"):
        read_workflow(str(tmp_path))


def workflow(tmp_path: Path) -> Workflow:
    return read_workflow(written(tmp_path, WORKFLOW.format(project=tmp_path / "project")))


def test_steps_know_what_those_before_them_make(tmp_path) -> None:
    simulate, refine, sharpen = step_estimates(workflow(tmp_path), speeds())
    assert simulate.on_head
    assert sharpen.on_head
    assert not refine.on_head
    assert refine.most == 32  # tasks of 30,000 particles
    expected = surely(Fleet(CPU, 1), workflow(tmp_path).steps[1].job.alignment(Size(30000, (64, 64), 4.0)))  # type: ignore[attr-defined]
    assert refine.estimate(Fleet(CPU, 1)) == expected
    for step in (simulate, sharpen):
        assert isinstance(step.estimate(Fleet(CPU, 1)), Duration)
    assert simulate.stored_GiB > 30000 * 64**2 * 2 / 2**30


def test_an_import_from_s3_is_checked_and_planned_before_anything_is_rented(bucket, tmp_path) -> None:
    project = f"s3://{bucket}/to-import"
    steps = "particles = 'p.star'\nallow_no_ctf = true\n[[step]]\njob = 'reconstruct'\nparticles = 'p.zarr'\n"
    both = read_workflow(written(tmp_path, IMPORT.replace("s3://some-bucket/p", project) + steps))
    with pytest.raises(MissingInputError, match=r"step import: s3://.*/p\.star does not exist"):
        preflight(both)
    names = np.array([f"{i + 1}@Extract/a.mrcs" for i in range(6)], dtype=TEXT)
    write_star(f"{project}/p.star", {"": {"rlnImageName": names}})
    with pytest.raises(MissingInputError, match=r"step import: .* refers to Extract/a\.mrcs, not found under s3://"):
        preflight(both)
    with pytest.raises(ParameterError, match=r"refers to Extract/a\.mrcs, not found under s3://"):
        step_estimates(both, speeds())
    write_stack(f"{project}/Extract/a.mrcs", [np.zeros((6, 8, 8))], 6, 2.0)
    assert preflight(both).lines == []
    importing, reconstructing = step_estimates(both, speeds())
    assert importing.on_head
    assert importing.stored_GiB == pytest.approx((2 * 6 * 8**2 + 300 * 6) / 2**30)
    job = both.steps[1].job
    assert reconstructing.estimate(Fleet(CPU, 1)) == surely(
        Fleet(CPU, 1),
        job.alignment(Size(6, (8, 8), 2.0, remote=True)),  # type: ignore[attr-defined]
    )


def test_particles_that_nobody_knows_are_asked_for(tmp_path) -> None:
    text = WORKFLOW.format(project=tmp_path / "project")
    lone = read_workflow(
        written(tmp_path, text[: text.index("[[step]]")] + text[text.index('[[step]]\njob = "refine') :])
    )
    with pytest.raises(ParameterError, match="--particles 100000 --box-px 256"):
        step_estimates(lone, speeds())
    refine = step_estimates(lone, speeds(), Given(30000, 64, 4.0))[0]
    assert refine.most == 32


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with 300 particles of 48 px."""
    project = tmp_path_factory.mktemp("project")
    job = Simulate(demo=True, box_px=48, pixel_size_A=5.0, count=300, blind=True, out=str(project / "data"))
    job.run(Context(SerialExecutor(), SilentProgress(), logging.getLogger("test"), job.out))
    return project


@pytest.fixture
def own_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine was measured."""
    monkeypatch.setenv("CLOUDEM_CACHE", str(tmp_path / "cache"))
    keep(SpeedRow("x", 1.0, 1.0, 1.15, "measured", "2026-11-21", "test", cores=2))


def lone(project: Path, tmp_path: Path) -> str:
    text = WORKFLOW.format(project=project).replace('"D2"', '"C1"').replace('"eu-central-1"', '"local"')
    return written(tmp_path, text[: text.index("[[step]]")] + text[text.index('[[step]]\njob = "refine') :])


@pytest.mark.usefixtures("own_speed")
def test_a_pilot_finds_what_the_model_expects_within_a_factor_of_a_few(simulated, tmp_path) -> None:
    job = read_workflow(lone(simulated, tmp_path)).steps[0].job
    found = pilot_of(job)
    assert found is not None
    assert found.images == 200
    assert 0.2 < found.correction.local < 5
    assert 0.2 < found.correction.search < 5
    assert 1.15 < found.correction.spread < 2
    assert "200 particles" in found.describe()
    assert pilot_of(job.model_copy(update={"particles": str(tmp_path / "none.zarr")})) is None
    assert pilot_of(read_workflow(lone(simulated, tmp_path)).steps[1].job) is None


@pytest.mark.usefixtures("own_speed")
def test_a_pilot_of_a_local_refinement_looks_where_that_does(tmp_path) -> None:
    data = Simulate(demo=True, box_px=48, pixel_size_A=5.0, count=100, out=str(tmp_path / "data"))
    data.run(Context(SerialExecutor(), SilentProgress(), logging.getLogger("test"), data.out))
    job = Refine3D(
        particles=f"{data.out}/particles.zarr", reference=f"{data.out}/start.mrc", diameter_A=100.0, out="/o",
        local=True, pivot_A="-20,20,0", window_px=32,
    )  # fmt: skip
    found = pilot_of(job)
    assert found is not None
    assert found.search_s == 0
    assert found.correction.search == 1
    assert 0.2 < found.correction.local < 5  # of the model of 32 px; images of 48 px take more than twice as long
    assert "searching" not in found.describe()


@pytest.mark.usefixtures("own_speed")
def test_the_command_shows_a_plan_and_writes_it(simulated, tmp_path) -> None:
    plan, figure = tmp_path / "plan.json", tmp_path / "plan.png"
    command = DeclaredCommand("plan", PlanCommand)
    done = CliRunner().invoke(command, [lone(simulated, tmp_path), "--json-file", str(plan), "--figure", str(figure)])
    assert done.exit_code == 0, done.output
    found = Plan.from_json(json.loads(plan.read_text()))
    assert found.region == "local"
    assert found.step("refine3d").describe() in done.output
    assert "  total  " in done.output
    assert "rehearsal price" in done.output
    assert figure.read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("own_speed")
def test_the_command_plans_particles_that_are_not_there_yet() -> None:
    given = ["refine3d", "--particles", "50000", "--box-px", "128", "--region", "eu-central-1", "--max-hours", "1"]
    done = CliRunner().invoke(DeclaredCommand("plan", PlanCommand), [*given, "--fastest"])
    assert done.exit_code == 0, done.output
    assert "plan fastest under 1 h" in done.output
    assert "none is both faster and cheaper" in done.output
    assert "stale" in done.output


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "give a workflow file"),
        (["refine3d"], "needs --particles and --box-px"),
        (["mask"], "cannot be planned on its own"),
        (["refine3d", "--cheapest", "--fastest"], "both --cheapest and --fastest"),
        (["refine3d", "--particles", "9", "--box-px", "64", "--region", "local", "--markets", "loan"], "got 'loan'"),
        (["refine3d", "--particles", "9", "--box-px", "64"], "such as --region"),
        (["refine3d", "--particles", "9000", "--box-px", "64", "--region", "local", "--figure", "plan.txt"], ".png"),
    ],
)
def test_what_cannot_be_planned_is_one_line(monkeypatch, given, said) -> None:
    monkeypatch.delenv("AWS_REGION", raising=False)
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    done = CliRunner().invoke(DeclaredCommand("plan", PlanCommand), given)
    assert isinstance(done.exception, ParameterError)
    assert said in str(done.exception)
    assert "\n" not in str(done.exception)
