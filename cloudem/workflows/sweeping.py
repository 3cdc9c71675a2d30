"""What is left in an account of clusters that nobody uses any more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from cloudem.cloud.nodes import HEAD, Node, Resource
from cloudem.cloud.provider import Provider


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
