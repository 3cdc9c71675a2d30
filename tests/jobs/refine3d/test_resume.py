"""A refinement that was stopped anywhere ends with the same bits; half-sets share nothing but the FSC."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cloudem import errors
from cloudem.algorithms.refinement import State, iteration_plan
from cloudem.errors import InconsistentDataError, MissingInputError, OutputExistsError, ParameterError
from cloudem.execution.dask.executor import DaskExecutor
from cloudem.execution.executor import SerialExecutor, Shared
from cloudem.io.particle_store import open_particles, write_particles
from cloudem.io.storage import groups
from cloudem.io.storage.groups import has_group, list_groups, read_attributes, read_group, write_group
from cloudem.jobs import iterative, results
from cloudem.jobs.dataset import open_dataset
from cloudem.jobs.refine3d import solving, start
from cloudem.jobs.refine3d.iteration import Run, share, solve_halves
from cloudem.jobs.refine3d.job import Refine3D
from cloudem.jobs.refine3d.start import begin
from cloudem.jobs.refine3d.tasks import align_group, fold_of, gains_of_group, read_checkpoint, tasks
from tests.jobs.conftest import BOX, PIXEL, Scene, assert_same_bits, quiet_context, run

ITERATIONS = 3
FIXED = {"max_iterations": ITERATIONS, "max_resolution_A": 14}


class StoppedError(Exception):
    """What a test stops a run with."""


@pytest.fixture(scope="module")
def undisturbed(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that nothing interrupted."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "write_report", lambda url: "none")
        run(Refine3D(**scene.refinement(out, **FIXED)))
    return out


class Failing(SerialExecutor):
    """Fails in the middle of the n-th pass over all images."""

    def __init__(self, passes: int) -> None:
        super().__init__()
        self._left = passes

    def map(self, function: Any, items: Any, **options: Any) -> Any:
        if getattr(function, "func", function) is gains_of_group:  # some images, where the limit may rise
            yield from super().map(function, items, **options)
            return
        yield from super().map(function, self._some(items), **options)
        if not self._left:
            raise StoppedError

    def accumulate(self, fold: Any, items: Any, **options: Any) -> Any:
        result = super().accumulate(fold, self._some(items), **options)
        if not self._left:
            raise StoppedError
        return result

    def _some(self, items: Any) -> Any:
        self._left -= 1
        return items if self._left else items[: len(items) // 2]


@pytest.mark.parametrize("passes", [1, 2, 5], ids=["noise", "contrast", "iteration 3"])
def test_resumed_after_a_failed_task(passes, scene, undisturbed, tmp_path, no_report):
    job = Refine3D(**scene.refinement(tmp_path / "out", **FIXED))
    with pytest.raises(StoppedError):
        run(job, lambda: Failing(passes))
    assert len(list_groups(job.out, "iterations")) == max(passes - 3, 0)
    progress = run(job)
    assert [row["iteration"] for row in progress.iterations()] == list(range(1, ITERATIONS + 1))
    assert_same_bits(job.out, undisturbed)


def stop_at(patch: pytest.MonkeyPatch, module: Any, path: str, time: int) -> None:
    """Have the given write of a group, counted from 1, stop before it is done."""
    real, left = module.write_group, [time]

    def write(url: str, group: str, *rest: Any, **options: Any) -> None:
        left[0] -= group.startswith(path)
        if left[0] == 0 and group.startswith(path):
            raise StoppedError
        real(url, group, *rest, **options)

    patch.setattr(module, "write_group", write)


@pytest.mark.parametrize(
    ("module", "path", "time"),
    [
        (groups, "checkpoint", 2),  # scale and contrast are known, but not written
        (groups, "checkpoint", 4),  # the row of iteration 2 is written
        (solving, "references/002-2", 1),  # one reference of the next iteration is written
        (groups, "iterations/003", 1),
        (groups, "result", 1),  # the particles are written
    ],
)
def test_resumed_between_two_writes(module, path, time, scene, undisturbed, tmp_path, no_report):
    job = Refine3D(**scene.refinement(tmp_path / "out", **FIXED))
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, module, path, time)
        with pytest.raises(StoppedError):
            run(job)
    assert not has_group(job.out, "result")
    run(job)
    assert_same_bits(job.out, undisturbed)
    assert len(list_groups(job.out, "references")) == 2  # it did not converge, and may go on


def test_more_iterations_go_on_from_the_last_one(scene, tmp_path, no_report):
    job = Refine3D(**scene.refinement(tmp_path / "out", max_iterations=1, max_resolution_A=14))
    said = run(job).warnings()
    assert any("not converged after 1 iterations; raise --max-iterations" in text for text in said)
    write_group(job.out, "references/001-1-1", {"map": np.zeros(2, np.float32)}, {})  # what a kill leaves
    said = run(job).warnings()  # the same command again says the same, and does nothing but clear that away
    assert len(list_groups(job.out, "references")) == 2
    assert said == ["not converged after 1 iterations; raise --max-iterations to continue"]
    with pytest.raises(errors.OutputExistsError, match="job with another --seed"):
        run(job.model_copy(update={"seed": 9, "max_iterations": 3}))
    shutil.copytree(job.out, tmp_path / "copy")
    undisturbed = job.model_copy(update={"max_iterations": 3, "out": str(tmp_path / "copy")})
    assert [row["iteration"] for row in run(undisturbed).iterations()] == [1, 2, 3]
    before = read_group(job.out, "result")[0]["map"]
    more = job.model_copy(update={"max_iterations": 3})
    with pytest.raises(StoppedError):
        run(more, lambda: Failing(2))  # in its last iteration
    assert list_groups(job.out, "iterations") == ["001", "002"]
    np.testing.assert_array_equal(read_group(job.out, "result")[0]["map"], before)  # whole until the next one is
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, groups, "result", 1)
        with pytest.raises(StoppedError):
            run(more)
    assert [row["iteration"] for row in run(more).iterations()] == [1, 2, 3]
    assert_same_bits(job.out, undisturbed.out)
    record = read_attributes(job.out, "")
    assert record is not None
    assert record["parameters"]["max_iterations"] == 3


def test_killed_and_resumed(scene, undisturbed, tmp_path, no_report):
    out = tmp_path / "out"
    job = Refine3D(**scene.refinement(out, **FIXED))
    options = [f"--{name.replace('_', '-')}={value}" for name, value in job.model_dump(exclude_defaults=True).items()]
    command = [sys.executable, "-m", "cloudem", "refine3d", *options, "--executor", "serial"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        while process.poll() is None and not (out / "iterations/002/zarr.json").exists():
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        said = process.communicate()[0]
    assert process.returncode == -signal.SIGKILL, said
    assert not has_group(out, "result")
    progress = run(job)
    assert [row["iteration"] for row in progress.iterations()] == list(range(1, ITERATIONS + 1))
    assert_same_bits(out, undisturbed)
    assert "resuming at iteration" in (out / "log.txt").read_text()


def test_asked_to_stop_it_ends_after_an_iteration_and_goes_on_later(scene, undisturbed, tmp_path, no_report):
    class Asking(SerialExecutor):
        def accumulate(self, *args: Any, **options: Any) -> Any:
            signal.raise_signal(signal.SIGUSR1)
            return super().accumulate(*args, **options)

    job = Refine3D(**scene.refinement(tmp_path / "out", **FIXED))
    before = signal.getsignal(signal.SIGUSR1)
    with pytest.raises(errors.StoppedError, match="after iteration 1"):
        run(job, Asking)
    assert signal.getsignal(signal.SIGUSR1) == before
    assert list_groups(job.out, "iterations") == ["001"]
    run(job)
    assert_same_bits(job.out, undisturbed)


def test_dask_gives_the_same_bits(scene, undisturbed, tmp_path, no_report):
    run(Refine3D(**scene.refinement(tmp_path / "out", **FIXED)), lambda: DaskExecutor(threads=2))
    assert_same_bits(tmp_path / "out", undisturbed)


class Watched(SerialExecutor):
    """Knows which shared values somebody still holds."""

    def __init__(self) -> None:
        super().__init__()
        self.held: weakref.WeakSet[Shared[Any]] = weakref.WeakSet()

    def share(self, *args: Any, **options: Any) -> Shared[Any]:
        made = super().share(*args, **options)
        self.held.add(made)
        return made

    def accumulate(self, *args: Any, **options: Any) -> Any:
        sums, notes = super().accumulate(*args, **options)
        self.held.update(sums.values())
        return sums, notes


def test_nothing_is_held_that_would_be_made_again_from_another_checkpoint(
    scene: Scene, tmp_path: Path, no_report: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched: list[Watched] = []
    held: list[int] = []

    def executor() -> Watched:
        watched.append(Watched())
        return watched[0]

    def commit(*args: Any) -> None:
        held.append(len(watched[0].held))
        real(*args)

    real = iterative.commit
    for module in (iterative, start):
        monkeypatch.setattr(module, "commit", commit)
    run(Refine3D(**scene.refinement(tmp_path / "out", max_iterations=2)), executor)
    assert held == [0, 0, 0, 0]  # twice before the first iteration, and after each


def test_what_a_finished_or_another_run_left_is_not_touched(scene, undisturbed, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(undisturbed, out)
    for values, message in (
        ({"max_iterations": 1}, "is already finished; choose another --out, or run it again with --restart"),
        (
            {"seed": 5, "diameter_A": 110},
            "job with another --diameter-A, --seed; choose another --out, or replace it with --restart",
        ),
    ):
        with pytest.raises(OutputExistsError, match=message):
            run(Refine3D(**scene.refinement(out, **{**FIXED, **values})))
    assert_same_bits(out, undisturbed)


def test_a_command_that_was_interrupted_at_its_end_can_be_given_again(scene, undisturbed, tmp_path, caplog):
    """Between the commit of the result and its end it had been told to be given again to resume."""
    out = tmp_path / "out"
    shutil.copytree(undisturbed, out)
    (out / "report.html").unlink(missing_ok=True)
    write_group(out, "checkpoint", {"a": np.zeros(3)}, {})
    with caplog.at_level("INFO"):
        run(Refine3D(**scene.refinement(out, **{**FIXED, "report": True})))
    assert f"already finished: {out} holds this result" in caplog.text
    assert (out / "report.html").exists()
    assert not (out / "checkpoint").exists()
    assert_same_bits(out, undisturbed)


def test_restart_begins_anew(scene, undisturbed, tmp_path, no_report):
    out = tmp_path / "out"
    shutil.copytree(undisturbed, out)
    job = Refine3D(**scene.refinement(out, restart=True, max_iterations=1))
    run(job)
    assert list_groups(out, "iterations") == ["001"]
    assert read_attributes(out, "")["parameters"]["max_iterations"] == 1


@pytest.mark.parametrize("asked_before", [2, 25])
def test_more_or_fewer_iterations_may_be_asked_of_a_stopped_run(asked_before, scene, undisturbed, tmp_path, no_report):
    """The one it stopped in was to be the last of two, which take all shells; asked for three, it is not."""
    stopped = Refine3D(**scene.refinement(tmp_path / "out", **{**FIXED, "max_iterations": asked_before}))
    with pytest.raises(StoppedError):
        run(stopped, lambda: Failing(4))
    progress = run(Refine3D(**scene.refinement(tmp_path / "out", **FIXED)))
    assert f"not converged after {ITERATIONS} iterations; raise --max-iterations to continue" in progress.warnings()
    assert_same_bits(tmp_path / "out", undisturbed)


def test_a_restart_that_cannot_begin_leaves_the_result(scene, undisturbed, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(undisturbed, out)
    for wrong, error in (({"diameter_A": 161.0}, ParameterError), ({"reference": "nowhere.mrc"}, MissingInputError)):
        with pytest.raises(error):
            run(Refine3D(**scene.refinement(out, **{**FIXED, "restart": True, **wrong})))
    assert_same_bits(out, undisturbed)


def test_a_run_does_not_resume_with_other_particles(scene, copy, tmp_path):
    job = Refine3D(**copy.refinement(tmp_path / "out", **FIXED))
    with pytest.raises(StoppedError):
        run(job, lambda: Failing(4))
    store = open_particles(scene.particles)
    shutil.rmtree(copy.particles)
    few = np.arange(90)
    write_particles(copy.particles, store.particles.take(few), [store.read_images(few)], box=BOX, pixel_size=PIXEL)
    with pytest.raises(InconsistentDataError, match=r"started with 160 particles, but .* now has 90; choose another"):
        run(job)


# Half-sets. Two runs that differ in the images of half-set 2 alone.


def run_of(job: Refine3D) -> Run:
    dataset = open_dataset(job.particles)
    settings = job.settings(dataset.store.box, dataset.store.pixel_size)
    return Run(job, quiet_context(job.out), dataset, settings, None, job.symmetry)


@pytest.fixture(scope="module")
def other_half(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """The same particles, but the images of half-set 2 are mirrored and noisier."""
    store = open_particles(scene.particles)
    images = store.read_images(np.arange(len(store)))
    second = np.flatnonzero(store.particles["half_set"] == 2)
    noise = np.random.default_rng(5).standard_normal(images[second].shape, np.float32)
    images[second] = 1.5 * images[second, ::-1] + noise
    path = tmp_path_factory.mktemp("other") / "particles.zarr"
    write_particles(path, store.particles, [images], box=BOX, pixel_size=PIXEL, dtype="float32")
    return Scene(str(path), scene.reference, scene.density, scene.truth)


def references_of(url: str, names: Any = None) -> list[np.ndarray]:
    """The references that a checkpoint names, or those given."""
    names = names or (read_attributes(url, "checkpoint") or {})["references"]
    return [read_group(url, f"references/{name}")[0]["map"] for name in names]


def assert_half_one_is_the_same(one: Any, other: Any, names: tuple[str, ...]) -> None:
    """Compare the parts of two checkpoints that belong to half-set 1, to the bit, and that those of 2 differ."""
    for name in names:
        np.testing.assert_array_equal(getattr(one, name)[0], getattr(other, name)[0], err_msg=name)
    assert np.any(one.sigma2[1] != other.sigma2[1])
    mine = one.half_set == 1
    np.testing.assert_array_equal(one.scale[mine], other.scale[mine])
    np.testing.assert_array_equal(one.settled[mine], other.settled[mine])
    for name in (name for name in vars(one) if name.startswith("pose_")):
        values = [getattr(c, name)[mine[c.pose_images]] for c in (one, other)]
        np.testing.assert_array_equal(*values, err_msg=name)


def test_half_sets_begin_apart(scene, other_half, tmp_path):
    starts = []
    for name, part in (("a", scene), ("b", other_half)):
        this = run_of(Refine3D(**part.refinement(tmp_path / name, **FIXED)))
        begin(this)
        starts.append(read_checkpoint(this.url)[0])
    assert_half_one_is_the_same(*starts, names=("sigma2",))
    one, other = (references_of(str(tmp_path / name)) for name in ("a", "b"))
    np.testing.assert_array_equal(one[0], other[0])
    assert np.any(one[1] != other[1])


@pytest.fixture(scope="module")
def before(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped before iteration 4, when masks are estimated and scales fitted."""
    out = tmp_path_factory.mktemp("before") / "out"
    with pytest.raises(StoppedError):
        run(Refine3D(**scene.refinement(out, **{**FIXED, "max_iterations": 25})), lambda: Failing(6))
    return out


def test_half_sets_share_nothing_but_the_fsc(scene, other_half, before, tmp_path, monkeypatch):
    """With another FSC only the filter differs; with the same one, the whole of half-set 1 is the same to the bit."""
    steps = []
    for part in (scene, other_half):
        this = run_of(Refine3D(**part.refinement(before, **{**FIXED, "max_iterations": 25})))
        checkpoint, attributes = read_checkpoint(this.url)
        state = State(**attributes["state"])
        assert state.iteration == 4
        plan = iteration_plan(state, this.settings)
        fold = fold_of(partial(align_group, url=this.url, plan=plan))
        items = tasks(checkpoint.half_set, 50)
        sums, notes = this.executor.accumulate(fold, items, shared=share(this, plan))
        solve = partial(solve_halves, this, state, plan, checkpoint, sums, list(zip(items, notes, strict=True)))
        steps.append((sums, solve))
    (sums, solve), (others, solve_other) = steps
    values = [{half: part.handle for half, part in some.items()} for some in (sums, others)]
    for name in ("data", "weight"):
        first, second = ([getattr(value[half], name) for value in values] for half in (1, 2))
        np.testing.assert_array_equal(*first)
        assert np.any(second[0] != second[1])
    solved = [solve(), solve_other()]
    names = ("sigma2", "shift_variance")
    assert_half_one_is_the_same(solved[0].checkpoint, solved[1].checkpoint, names)
    for get in (lambda o: o.maps.halves, lambda o: o.maps.masks):
        np.testing.assert_array_equal(get(solved[0])[0].handle, get(solved[1])[0].handle)
        assert np.any(get(solved[0])[1].handle != get(solved[1])[1].handle)
    assert np.any(solved[0].observed.fsc != solved[1].observed.fsc)
    one, other = (references_of(str(before), step.references) for step in solved)
    assert np.any(one[0] != other[0])  # the filter
    monkeypatch.setattr(solving, "masked_fsc", lambda *_, **__: solved[0].curves)
    again = solve_other()
    assert_half_one_is_the_same(solved[0].checkpoint, again.checkpoint, names)
    np.testing.assert_array_equal(one[0], references_of(str(before), again.references)[0])
    # what decides about the next iteration beside the FSC, which counts the voxels of both masks: whether images know
    # the other half's map, one number, and two shares that count images of both half-sets
    assert vars(solved[0].observed).keys() == {"fsc", "voxels", "evidence", "moving", "jumped"}


def test_poses_of_both_halves_stay_in_the_order_of_images(before):
    checkpoint, _ = read_checkpoint(str(before))
    assert np.all(np.diff(checkpoint.pose_images) >= 0)
    assert set(checkpoint.pose_images) == set(range(len(checkpoint.half_set)))
