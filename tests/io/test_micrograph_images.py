"""Images of micrographs: groups that jobs write, and files."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from cloudem.errors import FormatError, InconsistentDataError, MissingInputError, ParameterError, StorageError
from cloudem.io.micrographs.images import (
    image_place,
    open_micrograph_image,
    thumbnail_of,
    write_micrograph_image,
)
from tests.io.movies_files import write_mrc

SHAPE = (40, 50)


def image(seed: int) -> np.ndarray:
    return (1000 + 30 * np.random.default_rng(seed).standard_normal(SHAPE)).astype(np.float32)


def test_what_was_written_is_read_by_kind_and_by_rows(tmp_path: Path, bucket: str) -> None:
    for url in (str(tmp_path / "out"), f"s3://{bucket}/out"):
        images = {"sum": image(1), "even": 1e9 * image(2)}
        place = write_micrograph_image(url, "Movies/a 1.mrc", images, pixel_size=1.5, attributes={"more": [1, 2]})
        found = open_micrograph_image(place)
        assert (found.shape, found.pixel_size, found.kinds, found.attributes["more"]) == (
            SHAPE,
            1.5,
            ("sum", "even"),
            [1, 2],
        )
        np.testing.assert_allclose(found.read(), images["sum"], atol=30 * 2e-3)
        np.testing.assert_allclose(found.read("even", slice(10, 20)), images["even"][10:20], rtol=3e-4)
        with pytest.raises(ParameterError, match="no image 'odd'; it has sum, even"):
            found.read("odd")
        write_micrograph_image(url, "Movies/a 1.mrc", {"sum": image(3)}, pixel_size=2.0)
        np.testing.assert_allclose(open_micrograph_image(place).read(), image(3), atol=30 * 2e-3)
    assert place.startswith(f"s3://{bucket}/out/images/Movies_a_1.mrc-")
    assert image_place("s3://b/o", "m_01.tif") == "s3://b/o/images/m_01.tif"
    assert image_place("s3://b/o", "a/b") != image_place("s3://b/o", "a_b")


def test_a_task_that_runs_twice_at_once_harms_nothing(tmp_path: Path) -> None:
    def write(_: int) -> str:
        return write_micrograph_image(str(tmp_path), "m", {"sum": image(1), "odd": image(2)}, pixel_size=1.0)

    with ThreadPoolExecutor(4) as pool:
        place = list(pool.map(write, range(24)))[-1]
    np.testing.assert_allclose(open_micrograph_image(place).read("odd"), image(2), atol=0.1)


def test_a_thumbnail_shows_means_whatever_the_size(tmp_path: Path) -> None:
    picture = np.zeros((700, 1000), np.float32)
    picture[:350, 500:] = 1
    place = write_micrograph_image(str(tmp_path), "m", {"sum": picture}, pixel_size=1.0)
    small = open_micrograph_image(place).thumbnail()
    assert (small.shape, small.dtype) == ((175, 250), np.uint8)
    np.testing.assert_allclose(thumbnail_of(np.zeros((3, 5), np.float32)), 127.5, atol=1)
    bright = small > 128
    assert bright[:87, 126:].all()
    assert not bright[89:].any()
    assert not bright[:, :124].any()


def test_files_are_images_too_and_what_is_wrong_is_named(tmp_path: Path) -> None:
    path = write_mrc(tmp_path / "a.mrc", image(1)[None], 2)
    found = open_micrograph_image(path)
    np.testing.assert_array_equal(found.read(rows=slice(3, 7)), image(1)[3:7])
    assert (found.kinds, found.shape) == (("sum",), SHAPE)
    write_mrc(tmp_path / "b.mrc", np.stack([image(1), image(2)]), 2)
    with pytest.raises(FormatError, match="holds 2 images, where one is needed"):
        open_micrograph_image(tmp_path / "b.mrc")
    with pytest.raises(MissingInputError):
        open_micrograph_image(tmp_path / "c.mrc")
    bad = image(1)
    bad[3, 4] = np.nan
    write_mrc(tmp_path / "d.mrc", bad[None], 2)
    with pytest.raises(FormatError, match="its image is damaged"):
        open_micrograph_image(tmp_path / "d.mrc").read()
    with pytest.raises(InconsistentDataError, match="not finite"):
        write_micrograph_image(str(tmp_path), "m", {"sum": bad}, pixel_size=1.0)
    place = Path(write_micrograph_image(str(tmp_path), "m", {"sum": image(1)}, pixel_size=1.0))
    chunk = next(each for each in place.rglob("sum/c/0/0"))
    chunk.write_bytes(chunk.read_bytes()[:-2] + b"xx")
    with pytest.raises(StorageError, match=r"damaged|changed|match"):
        open_micrograph_image(place).read()
