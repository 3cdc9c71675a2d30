import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from cloudem.errors import FormatError, InconsistentDataError, MissingColumnError, MissingInputError, ParameterError
from cloudem.io.exporting import export
from cloudem.io.formats.cryosparc import read_particles_cs
from cloudem.io.formats.mrc import map_stack
from cloudem.io.formats.mrc_writer import write_stack
from cloudem.io.formats.star import read_star
from cloudem.io.importing import import_particles
from cloudem.io.particle_store import open_particles
from cloudem.model.poses import euler_to_matrix

DTYPE = [
    ("uid", "<u8"), ("blob/path", "S30"), ("blob/idx", "<u4"), ("blob/shape", "<u4", (2,)), ("blob/psize_A", "<f4"),
    ("blob/sign", "<f4"), ("ctf/exp_group_id", "<u4"), ("ctf/accel_kv", "<f4"), ("ctf/cs_mm", "<f4"),
    ("ctf/amp_contrast", "<f4"), ("ctf/df1_A", "<f4"), ("ctf/df2_A", "<f4"), ("ctf/df_angle_rad", "<f4"),
    ("ctf/phase_shift_rad", "<f4"), ("ctf/tilt_A", "<f4", (2,)), ("alignments3D/pose", "<f4", (3,)),
    ("alignments3D/shift", "<f4", (2,)), ("alignments3D/psize_A", "<f4"), ("alignments3D/split", "<u4"),
    ("location/micrograph_path", "S20"),
]  # fmt: skip


def rows(count=6):
    rng = np.random.default_rng(3)
    data = np.zeros(count, dtype=DTYPE)
    data["uid"] = rng.permutation(10**6)[:count]
    data["blob/path"] = [f">J1/{'ab'[i % 2]}.mrc" for i in range(count)]
    data["blob/idx"] = np.arange(count) // 2
    data["blob/shape"], data["blob/psize_A"], data["blob/sign"] = 16, 1.3, -1
    data["ctf/exp_group_id"], data["ctf/accel_kv"] = np.where(np.arange(count) > 3, 2, 1), 300
    data["ctf/cs_mm"], data["ctf/amp_contrast"] = 2.7, 0.1
    data["ctf/df1_A"], data["ctf/df2_A"] = rng.uniform(1e4, 2e4, (2, count))
    data["ctf/df_angle_rad"], data["ctf/tilt_A"] = 0.5, rng.uniform(size=(count, 2))
    data["alignments3D/pose"] = Rotation.random(count, rng=rng).as_rotvec()
    data["alignments3D/shift"], data["alignments3D/psize_A"] = rng.normal(size=(count, 2)), 2.6
    data["alignments3D/split"] = np.arange(count) % 2
    data["location/micrograph_path"] = "J1/m.mrc"
    return data


def save(path, data, **options):
    with path.open("wb") as file:
        np.save(file, data, **options)
    return path


def test_conventions(tmp_path):
    data = rows()
    source = read_particles_cs(save(tmp_path / "p.cs", data))
    p = source.particles
    matrices = euler_to_matrix(p["rot"], p["tilt"], p["psi"])
    turns = Rotation.from_rotvec(data["alignments3D/pose"].astype(float)).as_matrix()
    np.testing.assert_allclose(matrices, turns.swapaxes(1, 2), atol=1e-6)
    np.testing.assert_allclose(p["shift_x"], -2.6 * data["alignments3D/shift"][:, 0], rtol=1e-6)
    assert p["half_set"].tolist() == [1, 2, 1, 2, 1, 2]
    np.testing.assert_array_equal(p["defocus_v"], data["ctf/df2_A"])
    assert [(g.voltage, g.spherical_aberration, g.amplitude_contrast) for g in p.optics] == [(300, 2.7e7, 0.1)] * 2
    assert p["optics_group"].tolist() == [0, 0, 0, 0, 1, 1]
    assert p["image_name"][:3].tolist() == ["000001@J1/a.mrc", "000001@J1/b.mrc", "000002@J1/a.mrc"]
    assert p["micrograph"][0] == "J1/m.mrc"
    assert source.sign.tolist() == [-1] * 6
    assert (source.pixel_size, source.box) == (1.3, 16)


def test_unknown_fields_travel_without_loss(tmp_path):
    data = rows()
    p = read_particles_cs(save(tmp_path / "p.cs", data)).particles
    np.testing.assert_array_equal(p["cs:uid"].astype(np.float64).astype(np.uint64), data["uid"])
    import json

    tilt = [[np.float32(v) for v in json.loads(value)] for value in p["cs:ctf/tilt_A"]]
    np.testing.assert_array_equal(np.array(tilt, dtype=np.float32), data["ctf/tilt_A"])


def test_fields_of_a_second_file_are_joined_by_uid(tmp_path):
    data = rows()
    first = save(tmp_path / "a.cs", data[[n for n in data.dtype.names if not n.startswith("blob")]])
    second = save(tmp_path / "b.cs", data[["uid", "blob/path", "blob/idx", "blob/shape", "blob/psize_A"]][::-1])
    with pytest.raises(MissingColumnError, match="--passthrough"):
        read_particles_cs(first)
    joined = read_particles_cs(first, [second])
    assert (
        joined.particles["image_name"].tolist()
        == read_particles_cs(save(tmp_path / "p.cs", data)).particles["image_name"].tolist()
    )
    save(second, data[["uid", "blob/path", "blob/idx"]][:3])
    with pytest.raises(InconsistentDataError, match="lacks particles"):
        read_particles_cs(first, [second])


def test_a_pickle_is_refused_and_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (tmp_path.joinpath("sprung").touch, ())

    path = save(tmp_path / "p.cs", np.array([Trap()], dtype=object), allow_pickle=True)
    with pytest.raises(FormatError, match="not a cryoSPARC"):
        read_particles_cs(path)
    path.write_bytes(__import__("pickle").dumps(Trap()))
    with pytest.raises(FormatError):
        read_particles_cs(path)
    assert not (tmp_path / "sprung").exists()


def test_bad_files_are_one_clear_line(tmp_path):
    def changed(field, value):
        data = rows()
        data[field][1] = value
        return data

    names = [n for n in rows().dtype.names if n != "ctf/df1_A"]
    odd = np.zeros(2, dtype=[("uid", "<u8"), ("when", "<M8[s]")])
    cases = [
        (changed("ctf/df1_A", np.nan), FormatError, "ctf/df1_A of particle 2"),
        (changed("blob/shape", (16, 32)), InconsistentDataError, "not square"),
        (changed("alignments3D/split", 7), FormatError, "split"),
        (changed("ctf/accel_kv", 0), FormatError, "voltage"),
        (rows(0), ParameterError, "empty"),
        (rows()[names], MissingColumnError, "no defocus"),
        (odd, FormatError, "unknown type"),
        (np.zeros(3), FormatError, "no table"),
    ]
    for data, error, words in cases:
        with pytest.raises(error, match=words) as caught:
            read_particles_cs(save(tmp_path / "p.cs", data))
        assert "\n" not in str(caught.value)
    path = save(tmp_path / "p.cs", rows())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(FormatError, match="truncated"):
        read_particles_cs(path)
    with pytest.raises(MissingInputError):
        read_particles_cs(tmp_path / "none.cs")
    assert "defocus_u" not in read_particles_cs(save(path, rows()[names]), allow_no_ctf=True).particles


def test_images_come_with_bright_protein_and_go_out_as_they_were(tmp_path):
    images = np.random.default_rng(0).standard_normal((6, 16, 16)).astype(np.float32) + 7
    (tmp_path / "J1").mkdir()
    write_stack(tmp_path / "J1" / "a.mrc", [images[::2]], 3, 1.3)
    write_stack(tmp_path / "J1" / "b.mrc", [images[1::2]], 3, 1.3)
    (tmp_path / "J2").mkdir()
    source = read_particles_cs(save(tmp_path / "J2" / "p.cs", rows()))
    with pytest.raises(InconsistentDataError, match=r"states beam tilt .*--without-aberrations"):
        import_particles(source, tmp_path / "p.zarr", dtype="float32")
    summary = import_particles(source, tmp_path / "p.zarr", dtype="float32", without_aberrations=True)
    assert any(line.startswith("not applied: beam tilt") for line in summary.lines())
    stored = open_particles(tmp_path / "p.zarr").read_images(np.arange(6))
    assert all(np.corrcoef(a.ravel(), b.ravel())[0, 1] < -0.999 for a, b in zip(stored, images, strict=True))
    export(tmp_path / "p.zarr", tmp_path / "files")
    np.testing.assert_allclose(map_stack(tmp_path / "files" / "particles.mrcs")[0], images, atol=1e-5)
    table = read_star(tmp_path / "files" / "particles.star")["particles"]
    assert not any(label.startswith("cs:") for label in table)
    assert table["rlnImageOriginalName"][1] == "000001@J1/b.mrc"


def test_images_of_two_sizes_are_optics_groups_of_their_own(tmp_path):
    data = rows()
    data["blob/psize_A"][[0, 4]], data["blob/shape"][[0, 4]] = 1.1, 20
    source = read_particles_cs(save(tmp_path / "p.cs", data))
    group = source.particles["optics_group"]
    assert [source.group_sizes[number] for number in group] == [
        (1.1, 20), (1.3, 16), (1.3, 16), (1.3, 16), (1.1, 20), (1.3, 16)
    ]  # fmt: skip
    assert group[0] != group[4]  # of two exposure groups
    data["blob/psize_A"] = 1.3 * (1 + 1e-5 * np.arange(6))  # but for rounding the same
    data["blob/shape"] = 16
    source = read_particles_cs(save(tmp_path / "p.cs", data))
    assert (source.pixel_size, source.box, source.group_sizes) == (1.3, 16, ())
