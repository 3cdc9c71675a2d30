"""What a fleet can do: tasks at the same time as far as memory goes, how fast each is, and what the links carry."""

from __future__ import annotations

from dataclasses import dataclass

from cloudem.cloud.calibration import LOCAL, Row, Speeds
from cloudem.cloud.estimate import Fleet, Refusal
from cloudem.cloud.nodes import InstanceType
from cloudem.jobs.base import Projection
from cloudem.jobs.dataset import BATCH
from cloudem.kernels.slices import half_width, padded_box

GIB = 1 << 30

SYSTEM = 0.95, 0.3
"""Share of a machine's memory that a job may use, and GiB of the system besides."""

GPUS_USED = 1
"""GPUs of a machine that work: a worker uses the first."""

GPU_TASKS = 4
"""Tasks that share a GPU, at most: enough that one copies while another computes."""

GPU_BASE = int(0.6 * GIB), int(0.6 * GIB)
"""Of a GPU's memory: its context and libraries, once; and the scores of a tile in the search, for each task."""

GPU_SPARE = 1.2
"""A pool of freed memory keeps pieces that nothing else fits into."""

LINK = 0.7
"""Share of a network's nominal bandwidth that is reached."""

LOCAL_GBPS = 10.0
"""Between processes of one machine, with encryption."""

READ_BYTES = 80e6
"""That a task reads from object storage in a second, at most, as one connection gives; supposed. Against one server on
the same machine 200 to 510 MB/s were measured."""


@dataclass(frozen=True)
class Crew:
    """A fleet at work.

    Attributes
    ----------
    machines, tasks
        How many, and tasks at the same time on each.
    type
        Of the machines.
    row
        Speed of the processor.
    gpu
        Speed of the GPU; None where none works.
    memory_GiB, gpu_GiB
        What a machine and its GPU need.
    """

    machines: int
    tasks: int
    type: InstanceType
    row: Row
    gpu: Row | None
    memory_GiB: float
    gpu_GiB: float

    @property
    def threads(self) -> int:
        """Tasks at the same time in all."""
        return self.machines * self.tasks

    @property
    def bandwidth(self) -> float:
        """Bytes per second of each machine's link."""
        gbps = LOCAL_GBPS if self.is_local else max(self.type.network_Gbps, 0.1)
        return LINK * gbps * 1e9 / 8

    @property
    def reading(self) -> float:
        """Bytes per second in which a machine reads from object storage."""
        return min(self.bandwidth, READ_BYTES * self.tasks)

    @property
    def is_local(self) -> bool:
        """Whether all machines are processes of this one."""
        return self.type.name.partition(".")[0] == LOCAL

    def speed(self, tasks: int) -> float:
        """Return the speed of each of so many CPU tasks in all, in threads of the reference."""
        each = -(-tasks // self.machines)
        if self.is_local and self.row.cores:
            return self.row.core * min(1.0, self.row.cores / max(tasks, 1))
        return self.row.busy(self.type, each)

    def aligning(self, tasks: int) -> float:
        """Return the speed at which each of so many tasks in all aligns, in threads of the reference."""
        if self.gpu is None:
            return self.speed(tasks)
        return GPUS_USED * self.gpu.core / max(-(-tasks // self.machines), 1)

    @property
    def spread(self) -> float:
        """Factor either way by which the speed of aligning may be off."""
        return self.row.spread if self.gpu is None else self.gpu.spread

    @property
    def measured(self) -> bool:
        """Whether the speed of aligning was measured on such machines."""
        return (self.row if self.gpu is None else self.gpu).how == "measured"


def crew_of(fleet: Fleet, needs: Projection, box: int, speeds: Speeds) -> Crew | Refusal:
    """Return a fleet at work on particles of a box, with as many tasks as memory holds; or why it holds none.

    Parameters
    ----------
    fleet
        Machines.
    needs
        Memory of a worker (:func:`cloudem.jobs.refine3d.alignment_needs`).
    box
        Pixels; 0 for a job that does not align.
    speeds
        Table of speeds.
    """
    kind = fleet.type
    usable = int((kind.memory_GiB * SYSTEM[0] - SYSTEM[1]) * GIB)
    tasks = kind.vcpus if not needs.task_bytes else min(kind.vcpus, (usable - needs.peak_bytes) // needs.task_bytes)
    if tasks < 1 or needs.peak_bytes > usable:
        return Refusal(
            f"too little memory: {needs.memory(1) / GIB:.1f} GiB are needed; of its {kind.memory_GiB:g} GiB,"
            f" {max(usable, 0) / GIB:.1f} are usable"
        )
    gpu, gpu_GiB = speeds.gpu(kind) if box else None, 0.0
    if gpu is not None:
        shared, each = gpu_needs(box)
        tasks = min(tasks, GPU_TASKS, int((kind.gpu_memory_GiB * GIB - shared) // each))
        if tasks < 1:
            return Refusal(
                f"too little GPU memory: {(shared + each) / GIB:.1f} GiB are needed, it has {kind.gpu_memory_GiB:g} GiB"
            )
        gpu_GiB = (shared + tasks * each) / GIB
    memory = needs.memory(tasks) / GIB
    return Crew(fleet.count, int(tasks), kind, speeds.of(kind), gpu, memory, gpu_GiB)


def gpu_needs(box: int) -> tuple[int, int]:
    """Return what aligning needs of a GPU's memory, and what each task at the same time adds, bytes.

    From the shapes of what is on the GPU: both references; of a task its accumulator, its images with their transforms
    and five arrays of half discs, and the scores of the search. Not measured.
    """
    m = half_width(box // 2 - 1, padded_box(box) / box)
    voxels, pixels = (2 * m + 1) ** 2 * (m + 2), int(0.4 * box * box)
    shared = GPU_BASE[0] + 2 * 8 * voxels
    each = GPU_BASE[1] + 12 * voxels + BATCH * (24 * box * box + 44 * pixels)
    return int(GPU_SPARE * shared), int(GPU_SPARE * each)
