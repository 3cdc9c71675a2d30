"""What an iteration moves between workers, counted by them, against the model of the bytes."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import dask
import pytest
from distributed import LocalCluster

from cloudem.algorithms.density import demo_molecule, density_of_atoms
from cloudem.algorithms.refinement import State, iteration_plan
from cloudem.algorithms.search import MARGIN
from cloudem.algorithms.simulate import Recording, Simulator, random_particles
from cloudem.algorithms.transport import IterationSizes, Moved, moved
from cloudem.execution.dask.configuration import CONFIGURATION
from cloudem.execution.dask.executor import DaskExecutor
from cloudem.io.formats.mrc_writer import write_volume
from cloudem.io.particle_store import write_particles
from cloudem.io.storage.groups import read_group
from cloudem.jobs.dataset import open_dataset
from cloudem.jobs.refine3d.job import Refine3D
from tests.jobs.conftest import run

BOX, PIXEL, COUNT = 64, 3.5, 400


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Particles with their poses: a local refinement has no search, whose grid takes most of the time."""
    folder = tmp_path_factory.mktemp("traffic")
    density = density_of_atoms(demo_molecule(110.0, seed=3), BOX, PIXEL)
    recording = Recording(snr=0.4, per_micrograph=20)
    truth = random_particles(COUNT, recording, 0)
    images = Simulator(density, PIXEL, truth, recording, 0).images()
    write_particles(folder / "particles.zarr", truth, images, box=BOX, pixel_size=PIXEL)
    write_volume(folder / "reference.mrc", density, PIXEL)
    return {
        "particles": str(folder / "particles.zarr"), "reference": str(folder / "reference.mrc"), "diameter_A": 130.0,
        "local": True, "max_iterations": 2, "report": False, "initial_resolution_A": 25.0,
    }  # fmt: skip


def predicted(job: Refine3D, record: dict[str, Any], workers: int) -> Moved:
    store = open_dataset(job.particles).store
    plan = iteration_plan(State(**record["state"]), job.settings(store.box, store.pixel_size))
    k_reference = max(plan.k_score, plan.k_search + MARGIN)
    return moved(IterationSizes(BOX, plan.k_insert, k_reference, job.symmetry, workers, slices=COUNT))


@pytest.mark.parametrize(("workers", "symmetry"), [(2, "C1"), (4, "C1"), (4, "D2")])
def test_counted_bytes_are_those_of_the_model(
    given: dict[str, Any], tmp_path: Path, workers: int, symmetry: str
) -> None:
    # two groups for each worker, which are handed out at once: a slow one has none taken over, and no more sums to send
    job = Refine3D(**given, symmetry=symmetry, group_size=200 // workers, out=str(tmp_path / "out"))
    # workers that share a process start at once, and talk over TCP as others do
    # as our schedulers are set up; with Dask's own settings one may hand a slow worker's work to another
    with dask.config.set(CONFIGURATION), LocalCluster(
        n_workers=workers, threads_per_worker=1, processes=False, protocol="tcp", host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
    ) as cluster:  # fmt: skip
        run(job, partial(DaskExecutor, scheduler=cluster.scheduler_address))
    # of the last iteration the map of all particles is made, too, while this is counted
    record = read_group(job.out, "iterations/001")[1]
    model = predicted(job, record, workers)
    bricks, reference = (record["traffic"][name] for name in ("bricks", "reference"))
    assert bricks["received"] == pytest.approx(model.merge + model.join, rel=0.05)
    assert reference["received"] == pytest.approx(model.reference, rel=0.05)
    assert bricks["received"] == bricks["sent"]
