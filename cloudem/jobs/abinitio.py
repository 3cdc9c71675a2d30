"""``cloudem abinitio``: a starting map from particles alone, from several random starts that have to agree."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from cloudem.cloud.planning.work import MIB, Size, Stage, Work
from cloudem.errors import ParameterError
from cloudem.jobs.base import Context, Inputs
from cloudem.jobs.mapping import Found, Items, MapJob
from cloudem.jobs.parameters import Kind, Place, parameter
from cloudem.model.columns import Column
from cloudem.report.declaration import COST, MAP, PARAMETERS, PROVENANCE, Section, table_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cloudem.algorithms.abinitio import Agreement, Blind
    from cloudem.jobs.dataset import Dataset

HELD_OUT, LEAST_IMAGES = 400, 200
"""Images that are asked for their evidence only, and the fewest that a map is made of."""

NOISE_IMAGES = 1000
"""Images that the noise is measured on."""

START_S, IMAGE_PIXEL_S, IMAGES = 4.0, 8e-9, 10_000
"""Of one start: CPU-seconds besides those of a pixel of an image, and how many images it looks at."""

EVIDENT = 8.0
"""Mean evidence of images that were held out, as a logarithm, below which a map is that of nothing."""

SPHERE = 0.15
"""Share of a map's power beyond a sphere about its centre below which it says nothing: that of proteins is 0.4 to 0.6,
that of apoferritin at 19 Å 0.05."""

HAND = "The hand of the map is open: projections alone cannot determine it. Starts of either hand count as agreeing."

STARTS = table_of(
    "Starts",
    Column("start_number", "start", form="d"),
    Column("start_evidence", "evidence", form=".1f"),
    Column("start_agrees_A", "agrees to", "Å", ".1f"),
    Column("start_hand", "hand"),
    Column("start_views", "views in use", "%", ".0f", 100),
)


class AbInitio(MapJob):
    """Declaration of ``cloudem abinitio``."""

    name: ClassVar[str] = "abinitio"
    summary: ClassVar[str] = "Make a starting map from particles alone, from several random starts that have to agree."
    examples: ClassVar[tuple[str, ...]] = (
        "cloudem abinitio --particles good --diameter-A 180 --out start",
        "cloudem abinitio --particles good --diameter-A 140 --symmetry D2 --starts 6 --out start",
    )
    makes: ClassVar[Mapping[str, tuple[Kind, ...]]] = {"": ("volume",)}
    columns: ClassVar[tuple[Column, ...]] = ()
    sections: ClassVar[tuple[Section, ...]] = (MAP, STARTS, COST, PARAMETERS, PROVENANCE)

    particles: Place = parameter(
        meaning="particle store, or the results of a job that hold particles", reads=("particles",)
    )
    diameter_A: float = parameter(meaning="diameter of a circle that contains the particle", gt=0)
    symmetry: str = parameter("C1", meaning="point group to impose: C<n>, D<n>, T, O, I, I1 to I4, as in RELION")
    starts: int = parameter(4, meaning="number of random starts; two have to agree", ge=2, le=50)
    shift_range_A: float = parameter(0.0, meaning="largest shift from the box centre; 0: 6 % of the diameter", ge=0)
    skip_damaged: bool = parameter(
        False, meaning="skip particles whose shards are missing or damaged, instead of stopping"
    )
    seed: int = parameter(0, meaning="random seed of the first start; the others follow")

    def check(self, inputs: Inputs, warn: Callable[[str], None]) -> None:
        """Check table, shards and point group."""
        from cloudem.jobs.checks import check_images
        from cloudem.model.symmetry import operators

        operators(self.symmetry)
        store = check_images(self.particles, inputs, warn, skip_damaged=self.skip_damaged)
        if store is not None:
            self.check_size(len(store), store.box, store.pixel_size)

    def check_size(self, particles: int, box: int, pixel_size: float) -> None:
        """Check that the particle fits in the images, and that there are enough of them."""
        from cloudem.jobs.checks import check_diameter

        check_diameter(self.diameter_A, box, pixel_size)
        if particles < LEAST_IMAGES:
            raise ParameterError(
                f"{particles:,} particles are too few for a map from nothing; {LEAST_IMAGES} are needed"
            )

    def work(self, sizes: Mapping[str, Size]) -> Work:
        """Return the starts, each of which is one task."""
        size = sizes["particles"]
        voxels = size.box**3
        stage = Stage(
            "starts", self.starts, "starts", START_S + IMAGES * IMAGE_PIXEL_S * size.pixels, parallel=True,
            task_bytes=300 * MIB + 24 * 400 * size.pixels, read_bytes=2.0 * IMAGES * size.pixels, spread=3.0,
        )  # fmt: skip
        makes = {"": Size(0, (size.box,) * 3, size.pixel_size, size.remote)}
        return Work((stage,), base_bytes=400 * MIB + 40 * voxels, stored_bytes=4 * voxels, makes=makes)

    def items(self, context: Context) -> Items:
        """Return the starts."""
        from cloudem.io.particle_store import open_particles

        store = open_particles(self.particles)
        self.check_size(len(store), store.box, store.pixel_size)
        seeds = [self.seed + number for number in range(self.starts)]
        facts = {
            "particles": f"{len(store):,} of {store.box} px at {store.pixel_size:.4g} Å",
            "symmetry": self.symmetry,
        }
        given = (self.particles, self.diameter_A, self.shift_range_A, self.symmetry, self.skip_damaged)
        return Items(seeds, [1] * len(seeds), start_of, given, "starts", "starts", facts)

    def result(self, context: Context, found: Found) -> tuple[Found, Mapping[str, Any]]:
        """Compare the starts, and return the one of the most evidence if another one agrees."""
        import numpy as np

        from cloudem.algorithms.abinitio import agreement_of, finer_grid
        from cloudem.io.particle_store import open_particles

        store = open_particles(self.particles)
        length, finest = store.box * store.pixel_size, int(found["finest"][0])
        maps = list(found["volume"].astype(np.float32))
        with context.progress.stage("compare"):
            agreement = agreement_of(maps, found["evidence"], length, self.diameter_A / 2, finest)
        evidence = float(found["evidence"][agreement.best])
        agreeing = int(np.count_nonzero(agreement.agrees))
        arrays = starts_table(found, agreement, length) | {"start_maps": found["volume"]}
        attributes: dict[str, Any] = {
            "box": store.box,
            "pixel_size_A": store.pixel_size,
            "symmetry": self.symmetry,
            "starts_agreeing": agreeing,
            "evidence": evidence,
            "aspherical": agreement.aspherical,
            "notes": [HAND],
        }
        if agreeing < 2 or not evidence >= EVIDENT or not agreement.aspherical >= SPHERE:
            context.progress.warning(no_agreement(self.starts, evidence, agreement.aspherical))
            return arrays, attributes
        arrays["map"] = finer_grid(maps[agreement.best], store.box)
        context.progress.message(
            f"{agreeing} of {self.starts} starts agree; the map of start {agreement.best + 1} has evidence "
            f"{evidence:.1f} and detail to {length / finest:.1f} Å"
        )
        return arrays, {**attributes, "filter_A": length / finest}


def no_agreement(starts: int, evidence: float, aspherical: float) -> str:
    """Say why the starts are no agreement, and what to try."""
    if not evidence >= EVIDENT:
        return (
            "no agreement: images that were held out match the best map no better than noise "
            f"(evidence {evidence:.1f}), so there is no map in the result. Check --diameter-A and the contrast of the "
            "images, and sort them first with classify2d and select"
        )
    if not aspherical >= SPHERE:
        return (
            f"no agreement: at this resolution the maps are hardly more than a sphere ({100 * aspherical:.0f} % of the "
            "power is none), in which all wrong maps agree, so there is no map in the result. Use another starting map"
        )
    return (
        f"no agreement: no other of {starts} starts leads to the map of the most evidence ({evidence:.1f}), so there "
        "is no map in the result. Try more --starts, sort the particles first with classify2d and select, or give the "
        "symmetry"
    )


def starts_table(found: Found, agreement: Agreement, length: float) -> dict[str, NDArray[Any]]:
    """Return what the report's table shows of each start."""
    import numpy as np

    count = len(found["evidence"])
    return {
        "start_number": np.arange(1, count + 1),
        "start_evidence": found["evidence"],
        "start_agrees_A": length / np.maximum(agreement.shells, 0.5),
        "start_hand": np.where(agreement.mirrored, "other", "same"),
        "start_views": found["views"],
        "start_course": found["course"],
    }


def start_of(
    seed: int, particles: str, diameter: float, shift_range: float, symmetry: str, skip_damaged: bool
) -> Found:
    """Make a map from nothing with one seed: the task of a start."""
    import numpy as np

    from cloudem.algorithms.abinitio import from_nothing
    from cloudem.jobs.dataset import left_out, open_for_tasks

    dataset = open_for_tasks(particles)
    kept = np.setdiff1d(np.arange(len(dataset.store)), left_out(dataset.store, skip_damaged))
    order = np.random.default_rng(0).permutation(
        kept
    )  # the same for all starts: they are compared on what none has seen
    held = min(HELD_OUT, len(order) // 4)
    known = known_of(dataset, order[held:], diameter, shift_range, symmetry)
    found = from_nothing(known, lambda indices: images_of_start(dataset, indices), order[held:], order[:held], seed)
    return {
        "volume": found.volume[None],
        "evidence": np.array([found.evidence]),
        "views": np.array([found.views]),
        "course": found.course[None],
        "finest": np.array([known.finest]),
    }


def images_of_start(dataset: Dataset, indices: NDArray[np.int64]) -> Any:
    """Return images with their CTFs, as a batch."""
    from cloudem.jobs.classify2d.tasks import batch_for_classes

    return batch_for_classes(dataset, indices, dataset.images(indices))


def known_of(dataset: Dataset, order: NDArray[np.int64], diameter: float, shift_range: float, symmetry: str) -> Blind:
    """Return what a start knows beforehand: lengths in pixels, and the noise of the images."""
    import numpy as np

    from cloudem.algorithms.abinitio import Blind
    from cloudem.algorithms.noise import noise_variance
    from cloudem.jobs.classify2d.tasks import noise_of_group
    from cloudem.model.symmetry import operators

    store = dataset.store
    power = noise_of_group(np.sort(order[:NOISE_IMAGES]), dataset)
    return Blind(
        box=store.box,
        pixel_size=store.pixel_size,
        radius=diameter / 2 / store.pixel_size,
        shift_range=(shift_range or 0.06 * diameter) / store.pixel_size,
        group=operators(symmetry),
        sigma2=noise_variance(power[:, :-1], power[:, -1], store.box),
    )
