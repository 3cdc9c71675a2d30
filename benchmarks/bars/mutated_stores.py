"""Damage particle stores, results and checkpoints, and read them: the same values, or one clear line.

    python -m benchmarks.bars.mutated_stores                                 5,000 mutations of their metadata
    python -m benchmarks.bars.mutated_stores --count 200 --seed 7
    python -m benchmarks.bars.mutated_stores --only 1234 --seed 7            one of them, with its traceback

A mutation counts as a failure if an exception ends the reading that cloudem did not raise on purpose, if the answer is
longer than three lines of 133 characters, if it takes more than 10 s or 500 MB, or if other values come than were
written. A third of the documents of groups get a new checksum after they were mutated, as somebody could make one on
purpose: of those, other values are no failure.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import resource
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cloudem.errors import CloudemError, DamagedShardError
from cloudem.io.exporting import export
from cloudem.io.particle_store import open_particles, write_particles
from cloudem.io.storage.documents import MARKER, checksum_of
from cloudem.io.storage.groups import read_attributes, read_rows, write_group
from cloudem.io.storage.location import Store, object_store
from cloudem.io.storage.tables import table_to_arrays
from cloudem.jobs.iterative import left_state, rows_before
from cloudem.jobs.provenance import job_record
from cloudem.jobs.refine3d.job import Refine3D
from cloudem.jobs.refine3d.tasks import Checkpoint, read_checkpoint, read_known
from cloudem.jobs.report import content_of
from cloudem.model.optics import OpticsGroup
from cloudem.model.particles import TEXT, Particles

SECONDS, BYTES, CHARACTERS = 10.0, 500 * 10**6, 400
"""The bars: time, memory, length of an answer."""

COUNT, BOX = 24, 8

HOSTILE: list[Any] = [
    *(0, 1, -1, 2, 3, 7, 2**31, 2**53, 2**63, 10**30, 1e400, -0.5, float("nan"), True, None, "", "NaN", "x\n\x1b[2J"),
    *([], {}, [0], [-1], [10**9] * 3, [[]], {"a": 1}, "a" * 10_000, "../../x", "float16", "float32", "bool"),
]


@dataclass(frozen=True)
class Place:
    """What is damaged and read: a particle store, a result, and a refinement that was stopped."""

    url: str

    @property
    def particles(self) -> str:
        return f"{self.url}/particles.zarr"

    @property
    def done(self) -> str:
        return f"{self.url}/done"

    @property
    def stopped(self) -> str:
        return f"{self.url}/stopped"

    def job(self) -> Refine3D:
        return Refine3D(particles="p.zarr", reference="r.mrc", diameter_A=100.0, out=self.stopped)


def make(url: str) -> Place:
    """Write all of it; tables have chunks of zeros, which Zarr would leave out."""
    place, rng = Place(url), np.random.default_rng(0)
    names = np.array([f"{i + 1}@a.mrcs" for i in range(COUNT)], dtype=TEXT)
    columns = {
        "optics_group": np.zeros(COUNT, np.int32),
        "defocus_u": rng.uniform(5e3, 2e4, COUNT),
        "defocus_v": rng.uniform(5e3, 2e4, COUNT),
        "defocus_angle": np.zeros(COUNT),
        "image_name": names,
        "half_set": np.tile(np.array([1, 2], np.int8), COUNT // 2),
    }
    table = Particles((OpticsGroup("a", 300.0, 2.7e7, 0.1, {"rlnBeamTiltX": "0.1"}),), columns)
    images = rng.standard_normal((COUNT, BOX, BOX)).astype(np.float32)
    write_particles(place.particles, table, [images], box=BOX, pixel_size=1.5, attributes={"date": "2026"})
    record = {"kind": "result", "source": "", **job_record(place.job())}
    rows = [{"iteration": n, "resolution_A": 9.0 - n, "limit_A": 20.0, "moving": 0.5, "seconds": 2.0} for n in (1, 2)]
    for out in (place.done, place.stopped):
        write_group(out, "", {}, record)
        for row in rows:
            curves = {"fsc_unmasked": np.linspace(1, 0, 5)}
            write_group(out, f"iterations/{row['iteration']:03d}", curves, {"row": row, "traffic": {}})
    maps = {name: rng.standard_normal((BOX,) * 3).astype(np.float32) for name in ("half1", "half2", "map")}
    result = {"pixel_size_A": 1.5, "symmetry": "C1", "resolution_A": 7.0, "particle_count": COUNT, "iterations": rows}
    stages = [{"name": "align", "wall_s": 1.0, "cpu_s": 2.0, "peak_rss_bytes": 10}]
    arrays = {**maps, "mask": np.zeros((BOX,) * 3, np.float32), "fsc_corrected": np.linspace(1, 0, 5)}
    write_group(place.done, "particles", *table_to_arrays(table))
    write_group(place.done, "result", arrays, {**result, "stages": stages, "warnings": [], "traffic": {}})
    checkpoint = Checkpoint(
        sigma2=rng.random((2, 1, 5)),
        shift_variance=np.ones(2),
        turn_variance=np.ones(2),
        half_set=columns["half_set"],
        scale=np.ones(COUNT),
        settled=np.zeros(COUNT, bool),
        keep=np.ones(COUNT),
        view_gradient=np.zeros((2, 10, 3), np.float16),
        pose_images=np.arange(COUNT, dtype=np.int32),
        pose_rotations=rng.random((COUNT, 3, 3)),
        pose_shifts=np.zeros((COUNT, 2)),
        pose_weights=np.ones(COUNT),
    )
    state = {"iteration": 3, "limit": 3}
    write_group(place.stopped, "checkpoint", checkpoint.arrays(), {"state": state, "references": ["a", "b"]})
    for name in "ab":
        write_group(
            place.stopped,
            f"references/{name}",
            {"map": maps["half1"], "own_share": np.zeros(BOX // 2 + 1)},
            {"half": 1},
        )
    return place


def read_store(place: Place) -> Iterator[Any]:
    store = open_particles(place.particles)
    yield len(store), store.box, store.dtype, store.pixel_size, store.attributes
    for lost in store.damaged():  # as jobs do before they begin
        raise DamagedShardError(f"{place.particles}/{lost.shard} {lost.reason}")
    yield store.particles.optics, store.particles.columns
    yield store.read_images(np.arange(len(store))[:COUNT])
    yield read_rows(place.particles, "columns", ["defocus_u", "image_name"], 3, 7)


def read_done(place: Place) -> Iterator[Any]:
    with tempfile.TemporaryDirectory(prefix="cloudem-mutated-") as folder:
        export(place.done, f"{folder}/files")
        yield {path.name: path.read_bytes() for path in sorted(Path(folder, "files").iterdir())}
    yield asdict(content_of(place.done))


def read_stopped(place: Place) -> Iterator[Any]:
    from cloudem.io.storage.groups import read_group

    state = left_state(place.job(), place.stopped)
    if state is None:
        raise CloudemError("begins anew")  # and so comes to the same
    yield state
    checkpoint, attributes = read_checkpoint(place.stopped)
    yield vars(checkpoint), attributes
    yield rows_before(place.stopped, 3), read_attributes(place.stopped, "")
    known = read_known(place.stopped, np.arange(3, 9))
    yield known.scale, known.settled, known.poses and vars(known.poses)
    yield [read_group(place.stopped, f"references/{name}") for name in "ab"]


READERS: dict[str, Callable[[Place], Iterator[Any]]] = {
    "particles.zarr": read_store,
    "done": read_done,
    "stopped": read_stopped,
}


def plain(value: Any) -> Any:
    """Return a value whose repr says all of it."""
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return (str(value.dtype), value.shape, value.tolist()) if isinstance(value, np.ndarray) else value


def values_of(place: Place, name: str) -> str:
    """Read all that lies under one of the three names."""
    return repr([plain(value) for value in READERS[name](place)])


def fault_of(read: Callable[[], str], expected: str | None) -> tuple[str, str]:
    """Return what is wrong with how a damaged thing is read, or nothing; and its answer.

    Parameters
    ----------
    read
        Reads it.
    expected
        What comes from a whole one; None if anything may come.
    """
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    answer = fault = ""
    try:
        found = read()
        if expected is not None and found != expected:
            fault = "other values"
    except CloudemError as error:
        answer = str(error)
        if "\n" in answer or not answer.isprintable() or len(answer) > CHARACTERS:
            fault = f"an answer of {len(answer)} characters, or with some that no terminal should get: {answer[:200]!r}"
    except Exception as error:
        fault = f"unexpected {type(error).__name__}: {str(error)[:200]} at {traceback.format_exc(limit=-1)[-200:]}"
    if time.perf_counter() - started > SECONDS:
        fault = f"{time.perf_counter() - started:.0f} s; {fault}"
    if (grown := (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024) > BYTES:
        fault = f"{grown / 1e6:.0f} MB; {fault}"
    return fault, answer


def nodes(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each place in a JSON document: what holds it, and its key there."""
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from nodes(value[key])


def changed(data: bytes, rng: random.Random) -> bytes:
    """Return bytes of which some were flipped, dropped, doubled, or put in between."""
    at, length = rng.randrange(len(data) + 1), rng.choice((1, 2, 10, 100))
    before, after = data[:at], data[at:]
    return rng.choice(
        (
            before + bytes(byte ^ 1 << rng.randrange(8) for byte in after[:1]) + after[1:],
            before + after[length:],
            before + rng.randbytes(length) + after,
            before + after[:length] + after,
            before,
            before + b"[" * 20_000 + after,
            before + rng.choice((b"9", b"-", b"e9", b"NaN", b"9" * 5000, b"\xff")) + after,
        )
    )


def mutated(raw: bytes, rng: random.Random) -> tuple[bytes, bool]:
    """Return a document that somebody changed, and whether it has got a checksum that matches."""
    if rng.random() < 0.4:
        for _ in range(rng.choice((1, 1, 1, 3, 10))):
            raw = changed(raw, rng)
        return raw, False
    document = json.loads(raw)
    for _ in range(rng.choice((1, 1, 2, 5))):
        places = list(nodes(document))
        if not places:
            break
        holder, key = rng.choice(places)
        what = rng.randrange(5)
        if what == 0:
            del holder[key]
        elif what == 1 and isinstance(holder, dict):
            holder[str(key) + rng.choice("x_ ")] = holder.pop(key)
        elif what == 2 and type(holder[key]) in (int, float):
            holder[key] = rng.choice((holder[key] + 1, holder[key] * 10**6, -holder[key], holder[key] / 2))
        else:
            holder[key] = copy.deepcopy(rng.choice(HOSTILE))
    sealed = rng.random() < 0.5
    attributes = document.get("attributes") if isinstance(document, dict) else None
    marker = attributes.get(MARKER) if isinstance(attributes, dict) else None
    if sealed and isinstance(marker, dict):
        marker.pop("checksum", None)
        marker["checksum"] = checksum_of(document)
    return json.dumps(document).encode(), sealed


def keys_of(store: Store) -> list[str]:
    """Return the keys of all objects."""
    return sorted(str(entry["path"]) for batch in store.list() for entry in batch)


def run(count: int, seed: int, only: int | None = None) -> tuple[list[str], Counter[str]]:
    """Mutate metadata `count` times; return what went wrong, and how often which answer came."""
    faults, answers = [], Counter[str]()
    with tempfile.TemporaryDirectory(prefix="cloudem-mutated-") as folder:
        place = make(folder)
        store = object_store(folder)
        documents = {key: bytes(store.get(key).bytes()) for key in keys_of(store) if key.endswith("zarr.json")}
        believed = [key for key, raw in documents.items() if MARKER.encode() in raw or "/images/" in key]
        expected = {name: values_of(place, name) for name in READERS}
        for number in range(count) if only is None else [only]:
            rng = random.Random(f"{seed} {number}")
            key = rng.choice(believed if rng.random() < 0.9 else list(documents))
            name = key.partition("/")[0]
            raw, sealed = mutated(documents[key], rng)
            store.put(key, raw)
            if only is not None:
                print(key, raw[:3000])
                print(values_of(place, name)[:1000])
            fault, answer = fault_of(lambda name=name: values_of(place, name), None if sealed else expected[name])
            store.put(key, documents[key])
            if fault:
                faults.append(f"{number}: {key}: {fault}")
            answers["an error in one line" if answer else "values"] += 1
    return faults, answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, help="number of the one mutation to make")
    given = parser.parse_args()
    started = time.perf_counter()
    faults, answers = run(given.count, given.seed, given.only)
    for fault in faults[:20]:
        print(fault)
    took = time.perf_counter() - started
    print(f"{given.count} mutations: {len(faults)} faults; {dict(answers)}; {took:.0f} s")
    raise SystemExit(bool(faults))


if __name__ == "__main__":
    main()
