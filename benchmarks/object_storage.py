"""Particle images in object storage: layout, client, ranges, and what is lost against a bare client.

    python benchmarks/object_storage.py all [--count 8192] [--box 128] [--work /tmp/images]
    python benchmarks/object_storage.py bars --runs 7

Starts a server of its own (`tests.s3`), writes images of noise to it and measures; rows go to
``benchmarks/results/object_storage.jsonl`` (into the work folder with ``--quick``). Server and client share the cores
of one machine, so CPU counts twice in every time: compare figures of one part. What is compared is run in turn, every
other time in the opposite order. Of times the fastest is shown, which depends least on what else the machine does; a
bar is the median over the turns of the ratio within a turn, with the fastest of the bare client's ways in that turn.

layouts  codec, chunk and shard, written and read through zarr with obstore, and directly where that is possible
clients  s3fs and obstore: alone, through zarr, and the direct reader
ranges   gap up to which ranges are merged, bytes of a request, requests in flight
bars     import, first pass, random subset and warm cache against a bare client, and against a folder
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import obstore
import zarr
from bars.measure import HERE, Bench, machine, save

sys.path.insert(0, str(HERE.parent))

from cloudem import traffic
from cloudem.io.formats.mrc_writer import write_stack
from cloudem.io.formats.relion import read_particles_star
from cloudem.io.images import cache, remote
from cloudem.io.images.layout import StackLayout
from cloudem.io.importing import import_particles
from cloudem.io.particle_store import ParticleStore, open_particles, write_particles
from cloudem.io.storage.location import delete_all, object_store
from cloudem.jobs.dataset import Dataset, image_batches
from cloudem.model.optics import OpticsGroup
from cloudem.model.particles import Particles
from tests.s3 import S3, missing, serve


@dataclass
class Run:
    """A measurement: what the options say, and where."""

    server: S3
    bench: Bench
    count: int
    box: int
    runs: int

    @property
    def image_bytes(self) -> int:
        return 2 * self.box * self.box

    def subset(self) -> np.ndarray:
        """Return the numbers of 1,000 images at random, or of an eighth if there are few."""
        return np.random.default_rng(1).permutation(self.count)[: min(1000, self.count // 8)]

    def batches(self) -> Iterator[np.ndarray]:
        """Yield images of noise, 512 at a time: the same noise, scaled, which no codec notices in its window."""
        noise = np.random.default_rng(0).standard_normal((512, self.box, self.box), dtype=np.float32)
        for first in range(0, self.count, 512):
            yield noise[: self.count - first] * np.float32(1 + first / self.count)

    def table(self) -> Particles:
        optics = (OpticsGroup("a", 300.0, 2.7e7, 0.1),)
        return Particles(optics, {"optics_group": np.zeros(self.count, dtype=np.int32)})

    def store(self, url: str) -> ParticleStore:
        write_particles(url, self.table(), self.batches(), box=self.box, pixel_size=1.0)
        return open_particles(url)


class Taken(NamedTuple):
    """Seconds, CPU-seconds of this process, and MB received for images."""

    s: float
    cpu_s: float
    MB: float


def in_turn(runs: int, before: Callable[[], Any] = lambda: None, **calls: Callable[[], Any]) -> dict[str, list[Taken]]:
    """Run calls in turn; return what each took in each turn.

    What runs `before` each call is not measured.
    """
    found: dict[str, list[Taken]] = {name: [] for name in calls}
    for turn in range(runs + 1):
        for name, call in list(calls.items())[:: -1 if turn % 2 else 1]:
            before()
            received = traffic.totals()["images"].received
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            taken = (time.perf_counter() - wall, time.process_time() - cpu)
            if turn:  # the first compiles and opens connections
                found[name].append(Taken(*taken, (traffic.totals()["images"].received - received) / 1e6))
    return found


def least(turns: Sequence[Taken]) -> dict[str, float]:
    """Return the least of each."""
    return Taken(*map(min, zip(*turns, strict=True)))._asdict()


def ratio(took: Mapping[str, Sequence[Taken]], over: Sequence[str], under: Sequence[str]) -> dict[str, float]:
    """Return the median over the turns of a ratio of times, each the fastest of some calls in that turn; its range."""
    times = [[min(turn).s for turn in zip(*(took[name] for name in names), strict=True)] for names in (over, under)]
    each = [one / other for one, other in zip(*times, strict=True)]
    return {"value": median(each), "least": min(each), "most": max(each), "turns": len(each)}


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """Set environment variables while the block runs."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


@contextmanager
def place(run: Run) -> Iterator[str]:
    """Give a URL for a store; what is there goes afterwards, since the server keeps all in memory."""
    url = f"s3://{run.server.bucket()}/p.zarr"
    try:
        yield url
    finally:
        delete_all(object_store(url), "")


def threads(count: int, call: Callable[[Any], Any], items: Any) -> None:
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(call, items))


def rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {name: float(f"{value:.3g}") for name, value in values.items()}


def layouts(run: Run) -> None:
    """Write and read every layout through zarr, and directly where images are ranges of bytes."""
    run = replace(run, count=min(run.count, 2048))  # zarr is slow with small chunks
    images = np.concatenate(list(run.batches())).astype(np.float16)
    codecs = {
        "none": None,
        "zstd": zarr.codecs.ZstdCodec(level=3),
        "blosc": zarr.codecs.BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle"),
    }
    for codec, chunk, shard in (
        *((name, 16, 1024) for name in codecs),
        *(("none", chunk, 1024) for chunk in (1, 4, 64)),
        *(("none", 16, shard) for shard in (256, 4096)),
    ):
        with place(run) as url:
            layout_row(run, url, images, codec, codecs[codec], chunk, shard)


def layout_row(run: Run, url: str, images: np.ndarray, codec: str, compressor: Any, chunk: int, shard: int) -> None:
    run.store(url)
    objects = object_store(url)
    target = zarr.storage.ObjectStore(objects)
    subset, pieces = run.subset(), np.array_split(np.arange(run.count), max(1, run.count // 512))

    def write() -> None:
        array = zarr.create_array(
            target, name="images", shape=images.shape, dtype="float16", overwrite=True, filters=None,
            chunks=(chunk, run.box, run.box), shards=(min(shard, run.count), run.box, run.box),
            compressors=compressor,
        )  # fmt: skip
        array[...] = images

    wrote = least(in_turn(1, write=write)["write"])
    stored = sum(entry["size"] for batch in obstore.list(objects, "images/c") for entry in batch)
    array, store = zarr.open_array(target, path="images", mode="r"), open_particles(url)
    calls: dict[str, Callable[[], Any]] = {
        "zarr pass": lambda: [array[p[0] : p[-1] + 1] for p in pieces],
        "zarr random": lambda: array.oindex[np.sort(subset)],
    }
    if codec == "none":
        calls |= {
            "direct pass": lambda: [store.read_images(p) for p in pieces],
            "direct random": lambda: store.read_images(subset),
        }
    took = in_turn(max(1, run.runs // 2), **calls)
    run.bench.add(
        {"codec": codec, "chunk": chunk, "shard": shard, "stored MB": round(stored / 1e6, 1)},
        {"write s": round(wrote["s"], 2), "write cpu_s": round(wrote["cpu_s"], 2)},
        {f"{name} {unit}": round(least(turns)[unit], 3) for name, turns in took.items() for unit in ("s", "cpu_s")},
    )


def clients(run: Run) -> None:
    """Compare s3fs with obstore: whole shards and ranges alone, and through zarr; and the direct reader."""
    import s3fs

    with place(run) as url:
        compare_clients(run, url, s3fs.S3FileSystem(endpoint_url=run.server.endpoint, use_listings_cache=False))


def compare_clients(run: Run, url: str, files: Any) -> None:
    store, objects = run.store(url), object_store(url)
    layout, subset = store._layout, np.sort(run.subset())
    paths = [f"{url.removeprefix('s3://')}/{layout.key(i)}" for i in range(layout.shards)]
    shards, rows = np.divmod(subset, layout.shard)
    starts = (rows * run.image_bytes).tolist()
    stops = [start + run.image_bytes for start in starts]
    arrays = {
        "zarr_s3fs": zarr.open_array(
            zarr.storage.FsspecStore.from_url(url, storage_options={"endpoint_url": run.server.endpoint}),
            path="images", mode="r",
        ),
        "zarr_obstore": zarr.open_array(zarr.storage.ObjectStore(objects), path="images", mode="r"),
    }  # fmt: skip
    pieces = np.array_split(np.arange(run.count), max(1, run.count // 512))
    whole = in_turn(
        run.runs,
        s3fs=lambda: files.cat(paths),
        obstore=lambda: whole_shards(objects, layout, 4),
        zarr_s3fs=lambda: [arrays["zarr_s3fs"][p[0] : p[-1] + 1] for p in pieces],
        zarr_obstore=lambda: [arrays["zarr_obstore"][p[0] : p[-1] + 1] for p in pieces],
        direct=lambda: first_pass(store),
    )
    some = in_turn(
        run.runs,
        s3fs=lambda: files.cat_ranges([paths[i] for i in shards], starts, stops),
        obstore=lambda: single_ranges(objects, layout, subset, run.image_bytes),
        zarr_s3fs=lambda: arrays["zarr_s3fs"].oindex[subset],
        zarr_obstore=lambda: arrays["zarr_obstore"].oindex[subset],
        direct=lambda: store.read_images(subset),
    )
    for what, took, size in (("all", whole, run.count), (f"random {len(subset)}", some, len(subset))):
        for name, turns in took.items():
            speed = size * run.image_bytes / 1e6 / least(turns)["s"]
            run.bench.add({"read": what, "by": name}, rounded({**least(turns), "useful MB/s": speed}))


def reader_settings(run: Run) -> None:
    """Vary how the direct reader asks."""
    with place(run) as url:
        vary_settings(run, run.store(url))


def vary_settings(run: Run, store: ParticleStore) -> None:
    subset = run.subset()
    usual = {name: getattr(remote, name) for name in ("GAP_BYTES", "RANGE_BYTES", "IN_FLIGHT")}
    varied = {
        "GAP_BYTES": ((0, 2**16, 2**17, 2**18, 2**19, 2**20), lambda: store.read_images(subset)),
        "IN_FLIGHT": ((1, 4, 8, 16, 32), lambda: store.read_images(subset)),
        "RANGE_BYTES": ((2**21, 2**22, 2**23, 2**24, 2**25), lambda: store.read_images(np.arange(run.count))),
    }
    for name, (values, call) in varied.items():

        def with_value(value: int, name: str = name, call: Callable[[], Any] = call) -> None:
            setattr(remote, name, value)
            if name == "IN_FLIGHT":
                remote._threads.cache_clear()
            call()
            setattr(remote, name, usual[name])

        took = in_turn(run.runs, **{str(value): lambda v=value, w=with_value: w(v) for value in values})
        remote._threads.cache_clear()
        for value, turns in took.items():
            run.bench.add({"setting": name, "value": int(value), "usual": usual[name]}, rounded(least(turns)))


def whole_shards(objects: Any, layout: StackLayout, count: int) -> None:
    threads(count, lambda i: len(obstore.get(objects, layout.key(i)).bytes()), range(layout.shards))


def single_ranges(objects: Any, layout: StackLayout, subset: np.ndarray, size: int, coalesce: int = 0) -> None:
    """Fetch images by obstore alone: one call for each shard, which sends ten requests at a time."""
    shards, rows = np.divmod(np.sort(subset), layout.shard)

    def fetch(shard: int) -> None:
        starts = (rows[shards == shard] * size).tolist()
        obstore.get_ranges(
            objects, layout.key(int(shard)), starts=starts, lengths=[size] * len(starts), coalesce=coalesce
        )

    threads(8, fetch, np.unique(shards))


def first_pass(store: ParticleStore) -> None:
    """Read all images as the tasks of a refinement do."""
    nothing = np.zeros(0)
    for _ in image_batches(Dataset(store, store.particles, nothing, nothing, nothing), np.arange(len(store))):
        pass


def bars(run: Run) -> None:
    """Compare with a bare client of the same server, and with a folder of the same machine."""
    with place(run) as url:
        took = reading(run, url)
    with place(run) as url:
        took |= importing(run, url)
    for name, turns in took.items():
        run.bench.add({"what": name}, rounded(least(turns)))
    whole, puts = ("bare_whole_1", "bare_whole_4"), ("bare_put_1", "bare_put_4")
    ranged = ("bare_single_ranges", "bare_merged_ranges")
    for bar, over, under, limit in (
        ("first pass: speed / bare", whole, ["first_pass_without_cache"], ">= 0.7"),
        ("the same, filling the cache", whole, ["first_pass_filling_the_cache"], ">= 0.7"),
        ("random: time / bare", ["random_without_cache"], ranged, "<= 2"),
        ("the same, filling the cache", ["random_filling_the_cache"], ranged, "<= 2"),
        ("warm pass: time / folder", ["warm_pass"], ["folder_pass"], ""),
        ("warm random: time / folder", ["warm_random"], ["folder_random"], ""),
        ("import: speed / bare", puts, ["import_to_server"], ">= 0.7"),
        ("import: time / folder", ["import_to_server"], ["import_to_folder"], ""),
    ):
        run.bench.add({"bar": bar}, rounded(ratio(took, over, under)), {"limit": limit})


def reading(run: Run, url: str) -> dict[str, list[Taken]]:
    """Read from the server with and without cache, from a folder, and by the bare client."""
    folder, kept = run.bench.work / "local.zarr", run.bench.work / "cache"
    shutil.rmtree(folder, ignore_errors=True)
    store, local, subset = run.store(url), run.store(str(folder)), run.subset()
    objects, layout, size = object_store(url), store._layout, run.image_bytes

    def forget() -> None:
        shutil.rmtree(kept, ignore_errors=True)
        cache._image_cache.cache_clear()

    def uncached(call: Callable[[], Any]) -> Callable[[], None]:
        def without() -> None:
            with environment(CLOUDEM_CACHE_GIB="0"):
                call()

        return without

    with environment(CLOUDEM_CACHE=str(kept)):
        took = in_turn(
            run.runs,
            forget,
            bare_whole_1=lambda: whole_shards(objects, layout, 1),
            bare_whole_4=lambda: whole_shards(objects, layout, 4),
            first_pass_filling_the_cache=lambda: first_pass(store),
            first_pass_without_cache=uncached(lambda: first_pass(store)),
            bare_single_ranges=lambda: single_ranges(objects, layout, subset, size),
            bare_merged_ranges=lambda: single_ranges(objects, layout, subset, size, 2**20),
            random_filling_the_cache=lambda: store.read_images(subset),
            random_without_cache=uncached(lambda: store.read_images(subset)),
        )
        first_pass(store)
        took |= in_turn(
            run.runs,
            warm_pass=lambda: first_pass(store),
            folder_pass=lambda: first_pass(local),
            warm_random=lambda: store.read_images(subset),
            folder_random=lambda: local.read_images(subset),
        )
    return took


def importing(run: Run, url: str) -> dict[str, list[Taken]]:
    """Import a stack to the server and to a folder, and put the same bytes by the bare client."""
    project = run.bench.work / "project"
    shutil.rmtree(project, ignore_errors=True)
    project.mkdir()
    write_stack(project / "s.mrcs", run.batches(), run.count, 1.0)
    optics = "data_optics\n\nloop_\n_rlnOpticsGroup\n_rlnVoltage\n_rlnSphericalAberration\n_rlnAmplitudeContrast\n"
    optics += "_rlnImagePixelSize\n_rlnImageSize\n_rlnImageDimensionality\n_rlnOpticsGroupName\n"
    rows = "\n".join(f"{i + 1:06d}@s.mrcs 1 10000 10000 0" for i in range(run.count))
    (project / "particles.star").write_text(
        f"# version 30001\n\n{optics}1 300 2.7 0.1 1.0 {run.box} 2 a\n\ndata_particles\n\nloop_\n_rlnImageName\n"
        f"_rlnOpticsGroup\n_rlnDefocusU\n_rlnDefocusV\n_rlnDefocusAngle\n{rows}\n"
    )
    source = read_particles_star(project / "particles.star")
    objects, layout = object_store(url), StackLayout.choose(run.count, run.box, "float16")
    shard = np.random.default_rng(0).integers(0, 256, layout.shard * run.image_bytes, dtype=np.uint8).data

    def empty() -> None:
        delete_all(objects, "")
        shutil.rmtree(project / "p.zarr", ignore_errors=True)

    def put(i: int) -> None:
        obstore.put(objects, f"bare/{i}", shard, use_multipart=False)

    return in_turn(
        run.runs,
        empty,
        bare_put_1=lambda: threads(1, put, range(layout.shards)),
        bare_put_4=lambda: threads(4, put, range(layout.shards)),
        import_to_server=lambda: import_particles(source, url),
        import_to_folder=lambda: import_particles(source, project / "p.zarr"),
    )


PARTS: dict[str, Callable[[Run], None]] = {
    "layouts": layouts,
    "clients": clients,
    "ranges": reader_settings,
    "bars": bars,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=["all", *PARTS])
    parser.add_argument("--count", type=int, default=8192)
    parser.add_argument("--box", type=int, default=128)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--work", type=Path, help="for local stores and the cache; a temporary folder if none")
    parser.add_argument("--quick", action="store_true", help="try it out: 1,024 images, nothing recorded")
    options = parser.parse_args()
    if missing():
        raise SystemExit(missing())
    count, runs = (1024, 1) if options.quick else (options.count, options.runs)
    with (
        tempfile.TemporaryDirectory() as temporary,
        serve(memory=4 * 2**30) as server,
        environment(**server.environment),
    ):
        for part in PARTS if options.part == "all" else [options.part]:
            print(part, flush=True)
            bench = Bench(Path(), options.work or Path(temporary), options.quick, ())
            with environment(CLOUDEM_CACHE_GIB="" if part == "bars" else "0"):
                PARTS[part](Run(server, bench, count, options.box, runs))
            save(bench, "object_storage", {**machine(), "of": part})


if __name__ == "__main__":
    main()
