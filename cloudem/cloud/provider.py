"""A provider of machines: the few things that a cluster needs of a cloud.

All calls may be repeated: what was done is not done again, and what is gone may be ended or removed once more. Calls
may fail at any moment (`ProviderError`), and what a provider tells may be late: a node just launched may not be listed
yet, one that was ended may still be listed as running. Who decides (:mod:`cloudem.cloud.reconcile`) reckons with that.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

from cloudem.cloud.nodes import Node, Pool, Request, Resource


class Provider(ABC):
    """Rents machines; one object for one account and region."""

    name: ClassVar[str]
    """``memory``, ``local`` or ``aws``."""

    @abstractmethod
    def prepare(self, cluster: str, tags: Mapping[str, str]) -> None:
        """Make what all nodes of a cluster share: security group, launch template."""

    @abstractmethod
    def launch(self, request: Request) -> Node:
        """Start one node from the first pool that has capacity.

        Raises
        ------
        CapacityError
            No pool has capacity now.
        QuotaError
            The account's limit does not allow it.
        ThrottledError
            Too many calls; the same may be tried later.
        ProviderError
            Anything else; whether a node was started is not known, and the same token may be used again.
        """

    @abstractmethod
    def nodes(self, cluster: str) -> list[Node]:
        """Return the nodes of a cluster, with those that ended lately."""

    @abstractmethod
    def terminate(self, ids: Sequence[str]) -> None:
        """End nodes; those that are gone, or never were, are no error."""

    @abstractmethod
    def put_secret(self, cluster: str, name: str, value: bytes) -> None:
        """Keep a secret (at most 4,096 bytes) where only nodes of the cluster, and its owner, can read it."""

    @abstractmethod
    def secret(self, cluster: str, name: str) -> bytes | None:
        """Return a secret; None where there is none."""

    @abstractmethod
    def quotas(self) -> Mapping[tuple[str, str], float]:
        """Return the account's limits and what is left of them, vCPUs: (family, market) -> free."""

    @abstractmethod
    def spot_prices(self, pools: Sequence[Pool]) -> Mapping[Pool, float]:
        """Return today's price per hour of spot pools, dollars; those not sold are left out."""

    @abstractmethod
    def resources(self, cluster: str | None = None) -> list[Resource]:
        """Return everything that cloudem made and that exists: of one cluster, or of all."""

    @abstractmethod
    def remove(self, resource: Resource) -> None:
        """Remove it; what is gone is no error. Raises ProviderError where something still uses it."""

    def zones(self) -> Sequence[str] | None:
        """Return the zones in which nodes can be; None for all of the region."""
        return None

    def log(self, node_id: str) -> str:
        """Return what a node has said, as far as its provider keeps that."""
        return ""

    def release(self, cluster: str) -> list[Resource]:
        """Remove whatever a cluster has, nodes first; return what could not be removed yet."""
        from cloudem.errors import ProviderError

        left = []
        for resource in self.resources(cluster):
            try:
                self.remove(resource)
            except ProviderError:
                left.append(resource)
        return left
