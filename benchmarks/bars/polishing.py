"""Polishing: tracks and map against the truth of simulated movies of a molecule, beside RELION's on the same set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mrcfile
import numpy as np
from numpy.typing import NDArray

from bars.measure import Bench, Cost, sphere_fsc
from bars.molecules import MOLECULES, atoms_of
from cloudem.algorithms.density import density_of_atoms
from cloudem.algorithms.motion_local import field_at
from cloudem.algorithms.resolution import resolution_at
from cloudem.io.formats.mrc_writer import write_volume
from cloudem.io.formats.star import read_star
from cloudem.io.particle_store import write_particles
from cloudem.io.storage.groups import read_group
from cloudem.model.optics import OpticsGroup
from cloudem.model.particles import Particles
from cloudem.model.poses import matrix_to_euler, rotate
from cloudem.testing.particle_movies import ParticleScene, simulated_particle_movie

Float64 = NDArray[np.float64]


class Set(NamedTuple):
    """A molecule, its box and pixel size, the scene, how many movies, and the B-factor of its atoms, Å²."""

    molecule: str
    box: int
    scene: ParticleScene
    movies: int = 8
    b_factor: float = 60.0


SETS = {
    "apoferritin": Set("apoferritin", 96, ParticleScene()),
    "faster damage": Set("apoferritin", 96, ParticleScene(drift=14.0, damage=1.5)),
    "large": Set("apoferritin", 192, ParticleScene(4096, 40, 1.1, dose=1.0, count=300, apart=170.0, ice=0.0), movies=1),
    "gpcr": Set("gpcr", 112, ParticleScene(count=40, apart=170.0)),
    "usual": Set("apoferritin", 160, ParticleScene(2048, 24, 1.1, count=100, apart=160.0), movies=4),
}
TRUE = ("moved", "rotations", "places", "defocus")
POSE_ERROR, SHIFT_ERROR = np.deg2rad(0.4), 0.4
"""As a refinement leaves them: radians about each axis, and Å."""


def polishing(bench: Bench) -> None:
    """Tracks (rms Å) and FSC 0.5 of polished particles with the truth, CPU-seconds; --relion: RELION's, same set."""
    for seed in bench.seeds:
        for name in bench.only or SETS:
            measure(bench, name, seed)


def measure(bench: Bench, name: str, seed: int) -> None:
    folder = prepared(bench, name, SETS[name], seed)
    one, truth = SETS[name], np.load(folder / "truth.npz")
    group = MOLECULES[one.molecule].group if not MOLECULES[one.molecule].made else "C1"
    row: dict[str, Any] = {"seed": seed, "set": name, "particles": len(truth["moved"])}
    micrograph = track_error(expected_tracks(folder, truth), truth)
    bench.add(row, {"program": "sums of frames", "track Å": micrograph}, found_map(bench, folder / "rec", one, folder))
    out = bench.fresh("polished")
    cost = bench.cloudem("polish", folder / "rec", "--motion", folder / "motion", "--out", out)
    arrays, said = read_group(out, "result")
    stages = {"stages CPU-s": round(sum(stage["cpu_s"] for stage in said["stages"]), 2)}
    ours = np.stack([arrays["track_x"], arrays["track_y"]], axis=-1)
    bench.cloudem("reconstruct", "--particles", out, "--symmetry", group, "--mask", folder / "mask.mrc",
                  "--out", bench.fresh("polished-rec"))  # fmt: skip
    bench.add(row, {"program": "cloudem", "track Å": track_error(ours, truth)},
              found_map(bench, bench.work / "polished-rec", one, folder), cost.columns(), stages)  # fmt: skip
    if bench.relion:
        theirs, place, spent = polished_by_relion(bench, folder, one, truth)
        out = bench.fresh("relion-rec")
        bench.cloudem(
            "reconstruct", "--particles", place, "--symmetry", group, "--mask", folder / "mask.mrc", "--out", out
        )
        bench.add(row, {"program": "RELION", "track Å": track_error(theirs, truth)}, found_map(bench, out, one, folder),
                  spent.columns())  # fmt: skip


def prepared(bench: Bench, name: str, one: Set, seed: int) -> Path:
    """Return a folder with movies, their motion, particles in refined poses, and half-maps; made once."""
    folder = bench.work / "polishing" / f"{name.replace(' ', '_').replace(',', '')}_{seed}"
    if (folder / "rec" / "report.html").exists():
        return folder
    (folder / "frames").mkdir(parents=True, exist_ok=True)
    scene = one.scene
    density = density_of_atoms(atoms_of(bench, one.molecule), one.box, scene.pixel_size, b_factor=one.b_factor)
    write_volume(folder / "truth.mrc", density, scene.pixel_size)
    bench.cloudem("mask", folder / "truth.mrc", "--out", bench.fresh(str(folder / "mask.mrc")))
    made = [simulated_particle_movie(density, scene, 1000 * seed + number) for number in range(one.movies)]
    for number, movie in enumerate(made):
        with mrcfile.new(folder / "frames" / f"m{number:02d}.mrcs", overwrite=True) as file:
            file.set_data(movie.frames.astype(np.int8))
            file.set_image_stack()
            file.voxel_size = scene.pixel_size
    truth = {
        **{name: np.concatenate([getattr(movie, name) for movie in made]) for name in TRUE},
        "movie": np.repeat(np.arange(one.movies), scene.count),
    }  # fmt: skip
    np.savez(folder / "truth.npz", **truth)
    scope = (
        "--voltage-kV",
        scene.voltage,
        "--cs-mm",
        scene.spherical_aberration / 1e7,
        "--pixel-size-A",
        scene.pixel_size,
    )
    bench.cloudem("import-movies", folder / "frames", *scope, "--dose-per-frame-e-per-A2", scene.dose,
                  "--out", bench.fresh(str(folder / "movies")))  # fmt: skip
    bench.cloudem("correct-motion", folder / "movies", "--motion-files", folder / "stars",
                  "--out", bench.fresh(str(folder / "motion")))  # fmt: skip
    table = refined(truth, expected_tracks(folder, truth), scene, seed)
    known = bench.fresh(str(folder / "known"))
    blank = np.random.default_rng(0).normal(size=(len(table), 16, 16)).astype(np.float32)
    write_particles(known, table, [blank], box=16, pixel_size=scene.pixel_size)
    bench.cloudem("extract", folder / "motion", "--coordinates", known, "--box-px", one.box, "--edges", "pad",
                  "--out", bench.fresh(str(folder / "particles")))  # fmt: skip
    group = MOLECULES[one.molecule].group if not MOLECULES[one.molecule].made else "C1"
    bench.cloudem("reconstruct", "--particles", folder / "particles", "--symmetry", group,
                  "--mask", folder / "mask.mrc", "--out", bench.fresh(str(folder / "rec")))  # fmt: skip
    return folder


def refined(truth: Mapping[str, NDArray[Any]], tracks: Float64, scene: ParticleScene, seed: int) -> Particles:
    """Return particles as a refinement would leave them: where their sums show them, but for small errors."""
    rng = np.random.default_rng([seed, 5])
    count = len(tracks)
    rot, tilt, psi = matrix_to_euler(rotate(truth["rotations"], rng.normal(0, POSE_ERROR, (count, 3))))
    shifts = (truth["moved"] - tracks).mean(axis=1) + rng.normal(0, SHIFT_ERROR, (count, 2))
    extra = {"rlnMicrographPixelSize": f"{scene.pixel_size:.6f}"}
    optics = OpticsGroup("simulated", scene.voltage, scene.spherical_aberration, scene.amplitude_contrast, extra)
    return Particles((optics,), {}).with_columns(
        optics_group=np.zeros(count, np.int32), micrograph=[f"m{number:02d}" for number in truth["movie"]],
        coordinate_x=truth["places"][:, 0].astype(float), coordinate_y=truth["places"][:, 1].astype(float),
        defocus_u=truth["defocus"], defocus_v=truth["defocus"], defocus_angle=np.zeros(count), rot=rot, tilt=tilt,
        psi=psi, shift_x=shifts[:, 0], shift_y=shifts[:, 1], half_set=1 + rng.permutation(count) % 2,
    )  # fmt: skip


def expected_tracks(folder: Path, truth: Mapping[str, NDArray[Any]]) -> Float64:
    """Return displacements of the particles as ``correct-motion`` has them, Å, ``(n, frames, 2)``."""
    arrays = read_group(folder / "motion", "result")[0]
    table = read_group(folder / "motion", "micrographs")[0]
    frames, ends = truth["moved"].shape[1], np.cumsum(arrays["each_count"])
    found = np.zeros_like(truth["moved"])
    for row in range(len(ends)):
        mine = np.flatnonzero(truth["movie"] == row)
        here = slice(ends[row] - arrays["each_count"][row], ends[row])
        field = arrays["coefficients"][row].reshape(2, 6, 3)
        u, v = (truth["places"][mine] / table["width"][row] - 0.5).T
        terms = np.stack([np.ones_like(u), u, u * u, v, v * v, u * v])
        local = np.stack([field_at(field, frame) @ terms for frame in range(frames)]) * table["pixel_size"][row]
        whole = np.stack([arrays["each_x"][here], arrays["each_y"][here]], axis=1)
        found[mine] = whole + local.transpose(2, 0, 1)
    return found


def track_error(found: Float64, truth: Mapping[str, NDArray[Any]]) -> float:
    """Return the root mean square error of tracks per axis, Å, a constant of each particle removed."""
    wrong = found - truth["moved"]
    return round(float(np.sqrt(((wrong - wrong.mean(axis=1, keepdims=True)) ** 2).mean())), 3)


def found_map(bench: Bench, rec: Path, one: Set, folder: Path) -> dict[str, Any]:
    """Return where the FSC with the truth falls below 0.5, and its mean up to Nyquist."""
    found = read_group(rec, "result")[0]["map_unfiltered"]
    with mrcfile.open(folder / "truth.mrc") as file:
        true = file.data.copy()
    size = one.scene.pixel_size
    curve = sphere_fsc(found, true, size, MOLECULES[one.molecule].diameter / 2)
    return {
        "FSC 0.5 Å": round(resolution_at(curve, one.box, size, 0.5), 3),
        "FSC 0.143 Å": round(resolution_at(curve, one.box, size), 3),
        "mean FSC": round(float(curve[1 : one.box // 2].mean()), 4),
    }  # fmt: skip


def polished_by_relion(
    bench: Bench, folder: Path, one: Set, truth: Mapping[str, NDArray[Any]]
) -> tuple[Float64, Path, Cost]:
    """Return RELION's tracks, its polished particles as a store, and what it cost; half-maps and table are ours."""
    program, out = bench.program("relion_motion_refine"), bench.fresh("polishing-relion")
    size, scene = one.scene.pixel_size, one.scene
    bench.cloudem("export", folder / "rec", "--out", out)
    for half in (1, 2):
        (out / f"half{half}.mrc").rename(out / f"half{half}_class001_unfil.mrc")
    values = f"{size:g} {scene.voltage:g} {scene.spherical_aberration / 1e7:g} {scene.amplitude_contrast:g} {size:g}"
    optics = (
        "MicrographOriginalPixelSize",
        "Voltage",
        "SphericalAberration",
        "AmplitudeContrast",
        "MicrographPixelSize",
    )
    lines = _block("optics", ("OpticsGroupName", "OpticsGroup", *optics), [f"simulated 1 {values}"])
    rows = [f"m{number:02d} {folder / 'stars' / f'm{number:02d}.star'} 1" for number in range(one.movies)]
    lines += _block("micrographs", ("MicrographName", "MicrographMetadata", "OpticsGroup"), rows)
    (out / "corrected.star").write_text("\n".join([*lines, ""]))
    halves = ("half1_class001_unfil.mrc", "half2_class001_unfil.mrc")
    (out / "post").mkdir()  # where it puts an empty page if there is no Ghostscript
    bench.measured(
        [bench.program("relion_postprocess"), "--i", halves[0], "--mask", str(folder / "mask.mrc"), "--o", "post",
         "--angpix", f"{size:g}"], cwd=out,
    )  # fmt: skip
    command = [
        program, "--i", "particles.star", "--f", "post.star", "--corr_mic", "corrected.star", "--m1", halves[0], "--m2",
        halves[1], "--mask", str(folder / "mask.mrc"), "--o", "out/", "--combine_frames", "--fdose", f"{scene.dose:g}",
        "--j", "1",
    ]  # fmt: skip
    cost = bench.measured(command, cwd=out)
    tracks = []
    for number in range(one.movies):
        blocks = read_star(out / "out" / f"m{number:02d}_tracks.star")
        for name in sorted((name for name in blocks if name != "general"), key=int):
            along = [blocks[name][f"rlnOrigin{axis}Angst"].astype(np.float64) for axis in "XY"]
            tracks.append(np.stack(along, axis=-1))
    place = bench.fresh("polishing-relion-particles")
    bench.cloudem("import", out / "out" / "shiny.star", "--out", place)
    return np.array(tracks), place, cost


def _block(name: str, labels: Sequence[str], rows: Sequence[str]) -> list[str]:
    head = [f"_rln{label} #{place}" for place, label in enumerate(labels, 1)]
    return ["", "# version 30001", "", f"data_{name}", "", "loop_", *head, *rows, ""]
