"""Headers of maps that contradict themselves, origins, and compressed files, with mrcfile as a witness."""

import gzip
import io
import struct

import mrcfile
import numpy as np
import pytest

from cloudem.errors import CloudemError, FormatError, InconsistentDataError, OutOfMemoryError, ParameterError
from cloudem.io.formats import mrc
from cloudem.io.formats.mrc import map_stack, read_header, read_volume, read_volume_header
from cloudem.io.formats.mrc_writer import write_stack, write_volume
from cloudem.io.storage.location import join, object_store, put

BOX, PIXEL = 8, 1.5


def volume(box=BOX):
    return np.random.default_rng(0).standard_normal((box, box, box), dtype=np.float32)


def file_with(path, *changes, data=None):
    """Write a map whose header has values packed over it: (offset, format, values …)."""
    write_volume(path, volume() if data is None else data, PIXEL)
    raw = bytearray(path.read_bytes())
    for offset, form, *values in changes:
        struct.pack_into(form, raw, offset, *values)
    path.write_bytes(raw)
    return path


NSTART, CELL, ANGLES, AXES, ORIGIN, STAMP = 16, 40, 52, 64, 196, 212


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("m.mrc", [], (0, 0, 0)),
        ("m.mrc", [(ORIGIN, "<3f", 10, -20, 30.5)], (10, -20, 30.5)),
        ("m.mrc", [(NSTART, "<3i", 2, -4, 6)], (3, -6, 9)),
        ("m.mrc", [(NSTART, "<3i", 2, -4, 6), (ORIGIN, "<3f", 0, 0, 1)], (0, 0, 1)),
        ("m.mrc", [(NSTART, "<3i", 2, -4, 6), (ORIGIN, "<3f", np.nan, 0, 1)], (3, -6, 9)),
        ("m.mrc", [(NSTART, "<3i", 2, -4, 6), (ORIGIN, "<3f", 1e30, 0, 1)], (3, -6, 9)),
        ("m.mrc", [(NSTART, "<3i", 2**30, -4, 6)], (0, 0, 0)),
        ("m.mrc", [(NSTART, "<3i", 2, -4, 6), (AXES, "<3i", 3, 1, 2)], (-6, 9, 3)),  # columns, rows, sections: z, x, y
        ("m.mrc", [(208, "4s", b"\0" * 4), (ORIGIN, "<3f", 10, -20, 30)], (0, 0, 0)),  # before MRC2000
        ("m.map", [(NSTART, "<3i", 2, -4, 6), (ORIGIN, "<3f", 9, 9, 9)], (3, -6, 9)),
        ("m.ccp4", [(ORIGIN, "<3f", 9, 9, 9)], (0, 0, 0)),
    ],
)
def test_a_map_lies_where_chimerax_shows_it(tmp_path, name, changes, expected):
    path = file_with(tmp_path / name, *changes)
    assert read_volume(path).origin == pytest.approx(expected)
    packed = tmp_path / f"{name}.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert read_header(packed) == read_header(path)


def test_origins_are_written_as_each_format_has_them(tmp_path):
    origin = (3.0, -6.0, 9.75)
    write_volume(tmp_path / "m.mrc", volume(), PIXEL, origin)
    assert read_volume(tmp_path / "m.mrc").origin == origin
    with mrcfile.open(tmp_path / "m.mrc") as file:
        assert tuple(float(file.header.origin[axis]) for axis in "xyz") == origin
        assert (int(file.header.nxstart), int(file.header.nystart), int(file.header.nzstart)) == (0, 0, 0)
    with pytest.raises(ParameterError, match="whole voxels"):
        write_volume(tmp_path / "m.map", volume(), PIXEL, origin)
    assert not (tmp_path / "m.map").exists()
    write_volume(tmp_path / "m.map", volume(), PIXEL, (3.0, -6.0, 9.0))
    assert read_volume(tmp_path / "m.map").origin == (3.0, -6.0, 9.0)
    for name in ("m.mrc", "m.map"):
        assert mrcfile.validate(tmp_path / name, print_file=io.StringIO())


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ([(CELL, "<3f", 12, 12, 6)], InconsistentDataError, r"1.5 x 1.5 x 0.75 Å, equal sides .*--x-A"),
        ([(CELL, "<3f", 12, 12, 12.02)], InconsistentDataError, "equal sides"),
        ([(CELL, "<3f", 0, 0, 0)], FormatError, "states no pixel size in its header; state the pixel size with --x-A"),
        ([(CELL, "<3f", 12, 12, np.nan)], FormatError, "no pixel size"),
        ([(28, "<3i", 8, 0, 8)], FormatError, "no pixel size"),
        ([(CELL, "<3f", 1e9, 1e9, 1e9)], FormatError, "1.25e.08 Å, where 0.05 to 200 Å are plausible"),
        ([(ANGLES, "<3f", 90, 90, 120)], InconsistentDataError, "axes at 90, 90 and 120°"),
    ],
)
def test_voxels_that_are_no_cubes_of_a_known_size_are_refused(tmp_path, changes, error, words):
    path = file_with(tmp_path / "m.mrc", *changes)
    for read in (read_volume_header, read_volume):
        with pytest.raises(error, match=words) as caught:
            read(path, None, "--x-A")
        assert "\n" not in str(caught.value)
    if "axes" not in words:  # whoever states it knows better
        assert read_volume(path, 2.0).pixel_size == 2.0


def test_rounded_cells_and_angles_that_were_never_set_are_taken(tmp_path):
    path = file_with(tmp_path / "m.mrc", (CELL, "<3f", 12, 12.005, 12), (ANGLES, "<3f", 0, 0, 0))
    assert read_volume(path).pixel_size == PIXEL


def test_a_stated_pixel_size_scales_the_origin(tmp_path):
    path = file_with(tmp_path / "m.mrc", (NSTART, "<3i", 2, -4, 6))
    assert read_volume(path, 3.0).origin == (6, -12, 18)
    path = file_with(tmp_path / "m.mrc", (NSTART, "<3i", 2, -4, 6), (CELL, "<3f", 0, 0, 0))
    assert read_volume(path, 3.0).origin == (6, -12, 18)
    path = file_with(tmp_path / "m.mrc", (ORIGIN, "<3f", 2, -4, 6), (CELL, "<3f", 0, 0, 0))
    assert read_volume(path, 3.0).origin == (2, -4, 6)


@pytest.mark.parametrize(("value", "words"), [(np.inf, "NaN or infinite"), (1e38, "scale the map"), (1e-30, "scale")])
def test_values_that_cannot_be_squared_are_refused(tmp_path, value, words):
    data = np.zeros((BOX,) * 3, "<f4")
    path = file_with(tmp_path / "m.mrc", data=data)
    data[1, 2, 3] = value
    path.write_bytes(path.read_bytes()[:1024] + data.tobytes())
    with pytest.raises(FormatError, match=words):
        read_volume(path)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", ["i1", "i2", "f4", "u2", "f2"])
def test_mrcfile_and_we_agree_on_every_mode_and_byte_order(tmp_path, dtype, order):
    data = np.random.default_rng(1).integers(0, 100, (BOX,) * 3).astype(np.dtype(dtype).newbyteorder(order))
    path = tmp_path / "m.mrc.gz"
    with mrcfile.new(path, compression="gzip") as file:
        file.set_data(data)
        file.voxel_size = 2.5
        file.header.origin = (1, 2, 3)
        file.update_header_stats()
    with mrcfile.open(path) as file:
        assert file.header.mode == read_header(path).mode
        np.testing.assert_array_equal(read_volume(path).data, file.data)
    assert read_volume(path).origin == (1, 2, 3)
    assert read_volume(path).pixel_size == pytest.approx(2.5)


def test_compressed_files_that_end_early_or_are_damaged_are_named(tmp_path):
    good = gzip.compress(file_with(tmp_path / "m.mrc").read_bytes())
    path = tmp_path / "m.mrc.gz"
    flipped = bytearray(good)
    flipped[-6] ^= 1  # of the checksum
    for raw, words in (
        (good[:-1], "truncated"),
        (good[: len(good) // 2], "truncated"),
        (good[:500], "truncated|less than the 1024"),
        (good[:2], "less than the 1024"),
        (bytes(flipped), "damaged"),
        (good[:10] + b"\xff" * 300, "damaged"),
        (gzip.compress(gzip.decompress(good)[:-4]), r"holds 3068 bytes of 3072"),
        (gzip.compress(b"# version 30001\n" * 100), "not an MRC|mode"),
    ):
        path.write_bytes(raw)
        with pytest.raises(FormatError, match=words) as caught:
            read_volume(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    path.write_bytes(gzip.compress(gzip.decompress(good)[:2000]) + gzip.compress(gzip.decompress(good)[2000:]))
    np.testing.assert_array_equal(read_volume(path).data, volume())  # two members, as pigz and bgzip write


def test_a_bomb_takes_no_more_memory_than_its_header_claims(tmp_path, monkeypatch):
    import tracemalloc

    path = tmp_path / "bomb.mrc.gz"
    head = file_with(tmp_path / "m.mrc").read_bytes()
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(head)
        for _ in range(50):
            file.write(bytes(2**20))
    tracemalloc.start()
    np.testing.assert_array_equal(read_volume(path).data, volume())
    assert tracemalloc.get_traced_memory()[1] < 5 * 2**20
    tracemalloc.stop()
    claims = bytearray(head)
    struct.pack_into("<3i", claims, 0, 60_000, 60_000, 60_000)
    path.write_bytes(gzip.compress(bytes(claims)))
    with pytest.raises(FormatError, match="truncated"):
        read_volume(path)
    monkeypatch.setattr(mrc.psutil, "virtual_memory", lambda: type("Memory", (), {"total": 1000}))
    with pytest.raises(OutOfMemoryError, match="GiB"):
        read_volume(tmp_path / "m.mrc")


def test_compressed_stacks_of_images_are_said_to_be(tmp_path):
    write_stack(tmp_path / "s.mrcs", [volume()], BOX, PIXEL)
    raw = gzip.compress((tmp_path / "s.mrcs").read_bytes())
    with pytest.raises(FormatError, match=r"is compressed.*gunzip"):
        mrc.header_of(raw[:1024], 5000, "s.mrcs.gz")


def test_headers_and_maps_on_s3(bucket, tmp_path):
    write_volume(tmp_path / "m.mrc", volume(), PIXEL, (1, 2, 3))
    raw = (tmp_path / "m.mrc").read_bytes()
    url = f"s3://{bucket}/maps"
    for name, data in (("m.mrc", raw), ("m.mrc.gz", gzip.compress(raw)), ("cut.mrc.gz", gzip.compress(raw)[:-9])):
        put(object_store(url), name, data)
    for name in ("m.mrc", "m.mrc.gz"):
        assert read_header(join(url, name)) == read_header(tmp_path / "m.mrc")
        np.testing.assert_array_equal(read_volume(join(url, name)).data, volume())
    with pytest.raises(FormatError, match="truncated"):
        read_volume(join(url, "cut.mrc.gz"))


def test_any_header_is_read_or_refused_in_one_line(tmp_path):
    rng = np.random.default_rng(5)
    path = file_with(tmp_path / "m.mrc")
    good = path.read_bytes()
    odd = [0, -1, 1, 2, 3, 2**31 - 1, -(2**31), 0x7FC00000, 0x7F800000, 0x44440000]
    for _ in range(300):
        raw = bytearray(good)
        for _ in range(rng.integers(1, 4)):
            struct.pack_into("<i", raw, 4 * int(rng.integers(0, 56)), int(rng.choice(odd)))
        packed = rng.random() < 0.3
        path.write_bytes(gzip.compress(bytes(raw), 1) if packed else raw)
        try:
            found = read_volume(path)
        except CloudemError as error:
            assert "\n" not in str(error)  # noqa: PT017
        else:
            assert found.data.shape == (BOX,) * 3
            assert all(np.isfinite(found.origin))


def test_images_of_a_stack_are_mapped_as_before(tmp_path):
    write_stack(tmp_path / "s.mrcs", [volume()[:3]], 3, PIXEL)
    images, header = map_stack(tmp_path / "s.mrcs")
    assert header.shape == (3, BOX, BOX)
    assert header.pixel_size == PIXEL
    np.testing.assert_array_equal(images, volume()[:3])
