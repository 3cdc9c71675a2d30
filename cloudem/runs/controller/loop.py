"""What runs on the head node: observe, decide, act; run the steps one after another; meter; stop in time.

Everything that it knows is in the project store before anything depends on it, so that it may die at any moment: the
head's agent starts it again, and it goes on. What to do about nodes is decided in `cloudem.cloud.reconcile`, what may
be spent in `cloudem.cloud.money`: both pure. What carries that out is here (whether to go on, to drain or to end), in
`meter` (what it costs), `fleet` (nodes) and `steps` (jobs).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence, Set
from functools import partial
from typing import Any

from cloudem.cloud.catalogue import Catalogue
from cloudem.cloud.money import Account, Cap, Entry, NodeEnded, node_deadline, verdict, worst_overshoot
from cloudem.cloud.provider import Provider
from cloudem.cloud.providers import provider_of
from cloudem.cloud.reconcile import WORTH_S, Desired
from cloudem.errors import (
    CloudemError,
    FormatError,
    LeaseLostError,
    MissingInputError,
    ParameterError,
    StorageError,
)
from cloudem.execution.dask.draining import workers_of
from cloudem.io.storage.lease import hold
from cloudem.jobs.logs import keep_log
from cloudem.runs.controller.fleet import RunFleet
from cloudem.runs.controller.meter import Meter
from cloudem.runs.controller.steps import RunningStep, StepProcess, Steps
from cloudem.runs.notifications import Notifications, lost_nodes
from cloudem.runs.records import LATENCY_S, OVER, RunState, RunStore, Status, Wishes, node_status
from cloudem.runs.supervision import Repeated
from cloudem.runs.webhook import WEBHOOK_SECRET
from cloudem.text import dollars

LOG = logging.getLogger("cloudem.run")

TICK_S: Mapping[str, float] = {"local": 0.5, "aws": 5.0}
"""Pause between two looks at everything."""

KNOWN_S = 3.0
"""How often the scheduler is asked for its workers."""


class Controller:
    """The controller of one run.

    Parameters
    ----------
    store
        Of the run.
    provider
        Of its nodes.
    node
        The head's start document, with ``scheduler`` and ``certificates_folder``.
    begin
        Begins a step: its job, and whether it runs on the head alone.
    workers
        Returns the nodes whose workers the scheduler knows; None while that is not known.
    clock
        Unix seconds.
    report
        Writes the page of a run that is over, and returns where it is.
    tell
        Tells a webhook what is new: how the run stands, its cap in dollars, its ledger. Returns at once but for the
        last time.
    """

    def __init__(
        self,
        store: RunStore,
        provider: Provider,
        node: Mapping[str, Any],
        catalogue: Catalogue,
        begin: Callable[[Mapping[str, Any], bool], RunningStep],
        workers: Callable[[], Set[str] | None],
        clock: Callable[[], float] = time.time,
        report: Callable[[RunState], str] | None = None,
        tell: Callable[[RunState, float, Sequence[Entry]], None] | None = None,
    ) -> None:
        self._store, self._clock, self._write_report, self._tell_webhook = store, clock, report, tell
        self._record = record = store.record()
        self._wanted: Wishes = store.wanted()
        self._launch = int(node.get("generation", 1))
        self._meter = Meter(store, record, provider, catalogue, clock)
        self._fleet = RunFleet(store, record, node, provider, self._meter, workers, clock)
        self._steps = Steps(store, record, self._meter, begin, clock)
        self._status: Status = "starting"
        self._why = ""
        self._drained_by: Cap | None = None

    @property
    def over(self) -> bool:
        """Whether everything but the head is gone."""
        return self._status in OVER

    def run(self) -> None:
        """Run what is left of the workflow, and return when everything but the head is gone."""
        with hold(self._store.url, log=LOG) as lease, keep_log(LOG, self._store.url, lease.check):
            self.begin()
            try:
                while not self.over:
                    if lease.lost:
                        lease.check()
                    began = self._clock()
                    try:
                        self.tick()
                    except StorageError as error:  # without a sign of life in the store the head ends after a while
                        LOG.warning("%s", error)
                    time.sleep(max(0.0, began + TICK_S[self._record.provider] - self._clock()))
            finally:
                self._steps.close()

    def begin(self) -> None:
        """Say that a controller begins, and with which cap."""
        launches = self._wanted.launch
        self._meter.note(f"controller of launch {launches} started; steps already finished: {self._steps.finished}")
        self._meter.enter_limits(self._clock(), self._wanted)

    def tick(self) -> None:
        """Look at everything once, decide, and act.

        The meter goes on, and what it says is acted upon, also while the provider does not answer.
        """
        now = self._clock()
        self._read_wishes(now)
        self._fleet.look(now)
        self._meter.make_up(now)
        spent = self._meter.account(now)
        self._steer(now, spent)
        self._watch_step(now)
        self._why = self._fleet.act(self._desired(now, spent), now) or self._why
        self._settle(now)
        state = self._state(now)
        if state.over:  # before anybody hears of it, who might end this machine
            self._report(state)
        self._tell(state)
        self._store.write_state(state)

    def _read_wishes(self, now: float) -> None:
        try:
            wanted = self._store.wanted()
        except (FormatError, MissingInputError) as error:  # what was wanted before holds
            LOG.warning("%s", error)
            wanted = self._wanted
        if wanted.launch > self._launch:
            raise SupersededError(f"launch {wanted.launch} of {self._record.name} has begun, this one ends")
        if wanted.cap != self._wanted.cap:
            self._meter.enter_limits(now, wanted)
        self._wanted = wanted

    # ------------------------------------------------------------------ deciding

    def _steer(self, now: float, spent: Account) -> None:
        """Go from running to draining to stopping as money, time and the owner want."""
        finish = self._steps.to_finish_s(now)
        planned = self._meter.planned_rate(self._steps.planned)
        what = verdict(self._wanted.cap, spent, now, to_finish_s=finish, latency_s=self._latency, planned_rate=planned)
        if what == "run" and (self._wanted.stop or self._too_late(now, spent)):
            what = "drain"
        if what != "run" and self._status in ("starting", "running"):
            self._status = "draining"
            self._why, self._drained_by = self._reason(now, spent), self._wanted.cap
            self._meter.note(f"draining: {self._why}")
        if self._status == "draining" and what == "run" and self._wanted.cap != self._drained_by:
            self._status, self._why = "running", ""  # a job that was asked to stop goes on where it did
            self._meter.note("going on: its limits were changed")
        if self._status == "draining" and self._may_go_on(now, spent):
            self._status, self._why = "running", ""
            self._meter.note("continuing: the remaining budget covers the next step")
        if what == "end" and self._status == "draining":
            self._stopping("the remaining budget only covers shutting down")

    def _may_go_on(self, now: float, spent: Account) -> bool:
        """Return whether what is left surely pays for the next step: one on the head, with no worker to begin it for.

        What ran was stopped for the time that an iteration may take; it may have ended sooner, with its last one.
        """
        planned = self._steps.planned
        if self._steps.running or self._wanted.stop or planned is None or not planned.on_head:
            return False
        finish = planned.wall.high
        return verdict(self._wanted.cap, spent, now, to_finish_s=finish, latency_s=self._latency) == "run"

    def _too_late(self, now: float, spent: Account) -> bool:
        """Return whether what is left pays for no worker that would be of use, where there is none."""
        workers = any(node.alive for node in self._fleet.workers)
        desired = self._desired(now, spent)
        return bool(desired.slots) and not workers and desired.deadline - now < WORTH_S

    def _reason(self, now: float, spent: Account) -> str:
        if self._wanted.stop:
            return "requested by its owner"
        if now + self._steps.to_finish_s(now) + self._latency >= self._wanted.deadline:
            return "its time is nearly up"
        return f"{dollars(spent.total)} of {dollars(self._wanted.max_usd)} are spent, too much to start the next step"

    @property
    def _latency(self) -> float:
        return LATENCY_S[self._record.provider]

    def _stopping(self, text: str) -> None:
        self._status = "stopping"
        self._steps.interrupt()
        self._meter.note(f"ending all nodes: {text}")

    def _desired(self, now: float, spent: Account) -> Desired:
        """Return which nodes there should be."""
        name, planned = self._record.name, self._steps.planned
        if self._status == "stopping" or planned is None:
            return Desired(name, "down", {}, now)
        if planned.on_head:
            return Desired(name, "run", {}, now)
        # so that no node outlives the money, see there
        highest = max(map(self._meter.planned_rate, self._steps.left), default=0.0)
        # the last resort, for when nobody is left to end them: the meter has to have drained the run before
        deadline = node_deadline(self._wanted.cap, spent, highest, now, shutdown_s=0.0)
        return Desired(name, "drain" if self._status == "draining" else "run", self._fleet.wanted(planned), deadline)

    # ------------------------------------------------------------------ acting

    def _watch_step(self, now: float) -> None:
        """Begin, follow and end the steps."""
        steps = self._steps
        if steps.running:
            steps.follow(now, draining=self._status == "draining")
            if steps.failure:
                self._why = steps.failure
                self._stopping(self._why)
            return
        if self._status == "stopping":
            return
        if self._status == "draining" or steps.complete:
            self._stopping("the workflow is finished" if steps.complete else "nothing is running")
            return
        self._status = "running"
        number, planned = steps.current, steps.planned
        if number is None or planned is None:  # a cluster without steps
            return
        if not planned.on_head and not any(node.state == "running" for node in self._fleet.workers):
            self._why = "waiting for the first node"
            return
        self._why = ""
        steps.begin(number, now)

    def _settle(self, now: float) -> None:
        """End when there is nothing left to end."""
        if self._status != "stopping" or self._steps.running or not self._fleet.settled(now):
            return
        self._status = "done" if self._steps.complete else "failed" if self._steps.failure else "stopped"
        for node in self._fleet.nodes:
            if node.alive:
                self._meter.enter(NodeEnded(now + TICK_S[self._record.provider], node.id, "the run is over"))
        self._meter.note(f"{self._status}: {self._why or 'all steps are finished'}")

    # ------------------------------------------------------------------ telling

    def _report(self, state: RunState) -> None:
        """Write the run's page; nothing that fails there keeps the run from ending."""
        try:
            if self._write_report is not None:
                LOG.info("report: %s", self._write_report(state))
        except Exception:
            LOG.exception("the report could not be written; `cloudem cost %s --report FILE` does", self._store.url)

    def _tell(self, state: RunState) -> None:
        """Tell a webhook what is new; nothing that fails there is of any consequence here."""
        try:
            if self._tell_webhook is not None:
                self._tell_webhook(state, self._wanted.max_usd, self._meter.ledger)
        except Exception as error:  # its words may hold the URL
            LOG.warning("notifications fail: %s", type(error).__name__)

    def _state(self, now: float) -> RunState:
        spent, number, steps = self._meter.account(now), self._steps.current, self._record.steps
        return RunState(
            at=now,
            status=self._status,
            step=number if number is not None else len(steps),
            steps=len(steps),
            job=str(steps[number]["job"]) if number is not None else "",
            progress=self._steps.progress,
            spent_usd=spent.total,
            usd_per_hour=spent.rate_per_hour,
            overshoot_usd=worst_overshoot(spent.rate_per_hour, self._latency),
            nodes=() if self.over else tuple(node_status(node) for node in self._fleet.nodes if node.alive),
            launch=self._wanted.launch,
            why=self._why,
            lost=len(lost_nodes(self._meter.ledger, 0.0)),
        )


class SupersededError(LeaseLostError):
    """The run was launched again, and another controller is to go on with it."""


def main(environment: Mapping[str, str] = os.environ) -> int:
    """Run the controller that the head's agent starts; what it needs is in ``CLOUDEM_NODE``."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    node = json.loads(environment["CLOUDEM_NODE"])
    store, notifications = RunStore.of(node["project"], node["run"]), None
    try:
        record = store.record()
        provider = provider_of(node["provider"], record.region)
        notifications = Notifications(store, record, lambda: provider.secret(record.name, WEBHOOK_SECRET))
        scheduler, certificates = str(node["scheduler"]), node.get("certificates_folder")
        # their files are in a folder with the node's name
        known = Repeated(lambda: frozenset(workers_of(scheduler, certificates).values()), KNOWN_S)
        begin = partial(StepProcess, scheduler=scheduler, certificates=certificates, say=LOG.info)
        catalogue = Catalogue.load()

        def report(state: RunState) -> str:
            from cloudem.runs.run_report import write_run_page  # draws; is not needed before the end

            return write_run_page(store, catalogue, state)

        Controller(
            store, provider, node, catalogue, begin, lambda: known.value, report=report, tell=notifications.look
        ).run()
    except SupersededError as error:
        LOG.warning("%s", error)
    except (FormatError, MissingInputError, ParameterError) as error:  # no other controller could do better
        LOG.error("%s", error)
        state = RunState(at=time.time(), status="failed", launch=int(node.get("generation", 1)), why=str(error))
        with contextlib.suppress(CloudemError), hold(store.url, log=LOG):
            if notifications is not None:
                notifications.look(state, store.wanted().max_usd, ())
            store.write_state(state)
    except CloudemError as error:
        LOG.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
