"""The lease of a store: one client at a time writes into it.

The object ``<url>/lease.json`` says who writes. It is made only where there is none, and from then on only replaced by
whoever knows what it holds (compare and swap), so of any number of clients one succeeds. Its holder renews it, that is
replaces it by one with a higher count. Whoever wants it watches: a lease that changes is in use; one that did not
change for the length that it states is taken over; one whose process, on this very machine, has ended is taken over at
once. Each judges by its own clock how long nothing changed, so no two clocks need agree. A holder that was suspended
or cut off for longer cannot know what happened meanwhile; so `Lease.check`, which comes before every commit, renews,
and fails where somebody else has the lease.
"""

from __future__ import annotations

import getpass
import json
import logging
import os
import platform
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from cloudem.errors import CloudemError, LeaseHeldError, LeaseLostError, OutputExistsError
from cloudem.io.storage.compare_and_swap import Slot, slot
from cloudem.io.storage.location import LEASE_FILE, folder_of, is_fsspec, is_remote, storage_errors

LENGTH_S = 60.0
"""A lease that was not renewed for so long may be taken over."""

_RENEWALS = 6
"""Renewals in one length."""

_MARGIN = 1 / 6
"""Part of the length that a holder leaves unused: for clocks of different speed and for requests on their way."""

_LOOKS = 30
"""Looks at a lease of others in one length."""

_LONGEST_S = 3600.0


class Look(NamedTuple):
    """One look at the lease by somebody who wants it.

    Attributes
    ----------
    asked, answered
        When, in seconds of the looker's clock.
    tag
        Tells what it held from anything it held before; None where there is no lease.
    length
        That it states, seconds.
    dead
        Its process is known to have ended.
    """

    asked: float
    answered: float
    tag: str | None
    length: float = LENGTH_S
    dead: bool = False


class Take(NamedTuple):
    """Replace what was seen last by a lease of one's own."""


class Wait(NamedTuple):
    """Look again, for so many seconds."""

    seconds: float


class Refuse(NamedTuple):
    """Leave it: it is in use."""


def observe(looks: Sequence[Look]) -> Take | Wait | Refuse:
    """Decide what to do about a lease, from all looks at it so far."""
    last = looks[-1]
    if last.tag is None or last.dead:
        return Take()
    if any(look.tag != last.tag for look in looks):
        return Refuse()
    # It was written before the first answer came, so this counts too little, never too much.
    left = looks[0].answered + last.length - last.asked
    return Wait(left) if left > 0 else Take()


def still_held(renewed: float, now: float, length: float) -> bool:
    """Return whether nobody can have taken over a lease whose last renewal was sent out at `renewed`."""
    return now - renewed < length * (1 - _MARGIN)


@dataclass(frozen=True)
class Holder:
    """What the lease says.

    Attributes
    ----------
    holder
        Random, different for each time that a lease is taken.
    host, pid, user, since
        For people.
    length_s
        Seconds without renewal after which it may be taken over.
    machine, started
        With the pid, what tells whether the process still runs: machine, boot and namespace of pids, and when the
        process began, in ticks since the boot. Empty where that cannot be known.
    renewals
        How often it was renewed.
    """

    holder: str
    host: str
    pid: int
    user: str
    since: str
    length_s: float
    machine: str
    started: int
    renewals: int = 0

    @classmethod
    def me(cls, length: float) -> Holder:
        """Return what this process writes."""
        pid = os.getpid()
        since = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(secrets.token_hex(8), platform.node(), pid, user(), since, length, _machine(), _started(pid) or 0)

    @classmethod
    def parse(cls, raw: bytes) -> Holder:
        """Return what a lease says; one that cannot be read, half written, is somebody's whom nothing is known of."""
        try:
            given = json.loads(raw)
            found = cls(**{field.name: given[field.name] for field in fields(cls)})
            length = max(0.0, min(_LONGEST_S, float(found.length_s)))  # in this order, NaN is the longest
            names = {name: _line(getattr(found, name)) for name in ("holder", "host", "user", "since", "machine")}
            pid, started = int(found.pid), int(found.started)
            if not 0 < pid < 1 << 31:
                raise ValueError(f"no process has the number {pid}")
            return replace(found, length_s=length, pid=pid, started=started, renewals=int(found.renewals), **names)
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            return cls("", "an unknown host", 0, "unknown", "an unknown time", LENGTH_S, "", 0)

    def encode(self) -> bytes:
        """Return what the lease holds."""
        return json.dumps(asdict(self), indent=2).encode()

    @property
    def dead(self) -> bool:
        """Whether its process is known to have ended."""
        if not (self.machine and self.started) or self.machine != _machine():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # somebody else's
            pass
        return _started(self.pid) not in (self.started, None)

    def __str__(self) -> str:
        """Return who it is."""
        return f"process {self.pid} of {self.user} on {self.host}, since {self.since}"


class Lease:
    """A lease that this process has taken; made by `hold`."""

    def __init__(self, slot: Slot, me: Holder, tag: str, renewed: float, log: logging.Logger) -> None:
        self._slot = slot
        self._me = me
        self._tag = tag
        self._renewed = renewed
        self._log = log
        self._lost = ""
        self._renewing = threading.Lock()  # one request at a time, since each builds on the last; nothing else under it
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="cloudem-lease", daemon=True)

    def start(self) -> None:
        """Renew from now on."""
        self._thread.start()

    @property
    def lost(self) -> bool:
        """Whether somebody else is known to have it; unlike `check` this asks nobody."""
        return bool(self._lost)

    def check(self) -> None:
        """Make sure that the lease is ours, by renewing it; keep trying for as long as nobody can have taken it over.

        Raises
        ------
        LeaseLostError
            Somebody else has it, or it could not be renewed for so long that somebody else may.
        """
        while not self._lost:
            error = self._try()
            if error is None:
                break
            silent = _now() - self._renewed
            if still_held(self._renewed, _now(), self._me.length_s):
                time.sleep(self._me.length_s / _LOOKS)
            else:
                self._lost = f"could not be renewed for {silent:.0f} s ({error})"
        if self._lost:
            raise LeaseLostError(
                f"stopped, and nothing more was written: the lease of {self._slot.url} {self._lost}; run the same "
                "command again when nobody else writes there"
            )

    def release(self) -> None:
        """Stop renewing, and delete the lease if it is still ours."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        try:
            if not self._lost:
                self._renew()  # nobody takes it over before it is deleted
            if not self._lost:
                with storage_errors(self._slot.url):
                    self._slot.delete(self._tag)
        except CloudemError as error:
            self._log.debug("the lease of %s could not be deleted, it will expire: %s", self._slot.url, error)

    def _keep(self) -> None:
        pause = self._me.length_s / _RENEWALS
        while not self._over.wait(pause):
            error = self._try()
            if error is not None:  # said when nothing is held: whoever keeps the log may ask for the lease
                self._log.debug("the lease of %s was not renewed: %s", self._slot.url, error)
            if self._lost:
                return

    def _try(self) -> CloudemError | None:
        """Renew unless it is lost; return why that did not work."""
        with self._renewing:
            try:
                if not self._lost:
                    self._renew()
            except CloudemError as error:
                return error
        return None

    def _renew(self) -> None:
        """Replace the lease by one with a higher count, or note that somebody else did that."""
        for _ in range(3):
            asked, following = _now(), replace(self._me, renewals=self._me.renewals + 1)
            with storage_errors(self._slot.url):
                tag = self._slot.swap(self._tag, following.encode())
                found = None if tag else self._slot.read()
            if tag is not None:
                self._tag, self._me, self._renewed = tag, following, asked
                return
            if found is None:
                self._lost = "is gone: another client was there meanwhile, or it was deleted"
                return
            other = Holder.parse(found[0])
            if other.holder != self._me.holder:
                self._lost = f"was taken over by {other}"
                return
            # Ours after all: an earlier renewal arrived, but its answer did not.
            self._tag, self._me = found[1], other
        self._lost = "does not stay as it was written"


@contextmanager
def hold(url: str | os.PathLike[str], *, log: logging.Logger, length: float = LENGTH_S) -> Iterator[Lease]:
    """Hold the lease of a store while the block runs.

    Parameters
    ----------
    url
        Folder or object storage; the folder is made, and removed in the end if it is empty.
    log
        Is told of waiting.
    length
        Seconds without renewal after which others may take it over; it is renewed six times in that.

    Raises
    ------
    OutputExistsError
        A file lies there, or where a folder above it has to be.
    LeaseHeldError
        Somebody else is writing there.
    StorageError
        The lease can be neither read nor written.
    """
    if not is_fsspec(url) and not is_remote(url):
        folder = folder_of(url).absolute()
        if files := [path for path in (folder, *folder.parents) if path.is_file()]:
            raise OutputExistsError(f"{files[0]} is a file, where a folder is needed; choose another --out")
    place = slot(os.fspath(url), LEASE_FILE)
    with storage_errors(url):
        lease = _take(place, log, length)
    try:
        lease.start()
        yield lease
    finally:
        lease.release()


def _take(place: Slot, log: logging.Logger, length: float) -> Lease:
    """Return the lease, once it can be had."""
    me, first_tried, waiting = Holder.me(length), 0.0, False
    looks: list[Look] = []
    while True:
        asked = _now()
        found = place.read()
        answered = _now()
        other, tag = (None, None) if found is None else (Holder.parse(found[0]), found[1])
        if other is not None and tag is not None and other.holder == me.holder:
            return Lease(place, me, tag, first_tried, log)  # it was taken, but the answer got lost
        state = (other.length_s, other.dead) if other is not None else ()
        looks.append(Look(asked, answered, tag, *state))
        decision = observe(looks)
        if isinstance(decision, Refuse):
            raise LeaseHeldError(
                f"{place.url} is in use: {other}; wait for it to end, stop it, or choose another --out"
            )
        if isinstance(decision, Take):
            tried = _now()
            first_tried = first_tried or tried
            taken = place.swap(tag, me.encode())
            if taken is None:
                continue  # somebody was faster, which the next look will show
            if place.swap(None, me.encode()) is not None:
                log.warning("%s writes without looking: two clients would not be kept apart at once", place.url)
            if other is not None:
                log.debug("took over the lease of %s from %s", place.url, other)
            return Lease(place, me, taken, tried, log)
        if not waiting:
            log.info(
                "%s is held by %s; taking over in %.0f s unless it turns out to be alive",
                place.url, other, decision.seconds,
            )  # fmt: skip
            waiting = True
        time.sleep(min(decision.seconds, looks[-1].length / _LOOKS))


def _now() -> float:
    """Return seconds on a clock that goes on while the machine is suspended, where there is one."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def _machine() -> str:
    """Return what tells the machine since its boot, and the namespace that pids belong to, from others."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{platform.node()} {boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _started(pid: int) -> int | None:
    """Return when a process began, in ticks since the boot; 0 if it has ended, None if that cannot be known."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    state, *rest = stat.rpartition(")")[2].split()
    return 0 if state in "ZX" else int(rest[18])


def _line(text: object) -> str:
    """Return text that somebody else wrote as it may be shown: one line, nothing that a terminal acts on."""
    if not isinstance(text, str):
        raise TypeError(f"{text!r} is no text")
    return "".join(c for c in text if c.isprintable())[:200]


def user() -> str:
    """Return the name of whoever runs this process."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # containers run as users that have no name
        return f"user {os.getuid()}"
