"""What a run costs: by now, as its ledger says, and per hour, as prices of nodes say."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence

from cloudem.cloud.catalogue import Catalogue
from cloudem.cloud.money import (
    Account,
    CapChanged,
    Entry,
    NodeEnded,
    NodeStarted,
    Note,
    PriceChanged,
    account,
)
from cloudem.cloud.nodes import Node, Pool
from cloudem.cloud.planning.choices import DISK_GIB
from cloudem.cloud.planning.plan import Plan, PlannedStep
from cloudem.cloud.provider import Provider
from cloudem.errors import ParameterError, ProviderError
from cloudem.runs.reckoning import completed
from cloudem.runs.records import RunRecord, RunStore, Wishes

LOG = logging.getLogger("cloudem.run")

ASK_AGAIN_S = 60.0
"""When a price is asked for again that the provider did not tell."""

PRICES_S = 600.0
"""How often spot prices are asked for."""


class Meter:
    """The ledger of one run, and the prices of its nodes.

    Parameters
    ----------
    store
        Of the run; its ledger is read now, and from now on nobody else writes it.
    record
        What was asked for and planned.
    provider
        Tells spot prices.
    catalogue
        Has the other prices.
    clock
        Unix seconds.
    """

    def __init__(
        self,
        store: RunStore,
        record: RunRecord,
        provider: Provider,
        catalogue: Catalogue,
        clock: Callable[[], float],
    ) -> None:
        self._store, self._record, self._clock = store, record, clock
        self._provider, self._catalogue = provider, catalogue
        self._head = Plan.from_json(record.plan).head
        self._ledger, self._gap = store.read_ledger()
        self._before = store.state()
        self._spot: dict[Pool, tuple[float, float | None]] = {}
        self._repriced: dict[str, float] = {}
        self._prices_at = 0.0

    # ------------------------------------------------------------------ the ledger

    @property
    def started(self) -> dict[str, float]:
        """Nodes that are in the ledger, and when each was launched, unix seconds."""
        return {entry.node: entry.at for entry in self._ledger if isinstance(entry, NodeStarted)}

    @property
    def ended(self) -> dict[str, float]:
        """Nodes that are gone, and when each ended, unix seconds."""
        return {entry.node: entry.at for entry in self._ledger if isinstance(entry, NodeEnded)}

    @property
    def losses(self) -> int:
        """How many ends of nodes were entered."""
        return sum(isinstance(entry, NodeEnded) for entry in self._ledger)

    @property
    def ledger(self) -> Sequence[Entry]:
        """All entries, those of earlier controllers too."""
        return self._ledger

    def account(self, now: float) -> Account:
        """Return what was spent until ``now``, unix seconds."""
        return account(self._ledger, now)

    def enter(self, *entries: Entry) -> None:
        """Add to the ledger."""
        self._store.append(*entries)
        self._ledger.extend(entries)

    def note(self, text: str) -> None:
        """Say something to people, in the log and in the ledger."""
        LOG.info("%s", text)
        self.enter(Note(self._clock(), text))

    def enter_limits(self, now: float, wanted: Wishes) -> None:
        """Enter what the run may cost and take from ``now`` on, unix seconds."""
        self.enter(CapChanged(now, wanted.max_usd, (wanted.deadline - self._record.created) / 3600))

    def enter_start(self, node: Node) -> None:
        """Enter a node that is paid for from its launch on."""
        rate = self.rate(node.pool)
        self.enter(NodeStarted(node.launched, node.id, node.slot, node.pool, rate))
        LOG.info("%s: %s, %s, at $%.3f an hour", node.slot, node.id, " ".join(node.pool), rate)

    def make_up(self, now: float) -> None:
        """Enter what a ledger with a gap lacks of what was said to be spent before: the cap holds for all of it.

        That is done once, when the nodes that are there are entered; ``now`` is in unix seconds.
        """
        before, self._before = self._before, None
        if before is None:
            return
        rested = before.model_copy(update={"usd_per_hour": 0.0})  # what is there now has been entered by now
        full, gap = completed(self._ledger, self._gap, rested, now, started=bool(before.spent_usd))
        if gap:
            more = full[len(self._ledger) :]
            self.note(gap)
            self.enter(*more)

    # ------------------------------------------------------------------ prices

    def rate(self, pool: Pool) -> float:
        """Return dollars per hour of a node with its disk.

        Raises
        ------
        ParameterError
            Nothing has a price in its region.
        """
        if pool.market == "spot" and (spot := self._spot_price(pool)) is not None:
            return spot + self._disk_rate
        price = self._catalogue.price(pool)
        if price is None:  # the worst that is known of the type, so that the cap holds
            price = self._catalogue.price(pool._replace(market="on-demand"))
        if price is None:
            return self._dearest(pool)
        return price.usd_per_hour + self._disk_rate

    def planned_rate(self, step: PlannedStep | None) -> float:
        """Return dollars per hour of the head and of all nodes that are planned for a step."""
        workers = step.count * self.rate(step.pool) if step is not None else 0.0
        return self.rate(self._head) + workers

    def reprice(self, now: float, nodes: Sequence[Node]) -> None:
        """Follow the spot market: enter the prices of nodes that changed, every `PRICES_S`.

        Parameters
        ----------
        now
            The time, unix seconds.
        nodes
            As the provider lists them.

        Raises
        ------
        ProviderError
            It does not tell the prices; it is asked again `PRICES_S` later.
        """
        if now < self._prices_at + PRICES_S:
            return
        self._prices_at = now
        alive = [node for node in nodes if node.alive and node.pool.market == "spot"]
        if alive:
            prices = self._provider.spot_prices(list({node.pool for node in alive}))
            for node in alive:
                usd = prices.get(node.pool, 0.0) + self._disk_rate
                if node.pool in prices and self._repriced.get(node.id) != usd:
                    self.enter(PriceChanged(now, node.id, usd))
                    self._repriced[node.id] = usd

    def _spot_price(self, pool: Pool) -> float | None:
        """Return what a spot pool costs, as asked lately; what was known last where the provider does not answer."""
        at, known = self._spot.get(pool, (float("-inf"), None))
        if self._clock() < at + PRICES_S:
            return known
        self._spot[pool] = self._clock() - PRICES_S + ASK_AGAIN_S, known
        with provider_errors():
            known = self._provider.spot_prices([pool]).get(pool)
            self._spot[pool] = self._clock(), known
        return known

    def _dearest(self, pool: Pool) -> float:
        """Return the highest price of a region, for what has none here: rather too much than nothing."""
        prices = [self._catalogue.price(Pool(name, pool.zone, "on-demand")) for name in self._catalogue.types]
        found = [price.usd_per_hour for price in prices if price is not None]
        if not found:
            raise ParameterError(f"there is no price of {' '.join(pool)}; `cloudem prices update` may find one")
        return max(found) + self._disk_rate

    @property
    def _disk_rate(self) -> float:
        if self._record.provider == "local":
            return 0.0
        return self._catalogue.rates_in(self._record.region).disk_usd_per_GiB_month * DISK_GIB / (30 * 24)


@contextlib.contextmanager
def provider_errors() -> Iterator[None]:
    """Go on where a provider fails: it may answer soon, and the meter must not stop."""
    try:
        yield
    except ProviderError as error:
        LOG.warning("%s", error)
