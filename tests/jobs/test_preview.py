"""Previews: what they show, what they cost, and that nothing but they depends on them."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from cloudem.algorithms.resolution import low_pass
from cloudem.errors import FormatError, OutputExistsError
from cloudem.io.storage.groups import read_group
from cloudem.io.storage.location import contents, join, write_bytes
from cloudem.jobs import preview
from cloudem.jobs.iterative import clear
from cloudem.jobs.preview import (
    PREVIEW_FOLDER,
    Preview,
    Previews,
    coarsest_preview,
    cube_of,
    finest_spectrum,
    preview_sides,
    previews_of_halves,
    previews_of_map,
    read_preview,
    read_preview_info,
    write_previews,
)
from cloudem.jobs.refine3d.job import Refine3D
from tests.jobs.conftest import BOX, PIXEL, Scene, arrays_of, quiet_context, run

LOG = logging.getLogger("cloudem.tests.preview")


def density_of(shown: Preview) -> np.ndarray:
    info = shown.info
    return info.minimum + cube_of(shown) / 255.0 * (info.maximum - info.minimum)


def noise(box: int) -> np.ndarray:
    return np.random.default_rng(box).standard_normal((box,) * 3).astype(np.float32)


def test_a_small_map_has_one_preview_and_a_large_one_two():
    assert [preview_sides(box) for box in (32, 64, 65, 100, 128, 512)] == [
        (32,), (64,), (64, 65), (64, 100), (64, 128), (64, 128)
    ]  # fmt: skip


def test_a_preview_shows_the_map(scene: Scene):
    (shown,) = previews_of_map(scene.density, PIXEL)
    step = (shown.info.maximum - shown.info.minimum) / 255
    np.testing.assert_allclose(density_of(shown), scene.density, atol=0.51 * step)
    assert shown.info.shape == (BOX, BOX, BOX)
    assert shown.info.pixel_size_A == PIXEL


def test_both_previews_of_a_large_map_cover_the_same_box():
    coarse, fine = previews_of_map(low_pass(noise(132), 1.0, 12.0), 1.0)
    for shown, side in ((coarse, 64), (fine, 128)):
        assert shown.info.shape == (side,) * 3
        assert shown.info.pixel_size_A * side == pytest.approx(132.0)
    assert coarse.info.sigma == pytest.approx(fine.info.sigma, rel=0.02)
    assert np.corrcoef(density_of(coarse).ravel(), density_of(fine)[::2, ::2, ::2].ravel())[0, 1] > 0.99


def test_half_maps_are_averaged_and_weighted_by_their_fsc():
    one, two = noise(24), noise(25)[:24, :24, :24].copy()
    spectra = finest_spectrum(one), finest_spectrum(two)
    flat = density_of(previews_of_halves(*spectra, np.ones(24), 24, 2.0, 3)[0])
    assert np.abs(flat - (one + two) / 2).max() < 0.02
    nothing = previews_of_halves(*spectra, np.zeros(24), 24, 2.0, 3)[0]
    assert (nothing.info.sigma, nothing.info.iteration) == (0.0, 3)


def test_it_is_the_same_to_the_bit_each_time():
    assert previews_of_map(noise(20), 1.0) == previews_of_map(noise(20), 1.0)


def test_previews_are_written_and_read(url):
    assert read_preview(url) is None
    shown = previews_of_map(noise(70), 1.5, iteration=4)
    write_previews(url, shown)
    assert contents(join(url, PREVIEW_FOLDER)) == ["map-128.json", "map-128.u8.gz", "map-64.json", "map-64.u8.gz"]
    assert [read_preview(url, 64), read_preview(url, 128)] == shown


def test_a_preview_that_is_damaged_is_not_shown(tmp_path):
    url = str(tmp_path)
    (shown,) = previews_of_map(noise(16), 1.0)
    write_previews(url, [shown])
    place = join(url, PREVIEW_FOLDER, "map-64")
    write_bytes(f"{place}.u8.gz", shown.data[:-1])
    with pytest.raises(FormatError, match="not what"):
        read_preview(url)
    write_bytes(f"{place}.json", b"{}")
    with pytest.raises(FormatError, match="damaged"):
        read_preview(url)
    larger = shown.info.model_copy(update={"shape": (17, 16, 16)})
    with pytest.raises(FormatError, match="has 4,096 voxels, not the 4,352"):
        cube_of(Preview(larger, shown.data))
    with pytest.raises(FormatError, match="none of cloudem's"):
        cube_of(Preview(shown.info.model_copy(update={"shape": (4000, 4000, 4000)}), shown.data))
    with pytest.raises(FormatError, match="damaged"):
        cube_of(Preview(shown.info, b"no gzip"))


def test_previews_take_a_hundredth_of_the_time(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(preview.time, "monotonic", lambda: now[0])
    previews = Previews()
    assert previews.due()

    def made() -> list[Preview]:
        now[0] += 2.0
        return []

    previews.make(made, LOG)
    now[0] += 199.0
    assert not previews.due()
    now[0] += 1.0
    assert previews.due()


def test_half_maps_and_mask_are_shown_where_they_take_a_hundredth_of_the_time(monkeypatch):
    now, taken = [0.0], 0.5
    monkeypatch.setattr(preview.time, "monotonic", lambda: now[0])
    real = preview.coarsest_preview

    def slow(*given) -> Preview:
        now[0] += taken
        return real(*given)

    monkeypatch.setattr(preview, "coarsest_preview", slow)
    others = {"half1": noise(70), "half2": noise(71)[:70, :70, :70], "mask": np.ones((70, 70, 70), np.float32)}
    for age, names, tried in (
        (149.0, ["map-64", "map-128"], 1),
        (151.0, ["half1-64", "half2-64", "mask-64", "map-64", "map-128"], 3),
    ):
        now[0] = 0.0
        previews = Previews()
        now[0] = age
        previews.make_result(noise(70), others, 2.0, LOG)
        found = previews.take()
        assert [each.name for each in found] == names
        assert {each.info.others for each in found[-2:]} == {tuple(others) if tried == 3 else ()}
        assert now[0] == age + tried * taken
        assert all(each.info.shape == (64,) * 3 for each in found[:-1])


def test_what_is_of_an_earlier_result_is_not_offered(url):
    (shown,) = previews_of_map(noise(16), 1.0)
    write_previews(url, [coarsest_preview(noise(16), 1.0, "mask"), shown])
    assert read_preview_info(url) == shown.info
    assert shown.info.others == ()
    assert b"others" not in shown.info.document()
    assert read_preview(url, of="mask").name == "mask-64"
    assert read_preview_info(url, of="half1") is None


def test_a_job_goes_on_without_a_preview_that_cannot_be_made():
    previews = Previews()
    previews.make(lambda: previews_of_map(np.full((8, 8, 8), np.nan, np.float32), 1.0), LOG)
    assert previews.take() == ()


def test_what_could_not_be_written_is_kept_unless_there_is_something_newer():
    previews, (old,), (new,) = Previews(), previews_of_map(noise(8), 1.0), previews_of_map(noise(9), 1.0)
    previews.show([old])
    taken = previews.take()
    assert previews.take() == ()
    previews.give_back(taken)
    assert previews.take() == [old]
    previews.show([new])
    previews.give_back(taken)
    assert previews.take() == [new]


def test_a_refinement_shows_its_iterations_and_its_result_and_is_the_same_without(scene: Scene, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(Previews, "show", lambda self, previews: made.append(previews))
    monkeypatch.setattr(Previews, "due", lambda self: True)
    monkeypatch.setattr(preview, "SHARE", 10.0)
    job = Refine3D(**scene.refinement(tmp_path / "with", max_iterations=2, report=False))
    run(job)
    assert [[each.info.iteration for each in previews] for previews in made] == [[1], [2], [0, 0, 0, 0]]
    assert [each.name for each in made[-1]] == ["half1-64", "half2-64", "mask-64", "map-64"]
    result = read_group(job.out, "result")[0]
    for each in made[-1]:
        step = (each.info.maximum - each.info.minimum) / 255
        np.testing.assert_allclose(density_of(each), result[each.name.removesuffix("-64")], atol=0.51 * step)
    assert made[-1][-1].info.others == ("half1", "half2", "mask")
    mean = (result["half1"] + result["half2"]) / 2
    assert np.corrcoef(density_of(made[1][0]).ravel(), low_pass(mean, PIXEL, 20.0).ravel())[0, 1] > 0.8
    monkeypatch.setattr(Previews, "due", lambda self: False)
    other = Refine3D(**scene.refinement(tmp_path / "without", max_iterations=2, report=False))
    run(other)
    ones, others = arrays_of(job.out), arrays_of(other.out)
    assert ones.keys() == others.keys()
    for name, values in ones.items():
        np.testing.assert_array_equal(values, others[name])


def test_a_job_that_begins_anew_shows_no_earlier_map(scene: Scene, tmp_path):
    job = Refine3D(**scene.refinement(tmp_path / "out", max_iterations=1, report=False))
    run(job)
    assert read_preview(job.out) is not None
    clear(quiet_context(job.out), job)
    assert read_preview(job.out) is None
    assert "live.json" in contents(job.out)
    run(Refine3D(**scene.refinement(tmp_path / "out", max_iterations=1, report=False, restart=True)))  # all are known
    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes.txt").touch()
    with pytest.raises(OutputExistsError, match=r"notes\.txt"):
        run(Refine3D(**scene.refinement(tmp_path / "other", max_iterations=1)))
