"""The micrographs that a running job has done so far: what its parts hold, beside what it said when it ended last."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudem.errors import CloudemError
from cloudem.io.micrographs.tables import read_micrograph_table
from cloudem.io.storage.groups import read_group
from cloudem.io.storage.location import contents, join
from cloudem.jobs.growing import COUNT, EACH, KEY
from cloudem.jobs.mapping import PARTS
from cloudem.model.micrographs import COLUMNS, Micrographs
from cloudem.model.table import TEXT, joined_tables

PICKED = f"{EACH}score"
"""Array of parts that a job which picks particles leaves."""

Part = Mapping[str, NDArray[Any]]


def parts_done(url: str) -> tuple[str, ...]:
    """Return the names of what the tasks of a running job have left."""
    with suppress(CloudemError):
        return tuple(sorted(name for name in contents(join(url, PARTS)) if not name.startswith(("zarr", "."))))
    return ()


class PartsRead:
    """Parts of running jobs, each read once: what lies under its name never changes.

    Attributes
    ----------
    url
        Of the results; those of another job take the place of these.
    """

    def __init__(self) -> None:
        self.url = ""
        self._read: dict[str, Part] = {}

    def columns_of(self, url: str) -> dict[str, NDArray[Any]]:
        """Return the columns of micrographs that the parts of a job hold, with their names; empty where there are none.

        Parameters
        ----------
        url
            Of the results.
        """
        names = parts_done(url)
        if url != self.url:
            self.url, self._read = url, {}
        self._read = {name: part for name, part in self._read.items() if name in names}
        for name in names:
            if name not in self._read:
                with suppress(CloudemError):  # it is just being written, or taken away
                    self._read[name] = columns_of_part(read_group(url, f"{PARTS}/{name}")[0])
        parts = [part for part in self._read.values() if part]
        if not parts:
            return {}
        shared = set.intersection(*(set(part) for part in parts))
        return {name: np.concatenate([part[name] for part in parts]) for name in sorted(shared)}


def columns_of_part(part: Part) -> dict[str, NDArray[Any]]:
    """Return what a part says of micrographs, by column; empty where its items are none."""
    keys = part[KEY].tolist() if KEY in part else []
    names = [key.rpartition(" ")[0] for key in keys]
    if not names or not all(names):
        return {}
    found: dict[str, NDArray[Any]] = {
        name: values
        for name, values in part.items()
        if name in COLUMNS and values.dtype == Micrographs.dtype_of(name) and values.shape == (len(names),)
    }
    if PICKED in part and COUNT in part:
        found["pick_count"] = part[COUNT].astype(np.int32)
    return {**found, "micrograph": np.array(names, TEXT)}


def table_so_far(url: str, source: str | None, found: Mapping[str, NDArray[Any]]) -> Micrographs | None:
    """Return the table of the micrographs that are done; None where none is.

    Parameters
    ----------
    url
        Of the results, whose table of before is taken first.
    source
        URL of the results that the micrographs come from, whose columns go on; None where that are movies.
    found
        Of the parts.
    """
    before: Micrographs | None = None
    with suppress(CloudemError):
        before = read_micrograph_table(url)
    if not found:
        return before
    given: Micrographs | None = None
    if source is not None:
        with suppress(CloudemError):
            given = read_micrograph_table(source)
    new = _joined(given, found)
    if before is None or not len(new):
        return before if before is not None else new
    known = set(before["micrograph"].tolist())
    fresh = new.take(np.array([name not in known for name in new["micrograph"].tolist()], bool))
    own = {name: values for name, values in before.columns.items() if name != "optics_group"}
    return joined_tables(Micrographs((), own), fresh)


def _joined(given: Micrographs | None, found: Mapping[str, NDArray[Any]]) -> Micrographs:
    """Return the rows of a table that were done, with what was found of them."""
    if given is None:
        return Micrographs((), dict(found))
    row_of = {name: row for row, name in enumerate(given["micrograph"].tolist())}
    names = found["micrograph"].tolist()
    there = np.array([name in row_of for name in names], bool)
    rows = np.array([row_of[name] for name in names if name in row_of], np.int64)
    taken = given.take(rows)
    own = {name: values for name, values in taken.columns.items() if name != "optics_group"}
    return Micrographs((), {**own, **{name: values[there] for name, values in found.items()}})
