"""Classes of small simulated sets: like views come together, with the same bits whatever happens on the way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest

from cloudem.errors import MissingColumnError, OutputExistsError, ParameterError
from cloudem.execution.dask.executor import DaskExecutor
from cloudem.execution.executor import SerialExecutor
from cloudem.io.particle_store import open_particles, write_particles
from cloudem.io.storage.groups import has_group, list_groups, read_group
from cloudem.jobs.base import Inputs
from cloudem.jobs.classify2d.job import Classify2D
from cloudem.jobs.export import Export
from cloudem.jobs.good_classes import automatic, class_arrays
from cloudem.jobs.refine3d.job import Refine3D
from cloudem.jobs.select import Select, class_numbers, conditions_of, neighbours_of
from cloudem.model.poses import euler_to_matrix
from tests.jobs.conftest import BOX, DIAMETER, Scene, assert_same_bits, make_scene, needs, run

CLASSES, SHORT = 6, {"max_iterations": 6}


def classification(scene: Scene, out: Path | str, **values: Any) -> Classify2D:
    given = {"particles": scene.particles, "diameter_A": DIAMETER, "classes": CLASSES, "max_resolution_A": 13.0}
    return Classify2D(**{**given, "group_size": 50, "report": False, "out": str(out), **values})


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """300 images."""
    return make_scene(tmp_path_factory.mktemp("many"), count=300, snr=0.4)


@pytest.fixture(scope="module")
def classes(many: Scene, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = str(tmp_path_factory.mktemp("classes") / "out")
    run(classification(many, out, report=True))
    return out


@pytest.fixture(scope="module")
def undisturbed(many: Scene, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run that nothing interrupted."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    run(classification(many, out, **SHORT))
    return out


def test_like_views_come_together(many: Scene, classes: str) -> None:
    arrays, attributes = read_group(classes, "result")
    table = open_particles(classes).particles
    number, truth = table["class_number"], many.truth
    assert set(number) <= set(range(1, CLASSES + 1))
    np.testing.assert_array_equal(np.bincount(number, minlength=CLASSES + 1)[1:], arrays["class_members"])
    views = euler_to_matrix(truth["rot"], truth["tilt"], truth["psi"])[:, 2]
    views = np.where(table["class_mirrored"][:, None] == 1, -views, views)
    lengths = [np.linalg.norm(views[number == each].mean(axis=0)) for each in np.unique(number)]
    assert np.average(lengths, weights=np.bincount(number)[np.unique(number)]) > 0.4  # of 50 random ones: 0.13
    assert arrays["class_averages"].shape == (CLASSES, BOX, BOX)
    assert np.all(np.diff(arrays["class_share"]) <= 0)
    assert arrays["class_share"].sum() == pytest.approx(1)
    assert table["class_probability"].min() > 1 / CLASSES - 1e-6
    assert np.median(table["noise_evidence"]) > 10
    assert np.median(table["class_detail"]) > 3
    assert attributes["particle_count"] == 300
    assert "class_averages" not in list_groups(classes, "iterations")
    assert b"Class 1" in (Path(classes) / "report.html").read_bytes()


def test_noise_alone_is_no_evidence(tmp_path: Path) -> None:
    scene = make_scene(tmp_path, count=150, snr=0)
    run(classification(scene, tmp_path / "out", **SHORT))
    table = open_particles(str(tmp_path / "out")).particles
    assert np.median(table["noise_evidence"]) < 0.1
    assert np.median(table["class_detail"]) < 2  # above 0, since the pose is the best of many


def test_dask_gives_the_same_bits(many: Scene, undisturbed: Path, tmp_path: Path) -> None:
    run(classification(many, tmp_path / "out", **SHORT), lambda: DaskExecutor(threads=2))
    assert_same_bits(undisturbed, tmp_path / "out")


class Stopped(SerialExecutor):
    """Fails in its n-th accumulation."""

    def __init__(self, left: int) -> None:
        super().__init__()
        self.left = left

    def accumulate(self, *given: Any, **options: Any) -> Any:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt
        return super().accumulate(*given, **options)


@pytest.mark.parametrize("left", [1, 4])
def test_stopped_and_resumed(left: int, many: Scene, undisturbed: Path, tmp_path: Path) -> None:
    job = classification(many, tmp_path / "out", **SHORT)
    with pytest.raises(KeyboardInterrupt):
        run(job, lambda: Stopped(left))
    assert not has_group(job.out, "result")
    run(job)
    assert_same_bits(undisturbed, tmp_path / "out")
    with pytest.raises(OutputExistsError, match="contains this job with another --classes"):
        classification(many, tmp_path / "out", classes=5).preflight()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"diameter_A": 500.0}, "does not fit in the images"),
        ({"diameter_A": 20.0}, "is less than 8 px"),
        ({"classes": 200}, "300 particles are too few for 200 classes; use --classes 15"),
    ],
)
def test_what_cannot_be_sorted_is_refused(values: dict[str, Any], said: str, many: Scene, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=said):
        classification(many, tmp_path / "out", **values).preflight()


def test_a_plan_knows_what_it_takes(many: Scene, tmp_path: Path) -> None:
    work = needs(classification(many, tmp_path / "out"))
    assert [stage.name for stage in work.stages] == ["noise", "classify"]
    assert work.stages[1].items > 300
    more = needs(classification(many, tmp_path / "out", classes=12))
    assert more.stages[1].cpu_s > work.stages[1].cpu_s


def test_a_selection_is_particles_for_the_next_job(many: Scene, classes: str, tmp_path: Path) -> None:
    table = open_particles(classes).particles
    first = Select(particles=classes, classes="1,3-4", report=False, out=str(tmp_path / "first"))
    run(first)
    kept = open_particles(first.out)
    inside = np.isin(table["class_number"], [1, 3, 4])
    np.testing.assert_array_equal(kept.particles["store_row"], np.flatnonzero(inside))
    images = open_particles(many.particles).read_images(np.flatnonzero(inside)[:3])
    np.testing.assert_array_equal(kept.read_images(np.arange(3)), images)
    second = Select(particles=first.out, where="class_detail >= 4 and defocus_u < 15000", out=str(tmp_path / "second"))
    progress = run(second)
    again = open_particles(second.out).particles
    which = inside & (table["class_detail"] >= 4) & (table["defocus_u"] < 15000)
    np.testing.assert_array_equal(again["store_row"], np.flatnonzero(which))
    out, reasons = read_group(second.out, "left_out")
    assert len(out["store_row"]) + len(again) == len(kept)
    assert reasons["reasons"] == ["not class_detail >= 4", "not defocus_u < 15000"]
    assert progress.warnings() == []
    assert (tmp_path / "second" / "report.html").exists()
    job = Refine3D(**many.refinement(tmp_path / "refine", particles=second.out))
    job.preflight()


def test_a_selection_is_judged_as_its_classes_are(classes: str, tmp_path: Path) -> None:
    """A second round sees the same circle and the images that are left, and says why each class is out."""
    first = Select(particles=classes, not_classes="2", report=False, out=str(tmp_path / "first"))
    run(first)
    averages = [class_arrays(place) for place in (classes, first.out)]
    assert averages[0]["radius"] == averages[1]["radius"] == DIAMETER / 2 / 5.0
    second = Select(particles=first.out, auto=True, where="class_number != 3", out=str(tmp_path / "second"))
    run(second)
    arrays, attributes = read_group(second.out, "result")
    before = read_group(classes, "result")[0]["class_members"]
    np.testing.assert_array_equal(arrays["class_members"], np.where(np.arange(CLASSES) == 1, 0, before))
    assert list(arrays["class_reason"][1:3]) == ["no images", "not class_number != 3"]
    assert arrays["class_kept"][2] == 0
    assert arrays["reason_images"].sum() == before.sum() - before[1]
    assert arrays["reason_words"][0] == "kept"
    assert any(note.startswith("Particles lie") for note in attributes["notes"])
    assert b"0 % kept: not class_number != 3" in (tmp_path / "second" / "report.html").read_bytes()


def placed(many: Scene, folder: Path, **columns: Any) -> str:
    """Return particles with coordinates: 5 Å a pixel, in a row of pairs 8 px apart, 40 px from the next."""
    store = open_particles(many.particles)
    count, table = 40, store.particles.take(np.arange(40))
    x = 40.0 * (np.arange(count) // 2) + 8.0 * (np.arange(count) % 2)
    texts = {"rln:rlnCoordinateX": x, "rln:rlnCoordinateY": np.full(count, 100.0)}
    text = {name: np.array([str(value) for value in values], np.dtypes.StringDType()) for name, values in texts.items()}
    optics = tuple(replace(group, extra={"rlnMicrographPixelSize": "5.0"}) for group in table.optics)
    table = replace(table, optics=optics, columns={**table.columns, **text}).with_columns(
        micrograph=np.array(["m.mrc"] * count, np.dtypes.StringDType()), **columns
    )
    images = store.read_images(np.arange(count))
    write_particles(folder / "placed.zarr", table, [images], box=store.box, pixel_size=store.pixel_size)
    return str(folder / "placed.zarr")


def rows_left(out: str) -> list[int]:
    return [int(row) for row in open_particles(out).particles["store_row"]]


def test_the_automatic_selection_knows_where_neighbours_are(many: Scene, tmp_path: Path) -> None:
    """Pairs are 40 Å apart, and pairs from each other 160 Å; without places, or their pixel, nothing is known."""
    said: list[str] = []
    table = open_particles(placed(many, tmp_path)).particles
    for diameter, near in ((39.0, False), (41.0, True)):
        found = neighbours_of(table, diameter, None, said.append)
        assert found is not None
        assert np.all(found == near)
    single = neighbours_of(table.take(np.arange(0, 40, 2)), 41.0, None, said.append)
    assert single is not None
    assert not single.any()
    assert neighbours_of(open_particles(many.particles).particles, 41.0, None, said.append) is None
    assert said == []
    bare = replace(table, optics=tuple(replace(group, extra={}) for group in table.optics))
    assert neighbours_of(bare, 41.0, None, said.append) is None
    assert "what a pixel of its coordinates is" in said[0]
    assert neighbours_of(bare, 41.0, 5.0, said.append) is not None


def test_crowded_classes_are_named_and_kept(classes: str, many: Scene, tmp_path: Path) -> None:
    """What lies at the edge of all of them is no reason where it is neighbours, and one where it is not."""
    table, averages = open_particles(classes).particles, class_arrays(classes)
    y, x = np.mgrid[:BOX, :BOX] - BOX // 2
    radius = float(averages["radius"])
    middle = np.hypot(x, y) < 0.8 * radius
    images = 1.0 * (middle | ((np.hypot(x, y) > 0.86 * radius) & (x > -0.5 * radius)))
    shown = {
        **averages,
        "class_averages": np.array([1.0 * middle] * (CLASSES - 2) + [images] * 2),
        "class_evidence": np.full(CLASSES, 50.0),
    }
    outs = []
    for neighbours in (None, np.ones(len(table), bool), np.zeros(len(table), bool)):
        out, notes = np.zeros(len(table), bool), list[str]()
        automatic(table, shown, lambda which, _, out=out: np.logical_or(out, which, out=out), {}, notes.append, notes,
                  neighbours)  # fmt: skip
        outs.append(int(out.sum()))
        assert any("have a neighbour nearer" in note for note in notes) == bool(np.any(neighbours))
    assert outs[0] == outs[2] == np.count_nonzero(table["class_number"] > CLASSES - 2) > 0
    assert outs[1] == 0


def test_of_duplicates_the_better_one_stays(many: Scene, tmp_path: Path) -> None:
    keep = np.where(np.arange(40) % 4 < 2, np.arange(40) % 2, 1 - np.arange(40) % 2)
    source = placed(many, tmp_path, keep=keep)
    job = Select(particles=source, duplicates_within_A=41, report=False, out=str(tmp_path / "out"))
    run(job)
    assert rows_left(job.out) == [row for row in range(40) if keep[row]]
    none = Select(particles=source, duplicates_within_A=39, report=False, out=str(tmp_path / "none"))
    run(none)
    assert len(rows_left(none.out)) == 40


def test_shifts_count_and_so_does_the_pixel_size(many: Scene, tmp_path: Path) -> None:
    towards = np.where(np.arange(40) % 2, -10.0, 10.0)  # 40 Å apart in the micrograph become 20
    source = placed(many, tmp_path, shift_x=towards, shift_y=np.zeros(40))
    job = Select(particles=source, neighbours_within_A=21, where="defocus_u > 0", out=str(tmp_path / "out"))
    with pytest.raises(ParameterError, match=r"none of 40 particles is left \(has a neighbour within 21 Å\)"):
        run(job)
    job = Select(
        particles=source, neighbours_within_A=21, micrograph_pixel_size_A=6, report=False, out=str(tmp_path / "six")
    )
    run(job)
    assert len(rows_left(job.out)) == 40  # 48 Å apart, less 20


def test_only_what_is_kept_otherwise_is_a_neighbour(many: Scene, tmp_path: Path) -> None:
    source = placed(many, tmp_path, keep=np.arange(40) % 2)
    job = Select(particles=source, neighbours_within_A=60, where="keep > 0", report=False, out=str(tmp_path / "out"))
    run(job)
    assert rows_left(job.out) == list(range(1, 40, 2))


@pytest.mark.parametrize(("far", "helps"), [(2.0, False), (30.0, True)])
def test_it_is_said_how_far_particles_lie_from_the_centre(many: Scene, tmp_path: Path, far: float, helps: bool) -> None:
    source = placed(many, tmp_path, shift_x=np.full(40, 0.6 * far), shift_y=np.full(40, 0.8 * far))
    job = Select(particles=source, where="defocus_u > 0", out=str(tmp_path / "out"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cloudem.jobs.select.diameter_of", lambda url: 100.0)
        run(job)
    arrays, attributes = read_group(job.out, "result")
    (note,) = attributes["notes"]
    assert note.startswith(f"Particles lie {far:.1f} Å from the centre of their images")
    assert ("extract them again" in note) == helps
    np.testing.assert_allclose(arrays["off_centre_A"], far, rtol=1e-6)
    assert "Distance from the centre" in (tmp_path / "out" / "report.html").read_text()


def test_without_coordinates_there_are_no_neighbours(many: Scene, tmp_path: Path) -> None:
    for values in ({"duplicates_within_A": 30}, {"neighbours_within_A": 30}):
        with pytest.raises(MissingColumnError, match="rlnCoordinateX"):
            Select(particles=many.particles, out=str(tmp_path / "out"), **values).preflight()


def test_classes_and_selections_are_exported(many: Scene, classes: str, tmp_path: Path) -> None:
    job = Select(particles=classes, classes="1-2", report=False, out=str(tmp_path / "some"))
    run(job)
    for source, count in ((classes, 300), (job.out, len(open_particles(job.out)))):
        files = tmp_path / f"files-{count}"
        run(Export(source=source, stack=True, out=str(files)))
        averages = read_stack_header(files / "class_averages.mrcs")
        assert averages == (CLASSES, BOX, BOX)
        assert (files / "particles.star").read_text().count("@particles.mrcs") == count
        assert "_rlnClassNumber" in (files / "particles.star").read_text()


def read_stack_header(path: Path) -> tuple[int, ...]:
    with mrcfile.open(path, header_only=True) as file:
        return int(file.header.nz), int(file.header.ny), int(file.header.nx)


def test_without_two_groups_nothing_is_left_out_and_that_is_said(classes: str, tmp_path: Path) -> None:
    job = Select(particles=classes, auto=True, report=False, out=str(tmp_path / "out"))
    run(job)
    assert len(open_particles(job.out).particles) == 300
    assert "no other class is left out" in (tmp_path / "out" / "log.txt").read_text()


def test_what_selects_nothing_or_says_nothing_is_refused(many: Scene, classes: str, tmp_path: Path) -> None:
    def job(**values: Any) -> Select:
        return Select(**{"particles": classes, "out": str(tmp_path / "out"), **values})

    with pytest.raises(ParameterError, match="nothing says what to select"):
        job().check(Inputs(), print)
    for where in ("keep > ", "keep > 1 or keep < 2", "keep = 3", "keep > x"):
        with pytest.raises(ParameterError, match="--where has"):
            job(where=where).preflight()
    for numbers in ("", "0", "5-2", "a", "1,,2"):
        with pytest.raises(ParameterError, match="no number of a class"):
            class_numbers(numbers)
    with pytest.raises(Exception, match="have no column class_detail"):
        job(particles=many.particles, where="class_detail > 1").preflight()
    with pytest.raises(ParameterError, match="holds text"):
        job(where="micrograph > 1").preflight()
    with pytest.raises(ParameterError, match="none of 300 particles is left"):
        run(job(where="class_detail > 1e9"))
    assert conditions_of("a<=1e4, b != -2")[1] == ("b", "!=", -2.0)
