import mrcfile
import numpy as np
import pytest

from cloudem.errors import FormatError, InconsistentDataError, MissingInputError
from cloudem.io.formats.mrc import map_stack, read_header, read_volume
from cloudem.io.formats.mrc_writer import write_stack, write_volume


def volume(box=6):
    return np.random.default_rng(0).standard_normal((box, box, box), dtype=np.float32)


def raw_mrc(data, mode, order="<", stamp=True):
    """Write the bytes of an MRC file without any library."""
    words = np.zeros(256, dtype=order + "i4")
    words[:4] = data.shape[2], data.shape[1], data.shape[0], mode
    words[7:10] = data.shape[::-1]
    words.view(order + "f4")[10:13] = np.array(data.shape[::-1]) * 1.5
    words[16:19] = 1, 2, 3
    raw = bytearray(words.tobytes())
    if stamp:
        raw[208:214] = b"MAP " + (b"\x44\x44" if order == "<" else b"\x11\x11")
    return bytes(raw) + data.astype(data.dtype.newbyteorder(order)).tobytes()


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("stamp", [True, False])
@pytest.mark.parametrize(("mode", "dtype"), [(0, "i1"), (1, "i2"), (2, "f4"), (6, "u2"), (12, "f2")])
def test_all_modes_and_byte_orders(tmp_path, mode, dtype, order, stamp):
    data = np.random.default_rng(1).integers(0, 100, (3, 4, 5)).astype(dtype)
    path = tmp_path / "x.mrcs"
    path.write_bytes(raw_mrc(data, mode, order, stamp))
    mapped, header = map_stack(path)
    np.testing.assert_array_equal(mapped, data)
    assert header.shape == (3, 4, 5)
    assert header.pixel_size == pytest.approx(1.5)


def test_bytes_of_old_imod_files_are_unsigned(tmp_path):
    data = np.full((1, 2, 2), 200, dtype=np.uint8)
    raw = bytearray(raw_mrc(data, 0))
    raw[152:156] = (1146047817).to_bytes(4, "little")
    (tmp_path / "x.mrcs").write_bytes(raw)
    assert map_stack(tmp_path / "x.mrcs")[0].max() == 200


def test_mrcfile_reads_what_is_written_and_finds_it_valid(tmp_path, capsys):
    data = volume()
    write_volume(tmp_path / "v.mrc", data, 1.34)
    write_stack(tmp_path / "s.mrcs", [data[:2], data[2:]], 6, 1.34)
    for name, is_volume in (("v.mrc", True), ("s.mrcs", False)):
        assert mrcfile.validate(tmp_path / name)
        with mrcfile.open(tmp_path / name) as file:
            np.testing.assert_array_equal(file.data, data)
            assert float(file.voxel_size.x) == pytest.approx(1.34)
            assert file.is_volume() == is_volume
            assert float(file.header.rms) == pytest.approx(data.std(), rel=1e-5)
    assert "invalid" not in capsys.readouterr().out


@pytest.mark.parametrize("axes", [(1, 2, 3), (3, 2, 1), (2, 1, 3), (2, 3, 1)])
def test_axes_in_any_order_become_z_y_x(tmp_path, axes):
    data = volume()
    columns, rows, sections = axes
    # data is [z, y, x]; axis 3 - a of it runs along a (1 = x, 2 = y, 3 = z)
    path = tmp_path / "v.mrc"
    raw = bytearray(raw_mrc(np.ascontiguousarray(data.transpose(3 - sections, 3 - rows, 3 - columns)), 2))
    raw[64:76] = np.array(axes, dtype="<i4").tobytes()
    path.write_bytes(raw)
    np.testing.assert_array_equal(read_volume(path).data, data)


def test_bad_files_are_one_clear_line(tmp_path):
    path = tmp_path / "v.mrc"
    good = raw_mrc(volume(), 2)
    huge = bytearray(good)
    huge[:12] = np.array([2**30, 2**30, 2**30], dtype="<i4").tobytes()
    negative = bytearray(good)
    negative[92:96] = (-5).to_bytes(4, "little", signed=True)
    zero = bytearray(good)
    zero[:4] = bytes(4)
    cases = [
        (good[:-1], FormatError, "truncated"),
        (good[:100], FormatError, "less than the 1024"),
        (bytes(huge), FormatError, "truncated"),
        (bytes(negative), FormatError, "extended header"),
        (bytes(zero), FormatError, "claims 0 x"),
        (raw_mrc(volume(), 4), FormatError, "complex"),
        (b"# version 30001\n" * 100, FormatError, "not an MRC|mode"),
        (raw_mrc(volume()[:3], 2), InconsistentDataError, "cube"),
        (raw_mrc(volume() * np.float32(np.nan), 2), FormatError, "NaN"),
    ]
    for raw, error, words in cases:
        path.write_bytes(raw)
        with pytest.raises(error, match=words) as caught:
            read_volume(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(MissingInputError, match="does not exist"):
        read_header(tmp_path / "none.mrc")


def test_a_map_without_pixel_size_needs_one(tmp_path):
    write_volume(tmp_path / "v.mrc", volume(), 0.0)
    with pytest.raises(FormatError, match="no pixel size"):
        read_volume(tmp_path / "v.mrc")
    assert read_volume(tmp_path / "v.mrc", 2.5).pixel_size == 2.5


def test_a_stack_that_ends_early_leaves_no_file(tmp_path):
    with pytest.raises(InconsistentDataError, match="6 images came"):
        write_stack(tmp_path / "s.mrcs", [volume()], 7, 1.0)
    assert list(tmp_path.iterdir()) == []
