"""``cloudem abinitio``: a starting map from particles alone, from several random starts that have to agree."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

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

    from cloudem.algorithms.abinitio import Agreement
    from cloudem.jobs.abinitio_tasks import StartSettings

LEAST_IMAGES = 200
"""Fewest images that a map is made of."""

STARTS_ALONE, STARTS_SYMMETRIC = 4, 8
"""Starts without and with symmetry: with it, a start costs less and is right less often."""

ROUNDS = 3
"""How often as many starts again are made while no other one leads to the map of the most evidence."""

CARRIED = 2
"""Starts that are carried on: the one of the most evidence, and the next that agrees with it."""

START_S, IMAGE_PIXEL_S, IMAGES = 4.0, 8e-9, 10_000
"""Of one start: CPU-seconds besides those of a pixel of an image, and how many images it looks at."""

CARRY_S, CARRY_IMAGES = 9.0, 6000
"""CPU-seconds of carrying a map on, and images that are read for it."""

EVIDENT = 8.0
"""Mean evidence of images that were held out, as a logarithm, below which a map is that of nothing."""

SPHERE = 0.15
"""Share of a map's power beyond a sphere about its centre below which it says nothing: that of proteins is 0.4 to 0.6,
that of apoferritin at 19 Å 0.05."""

FEW_VIEWS = 0.45
"""Share of views in use below which some are preferred: 0.65 to 0.95 where they are even, and 0.2 to 0.45 with 80 %
of them within 20° of an axis."""

HAND = "The hand of the map is open: projections alone cannot determine it. Starts of either hand count as agreeing."

STARTS = table_of(
    "Starts",
    Column("start_number", "start", form="d"),
    Column("start_evidence", "evidence", form=".1f"),
    Column("start_agrees_A", "agrees to", "Å", ".1f"),
    Column("start_hand", "hand"),
    Column("start_views", "views in use", "%", ".0f", 100),
)

CARRIED_ON = table_of(
    "Carried on",
    Column("carried_start", "start", form="d"),
    Column("carried_halves_A", "halves agree to", "Å", ".1f"),
    Column("carried_agrees_A", "agrees with the first to", "Å", ".1f"),
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
    sections: ClassVar[tuple[Section, ...]] = (MAP, STARTS, CARRIED_ON, COST, PARAMETERS, PROVENANCE)

    particles: Place = parameter(
        meaning="particle store, or the results of a job that hold particles", reads=("particles",)
    )
    diameter_A: float = parameter(meaning="diameter of a circle that contains the particle", gt=0)
    symmetry: str = parameter("C1", meaning="point group to impose: C<n>, D<n>, T, O, I, I1 to I4, as in RELION")
    starts: int = parameter(
        0,
        meaning="number of random starts, of which two have to agree; if none does, up to twice as many again; 0: 4 "
        "without symmetry, 8 with it",
        ge=0,
        le=50,
    )
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
        if self.starts == 1:
            raise ParameterError("--starts 1 cannot agree with another one; give 2 or more, or 0 for the usual number")
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

    @property
    def start_count(self) -> int:
        """Number of random starts."""
        return self.starts or (STARTS_ALONE if self.symmetry.upper() == "C1" else STARTS_SYMMETRIC)

    def work(self, sizes: Mapping[str, Size]) -> Work:
        """Return the starts, each of which is one task, and what carries some of them on."""
        size = sizes["particles"]
        voxels, count = size.box**3, self.start_count
        starts = Stage(
            "starts", count, "starts", START_S + IMAGES * IMAGE_PIXEL_S * size.pixels, parallel=True,
            task_bytes=300 * MIB + 24 * 400 * size.pixels, read_bytes=2.0 * IMAGES * size.pixels, spread=3.0,
        )  # fmt: skip
        carried = Stage(
            "carry on", CARRIED, "maps", CARRY_S, parallel=True,
            task_bytes=600 * MIB + 24 * 250 * size.pixels, read_bytes=2.0 * CARRY_IMAGES * size.pixels, spread=3.0,
        )  # fmt: skip
        makes = {"": Size(0, (size.box,) * 3, size.pixel_size, size.remote)}
        return Work((starts, carried), base_bytes=400 * MIB + 40 * voxels, stored_bytes=4 * voxels, makes=makes)

    def settings(self) -> StartSettings:
        """Return what all starts have in common."""
        from cloudem.jobs.abinitio_tasks import StartSettings

        return StartSettings(self.particles, self.diameter_A, self.shift_range_A, self.symmetry, self.skip_damaged)

    def items(self, context: Context) -> Items:
        """Return the starts."""
        from cloudem.io.particle_store import open_particles
        from cloudem.jobs.abinitio_tasks import start_of

        store = open_particles(self.particles)
        self.check_size(len(store), store.box, store.pixel_size)
        seeds = [self.seed + number for number in range(self.start_count)]
        facts = {
            "particles": f"{len(store):,} of {store.box} px at {store.pixel_size:.4g} Å",
            "symmetry": self.symmetry,
        }
        return Items(seeds, [1] * len(seeds), start_of, (self.settings(),), "starts", "starts", facts)

    def result(self, context: Context, found: Found) -> tuple[Found, Mapping[str, Any]]:
        """Compare the starts; if two agree, carry both on, and return the one of the most evidence."""
        import numpy as np

        from cloudem.algorithms.abinitio import ENOUGH
        from cloudem.algorithms.resolution import low_pass
        from cloudem.io.particle_store import open_particles

        store = open_particles(self.particles)
        length, finest = store.box * store.pixel_size, int(found["finest"][0])
        found, agreement = self.compared(context, found, length, finest)
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
            context.progress.warning(no_agreement(len(found["evidence"]), evidence, agreement.aspherical))
            return arrays, attributes
        carried = self.carry(context, found, agreement, length, store.box)
        arrays |= carried.table
        if carried.shell < ENOUGH * finest:
            context.progress.warning(fell_apart(length / max(carried.shell, 0.5)))
            return arrays, attributes
        views = float(found["views"][agreement.best])
        if views < FEW_VIEWS:
            context.progress.warning(
                f"some views are preferred: counted by their shares, {100 * views:.0f} % of the views are in use. The "
                "map may be stretched along them; look at the resolution by direction after refine3d"
            )
        agrees = length / carried.shell
        arrays["map"] = low_pass(carried.volume, store.pixel_size, agrees)
        context.progress.message(
            f"{agreeing} of {len(found['evidence'])} starts agree; the maps of two of them, carried on, agree to "
            f"{agrees:.1f} Å, where the map ends"
        )
        # beyond the coarse limit each image has one pose, and the noise that is aligned so may break the symmetry
        return arrays, {**attributes, "filter_A": agrees, "symmetry_finest_A": length / finest}

    def compared(self, context: Context, found: Found, length: float, finest: int) -> tuple[Found, Agreement]:
        """Compare the starts, and make more of them while only one leads to the best map; return all."""
        import numpy as np

        from cloudem.algorithms.abinitio import agreement_of, is_isotropic
        from cloudem.jobs.abinitio_tasks import start_of
        from cloudem.model.symmetry import operators

        for number in range(1, ROUNDS + 1):
            maps = list(found["volume"].astype(np.float32))
            with context.progress.stage("compare"):
                agreement = agreement_of(maps, found["evidence"], length, self.diameter_A / 2, finest)
            sphere = not agreement.aspherical >= SPHERE and not is_isotropic(operators(self.symmetry))
            hopeless = not found["evidence"][agreement.best] >= EVIDENT or sphere
            agrees = np.count_nonzero(agreement.agrees) > 1 and agreement.aspherical >= SPHERE
            if agrees or hopeless or number == ROUNDS:
                break
            context.progress.message(f"{len(maps)} starts do not agree yet: {self.start_count} more")
            seeds = [self.seed + len(maps) + one for one in range(self.start_count)]
            with context.progress.stage("more starts", len(seeds), "starts") as stage:
                parts = [found]
                for one in context.executor.map(partial(start_of, settings=self.settings()), seeds):
                    parts.append(one)
                    stage.advance(1)
                    context.stop_if_asked(f"{stage.done:,} of {stage.total:,} more starts")
            found = {name: np.concatenate([part[name] for part in parts]) for name in found}
        return found, agreement

    def carry(self, context: Context, found: Found, agreement: Agreement, length: float, box: int) -> CarriedOn:
        """Carry the best start and the next that agrees on to finer detail, side by side, and compare them."""
        import numpy as np

        from cloudem.algorithms.abinitio import agreed_shell
        from cloudem.algorithms.placing import map_on
        from cloudem.jobs.abinitio_tasks import carry_start

        evidence = np.where(agreement.agrees, found["evidence"], -np.inf)
        chosen = np.argsort(-evidence, kind="stable")[:CARRIED]
        tasks = [(found["volume"][one].astype(np.float32), float(found["evidence"][one])) for one in chosen]
        done = []
        with context.progress.stage("carry on", len(tasks), "maps") as stage:
            for one in context.executor.map(partial(carry_start, settings=self.settings()), tasks):
                done.append(one)
                stage.advance(1)
                context.stop_if_asked(f"{stage.done:,} of {stage.total:,} maps carried on")
        with context.progress.stage("compare again"):
            both, _ = agreed_shell(done[0].volume, done[1].volume, length, self.diameter_A / 2)
        table = {
            "carried_start": chosen + 1,
            "carried_halves_A": np.array([length / max(one.shell, 0.5) for one in done]),
            "carried_agrees_A": np.array([np.nan, length / max(both, 0.5)]),
        }
        return CarriedOn(map_on(done[0].volume, box), both, table)


class CarriedOn(NamedTuple):
    """What carrying on ends with.

    Attributes
    ----------
    volume
        Map of the best start, (n, n, n).
    shell
        Up to which it agrees with that of another start.
    table
        What the report's table shows.
    """

    volume: NDArray[np.float32]
    shell: float
    table: dict[str, NDArray[Any]]


def fell_apart(resolution: float) -> str:
    """Say that starts agreed until they were carried on, and what to try."""
    return (
        f"no agreement: two starts agreed, but carried on, their maps agree only to {resolution:.0f} Å, so there is no "
        "map in the result. Sort the particles first with classify2d and select, or give the symmetry"
    )


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
        "start_agrees_A": np.where(agreement.shells > 0, length / np.maximum(agreement.shells, 0.5), np.nan),
        "start_hand": np.where(agreement.mirrored, "other", "same"),
        "start_views": found["views"],
        "start_course": found["course"],
    }
