"""What a fleet can do: tasks at the same time as far as memory goes, how fast each is, and what the links carry."""

from __future__ import annotations

from dataclasses import dataclass

from cloudem.cloud.nodes import InstanceType
from cloudem.cloud.planning.calibration import LOCAL, SpeedRow, Speeds
from cloudem.cloud.planning.estimate import Fleet, Refusal
from cloudem.jobs.base import Projection
from cloudem.jobs.dataset import AHEAD, BATCH
from cloudem.kernels.slices import half_width, padded_box

GIB = 1 << 30

SYSTEM = 0.95, 0.3
"""Share of a machine's memory that a job may use, and GiB of the system besides."""

GPU_BASE = int(1.2 * GIB)
"""Of a GPU's memory: its context and libraries, and the scores of a tile in the search."""

GPU_SPARE = 1.2
"""A pool of freed memory keeps pieces that nothing else fits into."""

GPU_BYTES = 16e9
"""Of its memory that a GPU reads or writes in a second, for each thread of the reference that it stands for: from that
its speed was scaled (``data/speeds.json``). Not measured."""

HOST_BYTES = 5e9
"""That cross between a GPU and its host in a second. Supposed: PCIe carries 12 GB/s and more, copies from and to memory
that is not locked, as ours is, reach a part of it."""

LINK = 0.7
"""Share of a network's nominal bandwidth that is reached."""

LOCAL_GBPS = 10.0
"""Of a process with others of its machine, with encryption."""

READ_BYTES = AHEAD * 80e6
"""That a task reads from object storage in a second, at most: the blocks that it fetches ahead, 80 MB/s each, as one
connection gives; supposed. Against one server on the same machine 200 to 510 MB/s were measured."""


@dataclass(frozen=True)
class FleetCapacity:
    """A fleet at work.

    A machine whose GPUs work is as many machines as it has GPUs, each with its share of the link: a process for each.

    Attributes
    ----------
    machines, tasks
        How many, and tasks at the same time on each.
    type
        Of the machines that are rented.
    row
        Speed of the processor.
    gpu
        Speed of the GPU; None where none works.
    memory_GiB, gpu_GiB
        What a rented machine, and each of its GPUs, needs.
    share
        Machines that are one rented machine.
    """

    machines: int
    tasks: int
    type: InstanceType
    row: SpeedRow
    gpu: SpeedRow | None
    memory_GiB: float
    gpu_GiB: float
    share: int = 1

    @property
    def threads(self) -> int:
        """Tasks at the same time in all."""
        return self.machines * self.tasks

    @property
    def bandwidth(self) -> float:
        """Bytes per second of each machine's link to the others."""
        inside = self.is_local or self.machines == self.share
        return LINK * LOCAL_GBPS * 1e9 / 8 if inside else self._outside

    @property
    def reading(self) -> float:
        """Bytes per second in which a machine reads from object storage."""
        return min(LINK * LOCAL_GBPS * 1e9 / 8 if self.is_local else self._outside, READ_BYTES * self.tasks)

    @property
    def _outside(self) -> float:
        return LINK * max(self.type.network_Gbps, 0.1) * 1e9 / 8 / self.share

    @property
    def is_local(self) -> bool:
        """Whether all machines are processes of this one."""
        return self.type.name.partition(".")[0] == LOCAL

    def speed(self, tasks: int) -> float:
        """Return the speed of each of so many CPU tasks in all, in threads of the reference."""
        each = -(-tasks * self.share // self.machines)
        if self.is_local and self.row.cores:
            return self.row.core * min(1.0, self.row.cores / max(tasks, 1))
        return self.row.busy(self.type, each)

    def aligning(self, tasks: int) -> float:
        """Return the speed at which each of so many tasks in all aligns, in threads of the reference."""
        return self.speed(tasks) if self.gpu is None else self.gpu.core

    def on_gpu(self, touched: float, moved: float) -> float:
        """Return the seconds in which a GPU touches so many bytes of its memory, and exchanges others with its host."""
        return touched / (GPU_BYTES * self.gpu.core) + moved / HOST_BYTES if self.gpu is not None else 0.0

    @property
    def spread(self) -> float:
        """Factor either way by which the speed of aligning may be off."""
        return self.row.spread if self.gpu is None else self.gpu.spread

    @property
    def measured(self) -> bool:
        """Whether the speed of aligning was measured on such machines."""
        return (self.row if self.gpu is None else self.gpu).how == "measured"


def fleet_capacity(fleet: Fleet, needs: Projection, box: int, speeds: Speeds) -> FleetCapacity | Refusal:
    """Return a fleet at work on particles of a box, with as many tasks as memory holds; or why it holds none.

    Parameters
    ----------
    fleet
        Machines.
    needs
        Memory of a worker (:func:`cloudem.jobs.refine3d.job.alignment_needs`).
    box
        Pixels; 0 for a job that does not align, and so uses no GPU.
    speeds
        Table of speeds.
    """
    kind, row = fleet.type, speeds.of(fleet.type)
    usable = int((kind.memory_GiB * SYSTEM[0] - SYSTEM[1]) * GIB)
    gpu = speeds.gpu(kind) if box else None
    if gpu is None:
        free = usable - needs.peak_bytes
        tasks = min(kind.vcpus, free // needs.task_bytes if needs.task_bytes else kind.vcpus)
        if tasks < 1 or free < 0:
            return _too_little(kind, needs, usable)
        return FleetCapacity(fleet.count, int(tasks), kind, row, None, needs.memory(tasks) / GIB, 0.0)
    on_gpu = gpu_needs(box) / GIB
    if on_gpu > kind.gpu_memory_GiB:
        return Refusal(f"too little GPU memory: {on_gpu:.1f} GiB are needed, it has {kind.gpu_memory_GiB:g} GiB")
    workers = min(kind.gpus, usable // needs.memory(1))
    if workers < 1:
        return _too_little(kind, needs, usable)
    memory = workers * needs.memory(1) / GIB
    return FleetCapacity(fleet.count * workers, 1, kind, row, gpu, memory, on_gpu, share=workers)


def _too_little(kind: InstanceType, needs: Projection, usable: int) -> Refusal:
    return Refusal(
        f"too little memory: {needs.memory(1) / GIB:.1f} GiB are needed; of its {kind.memory_GiB:g} GiB,"
        f" {max(usable, 0) / GIB:.1f} are usable"
    )


def gpu_needs(box: int) -> int:
    """Return what aligning needs of a GPU's memory, bytes.

    From the shapes of what is on the GPU: both references; of the task its accumulator, the line of what is kept of it,
    its images with their transforms and five arrays of half discs, and the scores of the search. Not measured.
    """
    voxels, pixels = voxels_of(box, box // 2 - 1), int(0.4 * box * box)
    return int(GPU_SPARE * (GPU_BASE + (28 + 6) * voxels + BATCH * (24 * box * box + 44 * pixels)))


def voxels_of(box: int, k_max: int) -> int:
    """Return the voxels of a padded half-volume for shells up to ``k_max``."""
    m = half_width(k_max, padded_box(box) / box)
    return (2 * m + 1) ** 2 * (m + 2)
