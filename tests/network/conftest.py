"""Hosts and clusters for tests that need several machines."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.network.cluster import Cluster
from tests.network.namespaces import Hosts, missing


@pytest.fixture(scope="session")
def _namespaces() -> None:
    reason = missing()
    if reason:
        pytest.skip(reason)


@pytest.fixture
def hosts(_namespaces: None) -> Iterator[Hosts]:
    """A head, four workers' machines and one for a server, with addresses of their own."""
    with Hosts("head", "w1", "w2", "w3", "w4", "s3") as hosts:
        yield hosts


@pytest.fixture
def cluster(hosts: Hosts, tmp_path: Path) -> Iterator[Cluster]:
    """A scheduler on ``head``, and a worker of one thread on each of ``w1`` and ``w2``."""
    with Cluster(hosts, tmp_path) as cluster:
        yield cluster
