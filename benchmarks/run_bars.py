"""Reproduce the figures of docs/benchmarks.md: agreement with RELION, quality, cost, honesty, speed of the kernels.

    python benchmarks/run_bars.py PART [PART …] --work FOLDER     parts by name, or: all, table
    python benchmarks/run_bars.py all --quick                     that everything runs, in minutes; no figures

Each part prints its rows as a table and appends them to ``benchmarks/results/PART.jsonl`` with machine, date and
versions; ``table`` prints the newest rows of all parts. See ``benchmarks/README.md``.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from bars import (
    agreement,
    automatic,
    believe,
    blind,
    ctf,
    ctf_refinement,
    ewald,
    extraction,
    focus,
    from_nothing,
    grids,
    hinge_bounds,
    hot_loops,
    junk,
    local_resolution,
    mixtures,
    motion,
    nothing,
    optics,
    picking,
    point_groups,
    polishing,
    refinements,
    scaling,
    starts,
    symmetry,
    views,
)
from bars.measure import HERE, Bench, FailedError, MissingError, machine, markdown, save, tables

PARTS: dict[str, Callable[[Bench], None]] = {
    "ribosome96": refinements.ribosome96,
    "ribosome128": refinements.ribosome128,
    "reconstruct128": agreement.reconstruct128,
    "agreement": agreement.agreement,
    "apoferritin": refinements.apoferritin,
    "noise": refinements.noise,
    "nothing": nothing.nothing,
    "axes": starts.axes,
    "views": views.views,
    "believe": believe.believe,
    "blind": blind.blind,
    "abinitio": from_nothing.abinitio,
    "abinitio_refined": from_nothing.abinitio_refined,
    "auto": automatic.auto,
    "auto_others": automatic.auto_others,
    "symmetry": symmetry.symmetry,
    "point_groups": point_groups.point_groups,
    "junk": junk.junk,
    "mixtures": mixtures.mixtures,
    "local_resolution": local_resolution.local_regions,
    "non_uniform": local_resolution.non_uniform_micelle,
    "non_uniform_others": local_resolution.non_uniform_others,
    "motion": motion.motion,
    "motion_cost": motion.motion_cost,
    "motion_information": motion.motion_information,
    "ctf_simulated": ctf.ctf_simulated,
    "ctf_special": ctf.ctf_special,
    "ctf_noise": ctf.ctf_noise,
    "ctf_real": ctf.ctf_real,
    "ctf_time": ctf.ctf_time,
    "ctf_refined": ctf_refinement.ctf_refined,
    "ctf_refined_relion": ctf_refinement.ctf_refined_relion,
    "ctf_refine_time": ctf_refinement.ctf_refine_time,
    "search": hot_loops.search,
    "kernels": hot_loops.kernels,
    "scaling": scaling.scaling,
    "extraction": extraction.extraction,
    "from_sums": extraction.from_sums,
    "ewald": ewald.ewald,
    "grids": grids.grids,
    "poses": refinements.poses,
    "picking": picking.picking,
    "optics": optics.optics,
    "optics_refined": optics.optics_refined,
    "optics_search": optics.optics_search,
    "expansion": focus.expansion,
    "subtraction": focus.subtraction,
    "hinge": focus.hinge,
    "hinge_bound": hinge_bounds.hinge_bound,
    "polishing": polishing.polishing,
}


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=[*PARTS, "all", "table"], metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--work", type=Path, help="folder of simulated sets and results, kept between runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--quick", action="store_true", help="tiny settings; the rows are kept in the work folder")
    parser.add_argument("--whole", action="store_true", help="nothing: also 5,000 images, which take an hour a seed")
    parser.add_argument("--relion", action="store_true", help="ribosome128: time RELION's refinement on subsets; "
                        "believe, mixtures: RELION on the same images")  # fmt: skip
    parser.add_argument(
        "--molecules", type=Path, default=os.environ.get("CLOUDEM_MOLECULES") or None,
        help="believe: folder of atomic models, see README.md (default: $CLOUDEM_MOLECULES)",
    )  # fmt: skip
    parser.add_argument(
        "--rows", nargs="+", default=[], choices=[*believe.ROWS, *from_nothing.CASES, *mixtures.MIXES, *polishing.SETS],
        metavar="ROW",
        help=(
            f"believe: {', '.join(believe.ROWS)}; abinitio: {', '.join(from_nothing.CASES)}; "
            f"mixtures: {', '.join(mixtures.MIXES)}; polishing: {', '.join(polishing.SETS)}"
        ).replace("%", "%%"),
    )  # fmt: skip
    parser.add_argument("--relion-minutes", type=float, default=10.0, help="for each of the two subsets")
    parser.add_argument("--relion-map", type=Path, help="apoferritin: RELION's unfiltered map, to compare with")
    return parser.parse_args()


def main() -> None:
    given = options()
    os.nice(5)  # measured commands inherit it: a benchmark does not disturb who else works here
    data = Path(os.environ.get("CLOUDEM_TEST_DATA", HERE.parent.parent / "shared" / "data")).resolve()
    work = given.work or Path(tempfile.gettempdir()) / "cloudem-bars"
    work.mkdir(parents=True, exist_ok=True)
    seeds = given.seeds[:1] if given.quick else given.seeds
    bench = Bench(
        data, work.resolve(), given.quick, seeds, given.relion, given.relion_map and given.relion_map.resolve(),
        0.5 if given.quick else given.relion_minutes, whole=given.whole,
        molecules=given.molecules and given.molecules.resolve(), only=given.rows,
    )  # fmt: skip
    titles = {name: (part.__doc__ or name).rstrip(".") for name, part in PARTS.items()}
    failed: list[str] = []
    for name in PARTS if "all" in given.parts else [part for part in given.parts if part in PARTS]:
        print(f"{name}: {titles[name]}", flush=True)
        bench.rows.clear()
        where = machine()
        try:
            PARTS[name](bench)
        except MissingError as missing:
            print(f"  SKIPPED: {missing}")
        except FailedError as error:
            print(f"  FAILED: {error}")
            failed.append(name)
        if not bench.rows:
            continue
        save(bench, name, where)
        print(f"\n{markdown(bench.rows)}\n", flush=True)
    if "table" in given.parts:
        print(tables(bench, titles))
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
