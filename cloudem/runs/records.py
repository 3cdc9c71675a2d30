"""What a run keeps in the project store, so that whoever comes later, from any machine, knows all of it.

::

    <project>/runs/<run>/run.json            what was asked for and planned; written once
                         wanted.json         cap, hours and whether to stop; changed by its owner, compare and swap
                         state.json          how it stands; the controller's sign of life
                         head.json           where the scheduler is
                         attempts.json       which nodes were asked for, written before they are asked for
                         ledger/00000000.json …   what was spent, append-only
                         steps/0.json …      written when a step is finished
                         report.html         what was planned and what it took and cost, when it is over
                         notices/<node>.json which nodes are about to be taken, written by themselves
                         notified/<key>.json what a webhook was told, written before it is told

There is one controller at a time: it holds the lease of the run's folder.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cloudem.cloud.money import Cap, Entry
from cloudem.cloud.nodes import Node, Pool
from cloudem.cloud.reconcile import Attempt
from cloudem.errors import (
    FormatError,
    MissingInputError,
    OutputExistsError,
    ParameterError,
    StorageError,
    parsing,
    shown,
)
from cloudem.io.storage.compare_and_swap import slot
from cloudem.io.storage.location import (
    contents,
    join,
    object_store,
    put_if_absent,
    read_bytes,
    storage_errors,
    write_bytes,
)

RUNS = "runs"

PAGE = "report.html"
"""Of a run, in its folder; of a job, beside its results."""

NAME = re.compile(r"^[a-z0-9][a-z0-9-]{0,62}$")
"""What a run may be called: its name becomes part of tags and of names in the cloud."""

LARGEST = 16 << 20
"""Bytes of the largest record that is read."""

LATENCY_S: Mapping[str, float] = {"local": 60.0, "aws": 120.0}
"""How long it takes from deciding to end all nodes until none costs anything, at most: calls, shutting down."""
MOST_ENTRIES = 10_000_000
"""More entries no ledger has."""

Status = Literal["starting", "running", "draining", "stopping", "done", "stopped", "failed"]

OVER: tuple[Status, ...] = ("done", "stopped", "failed")
"""A run in one of these has no controller any more."""


Moment: TypeAlias = Annotated[float, Field(ge=0, le=1e11)]
"""Unix seconds, of the next three thousand years: every clock can show them."""

LATEST_NOTICE_S = 3600.0
"""Notices come two minutes ahead; one for later than that is none."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class RunRecord(_Record):
    """What was asked for.

    Attributes
    ----------
    name
        Of the run and of its cluster.
    created
        Unix seconds.
    owner
        Who asked.
    provider, region, zone
        Where it runs.
    steps
        Jobs with their parameters, one after the other; none for a cluster that waits for jobs of others.
    plan
        As `cloudem.cloud.planning.plan.Plan.as_json` writes it.
    version
        Of cloudem.
    dashboard
        Whether its head serves the Dask dashboard.
    """

    format: Literal[1] = 1
    name: str = Field(pattern=NAME.pattern)
    created: Moment
    owner: str
    provider: str
    region: str
    steps: tuple[dict[str, Any], ...]
    plan: dict[str, Any]
    version: str
    dashboard: bool = False


class Wishes(_Record):
    """What its owner wants of a run, changed at any time.

    Attributes
    ----------
    max_usd
        Approximate maximum of all that is spent.
    deadline
        When it is to be over, unix seconds.
    stop
        Whether to stop after the running iteration.
    launch
        How often the run was started: 1, or more where it was resumed.
    """

    max_usd: float = Field(gt=0, le=1e9)
    deadline: Moment
    stop: bool = False
    launch: int = Field(default=1, ge=1)

    @property
    def cap(self) -> Cap:
        """What may be spent, and until when."""
        return Cap(self.max_usd, self.deadline)


class NodeStatus(_Record):
    """One node, as shown."""

    slot: str
    id: str
    pool: str
    state: str
    since: Moment


def node_status(node: Node) -> NodeStatus:
    """Return a node as it is shown."""
    return NodeStatus(slot=node.slot, id=node.id, pool=" ".join(node.pool), state=node.state, since=node.launched)


class RunState(_Record):
    """How a run stands.

    Attributes
    ----------
    at
        When this was written, unix seconds: a sign of life.
    status
        See `Status`.
    step, steps
        Number of the step that runs, from 0, and of all.
    job
        What runs.
    progress
        The last lines that it said.
    spent_usd, usd_per_hour
        So far, and now.
    overshoot_usd
        By how much the maximum may be passed at worst.
    nodes
        That are there.
    launch
        Of which start (`Wishes.launch`).
    why
        Why it ended, or what it waits for.
    lost
        How many workers ended though nobody here had ended them.
    """

    at: Moment
    status: Status
    step: int = 0
    steps: int = 0
    job: str = ""
    progress: tuple[str, ...] = ()
    spent_usd: float = 0.0
    usd_per_hour: float = 0.0
    overshoot_usd: float = 0.0
    nodes: tuple[NodeStatus, ...] = ()
    launch: int = 1
    why: str = ""
    lost: int = Field(default=0, ge=0)

    @property
    def over(self) -> bool:
        """Whether nothing happens any more."""
        return self.status in OVER


class Head(_Record):
    """Where the scheduler of a run is, and Dask's pages as its head's own machine sees them."""

    scheduler: str
    pages: str = ""
    at: Moment


class RunStore:
    """The folder of one run.

    Parameters
    ----------
    url
        ``<project>/runs/<run>``.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._next = 0

    @classmethod
    def of(cls, project: str, name: str) -> RunStore:
        """Return the folder of a project's run."""
        return cls(join(project, RUNS, name))

    def create(self, record: RunRecord, wanted: Wishes) -> None:
        """Begin a run.

        Raises
        ------
        OutputExistsError
            There is a run of that name.
        """
        if not self._put_once("run.json", record.model_dump_json(indent=2)):
            raise OutputExistsError(f"{self.url} already exists; attach to it, resume it, or give another --run-name")
        slot(self.url, "wanted.json").swap(None, wanted.model_dump_json(indent=2).encode())

    def record(self) -> RunRecord:
        """Return what was asked for.

        Raises
        ------
        MissingInputError
            There is no run.
        """
        found: RunRecord | None = self._read("run.json", RunRecord)
        if found is None:
            raise MissingInputError(f"{self.url} is not a run; give the URL that `cloudem submit` printed")
        return found

    def wanted(self) -> Wishes:
        """Return what its owner wants."""
        found: Wishes | None = self._read("wanted.json", Wishes)
        if found is None:
            raise MissingInputError(f"{self.url} was created but never launched; submit the workflow again")
        return found

    def change(self, *, after: int | None = None, **values: Any) -> Wishes:
        """Change some of what is wanted; what others change at the same time stays.

        Raises
        ------
        ParameterError
            A value is not allowed; or somebody has launched it again since launch ``after``.
        """
        place = slot(self.url, "wanted.json")
        for _ in range(20):
            found = place.read()
            if found is not None:
                before = _parsed(self.url, "wanted.json", found[0], Wishes)
                if after is not None and before.launch != after:
                    raise ParameterError(f"{self.url} has just been resumed by someone else; attach to it")
                changed = wishes_of(**{**before.model_dump(), **values})
                if place.swap(found[1], changed.model_dump_json(indent=2).encode()) is not None:
                    return changed
            time.sleep(0.05)
        raise StorageError(f"{self.url}/wanted.json keeps changing; try again")

    def state(self) -> RunState | None:
        """Return how it stands; None before it began."""
        found: RunState | None = self._read("state.json", RunState)
        return found

    def write_state(self, state: RunState) -> None:
        """Say how it stands."""
        write_bytes(join(self.url, "state.json"), state.model_dump_json(indent=2).encode())

    def head(self) -> Head | None:
        """Return where the scheduler is; None while that is not known."""
        found: Head | None = self._read("head.json", Head)
        return found

    def attempts(self) -> list[Attempt]:
        """Return which nodes were asked for."""
        raw = read_bytes(join(self.url, "attempts.json"))
        if raw is None:
            return []
        with parsing(f"{self.url}/attempts.json is damaged", "`cloudem cluster sweep` ends what it names"):
            found = [
                Attempt(**{**each, "pools": tuple(Pool(*pool) for pool in each["pools"])}) for each in json.loads(raw)
            ]
            for each in found:
                if not all(math.isfinite(number) for number in (each.at, each.first, each.deadline, each.failures)):
                    raise ValueError(f"{shown(each.token)} has a number that is none")
            return found

    def write_attempts(self, attempts: Sequence[Attempt]) -> None:
        """Note which nodes were asked for, or are about to be."""
        write_bytes(join(self.url, "attempts.json"), json.dumps([asdict(each) for each in attempts]).encode())

    def notices(self) -> dict[str, float]:
        """Return which nodes are about to be taken, and when, unix seconds."""
        found, latest = {}, time.time() + LATEST_NOTICE_S
        for name in contents(join(self.url, "notices")):
            with contextlib.suppress(ValueError, TypeError, KeyError, OverflowError, RecursionError):
                taken = float(json.loads(read_bytes(join(self.url, "notices", name)) or b"")["taken"])
                if 0 <= taken <= latest:  # who is always about to be taken would never be ended
                    found[name.removesuffix(".json")] = taken
        return found

    def claim_message(self, key: str) -> bool:
        """Note that a webhook is told something; return whether nobody has told it, or was about to, before."""
        name = re.sub(r"[^A-Za-z0-9.-]", "-", key)
        return self._put_once(f"notified/{name}.json", json.dumps({"at": time.time()}))

    def append(self, *entries: Entry) -> None:
        """Add to the ledger; what is there is never changed."""
        for entry in entries:
            line = json.dumps(entry.as_json())
            while not self._put_once(f"ledger/{self._next:08d}.json", line):
                self._next += 1
            self._next += 1

    def ledger(self) -> list[Entry]:
        """Return the ledger as far as it is there; `read_ledger` says what is not."""
        return self.read_ledger()[0]

    def read_ledger(self) -> tuple[list[Entry], list[int]]:
        """Return the entries of the ledger, and the numbers of those that are missing or empty.

        Entries are numbered one after the other, so that a hole shows; whether the last are missing does not.

        Raises
        ------
        FormatError
            An entry cannot be read.
        """
        entries = {}
        names = [name for name in contents(join(self.url, "ledger")) if re.fullmatch(r"\d{1,12}\.json", name)]
        for name in names:
            if raw := read_bytes(join(self.url, "ledger", name)):
                with parsing(f"{self.url}/ledger/{name} is damaged", "see docs/money.md for what it should say"):
                    entries[int(name[:-5])] = Entry.from_json(json.loads(raw))
        numbers = [int(name[:-5]) for name in names]
        last = max(numbers, default=-1)
        if last >= MOST_ENTRIES:
            raise FormatError(f"{self.url}/ledger has an entry {last}, which nobody wrote; remove it")
        self._next = max(self._next, last + 1)
        return [entries[n] for n in sorted(entries)], [n for n in range(last + 1) if n not in entries]

    def finished(self) -> Mapping[int, dict[str, Any]]:
        """Return the steps that are finished and what is known of them."""
        names = [name for name in contents(join(self.url, "steps")) if re.fullmatch(r"\d+\.json", name)]
        found = {}
        for name in names:
            raw = read_bytes(join(self.url, "steps", name))
            with parsing(f"{self.url}/steps/{name} is damaged", "delete it to run the step again"):
                found[int(name[:-5])] = dict(json.loads(raw or b"{}"))
        return found

    def finish(self, step: int, result: Mapping[str, Any]) -> None:
        """Note that a step is finished."""
        write_bytes(join(self.url, f"steps/{step}.json"), json.dumps(dict(result)).encode())

    def _put_once(self, key: str, text: str) -> bool:
        folder, _, name = join(self.url, key).rpartition("/")
        with storage_errors(self.url):
            return put_if_absent(object_store(folder, create=True), name, text.encode()) is not None

    def _read(self, name: str, kind: type[Any]) -> Any:
        raw = read_bytes(join(self.url, name))
        return None if not raw else _parsed(self.url, name, raw, kind)


def wishes_of(**values: Any) -> Wishes:
    """Return what is wanted.

    Raises
    ------
    ParameterError
        A limit is not allowed.
    """
    try:
        return Wishes(**values)
    except ValidationError as error:
        raise ParameterError(f"the limits of a run: {_first(error)}; got {shown(error.errors()[0]['input'])}") from None


def runs_of(project: str) -> list[str]:
    """Return the names of a project's runs, the oldest first."""
    names = [name for name in contents(join(project, RUNS)) if NAME.fullmatch(name)]
    return sorted(names, key=lambda name: name.rsplit("-", 2)[1:])


def new_name(given: str | None, now: float) -> str:
    """Return the name of a new run: what was given, with the date and time."""
    stem = re.sub(r"[^a-z0-9]+", "-", (given or "run").lower()).strip("-")[:40] or "run"
    return f"{stem}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime(now))}"


def _parsed(url: str, name: str, raw: bytes, kind: type[Any]) -> Any:
    if len(raw) > LARGEST:
        raise FormatError(f"{url}/{name} has {len(raw):,} bytes, at most {LARGEST:,} are read")
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        raise FormatError(f"{url}/{name} cannot be read: {_first(error)}") from None


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))} {first['msg']}"
