"""What a fleet can do: tasks at the same time as far as memory goes, how fast each is, and what the links carry."""

from __future__ import annotations

from dataclasses import dataclass

from cloudem.cloud.nodes import InstanceType
from cloudem.cloud.planning.calibration import LOCAL, SpeedRow, Speeds
from cloudem.cloud.planning.estimate import Fleet, Refusal
from cloudem.cloud.planning.work import GIB, Work

SYSTEM = 0.95, 0.3
"""Share of a machine's memory that a job may use, and GiB of the system besides."""

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

READ_BYTES = 2 * 80e6
"""That a task reads from object storage in a second, at most: two blocks that it fetches ahead, 80 MB/s each, as one
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


def fleet_capacity(fleet: Fleet, work: Work, speeds: Speeds) -> FleetCapacity | Refusal:
    """Return a fleet at work, with as many tasks as memory holds; or why it holds none.

    Parameters
    ----------
    fleet
        Machines.
    work
        What they do: memory of a process, of a task, of a GPU.
    speeds
        Table of speeds.
    """
    kind, row = fleet.type, speeds.of(fleet.type)
    usable = int((kind.memory_GiB * SYSTEM[0] - SYSTEM[1]) * GIB)
    gpu = speeds.gpu(kind) if work.on_gpu else None
    if gpu is None:
        free, each = usable - work.base_bytes, work.task_bytes
        tasks = min(kind.vcpus, free // each if each else kind.vcpus) if work.parallel else 1
        if tasks < 1 or free < 0:
            return _too_little(kind, work, usable)
        return FleetCapacity(fleet.count, int(tasks), kind, row, None, work.memory(tasks) / GIB, 0.0)
    on_gpu = work.gpu_bytes / GIB
    if on_gpu > kind.gpu_memory_GiB:
        return Refusal(f"too little GPU memory: {on_gpu:.1f} GiB are needed, it has {kind.gpu_memory_GiB:g} GiB")
    workers = min(kind.gpus, usable // max(work.memory(1), 1))
    if workers < 1:
        return _too_little(kind, work, usable)
    memory = workers * work.memory(1) / GIB
    return FleetCapacity(fleet.count * workers, 1, kind, row, gpu, memory, on_gpu, share=workers)


def _too_little(kind: InstanceType, work: Work, usable: int) -> Refusal:
    return Refusal(
        f"too little memory: {work.memory(1) / GIB:.1f} GiB are needed; of its {kind.memory_GiB:g} GiB,"
        f" {max(usable, 0) / GIB:.1f} are usable"
    )
