"""What a job will do, known from shapes and parameters before it runs.

A job declares its stages: how many items each has, what one item costs, what it reads and writes, and whether items are
independent of each other. Dry run, plan, progress, controller and report all take what they say from there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cloudem.cloud.planning.estimate import Duration

MIB = 1 << 20
GIB = 1 << 30

SERIAL_SPREAD = 2.0
"""Factor either way by which the cost of a stage may be off unless its job knows better."""


@dataclass(frozen=True)
class Size:
    """What is known of an artefact without reading it.

    Attributes
    ----------
    count
        Items: particles, micrographs, movies; 0 for a map.
    shape
        Of one image (y, x), movie (frame, y, x) or of the map (z, y, x), pixels; empty where that is not known.
    pixel_size
        Å; 0 where it is not known.
    remote
        Whether it lies in object storage.
    subtracted
        Whether a map is subtracted of its images when they are read.
    """

    count: int = 0
    shape: tuple[int, ...] = ()
    pixel_size: float = 0.0
    remote: bool = False
    subtracted: bool = False

    @property
    def box(self) -> int:
        """Longest side, pixels; 0 where it is not known."""
        return max(self.shape, default=0)

    @property
    def pixels(self) -> int:
        """Pixels of one image, or voxels of the map."""
        return math.prod(self.shape) if self.shape else 0


@dataclass(frozen=True)
class Stage:
    """One part of a job: a number of items that cost the same.

    Attributes
    ----------
    name
        One or two words, as the progress shows them.
    items
        How many there are.
    unit
        What they are, in the plural.
    cpu_s
        Seconds that one item takes on a thread of the reference machine.
    gpu_s
        Seconds that it takes on the reference GPU; None where it uses none.
    parallel
        Whether items are independent, so that workers share them; otherwise the stage runs in one thread.
    task_items
        Items of one task, at least.
    task_bytes
        Memory of each task that runs at the same time, bytes.
    read_bytes, written_bytes
        What an item reads from storage and writes there.
    passes
        How often all items are gone through.
    spread
        Factor either way by which the cost may be off.
    """

    name: str
    items: int = 1
    unit: str = "items"
    cpu_s: float = 0.0
    gpu_s: float | None = None
    parallel: bool = False
    task_items: int = 1
    task_bytes: int = 0
    read_bytes: float = 0.0
    written_bytes: float = 0.0
    passes: float = 1.0
    spread: float = SERIAL_SPREAD

    @property
    def tasks(self) -> int:
        """Tasks of one pass: machines beyond that find nothing to do."""
        return max(1, self.items // max(self.task_items, 1)) if self.parallel else 1

    @property
    def seconds(self) -> float:
        """Seconds on one thread of the reference machine, all passes."""
        return self.items * self.cpu_s * self.passes


@dataclass(frozen=True)
class Work:
    """All that a job will do and need.

    Attributes
    ----------
    stages
        In the order in which they run.
    base_bytes
        Memory of a process without its tasks, bytes.
    client_bytes
        Memory of the process that runs the job, where workers do the rest; None if that is ``base_bytes``.
    gpu_bytes
        Memory that a GPU needs, bytes; 0 where none is used.
    stored_bytes
        What the results take in storage, bytes.
    result_bytes
        What is usually fetched of them to somebody's own machine.
    makes
        Sizes of what the job makes: by the name below ``OUT``, ``""`` for ``OUT`` itself.
    notes
        Lines for whoever plans it: counts, sizes, assumptions.
    model
        A job's own model of its duration on a fleet (`cloudem.cloud.planning.capacity.FleetCapacity`), where its stages
        exchange data; by default the stages add up.
    puts, gets
        Requests to object storage, where they are known better than from the bytes of the stages.
    """

    stages: tuple[Stage, ...]
    base_bytes: int = 0
    client_bytes: int | None = None
    gpu_bytes: int = 0
    stored_bytes: int = 0
    result_bytes: int = 0
    makes: Mapping[str, Size] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    model: Callable[..., Duration] | None = None
    puts: float | None = None
    gets: float | None = None

    @property
    def parallel(self) -> bool:
        """Whether workers are of use."""
        return any(stage.parallel for stage in self.stages)

    @property
    def on_gpu(self) -> bool:
        """Whether tasks run on GPUs where there are any."""
        return self.gpu_bytes > 0 or any(stage.gpu_s is not None for stage in self.stages)

    @property
    def tasks(self) -> int:
        """Tasks at the same time beyond which more find nothing to do."""
        return max((stage.tasks for stage in self.stages), default=1)

    @property
    def task_bytes(self) -> int:
        """Highest memory of a task, bytes."""
        return max((stage.task_bytes for stage in self.stages), default=0)

    @property
    def disk_bytes(self) -> float:
        """What it leaves in storage, bytes."""
        return self.stored_bytes + sum(stage.items * stage.written_bytes for stage in self.stages)

    def memory(self, tasks: int) -> int:
        """Return the highest memory of this machine with so many tasks at the same time, bytes."""
        return self.base_bytes + tasks * self.task_bytes
