"""The provider whose machines are processes of this computer: for rehearsals and tests, nothing is charged.

A node is a process that plays a machine (:mod:`cloudem.cloud.local.machine`), with a metadata service of its own and,
where this process is root, an address of its own in a network namespace (:mod:`cloudem.cloud.local.namespaces`). Nodes
outlive who launched them. All state lies in one folder, readable by its owner alone::

    <folder>/lock                               held by whoever launches, prepares or removes
             market.json                        {"sold_out": [[type, zone, market], …], "limits": {market: vCPUs}}
             clusters/<cluster>/cluster.json    {"tags", "namespaces"}
                                secrets/<name>
                                nodes/<id>/…    see cloudem.cloud.local.machine

so that every process, those on nodes included, sees the same. The lock that a machine holds tells whether it lives.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Literal

from cloudem.cloud.local import machine, namespaces
from cloudem.cloud.nodes import Market, Node, Pool, Request, Resource, State
from cloudem.cloud.provider import Provider
from cloudem.errors import CapacityError, ProviderError, QuotaError

FOLDER = "CLOUDEM_LOCAL_CLOUD"
"""Environment variable with the folder of all state."""

NAMESPACES = "CLOUDEM_LOCAL_NAMESPACES"
"""Environment variable: 0 keeps all nodes on the loopback."""

AGENT = ("-m", "cloudem.runs.agent")

VCPUS = {"local.1": 1, "local.2": 2}
ZONES = ("local-a", "local-b")
SPOT_USD = {"local.1": 0.03, "local.2": 0.06}
"""Rehearsal prices per hour: nothing is charged."""

FAMILY = "standard"
LIMITS = {"spot": 64, "on-demand": 64}
"""Threads that an account may have, unless ``market.json`` says otherwise."""

SECRET_BYTES = 4096
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_START_S = 20.0


class LocalProvider(Provider):
    """Machines that are processes of this computer.

    Parameters
    ----------
    folder
        Where all state is; by default what ``CLOUDEM_LOCAL_CLOUD`` names, or ``~/.cache/cloudem/local-cloud``.
    namespaces
        Whether nodes get addresses of their own: by default where this process is root, and the cluster's tag
        ``project`` names nothing on S3. Such nodes reach each other and this computer, nothing beyond; without, all
        are on the loopback. Settled for a cluster when it is prepared.
    agent
        Command that nodes run instead of the node agent.
    """

    name: ClassVar[str] = "local"

    def __init__(
        self,
        folder: str | os.PathLike[str] | None = None,
        namespaces: bool | None = None,
        agent: Sequence[str] | None = None,
    ) -> None:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        self.folder = Path(folder or os.environ.get(FOLDER) or home / "cloudem" / "local-cloud").absolute()
        self._namespaces = namespaces
        self._agent = list(agent or (sys.executable, *AGENT))

    # What every provider does

    def prepare(self, cluster: str, tags: Mapping[str, str]) -> None:
        """Make the cluster's folder and, with namespaces, its network."""
        place = self._cluster(cluster)
        with self._alone():
            for folder in (place / "nodes", place / "secrets"):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if (known := machine.read(place / "cluster.json")) is None:
                known = {"tags": dict(tags), "namespaces": self._with_namespaces(tags)}
            if known["namespaces"]:
                namespaces.make_switch(self._key(cluster))
            machine.write(place / "cluster.json", known)

    def launch(self, request: Request) -> Node:
        """Start one node from the first pool that has capacity."""
        place = self._cluster(request.cluster) / "nodes" / _id_of(request)
        with contextlib.ExitStack() as stack:
            with self._alone():
                held = None if (place / "node.json").exists() else self._begin(request, place, stack)
            if held is not None:
                self._start(place, held)
        end = time.monotonic() + _START_S
        while (node := self._node(place)) is None or node.state == "pending":  # another process launches it
            if time.monotonic() > end:
                raise ProviderError(f"node {place.name} does not start; see {place / 'agent.log'}, and launch it again")
            time.sleep(0.01)
        return node

    def nodes(self, cluster: str) -> list[Node]:
        """Return the nodes of a cluster, with those that have ended."""
        return self._nodes_in(self._cluster(cluster))

    def terminate(self, ids: Sequence[str]) -> None:
        """End nodes in order: their agents are told first."""
        for place in self._places(ids):
            with contextlib.suppress(FileNotFoundError):
                (place / "terminate").touch()

    def put_secret(self, cluster: str, name: str, value: bytes) -> None:
        """Keep a secret in a file that only the owner of this process can read."""
        if len(value) > SECRET_BYTES:
            raise ProviderError(f"secret {name} has {len(value):,} bytes, at most {SECRET_BYTES:,} can be kept")
        path = self._secret(cluster, name)
        if not path.parent.is_dir():
            raise ProviderError(f"there is no local cluster {cluster}; prepare it first")
        partial = path.with_name(f".{name}.{os.getpid()}")
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:  # noqa: PTH123
            file.write(value)
        partial.replace(path)

    def secret(self, cluster: str, name: str) -> bytes | None:
        """Return a secret; None where there is none."""
        try:
            return self._secret(cluster, name).read_bytes()
        except FileNotFoundError:
            return None

    def quotas(self) -> Mapping[tuple[str, str], float]:
        """Return how many threads nodes may still have."""
        limits = dict(LIMITS) | self._market().get("limits", {})
        for place in self._clusters():
            for node in self._nodes_in(place):
                if node.alive:
                    limits[node.pool.market] -= VCPUS[node.pool.instance_type]
        return {(FAMILY, market): float(max(free, 0)) for market, free in limits.items()}

    def spot_prices(self, pools: Sequence[Pool]) -> Mapping[Pool, float]:
        """Return rehearsal prices."""
        return {pool: SPOT_USD[pool.instance_type] for pool in pools if pool.market == "spot" and _sold(pool)}

    def resources(self, cluster: str | None = None) -> list[Resource]:
        """Return nodes, namespaces, secrets and folders."""
        found: list[Resource] = []
        for place in self._clusters() if cluster is None else [self._cluster(cluster)]:
            name = place.name
            for node in self._nodes_in(place):
                if node.alive:
                    note = f"{node.slot}, {node.pool.instance_type} {node.pool.market}"
                    found.append(Resource("instance", node.id, name, note))
            found += [Resource("namespace", each, name) for each in namespaces.existing(self._key(name))]
            with contextlib.suppress(FileNotFoundError):
                kept = sorted(path.name for path in (place / "secrets").iterdir() if _NAME.fullmatch(path.name))
                found += [Resource("parameter", f"{name}/{each}", name, "secret") for each in kept]
            if place.is_dir():
                found.append(Resource("folder", str(place), name, "records and logs of its nodes"))
        return found

    def remove(self, resource: Resource) -> None:
        """Remove it; a node ends in order if it does so within seconds."""
        match resource.kind:
            case "instance":
                self._end([resource.id])
            case "namespace":
                if any(node.alive for node in self.nodes(resource.cluster)):
                    raise ProviderError(f"namespace {resource.id} is in use by nodes of {resource.cluster}")
                namespaces.remove(resource.id)
            case "parameter":
                self._secret(resource.cluster, resource.id.rpartition("/")[2]).unlink(missing_ok=True)
            case "folder":
                place = self._cluster(resource.cluster)
                with self._alone():
                    if any(node.alive for node in self._nodes_in(place)):
                        raise ProviderError(f"{place} is in use by nodes of {resource.cluster}")
                    with contextlib.suppress(FileNotFoundError):  # at once for all others, who may be looking into it
                        place.rename(self.folder / f"removed-{secrets.token_hex(8)}")
                    for gone in self.folder.glob("removed-*"):
                        shutil.rmtree(gone, ignore_errors=True)

    def release(self, cluster: str) -> list[Resource]:
        """Remove whatever a cluster has; all nodes end at the same time."""
        self._end([node.id for node in self.nodes(cluster) if node.alive])
        return super().release(cluster)

    # What only rehearsals can do

    def interrupt(self, node_id: str, after_s: float = 120.0) -> None:
        """Give a node notice that it is taken; then take it."""
        self._notice(node_id, "interruption.json", time.time() + after_s)

    def rebalance(self, node_id: str) -> None:
        """Tell a node that it is likely to be taken."""
        self._notice(node_id, "rebalance.json", time.time())

    def kill(self, node_id: str) -> None:
        """Take a node without notice: everything on it is gone at once."""
        for place in self._places([node_id]):
            known = machine.read(place / "machine.json")
            if known is not None and (free := machine.lock(place)) is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(known["pid"], signal.SIGKILL)
                machine.end_session(known["agent"], known["agent_started"])
                self._wait_for_end([place], 10.0, "killed")
            elif known is not None and free is not None:
                os.close(free)

    def sell_out(self, pools: Sequence[Pool]) -> None:
        """Let exactly these pools have no capacity from now on."""
        self._set_market("sold_out", [list(pool) for pool in pools])

    def limit(self, **vcpus: int) -> None:
        """Set how many threads the account may have: ``spot=…``, ``on_demand=…``."""
        self._set_market("limits", {market.replace("_", "-"): number for market, number in vcpus.items()})

    def computer(self, cluster: str) -> str:
        """Return the address under which nodes of a prepared cluster reach this computer."""
        return namespaces.computer(self._key(cluster)) or "127.0.0.1"

    def log(self, node_id: str) -> str:
        """Return what a node has said."""
        return "".join(
            (place / "agent.log").read_text(errors="replace")
            for place in self._places([node_id])
            if (place / "agent.log").exists()
        )

    # Launching

    def _begin(self, request: Request, place: Path, stack: contextlib.ExitStack) -> int:
        """Choose a pool and write down the node; return its lock, which is held until the stack is closed."""
        known = machine.read(self._cluster(request.cluster) / "cluster.json")
        if known is None:
            raise ProviderError(f"there is no local cluster {request.cluster}; prepare it first")
        pool = self._choose(request.pools)
        place.mkdir(mode=0o700, exist_ok=True)
        held = machine.lock(place, new=True)
        if held is None:
            raise ProviderError(f"node {place.name} is being cleared away; launch it again")
        stack.callback(os.close, held)
        namespace, address = "", "127.0.0.1"
        if known["namespaces"]:
            namespace, address = namespaces.add_machine(self._key(request.cluster))
        tags = {**known["tags"], **request.tags, "cluster": request.cluster, "slot": request.slot}
        machine.write(
            place / "node.json",
            {
                "id": place.name,
                "request": asdict(request),
                "tags": tags | {"generation": str(request.generation), "deadline": f"{request.deadline:.0f}"},
                "pool": list(pool),
                "vcpus": VCPUS[pool.instance_type],
                "launched": time.time(),
                "namespace": namespace,
                "address": address,
                "argv": self._agent,
            },
        )
        return held

    def _start(self, place: Path, held: int) -> None:
        """Start the machine's process, which goes on to hold the lock."""
        with (place / "machine.log").open("ab") as log:
            done = subprocess.run(  # noqa: S603  this Python
                [sys.executable, "-m", "cloudem.cloud.local.machine", str(place)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd="/",  # ours may go while the machine lives
                pass_fds=[held],
                check=False,
            )
        if done.returncode:
            said = (place / "machine.log").read_text(errors="replace").strip().rpartition("\n")[2]
            raise ProviderError(f"node {place.name} did not start: {said or f'exit code {done.returncode}'}")

    def _choose(self, pools: Sequence[Pool]) -> Pool:
        sold_out = {Pool(*each) for each in self._market().get("sold_out", [])}
        free = [pool for pool in pools if _sold(pool) and pool not in sold_out]
        if not free:
            asked = ", ".join(" ".join(pool) for pool in pools)
            raise CapacityError(f"no capacity for {asked}; add other types or zones, or try later")
        quotas = self.quotas()
        for pool in free:
            if VCPUS[pool.instance_type] <= quotas[FAMILY, pool.market]:
                return pool
        left = ", ".join(f"{number:.0f} {market}" for (_, market), number in quotas.items())
        raise QuotaError(f"the limit of this account leaves {left} vCPUs; end other nodes or raise it")

    # Ending

    def _end(self, ids: Sequence[str]) -> None:
        """End nodes in order, then by force."""
        self.terminate(ids)
        places = self._places(ids)
        self._wait_for_end(places, machine.GRACE_S + 5.0)
        for place in places:
            if (node := self._node(place)) is not None and node.alive:
                self.kill(node.id)

    def _wait_for_end(self, places: Sequence[Path], limit_s: float, why: str = "its machine died") -> None:
        end = time.monotonic() + limit_s
        while time.monotonic() < end:
            if not any((node := self._node(place, why)) is not None and node.alive for place in places):
                return
            time.sleep(0.02)

    def _notice(self, node_id: str, name: str, at: float) -> None:
        for place in self._places([node_id]):
            machine.write(place / name, {"at": at})

    # What is known

    def _nodes_in(self, place: Path) -> list[Node]:
        try:
            folders = sorted((place / "nodes").iterdir())
        except FileNotFoundError:
            return []
        found = [node for folder in folders if (node := self._node(folder)) is not None]
        return sorted(found, key=lambda node: node.launched)

    def _node(self, place: Path, why: str = "its machine died") -> Node | None:
        """Return what is known of a node, after clearing it away if its machine is dead."""
        known = machine.read(place / "node.json")
        if known is None:
            return None
        ended = machine.read(place / "ended.json") or self._found_dead(place, why)
        state: State = "running" if (place / "machine.json").exists() else "pending"
        if ended is not None:
            state = "ended"
        elif (place / "terminate").exists():
            state = "stopping"
        request = known["request"]
        return Node(
            id=known["id"],
            cluster=request["cluster"],
            slot=request["slot"],
            generation=request["generation"],
            token=request["token"],
            state=state,
            pool=Pool(*known["pool"]),
            launched=known["launched"],
            deadline=request["deadline"],
            ended=None if ended is None else ended["at"],
            address=known["address"],
        )

    def _found_dead(self, place: Path, why: str) -> dict[str, Any] | None:
        """Clear away what a dead machine left, and return how it ended; None while it lives."""
        try:
            held = machine.lock(place)
        except FileNotFoundError:  # somebody has removed it meanwhile
            return {"at": time.time(), "why": "removed"}
        if held is None:
            return None
        try:
            if machine.read(place / "ended.json") is None:
                machine.bury(place, why)
            return machine.read(place / "ended.json") or {"at": time.time(), "why": "removed"}
        finally:
            os.close(held)

    def _clusters(self) -> list[Path]:
        place = self.folder / "clusters"
        return sorted(place.iterdir()) if place.is_dir() else []

    def _places(self, ids: Sequence[str]) -> list[Path]:
        """Return the folders of nodes; those that are not known have none."""
        candidates = [cluster / "nodes" / node for cluster in self._clusters() for node in ids if _NAME.fullmatch(node)]
        return [place for place in candidates if (place / "node.json").exists()]

    def _cluster(self, cluster: str) -> Path:
        return self.folder / "clusters" / _checked("cluster", cluster)

    def _secret(self, cluster: str, name: str) -> Path:
        return self._cluster(cluster) / "secrets" / _checked("secret", name)

    def _key(self, cluster: str) -> str:
        return namespaces.key_of(self.folder, cluster)

    def _with_namespaces(self, tags: Mapping[str, str]) -> bool:
        wanted = self._namespaces
        if wanted is None and (os.environ.get(NAMESPACES) == "0" or tags.get("project", "").startswith("s3://")):
            wanted = False
        reason = namespaces.why_impossible_here() if wanted is not False else ""
        if wanted and reason:
            raise ProviderError(f"{reason}; without them all nodes are on the loopback ({NAMESPACES}=0)")
        return wanted is not False and not reason

    def _market(self) -> dict[str, Any]:
        return machine.read(self.folder / "market.json") or {}

    def _set_market(self, what: Literal["sold_out", "limits"], value: Any) -> None:
        with self._alone():
            machine.write(self.folder / "market.json", self._market() | {what: value})

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Let nobody else launch, prepare or remove."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _id_of(request: Request) -> str:
    """Return the name of a request's node: the same token is the same node."""
    digest = hashlib.sha256(f"{request.cluster}\n{request.token}".encode()).hexdigest()
    return f"local-{digest[:17]}"


def _sold(pool: Pool) -> bool:
    markets: tuple[Market, ...] = ("spot", "on-demand")
    return pool.instance_type in VCPUS and pool.zone in ZONES and pool.market in markets


def _checked(what: str, name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ProviderError(f"{what} {name!r}: a name has letters, digits, dots and hyphens, at most 128")
    return name
