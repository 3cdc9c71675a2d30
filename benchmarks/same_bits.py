"""Whether kernels give the same bits wherever their arrays lie: in fresh processes, side by side, and far apart.

    python benchmarks/same_bits.py hunt --processes 150     hashes of results, compared over all processes and layouts
    python benchmarks/same_bits.py checks                   run-time checks of the compiled loops, from LLVM's own code

LLVM puts a check before a vector loop where arrays might overlap. A check of ranges fails only where they do. A check
of distances (``diff.check``) also fails where two short arrays are neighbours, which the heap decides; then the loop
without vector code runs. That is the same in all but speed, unless fast-math flags allowed another order of its sums.
See ``benchmarks/README.md``.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Case = tuple[list[Array], Callable[..., Any]]
"""Arrays that are given or written to, and a call with them."""

SIZES = (2, 3, 5, 7, 8, 9, 10, 13, 17, 24, 33, 40, 70, 150)
"""Iterations of inner loops: fewer than a vector, than an unrolled vector, and more."""
MODULES = ("atoms", "ctf", "motion", "polar", "rotated_sum", "slices")
"""Modules of ``cloudem.kernels._numba`` that have, or had, fast-math flags; others do as IEEE 754 says."""
LAYOUTS = 6


def twin(module: str, name: str) -> Any:
    """Return the function of a twin; the package's own modules, which take longer to import, are left out."""
    return getattr(importlib.import_module(f"cloudem.kernels._numba.{module}"), name)


def cases(n: int) -> dict[str, Case]:
    """Return inputs of all twins with fast-math flags whose inner loops have about n iterations."""
    made: dict[str, Case] = {}
    for family in (motion_sums, motion_images, rotations, interpolation, small_sums):
        made |= family(n, np.random.default_rng(n))
    return made


def floats(random: np.random.Generator, *shape: int) -> Array:
    return random.standard_normal(shape).astype(np.float32)


def motion_sums(n: int, random: np.random.Generator) -> dict[str, Case]:
    waves = np.array([[y, x] for y in range(-3, 4) for x in range(1, 5)], np.int32)
    real, imaginary = floats(random, 2, len(waves), n)
    weight, pattern = np.abs(floats(random, 2, len(waves)))
    steps, moved = np.array([0.03, 0.05]), random.normal(size=(n, 2))
    shifts = [real, imaginary, waves, steps, moved]
    return {
        "motion.correlation_steps": (
            [*shifts, weight, pattern],
            lambda a, b, c, d, e, f, g: twin("motion", "correlation_steps")(a, b, c, d, f, g, e),
        ),
        "motion.coherence": (shifts, twin("motion", "coherence")),
    }


def motion_images(n: int, random: np.random.Generator) -> dict[str, Case]:
    image, total = floats(random, 12, n + 4), floats(random, 12, n + 4)
    raw, factor, one = random.poisson(1, image.shape).astype(np.uint8), np.abs(image), np.full((1, 1), 0.7, np.float32)
    frames, fields = floats(random, 3, 12, n + 4), random.normal(size=(3, 2, 6))
    spectrum, ring = (image + 1j * total).astype(np.complex64), np.abs(floats(random, n))
    moments = twin("motion", "frame_moments")
    return {
        "motion.corrected": ([raw, factor, total], lambda a, b, c: (twin("motion", "corrected")(a, b, 1.2, 0.1, c), c)),
        "motion.frame_moments": ([raw, factor, total], lambda a, b, c: (moments(a, b, c), c)),
        "motion.frame_moments of one factor": ([raw, one, total], lambda a, b, c: (moments(a, b, c), c)),
        "motion.roughness": ([image], twin("motion", "roughness")),
        "motion.shrunk": ([image, ring], lambda a, b: twin("motion", "shrunk")(a, b, 2)),
        "motion.add_warped": (
            [frames, fields, floats(random, 3), floats(random, 3, 2), floats(random, 2, 12, n + 4)],
            lambda a, b, c, d, e: (twin("motion", "add_warped")(a, b, c, d, e), e),
        ),
        "motion.add_weighted": (
            [spectrum, ring, spectrum.copy()], lambda a, b, c: (twin("motion", "add_weighted")(a, b, c), c)
        ),
    }  # fmt: skip


def rotations(n: int, random: np.random.Generator) -> dict[str, Case]:
    """The search: n directions, or n pixels; two images, three shifts, four angles."""
    images, shifts, angles = 2, 3, 4
    scores = list(floats(random, 4, angles, 2, images * shifts, n))
    frequencies = random.integers(-n, n + 1, (2, n)).astype(np.int32)
    posterior = twin("polar", "posterior_rotations")
    return {
        "polar.shift_samples": (
            [*floats(random, 2, images, n), *frequencies, random.normal(size=(images, shifts, 2))],
            lambda a, b, c, d, e: twin("polar", "shift_samples")(a, b, c, d, e, 64),
        ),
        "polar.best_rotations": (scores, lambda *s: twin("polar", "best_rotations")(*s, shifts)),
        "polar.posterior_rotations": (
            [*scores, floats(random, images, 2, n)], lambda *s: (posterior(*s, shifts), s[:4]),
        ),
    }  # fmt: skip


def interpolation(n: int, random: np.random.Generator) -> dict[str, Case]:
    """Slices of n pixels from half-volumes; three poses of two images."""
    m, reach = 11, 5
    shape = (2 * m + 1, 2 * m + 1, m + 2)
    volume = floats(random, *shape, 2).view(np.complex64)[..., 0]
    kx, ky = random.integers(0, reach, n).astype(np.int32), random.integers(-reach, reach + 1, n).astype(np.int32)
    turns = np.linalg.qr(random.normal(size=(3, 3, 3)))[0]
    rows, moves, shares = np.array([0, 1, 1], np.int32), random.normal(size=(3, 2)), np.abs(floats(random, 3))
    numerators, denominators = floats(random, 2, n, 2).view(np.complex64)[..., 0], np.abs(floats(random, 2, n))
    images = [rows, turns, moves]
    data = [numerators, denominators, kx, ky]
    added, turned = twin("slices", "insert"), twin("rotated_sum", "add_rotated")
    return {
        "slices.extract": ([volume, turns, kx, ky], lambda *a: twin("slices", "extract")(*a, 1.5)),
        "slices.insert": (
            [volume, floats(random, *shape), *images, shares, *data], lambda *a: (added(*a, 1.5, 16), a[:2]),
        ),
        "slices.score_derivatives": (
            [volume, *images, *data], lambda *a: twin("slices", "score_derivatives")(*a, 1.5, 16),
        ),
        "rotated_sum.add_rotated": (
            [volume, turns, volume.copy()], lambda a, b, c: (turned(a, b, 0, 2 * m + 1, c), c),
        ),
    }  # fmt: skip


def small_sums(n: int, random: np.random.Generator) -> dict[str, Case]:
    frequencies = random.normal(size=(2, n))
    terms = random.normal(size=(3, 6)) * [400, 20, 400, 10, 1, 1]
    size, count = 24, 5
    table = np.abs(random.normal(size=(2, 3, 2))) * [2, 40] + [0, 2.0 * n]
    kinds, occupied = random.integers(0, 2, count).astype(np.int32), random.uniform(0.5, 1, (2, count))
    atoms = [np.zeros((size,) * 3, np.float32), random.uniform(-4, 4, (count, 3)), kinds, 20 * occupied[0], occupied[1]]
    return {
        "ctf.ctf_values": ([*frequencies, terms], lambda a, b, c: twin("ctf", "ctf_values")(a, b, c, 0.1)),
        "atoms.add_gaussians": (
            [*atoms, table], lambda *a: (twin("atoms", "add_gaussians")(*a, 1.0), a[0])
        ),
    }  # fmt: skip


def placed(arrays: list[Array], gap: int) -> list[Array]:
    """Copy arrays into one buffer, in their order, with about that many bytes between one and the next."""
    starts, end = [], 0
    for array in arrays:
        starts.append(end)
        end += -(-(array.nbytes + gap) // 8) * 8
    buffer = np.empty(end // 8 + 8, np.float64).view(np.uint8)
    copies = []
    for array, start in zip(arrays, starts, strict=True):
        copy = buffer[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
        copy[...] = array
        copies.append(copy)
    return copies


def hashed(result: Any) -> str:
    digest = hashlib.sha256()

    def add(part: Any) -> None:
        if isinstance(part, tuple | list):
            for one in part:
                add(one)
        elif part is not None:
            digest.update(np.ascontiguousarray(part).tobytes())

    add(result)
    return digest.hexdigest()[:16]


def litter(random: np.random.Generator) -> list[Array]:
    """Take small pieces of the heap and give every other one back, so that arrays find holes of many sizes."""
    pieces = [np.empty(int(size), np.uint8) for size in random.integers(8, 700, 60)]
    return pieces[:: int(random.integers(2, 4))]


def results(seed: int, layouts: int = LAYOUTS, sizes: tuple[int, ...] = SIZES) -> Iterator[tuple[str, str]]:
    """Call every kernel with the same inputs, differently placed; yield its name with the size, and a hash."""
    random = np.random.default_rng(seed)
    kept = []
    for n in sizes:
        for name, (arrays, call) in cases(n).items():
            for layout in range(layouts):
                kept.append(litter(random))
                gap = 0 if layout == 1 else int(random.integers(0, 300))
                given = [array.copy() for array in arrays] if layout % 3 == 0 else placed(arrays, gap)
                yield f"{name} of {n}", hashed(call(*given))


def in_new_process(seed: int) -> list[tuple[str, str]]:
    command = [sys.executable, __file__, "once", "--seed", str(seed)]
    told = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return [(name, found) for name, found in json.loads(told.stdout)]


def hunt(processes: int) -> int:
    """Count the results of every kernel and size over fresh processes; return how many kernels vary."""
    seen: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    apart: dict[str, set[int]] = defaultdict(set)
    usual: dict[str, str] = {}
    for seed in range(processes):
        for name, found in in_new_process(seed):
            seen[name][found] += 1
            if usual.setdefault(name, found) != found:
                apart[name].add(seed)
    varying: dict[str, list[str]] = defaultdict(list)
    for name, counts in seen.items():
        kernel, _, size = name.rpartition(" of ")
        varying[kernel] += [f"{size} ({len(counts)} results, {len(apart[name])} processes)"] if len(counts) > 1 else []
    for kernel, where in sorted(varying.items()):
        print(f"{kernel:40s} {'VARIES with inner loops of ' + ', '.join(where) if where else 'same bits'}")
    calls = sum(sum(counts.values()) for counts in seen.values())
    print(f"{processes} processes, {calls} calls, inner loops of {', '.join(map(str, SIZES))}")
    return sum(map(bool, varying.values()))


def checks() -> None:
    """Print which run-time checks compiled loops have, and where sums and checks of distances are in one function."""
    import numba

    list(results(0, 1, SIZES[:2]))
    print(f"{'function':36s} {'flags':22s} ranges distances ordered sums in vectors")
    for module in MODULES:
        where = importlib.import_module(f"cloudem.kernels._numba.{module}")
        for name, made in sorted(vars(where).items()):
            if not isinstance(made, numba.core.registry.CPUDispatcher) or made.py_func.__module__ != where.__name__:
                continue
            options = {key: made.targetoptions[key] for key in ("fastmath", "error_model") if key in made.targetoptions}
            anew = numba.njit(nogil=True, **options)(made.py_func)
            for signature in made.signatures:
                anew.compile(signature)
                code = anew.inspect_llvm(signature)
                distances, sums = len(re.findall(r"%diff\.check\S* =", code)), vector_sums(code)
                bad = distances > 0 and sums > 0
                flags = options.get("fastmath") or "none"
                flags = ",".join(sorted(flags)) if isinstance(flags, set) else str(flags)
                ranges = len(re.findall(r"%found\.conflict\S* =", code))
                print(f"{module + '.' + name:36s} {flags:22s} {ranges:6d} {distances:9d} {sums:5d}"
                      f"{'  LOOK at them' if bad else ''}")  # fmt: skip


def vector_sums(code: str) -> int:
    """Count the floating-point sums that vector loops carry from step to step."""
    return len(re.findall(r"= phi (?:\w+ )*<\d+ x (?:float|double)>", code))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["hunt", "checks", "once"])
    parser.add_argument("--processes", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0, help="once: of what lies between arrays")
    given = parser.parse_args()
    if given.what == "once":
        print(json.dumps(list(results(given.seed))))
        return
    os.nice(5)
    if given.what == "checks":
        checks()
    elif varying := hunt(given.processes):
        raise SystemExit(f"{varying} kernels give results that vary")


if __name__ == "__main__":
    main()
