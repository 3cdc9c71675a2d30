"""What users get wrong: one clear line through the command line, and nothing half-written left behind."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cloudem.cli import main
from cloudem.cli.command_line import describe_error
from cloudem.errors import CloudemError, MissingColumnError, OutputExistsError, ParameterError, StorageError
from cloudem.io.formats.mrc import read_volume
from cloudem.io.formats.mrc_writer import write_volume
from cloudem.io.particle_store import open_particles, write_particles
from cloudem.io.storage.groups import has_group, read_attributes, write_group
from cloudem.jobs.reconstruct.job import Reconstruct
from cloudem.jobs.refine3d.job import Refine3D
from tests.jobs.conftest import BOX, PIXEL, Scene, assert_same_bits, make_scene, run

Damage = Callable[[Scene, Path], dict[str, object]]


def rewrite(scene: Scene, change: Callable[..., object], rows: int | None = None) -> None:
    """Change the table of a scene's particles, of the first rows alone."""
    store = open_particles(scene.particles)
    chosen = np.arange(len(store))[:rows]
    images, table = store.read_images(chosen), change(store.particles.take(chosen))
    shutil.rmtree(scene.particles)
    write_particles(scene.particles, table, [images], box=BOX, pixel_size=PIXEL)


def reference(change: Callable[[np.ndarray], np.ndarray]) -> Damage:
    def damage(scene: Scene, _: Path) -> dict[str, object]:
        write_volume(scene.reference, change(read_volume(scene.reference).data.copy()), PIXEL)
        return {}

    return damage


def without(*names: str) -> Damage:
    def damage(scene: Scene, _: Path) -> dict[str, object]:
        rewrite(scene, lambda table: table.without_columns(names), rows=8)
        return {}

    return damage


def one_half(scene: Scene, _: Path) -> dict[str, object]:
    rewrite(scene, lambda table: table.with_columns(half_set=np.full(8, 2, np.int8)), rows=8)
    return {}


def nan_defocus(scene: Scene, _: Path) -> dict[str, object]:
    rewrite(scene, lambda t: t.with_columns(defocus_u=np.where(np.arange(8) == 3, np.nan, t["defocus_u"])), rows=8)
    return {}


def nan_poses(scene: Scene, _: Path) -> dict[str, object]:
    angles = {"rot": np.zeros(8), "psi": np.zeros(8), "tilt": np.where(np.arange(8) % 5, 0, np.inf)}
    rewrite(scene, lambda table: table.with_columns(**angles), rows=8)
    return {"local": True}


def optics(**constants: float) -> Damage:
    def damage(scene: Scene, _: Path) -> dict[str, object]:
        rewrite(scene, lambda t: replace(t, optics=tuple(replace(group, **constants) for group in t.optics)), rows=8)
        return {}

    return damage


def with_nan(data: np.ndarray) -> np.ndarray:
    data[3, 4, 5] = np.nan
    return data


def non_cubic(scene: Scene, _: Path) -> dict[str, object]:
    raw = bytearray(Path(scene.reference).read_bytes())
    raw[8:12] = (BOX // 2).to_bytes(4, "little")  # half the sections
    Path(scene.reference).write_bytes(raw)
    return {}


def truncated(name: str) -> Damage:
    def damage(scene: Scene, _: Path) -> dict[str, object]:
        path = Path(scene.reference if name == "reference" else f"{scene.particles}/{name}")
        os.truncate(path, path.stat().st_size // 2)
        return {}

    return damage


def removed(name: str) -> Damage:
    def damage(scene: Scene, _: Path) -> dict[str, object]:
        Path(f"{scene.particles}/{name}").unlink()
        return {}

    return damage


def unfinished_store(scene: Scene, folder: Path) -> dict[str, object]:
    (folder / "bare").mkdir()
    return {"particles": str(folder / "bare")}


def result_as_particles(scene: Scene, folder: Path) -> dict[str, object]:
    write_group(folder / "result", "", {}, {"kind": "result", "job": "refine3d"})
    return {"particles": str(folder / "result")}


def map_as_mask(scene: Scene, _: Path) -> dict[str, object]:
    write_volume(scene.reference + ".mask.mrc", 50 * scene.density, PIXEL)
    return {"mask": scene.reference + ".mask.mrc"}


def table_as_particles(scene: Scene, folder: Path) -> dict[str, object]:
    (folder / "particles.star").write_text("data_particles\n")
    return {"particles": str(folder / "particles.star")}


def values(**given: object) -> Damage:
    return lambda scene, folder: given


CASES = {
    "no particles": (values(particles="nowhere.zarr"), r"nowhere\.zarr does not exist; make it with: cloudem import"),
    "no store": (unfinished_store, "no finished cloudem store, where a particle store is needed"),
    "a result": (result_as_particles, "a result of kind 'result', where a particle store is needed"),
    "a file": (
        lambda scene, _: {"particles": scene.reference},
        "is a file, where a particle store or the results of a job are",
    ),
    "a table": (table_as_particles, "is a file; import it first: cloudem import"),
    "scheme": (
        values(particles="gopher://bucket/p"),
        "gopher:// locations are not known; give a folder or s3://bucket/prefix",
    ),
    "no defocus": (without("defocus_u", "defocus_v"), "defocus_u.*defocus_v"),
    "half a shard": (truncated("images/c/0/0/0"), "particles.zarr.*"),
    "no shard": (removed("images/c/0/0/0"), "particles.zarr.*"),
    "no images": (removed("images/zarr.json"), "lost its images; import again"),
    "one half-set": (one_half, "half-set 1 is empty among 8 particles; .*--new-halves"),
    "defocus NaN": (nan_defocus, "column defocus_u is not a number for 1 of 8 particles, the first of them number 4"),
    "poses NaN": (nan_poses, "column tilt is not a number for 2 of 8 particles, the first of them number 1"),
    "no voltage": (optics(voltage=0.0), "optics group simulated of .* has a voltage of 0 kV"),
    "percent": (optics(amplitude_contrast=10.0), "has an amplitude contrast of 10, a fraction from 0 to 1 is needed"),
    "no reference": (values(reference="nowhere.mrc"), r"nowhere\.mrc does not exist; check the path"),
    "half a reference": (truncated("reference"), "is truncated: it has .* bytes"),
    "NaN": (reference(with_nan), "holds NaN or infinite values; make it again"),
    "constant": (reference(np.ones_like), r"has the value 1 everywhere; give a map with density"),
    "empty": (reference(np.zeros_like), r"has the value 0 everywhere"),
    "no cube": (non_cubic, "has 32 x 32 x 16 voxels, a cube is needed"),
    "no map": (lambda scene, _: {"reference": scene.particles + "/zarr.json"}, "zarr.json"),
    "too large": (values(diameter_A=161.0), r"--diameter-A 161 does not fit in the images, 32 px of 5 Å = 160 Å"),
    "too small": (values(diameter_A=8.0), "--diameter-A 8 is less than 8 px of 5 Å"),
    "no group": (values(symmetry="Q4"), "Q4"),
    "C0": (values(symmetry="C0"), "C0"),
    "no mask": (values(mask="nowhere.mrc"), "nowhere.mrc does not exist"),
    "map as mask": (
        map_as_mask,
        r"the mask .* has values from .* to .*, a mask from 0 to 1; make one with cloudem mask",
    ),
    "local without poses": (values(local=True), "rot.*tilt.*psi"),
    "negative": (values(diameter_A=-3), "--diameter-A: got '-3', needs greater than 0, in Å"),
}


@pytest.mark.parametrize(("damage", "message"), CASES.values(), ids=CASES)
def test_refine3d_says_what_is_wrong_and_leaves_nothing(damage, message, copy, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = copy.refinement("out", **damage(copy, tmp_path))
    line = [text for name, value in given.items() if value is not True for text in (option(name), str(value))]
    line += [option(name) for name, value in given.items() if value is True]
    with pytest.raises(SystemExit) as end:
        main(["refine3d", *line, "--executor", "serial"])
    assert end.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith("cloudem: ")
    assert said.count("\n") == 1
    assert "unexpected" not in said
    assert len(said) < 400
    assert re.search(message, said), said
    assert not (tmp_path / "out").exists()


def option(name: str) -> str:
    return "--" + name.replace("_", "-")


def test_an_output_of_another_job_is_left_alone(scene, tmp_path):
    write_group(tmp_path / "rec", "", {}, {"kind": "result", "job": "reconstruct"})
    for restart in (False, True):
        with pytest.raises(OutputExistsError, match="contains the results of reconstruct; choose another --out"):
            run(Refine3D(**scene.refinement(tmp_path / "rec", restart=restart)))
    with pytest.raises(OutputExistsError, match="contains a store of kind 'particles'; choose another --out"):
        run(Refine3D(**scene.refinement(scene.particles, restart=True)))
    assert len(open_particles(scene.particles)) == 160
    with pytest.raises(OutputExistsError):
        run(Reconstruct(particles=scene.particles, out=scene.particles))
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CloudemError) as caught:
        run(Refine3D(**scene.refinement(tmp_path / "file")))
    assert str(tmp_path / "file") in describe_error(caught.value)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_run_that_was_refused_can_be_put_right_in_the_same_place(tmp_path, no_report):
    scene = make_scene(tmp_path, count=60, sign=-1)
    with pytest.raises(CloudemError, match="negative"):
        run(Refine3D(**scene.refinement(tmp_path / "out")))
    run(Refine3D(**scene.refinement(tmp_path / "out", ignore_contrast=True, diameter_A=130, max_iterations=1)))
    assert read_attributes(tmp_path / "out", "")["parameters"]["diameter_A"] == 130


def test_a_full_disk_is_said_and_the_run_goes_on_when_there_is_room(scene, small_disk, tmp_path, no_report):
    """1 MiB holds the checkpoint, but not the maps beside it."""
    job = Refine3D(**scene.refinement(small_disk / "out", max_iterations=2))
    with pytest.raises(StorageError, match="the disk is full; free some space or choose another place"):
        run(job)
    assert not has_group(job.out, "result")
    subprocess.run(["mount", "-o", "remount,size=16m", str(small_disk)], check=True)
    run(job)
    run(Refine3D(**scene.refinement(tmp_path / "undisturbed", max_iterations=2)))
    assert_same_bits(job.out, tmp_path / "undisturbed")


def test_reconstruct_needs_poses(copy, tmp_path):
    with pytest.raises(MissingColumnError, match=r"rot.*tilt.*psi"):
        run(Reconstruct(particles=copy.particles, out=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()
    scene = make_scene(tmp_path / "posed", count=4, columns=lambda truth: truth)
    with pytest.raises(ParameterError, match="--max-resolution-A 200 is coarser"):
        run(Reconstruct(particles=scene.particles, max_resolution_A=200, out=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()
