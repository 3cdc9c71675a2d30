"""What results say of directions: arrays, figures, the report and the warning."""

from pathlib import Path

import numpy as np
import pytest

from cloudem.algorithms.directional import HALF_ANGLE
from cloudem.algorithms.mask import soft_sphere
from cloudem.algorithms.resolution import masked_fsc
from cloudem.algorithms.simulate import Recording, random_particles
from cloudem.errors import ParameterError
from cloudem.io.storage.groups import read_attributes, read_group
from cloudem.jobs.directions import directions_of
from cloudem.jobs.postprocess import Postprocess
from cloudem.jobs.reconstruct.job import Reconstruct
from cloudem.jobs.refine3d.job import Refine3D
from cloudem.model.particles import Particles
from tests.algorithms.test_directional import BOX as LARGE
from tests.algorithms.test_directional import noisy, rising, within
from tests.jobs.conftest import BOX, DIAMETER, make_scene, molecule, run

SAID = {"best_A", "mean_A", "worst_A", "worst_direction", "deviations", "sphericity", "half_angle_deg"}
WARNING = "the resolution depends on direction"


def along_x(table: Particles) -> Particles:
    """Return particles that are all seen along x or within 8° of it."""
    rng = np.random.default_rng(0)
    return table.with_columns(
        rot=rng.normal(0, np.deg2rad(4), len(table)), tilt=rng.normal(np.pi / 2, np.deg2rad(4), len(table))
    )


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Results of particles that were all seen from one side."""
    folder = tmp_path_factory.mktemp("crowded")
    scene = make_scene(folder, poses=along_x, columns=lambda truth: truth)
    job = Reconstruct(particles=scene.particles, diameter_A=DIAMETER, out=str(folder / "out"))
    run(job)
    return job.out


def test_a_result_and_its_report_say_what_directions_have(crowded):
    arrays, attributes = read_group(crowded, "result")
    said = attributes["directional"]
    assert set(said) == SAID | {"sampling_compensation"}
    assert said["sampling_compensation"] < 0.1
    assert said["best_A"] <= said["mean_A"] <= said["worst_A"]
    assert said["half_angle_deg"] == pytest.approx(np.rad2deg(HALF_ANGLE))
    directions, resolution = arrays["directions"], arrays["directional_resolution_A"]
    assert resolution.shape == directions.shape[:1]
    assert arrays["directional_fsc"].shape == (len(directions), BOX // 2 + 1)
    assert 1 / np.mean(1 / resolution) == pytest.approx(said["mean_A"])
    page = (Path(crowded) / "report.html").read_text()
    for text in ("Resolution by direction", "range over directions", "sampling compensation factor of the views"):
        assert text in page
    assert f"{said['worst_A']:.2f} Å" in page


def test_postprocess_says_the_same_without_poses(crowded, tmp_path):
    job = Postprocess(halves=crowded, mask=crowded, out=str(tmp_path / "post"))
    run(job)
    arrays, attributes = read_group(job.out, "result")
    assert set(attributes["directional"]) == SAID
    np.testing.assert_allclose(
        arrays["directional_fsc"], read_group(crowded, "result")[0]["directional_fsc"], atol=1e-6
    )
    assert "Resolution by direction" in (tmp_path / "post/report.html").read_text()
    with pytest.raises(ParameterError, match="symmetry 'X' is not a point group"):
        run(Postprocess(halves=crowded, symmetry="X", out=str(tmp_path / "none")))


def test_a_warning_says_where_why_and_what_to_try():
    box, pixel_size = LARGE, 3.0
    truth = random_particles(300, Recording(), 0)
    sphere, mask = soft_sphere(box, 21, 4), soft_sphere(box, 23, 4)
    halves = noisy(np.where(within(40), rising(at=7), rising()), 5, sphere)
    curves = masked_fsc(*halves, mask)
    given = ((halves[0], halves[1]), mask, curves, box // 2 - 1, pixel_size, "C1")
    lines: list[str] = []
    for particles in (along_x(truth), truth, None):
        found = directions_of(*given, lines.append, particles)
    crowded, even, unknown = lines
    worst = f"the resolution depends on direction: {found.attributes['worst_A']:.1f} Å in the worst ones, about ("
    assert all(line.startswith(worst) for line in lines)
    assert "in preferred views (sampling compensation factor 0.0" in crowded
    assert "in preferred views; the map" in unknown
    assert "tilted stage" in crowded
    assert "The views are not the cause (sampling compensation factor 0.9" in even
    few: list[str] = []
    halves = noisy(rising(), 5, sphere)
    even_given = ((halves[0], halves[1]), mask, masked_fsc(*halves, mask), *given[3:])
    for particles in (truth, None, along_x(truth)):
        directions_of(*even_given, few.append, particles)
    assert len(few) == 1  # of the map nothing is to be said, and of views that are crowded it is
    assert few[0].startswith("most particles show much the same side (sampling compensation factor 0.0")


@pytest.mark.parametrize("group", ["C1", "D2"])
def test_views_from_everywhere_are_not_warned_of(tmp_path, no_report, group):
    scene = make_scene(tmp_path, count=200, density=molecule(group), columns=lambda truth: truth)
    job = Reconstruct(particles=scene.particles, symmetry=group, diameter_A=DIAMETER, out=str(tmp_path / "out"))
    assert not any(WARNING in text or "the same side" in text for text in run(job).warnings())
    said = (read_attributes(job.out, "result") or {})["directional"]
    assert said["sampling_compensation"] > 0.9
    assert said["best_A"] <= said["mean_A"] <= said["worst_A"] < 1.4 * said["best_A"]


def test_nothing_is_said_of_directions_where_nothing_is_shown_beyond_the_start(tmp_path):
    scene = make_scene(tmp_path, snr=0.0)
    progress = run(Refine3D(**scene.refinement(tmp_path / "out", max_iterations=2)))
    assert any("nothing is shown beyond" in text for text in progress.warnings())
    arrays, attributes = read_group(tmp_path / "out", "result")
    assert set(attributes["directional"]) == {"sampling_compensation"}
    assert "directional_fsc" not in arrays
    assert "View directions in map coordinates" in (tmp_path / "out/report.html").read_text()
