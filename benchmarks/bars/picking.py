"""Picking on real micrographs with marks of people: F1 one to one within 20 pixels of 1,200, beside RELION's LoG."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import mrcfile
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial import cKDTree

from bars.measure import Bench, MissingError
from cloudem.algorithms.picking import ReducedImage, reduce_image
from cloudem.algorithms.picking_model import PickingModel, learn_model, pick_image, taught
from cloudem.algorithms.picking_templates import turned_templates, views_of_map
from cloudem.io.formats.coordinate_files import read_coordinates
from cloudem.io.formats.mrc import read_volume

WITHIN = 20 / 1200
"""Of the micrograph's height: how far a pick may be from its mark."""


class MarkedSet(NamedTuple):
    """Micrographs with marks: pixel size, diameter, margin without marks, Å; and which were used in development."""

    name: str
    pixel_size: float
    diameter: float
    margin: float
    developed: tuple[int, ...]
    marked: tuple[int, ...]
    """Whose marks the network is trained on."""
    files: list[Path]
    marks: list[NDArray[np.float64]]


def picking(bench: Bench) -> None:
    """Picking: one rule for all sets; F1 on micrographs that were not looked at in development, and on all."""
    sets = [load(bench, name) for name in ("apoferritin", "empiar10017", "empiar10028")]
    for each in sets[: bench.few(3, 1)]:
        reduced, reducing = timed(lambda each=each: [reduced_of(each, at) for at in range(len(each.files))])
        without_marks(bench, each, reduced, reducing)
        if each.name == "apoferritin":
            by_template(bench, each, reduced)
        if find_spec("torch"):
            with_network(bench, each, reduced)
        else:
            print("  SKIPPED: the network, since PyTorch is not installed")
        try:
            relion(bench, each)
        except MissingError as missing:
            print(f"  SKIPPED: {missing}")
    noise(bench)


def load(bench: Bench, name: str) -> MarkedSet:
    """Return a set of the shared data."""
    if name == "apoferritin":
        files = sorted(bench.need(bench.data / "apoferritin/sums").glob("*.png"))
        marks = [bench.data / f"apoferritin/coordinates/{file.name}-points.csv" for file in files]
        facts = (1.5, 130.0, 0.0, tuple(range(0, 19, 3)), (0, 4, 9, 12, 16))
    else:
        files = sorted(path for path in bench.need(bench.data / "micrographs" / name).iterdir()
                       if path.suffix in (".png", ".jpg"))  # fmt: skip
        marks = [file.with_suffix(".csv") for file in files]
        facts = {
            "empiar10017": (1.77, 170.0, 228.0, (0, 2, 4), (0, 3, 6)),
            "empiar10028": (5.36, 290.0, 177.0, (), (0, 2, 4, 6, 8)),
        }[name]
    pairs = [(file, mark) for file, mark in zip(files, marks, strict=True) if mark.exists()]
    places = [np.stack([found.x, found.y], 1) for found in (read_coordinates(mark) for _, mark in pairs)]
    return MarkedSet(name, *facts, [file for file, _ in pairs], places)


def image_of(path: Path) -> NDArray[np.float32]:
    return np.asarray(Image.open(path)).astype(np.float32)


def reduced_of(each: MarkedSet, at: int) -> ReducedImage:
    return reduce_image(image_of(each.files[at]), each.pixel_size, each.diameter)


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    began = time.process_time()
    return work(), time.process_time() - began


def true_picks(picks: NDArray[np.float64], marks: NDArray[np.float64], within: float) -> int:
    """Return how many picks have a mark of their own, the closest pairs first."""
    if not len(picks) or not len(marks):
        return 0
    found = cKDTree(picks).sparse_distance_matrix(cKDTree(marks), within, output_type="coo_matrix")
    taken: tuple[set[int], set[int]] = (set(), set())
    for at in np.lexsort((found.col, found.row, found.data)):
        pick, mark = int(found.row[at]), int(found.col[at])
        if pick not in taken[0] and mark not in taken[1]:
            taken[0].add(pick)
            taken[1].add(mark)
    return len(taken[0])


def score(
    each: MarkedSet, picks: Sequence[NDArray[np.float64]], chosen: Sequence[int], shape: Sequence[int]
) -> dict[str, Any]:
    """Return F1, precision and recall over the chosen micrographs."""
    true = sum(true_picks(picks[at], each.marks[at], WITHIN * shape[at]) for at in chosen)
    found, marked = sum(len(picks[at]) for at in chosen), sum(len(each.marks[at]) for at in chosen)
    return {"micrographs": len(chosen), "F1": round(2 * true / max(found + marked, 1), 3),
            "precision": round(true / max(found, 1), 3), "recall": round(true / max(marked, 1), 3)}  # fmt: skip


def heights(reduced: Sequence[ReducedImage]) -> list[int]:
    return [round(image.image.shape[0] * image.scale[0]) for image in reduced]


def row(
    bench: Bench, each: MarkedSet, how: str, model: PickingModel, reduced: Sequence[ReducedImage],
    chosen: Sequence[int], cost: dict[str, Any],
) -> None:  # fmt: skip
    found, seconds = timed(lambda: [pick_image(image, model, seed=1, margin=each.margin) for image in reduced])
    picks = [np.stack([one.x, one.y], 1).astype(np.float64) for one in found]
    bench.add({"set": each.name, "how": how}, score(each, picks, chosen, heights(reduced)),
              {"of all": score(each, picks, range(len(reduced)), heights(reduced))["F1"],
               "separation": round(model.mixture.separation, 2), "CPU-s an image": round(seconds / len(reduced), 3)},
              cost)  # fmt: skip


def without_marks(bench: Bench, each: MarkedSet, reduced: Sequence[ReducedImage], reducing: float) -> None:
    others = [at for at in range(len(reduced)) if at not in each.developed]
    model, learning = timed(lambda: learn_model(reduced, each.diameter))
    cost = {"reading and reducing CPU-s": round(reducing / len(reduced), 3), "learning CPU-s": round(learning, 1)}
    row(bench, each, "no marks", model, reduced, others, cost)


def by_template(bench: Bench, each: MarkedSet, reduced: Sequence[ReducedImage]) -> None:
    volume = read_volume(bench.data / "apoferritin/relion_extract/model_O.mrc")
    views = views_of_map(volume.data, volume.pixel_size, each.diameter, reduced[0].pixel_size)
    model, learning = timed(lambda: learn_model(reduced, each.diameter, templates=turned_templates(views)))
    others = [at for at in range(len(reduced)) if at not in each.developed]
    row(bench, each, "template of 4V1W, no CTF", model, reduced, others, {"learning CPU-s": round(learning, 1)})


def with_network(bench: Bench, each: MarkedSet, reduced: Sequence[ReducedImage]) -> None:
    teachers = each.developed or tuple(range(0, len(reduced), 2))
    for seed in bench.seeds:
        base = learn_model([reduced[at] for at in teachers], each.diameter)
        model, cost = timed(lambda base=base, seed=seed: taught(base, [reduced[at] for at in teachers], None, seed,
                                                                bench.few(500, 30)))  # fmt: skip
        others = [at for at in range(len(reduced)) if at not in teachers]
        row(bench, each, f"network, no marks, {len(teachers)} taught", model, reduced, others,
            {"training CPU-s": round(cost, 1), "seed": seed})  # fmt: skip
        base = learn_model([reduced[at] for at in each.marked], each.diameter)
        marks = [each.marks[at] / np.array(reduced[at].scale[::-1]) for at in each.marked]
        model, cost = timed(lambda base=base, seed=seed, marks=marks: taught(
            base, [reduced[at] for at in each.marked], marks, seed, bench.few(500, 30)))  # fmt: skip
        others = [at for at in range(len(reduced)) if at not in each.marked]
        row(bench, each, f"network, {len(each.marked)} marked", model, reduced, others,
            {"training CPU-s": round(cost, 1), "seed": seed})  # fmt: skip


def relion(bench: Bench, each: MarkedSet) -> None:
    """RELION's LoG picker with its own threshold, and with the best one, chosen by the marks."""
    program = bench.program("relion_autopick")
    folder = bench.fresh(f"log-{each.name}")
    folder.mkdir(parents=True)
    labels = ("rlnOpticsGroupName", "rlnOpticsGroup", "rlnMicrographPixelSize", "rlnVoltage", "rlnSphericalAberration",
              "rlnAmplitudeContrast")  # fmt: skip
    lines = ["data_optics", "loop_", *(f"_{label}" for label in labels), f"o 1 {each.pixel_size} 300 2.7 0.1", ""]
    lines += ["data_micrographs", "loop_", "_rlnMicrographName", "_rlnOpticsGroup"]
    shapes = []
    for at, file in enumerate(each.files):
        image = image_of(file)
        shapes.append(image.shape[0])
        with mrcfile.new(folder / f"m{at:02d}.mrc", (image - image.mean()) / image.std()) as mrc:
            mrc.voxel_size = each.pixel_size
        lines.append(f"m{at:02d}.mrc 1")
    (folder / "mics.star").write_text("\n".join(lines) + "\n")
    cost = bench.measured(
        [program, "--i", "mics.star", "--odir", "out/", "--pickname", "log", "--LoG", "--LoG_diam_min",
         f"{0.8 * each.diameter:g}", "--LoG_diam_max", f"{1.1 * each.diameter:g}", "--shrink", "0", "--lowpass", "20",
         "--LoG_adjust_threshold", "0", "--angpix", f"{each.pixel_size:g}"], cwd=folder,
    )  # fmt: skip
    found = [read_coordinates(folder / f"out/m{at:02d}_log.star") for at in range(len(each.files))]
    rim = each.margin / each.pixel_size
    picks, scores = [], []
    for at, one in enumerate(found):
        places = np.stack([one.x, one.y], 1)
        inside = (places >= rim).all(1) & (places <= shapes[at] - 1 - rim).all(1)
        picks.append(places[inside])
        scores.append(one.score[inside])
    others = [at for at in range(len(picks)) if at not in each.developed]
    levels = np.quantile(np.concatenate(scores), np.linspace(0, 0.98, 50))
    best = max(score(each, [p[s >= level] for p, s in zip(picks, scores, strict=True)], others, shapes)["F1"]
               for level in levels)  # fmt: skip
    bench.add({"set": each.name, "how": "RELION 3.1.3 LoG"}, score(each, picks, others, shapes),
              {"best threshold": best, "CPU-s an image": round(cost.cpu / len(picks), 2)})  # fmt: skip


def noise(bench: Bench) -> None:
    """Noise alone, white and coloured, and noise beside particles: nothing should be picked."""
    for kind, exponent in (("white", 0.0), ("pink", 0.5), ("red", 1.0)):
        counts = []
        for seed in bench.seeds:
            rng = np.random.default_rng(1000 + seed)
            images = [reduce_image(coloured(rng, exponent), 1.5, 130.0) for _ in range(bench.few(8, 3))]
            model = learn_model(images, 130.0)
            counts += [len(pick_image(image, model, seed=seed).x) for image in images]
        bench.add({"set": f"{kind} noise alone", "how": "no marks", "micrographs": len(counts), "picks": sum(counts)})


def coloured(rng: np.random.Generator, exponent: float) -> NDArray[np.float32]:
    shape = (1200, 1240)
    ky, kx = np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])
    k = np.maximum(np.hypot(ky, kx), 1 / shape[1])
    return np.fft.irfft2(np.fft.rfft2(rng.standard_normal(shape)) * k**-exponent, s=shape).astype(np.float32)
