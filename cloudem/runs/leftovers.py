"""What is left in an account of clusters that nobody uses any more."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

from cloudem.cloud.nodes import HEAD, Node, Resource
from cloudem.cloud.provider import Provider
from cloudem.errors import ProviderError

STARTING_S: Mapping[str, float] = {"local": 5.0, "aws": 60.0}
"""From when the first of a cluster's things is made until its head is listed."""

TIMES = 60
"""How often removing is tried: what is still used by what is ending can be removed a little later."""


class Left(NamedTuple):
    """What there is: of clusters in use, with their head; and of others."""

    used: Mapping[str, tuple[Node, Sequence[Resource]]]
    left: Sequence[Resource]


def look(provider: Provider, now: float) -> Left:
    """Find everything that cloudem made, and whether it is in use: whether the cluster has a head, and time left."""
    by_cluster: dict[str, list[Resource]] = {}
    for resource in provider.resources():
        by_cluster.setdefault(resource.cluster, []).append(resource)
    used: dict[str, tuple[Node, Sequence[Resource]]] = {}
    left: list[Resource] = []
    for cluster, resources in sorted(by_cluster.items()):
        heads = [
            node
            for node in (provider.nodes(cluster) if cluster else [])
            if node.slot == HEAD and node.alive and now < node.deadline
        ]
        if heads:
            used[cluster] = (heads[-1], resources)
        else:
            left += resources
    return Left(used, left)


def sweep(
    provider: Provider,
    clusters: Collection[str],
    clock: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
) -> Sequence[Resource]:
    """Remove what these clusters left, and nothing else; return what is still there.

    A cluster without nodes may be one that is just being started elsewhere. So that is waited for first, and a cluster
    that has got a head by then is left alone.
    """
    found = _of(provider, clusters, clock())
    if {each.cluster for each in found} - {each.cluster for each in found if each.kind == "instance"}:
        sleep(STARTING_S.get(provider.name, 60.0))
    for _ in range(TIMES):
        found = _of(provider, clusters, clock())
        if not found:
            break
        for resource in found:
            try:
                provider.remove(resource)
            except ProviderError:
                continue
        sleep(1.0 if provider.name == "local" else 5.0)
    return found


def _of(provider: Provider, clusters: Collection[str], now: float) -> list[Resource]:
    return [resource for resource in look(provider, now).left if resource.cluster in clusters]
