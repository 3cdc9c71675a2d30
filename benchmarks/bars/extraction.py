"""Particles cut out of micrographs: agreement with RELION on real ones, cost, bytes, and reading without copies."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cloudem.io.formats.star import read_star, write_star
from cloudem.io.growing_store import begin_growing_store
from cloudem.io.micrographs.images import write_micrograph_image
from cloudem.io.micrographs.tables import write_micrograph_table, write_picks
from cloudem.io.particle_store import open_particles
from cloudem.io.storage.groups import read_group, write_group
from cloudem.jobs.base import JOBS
from cloudem.jobs.extract_tasks import ExtractionSettings, MicrographPositions, extract_particles
from cloudem.kernels.boxes import BoxRecipe
from cloudem.model.micrographs import Micrographs
from cloudem.model.optics import OpticsGroup
from cloudem.model.picks import Picks
from cloudem.model.table import TEXT

from .measure import Bench, MissingError

SIDE, BOX, COUNT, PIXEL = 4096, 256, 300, 1.0
REAL_PIXEL, REAL_BOX, REAL_SIZE, REAL_DIAMETER = 1.5, 128, 64, 141.0
RECIPE = BoxRecipe(BOX, BOX, 0.9, -1.0)


def extraction(bench: Bench) -> None:
    """Images at least 0.999 like RELION's, less CPU than `relion_preprocess`, and the same bits without copies."""
    like_relion(bench)
    cost(bench)
    reading(bench)


def results_of(
    place: Path, table: dict[str, NDArray[Any]], picks: dict[str, NDArray[Any]], optics: tuple[OpticsGroup, ...]
) -> Path:
    """Write results that hold micrographs and picks."""

    def write(path: str, arrays: Any, said: Any) -> None:
        write_group(place, path, arrays, said)

    write("", {}, {"kind": "result"})
    write_micrograph_table(write, Micrographs(optics, table))
    write_picks(write, Picks((), picks))
    write("result", {}, {})
    return place


def like_relion(bench: Bench) -> None:
    """Compare with what RELION 3.1.3 cut out of the same sums at the same coordinates, which it cuts off to pixels."""
    source = bench.need(bench.data / "apoferritin")
    optics, rows = (read_star(source / "relion_extract" / "particles.star")[name] for name in ("optics", "particles"))
    names = sorted(set(rows["rlnMicrographName"].tolist()))
    folder, (height, width) = bench.fresh("sums"), (0, 0)
    folder.mkdir()
    for name in names:
        image = np.asarray(Image.open(source / "sums" / f"{Path(name).stem}.png")).astype(np.float32)
        height, width = image.shape
        with mrcfile.new(folder / Path(name).name) as file:
            file.set_data(image)
            file.voxel_size = REAL_PIXEL
    count = len(names)
    table = {
        "micrograph": np.array(names, TEXT), "optics_group": np.zeros(count, np.int32),
        "image": np.array([str(folder / Path(name).name) for name in names], TEXT),
        "pixel_size": np.full(count, REAL_PIXEL), "height": np.full(count, height, np.int32),
        "width": np.full(count, width, np.int32),
    }  # fmt: skip
    places = np.floor(np.stack([rows[f"rlnCoordinate{axis}"].astype(np.float64) for axis in "XY"]))
    picks = {"micrograph": rows["rlnMicrographName"], "coordinate_x": places[0], "coordinate_y": places[1]}
    constants = OpticsGroup("real", 300.0, float(optics["rlnSphericalAberration"][0]) * 1e7, 0.07)
    given = results_of(bench.fresh("marked"), table, picks, (constants,))
    out = bench.fresh("extracted")
    options = ("--box-px", REAL_BOX, "--scale-to-px", REAL_SIZE, "--background-diameter-A", REAL_DIAMETER)
    bench.cloudem("extract", given, *options, "--hot-sigma", 0, "--out", out)
    store = open_particles(out)
    ours = store.read_images(np.arange(len(store)))
    order = np.argsort(np.array([names.index(name) for name in rows["rlnMicrographName"].tolist()]), kind="stable")
    stacks: dict[str, Any] = {}
    alike, spread = [], []
    for image, row in zip(ours, order, strict=True):
        number, stack = str(rows["rlnImageName"][row]).split("@")
        if stack not in stacks:
            stacks[stack] = mrcfile.read(source / "relion_extract" / stack)
        theirs = stacks[stack][int(number) - 1]
        alike.append(np.corrcoef(image.ravel(), theirs.ravel())[0, 1])
        spread.append(image.std() / theirs.std())
    columns = {f"correlation, {name}": round(float(v), 5) for name, v in zip(
        ("least", "1 %", "median"), np.quantile(alike, [0, 0.01, 0.5]), strict=True)}  # fmt: skip
    below = int(np.sum(np.array(alike) < 0.999))
    bench.add({"what": "apoferritin, RELION 3.1.3", "images": len(alike), **columns, "below 0.999": below},
              {"standard deviation, ratio": round(float(np.median(spread)), 4)})  # fmt: skip


def micrographs_of(bench: Bench, count: int) -> tuple[Path, list[NDArray[np.float64]]]:
    """Write micrographs of noise as MRC files, and return the folder and positions in each."""
    folder, side = bench.fresh("Mics"), bench.few(SIDE, 1024)
    folder.mkdir()
    places = []
    for number in range(count):
        rng = np.random.default_rng(number)
        with mrcfile.new(folder / f"m{number}.mrc") as file:
            file.set_data((1000 + 30 * rng.standard_normal((side, side))).astype(np.float32))
            file.voxel_size = PIXEL
        places.append(rng.integers(BOX // 2, side - BOX // 2, (bench.few(COUNT, 20), 2)).astype(np.float64))
    return folder, places


def timed(run: Callable[[], Any], count: int, repeats: int = 5) -> float:
    """Return CPU-seconds for one of so many items, the median of some runs after one that does not count."""
    run()
    seconds = []
    for _ in range(repeats):
        began = time.process_time()
        run()
        seconds.append(time.process_time() - began)
    return float(np.median(seconds)) / count


def cost(bench: Bench) -> None:
    """Cut, of each micrograph, 300 particles of 256 px: CPU-seconds and bytes, beside RELION."""
    count = bench.few(4, 2)
    folder, places = micrographs_of(bench, count)
    side = bench.few(SIDE, 1024)
    groups = [
        write_micrograph_image(str(bench.work / "groups"), f"m{number}",
                               {"sum": mrcfile.read(folder / f"m{number}.mrc")}, pixel_size=PIXEL)
        for number in range(count)
    ]  # fmt: skip
    files = [str(folder / f"m{number}.mrc") for number in range(count)]
    for size in (BOX, BOX // 2):
        recipe = RECIPE._replace(size=size)
        for name, images in (("MRC files", files), ("float16 groups", groups)):
            for copied in (True, False):
                store = bench.fresh(f"store-{size}-{copied}")
                begin_growing_store(store, recipe, pixel_size=PIXEL, dtype="float16", copied=copied, attributes={})
                settings = ExtractionSettings(str(store), recipe, "float16", copied, False, 0.0, 10.0, PIXEL)
                entries = [MicrographPositions(image, "", f"m{number}", places[number], np.zeros(len(places[number])))
                           for number, image in enumerate(images)]  # fmt: skip
                seconds = timed(lambda entries=entries, settings=settings: extract_particles(entries, settings), count)
                stored = sum(each.stat().st_size for each in store.rglob("*") if each.is_file()) / count
                what = f"{name}, {side}², {len(places[0])} of {BOX} px to {size}"
                bench.add({"what": what, "copied": copied, "CPU-s of a micrograph": round(seconds, 3)},
                          {"MB stored": round(stored / 1e6, 3)})  # fmt: skip
        theirs = relion(bench, folder, places, size)
        bench.add({"what": f"RELION 3.1.3, to {size}", "CPU-s of a micrograph": round(theirs / count, 3)})
    image = mrcfile.read(files[0])
    boxes = np.empty((len(places[0]), BOX, BOX), np.float16)
    floor = timed(lambda: (image.astype(np.float16), boxes.fill(1), boxes.tobytes()), 1)
    bench.add({"what": "floor: the micrograph is read once, the images are written once", "CPU-s of a micrograph":
               round(floor, 3)})  # fmt: skip


def relion(bench: Bench, folder: Path, places: list[NDArray[np.float64]], size: int) -> float:
    """Return CPU-seconds of `relion_preprocess` for all micrographs, its start included."""
    program = bench.program("relion_preprocess")
    for number, each in enumerate(places):
        columns = {f"rlnCoordinate{axis}": np.array([f"{v:.1f}" for v in each[:, at]], TEXT) for at, axis in
                   enumerate("XY")}  # fmt: skip
        write_star(folder / f"m{number}_pick.star", {"": columns})
    optics = {
        "rlnOpticsGroupName": "o", "rlnOpticsGroup": "1", "rlnMicrographOriginalPixelSize": f"{PIXEL}",
        "rlnMicrographPixelSize": f"{PIXEL}", "rlnVoltage": "300", "rlnSphericalAberration": "2.7",
        "rlnAmplitudeContrast": "0.1",
    }  # fmt: skip
    names = [f"Mics/m{number}.mrc" for number in range(len(places))]
    write_star(bench.work / "mics.star", {
        "optics": {name: np.array([value], TEXT) for name, value in optics.items()},
        "micrographs": {
            "rlnMicrographName": np.array(names, TEXT), "rlnOpticsGroup": np.array(["1"] * len(names), TEXT),
        },
    })  # fmt: skip
    command = [program, "--i", "mics.star", "--coord_suffix", "_pick.star", "--coord_dir", "./", "--part_dir",
               "Relion/", "--part_star", "Relion/particles.star", "--extract", "--extract_size", str(BOX), "--norm",
               "--bg_radius", str(int(0.45 * size)), "--invert_contrast"]  # fmt: skip
    bench.fresh("Relion")
    scale = ["--scale", str(size)] if size != BOX else []
    return bench.measured([*command, *scale], bench.work).cpu


def reading(bench: Bench) -> None:
    """Read all images of a store: copied, cut when they are read, and from the cache; in order and at random."""
    count = bench.few(4, 2)
    folder, places = bench.work / "Mics", []
    for number in range(count):
        rng = np.random.default_rng(number)
        side = bench.few(SIDE, 1024)
        places.append(rng.integers(BOX // 2, side - BOX // 2, (bench.few(COUNT, 20), 2)).astype(np.float64))
    images = [write_micrograph_image(str(bench.work / "groups"), f"m{number}",
                                     {"sum": mrcfile.read(folder / f"m{number}.mrc")}, pixel_size=PIXEL)
              for number in range(count)]  # fmt: skip
    names = np.array([f"m{number}" for number in range(count)], TEXT)
    table = {"micrograph": names, "image": np.array(images, TEXT), "pixel_size": np.full(count, PIXEL)}
    where = np.concatenate(places)
    picks = {"micrograph": np.repeat(names, len(places[0])), "coordinate_x": where[:, 0], "coordinate_y": where[:, 1]}
    given = results_of(bench.fresh("noise"), table, picks, (OpticsGroup("o", 300.0, 2.7e7, 0.1),))
    copied, cut = bench.fresh("copied"), bench.fresh("cut")
    bench.cloudem("extract", given, "--box-px", BOX, "--out", copied)
    bench.cloudem("extract", given, "--box-px", BOX, "--on-reading", "--out", cut)
    orders = {"in order": np.arange(len(where)), "at random": np.random.default_rng(0).permutation(len(where))}
    bits = open_particles(copied).read_images(np.arange(len(where))).tobytes()
    for name, order in orders.items():
        for kind, place, cache in (("copied", copied, "0"), ("cut", cut, "0"), ("cut, then cached", cut, "8")):
            with cached(bench.work / "cache", cache):
                store = open_particles(place)
                batches = [order[first : first + 128] for first in range(0, len(order), 128)]
                seconds = timed(lambda s=store, b=batches: [s.read_images(each) for each in b], len(order), 3)
                same = store.read_images(np.arange(len(where))).tobytes() == bits
            bench.add({"what": f"reading, {kind}, {name}", "CPU-ms of an image": round(1e3 * seconds, 3),
                       "same bits": same})  # fmt: skip


@contextmanager
def cached(folder: Path, limit: str) -> Any:
    """Let images be cached in a folder, up to so many GiB."""
    before = {name: os.environ.get(name) for name in ("CLOUDEM_CACHE", "CLOUDEM_CACHE_GIB")}
    os.environ |= {"CLOUDEM_CACHE": str(folder), "CLOUDEM_CACHE_GIB": limit}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def from_sums(bench: Bench) -> None:
    """From 20 real sums and nothing else: FSC with the model at least that of the particles marked by hand."""
    source = bench.need(bench.data / "apoferritin")
    if missing := {"import_micrographs", "estimate_ctf", "pick"} - JOBS.keys():
        raise MissingError(f"this version has no {', '.join(sorted(missing))}")
    folder, model = bench.fresh("all-sums"), source / "relion_extract" / "model_O.mrc"
    folder.mkdir()
    for sheet in sorted((source / "sums").glob("*.png")):
        with mrcfile.new(folder / f"{sheet.stem}.mrc") as file:
            file.set_data(np.asarray(Image.open(sheet)).astype(np.float32))
            file.voxel_size = REAL_PIXEL
    places = {name: bench.fresh(f"from-{name}") for name in ("mics", "ctf", "picks", "particles", "marked")}
    microscope = ("--pixel-size-A", REAL_PIXEL, "--voltage-kV", 300, "--cs-mm", 0.01, "--amplitude-contrast", 0.07)
    costs = [
        bench.cloudem("import-micrographs", f"{folder}/*.mrc", *microscope, "--out", places["mics"]),
        bench.cloudem("estimate-ctf", places["mics"], "--out", places["ctf"]),
        bench.cloudem("pick", places["ctf"], "--diameter-A", 130, "--out", places["picks"]),
        bench.cloudem("extract", places["picks"], "--box-px", REAL_BOX, "--scale-to-px", REAL_SIZE, "--edges", "pad",
                      "--background-diameter-A", REAL_DIAMETER, "--min-distance-A", 90, "--out", places["particles"]),
    ]  # fmt: skip
    marked = source / "relion_extract" / "particles.star"
    bench.cloudem("import", marked, "--diameter-A", 140, "--out", places["marked"])
    for seed in bench.seeds:
        classes, good = bench.fresh(f"from-classes-{seed}"), bench.fresh(f"from-good-{seed}")
        sorting = bench.cloudem("classify2d", "--particles", places["particles"], "--diameter-A", 140, "--seed", seed,
                                "--out", classes)  # fmt: skip
        bench.cloudem("select", "--particles", classes, "--auto", "--out", good)
        chain = sum(each.cpu for each in costs)
        for name, particles, before in (
            ("marked", places["marked"], 0.0),
            ("from sums alone, all", places["particles"], chain),
            ("from sums alone, chosen by 2D classes", good, chain + sorting.cpu),
        ):
            out, compared = bench.fresh(f"from-refined-{seed}"), bench.fresh(f"from-compared-{seed}")
            refining = bench.cloudem("refine3d", "--particles", particles, "--reference", model, "--diameter-A", 140,
                                     "--symmetry", "O", "--initial-resolution-A", 20, "--seed", seed,
                                     "--out", out)  # fmt: skip
            bench.cloudem("compare-maps", out, model, "--diameter-A", 160, "--out", compared)
            arrays, said = read_group(compared, "result")
            curve, length = arrays["fsc_masked"], said["box"] * said["pixel_size_A"]
            resolution = length / np.arange(1, len(curve))
            bands = {f"FSC {high}-{low} Å": round(float(curve[1:][(resolution <= high) & (resolution > low)].mean()), 3)
                     for high, low in ((25, 12), (12, 8), (8, 6), (25, 6))}  # fmt: skip
            bench.add({"particles": name, "seed": seed, "count": len(open_particles(particles)), **bands},
                      {"CPU-s": round(before + refining.cpu, 1)})  # fmt: skip
