"""Results opened from Python: what is read is what was written, only when it is asked for; and their cards."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import cloudem
from cloudem.errors import FormatError, MissingInputError, StorageError
from cloudem.io.particle_store import RESULT_TABLE, ImageSource, write_particles
from cloudem.io.storage.groups import write_group
from cloudem.io.storage.location import join
from cloudem.io.storage.tables import table_to_arrays
from cloudem.jobs.opened import Result
from cloudem.jobs.preview import previews_of_map, write_previews
from cloudem.jobs.report import content_of
from cloudem.model.optics import OpticsGroup
from cloudem.model.particles import Particles
from cloudem.report.page import headlines
from tests.report.test_page import HOSTILE, Page

COUNT, BOX, PIXEL = 30, 64, 2.0


def images(box: int = BOX) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((COUNT, box, box)).astype(np.float32)


def make_store(url: str | Path, box: int = BOX, groups: int = 1) -> Particles:
    optics = tuple(OpticsGroup(f"{HOSTILE}{number}", 300.0, 2.7e7, 0.07, {}) for number in range(groups))
    table = Particles(optics, {}).with_columns(
        optics_group=np.zeros(COUNT),
        defocus_u=np.linspace(12e3, 20e3, COUNT),
        defocus_v=np.linspace(12e3, 20e3, COUNT),
        half_set=np.arange(COUNT) % 2 + 1,
        rot=np.arange(COUNT),
    )
    write_particles(url, table, [images(box)], box=box, pixel_size=PIXEL, dtype="float32")
    return table


def make_result(
    url: str | Path, particles: str | Path, volume: np.ndarray, preview: bool = True
) -> dict[str, np.ndarray]:
    store = cloudem.open_particles(str(particles))
    columns, attributes = table_to_arrays(store.particles)
    write_group(url, "", {}, {"kind": "result", "job": "refine3d", "parameters": {}, "date": "2026-01-01"})
    write_group(url, RESULT_TABLE, columns, {**attributes, "images": ImageSource.of(store, str(url))._asdict()})
    curve = np.linspace(1.0, 0.0, len(volume) // 2 + 1)
    arrays = {"map": volume, "mask": np.ones_like(volume), "fsc_unmasked": curve, "fsc_corrected": curve**2}
    said = {
        "pixel_size_A": PIXEL, "resolution_A": 4.5, "symmetry": "C2", "warnings": [HOSTILE, "second"],
        "particle_count": COUNT, "wall_s": 5.0, "cpu_s": 9.0, "iterations": [{"iteration": 1, "resolution_A": 5.0}],
    }  # fmt: skip
    write_group(url, "result", arrays, said)
    write_group(url, "iterations/001", {}, {"row": {"iteration": 1, "resolution_A": 5.0}})
    if preview:
        write_previews(str(url), previews_of_map(volume, PIXEL))
    return arrays


@pytest.fixture
def project(tmp_path: Path) -> Path:
    make_store(tmp_path / "p.zarr")
    rng = np.random.default_rng(1)
    make_result(tmp_path / "refine", tmp_path / "p.zarr", rng.standard_normal((BOX,) * 3).astype(np.float32))
    return tmp_path


def lose(url: Path, array: str) -> None:
    """Delete the chunks of an array of a result."""
    [folder] = (url / "result").glob(f"arrays-*/{array}/c")
    shutil.rmtree(folder)


def test_what_is_read_is_what_was_written(url: str) -> None:
    table = make_store(join(url, "p.zarr"))
    volume = np.random.default_rng(2).standard_normal((16, 16, 16)).astype(np.float32)
    arrays = make_result(join(url, "refine"), join(url, "p.zarr"), volume)
    result = cloudem.open_result(join(url, "refine"))
    np.testing.assert_array_equal(result.map, arrays["map"])
    np.testing.assert_array_equal(result.mask, arrays["mask"])
    np.testing.assert_array_equal(result["fsc_corrected"], arrays["fsc_corrected"])
    assert {name: curve.tolist() for name, curve in result.fsc.items()} == {
        "unmasked": arrays["fsc_unmasked"].tolist(),
        "corrected": arrays["fsc_corrected"].tolist(),
    }
    assert (result.job, result.box, result.pixel_size, result.resolution) == ("refine3d", 16, PIXEL, 4.5)
    assert result.frequency[-1] == 1 / (2 * PIXEL)
    assert [row["resolution_A"] for row in result.iterations] == [5.0]
    assert list(result.warnings) == [HOSTILE, "second"]
    np.testing.assert_array_equal(result.particles["rot"], table["rot"])
    np.testing.assert_array_equal(result.particle_store.read_images([3]), images()[[3]])
    assert "4.50 Å" in repr(result)
    assert "box 64 px" in repr(result.particle_store)
    assert Page(result._repr_html_()).tags.count("img") == 3
    shown = result.particle_store._repr_html_()
    assert shown is not None
    assert Page(shown).tags.count("img") == 6


def test_nothing_is_read_that_is_not_asked_for(project: Path) -> None:
    lose(project / "refine", "map")
    shutil.rmtree(project / "p.zarr")
    result = cloudem.open_result(project / "refine")
    assert result.mask.min() == 1
    assert len(result.particles) == COUNT
    assert "4.50 Å" in result._repr_html_()  # the preview is drawn
    with pytest.raises(StorageError, match=r"damaged: .*map"):
        result.map  # noqa: B018
    with pytest.raises(MissingInputError, match=r"p\.zarr does not exist"):
        result.particle_store  # noqa: B018


def test_the_card_has_the_tiles_of_the_report(project: Path) -> None:
    url = str(project / "refine")
    page = Page(cloudem.open_result(url)._repr_html_())
    tiles = headlines(content_of(url))
    assert len(tiles) == 5
    for value, caption in tiles:
        assert value in page.words
        assert caption in page.words
    assert "second" in page.words
    assert page.tags.count("img") == 3
    assert not {"script", "style", "link", "iframe", "object"} & set(page.tags)


def test_cards_of_256_px_are_below_100_kilobytes(tmp_path: Path) -> None:
    make_store(tmp_path / "p.zarr", 256, groups=300)
    noise = np.random.default_rng(3).random((256,) * 3, dtype=np.float32)
    make_result(tmp_path / "refine", tmp_path / "p.zarr", noise)
    result = cloudem.open_result(tmp_path / "refine")
    drawn = result._repr_html_()
    assert "Drawn from 128 of 256 voxels along an edge." in drawn
    shutil.rmtree(tmp_path / "refine" / "preview")
    whole = result._repr_html_()  # of the map itself
    assert "Drawn from" not in whole
    particles = result.particle_store._repr_html_()
    for html in (drawn, whole, particles):
        assert html is not None
        assert 20_000 < len(html.encode()) < 100_000


def test_a_preview_of_an_iteration_is_not_taken_for_the_result(project: Path) -> None:
    url = project / "refine"
    before = cloudem.open_result(url)._repr_html_()
    write_previews(str(url), previews_of_map(np.zeros((BOX,) * 3, np.float32), PIXEL, iteration=3))
    pictures = [re.findall(r"base64,([^\"]+)", html) for html in (before, cloudem.open_result(url)._repr_html_())]
    assert len(set(pictures[1])) == 3  # not three times nothing


def test_particles_show_counts_optics_and_examples(project: Path) -> None:
    store = cloudem.open_particles(project / "p.zarr")
    html = store._repr_html_()
    assert html is not None
    page = Page(html)
    for words in (
        "30",
        "particles, 15 + 15",
        "64 px",
        "2 Å",
        "1.20 to 2.00 µm",
        "300 kV",
        "2.7 mm",
        "0.07",
        "image 29",
    ):
        assert words in page.words, words
    assert page.tags.count("img") == 6
    assert not {"script", "style", "link"} & set(page.tags)
    assert f"{HOSTILE}0" in page.text


def test_what_is_damaged_is_said_and_the_rest_is_shown(project: Path) -> None:
    shard = next(path for path in (project / "p.zarr" / "images" / "c").rglob("*") if path.is_file())
    shard.unlink()
    html = cloudem.open_particles(project / "p.zarr")._repr_html_()
    assert html is not None
    page = Page(html)
    assert "img" not in page.tags
    assert "300 kV" in page.words
    assert "missing" in page.text
    lose(project / "refine", "fsc_corrected")
    assert "fsc_corrected" in Page(cloudem.open_result(project / "refine")._repr_html_()).text


def test_what_is_no_result_is_refused_in_words(project: Path) -> None:
    with pytest.raises(MissingInputError, match="does not exist"):
        cloudem.open_result(project / "nothing")
    with pytest.raises(FormatError, match=r"cloudem\.open_particles"):
        cloudem.open_result(project / "p.zarr")
    (project / "empty").mkdir()
    with pytest.raises(StorageError, match="no finished result"):
        cloudem.open_result(project / "empty")
    write_group(project / "mask", "result", {}, {})
    with pytest.raises(MissingInputError, match="holds no particles"):
        Result(str(project / "mask")).particles  # noqa: B018


def test_a_store_without_who_can_draw_is_shown_as_text(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloudem.io.particle_store.ParticleStore.drawn_by", None)
    assert cloudem.open_particles(project / "p.zarr")._repr_html_() is None


def test_importing_the_package_imports_nothing_else() -> None:
    code = "import cloudem, sys; dir(cloudem); print([m for m in ('numpy', 'zarr', 'PIL') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
