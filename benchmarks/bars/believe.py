"""In which cases the resolution that ``refine3d`` states can be believed: it is held against the truth.

Stated is where the half-maps' corrected FSC falls below 0.143, true where the FSC of the map with the truth falls below
0.5: the two are the same if the half-maps are independent and only noise differs between them and the truth, for
``sqrt(2 x / (1 + x))`` of 0.143 is 0.5. The truth is laid on the map first (`cloudem.algorithms.placing`), because a
start from another molecule, a dihedral group and low signal leave turn, shift or hand free.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bars import hard_sets
from bars.believe_relion import projected, refined_by_relion
from bars.hard_sets import Recipe, Views, make_set, truth_of
from bars.measure import Bench, FailedError, MissingError, refined
from bars.molecules import MOLECULES, density
from cloudem.algorithms.mask import estimate_mask
from cloudem.algorithms.placing import PlacedMap, place, stretched
from cloudem.algorithms.resolution import resolution_at
from cloudem.io.formats.mrc import Volume, read_volume
from cloudem.io.formats.mrc_writer import write_volume
from cloudem.kernels.shells import fourier_shell_correlation
from cloudem.model.particles import Particles
from cloudem.model.poses import angle_up_to, euler_to_matrix
from cloudem.model.symmetry import operators

BOX, PIXEL_A, COUNT, QUICK_COUNT = 64, 3.0, 1000, 300
SAID = 70
"""Characters of each warning that the table shows."""

FALL_OFF = 200.0
"""B-factor of the signal, Å²."""

TIGHT = {"low_pass_resolution": 10.0, "extend": 3.0, "edge": 6.0}
"""Of the truth's mask, Å."""


def recipe(snr: float = 0.04, count: int = COUNT, **others: Any) -> Recipe:
    """Return a recipe whose signal falls off as that of real images: without, all rows would end at Nyquist."""
    return Recipe(count, snr, b_factor=FALL_OFF, **others)


FINE: dict[str, Any] = {"box": 128, "pixel_size": 1.5}

NEAR = Views(share=0.8, within_deg=15.0)


@dataclass(frozen=True)
class Row:
    """A refinement whose truth is known.

    Attributes
    ----------
    molecule
        Of the images; "apoferritin" is the model map of the test data.
    recipe
        What the images are.
    group
        Point group that is imposed; the truth's is that of the molecule.
    start
        Molecule whose density is the start; none for the images' own.
    other
        Molecule of the foreign images.
    options
        For ``cloudem refine3d``.
    pixel_size, box
        Å, and pixels.
    by_relion
        Noiseless images are made by ``relion_project``, the noise by NumPy.
    """

    molecule: str
    recipe: Recipe = field(default_factory=Recipe)
    group: str = "C1"
    start: str | None = None
    other: str | None = None
    options: tuple[Any, ...] = ()
    pixel_size: float = PIXEL_A
    box: int = BOX
    by_relion: bool = False


ROWS: dict[str, Row] = {
    "right": Row("gpcr", recipe()),
    "relion-projected": Row("gpcr", recipe(), by_relion=True),
    "90kDa": Row("unc18", recipe()),
    "48kDa": Row("hinge", recipe()),
    "nearly-C2": Row("dimer", recipe(), pixel_size=3.5),
    "D2": Row("hinge of D2", recipe(snr=0.03), "D2", pixel_size=3.5),
    "D7": Row("hinge of D7", recipe(snr=0.03), "D7", pixel_size=4.0),
    "snr0.01": Row("gpcr", recipe(snr=0.01)),
    "snr0.004": Row("gpcr", recipe(snr=0.004, count=2000)),
    "snr0.002": Row("gpcr", recipe(snr=0.002, count=2000)),
    "128px-snr0.01": Row("gpcr", Recipe(4000, 0.01), **FINE),
    "128px-snr0.004": Row("gpcr", recipe(snr=0.004, count=4000), **FINE),
    "128px-snr0.002": Row("gpcr", recipe(snr=0.002, count=20000), **FINE),
    "128px-coloured": Row("gpcr", Recipe(4000, 0.02, noise_ratio=20.0, contrast=(0.5, 2.0)), **FINE),
    "coloured": Row("gpcr", recipe(noise_ratio=20.0, contrast=(0.5, 2.0))),
    "views": Row("gpcr", recipe(views=NEAR)),
    "views-snr0.01": Row("gpcr", recipe(snr=0.01, views=NEAR)),
    "mixture": Row("gpcr", recipe(foreign=0.3), other="ace2"),
    "wrong-start": Row("gpcr", recipe(), start="ace2"),
    "C2-on-C1": Row("gpcr", recipe(), "C2"),
    "local": Row("gpcr", recipe(off_deg=1.95, off_shift=1.0, start_resolution=8.0),
                 options=("--local", "--initial-resolution-A", 8)),
    "noise-O": Row("apoferritin", recipe(snr=0.0), "O", options=("--initial-resolution-A", 40)),
}  # fmt: skip
"""Name -> refinement. In ``local`` three deviates of 1.95° make a median turn of 3°."""

RELION_ROWS = ("snr0.01", "snr0.004", "snr0.002", "coloured")


class Found(NamedTuple):
    """A refinement's map held against the truth."""

    placed: PlacedMap
    columns: dict[str, Any]
    own: float
    """True resolution inside the run's own mask, Å."""


def believe(bench: Bench) -> None:
    """Stated and true resolution of refinements that should go well, and of others that should not."""
    bench.warm()
    for name in bench.only or ROWS:
        row = ROWS[name]
        for seed in bench.seeds:
            try:
                folder, out = row_of(bench, name, row, seed)
                if bench.relion and name in RELION_ROWS:
                    beside_relion(bench, name, row, seed, folder, out)
            except MissingError as error:
                print(f"  SKIPPED row {name}: {error}", flush=True)
                break
            except FailedError as error:  # a refinement that refuses is an answer, too
                bench.add({"row": name, "seed": seed, "stopped": str(error).splitlines()[-1]})


def row_of(bench: Bench, name: str, row: Row, seed: int) -> tuple[Path, Path]:
    """Add the row of one refinement; return its set and its result."""
    wanted = replace(row.recipe, count=bench.few(row.recipe.count, QUICK_COUNT))
    truth = volume_of(bench, row)
    folder = images_of(bench, name, row, wanted, truth, seed)
    reference = folder / "start.mrc"
    if row.start is not None:
        reference = bench.work / f"believe-{row.start}-{row.pixel_size}.mrc"
        write_volume(reference, volume_of(bench, row, row.start).data, row.pixel_size)
    out = bench.fresh("believe-out")
    given = ("--particles", folder / "particles.zarr", "--reference", reference, "--symmetry", row.group)
    few = ("--max-iterations", 3) if bench.quick else ()
    options = (*row.options, *few, "--diameter-A", diameter(row), "--seed", seed, "--out", out)
    if row.start is not None:
        options = ("--initial-resolution-A", wanted.start_resolution, *options)
    cost = bench.cloudem("refine3d", *given, *options)
    arrays, attributes, particles = refined(out)
    found = held_against(arrays["map_unfiltered"], arrays["mask"], truth, diameter(row) / 2, wanted.snr > 0)
    stated = float(attributes["resolution_A"])
    columns = {"row": name, "seed": seed, "images": wanted.count, "stated Å": round(stated, 2), **found.columns}
    columns["stated / true"] = round(stated / found.own, 2) if wanted.snr > 0 else ""
    columns["known poses Å"] = known_poses(bench, folder, row, truth) if wanted.snr > 0 else ""
    columns |= errors(folder, row, particles, found.placed) if wanted.snr > 0 else {"within 5°": "", "median °": ""}
    said = "; ".join(str(text)[:SAID] for text in attributes["warnings"])
    bench.add(columns, {"CPU-s": round(cost.cpu, 1), "iterations": len(attributes["iterations"]), "said": said})
    if row.recipe.views.share:
        bench.add(
            {"row": name, "seed": seed, **stretch(folder, row, particles, found, arrays["map_unfiltered"], truth)}
        )
    return folder, out


def diameter(row: Row) -> float:
    """Return the diameter that the refinement is told, Å."""
    return 140.0 if row.molecule == "apoferritin" else MOLECULES[row.molecule].diameter


def volume_of(bench: Bench, row: Row, other: str | None = None) -> Volume:
    """Return the density of a row's molecule, or of another one on the same grid."""
    molecule = other or row.molecule
    if molecule == "apoferritin":
        return read_volume(bench.need(bench.data / "apoferritin" / "relion_extract" / "model_O.mrc"))
    return density(bench, molecule, row.box, row.pixel_size)


def images_of(bench: Bench, name: str, row: Row, wanted: Recipe, truth: Volume, seed: int) -> Path:
    """Return the set of a row, made unless it is there."""
    folder = bench.work / f"believe-{name}-{wanted.count}-{seed}"
    if row.by_relion:
        return projected(bench, folder, truth, wanted, seed)
    other = volume_of(bench, row, row.other) if row.other else None
    return make_set(folder, truth, wanted, seed, other)


def held_against(found: NDArray[Any], mask: NDArray[Any], truth: Volume, radius_A: float, there: bool = True) -> Found:
    """Lay the truth on a map and compare them, with the run's own mask and with a tight one of the truth.

    Parameters
    ----------
    found, mask
        Unfiltered map and the run's mask, (n, n, n).
    truth
        The density that the images show.
    radius_A
        Of the particle's sphere.
    there
        Whether the images show anything; if not, nothing is compared.
    """
    if not there:
        still = PlacedMap(np.eye(3), np.zeros(3), False, 0.0, np.asarray(truth.data))
        return Found(still, {"true Å": "nothing", "true, tight mask Å": "", "agreement": "", "hand": ""}, np.inf)
    placed = place(found, truth.data, truth.pixel_size, radius_A)
    tight = estimate_mask(placed.volume, truth.pixel_size, diameter=2 * radius_A, **TIGHT)
    own, close = (true_resolution(found, placed.volume, each, truth.pixel_size) for each in (mask, tight))
    columns = {"true Å": round(own, 2), "true, tight mask Å": round(close, 2), "agreement": round(placed.agreement, 3)}
    columns["hand"] = "other" if placed.mirrored else "same"
    return Found(placed, columns, own)


def true_resolution(found: NDArray[Any], truth: NDArray[Any], mask: NDArray[Any], pixel_size: float) -> float:
    """Return where the FSC of map and truth inside a mask falls below 0.5, Å."""
    return resolution_at(fourier_shell_correlation(found * mask, truth * mask), len(found), pixel_size, 0.5)


def known_poses(bench: Bench, folder: Path, row: Row, truth: Volume) -> float:
    """Return the true resolution of the map from the molecule's own images and true poses, in the tight mask, Å."""
    out = bench.fresh("believe-known")
    group = "C1" if row.molecule == "apoferritin" else MOLECULES[row.molecule].group
    given = ("--particles", folder / "known.zarr", "--diameter-A", diameter(row), "--symmetry", group)
    bench.cloudem("reconstruct", *given, "--out", out)
    mask = estimate_mask(truth.data, truth.pixel_size, diameter=diameter(row), **TIGHT)
    return round(true_resolution(refined(out)[0]["map_unfiltered"], truth.data, mask, truth.pixel_size), 2)


def poses_of(
    folder: Path, particles: Particles, placed: PlacedMap
) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.bool_]]:
    """Return poses found, in the truth's frame, and true ones (c, 3, 3), and which images show the molecule."""
    truth = truth_of(folder)
    rows = particles.get("store_row", np.arange(len(truth)))
    known = truth.take(np.asarray(rows, np.int64))
    own = ~hard_sets.drawn_of(folder).foreign[rows]
    found, true = (euler_to_matrix(one["rot"], one["tilt"], one["psi"]) for one in (particles, known))
    return placed.poses(found), true, own


def errors(folder: Path, row: Row, particles: Particles, placed: PlacedMap) -> dict[str, Any]:
    """Return the share of the molecule's images within 5° of their pose, and the median, up to the molecule's group."""
    found, true, own = poses_of(folder, particles, placed)
    group = operators(MOLECULES[row.molecule].group)
    angle = np.degrees(angle_up_to(found, true, group))[own]
    return {"within 5°": round(float(np.mean(angle < 5)), 3), "median °": round(float(np.median(angle)), 2)}


def stretch(
    folder: Path, row: Row, particles: Particles, found: Found, volume: NDArray[Any], truth: Volume
) -> dict[str, Any]:
    """Return how far preferred views are spread, and how long the map is along their axis, against the truth.

    The direction of an image has two components across the axis. Those found are regressed on the true ones, without
    offset, for images near the axis that are found within 20°; errors of what is found do not bias this slope.
    """
    views = row.recipe.views
    axis = np.array(views.axis) / np.linalg.norm(views.axis)
    poses, true, own = poses_of(folder, particles, found.placed)
    close = (
        own
        & (true[:, 2] @ axis > np.cos(np.radians(views.within_deg)))
        & (np.sum(poses[:, 2] * true[:, 2], axis=1) > np.cos(np.radians(20)))
    )
    across = [one[close, 2] - np.outer(one[close, 2] @ axis, axis) for one in (poses, true)]
    slope = float(np.sum(across[0] * across[1]) / np.sum(across[1] ** 2))
    length = stretched(volume, found.placed, truth.data, truth.pixel_size, diameter(row) / 2, views.axis)
    return {"slope of tilts": round(slope, 3), "of images": int(close.sum()), "length along the axis": round(length, 3)}


def beside_relion(bench: Bench, name: str, row: Row, seed: int, folder: Path, out: Path) -> None:
    """Refine the images of a row by RELION from the same start, and hold its map against the truth in the same mask."""
    truth, mask = volume_of(bench, row), refined(out)[0]["mask"]
    theirs = refined_by_relion(bench, folder, mask, truth.pixel_size, diameter(row), row.group)
    found = held_against(theirs.volume, mask, truth, diameter(row) / 2)
    stated = {"stated Å": round(theirs.gold_standard, 2), "stated in cloudem's mask Å": round(theirs.inside_mask, 2)}
    ratio = {"stated in it / true": round(theirs.inside_mask / found.own, 2)}
    ends = {"CPU-s": round(theirs.cost.cpu, 1), "iterations": theirs.iterations}
    bench.add({"row": f"{name}, RELION 3.1.3", "seed": seed}, stated, found.columns, ratio, ends)
