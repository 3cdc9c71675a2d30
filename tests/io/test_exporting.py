import logging
import shutil
import subprocess

import numpy as np
import pytest

from cloudem.errors import (
    DamagedShardError,
    FormatError,
    InconsistentDataError,
    MissingInputError,
    OutputExistsError,
    ParameterError,
)
from cloudem.io.exporting import STACK, export
from cloudem.io.formats.mrc import HEADER_BYTES, map_stack, read_volume
from cloudem.io.formats.relion import read_particles_star
from cloudem.io.formats.star import read_star
from cloudem.io.importing import import_particles
from cloudem.io.particle_store import open_particles, write_particles
from cloudem.io.storage.groups import write_group
from cloudem.io.storage.location import contents, join, read_bytes
from cloudem.io.storage.tables import table_to_arrays
from cloudem.jobs.artefacts import sizes_of
from cloudem.jobs.base import Context
from cloudem.jobs.export import Export
from cloudem.jobs.import_particles import ImportParticles
from cloudem.jobs.progress import SilentProgress
from cloudem.model.particles import TEXT
from tests.io.conftest import BOX, COUNT
from tests.io.formats.test_relion import assert_same_tables


def relion(*command, cwd):
    """Run a program of RELION and return what it said; skip where it is not installed."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def store(project):
    import_particles(read_particles_star(project / "particles.star"), project / "p.zarr", dtype="float32")
    return open_particles(project / "p.zarr")


@pytest.fixture
def result(project, store):
    """Return the result of a refinement: maps, curves, refined poses."""
    rng = np.random.default_rng(5)
    maps = {name: rng.standard_normal((BOX,) * 3).astype(np.float32) for name in ("half1", "half2", "map", "mask")}
    curves = {f"fsc_{name}": np.linspace(1, 0, 9) for name in ("unmasked", "masked", "corrected", "odd")}
    refined = store.particles.with_columns(rot=np.full(COUNT, 0.5), keep=np.arange(COUNT))
    url = project / "refine"
    write_group(url, "particles", *table_to_arrays(refined))
    write_group(
        url, "", {}, {"kind": "result", "job": "refine3d", "parameters": {"particles": str(project / "p.zarr")}}
    )
    write_group(url, "result", {**maps, **curves}, {"pixel_size_A": 1.34, "symmetry": "C1"})
    return url, maps


def test_a_store_comes_back_as_it_was_imported(project, store, images):
    assert export(store.url, project / "files") == ["particles.mrcs", "particles.star"]
    before, after = read_star(project / "particles.star"), read_star(project / "files" / "particles.star")
    assert after["particles"].pop("rlnImageOriginalName").tolist() == before["particles"].pop("rlnImageName").tolist()
    assert after["particles"].pop("rlnImageName")[1] == "000002@particles.mrcs"
    assert_same_tables(before, after)
    stack, header = map_stack(project / "files" / "particles.mrcs")
    np.testing.assert_allclose(stack, images, atol=2e-5)
    assert header.pixel_size == pytest.approx(1.34)
    again = read_particles_star(project / "files" / "particles.star")
    import_particles(again, project / "q.zarr", dtype="float32")
    np.testing.assert_allclose(open_particles(project / "q.zarr").read_images([7]), store.read_images([7]), atol=1e-5)


def test_a_result_becomes_maps_tables_and_curves(project, result):
    url, maps = result
    names = export(url, project / "files")
    assert names == ["half1.mrc", "half2.mrc", "map.mrc", "mask.mrc", "fsc.star", "particles.star"]
    for name, data in maps.items():
        volume = read_volume(project / "files" / f"{name}.mrc")
        np.testing.assert_array_equal(volume.data, data)
        assert volume.pixel_size == pytest.approx(1.34)
    table = read_star(project / "files" / "particles.star")["particles"]
    assert table["rlnImageName"][4] == "000005@Extract/a.mrcs"
    assert float(table["rlnAngleRot"][0]) == pytest.approx(np.rad2deg(0.5))
    assert float(table["rlnParticleFigureOfMerit"][3]) == 3
    assert table["rlnSomethingNew"][3] == "name_3"
    fsc = read_star(project / "files" / "fsc.star")["fsc"]
    assert fsc["rlnSpectralIndex"].tolist() == [str(i) for i in range(9)]
    assert float(fsc["rlnAngstromResolution"][4]) == pytest.approx(BOX * 1.34 / 4)
    assert float(fsc["rlnFourierShellCorrelationCorrected"][2]) == 0.75
    assert "cloudemFscOdd" in fsc


def test_a_result_with_its_images(project, result, images):
    url, _ = result
    assert "particles.mrcs" in export(url, project / "files", stack=True)
    np.testing.assert_allclose(map_stack(project / "files" / "particles.mrcs")[0], images, atol=2e-5)
    table = read_star(project / "files" / "particles.star")["particles"]
    assert table["rlnImageName"][4] == "000005@particles.mrcs"
    shutil.move(project / "p.zarr", project / "moved.zarr")
    with pytest.raises(MissingInputError, match="--particles"):
        export(url, project / "f2", stack=True)
    export(url, project / "f2", stack=True, particles=project / "moved.zarr")
    small = open_particles(project / "moved.zarr")
    write_particles(
        project / "small.zarr", small.particles.take([0, 1]), [small.read_images([0, 1])], box=BOX, pixel_size=1.34
    )
    with pytest.raises(InconsistentDataError, match="2 particles"):
        export(url, project / "f3", stack=True, particles=project / "small.zarr")
    assert not list(project.glob("f3*"))


def test_what_is_exported_to_s3_is_that_of_a_folder(project, store, result, bucket):
    there = f"s3://{bucket}/exported"
    for name, url in (("store", store.url), ("result", result[0])):
        names = export(url, project / name)
        assert export(url, join(there, name)) == names
        assert contents(join(there, name)) == sorted(names)
        for each in names:
            start = HEADER_BYTES if each == STACK else 0  # the header of a stack on S3 is without statistics
            assert read_bytes(join(there, name, each))[start:] == (project / name / each).read_bytes()[start:]
    with pytest.raises(OutputExistsError, match="exists already"):
        export(store.url, join(there, "store"))


def test_an_export_to_s3_that_fails_leaves_nothing(project, result, bucket):
    there = f"s3://{bucket}/failed"
    shutil.rmtree(project / "p.zarr" / "images" / "c")
    with pytest.raises(DamagedShardError):
        export(result[0], there, stack=True)
    assert contents(there) == []


def test_what_cannot_be_exported_is_said(project, store, result):
    write_group(project / "half", "", {}, {"kind": "job"})
    with pytest.raises(FormatError, match="no finished result"):
        export(project / "half", project / "files")
    with pytest.raises(MissingInputError, match="does not exist"):
        export(project / "nowhere", project / "files")
    with pytest.raises(FormatError, match="is a file"):
        export(project / "particles.star", project / "files")
    (project / "taken").mkdir()
    with pytest.raises(OutputExistsError):
        export(store.url, project / "taken")
    write_group(project / "maps", "result", {"map": np.zeros((4, 4, 4), np.float32)}, {"pixel_size_A": 2.0})
    assert export(project / "maps", project / "files") == ["map.mrc"]
    with pytest.raises(ParameterError, match="--stack"):
        export(project / "maps", project / "more", stack=True)


def test_relion_reads_the_export_and_loses_nothing(project, store):
    export(store.url, project / "files")
    said = relion("relion_image_handler", "--i", "particles.star", "--stats", cwd=project / "files")
    assert said.count("angpix = 1.34") == COUNT
    relion("relion_star_handler", "--i", "particles.star", "--o", "all.star", "--combine", cwd=project / "files")
    ours, theirs = read_star(project / "files" / "particles.star"), read_star(project / "files" / "all.star")
    for blocks in (ours, theirs):  # RELION renumbers optics groups from 1 and keeps their names
        names = dict(zip(blocks["optics"].pop("rlnOpticsGroup"), blocks["optics"]["rlnOpticsGroupName"], strict=True))
        groups = blocks["particles"]["rlnOpticsGroup"]
        blocks["particles"]["rlnOpticsGroup"] = np.array([names[group] for group in groups], dtype=TEXT)
    for block, table in ours.items():
        for label, values in table.items():
            for a, b in zip(values.tolist(), theirs[block][label].tolist(), strict=True):
                assert a == b or float(a) == pytest.approx(float(b), abs=6e-6, rel=1e-5), (
                    label,
                    a,
                    b,
                )  # RELION prints five decimals
    relion("relion_reconstruct", "--i", "particles.star", "--o", "map.mrc", "--ctf", cwd=project / "files")
    assert read_volume(project / "files" / "map.mrc").data.std() > 0


def test_relion_reads_an_exported_map(project, result):
    export(result[0], project / "files")
    said = relion("relion_image_handler", "--i", "map.mrc", "--stats", cwd=project / "files")
    assert "16 x 16 x 16 x 1" in said
    assert "angpix = 1.34" in said


def test_the_jobs_do_the_same(project):
    def context(url):
        return Context(executor=None, progress=SilentProgress(), log=logging.getLogger("test"), url=str(url))

    declared = ImportParticles(particles=str(project / "particles.star"), out=str(project / "p.zarr"))
    plan = declared.work(sizes_of(declared))
    assert plan.disk_bytes > COUNT * BOX * BOX * 2
    assert "40 particles of 16 x 16" in plan.notes[0]
    declared.run(context(project / "p.zarr"))
    assert open_particles(project / "p.zarr").attributes["parameters"]["dtype"] == "float16"
    Export(source=str(project / "p.zarr"), out="x").run(context(project / "files"))
    assert (project / "files" / "particles.star").is_file()
    with pytest.raises(FormatError, match="neither"):
        ImportParticles(particles="x.mrcs", out="y").run(context(project / "y"))


def test_real_particles_survive_the_round_trip(shared_data, tmp_path):
    """Real apoferritin: from STAR to the store and back, to the rounding of half precision."""
    source = read_particles_star(shared_data / "apoferritin" / "relion_extract" / "particles.star")
    import_particles(source, tmp_path / "p.zarr")
    export(tmp_path / "p.zarr", tmp_path / "files")
    before, after = read_star(source.path), read_star(tmp_path / "files" / "particles.star")
    before["particles"].pop("rlnImageName")
    assert_same_tables(before, after)
    ours, _ = map_stack(tmp_path / "files" / "particles.mrcs")
    from cloudem.io.formats.sources import SourceImages

    theirs = SourceImages(source).read(0, len(source.particles))
    assert np.sqrt(np.mean((ours - theirs) ** 2)) < 3e-4 * theirs.std()
