"""Motion correction: tracks against the truth of simulated movies, cost beside RELION's, weights from information."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bars.measure import Bench, Cost
from cloudem.algorithms.dose import critical_dose
from cloudem.algorithms.frame_information import FrameSignals, frame_factors
from cloudem.algorithms.gain import correction_of
from cloudem.algorithms.motion_local import field_at
from cloudem.algorithms.movie_correction import CorrectedMovie, MovieSettings, correct_movie
from cloudem.io.formats.relion_motion import MotionFile, read_motion_star
from cloudem.io.movies.store import read_movies
from cloudem.jobs.correct_motion.task import MotionOptions, correct_movies
from cloudem.testing.movies import SimulatedMovie, simulated_movie, simulated_track

Float64 = NDArray[np.float64]


class Case(NamedTuple):
    """A simulated movie: contrast, e/px/frame, px of local motion and of drift, pattern of the detector, its bar."""

    contrast: float
    dose: float
    local: float
    drift: float
    pattern: float = 0.0
    bar: float = np.nan


CASES = {
    "normal": Case(0.6, 1.0, 3, 10, bar=0.10),
    "faint": Case(0.3, 1.0, 3, 10, bar=0.12),
    "vfaint": Case(0.15, 0.2, 3, 10),
    "norm3": Case(0.6, 1.0, 3, 10, 0.03, bar=0.10),
    "still3": Case(0.6, 1.0, 0, 0, 0.03, bar=0.06),
    "small10": Case(0.6, 1.0, 0, 0.5, 0.1, bar=0.10),
}
SCOPE = ("--pixel-size-A", 1, "--voltage-kV", 300, "--cs-mm", 2.7)


def motion(bench: Bench) -> None:
    """Motion of 24 x 2048² simulated frames: rms error per axis (px) over a 12 x 12 grid; --relion: RELION's, too."""
    for seed in bench.seeds:
        for name, case in CASES.items():
            place = simulated(bench, name, case, seed, bench.few(2048, 512), bench.few(24, 8))
            movies = imported(bench, place, case.dose)
            found, seconds, cost = corrected_by_us(bench, place, movies, local=True)
            whole, _, _ = corrected_by_us(bench, place, movies, local=False)
            row: dict[str, Any] = {
                "seed": seed, "case": name, "rms px": score(found, place), "global alone": score(whole, place),
                "bar": case.bar, "local": "no" if found.coefficients is None else "yes", "CPU-s": round(seconds, 2),
                "command CPU-s": round(cost.cpu, 1),
            }  # fmt: skip
            if bench.relion:
                theirs, spent = corrected_by_relion(bench, place, case.dose, 3)
                row |= {"RELION rms px": score(theirs, place), "RELION CPU-s": round(spent.cpu, 1)}
            bench.add(row)


def motion_cost(bench: Bench) -> None:
    """40 x 4096² frames with local motion and dose weighting: CPU-seconds and memory beside RELION's, 5 x 5 patches."""
    for seed in bench.seeds[:1]:
        place = simulated(bench, "big", CASES["normal"], seed, bench.few(4096, 512), bench.few(40, 8))
        movies = imported(bench, place, 1.0)
        found, seconds, cost = corrected_by_us(bench, place, movies, local=True)
        ours = {"rms px": score(found, place), "CPU-s of the movie": round(seconds, 2)}
        bench.add({"seed": seed, "program": "cloudem"}, ours, cost.columns())
        theirs, spent = corrected_by_relion(bench, place, 1.0, 5)
        bench.add({"seed": seed, "program": "RELION"}, {"rms px": score(theirs, place)}, spent.columns())


def motion_information(bench: Bench) -> None:
    """Weights from information against the fixed curve, where damage or blur differ; error of what frames show."""
    size, frames = bench.few(1024, 256), bench.few(24, 8)
    blur = np.zeros(frames)
    blur[:3] = 150, 60, 20
    cases: dict[str, dict[str, Any]] = {
        "as the curve": {}, "blurred at first": {"blur": blur}, "half the damage": {"damage": 0.5},
        "twice the damage, blurred": {"damage": 2.0, "blur": blur}, "noise": {"contrast": 0.0},
    }  # fmt: skip
    for seed in bench.seeds:
        for name, options in cases.items():
            movie = simulated_movie(size, frames, seed, track=simulated_track(frames, 6.0, seed), **options)
            kinds: tuple[Any, ...] = ("none", "dose", "information")
            made = {kind: weighted(movie, kind) for kind in kinds}
            row: dict[str, Any] = {"seed": seed, "movie": name}
            row |= {f"bits, {kind}": f"{each.information.bits:,.0f}" for kind, each in made.items()}
            for kind, each in made.items():
                curve = each.information.correlation[20:60]
                row[f"FRC 0.08 to 0.23, {kind}"] = round(float(curve.mean()), 4)
            bench.add(row, shown_error(movie, made["information"].signals))


def weighted(movie: SimulatedMovie, kind: Any) -> CorrectedMovie:
    frames, *shape = movie.frames.shape
    settings = MovieSettings(1.0, 300.0, np.arange(1.0, frames + 1), True, kind)
    return correct_movie(
        lambda number: movie.frames[number], np.arange(frames), correction_of((shape[0], shape[1])), settings
    )


def shown_error(movie: SimulatedMovie, signals: FrameSignals | None) -> dict[str, Any]:
    """Return the error of what frames show, as a share of the truth, root mean square over frames, by frequency."""
    if signals is None or not signals.certain.any():
        return {"rings": 0}
    truth = np.stack([np.interp(signals.frequency, movie.frequency, each) for each in movie.decay])
    doses = np.arange(1.0, len(truth) + 1)[:, None]
    decay = np.exp(-0.5 * doses / critical_dose(signals.frequency, 300.0))
    factors, b_factors = frame_factors(signals, decay)
    model = decay * np.exp(factors[:, None] - 0.25 * b_factors[:, None] * signals.frequency**2)
    scale = (model * truth).sum(axis=0) / (truth**2).sum(axis=0)
    wrong = np.sqrt(((model / scale - truth) ** 2).mean(axis=0) / (truth**2).mean(axis=0))
    said = {"rings": int(signals.certain.sum())}
    for low, high in ((0.0, 0.05), (0.05, 0.1), (0.1, 0.15)):
        here = signals.certain & (signals.frequency >= low) & (signals.frequency < high)
        said[f"d_f error, {low:g} to {high:g}"] = round(float(wrong[here].mean()), 3) if here.any() else np.nan
    return said


def simulated(bench: Bench, name: str, case: Case, seed: int, size: int, frames: int) -> Path:
    """Return a movie without its ending, made once by the simulator among the test data."""
    folder = bench.work / "movies"
    folder.mkdir(exist_ok=True)
    place = folder / (f"{name}_{seed}" if not bench.quick else f"{name}_{seed}_{size}")
    if not place.with_suffix(".json").exists():
        program = bench.need(bench.data / "movies" / "simmovie.py")
        numbers = (size, frames, case.dose, case.local, case.drift, seed, case.pattern)
        subprocess.run(
            [sys.executable, str(program), str(place), *map(str, numbers)], check=True, stdout=subprocess.DEVNULL,
            env={**os.environ, "PH": str(case.contrast)},
        )  # fmt: skip
    return place


def imported(bench: Bench, place: Path, dose: float) -> Path:
    out = bench.fresh("motion-movies")
    movie = place.with_suffix(".mrcs")
    bench.cloudem("import-movies", movie, *SCOPE, "--dose-per-frame-e-per-A2", dose, "--out", out)
    return out


def corrected_by_us(bench: Bench, place: Path, movies: Path, local: bool) -> tuple[MotionFile, float, Cost]:
    """Return the motion that the command finds, CPU-seconds of the movie alone (read, written), and its cost."""
    stars, out = bench.fresh("motion-stars"), bench.fresh("motion-out")
    cost = bench.cloudem(
        "correct-motion", movies, "--motion-files", stars, "--out", out, *([] if local else ["--no-local"])
    )
    seconds = np.nan
    if local:
        options = MotionOptions(str(bench.fresh("motion-alone")), True, "dose", 1.0, 1, None)
        began = time.process_time()
        correct_movies([read_movies(movies)], options)
        seconds = time.process_time() - began
    return read_motion_star(stars / f"{place.name}.star"), seconds, cost


def corrected_by_relion(bench: Bench, place: Path, dose: float, patches: int) -> tuple[MotionFile, Cost]:
    program, out = bench.program("relion_run_motioncorr"), bench.fresh("motion-relion")
    out.mkdir()
    (out / place.with_suffix(".mrcs").name).symlink_to(place.with_suffix(".mrcs").resolve())
    optics = "OpticsGroupName OpticsGroup MicrographOriginalPixelSize Voltage SphericalAberration AmplitudeContrast"
    lines = ["data_optics", "", "loop_", *(f"_rln{name}" for name in optics.split()), "g 1 1.0 300 2.7 0.1", ""]
    lines += ["data_movies", "", "loop_", "_rlnMicrographMovieName", "_rlnOpticsGroup", f"{place.name}.mrcs 1", ""]
    (out / "movies.star").write_text("\n".join(lines))
    command = [
        program, "--i", "movies.star", "--o", "out/", "--use_own", "--j", "1", "--dose_weighting", "--dose_per_frame",
        str(dose), "--patch_x", str(patches), "--patch_y", str(patches), "--bfactor", "150", "--save_noDW",
        "--first_frame_sum", "1", "--last_frame_sum", "-1",
    ]  # fmt: skip
    cost = bench.measured(command, cwd=out)
    return read_motion_star(out / "out" / f"{place.name}.star"), cost


def score(found: MotionFile, place: Path) -> float:
    """Return the root mean square error per axis, pixels, over frames and places, a constant of each place removed."""
    truth = np.load(place.with_suffix(".npz"))
    frames = found.shape[0]
    at = (np.arange(12) + 0.5) / 12 - 0.5
    u, v = (each.ravel() for each in np.meshgrid(at, at))
    base = np.stack([u, v, u * u - 1 / 12, v * v - 1 / 12, u * v])
    local = np.tensordot(truth["c"] * np.array([1, 1, 2, 2, 2]), base, axes=1)
    true = np.stack([truth["gx"], truth["gy"]], axis=1)[:, :, None] + truth["h"][:, None, None] * local
    terms = np.stack([np.ones_like(u), u, u * u, v, v * v, u * v])
    ours = np.repeat(found.track[:, :, None], len(u), axis=2)
    if found.coefficients is not None:
        ours += np.stack([np.tensordot(field_at(found.coefficients, frame), terms, axes=1) for frame in range(frames)])
    wrong = ours - true
    return round(float(np.sqrt(((wrong - wrong.mean(axis=0)) ** 2).mean())), 3)
