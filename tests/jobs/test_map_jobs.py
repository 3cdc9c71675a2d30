"""find_symmetry, align_map, flip_hand and compare_maps, run as the command line runs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from cloudem.algorithms.density import demo_molecule, density_of_atoms
from cloudem.algorithms.placing import inverted, moved_map
from cloudem.algorithms.simulate import Recording, Simulator, random_particles
from cloudem.errors import InconsistentDataError, MissingInputError, OutputExistsError, ParameterError
from cloudem.io.exporting import export
from cloudem.io.formats.mrc import read_volume
from cloudem.io.formats.mrc_writer import write_volume
from cloudem.io.particle_store import open_particles, write_particles
from cloudem.io.storage.groups import read_attributes, read_group, write_group
from cloudem.jobs.align_map import AlignMap
from cloudem.jobs.base import Inputs
from cloudem.jobs.compare_maps import CompareMaps
from cloudem.jobs.find_symmetry import FindSymmetry
from cloudem.jobs.flip_hand import FlipHand
from cloudem.jobs.local_resolution import LocalResolution
from cloudem.jobs.maps import stated_symmetry
from cloudem.jobs.postprocess import Postprocess
from cloudem.jobs.reconstruct.job import Reconstruct
from cloudem.jobs.refine3d.job import Refine3D
from cloudem.kernels.shells import fourier_shell_correlation
from cloudem.model.symmetry import operators
from tests.jobs.conftest import molecule, run

BOX, PIXEL = 40, 5.0
TURN = Rotation.from_euler("zyx", [35, -50, 20], degrees=True).as_matrix()

Float32 = NDArray[np.float32]


@pytest.fixture(scope="module")
def density() -> Float32:
    return density_of_atoms(demo_molecule(120.0, seed=8), BOX, PIXEL)


def noisy(volume: Float32, seed: int, level: float = 0.05) -> Float32:
    noise = np.random.default_rng(seed).standard_normal(volume.shape, np.float32)
    return np.asarray(volume + level * volume.max() * noise, np.float32)


def correlated(one: Float32, other: Float32, last: int = 12) -> float:
    return float(fourier_shell_correlation(one, other)[1:last].min())


def test_the_symmetry_of_half_maps_is_found_and_refine3d_takes_it(tmp_path: Path) -> None:
    turned = moved_map(molecule("D2"), TURN, np.array([0.5, -0.4, 0.3]), mirrored=False)
    for number in (1, 2):
        write_volume(tmp_path / f"half{number}.mrc", noisy(turned, number), PIXEL)
    out = str(tmp_path / "symmetry")
    job = FindSymmetry(map=str(tmp_path / "half1.mrc"), half2=str(tmp_path / "half2.mrc"), symmetrize=True, out=out)
    assert run(job).warnings() == []
    arrays, attributes = read_group(out, "result")
    assert (attributes["symmetry"], attributes["symmetry_determined"]) == ("D2", True)
    assert attributes["symmetry_worst_axis"] > 0.9 > attributes["symmetry_chance"]
    assert "D2" in arrays["group_name"]
    for operator in operators("D2")[1:]:  # it lies on the standard axes, and all mates are equal
        mate = moved_map(arrays["map"], operator, np.zeros(3), mirrored=False)
        assert correlated(arrays["map"], mate) > 0.98
    assert "Agreement with symmetry mates" in (tmp_path / "symmetry/report.html").read_text()
    assert stated_symmetry("auto", out) == "D2"
    given: dict[str, Any] = {"particles": "p", "diameter_A": 100.0, "out": str(tmp_path / "r")}
    with pytest.raises(ParameterError, match=r"half1\.mrc states no point group"):
        Refine3D(reference=str(tmp_path / "half1.mrc"), symmetry="auto", **given).check(Inputs(), print)
    assert job.is_finished()


def test_nothing_is_claimed_of_an_asymmetric_map_or_of_noise(density: Float32, tmp_path: Path) -> None:
    write_volume(tmp_path / "map.mrc", noisy(density, 1), PIXEL)
    run(FindSymmetry(map=str(tmp_path / "map.mrc"), out=str(tmp_path / "c1")))
    arrays, attributes = read_group(tmp_path / "c1", "result")
    assert (attributes["symmetry"], attributes["symmetry_determined"]) == ("C1", True)
    np.testing.assert_array_equal(arrays["map"], read_volume(tmp_path / "map.mrc").data)
    assert attributes["turn"] == np.eye(3).tolist()
    for number in (1, 2):
        write_volume(tmp_path / f"half{number}.mrc", noisy(0 * density + 1, number), PIXEL)
    job = FindSymmetry(map=str(tmp_path / "half1.mrc"), half2=str(tmp_path / "half2.mrc"), out=str(tmp_path / "noise"))
    said = run(job).warnings()
    assert "the point group is undetermined" in said[0]
    assert read_group(tmp_path / "noise", "result")[1]["symmetry_determined"] is False


def test_a_map_is_laid_on_another_of_other_voxels(density: Float32, tmp_path: Path) -> None:
    moved = moved_map(density, TURN, np.array([3.0, -2.0, 1.0]), mirrored=False, box=44, step=0.96)
    write_volume(tmp_path / "target.mrc", noisy(density, 1, 0.01), PIXEL)
    write_volume(tmp_path / "moved.mrc", moved, 0.96 * PIXEL)
    write_volume(tmp_path / "mirror.mrc", inverted(moved), 0.96 * PIXEL)
    target = read_volume(tmp_path / "target.mrc").data
    for name, either, mirrored in (("moved", False, False), ("mirror", True, True)):
        out = tmp_path / f"aligned-{name}"
        job = AlignMap(
            map=str(tmp_path / f"{name}.mrc"), target=str(tmp_path / "target.mrc"), either_hand=either, out=str(out)
        )
        run(job)
        arrays, attributes = read_group(out, "result")
        assert attributes["mirrored"] is mirrored
        assert attributes["pixel_size_A"] == PIXEL
        assert correlated(arrays["map"], target) > 0.95
        off = np.array(attributes["turn"]) @ TURN
        assert np.degrees(Rotation.from_matrix(off).magnitude()) < 1.0
    run(AlignMap(map=str(tmp_path / "mirror.mrc"), target=str(tmp_path / "target.mrc"), out=str(tmp_path / "kept")))
    assert read_group(tmp_path / "kept", "result")[1]["correlation"] < 0.9


def test_a_map_is_laid_on_the_axes_of_a_group(tmp_path: Path) -> None:
    write_volume(tmp_path / "map.mrc", moved_map(molecule("C2"), TURN, np.zeros(3), mirrored=False), PIXEL)
    run(AlignMap(map=str(tmp_path / "map.mrc"), symmetry="C2", out=str(tmp_path / "c2")))
    volume = read_group(tmp_path / "c2", "result")[0]["map"]
    assert correlated(volume, moved_map(volume, np.diag([-1.0, -1.0, 1.0]), np.zeros(3), mirrored=False)) > 0.95
    said = run(AlignMap(map=str(tmp_path / "map.mrc"), symmetry="C3", out=str(tmp_path / "c3"))).warnings()
    assert "does not have the symmetry C3" in said[0]
    assert read_group(tmp_path / "c3", "result")[1]["symmetry"] == "C1"


def test_flipped_poses_make_the_flipped_map(density: Float32, tmp_path: Path) -> None:
    truth = random_particles(60, Recording(snr=None, per_micrograph=20), 1)
    images = Simulator(density, PIXEL, truth, Recording(snr=None, per_micrograph=20), 1).images()
    write_particles(tmp_path / "particles.zarr", truth, images, box=BOX, pixel_size=PIXEL, dtype="float32")
    for source, out in (("particles.zarr", "one"), ("flipped", "two")):
        if source == "flipped":
            run(FlipHand(map=str(tmp_path / "one"), out=str(tmp_path / "flipped")))
        run(Reconstruct(particles=str(tmp_path / source), diameter_A=130.0, out=str(tmp_path / out)))
    one, two, flipped = (read_group(tmp_path / name, "result")[0] for name in ("one", "two", "flipped"))
    np.testing.assert_array_equal(flipped["half1"], inverted(one["half1"]))
    np.testing.assert_array_equal(inverted(flipped["mask"]), one["mask"])
    np.testing.assert_array_equal(flipped["fsc_corrected"], one["fsc_corrected"])
    for name in ("half1", "half2"):  # Nyquist and the edge of the box apart
        assert correlated(two[name], flipped[name], BOX // 2 - 1) > 0.999
    assert correlated(two["half1"], one["half1"]) < 0.9
    assert len(open_particles(tmp_path / "flipped")) == 60


def test_maps_and_models_are_compared(density: Float32, tmp_path: Path) -> None:
    write_volume(tmp_path / "one.mrc", noisy(density, 1), PIXEL)
    moved = moved_map(density, TURN, np.array([2.0, 1.0, -1.0]), mirrored=True, box=48, step=0.8)
    write_volume(tmp_path / "other.mrc", noisy(moved, 2), 0.8 * PIXEL)
    given = {"map": str(tmp_path / "one.mrc"), "other": str(tmp_path / "other.mrc")}
    run(CompareMaps(**given, either_hand=True, out=str(tmp_path / "both")))
    arrays, attributes = read_group(tmp_path / "both", "result")
    assert attributes["mirrored"] is True
    assert attributes["resolution_half_A"] < 14
    assert attributes["agrees"] is True
    assert arrays["band_fsc"][0] > 0.95
    assert "FSC falls below" in (tmp_path / "both/report.html").read_text()
    said = run(CompareMaps(**given, align=False, out=str(tmp_path / "lying"))).warnings()
    assert "do not agree beyond chance" in said[0]
    model = tmp_path / "model.pdb"
    write_model(model)
    run(CompareMaps(map=given["map"], other=str(model), out=str(tmp_path / "model")))
    assert read_group(tmp_path / "model", "result")[1]["resolution_half_A"] < 20


def write_model(path: Path) -> None:
    """Write the carbons of the demo's molecule, every fourth one, as a PDB file."""
    atoms = demo_molecule(120.0, seed=8)
    rows = [
        f"ATOM  {number + 1:5d}  CA  GLY A{number % 9999 + 1:4d}    {x:8.3f}{y:8.3f}{z:8.3f}  1.00 80.00           C"
        for number, (x, y, z) in enumerate(atoms.positions[::4][:9000])
    ]
    path.write_text("\n".join([*rows, "END"]) + "\n")


def test_wrong_inputs_are_refused_in_one_line(density: Float32, tmp_path: Path) -> None:
    write_volume(tmp_path / "map.mrc", density, PIXEL)
    place, out = str(tmp_path / "map.mrc"), str(tmp_path / "out")
    for values, message in (
        ({}, "needs exactly one of --target and --symmetry; got none"),
        ({"target": place, "symmetry": "C2"}, "got both"),
        ({"symmetry": "C2", "either_hand": True}, "leave out --either-hand"),
    ):
        with pytest.raises(ParameterError, match=message):
            AlignMap(map=place, out=out, **values)
    with pytest.raises(ParameterError, match="C1 has no axes"):
        run(AlignMap(map=place, symmetry="C1", out=out))
    with pytest.raises(MissingInputError):
        run(FindSymmetry(map=str(tmp_path / "absent.mrc"), out=out))
    with pytest.raises(MissingInputError, match="no atomic model"):
        run(CompareMaps(map=place, other=str(tmp_path / "absent.cif"), out=out))
    write_group(out, "", {}, {"kind": "result", "job": "refine3d"})
    with pytest.raises(OutputExistsError, match="contains the results of refine3d"):
        run(FlipHand(map=place, out=out))
    assert (read_attributes(out, "") or {})["job"] == "refine3d"


def test_local_resolution_of_a_map_that_is_sharp_on_one_side(tmp_path: Path) -> None:
    """A map, a page and files; the sharp half is resolved further; and `postprocess --local` shows its detail."""
    box, pixel = 48, 3.0
    rng = np.random.default_rng(3)
    signal = rng.standard_normal((box,) * 3).astype(np.float32)
    blurred = ndimage.gaussian_filter(signal, 1.8)
    x = np.arange(box) - box // 2
    ball = (x[:, None, None] ** 2 + x[:, None] ** 2 + x**2 < 16**2).astype(np.float32)
    truth = ball * (1 + np.where(x < 0, signal, blurred))
    for number in (1, 2):
        noisy_half = truth + 0.5 * rng.standard_normal(truth.shape)
        write_volume(tmp_path / f"half{number}.mrc", noisy_half.astype(np.float32), pixel)
    write_volume(tmp_path / "mask.mrc", ball, pixel)
    given: dict[str, Any] = {"halves": str(tmp_path / "half1.mrc"), "mask": str(tmp_path / "mask.mrc")}
    job = LocalResolution(**given, out=str(tmp_path / "local"))
    assert not any("masked" in text for text in run(job).warnings())
    arrays, attributes = read_group(tmp_path / "local", "result")
    found, inside = arrays["local_resolution"], ball > 0.5
    assert found.shape == arrays["map"].shape == ball.shape
    assert np.median(found[inside & (x < -4)]) < 0.9 * np.median(found[inside & (x > 4)])
    assert attributes["local_median_A"] == pytest.approx(np.median(found[inside]))
    assert "Local resolution" in (tmp_path / "local/report.html").read_text()
    export(tmp_path / "local", tmp_path / "files")
    np.testing.assert_array_equal(read_volume(tmp_path / "files/local_resolution.mrc").data, found)
    script = (tmp_path / "files/local_resolution.cxc").read_text()
    assert "color sample #1 map #2 palette" in script
    empty = tmp_path / "empty.mrc"
    write_volume(empty, 0.2 * ball, pixel)
    with pytest.raises(InconsistentDataError, match="nowhere above"):
        run(LocalResolution(halves=given["halves"], mask=str(empty), out=str(tmp_path / "none")))
    with pytest.raises(InconsistentDataError, match="are one map"):
        run(LocalResolution(halves=given["halves"], half2=given["halves"], out=str(tmp_path / "none")))
    for step in (0.5, 500.0):
        wrong = LocalResolution(**given, definition="spheres", sphere_step_A=step, out=str(tmp_path / "none"))
        with pytest.raises(ParameterError, match="spheres of these maps need 18 to 72 Å"):
            wrong.preflight()
    for number in (1, 2):  # half-maps that share a mask
        write_volume(tmp_path / f"cut_half{number}.mrc", read_volume(tmp_path / f"half{number}.mrc").data * ball, pixel)
    cut = LocalResolution(halves=str(tmp_path / "cut_half1.mrc"), out=str(tmp_path / "cut"))
    assert any("seem to have been masked" in text for text in run(cut).warnings())
    for name, local in (("global", False), ("locally", True)):
        run(Postprocess(**given, local=local, out=str(tmp_path / name)))
    shown = {name: read_group(tmp_path / name, "result")[0]["map"] for name in ("global", "locally")}
    side = inside & (x > 4)
    assert correlated_there(shown["locally"], truth, side) > correlated_there(shown["global"], truth, side) + 0.02
    said = read_group(tmp_path / "locally", "result")[1]
    assert len(said["local_b_factors_A2"]) == 3
    assert "sharpened with local B-factors" in (tmp_path / "locally/report.html").read_text()


def correlated_there(one: Float32, other: Float32, where: NDArray[np.bool_]) -> float:
    return float(np.corrcoef(one[where], other[where])[0, 1])
