"""Small simulated sets with a known truth, and jobs run on them as the command line runs them."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cloudem.algorithms.density import demo_molecule, density_of_atoms
from cloudem.algorithms.resolution import low_pass
from cloudem.algorithms.simulate import POSE_COLUMNS, Recording, Simulator, random_particles
from cloudem.cloud.planning.work import Work
from cloudem.execution.executor import Executor, SerialExecutor
from cloudem.io.formats.mrc_writer import write_volume
from cloudem.io.particle_store import write_particles
from cloudem.io.storage.groups import read_group
from cloudem.jobs.artefacts import sizes_of
from cloudem.jobs.base import Context, Job
from cloudem.jobs.progress import Progress, SilentProgress
from cloudem.jobs.runner import run_job
from cloudem.model.atoms import Atoms
from cloudem.model.particles import Particles
from cloudem.model.symmetry import operators

BOX, PIXEL = 32, 5.0
DIAMETER = 120.0


@dataclass(frozen=True)
class Scene:
    """Particles and reference on disk, and the truth behind them."""

    particles: str
    reference: str
    density: NDArray[np.float32]
    truth: Particles

    def refinement(self, out: Path | str, **values: Any) -> dict[str, Any]:
        """Return parameters of a refinement that is as short as one can be that works."""
        given = {"particles": self.particles, "reference": self.reference, "diameter_A": DIAMETER, "out": str(out)}
        return {**given, "candidates": 4, "poses": 2, "search_step_deg": 10.0, "group_size": 50, **values}


def molecule(symmetry: str = "C1") -> NDArray[np.float32]:
    """Return the density of the demo's molecule, or of several of them around a point group's axes."""
    if symmetry == "C1":
        return density_of_atoms(demo_molecule(110.0, seed=3), BOX, PIXEL)
    unit = demo_molecule(60.0, seed=3)
    group = operators(symmetry)
    positions = np.concatenate([np.add(unit.positions, (24.0, 14.0, 18.0)) @ operator.T for operator in group])
    rest = (np.tile(values, len(group)) for values in unit[1:])
    return density_of_atoms(Atoms(positions, *rest), BOX, PIXEL, centre=False)


def make_scene(
    folder: Path,
    *,
    count: int = 160,
    snr: float | None = 0.4,
    sign: float = 1.0,
    seed: int = 0,
    density: NDArray[np.float32] | None = None,
    columns: Callable[[Particles], Particles] = lambda table: table.without_columns(POSE_COLUMNS),
    poses: Callable[[Particles], Particles] = lambda truth: truth,
) -> Scene:
    """Simulate particles and their reference, low-passed to 40 Å.

    ``poses`` makes the truth from particles that are seen from everywhere, ``columns`` the table from the truth.
    """
    density = molecule() if density is None else density
    recording = Recording(snr=snr, per_micrograph=20, defocus_min=8e3, defocus_max=2e4)
    truth = poses(random_particles(count, recording, seed))
    images = Simulator(density, PIXEL, truth, recording, seed).images()
    folder.mkdir(parents=True, exist_ok=True)
    particles, reference = folder / "particles.zarr", folder / "reference.mrc"
    turned = (np.float32(sign) * batch for batch in images)
    write_particles(particles, columns(truth), turned, box=BOX, pixel_size=PIXEL, dtype="float32")
    write_volume(reference, low_pass(density, PIXEL, 40.0), PIXEL)
    return Scene(str(particles), str(reference), density, truth)


@pytest.fixture(scope="session")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """160 particles without poses; nobody may change them."""
    return make_scene(tmp_path_factory.mktemp("scene"))


@pytest.fixture
def copy(scene: Scene, tmp_path: Path) -> Scene:
    """A copy of the same that a test may damage."""
    folder = tmp_path / "copy"
    shutil.copytree(Path(scene.particles).parent, folder)
    return replace(scene, particles=str(folder / "particles.zarr"), reference=str(folder / "reference.mrc"))


def run(job: Job, executor: Callable[[], Executor] = SerialExecutor) -> Progress:
    return run_job(job, lambda _: executor())


def needs(job: Job) -> Work:
    return job.work(sizes_of(job))


def quiet_context(url: Path | str) -> Context:
    log = logging.getLogger("cloudem.tests.quiet")
    return Context(executor=SerialExecutor(), progress=SilentProgress(log), log=log, url=str(url))


def arrays_of(url: Path | str, paths: Sequence[str] = ("result", "particles")) -> dict[str, NDArray[Any]]:
    """Return every array of a finished refinement by path."""
    groups = {path: read_group(url, path)[0] for path in paths}
    return {f"{path}/{name}": values for path, arrays in groups.items() for name, values in arrays.items()}


def assert_same_bits(one: Path | str, other: Path | str, paths: Sequence[str] = ("result", "particles")) -> None:
    first, second = arrays_of(one, paths), arrays_of(other, paths)
    assert first.keys() == second.keys()
    for name, values in first.items():
        np.testing.assert_array_equal(values, second[name], err_msg=name)


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the report out, which takes longer to draw than a small refinement to run."""
    monkeypatch.setattr("cloudem.jobs.results.write_report", lambda url: f"{url}/none")
