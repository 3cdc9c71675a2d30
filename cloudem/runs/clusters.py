"""Dask clusters of rented machines, from Python: ``with AWSCluster(...) as cluster, Client(cluster) as client``.

Here a provider and :mod:`cloudem.execution.dask.node_cluster` are put together. There is no project and no controller:
the Python process that makes the cluster keeps it, and every node carries a deadline, at which it ends itself, so that
time and money are bounded also where that process, or this machine, is gone.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from cloudem.cloud.catalogue import Catalogue
from cloudem.cloud.nodes import HEAD, Market, Pool, Request
from cloudem.cloud.provider import Provider
from cloudem.errors import BudgetError, ParameterError, ProviderError
from cloudem.execution.dask.node_cluster import NodeCluster
from cloudem.execution.dask.rental import Patience
from cloudem.execution.dask.security import is_loopback, make_certificates
from cloudem.runs.agent import CLUSTER, PORT, SCHEDULER, certificates_as_secret
from cloudem.runs.submit import CERTIFICATES, PASSED_ON, end

HOURS = 8.0
"""How long a cluster may live where nobody says."""

MONTH_HOURS = 730.0

REMOVE_S = 300.0
"""How long removing is tried again: what a node uses can be removed only when the node has ended."""


@dataclass(frozen=True)
class Offer:
    """What may be rented, and what it costs at most.

    Attributes
    ----------
    region
        Where.
    head, workers
        Where the head and the workers may come from, best first.
    head_usd, worker_usd
        Dollars for an hour of each, with its disk, from the dearest of its pools.
    """

    region: str
    head: tuple[Pool, ...]
    workers: tuple[Pool, ...]
    head_usd: float
    worker_usd: float


class Limits(NamedTuple):
    """What a cluster keeps to: when its nodes end themselves, unix seconds, and how many workers it has at most."""

    deadline: float
    workers: int | None

    @staticmethod
    def of(sale: Offer, workers: int, max_workers: int | None, max_hours: float, max_usd: float | None) -> Limits:
        """Return the limits that keep to hours and dollars.

        Raises
        ------
        ParameterError
            A limit is not above 0.
        """
        for name, value in (("max_hours", max_hours), ("max_usd", max_usd)):
            if value is not None and not value > 0:
                raise ParameterError(f"{name}: got {value}, needs more than 0")
        if max_usd is None:
            return Limits(time.time() + max_hours * 3600, max_workers)
        most = workers if max_workers is None else max_workers
        hours = max_usd / (sale.head_usd + most * sale.worker_usd)
        return Limits(time.time() + min(hours, max_hours) * 3600, most)


def offer(
    region: str, head: str, instance_types: Sequence[str], markets: Sequence[Market], zones: Sequence[str] | None
) -> Offer:
    """Return what of that is for sale.

    Raises
    ------
    ParameterError
        Something is not known, or has no price.
    """
    catalogue = Catalogue.load()
    where = tuple(zones or catalogue.zones(region))
    if not where:
        raise ParameterError(f"region: got {region!r}, prices are known of {', '.join(catalogue.regions())}")
    if isinstance(instance_types, str) or not instance_types or not markets:
        raise ParameterError("instance_types and markets need a list of at least one")
    if unknown := set(markets) - {"spot", "on-demand"}:
        raise ParameterError(f"markets: got {', '.join(sorted(unknown))}; there are spot and on-demand")

    def priced(pools: list[Pool]) -> tuple[tuple[Pool, ...], float]:
        prices = {pool: price.usd_per_hour for pool in pools if (price := catalogue.price(pool)) is not None}
        for kind in {pool.instance_type for pool in pools} - {pool.instance_type for pool in prices}:
            raise ParameterError(f"{kind} has no price in {region}; `cloudem prices` lists what has")
        disk = catalogue.rates_in(region).disk_usd_per_GiB_month * Request.disk_GiB / MONTH_HOURS
        return tuple(prices), max(prices.values()) + disk

    heads, head_usd = priced([Pool(head, zone, "on-demand") for zone in where])
    pools, worker_usd = priced([Pool(kind, z, market) for z in where for market in markets for kind in instance_types])
    return Offer(region, heads, pools, head_usd, worker_usd)


class RentedNodes:
    """The nodes of one cluster, rented from a provider; all methods may be called from any thread.

    Parameters
    ----------
    provider
        Who rents them.
    cluster
        Name of the cluster; part of every tag; None for a new one.
    sale
        What may be rented. Workers come from the zone that the head is in.
    deadline
        When nodes end themselves, unix seconds.
    tags
        Besides those that providers set.

    Attributes
    ----------
    certificates
        Folder of the cluster's certificates, made for it; it goes when the cluster is closed.
    """

    def __init__(
        self, provider: Provider, cluster: str | None, sale: Offer, deadline: float, tags: Mapping[str, str] | None
    ) -> None:
        made = f"dask-{time.strftime('%Y%m%d-%H%M', time.gmtime())}-{secrets.token_hex(2)}"
        self._provider, self.cluster, self.deadline = provider, cluster or made, deadline
        self._sale, self._worker_pools = sale, sale.workers
        owner = f"{os.environ.get('USER') or os.getuid()}@{platform.node()}"
        self._tags = {"project": "none", "job": self.cluster, "owner": owner, **(tags or {})}
        self._launching = threading.Condition()
        self._in_flight, self._closed = 0, False
        self._scheduler: str | None = None
        self._folder = Path(tempfile.mkdtemp(prefix="cloudem-cluster-"))
        self.certificates = self._folder / "certificates"
        make_certificates(self.certificates, days=int((deadline - time.time()) / 86400) + 2)

    def prepare(self) -> None:
        """Make what all nodes share, and hand over the certificates."""
        self._provider.prepare(self.cluster, self._tags)
        self._provider.put_secret(self.cluster, CERTIFICATES, certificates_as_secret(self.certificates))

    def launch(self, slot: str, generation: int) -> str:
        """Start the node of a slot and return its id.

        Raises
        ------
        BudgetError
            The cluster's time is up.
        ProviderError
            There is no node to be had, or the cluster is closed.
        """
        with self._launching:
            if self._closed:
                raise ProviderError(f"{self.cluster} is closed")
            if time.time() >= self.deadline:
                raise BudgetError(f"the time of {self.cluster} is up; make another one with more max_hours or max_usd")
            self._in_flight += 1
        try:
            node = self._provider.launch(self._request(slot, generation))
            if slot == HEAD:  # traffic between zones is slow and is charged
                self._worker_pools = tuple(pool for pool in self._worker_pools if pool.zone == node.pool.zone)
            return node.id
        finally:
            with self._launching:
                self._in_flight -= 1
                self._launching.notify_all()

    def alive(self) -> list[str]:
        """Return the nodes that are not ended, nor about to be."""
        return [node.id for node in self._provider.nodes(self.cluster) if node.state in ("pending", "running")]

    def scheduler(self) -> str | None:
        """Return the scheduler's address, as soon as it is known."""
        if self._scheduler is None:
            heads = [node.address for node in self._provider.nodes(self.cluster) if node.slot == HEAD and node.address]
            if heads and not is_loopback(heads[0]):
                self._scheduler = f"tls://{heads[0]}:{PORT}"
            elif heads and (told := self._provider.secret(self.cluster, SCHEDULER)):
                self._scheduler = told.decode()
        return self._scheduler

    def terminate(self, nodes: Sequence[str]) -> None:
        """End nodes."""
        self._provider.terminate(nodes)

    def close(self) -> list[str]:
        """End all nodes and remove all that was made; return what could not be removed in time."""
        with self._launching:
            self._closed = True
            self._launching.wait_for(lambda: self._in_flight == 0, REMOVE_S)
        shutil.rmtree(self._folder, ignore_errors=True)
        try:
            return [f"{one.kind} {one.id}" for one in end(self.cluster, self._provider, REMOVE_S)]
        except ProviderError as error:
            return [f"all of {self.cluster} ({error})"]

    def _request(self, slot: str, generation: int) -> Request:
        environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        if self._provider.name == "aws":
            environment["AWS_REGION"] = self._sale.region
        document = {
            "cloudem": 1,
            "mode": CLUSTER,
            "cluster": self.cluster,
            "slot": slot,
            "generation": generation,
            "provider": self._provider.name,
            "region": self._sale.region,
            "deadline": self.deadline,
            "certificates": CERTIFICATES,
            "environment": environment,
            **({} if slot == HEAD else {"scheduler": self._scheduler}),
        }
        return Request(
            token=f"{self.cluster}/{slot}/{generation}",
            cluster=self.cluster,
            slot=slot,
            generation=generation,
            pools=self._sale.head if slot == HEAD else self._worker_pools,
            deadline=self.deadline,
            start=json.dumps(document),
            tags=self._tags,
        )


class AWSCluster(NodeCluster):
    """A Dask cluster of EC2 machines: an on-demand scheduler, and workers from spot pools or on demand.

    The account's stack and an image must be there (docs/cloud.md). Nodes have no public addresses: run this in their
    network, or behind a VPN to it, and say so with `clients`.

    Parameters
    ----------
    workers
        Number of worker nodes, each one Dask worker with all of its cores.
    instance_types
        That are good for workers; of spot pools AWS takes those with the best price and capacity.
    region
        Such as ``us-east-1``.
    max_hours
        After so many hours every node ends itself.
    max_usd
        The same after as many hours as this buys at the highest of the prices, with `max_workers`; approximate, since
        neither traffic nor requests are in it. None for no such limit.
    max_workers
        Largest number that `scale` accepts; by default `workers` where there is a `max_usd`, and any otherwise.
    markets
        ``spot``, ``on-demand``, in order of preference.
    zones
        IDs such as ``use1-az1``, by default all of the region. All nodes are in the one that the scheduler gets.
    scheduler_type
        Machine of the scheduler.
    profile
        Of the user's AWS configuration.
    clients
        Networks, such as ``10.0.0.0/16``, whose machines may reach the scheduler: this machine's must be one of them.
    tags
        More tags for all that is made.
    patience
        How long is waited for nodes.
    provider
        An `AWSProvider` set up in another way; None for the standard one.
    name
        Of the cluster, which is part of every tag; None for a new one.
    options
        ``asynchronous``, ``loop``, ``quiet`` of `NodeCluster`.

    Raises
    ------
    ParameterError, BudgetError
        If something is not for sale, or a limit is not positive.
    ProviderError, WorkerLostError
        If there are no nodes to be had, or they do not come to work; nothing is left behind then.
    """

    def __init__(
        self,
        workers: int = 0,
        *,
        instance_types: Sequence[str],
        region: str,
        max_hours: float = HOURS,
        max_usd: float | None = None,
        max_workers: int | None = None,
        markets: Sequence[Market] = ("spot", "on-demand"),
        zones: Sequence[str] | None = None,
        scheduler_type: str = "m7i.large",
        profile: str | None = None,
        clients: Sequence[str] = (),
        tags: Mapping[str, str] | None = None,
        patience: Patience | None = None,
        provider: Provider | None = None,
        name: str | None = None,
        **options: Any,
    ) -> None:
        from cloudem.cloud.aws.provider import AWSProvider

        sale = offer(region, scheduler_type, instance_types, markets, zones)
        limits = Limits.of(sale, workers, max_workers, max_hours, max_usd)
        nodes = RentedNodes(
            provider or AWSProvider(region, profile, clients=clients), name, sale, limits.deadline, tags
        )
        self.deadline = limits.deadline
        super().__init__(
            nodes,
            workers=workers,
            certificates=nodes.certificates,
            most=limits.workers,
            patience=patience,
            name=nodes.cluster,
            **options,
        )


class LocalNodeCluster(NodeCluster):
    """The same with machines that are processes of this computer: for rehearsals and tests, nothing is charged.

    Parameters
    ----------
    workers, max_hours, max_usd, max_workers, markets, tags, patience, name, options
        As of `AWSCluster`.
    instance_type
        ``local.1`` or ``local.2``: threads of each worker.
    provider
        A `LocalProvider` set up in another way; None for the standard one.
    """

    def __init__(
        self,
        workers: int = 0,
        *,
        instance_type: str = "local.1",
        max_hours: float = HOURS,
        max_usd: float | None = None,
        max_workers: int | None = None,
        markets: Sequence[Market] = ("on-demand",),
        tags: Mapping[str, str] | None = None,
        patience: Patience | None = None,
        provider: Provider | None = None,
        name: str | None = None,
        **options: Any,
    ) -> None:
        from cloudem.cloud.local.provider import LocalProvider

        sale = offer("local", "local.1", [instance_type], markets, None)
        limits = Limits.of(sale, workers, max_workers, max_hours, max_usd)
        nodes = RentedNodes(provider or LocalProvider(), name, sale, limits.deadline, tags)
        self.deadline = limits.deadline
        super().__init__(
            nodes,
            workers=workers,
            certificates=nodes.certificates,
            most=limits.workers,
            patience=patience or Patience(ready_s=60.0, look_s=0.5, again_s=1.0),
            name=nodes.cluster,
            **options,
        )
