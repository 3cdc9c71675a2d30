"""CTF estimation: on simulations with a known CTF, on RELION's CTF, on what has none, and on real micrographs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
from numpy.typing import NDArray

from bars.measure import Bench, MissingError
from cloudem.algorithms.ctf_estimate import CtfEstimate, CtfSettings, estimate_ctf
from cloudem.algorithms.ctf_fit import CtfSearch
from cloudem.algorithms.thon_background import Microscope
from cloudem.io.formats.relion import read_particles_star
from cloudem.testing.micrographs import SimulatedScene, simulate_micrograph

MICROSCOPES = ((300.0, 2.7e7, 0.83), (300.0, 2.7e7, 1.06), (200.0, 2.7e7, 0.95), (300.0, 1e5, 1.3))
"""kV, Cs in Å, pixel size in Å."""

CTFFIND_4K_S = 0.42
"""CPU-seconds that CTFFIND5 takes for 4096 × 4096 pixels, as its authors say."""


def drawn_scene(seed: int, **changes: Any) -> SimulatedScene:
    """Return a micrograph of 0.5 to 3 µm and up to 200 nm astigmatism, with ice, proteins and noise as they may be."""
    rng = np.random.default_rng(1000 + seed)
    voltage, cs, pixel = MICROSCOPES[seed % len(MICROSCOPES)]
    defocus, astigmatism = rng.uniform(5000, 30000), rng.uniform(0, 2000)
    scene = SimulatedScene(
        shape=(2048, 2048), pixel_size=pixel, voltage=voltage, spherical_aberration=cs,
        defocus_u=defocus + astigmatism / 2, defocus_v=defocus - astigmatism / 2,
        defocus_angle=rng.uniform(-np.pi / 2, np.pi / 2), ice=rng.uniform(0.15, 0.8), fading=rng.uniform(60, 200),
        proteins=rng.uniform(0, 40), dose=rng.uniform(25, 60), amplitude_contrast=(0.07, 0.1)[seed % 2],
    )  # fmt: skip
    return replace(scene, **changes)


def estimated(scene: SimulatedScene, seed: int, settings: CtfSettings | None = None) -> CtfEstimate:
    microscope = Microscope(scene.voltage, scene.spherical_aberration, scene.amplitude_contrast)
    return estimate_ctf(simulate_micrograph(scene, seed), scene.pixel_size, microscope, settings or CtfSettings())


def errors(scene: SimulatedScene, found: CtfEstimate) -> tuple[float, float, float]:
    """Return errors of mean defocus and astigmatism in Å, and of the angle in degrees."""
    fit = found.fit
    mean = (fit.defocus_u + fit.defocus_v - scene.defocus_u - scene.defocus_v) / 2
    difference = fit.defocus_u - fit.defocus_v - scene.defocus_u + scene.defocus_v
    turn = (fit.defocus_angle - scene.defocus_angle + np.pi / 2) % np.pi - np.pi / 2
    return mean, difference, float(np.degrees(turn))


def ctf_simulated(bench: Bench) -> None:
    """Simulated micrographs of 0.5 to 3 µm and 0 to 200 nm of astigmatism: errors of the CTF."""
    for seed in bench.seeds:
        scenes = [(number, drawn_scene(number)) for number in range(1000 * seed, 1000 * seed + bench.few(40, 2))]
        found = [(scene, estimated(scene, number)) for number, scene in scenes]
        mean, difference, turn = (np.abs(values) for values in zip(*(errors(*each) for each in found), strict=True))
        defocus = np.array([(scene.defocus_u + scene.defocus_v) / 2 for scene, _ in found])
        steep = np.array([scene.defocus_u - scene.defocus_v > 500 for scene, _ in found])
        bench.add({
            "seed": seed, "micrographs": len(found),
            "refused": sum(bool(each.problem) for _, each in found),
            "median error (nm)": round(float(np.median(mean)) / 10, 2),
            "median error (%)": round(100 * float(np.median(mean / defocus)), 3),
            "within 0.5 % and 10 nm (%)": round(100 * float(np.mean((mean < 100) & (mean / defocus < 0.005))), 1),
            "largest (nm)": round(float(mean.max()) / 10, 1),
            "astigmatism, median error (nm)": round(float(np.median(difference)) / 10, 2),
            "angle above 50 nm, median (°)": round(float(np.median(turn[steep])), 2),
            "angle above 50 nm, 90 % (°)": round(float(np.percentile(turn[steep], 90)), 2),
        })  # fmt: skip


def ctf_special(bench: Bench) -> None:
    """Phase plates, tilted and thick specimens, simulated."""
    for seed in bench.seeds:
        numbers = range(1000 * seed + 500, 1000 * seed + 500 + bench.few(6, 1))
        rng = np.random.default_rng(seed)
        shifts = [float(rng.uniform(0.3, 2.6)) for _ in numbers]
        settings = CtfSettings(CtfSearch(phase_shift=(0.0, np.pi)))
        scenes = [drawn_scene(number, phase_shift=shift) for number, shift in zip(numbers, shifts, strict=True)]
        found = [estimated(scene, number, settings) for number, scene in zip(numbers, scenes, strict=True)]
        wrong = [each.fit.phase_shift - shift for each, shift in zip(found, shifts, strict=True)]
        wrong = [float(np.degrees(np.abs((each + np.pi / 2) % np.pi - np.pi / 2))) for each in wrong]
        mean = [abs(errors(*each)[0]) / 10 for each in zip(scenes, found, strict=True)]
        bench.add({"seed": seed, "what": "phase shift (°)", **_summary(wrong, mean)})
        wrong, mean = [], []
        for number in numbers:
            tilt, axis = np.radians(rng.uniform(10, 45)), rng.uniform(0, 2 * np.pi)
            slope = (-np.tan(tilt) * np.sin(axis), np.tan(tilt) * np.cos(axis))
            scene = drawn_scene(number, slope=slope, fading=100.0, ice=0.8)
            each = estimated(scene, number, CtfSettings(tilt=True))
            normal = [-slope[0], -slope[1], 1.0]
            g = np.tan(each.tilt_angle) * np.array([-np.sin(each.tilt_axis), np.cos(each.tilt_axis)])
            other = np.array([-g[0], -g[1], 1.0])
            cosine = np.dot(normal, other) / np.linalg.norm(normal) / np.linalg.norm(other)
            wrong.append(float(np.degrees(np.arccos(min(cosine, 1.0)))))
            mean.append(abs(errors(scene, each)[0]) / 10)
        bench.add({"seed": seed, "what": "normal of a specimen of 10 to 45° (°)", **_summary(wrong, mean)})
        wrong, mean, none = [], [], 0
        for number in numbers:
            thickness = float(rng.uniform(800, 2400))
            scene = drawn_scene(number, thickness=thickness, ice=1.5, fading=80.0, proteins=5.0)
            each = estimated(scene, number, CtfSettings(thickness=True))
            none += bool(np.isnan(each.thickness))
            wrong.append(100 * abs(each.thickness / thickness - 1))
            mean.append(abs(errors(scene, each)[0]) / 10)
        what = f"thickness of 80 to 240 nm (%), {none} of {len(wrong)} not told"
        bench.add({"seed": seed, "what": what, **_summary(wrong, mean)})


def _summary(wrong: list[float], mean: list[float]) -> dict[str, float]:
    """Return columns of errors, and of those of the defocus in nm."""
    return {
        "median error": round(float(np.nanmedian(wrong)), 2),
        "largest": round(float(np.nanmax(wrong)), 2),
        "defocus, median error (nm)": round(float(np.median(mean)), 2),
    }


def ctf_noise(bench: Bench) -> None:
    """Images without a CTF: how many are accepted, and the evidence of what noise alone looks like."""
    for seed in bench.seeds:
        rng = np.random.default_rng(77 + seed)
        for what in ("white noise", "noise of a detector, uneven light", "proteins without a CTF"):
            evidence, accepted, count = [], 0, bench.few(40, 2)
            for number in range(count):
                image, pixel = _without_ctf(what, rng, number)
                found = estimate_ctf(image, pixel, Microscope(300.0, 2.7e7, 0.1), CtfSettings())
                evidence.append(found.fit.evidence)
                accepted += not found.problem
            bench.add({"seed": seed, "images": count, "what": what, "accepted": accepted,
                       "evidence, median": round(float(np.median(evidence)), 1),
                       "largest (9 is needed)": round(max(evidence), 1)})  # fmt: skip


def _without_ctf(what: str, rng: np.random.Generator, number: int) -> tuple[NDArray[np.float32], float]:
    shape, pixel = (((1024, 1024), 1.0), ((1200, 1240), 1.5), ((1500, 1500), 0.7))[number % 3]
    if what == "white noise":
        return rng.normal(size=shape).astype(np.float32), pixel
    if what.startswith("noise"):
        scene = SimulatedScene(shape=shape, pixel_size=pixel, ice=1e-9, proteins=0.0)
        return simulate_micrograph(scene, int(rng.integers(1 << 30))), pixel
    # in focus, and with such an envelope that only proteins' own shape is in the spectrum
    scene = SimulatedScene(shape=shape, pixel_size=pixel, ice=1e-9, proteins=40.0, defocus_u=1.0, defocus_v=1.0,
                           spherical_aberration=0.0, phase_shift=1.47)  # fmt: skip
    return simulate_micrograph(scene, int(rng.integers(1 << 30))), pixel


def ctf_real(bench: Bench) -> None:
    """Real micrographs: apoferritin, a Falcon's, ribosomes; one that drifted, and ones that were stored as JPEG."""
    crude = _crude_defoci(bench.need(bench.data / "apoferritin/relion_extract/particles.star"))
    images = list(_real(bench))[: bench.few(1000, 3)]
    for group in dict.fromkeys(group for group, *_ in images):
        rows = [(name, estimate_ctf(image, pixel, scope, CtfSettings()))
                for kind, name, image, pixel, scope in images if kind == group]  # fmt: skip
        good = [each for _, each in rows if not each.problem]
        against = [100 * (each.fit.parameters[0] / crude[name] - 1) for name, each in rows
                   if not each.problem and name in crude]  # fmt: skip
        bench.add({
            "set": group, "micrographs": len(rows), "refused": len(rows) - len(good),
            "defocus (µm)": _range([each.fit.parameters[0] / 1e4 for each in good], 3),
            "astigmatism (nm)": _range([(each.fit.defocus_u - each.fit.defocus_v) / 10 for each in good], 1),
            "agrees to (Å)": _range([each.quality.resolution for each in good], 2),
            "from a crude 1D fit, median (%)": round(float(np.median(against)), 2) if against else "",
        })  # fmt: skip


def _range(values: list[float], digits: int) -> str:
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}" if values else ""


def _crude_defoci(path: Path) -> dict[str, float]:
    particles = read_particles_star(path).particles
    pairs = zip(particles["micrograph"].tolist(), particles["defocus_u"].tolist(), strict=True)
    return {Path(name).stem: defocus for name, defocus in pairs}


def _real(bench: Bench) -> Iterator[tuple[str, str, NDArray[np.float32], float, Microscope]]:
    try:
        from imagecodecs import jpeg_decode, png_decode
    except ImportError as error:
        raise MissingError("imagecodecs is not installed (pip install 'cloudem[movies]')") from error
    sets = (
        ("apoferritin", "apoferritin/sums", ".png", 1.5, Microscope(300.0, 1e5, 0.1)),
        ("ribosomes, 5.36 Å/px", "micrographs/empiar10028", ".png", 5.36, Microscope(300.0, 2e7, 0.1)),
        ("galactosidase, JPEG", "micrographs/empiar10017", ".jpg", 1.77, Microscope(300.0, 2e7, 0.1)),
    )
    for group, folder, suffix, pixel, microscope in sets:
        for path in sorted(bench.need(bench.data / folder).glob(f"*{suffix}")):
            image = (png_decode if suffix == ".png" else jpeg_decode)(path.read_bytes())
            plain = image if image.ndim == 2 else image.mean(axis=2)
            yield group, path.stem, plain.astype(np.float32), pixel, microscope
    falcon = bench.need(bench.data / "micrographs/epu2.9_example.mrc")
    with mrcfile.open(falcon, permissive=True) as file:
        yield "Falcon, 4096²", falcon.stem, file.data.astype(np.float32), 0.6666, Microscope(300.0, 2.7e7, 0.1)


def ctf_time(bench: Bench) -> None:
    """CPU-s of one micrograph of 4096 × 4096 pixels, as it is and with each option."""
    scene = drawn_scene(3, shape=(4096, 4096) if not bench.quick else (1024, 1024), pixel_size=0.8)
    image, microscope = simulate_micrograph(scene, 3), Microscope(scene.voltage, scene.spherical_aberration, 0.1)
    for what, settings in (
        ("as it is", CtfSettings()),
        ("phase shift searched", CtfSettings(CtfSearch(phase_shift=(0.0, np.pi)))),
        ("with thickness", CtfSettings(thickness=True)),
        ("with tilt", CtfSettings(tilt=True)),
    ):
        seconds = []
        for _ in range(4):
            began = time.process_time()
            estimate_ctf(image, scene.pixel_size, microscope, settings)
            seconds.append(time.process_time() - began)
        pixels, median = f"{image.shape[1]} x {image.shape[0]}", round(float(np.median(seconds[1:])), 3)
        bench.add({"what": what, "pixels": pixels, "CPU-s, median": median, "CTFFIND5, said": CTFFIND_4K_S})
