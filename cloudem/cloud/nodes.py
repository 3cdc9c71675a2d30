"""What is said of rented machines: types, pools, requests, nodes and what belongs to them. Data without behaviour.

Times are seconds since 1970 (UTC). Prices are US dollars. A *cluster* is everything that is rented for one run; it is
known by a name that is part of every tag. A *slot* is a role in a cluster, ``head`` or ``worker-0007``; a *generation*
counts how often its node was replaced. Of all nodes of a slot only that of the highest generation belongs to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias

Market: TypeAlias = Literal["spot", "on-demand"]

State: TypeAlias = Literal["pending", "running", "stopping", "ended"]

HEAD = "head"
"""Slot of the node that runs scheduler, controller and meter; always on demand."""


@dataclass(frozen=True)
class InstanceType:
    """A kind of machine.

    Attributes
    ----------
    name
        As the provider calls it.
    vcpus
        Hardware threads.
    cores
        Physical cores.
    memory_GiB
        Main memory.
    gpu, gpus, gpu_memory_GiB
        Kind of GPU ("" where there is none), how many, and memory of each.
    network_Gbps
        What it sustains (the baseline, not the burst).
    nvme_GiB
        Local disks; 0 where there are none.
    architecture
        ``x86_64`` or ``arm64``.
    quota
        Family whose vCPUs the account's limit counts: ``standard``, ``G``, ``P``, ….
    """

    name: str
    vcpus: int
    cores: int
    memory_GiB: float
    gpu: str = ""
    gpus: int = 0
    gpu_memory_GiB: float = 0.0
    network_Gbps: float = 0.0
    nvme_GiB: float = 0.0
    architecture: str = "x86_64"
    quota: str = "standard"


class Pool(NamedTuple):
    """Where a node may come from."""

    instance_type: str
    zone: str
    market: Market


@dataclass(frozen=True)
class Request:
    """One node that is wanted.

    Attributes
    ----------
    token
        The same token never makes a second node.
    cluster, slot, generation
        Whose node it will be.
    pools
        Where it may come from, best first; a provider takes the first that has capacity.
    deadline
        When it ends itself, whatever happens.
    start
        What the node is told to do at its start, as JSON: never a secret.
    disk_GiB
        Its root disk, encrypted.
    tags
        Besides those that providers set from cluster, slot, generation, deadline: owner, project, job.
    """

    token: str
    cluster: str
    slot: str
    generation: int
    pools: tuple[Pool, ...]
    deadline: float
    start: str = "{}"
    disk_GiB: int = 30
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Node:
    """A machine as its provider tells of it, which may be late.

    Attributes
    ----------
    id
        The provider's.
    cluster, slot, generation, token
        From its tags.
    state
        As told.
    pool
        Where it came from.
    launched, ended
        When; ``ended`` is None while it exists.
    deadline
        When it ends itself.
    address
        Where the other nodes of its cluster reach it; empty while that is not known.
    """

    id: str
    cluster: str
    slot: str
    generation: int
    token: str
    state: State
    pool: Pool
    launched: float
    deadline: float
    ended: float | None = None
    address: str = ""

    @property
    def alive(self) -> bool:
        """Whether it costs anything."""
        return self.state != "ended"


@dataclass(frozen=True)
class Resource:
    """Anything that a cluster left, or has.

    Attributes
    ----------
    kind
        ``instance``, ``volume``, ``address``, ``interface``, ``security-group``, ``launch-template``, ``parameter``,
        ``log-group``, ``process``, ``namespace``, ….
    id
        The provider's.
    cluster
        From its tags.
    note
        For people: state, size.
    """

    kind: str
    id: str
    cluster: str
    note: str = ""
