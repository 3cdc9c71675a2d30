"""Refinements from a stack to a map: the simulated ribosome, real apoferritin, noise, and the number of poses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bars.measure import Bench, Cost, against_truth, refined, refinement_columns
from bars.peer import peer_time
from bars.sets import (
    DIAMETER_A,
    RADIUS_A,
    imported,
    noise_stack,
    ribosome,
    simulated,
    simulated_poses,
    true_poses,
    truth,
)
from cloudem.algorithms.resolution import resolution_at
from cloudem.io.storage.groups import read_group

QUICK = ("--max-iterations", 3)


def refine(bench: Bench, out: str, store: Path, reference: Path, diameter_A: float, *options: Any) -> tuple[Path, Cost]:
    """Run ``cloudem refine3d``, measured."""
    path = bench.fresh(out)
    few = QUICK if bench.quick else ()
    given = ("--particles", store, "--reference", reference, "--diameter-A", diameter_A, "--out", path)
    return path, bench.cloudem("refine3d", *given, *few, *options)


def ribosome_rows(bench: Bench, box: int, seed: int) -> tuple[Path, Cost]:
    """Simulate, import and refine one set; add its row and return the results and what they cost."""
    reference = bench.need(bench.data / "ribosome" / f"start_{box}.mrc")
    folder = ribosome(bench, box, seed)
    store, importing = imported(bench, folder)
    out, cost = refine(bench, f"refine{box}-{seed}", store, reference, DIAMETER_A, "--seed", seed)
    measured = {"seed": seed, "import CPU-s": round(importing.cpu, 2), **cost.columns()}
    bench.add(measured, refinement_columns(bench, out, truth(bench, box), true_poses(folder), RADIUS_A))
    return out, cost


def ribosome96(bench: Bench) -> None:
    """Ribosome, 2,000 × 96 px from 40 Å: at most 110 CPU-s (stretch 40), 8.70 Å or better, pose error at most 0.8°."""
    bench.warm()
    for seed in bench.seeds:
        ribosome_rows(bench, 96, seed)


def ribosome128(bench: Bench) -> None:
    """Ribosome, 5,000 × 128 px: within one shell of known poses, below 2 GiB, 1/15 of RELION 3.1.3's wall time."""
    bench.warm()
    out, refining = ribosome_rows(bench, 128, bench.seeds[0])
    _, attributes, _ = refined(out)
    volume = truth(bench, 128)
    folder = ribosome(bench, 128, bench.seeds[0])
    store, _ = imported(bench, folder, star="particles.star")
    known = bench.fresh("known128")
    cost = bench.cloudem("reconstruct", "--particles", store, "--diameter-A", DIAMETER_A, "--out", known)
    length = volume.pixel_size * len(volume.data)
    shells = []
    for name, result in (("refined", out), ("known poses", known)):
        columns = against_truth(bench, refined(result)[0]["map_unfiltered"], volume, RADIUS_A)
        shells.append(length / columns["map FSC 0.5 Å"])
        extra = {} if name == "refined" else {"reconstruct CPU-s": round(cost.cpu, 2)}
        bench.add({"map": name, "shell of FSC 0.5": round(shells[-1], 2)}, columns, extra)
    bench.add({"shells between refined and known poses": round(shells[1] - shells[0], 2)})
    stages = attributes["stages"]
    total = sum(stage["cpu_s"] for stage in stages)
    for stage in stages:
        share = f"{stage['cpu_s'] / total:.0%}"
        peak = round(stage["peak_rss_bytes"] / 2**20)
        times = {"CPU-s": round(stage["cpu_s"], 2), "wall s": round(stage["wall_s"], 1)}
        bench.add({"stage": stage["name"], **times, "share of CPU": share, "peak MiB": peak})
    if bench.relion:
        peer_time(bench, folder, refining.wall)


def apoferritin(bench: Bench) -> None:
    """Real apoferritin, octahedral: FSC with the model over 25 to 12 Å at least RELION's, under one minute."""
    bench.warm()
    source = bench.data / "apoferritin" / "relion_extract"
    bench.need(source / "particles.star")
    store = bench.fresh("apoferritin.zarr")
    importing = bench.cloudem("import", source / "particles.star", "--diameter-A", 140, "--out", store)
    options = ("--symmetry", "O", "--initial-resolution-A", 20, "--seed", bench.seeds[0])
    out, cost = refine(bench, "apoferritin", store, source / "ref_O.mrc", 140, *options)
    _, attributes, _ = refined(out)
    maps = {"cloudem": out}
    if bench.relion_map is not None:
        maps["RELION"] = bench.need(bench.relion_map)
    for name, found in maps.items():
        compared = bench.fresh(f"apoferritin-{name}")
        bench.cloudem("compare_maps", found, source / "model_O.mrc", "--diameter-A", 160, "--out", compared)
        arrays, said = read_group(compared, "result")
        curve, length = arrays["fsc_masked"], said["box"] * said["pixel_size_A"]
        resolution = length / np.arange(1, len(curve))
        within = curve[1:][(resolution <= 25) & (resolution >= 12)]
        at = {
            f"FSC at {a} Å": round(float(np.interp(length / a, np.arange(len(curve)), curve)), 3) for a in (17, 14, 11)
        }
        half = resolution_at(curve, said["box"], said["pixel_size_A"], 0.5)
        columns = {"map": name, "mean FSC 25-12 Å": round(float(within.mean()), 3), **at}
        bench.add(columns, {"FSC 0.5 Å": round(half, 2)})
    stated = {"stated Å": round(attributes["resolution_A"], 2), "iterations": len(attributes["iterations"])}
    bench.add({"import CPU-s": round(importing.cpu, 2), **cost.columns(), **stated})


def noise(bench: Bench) -> None:
    """Noise alone with the ribosome's CTFs and start map: the corrected FSC stays below 0.143 beyond 40 Å."""
    bench.warm()
    reference = bench.need(bench.data / "ribosome" / "start_96.mrc")
    volume = truth(bench, 96)
    for seed in bench.seeds:
        store, _ = imported(bench, noise_stack(bench, seed))
        out, cost = refine(bench, f"noise-{seed}", store, reference, DIAMETER_A, "--seed", seed)
        arrays, attributes, _ = refined(out)
        length = len(volume.data) * volume.pixel_size
        shell = np.arange(len(arrays["fsc_corrected"]))
        beyond = (shell > length / 40) & (shell < len(volume.data) // 2)
        largest = {
            f"largest {name} FSC beyond 40 Å": round(float(arrays[f"fsc_{name}"][beyond].max()), 3)
            for name in ("corrected", "masked", "unmasked")
        }
        ends = {"stated Å": round(attributes["resolution_A"], 1), "iterations": len(attributes["iterations"])}
        bench.add({"seed": seed, **largest, **ends, "CPU-s": round(cost.cpu, 1)})


def poses(bench: Bench) -> None:
    """A point estimate against mixtures of weighted poses: FSC of the final map with the truth."""
    bench.warm()
    data = bench.data / "ribosome"
    volume = truth(bench, 96)
    reference = bench.need(data / "start_96.mrc")
    folder = ribosome(bench, 96, bench.seeds[0])
    sets = {"ribosome96": (imported(bench, folder)[0], true_poses(folder))}
    for snr in (0.02, 0.01):
        count = bench.few(2000, 250)
        options = ("--density", data / "map_96.mrc", "--count", count, "--snr", snr, "--seed", 1)
        made = simulated(bench, f"simulated96-{count}-snr{snr}", *options)
        sets[f"SNR {snr}"] = (made / "particles.zarr", simulated_poses(made))
    for name, (store, known) in sets.items():
        for most in (1, 4, 8):
            out, cost = refine(bench, f"poses-{most}", store, reference, DIAMETER_A, "--poses", most)
            columns = refinement_columns(bench, out, volume, known, RADIUS_A)
            bench.add({"particles": name, "poses": most, "CPU-s": round(cost.cpu, 1)}, columns)
