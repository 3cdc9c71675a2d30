"""Movies of every kind are read frame by frame as they were written, from folders and from S3."""

from __future__ import annotations

import importlib.util
import os
import struct
from contextlib import suppress

import numpy as np
import pytest

from cloudem.errors import CloudemError, FormatError, MissingInputError, ParameterError, StorageError
from cloudem.io.movies import ranges
from cloudem.io.movies.eer_movie import frame_groups, group_of_dose
from cloudem.io.movies.opening import open_movie
from cloudem.io.storage.listing import matching_files
from cloudem.io.storage.location import join, object_store, put
from cloudem.testing.eer import encode_eer_frame, write_eer
from tests.io.movies_files import eer_movie, events, nibbles, write_mrc

SHAPE = (5, 12, 17)


def pixels(dtype, top=100):
    rng = np.random.default_rng(0)
    if np.dtype(dtype).kind == "f":
        return rng.normal(size=SHAPE).astype(dtype)
    low = -top if np.dtype(dtype).kind == "i" else 0
    return rng.integers(low, top, SHAPE).astype(dtype)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(("mode", "dtype"), [(0, "i1"), (1, "i2"), (2, "f4"), (6, "u2"), (12, "f2")])
def test_mrc_of_every_mode_and_byte_order(tmp_path, mode, dtype, order):
    frames = pixels(dtype)
    movie = open_movie(write_mrc(tmp_path / "m.mrc", frames, mode, order, extended=2048))
    assert (movie.format, movie.frames, movie.shape, movie.pixel_size) == ("MRC", 5, (12, 17), 1.5)
    assert movie.dtype == np.dtype(dtype)
    assert movie.read(1, 3).dtype.isnative
    np.testing.assert_array_equal(movie.read(1, 3), frames[1:3])
    np.testing.assert_array_equal(movie.read(), frames)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("columns", [16, 17])
def test_four_bits_a_pixel(tmp_path, columns, order):
    frames = pixels("u1", 16)[..., :columns]
    movie = open_movie(write_mrc(tmp_path / "m.mrc", nibbles(frames), 101, order, columns=columns))
    assert (movie.encoding, movie.shape, movie.pixel_size) == ("4 bits", (12, columns), 1.5)
    np.testing.assert_array_equal(movie.read(2, 5), frames[2:])


def test_four_bits_as_half_the_columns_of_bytes_by_imods_flag(tmp_path):
    frames = pixels("u1", 16)[..., :16]
    path = write_mrc(tmp_path / "m.mrc", nibbles(frames), 0, flags=16)
    np.testing.assert_array_equal(open_movie(path).read(), frames)
    np.testing.assert_array_equal(open_movie(write_mrc(path, nibbles(frames), 0, flags=0)).read(), nibbles(frames))


def test_an_mrc_movie_that_is_too_short_or_too_long(tmp_path):
    path = write_mrc(tmp_path / "m.mrc", pixels("i2"), 1)
    raw = path.read_bytes()
    path.write_bytes(raw[: 1024 + 3 * 12 * 17 * 2 + 5])
    with pytest.raises(FormatError, match="truncated or still being written: it holds 3 whole frames of the 5"):
        open_movie(path)
    path.write_bytes(raw[:700])
    with pytest.raises(FormatError, match="700 bytes, less than the 1024"):
        open_movie(path)
    path.write_bytes(raw + b"\0" * 12 * 17 * 2)
    assert open_movie(path).doubts == ["it holds 6 frames, and its header says 5"]
    path.write_bytes(b"BZh9" + raw)
    with pytest.raises(FormatError, match="compressed as a whole"):
        open_movie(path)
    with pytest.raises(MissingInputError):
        open_movie(tmp_path / "none.mrc")
    with pytest.raises(ParameterError, match="frames 3 to 6 were asked for"):
        open_movie(write_mrc(path, pixels("i2"), 1)).read(3, 6)


def test_a_movie_that_changes_while_it_is_read_is_refused(tmp_path):
    path = write_mrc(tmp_path / "m.mrc", pixels("i2"), 1)
    movie = open_movie(path)
    raw = path.read_bytes()
    path.write_bytes(raw + b"\0" * 408)
    os.utime(path, ns=(1, 1))
    with pytest.raises(StorageError, match="may still be being written"):
        movie.read()


TIFFS = [
    {},
    {"compression": "lzw", "predictor": True},
    {"compression": "zlib"},
    {"compression": "zstd"},
    {"compression": "lzw", "tile": (16, 16)},
    {"compression": "zstd", "bigtiff": True},
    {"compression": "lzw", "byteorder": ">"},
    {"rowsperstrip": 1, "compression": "lzw"},
]


@pytest.mark.parametrize("options", TIFFS, ids=str)
@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_tiff_is_flipped_in_y(tmp_path, options, dtype):
    tifffile = pytest.importorskip("tifffile")
    frames = pixels(dtype)
    given = {"rowsperstrip": 5, **options}
    if "tile" in given:
        del given["rowsperstrip"]
    tifffile.imwrite(tmp_path / "m.tif", frames, photometric="minisblack", metadata=None, **given)
    movie = open_movie(tmp_path / "m.tif")
    assert (movie.format, movie.frames, movie.shape, movie.dtype) == ("TIFF", 5, (12, 17), np.dtype(dtype))
    np.testing.assert_array_equal(movie.read(), frames[:, ::-1])
    np.testing.assert_array_equal(movie.read(3, 4), frames[3:4, ::-1])
    assert movie.damaged == {}


def test_a_tiff_movie_that_is_cut_and_one_with_a_damaged_frame(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    path, frames = tmp_path / "m.tif", pixels("u1")
    tifffile.imwrite(path, frames, photometric="minisblack", metadata=None, compression="lzw", rowsperstrip=12)
    raw = path.read_bytes()
    with tifffile.TiffFile(path) as file:
        start, cut = file.pages[2].dataoffsets[0], file.pages[3].dataoffsets[0]
    path.write_bytes(raw[: cut + 3])
    with pytest.raises(FormatError, match="truncated or still being written"):
        open_movie(path)
    path.write_bytes(raw[:start] + b"\xff" * 10 + raw[start + 10 :])
    movie = open_movie(path)
    read = movie.read()
    assert list(movie.damaged) == [2]
    assert not read[2].any()
    np.testing.assert_array_equal(read[[0, 1, 3, 4]], frames[[0, 1, 3, 4], ::-1])


def image_of(events, shape, zoom):
    """Add up events plainly, one by one."""
    out = np.zeros((shape[0] << zoom, shape[1] << zoom), int)
    for position, symbol in zip(*events, strict=True):
        true = int(symbol) ^ 0x0A
        y, x = (int(position) // shape[1] << 2) + (true >> 2), (int(position) % shape[1] << 2) + (true & 3)
        out[y >> (2 - zoom), x >> (2 - zoom)] += 1
    return out


@pytest.mark.parametrize("upsampling", [1, 2, 4])
@pytest.mark.parametrize("compression", [65000, 65001, 65002])
def test_eer_event_for_event_and_in_groups(tmp_path, compression, upsampling):
    made = eer_movie(tmp_path / "m.eer", 7, (32, 48), compression, share=0.004)
    movie = open_movie(tmp_path / "m.eer", upsampling=upsampling, group=3)
    assert (movie.format, movie.raw_frames, movie.frames, movie.left_over) == ("EER", 7, 2, 1)
    for number, (positions, symbols) in enumerate(made):
        found = movie.events(number)
        assert found[0].tolist() == positions.tolist()
        assert found[1].tolist() == symbols.tolist()
    zoom = upsampling.bit_length() - 1
    expected = np.stack([sum(image_of(each, (32, 48), zoom) for each in made[first : first + 3]) for first in (0, 3)])
    read = movie.read()
    np.testing.assert_array_equal(read, expected)
    assert read.sum() == sum(movie.electrons.values()) == sum(len(each[0]) for each in made[:6])
    whole = open_movie(tmp_path / "m.eer", upsampling=upsampling, group=3, keep_incomplete=True)
    assert (whole.frames, whole.left_over) == (3, 0)
    assert whole.read().sum() == sum(len(each[0]) for each in made)


@pytest.mark.parametrize(("compression", "share"), [(65000, 0.2), (65001, 0.004), (65002, 0.004)])
@pytest.mark.parametrize("superres", [0, 1, 2])
def test_eer_as_imagecodecs_reads_it(tmp_path, compression, share, superres):
    """Where a run of 65000 is 255 imagecodecs (2026.3) reads no symbol behind it; the files' makers do, and cloudem."""
    imagecodecs = pytest.importorskip("imagecodecs")
    made = eer_movie(tmp_path / "m.eer", 2, (32, 48), compression, share)
    movie = open_movie(tmp_path / "m.eer", upsampling=1 << superres)
    if compression == 65000:
        assert np.diff(made[0][0]).max() < 255
    for number in range(2):
        data = b"".join(movie.ranges.read_many(movie._frames[number].extents))
        run = 8 if compression == 65000 else 7
        size = (32 << superres, 48 << superres)
        theirs = imagecodecs.eer_decode(data, size, run, 2, 2, superres=superres)
        np.testing.assert_array_equal(movie.read(number, number + 1)[0] > 0, theirs)


def test_a_damaged_eer_frame_is_named_and_adds_nothing(tmp_path):
    path = tmp_path / "m.eer"
    made = eer_movie(path, 4)
    start, stop = open_movie(path)._frames[1].extents[0]
    raw = bytearray(path.read_bytes())
    raw[start : start + 40] = b"\xff" * 40
    path.write_bytes(raw)
    movie = open_movie(path, group=2)
    read = movie.read()
    assert list(movie.damaged) == [1]
    assert "its codes" in movie.damaged[1]
    assert sorted(movie.electrons) == [0, 2, 3]
    np.testing.assert_array_equal(read[0], image_of(made[0], (32, 48), 0))
    assert read.sum() == sum(len(made[number][0]) for number in (0, 2, 3))
    path.write_bytes(raw[:stop])
    with pytest.raises(FormatError, match="truncated or still being written"):
        open_movie(path)


def test_eer_with_fewer_frames_than_its_metadata_and_what_cannot_be_asked(tmp_path):
    path = tmp_path / "m.eer"
    eer_movie(path, 4)
    path.write_bytes(path.read_bytes().replace(b'Frames">4<', b'Frames">9<'))
    assert open_movie(path).doubts == ["it holds 4 raw frames, and its metadata say 9"]
    with pytest.raises(ParameterError, match="an upsampling of 3"):
        open_movie(path, upsampling=3)
    with pytest.raises(ParameterError, match="fewer than one group of 5"):
        open_movie(path, group=5)


def test_groups_of_raw_frames():
    assert frame_groups(7, 3, keep_incomplete=False) == ([(0, 3), (3, 6)], 1)
    assert frame_groups(7, 3, keep_incomplete=True) == ([(0, 3), (3, 6), (6, 7)], 0)
    assert group_of_dose(1.0, 0.04) == 25
    assert group_of_dose(0.01, 0.04) == 1
    with pytest.raises(ParameterError, match="cannot be made"):
        group_of_dose(1.0, 0.0)


def test_frames_are_read_by_ranges_from_s3(tmp_path, bucket, monkeypatch):
    path = write_mrc(tmp_path / "m.mrc", pixels("i2"), 1)
    put(object_store(f"s3://{bucket}"), "movies/m.mrc", path.read_bytes())
    eer_movie(tmp_path / "m.eer", 4)
    put(object_store(f"s3://{bucket}"), "movies/m.eer", (tmp_path / "m.eer").read_bytes())
    asked = []
    read = ranges.RangeReader.read
    monkeypatch.setattr(ranges.RangeReader, "read", lambda self, a, b: asked.append(b - a) or read(self, a, b))
    movie = open_movie(f"s3://{bucket}/movies/m.mrc")
    np.testing.assert_array_equal(movie.read(3, 4), pixels("i2")[3:4])
    assert sum(asked) < path.stat().st_size
    here, there = open_movie(tmp_path / "m.eer", group=2), open_movie(f"s3://{bucket}/movies/m.eer", group=2)
    np.testing.assert_array_equal(there.read(), here.read())
    put(object_store(f"s3://{bucket}"), "movies/m.mrc", path.read_bytes()[:-2] + b"\1\1")
    with pytest.raises(StorageError, match="changed or deleted"):
        movie.read(3, 4)
    with pytest.raises(MissingInputError):
        open_movie(join(f"s3://{bucket}", "movies/none.mrc"))


def test_directories_that_run_in_a_circle_end(tmp_path):
    path = tmp_path / "m.eer"
    eer_movie(path, 2)
    raw = bytearray(path.read_bytes())
    (first,) = struct.unpack_from("<Q", raw, 8)
    (count,) = struct.unpack_from("<Q", raw, first)
    struct.pack_into("<Q", raw, first + 8 + 20 * count, first)
    path.write_bytes(raw)
    with pytest.raises(FormatError, match="run in a circle"):
        open_movie(path)


def test_directories_far_apart_are_fetched_many_at_a_time_from_s3(tmp_path, bucket, monkeypatch):
    made = [events(seed, 256 * 256, 0.2) for seed in range(3)]
    coded = [encode_eer_frame(*each, 256 * 256) for each in made]
    write_eer(tmp_path / "m.eer", coded * 20, (256, 256))
    assert min(map(len, coded)) > ranges.BLOCK_BYTES
    put(object_store(f"s3://{bucket}"), "far/m.eer", (tmp_path / "m.eer").read_bytes())
    one_by_one, together = [], []
    read, read_many = ranges.RangeReader.read, ranges.RangeReader.read_many
    monkeypatch.setattr(ranges.RangeReader, "read", lambda self, *each: one_by_one.append(each) or read(self, *each))
    monkeypatch.setattr(
        ranges.RangeReader, "read_many", lambda self, these: together.extend(these) or read_many(self, these)
    )
    movie = open_movie(f"s3://{bucket}/far/m.eer")
    assert movie.raw_frames == 60
    assert len(one_by_one) - len(together) < 30  # 16 before the distance is known
    assert movie.events(59)[0].tolist() == made[2][0].tolist()


def kinds(tmp_path):
    write_mrc(tmp_path / "a.mrc", pixels("i2"), 1)
    write_mrc(tmp_path / "b.mrc", nibbles(pixels("u1", 16)), 101, columns=17)
    eer_movie(tmp_path / "c.eer", 3, compression=65002)
    found = ["a.mrc", "b.mrc", "c.eer"]
    if importlib.util.find_spec("tifffile"):
        import tifffile

        tifffile.imwrite(tmp_path / "d.tif", pixels("u1"), photometric="minisblack", metadata=None, compression="lzw")
        found.append("d.tif")
    return found


def test_whatever_is_damaged_is_refused_on_purpose_or_read(tmp_path):
    rng = np.random.default_rng(0)
    for name in kinds(tmp_path):
        raw = (tmp_path / name).read_bytes()
        for number in range(150):
            damaged = bytearray(raw)
            whole = 200 if name.endswith(".mrc") or number % 2 else len(raw)
            for place in rng.integers(0, whole, 1 + number % 4):
                damaged[place] = rng.integers(0, 256)
            (tmp_path / "x").write_bytes(damaged[: rng.integers(0, len(raw))] if number % 10 == 0 else damaged)
            with suppress(CloudemError):
                movie = open_movie(tmp_path / "x")
                if movie.frames * movie.shape[0] * movie.shape[1] < 1e7:
                    movie.read()


def test_frames_and_patterns_wherever_fsspec_reaches(tmp_path):
    fsspec = pytest.importorskip("fsspec")
    system = fsspec.filesystem("memory")
    raw = write_mrc(tmp_path / "m.mrc", pixels("i2"), 1).read_bytes()
    for name in ("/grid/a.mrc", "/grid/b.mrc", "/grid/b.txt"):
        system.pipe(name, raw)
    found = matching_files("memory://grid/*.mrc")
    assert found == ["memory://grid/a.mrc", "memory://grid/b.mrc"]
    np.testing.assert_array_equal(open_movie(found[1]).read(2, 4), pixels("i2")[2:4])
    with pytest.raises(ParameterError, match="wildcards are followed in the last part"):
        matching_files("memory://*/a.mrc")
