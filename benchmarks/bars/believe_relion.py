"""RELION beside cloudem on sets whose truth is known: images by its projector, and its own refinement to the end."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bars.hard_sets import Recipe, draw, is_made, write_set
from bars.measure import Bench, Cost
from cloudem.algorithms.resolution import multiply_shells
from cloudem.io.formats.mrc import Volume, map_stack, read_volume
from cloudem.io.formats.mrc_writer import write_volume
from cloudem.io.formats.relion import particles_to_blocks
from cloudem.io.formats.star import read_star, write_star

OPTIONS = (
    "--auto_refine --split_random_halves --firstiter_cc --ini_high 40 --dont_combine_weights_via_disc "
    "--preread_images --pool 30 --pad 2 --ctf --flatten_solvent --zero_mask --oversampling 1 --healpix_order 2 "
    "--auto_local_healpix_order 4 --offset_range 3 --offset_step 2 --low_resol_join_halves 40 --norm --scale --j 1 "
    "--random_seed 42"
)
"""Of an ordinary auto-refinement; shifts are looked for as far as ``refine3d`` looks, 3 px, not 5, which is faster."""

TIMED = 'TIMEFORMAT="%U %S"; { time "$0" "$@" 2>&3; } 3>&2 2>cpu-$OMPI_COMM_WORLD_RANK'
"""Runs a command and writes its CPU-seconds, user's and system's, to a file for each process."""


class Refined(NamedTuple):
    """RELION's result: the mean of its unfiltered half-maps, the resolutions that it states, and what it cost.

    Attributes
    ----------
    volume
        (n, n, n).
    gold_standard, inside_mask
        Of the refinement itself (no mask on the half-maps), and of ``relion_postprocess`` inside cloudem's mask.
    iterations, cost
        Number, and CPU-seconds of the two processes that hold a half-set each; the leader's are left out.
    """

    volume: NDArray[np.float32]
    gold_standard: float
    inside_mask: float
    iterations: int
    cost: Cost


def projected(bench: Bench, folder: Path, volume: Volume, recipe: Recipe, seed: int) -> Path:
    """Write a set like that of :func:`bars.hard_sets.make_set`, projected by RELION, with noise drawn by NumPy."""
    if is_made(folder, recipe):
        return folder
    program, making = bench.program("relion_project"), bench.fresh(f"{folder.name}-projecting")
    making.mkdir()
    truth, drawn = draw(recipe, seed)
    box, pixel_size = len(volume.data), volume.pixel_size
    k = np.arange(box // 2 + 1) / (box * pixel_size)
    blurred = multiply_shells(np.asarray(volume.data, np.float32), np.exp(-recipe.b_factor * k**2 / 4))
    write_volume(making / "density.mrc", blurred, pixel_size)
    write_star(making / "poses.star", particles_to_blocks(truth, box=box, pixel_size=pixel_size))
    bench.measured(
        [program, "--i", "density.mrc", "--ang", "poses.star", "--ctf", "--pad", "2", "--o", "clean"], making
    )
    clean, _ = map_stack(making / "clean.mrcs")
    power = float(np.mean([np.var(image) for image in clean]))

    def images(rows: NDArray[np.int64]) -> Iterator[NDArray[np.float32]]:
        for row in rows:
            noise = np.random.default_rng([seed, 4, int(row)]).standard_normal((1, box, box), np.float32)
            yield np.asarray(clean[row] * np.sqrt(recipe.snr / power), np.float32)[None] + noise

    write_set(folder, volume, recipe, seed, truth, drawn, images)
    shutil.rmtree(making)
    return folder


def refined_by_relion(
    bench: Bench, folder: Path, mask: NDArray[Any], pixel_size: float, diameter_A: float, group: str
) -> Refined:
    """Refine a set with RELION from its start map, to convergence: a leader and a process for each half-set.

    Parameters
    ----------
    folder
        The set; its particles are exported, without poses.
    mask
        Solvent mask for ``relion_postprocess``, (n, n, n).
    pixel_size, diameter_A
        Å.
    group
        Point group.
    """
    bench.program("relion_refine_mpi")
    work = bench.fresh(f"{folder.name}-relion")
    bench.cloudem("export", folder / "particles.zarr", "--out", work)
    shutil.copy(folder / "start.mrc", work / "start.mrc")
    (work / "run").mkdir()
    command = ["nice", "-n", "5", bench.program("mpirun"), "--allow-run-as-root", "--oversubscribe", "-n", "3"]
    command += ["--mca", "mpi_yield_when_idle", "1", "bash", "-c", TIMED, bench.program("relion_refine_mpi")]
    command += ["--i", "particles.star", "--ref", "start.mrc", "--o", "run/run", "--sym", group]
    wall = bench.measured([*command, "--particle_diameter", f"{diameter_A:g}", *OPTIONS.split()], work).wall
    # the leader only waits, and counts as busy while it does
    cpu = sum(float(word) for rank in (1, 2) for word in (work / f"cpu-{rank}").read_text().split()[-2:])
    halves = [work / "run" / f"run_half{half}_class001_unfil.mrc" for half in (1, 2)]
    volume = np.mean([read_volume(half).data for half in halves], axis=0, dtype=np.float32)
    last = read_star(work / "run" / "run_model.star")["model_general"]
    write_volume(work / "mask.mrc", mask, pixel_size)
    command = [bench.program("relion_postprocess"), "--i", str(halves[0]), "--i2", str(halves[1]), "--mask", "mask.mrc"]
    bench.measured([*command, "--angpix", f"{pixel_size:g}", "--o", "post"], work)
    masked = read_star(work / "post.star")["general"]["rlnFinalResolution"][0]
    iterations = len(list((work / "run").glob("run_it*_optimiser.star"))) - 1
    return Refined(volume, float(last["rlnCurrentResolution"][0]), float(masked), iterations, Cost(wall, cpu, 0))
