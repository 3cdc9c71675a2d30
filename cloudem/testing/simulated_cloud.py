"""A provider that is pure simulation: machines are rows, time is a clock that somebody turns.

The state of a machine at a time follows from a handful of moments, so that nothing has to be simulated between two
calls. Besides what a provider does it can answer late, lie, and lose answers (`Fault`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple, TypeAlias

from cloudem.cloud.money import MINIMUM_S
from cloudem.cloud.nodes import InstanceType, Node, Pool, Request, Resource, State
from cloudem.cloud.provider import Provider
from cloudem.errors import CapacityError, ProviderError, QuotaError, ThrottledError
from cloudem.testing.market import NEVER, SimulatedMarket

NOTICE_S = 120.0
"""A spot node is told so long before it is taken (EC2's notice)."""

KEPT_S = 3600.0
"""Nodes that ended are listed for so long."""

LARGEST_SECRET = 4096


class Clock:
    """A time, seconds since 1970, that goes on only when somebody says so."""

    def __init__(self, now: float = 1.8e9) -> None:
        self.now = now

    def __call__(self) -> float:
        """Return the time."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds


class Fault(NamedTuple):
    """What goes wrong with a call.

    ``throttled`` and ``failed``: refused, nothing was done; ``lost``: it was done, but the answer is an error;
    ``denied``: of `launch`, it was done, but the answer is that there is no capacity; ``late``: what is told was true
    ``late_s`` seconds ago.
    """

    kind: Literal["throttled", "failed", "lost", "denied", "late"]
    late_s: float = 0.0


Faults: TypeAlias = Callable[[str, float], Fault | None]
"""Name of the call, time -> what goes wrong with it."""


@dataclass
class _Machine:
    """A machine, by the moments of its life."""

    id: str
    request: Request
    pool: Pool
    launched: float
    running: float
    taken: float
    shutdown_s: float
    told: float = NEVER
    killed: float = NEVER
    seen: tuple[State, bool, float] | None = None
    as_seen: Node | None = None

    @property
    def ended(self) -> float:
        """When it ends, as far as that is settled: a machine ends itself at its deadline."""
        return min(self.request.deadline, self.taken, self.killed, self.told + self.shutdown_s)

    def state(self, at: float) -> State:
        if at >= self.ended:
            return "ended"
        if at >= self.told:
            return "stopping"
        return "running" if at >= self.running else "pending"

    def node(self, at: float) -> Node:
        ended = self.ended
        seen = self.state(at), at >= self.running, ended
        if self.seen != seen or self.as_seen is None:  # rows are asked for far more often than they change
            self.seen, asked = seen, self.request
            number = int(self.id.removeprefix("m-"), 16)
            address = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}" if at >= self.running else ""
            self.as_seen = Node(
                self.id, asked.cluster, asked.slot, asked.generation, asked.token, seen[0], self.pool, self.launched,
                asked.deadline, ended if seen[0] == "ended" else None, address,
            )  # fmt: skip
        return self.as_seen


@dataclass
class _Cluster:
    """What a cluster has."""

    tags: Mapping[str, str]
    machines: list[_Machine] = field(default_factory=list)
    secrets: dict[str, bytes] = field(default_factory=dict)
    shared: dict[str, str] = field(default_factory=dict)


class MemoryProvider(Provider):
    """A simulated account with one region.

    Parameters
    ----------
    clock
        Seconds since 1970.
    market
        What is sold: prices, capacity, interruptions, starts.
    quotas
        vCPUs by family and market; what is not named has no limit.
    types
        Of pools; one that is not named has one vCPU of the family ``standard``.
    faults
        What goes wrong with a call.
    lag_s
        What is listed was true so long ago.
    shutdown_s
        From being told to end until a machine is gone.
    """

    name: ClassVar[str] = "memory"

    def __init__(
        self,
        clock: Callable[[], float],
        market: SimulatedMarket,
        *,
        quotas: Mapping[tuple[str, str], float] | None = None,
        types: Mapping[str, InstanceType] | None = None,
        faults: Faults | None = None,
        lag_s: float = 0.0,
        shutdown_s: float = 20.0,
    ) -> None:
        self._clock, self.market, self._faults = clock, market, faults
        self.limits = dict(quotas or {})
        self._types, self._lag_s, self._shutdown_s = dict(types or {}), lag_s, shutdown_s
        self._clusters: dict[str, _Cluster] = {}
        self._machines: dict[str, _Machine] = {}
        self._tokens: dict[str, _Machine] = {}
        self._pools: dict[Pool, list[_Machine]] = {}
        self._lock = threading.RLock()

    # --- What every provider does ---------------------------------------------------------------------------------

    def prepare(self, cluster: str, tags: Mapping[str, str]) -> None:
        """Make security group and launch template."""
        with self._lock, _Call(self, "prepare"):
            has = self._clusters.setdefault(cluster, _Cluster(dict(tags)))
            has.shared |= {"launch-template": f"lt-{cluster}", "security-group": f"sg-{cluster}"}

    def launch(self, request: Request) -> Node:
        """Start one node from the first pool that has capacity."""
        with self._lock, _Call(self, "launch") as fault:
            machine = self._tokens.get(request.token) or self._launched(request)
            if fault is not None and fault.kind == "denied":
                raise _no_capacity(request)
            return machine.node(self._clock())

    def nodes(self, cluster: str) -> list[Node]:
        """Return the nodes of a cluster, with those that ended within the last hour."""
        with self._lock, _Call(self, "nodes") as fault:
            at = self._clock() - max(self._lag_s, fault.late_s if fault is not None else 0.0)
            has = self._clusters.get(cluster)
            machines = has.machines if has is not None else []
            return [one.node(at) for one in machines if one.launched <= at < one.ended + KEPT_S]

    def terminate(self, ids: Sequence[str]) -> None:
        """End nodes."""
        with self._lock, _Call(self, "terminate"):
            for machine in (self._machines[one] for one in ids if one in self._machines):
                machine.told = min(machine.told, self._clock())

    def put_secret(self, cluster: str, name: str, value: bytes) -> None:
        """Keep a secret."""
        if len(value) > LARGEST_SECRET:
            raise ProviderError(f"the secret {name} has {len(value):,} bytes; at most {LARGEST_SECRET:,} can be kept")
        with self._lock, _Call(self, "put_secret"):
            self._clusters.setdefault(cluster, _Cluster({})).secrets[name] = bytes(value)

    def secret(self, cluster: str, name: str) -> bytes | None:
        """Return a secret; None where there is none."""
        with self._lock, _Call(self, "secret"):
            has = self._clusters.get(cluster)
            return has.secrets.get(name) if has is not None else None

    def quotas(self) -> Mapping[tuple[str, str], float]:
        """Return what is left of the account's limits."""
        with self._lock, _Call(self, "quotas"):
            return {key: max(limit - self._used(*key), 0.0) for key, limit in self.limits.items()}

    def spot_prices(self, pools: Sequence[Pool]) -> Mapping[Pool, float]:
        """Return the present prices of spot pools."""
        with self._lock, _Call(self, "spot_prices"):
            prices = {pool: self.market.price(pool, self._clock()) for pool in pools if pool.market == "spot"}
            return {pool: price for pool, price in prices.items() if price is not None}

    def resources(self, cluster: str | None = None) -> list[Resource]:
        """Return everything that exists."""
        with self._lock, _Call(self, "resources"):
            now, found = self._clock(), []
            for name, has in self._clusters.items():
                if cluster not in (None, name):
                    continue
                for one in has.machines:
                    if now < one.ended:
                        found.append(Resource("instance", one.id, name, f"{one.request.slot}, {one.state(now)}"))
                found += [Resource("parameter", key, name) for key in has.secrets]
                found += [Resource(kind, id_, name) for kind, id_ in has.shared.items()]
            return found

    def remove(self, resource: Resource) -> None:
        """Remove it; a security group only after all nodes."""
        with self._lock, _Call(self, "remove"):
            now, has = self._clock(), self._clusters.get(resource.cluster)
            if has is None:
                return
            if resource.kind == "instance" and resource.id in self._machines:
                machine = self._machines[resource.id]
                machine.told = min(machine.told, now)
            elif resource.kind == "parameter":
                has.secrets.pop(resource.id, None)
            elif resource.kind == "security-group" and any(now < one.ended for one in has.machines):
                raise ProviderError(f"{resource.id} is used by nodes that have not ended; end them, then try again")
            elif has.shared.get(resource.kind) == resource.id:
                del has.shared[resource.kind]

    # --- What a simulation needs besides --------------------------------------------------------------------------

    def notices(self, cluster: str) -> dict[str, float]:
        """Return the nodes that were told that they will be taken, and when."""
        with self._lock:
            now = self._clock()
            machines = self._clusters[cluster].machines if cluster in self._clusters else []
            return {one.id: one.taken for one in machines if one.taken - NOTICE_S <= now < one.ended}

    def interrupt(self, node: str, after_s: float = NOTICE_S) -> None:
        """Take a node ``after_s`` seconds from now; its notice comes at once."""
        machine = self._machines[node]
        machine.taken = min(machine.taken, self._clock() + after_s)

    def kill(self, node: str) -> None:
        """Let a node end now, without a notice; also what a node does that ends itself."""
        machine = self._machines[node]
        machine.killed = min(machine.killed, self._clock())

    def truth(self, cluster: str, lately_s: float = NEVER) -> list[Node]:
        """Return the nodes of a cluster as they are: all that exist, or ended within ``lately_s`` seconds."""
        with self._lock:
            now, has = self._clock(), self._clusters.get(cluster)
            machines = has.machines if has is not None else []
            return [one.node(now) for one in machines if now < one.ended + lately_s]

    def spent(self, cluster: str) -> float:
        """Return what the nodes of a cluster really cost until now, dollars: from launch to end, at least a minute."""
        with self._lock:
            has = self._clusters.get(cluster)
            return sum(self._cost(one) for one in has.machines) if has is not None else 0.0

    # --- Inside ---------------------------------------------------------------------------------------------------

    def _launched(self, request: Request) -> _Machine:
        now, has = self._clock(), self._clusters.get(request.cluster)
        if has is None or not has.shared:
            raise ProviderError(f"{request.cluster} has no launch template; prepare the cluster before launching nodes")
        refused = None
        for pool in request.pools:
            if len(self._live(pool)) >= self.market.capacity(pool, now):
                continue
            refused = self._over_quota(pool)
            if refused is not None:
                continue
            number = f"m-{len(self._machines) + 1:08x}"
            running = now + self.market.boot_s(pool, now, number)
            taken = self.market.taken(pool, now, number)
            machine = _Machine(number, request, pool, now, running, taken, self._shutdown_s)
            self._machines[number] = self._tokens[request.token] = machine
            has.machines.append(machine)
            self._pools[pool].append(machine)
            return machine
        raise refused or _no_capacity(request)

    def _over_quota(self, pool: Pool) -> QuotaError | None:
        vcpus, family = self._size(pool)
        limit = self.limits.get((family, pool.market), NEVER)
        used = self._used(family, pool.market) if limit < NEVER else 0.0
        if used + vcpus <= limit:
            return None
        return QuotaError(
            f"{pool.instance_type} needs {vcpus:g} vCPUs of {family} {pool.market}; {limit - used:g} of {limit:g} are"
            " left: take a smaller type, another market, or have the limit raised"
        )

    def _live(self, pool: Pool) -> list[_Machine]:
        now = self._clock()
        live = [machine for machine in self._pools.get(pool, ()) if now < machine.ended]
        self._pools[pool] = live
        return live

    def _used(self, family: str, market: str) -> float:
        sizes = [(pool, *self._size(pool)) for pool in list(self._pools)]
        return sum(n * len(self._live(pool)) for pool, n, kind in sizes if (kind, pool.market) == (family, market))

    def _size(self, pool: Pool) -> tuple[float, str]:
        known = self._types.get(pool.instance_type)
        return (known.vcpus, known.quota) if known is not None else (1.0, "standard")

    def _cost(self, machine: _Machine) -> float:
        at, cost = machine.launched, 0.0
        end = max(min(self._clock(), machine.ended), at + MINIMUM_S)
        while at < end:
            until = min(end, self.market.next_price(machine.pool, at))
            cost += (until - at) * (self.market.price(machine.pool, at) or 0.0) / 3600
            at = until
        return cost


class _Call:
    """One call of a provider, with what goes wrong with it before and after it is done."""

    def __init__(self, provider: MemoryProvider, what: str) -> None:
        self._what = what
        self._fault = provider._faults(what, provider._clock()) if provider._faults is not None else None

    def __enter__(self) -> Fault | None:
        if self._fault is not None and self._fault.kind == "throttled":
            raise ThrottledError(f"too many calls of {self._what}; try again in a few seconds")
        if self._fault is not None and self._fault.kind == "failed":
            raise ProviderError(f"{self._what} failed in the provider; try again in a few seconds")
        return self._fault

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None and self._fault is not None and self._fault.kind == "lost":
            raise ProviderError(f"{self._what} got no answer; ask again with the same token")


def _no_capacity(request: Request) -> CapacityError:
    pools = ", ".join(" ".join(pool) for pool in request.pools)
    return CapacityError(f"no capacity in any of: {pools}; try again later, or allow more types, zones or markets")
