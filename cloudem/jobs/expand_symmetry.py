"""``cloudem expand_symmetry``: each particle once for each operator of its point group; no image is copied."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar

from cloudem.cloud.planning.work import Size, Work
from cloudem.errors import ParameterError
from cloudem.jobs.base import Context, Inputs
from cloudem.jobs.parameters import Kind, Place, parameter
from cloudem.jobs.table_result import MadeTable, TableResult, table_work
from cloudem.model.columns import Column
from cloudem.report.declaration import COST, PARAMETERS, PARTICLES, PROVENANCE, Section

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cloudem.model.particles import Particles

SUPPOSED = 4
"""Order of the group where a step before is to find it."""

NOTE = (
    "Each particle is there once for each operator g of the group, in the pose A g; all its mates use one image, and "
    "are in one half-set. Go on in C1, with the poses that are known: refine3d --local, or classify3d."
)


class ExpandSymmetry(TableResult):
    """Declaration of ``cloudem expand_symmetry``."""

    name: ClassVar[str] = "expand_symmetry"
    summary: ClassVar[str] = "Repeat each particle in all poses that its point group takes for the same."
    examples: ClassVar[tuple[str, ...]] = (
        "cloudem expand_symmetry refine --out expanded",
        "cloudem expand_symmetry particles.zarr --symmetry D7 --out expanded",
        "cloudem refine3d --particles expanded --reference refine --local --mask unit.mrc --diameter-A 90 --out unit",
    )
    makes: ClassVar[Mapping[str, tuple[Kind, ...]]] = {"": ("particles",)}
    columns: ClassVar[tuple[Column, ...]] = ()
    sections: ClassVar[tuple[Section, ...]] = (PARTICLES, COST, PARAMETERS, PROVENANCE)

    particles: Place = parameter(
        meaning="particle store with poses, or the results of a job that hold particles",
        positional=True,
        reads=("particles",),
    )
    symmetry: str = parameter(
        "auto",
        meaning="point group: C<n>, D<n>, T, O, I, I1 to I4, oriented as in RELION; auto: that of the results",
    )

    def check(self, inputs: Inputs, warn: Callable[[str], None]) -> None:
        """Check the point group, the poses, and that the table is not expanded already."""
        from cloudem.jobs.maps import AUTO, stated_symmetry
        from cloudem.model.symmetry import operators

        if inputs.awaited(self.particles):
            if self.symmetry.strip().lower() != AUTO:
                require_mates(self.symmetry, len(operators(self.symmetry)))
            return
        group = stated_symmetry(self.symmetry, self.particles)
        require_mates(group, len(operators(group)))
        from cloudem.io.particle_store import open_particles
        from cloudem.jobs.dataset import require_finite
        from cloudem.jobs.halves import repeated

        table = open_particles(self.particles).particles
        require_finite(table, "rot", "tilt", "psi")
        if repeated(table):
            raise ParameterError(
                f"{self.particles} holds many particles of one image each: it is expanded already; give the particles "
                "from before"
            )

    def work(self, sizes: Mapping[str, Size]) -> Work:
        """Return the one stage, and that the result is a table."""
        size = sizes["particles"]
        return table_work("expand", size, size.count * self._order())

    def _order(self) -> int:
        from cloudem.errors import CloudemError
        from cloudem.jobs.maps import stated_symmetry
        from cloudem.model.symmetry import operators

        try:
            return len(operators(stated_symmetry(self.symmetry, self.particles)))
        except CloudemError:  # a step before is to find it
            return SUPPOSED

    def made(self, context: Context) -> MadeTable:
        """Repeat the rows."""
        from cloudem.io.particle_store import open_particles
        from cloudem.jobs.maps import stated_symmetry
        from cloudem.model.symmetry import operators

        symmetry = stated_symmetry(self.symmetry, self.particles)
        group = operators(symmetry)
        store = open_particles(self.particles)
        with context.progress.stage("expand", len(group) * len(store)) as stage:
            table = expanded(store.particles, group)
            stage.advance(len(table))
        said = f"{len(store):,} particles in {len(group)} poses of {symmetry}: {len(table):,} rows"
        context.progress.message(said)
        return MadeTable(table, store, {}, {"expanded_by": symmetry, "notes": [f"{said}. {NOTE}"]})


def require_mates(symmetry: str, order: int) -> None:
    """Refuse a group without mates."""
    if order == 1:
        raise ParameterError(f"{symmetry} has no mates, so there is nothing to expand; name the molecule's point group")


def expanded(table: Particles, group: NDArray[np.float64]) -> Particles:
    """Return a table with each particle once for each operator.

    All particles come with the first operator, then all with the next: neighbours in the table are different images,
    which tasks compare with one another (`cloudem.algorithms.evidence`).

    Parameters
    ----------
    table
        Of n particles with poses.
    group
        Operators (g, 3, 3), the identity first.

    Returns
    -------
    The table of g n particles; ``same_image`` is the same for mates, and ``store_row`` says where their image is.
    """
    import numpy as np

    from cloudem.jobs.halves import image_numbers
    from cloudem.model.poses import euler_to_matrix, matrix_to_euler

    count, order = len(table), len(group)
    poses = euler_to_matrix(table["rot"], table["tilt"], table["psi"])
    rot, tilt, psi = (np.tile(table[name], order) for name in ("rot", "tilt", "psi"))
    for number, operator in enumerate(group[1:], start=1):  # the first is the identity: these angles stay as they are
        mates = slice(number * count, (number + 1) * count)
        rot[mates], tilt[mates], psi[mates] = matrix_to_euler(poses @ operator)
    rows = table["store_row"] if "store_row" in table else np.arange(count)
    whole = table.take(np.tile(np.arange(count), order))
    return whole.with_columns(
        rot=rot,
        tilt=tilt,
        psi=psi,
        same_image=np.tile(image_numbers(table), order),
        store_row=np.tile(rows, order),
    )
