"""What the addresses about micrographs answer: their table, pictures, details, and what a choice of them becomes."""

from __future__ import annotations

import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any, NamedTuple

from cloudem.errors import CloudemError, ParameterError
from cloudem.io.storage.location import absolute, join, version_of
from cloudem.jobs.select import RANGE
from cloudem.jobs.select_micrographs import LIMITS, SelectMicrographs, judge_micrographs, lists_of, micrograph_entries
from cloudem.runs.project import JobState
from cloudem.serve.choosing import ChosenStep, chosen_step, sorted_from, write_choice
from cloudem.serve.edited_picks import EditedPicks, edited_picks, star_of_picks, write_edited_picks
from cloudem.serve.micrograph_details import details_of, spectrum_of
from cloudem.serve.micrograph_pictures import picture_of, spectrum_picture_of
from cloudem.serve.micrographs import Session, lineage, read_session, shows_micrographs
from cloudem.serve.micrographs_so_far import PartsRead, parts_done

LARGEST_KEPT = 48 << 20
"""Bytes of pictures that are kept in memory."""

MOST_SESSIONS = 4

READING_SHARE = 0.05
"""Of the time, at most, that the table of a running job is read anew."""


class KeptSession(NamedTuple):
    """A session, of which state of the job, and until when (monotonic) none is read while the job runs."""

    said: str
    session: Session | None
    until: float


class MicrographPages:
    """What pages show of micrographs.

    Parameters
    ----------
    project
        Its URL.
    job_of
        Returns how a job of the project stands, by its name in addresses; None where there is none.
    known
        Returns all jobs of the project by name.
    """

    def __init__(
        self, project: str, job_of: Callable[[str], JobState | None], known: Callable[[], Mapping[str, JobState]]
    ) -> None:
        self.writes, self.reading_share = False, READING_SHARE
        self._project, self._job_of, self._known = project, job_of, known
        self._sessions: OrderedDict[str, KeptSession] = OrderedDict()
        self._pictures: OrderedDict[tuple[str, ...], bytes] = OrderedDict()
        self._bytes, self._parts = 0, PartsRead()
        self._lock = threading.Lock()

    # what a page needs to know first

    def version(self, job: JobState) -> str:
        """Return what changes when the micrographs of a job do; empty where it has none."""
        url = self._of(job)
        if job.kind == "extract" or not shows_micrographs(url, running=job.state == "running"):
            return ""
        kept = self._sessions.get(job.path)
        if kept is not None and job.state == "running" and time.monotonic() < kept.until:
            return kept.said
        with suppress(CloudemError):
            return self._said(job)
        return ""

    def source(self, job: JobState) -> str:
        """Return the job whose page shows the micrographs that a job was made of; empty where it shows them itself."""
        if job.kind != "extract":
            return ""
        chain = lineage(job, self._known())
        return chain[1].path if len(chain) > 1 else ""

    # answers

    def table(self, path: str) -> str | None:
        """Return names, numbers and marks of all micrographs of a job as JSON."""
        session = self._session(path)
        return None if session is None else session.as_json()

    def details(self, path: str, name: str) -> str | None:
        """Return what is shown of a single micrograph as JSON."""
        session = self._session(path)
        found = None if session is None else details_of(session, name)
        return None if found is None else json.dumps(found, ensure_ascii=False)

    def picture(self, path: str, kind: str, name: str) -> bytes | None:
        """Return a picture of a micrograph as JPEG; None where there is none."""
        session = self._session(path)
        row = None if session is None else session.row_of.get(name)
        if session is None or row is None:
            return None
        table = session.table
        place = str(table["image"][row]) if "image" in table else ""
        version = str(table["image_version"][row]) if "image_version" in table else ""
        key = (path, kind, name, place, version or session.version)
        with self._lock:
            if key in self._pictures:
                self._pictures.move_to_end(key)
                return self._pictures[key]
        if kind == "spectrum":
            spectrum = spectrum_of(session.places, name)
            found = None if spectrum is None else spectrum_picture_of(spectrum)
        else:
            size = float(table["pixel_size"][row]) if "pixel_size" in table else 0.0
            found = picture_of(place, size, kind, self._project) if place else None
        if found is not None:
            self._keep(key, found)
        return found

    def choice(self, path: str, asked: Mapping[str, str]) -> Mapping[str, Any] | None:
        """Return what limits and lists become: how many stay, the command, the step, and the files."""
        job, session = self._job_of(path), self._session(path)
        return None if job is None or session is None else self._chosen(job, session, asked)[1]

    def write_choice(self, path: str, asked: Mapping[str, str]) -> Mapping[str, Any] | None:
        """Write the workflow file and the lists of such a choice, and return the same."""
        job, session = self._job_of(path), self._session(path)
        if job is None or session is None or not self.writes:
            return None
        chosen, found = self._chosen(job, session, asked)
        write_choice(self._project, chosen)
        return {**found, "written": join(absolute(self._project), chosen.file)}

    def star(self, path: str) -> str | None:
        """Return all picks of a job as a STAR file."""
        session = self._session(path)
        return None if session is None else star_of_picks(session)

    def write_picks(self, path: str, body: bytes) -> Mapping[str, Any] | None:
        """Write the picks of a job with those of some micrographs replaced, and return what uses them."""
        job, session = self._job_of(path), self._session(path)
        if job is None or session is None or not self.writes:
            return None
        edited: EditedPicks = edited_picks(self._project, job.path, session, body)
        write_edited_picks(self._project, edited)
        return asdict(edited) | {"text": "", "star": "", "written": join(absolute(self._project), edited.star_file)}

    # what they are made of

    def _chosen(
        self, job: JobState, session: Session, asked: Mapping[str, str]
    ) -> tuple[ChosenStep, Mapping[str, Any]]:
        if asked.get("version", session.version) != session.version:
            raise ParameterError("the micrographs have changed meanwhile; look again")
        limits = {name: _number(name, asked[name]) for name in LIMITS if name in asked}
        rows = {name: rows_of(asked.get(name, ""), len(session.table)) for name in ("keep", "remove")}
        lists = {name: session.names_of(chosen) for name, chosen in rows.items()}
        listed = lists_of(session.table, set(lists["keep"]), set(lists["remove"]))
        judged = judge_micrographs(micrograph_entries(session.table, limits, listed), limits)
        given: dict[str, Any] = {"micrographs": "/", "out": "/", **limits}
        SelectMicrographs(**given)  # refuses what no job takes
        chosen = chosen_step(
            self._project, sorted_from(job), SelectMicrographs, limits, "these limits and lists", lists
        )
        aside = [row for row, why in enumerate(judged["reason"].tolist()) if why]
        return chosen, {**chosen._asdict(), "stay": len(session.table) - len(aside), "count": len(session.table)}

    def _session(self, path: str) -> Session | None:
        job = self._job_of(path)
        if job is None or not shows_micrographs(self._of(job), running=job.state == "running"):
            return None
        chain = lineage(job, self._known())
        with self._lock:
            kept, now = self._sessions.get(job.path), time.monotonic()
            if kept is not None and job.state == "running" and now < kept.until:
                return kept.session
            said = self._said(job)
            if kept is None or kept.said != said:
                session = read_session(job, chain, self._project, said, self._parts)
                took = time.monotonic() - now
                kept = self._sessions[job.path] = KeptSession(said, session, now + took + took / self.reading_share)
                while len(self._sessions) > MOST_SESSIONS:
                    self._sessions.popitem(last=False)
            self._sessions.move_to_end(job.path)
            return kept.session

    def _said(self, job: JobState) -> str:
        """Return what changes with the micrographs of a job: its results, and while it runs, the number of parts."""
        url = self._of(job)
        parts = f"-{len(parts_done(url))}" if job.state == "running" else ""
        return f"{version_of(url)[:16]}{parts}"

    def _keep(self, key: tuple[str, ...], picture: bytes) -> None:
        with self._lock:
            self._bytes += len(picture) - len(self._pictures.pop(key, b""))
            self._pictures[key] = picture
            while self._bytes > LARGEST_KEPT:
                self._bytes -= len(self._pictures.popitem(last=False)[1])

    def _of(self, job: JobState) -> str:
        return join(self._project, job.path) if job.path else self._project


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ParameterError(f"--{name.replace('_', '-')} needs a number, and not {text[:40]!r}") from None
    if not abs(value) < 1e12:
        raise ParameterError(f"--{name.replace('_', '-')} {text[:40]} is no limit of anything")
    return value


def rows_of(text: str, count: int) -> Sequence[int]:
    """Return the rows of a list such as ``0,3,5-9``.

    Parameters
    ----------
    text
        The list; empty for none.
    count
        Rows that there are.

    Raises
    ------
    ParameterError
        It is none, or names rows that there are not.
    """
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        match = RANGE.fullmatch(part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
        if not 0 <= first <= last < count:
            raise ParameterError(f"{part[:40].strip()!r} is no row of {count:,} micrographs")
        found.update(range(first, last + 1))
    return sorted(found)
