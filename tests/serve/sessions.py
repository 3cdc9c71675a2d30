"""A project as a session leaves it: motion, CTF, picks and a selection of micrographs, with what belongs to each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudem.io.micrographs.images import write_micrograph_image
from cloudem.io.micrographs.tables import write_micrograph_table, write_picks
from cloudem.io.storage.groups import write_group
from cloudem.model.micrographs import Micrographs
from cloudem.model.optics import OpticsGroup
from cloudem.model.picks import Picks
from cloudem.model.table import TEXT

FRAMES, POINTS = 40, 256

OPTICS = (OpticsGroup("opticsGroup1", 300.0, 2.7e7, 0.1),)


def make_session(
    project: Path,
    count: int,
    images: Sequence[NDArray[np.float32]],
    pixel_size: float = 1.4,
    spectra: int = 12,
    particles: Sequence[NDArray[np.float64]] = (),
) -> None:
    """Write results ``motion``, ``ctf`` and ``picks`` of so many micrographs, which share the images.

    Parameters
    ----------
    project
        A folder.
    count
        Of micrographs.
    images
        Kept in turn.
    pixel_size
        Å.
    spectra
        So many of them have a spectrum.
    particles
        Of each image, where they are, ``(k, 2)`` pixels; if none, they are anywhere.
    """
    random = np.random.default_rng(7)
    names = np.array(
        [f"FoilHole_{2_750_000 + 7 * n}_Data_{n % 4}_{20261103 + n // 900}_{n:05d}" for n in range(count)], TEXT
    )
    motion, ctf, picks = (project / name for name in ("motion", "ctf", "picks"))
    places = [
        write_micrograph_image(str(motion), f"image-{n}", {"sum": image}, pixel_size=pixel_size)
        for n, image in enumerate(images)
    ]
    drift = np.abs(random.normal(0, 1, count)) * 8 + 14 + 40 * (random.random(count) < 0.03)
    clock = [
        f"2026-11-{3 + n // 2000:02d} {8 + n % 2000 // 130:02d}:{n % 130 * 27 // 60:02d}:{n * 27 % 60:02d}"
        for n in range(count)
    ]
    columns: dict[str, Any] = {
        "optics_group": np.zeros(count, np.int32), "micrograph": names,
        "image": np.array([places[n % len(places)] for n in range(count)], TEXT),
        "height": np.array([images[n % len(images)].shape[0] for n in range(count)], np.int32),
        "width": np.array([images[n % len(images)].shape[1] for n in range(count)], np.int32),
        "pixel_size": np.full(count, pixel_size), "dose": np.full(count, 40.0),
        "frames": np.full(count, FRAMES, np.int32), "motion_total": drift, "motion_early": 0.6 * drift,
        "motion_late": 0.4 * drift, "bits": np.clip(random.normal(52e3, 6e3, count) - 600 * drift, 500, None),
        "problem": np.array(["" if n % 97 != 50 else "has 12 of 40 frames only" for n in range(count)], TEXT),
        "acquired": np.array(clock, TEXT),
    }  # fmt: skip
    _record(motion, "correct_motion", {"movies": str(project / "movies")})
    steps = random.normal(0, 1, (count, FRAMES, 2)) * 0.25 + random.normal(0, 0.4, (count, 1, 2))
    tracks = np.cumsum(steps * np.exp(-np.arange(FRAMES) / 12)[:, None], axis=1).reshape(-1, 2)
    write_group(motion, "result", {
        "micrograph": names, "each_count": np.full(count, FRAMES, np.int32), "each_x": tracks[:, 0],
        "each_y": tracks[:, 1], "each_frame": np.tile(np.arange(FRAMES, dtype=np.int32), count),
    }, {})  # fmt: skip
    _table(motion, columns)

    planned = np.tile([8e3, 11e3, 14e3, 17e3, 20e3], count // 5 + 1)[:count]
    defocus = planned + random.normal(0, 900, count) + 2500 * np.sin(np.arange(count) / count * 9)
    thick = np.convolve(random.random(count + 20), np.ones(21) / 21, "valid")[:count]
    fit = 3.4 + 2.5 * np.abs(random.normal(0, 1, count)) ** 2 * 0.6 + 8 * (random.random(count) < 0.04)
    astigmatism = np.abs(random.normal(180, 90, count))
    columns |= {
        "defocus_u": defocus + astigmatism / 2, "defocus_v": defocus - astigmatism / 2,
        "defocus_angle": random.random(count) * np.pi, "phase_shift": np.zeros(count), "ctf_fit_resolution": fit,
        "ctf_fit_score": np.clip(0.25 - 0.012 * fit + random.normal(0, 0.01, count), 0.005, None),
        "ice_ring_density": 0.4 + 3 * np.clip(thick - 0.4, 0, None) + random.random(count) * 0.2,
    }  # fmt: skip
    for name in ("defocus_u", "defocus_v", "ctf_fit_resolution", "ctf_fit_score"):
        columns[name] = np.where(columns["problem"] == "", columns[name], np.nan)
    _record(ctf, "estimate_ctf", {"micrographs": str(motion)})
    for n in range(min(spectra, count)):
        _spectrum(ctf, str(names[n]), defocus[n], fit[n])
    write_group(ctf, "result", {}, {})
    _table(ctf, columns)

    _record(picks, "pick", {"micrographs": str(ctf), "diameter_A": 130.0})
    good = columns["problem"] == ""
    counts = np.where(good, random.poisson(60, count), 0)
    x, y = (random.random(int(counts.sum())) * np.repeat(columns[side], counts) for side in ("width", "height"))
    if particles:
        those = [particles[n % len(particles)] if good[n] else np.zeros((0, 2)) for n in range(count)]
        counts, (x, y) = np.array([len(each) for each in those]), np.concatenate(those).T
    write_group(picks, "result", {}, {"diameter_A": 130.0})
    _table(picks, {**columns, "pick_count": counts.astype(np.int32)})
    table = Picks((), {"micrograph": np.repeat(names, counts), "coordinate_x": x, "coordinate_y": y,
                       "pick_score": random.random(len(x))})  # fmt: skip
    write_picks(lambda path, arrays, said: write_group(picks, path, arrays, said), table)


def _record(out: Path, job: str, parameters: dict[str, Any]) -> None:
    inputs = {name: {"path": value} for name, value in parameters.items() if isinstance(value, str)}
    write_group(out, "", {}, {"kind": "result", "job": job, "parameters": {**parameters, "out": str(out)},
                              "inputs": inputs, "date": "2026-11-03T08:00:00+00:00"})  # fmt: skip


def _table(out: Path, columns: dict[str, Any]) -> None:
    known = {name: values for name, values in columns.items() if name in Micrographs.COLUMNS}
    write_micrograph_table(lambda path, arrays, said: write_group(out, path, arrays, said), Micrographs(OPTICS, known))


def _spectrum(out: Path, name: str, defocus: float, fit: float) -> None:
    random, highest = np.random.default_rng(int(defocus)), 1 / 3.0
    k = np.linspace(0, highest, POINTS)
    grid = (np.arange(256) + 0.5 - 128) / 128 * highest
    ring = np.hypot(grid[:, None], grid[None, :])

    def rings(at: NDArray[np.float64]) -> NDArray[np.float64]:
        found: NDArray[np.float64] = np.cos(
            2 * (np.pi * 0.0197 * defocus * at**2 - np.pi * 0.0197**3 * 2.7e7 / 2 * at**4)
        )
        return -found

    fades = np.exp(-((ring * fit) ** 2))
    left = rings(ring) * fades + random.normal(0, 0.35, ring.shape)
    shown = np.where(grid[None, :] < 0, left, rings(ring) * fades)
    picture = np.where(ring < highest, np.clip(128 + 100 * shown, 0, 255), 128).astype(np.uint8)
    curves = {
        "picture": picture,
        "data": (rings(k) * np.exp(-((k * fit) ** 2)) + random.normal(0, 0.05, POINTS)).astype(np.float32),
        "model": (rings(k) * np.exp(-((k * fit) ** 2))).astype(np.float32),
        "quality": np.exp(-((k * fit) ** 4) / 2).astype(np.float32),
    }
    write_group(out, f"spectra/{name}", curves, {"kind": "micrograph spectrum", "highest_frequency": highest})
