"""Counters of this process for Prometheus, on whatever endpoint the process has."""

from __future__ import annotations

import functools
from collections.abc import Iterator

from prometheus_client import REGISTRY, Metric
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from cloudem import traffic


@functools.cache
def export_traffic() -> None:
    """Have Prometheus's default registry, which Dask's ``/metrics`` shows, export `cloudem.traffic`; at most once."""
    REGISTRY.register(_Traffic())


class _Traffic(Collector):
    """``cloudem_bytes_received_total`` and ``cloudem_bytes_sent_total``, each with a label ``purpose``."""

    def collect(self) -> Iterator[Metric]:
        """Read the counters."""
        text = "Bytes {} over the network by this process, by what they are for."
        received = CounterMetricFamily("cloudem_bytes_received", text.format("received"), labels=["purpose"])
        sent = CounterMetricFamily("cloudem_bytes_sent", text.format("sent"), labels=["purpose"])
        for purpose, moved in traffic.totals().items():
            received.add_metric([purpose], moved.received)
            sent.add_metric([purpose], moved.sent)
        yield from (received, sent)
