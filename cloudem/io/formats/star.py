"""STAR files in the dialect that RELION reads and writes: one row of a loop on one line.

What the labels mean is in `cloudem.io.formats.relion`. A general CIF parser is of no use here: RELION writes values
that CIF forbids (``$x``, letters beyond ASCII), and blocks without a name.
"""

import os
import re
from collections.abc import Iterator, Mapping
from io import TextIOWrapper
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from cloudem.errors import FormatError
from cloudem.io.storage.files import new_file, open_table
from cloudem.model.particles import TEXT

StarTable = dict[str, NDArray[Any]]
"""Label without its underscore to the column's values as text, shape ``(rows,)``."""

_TOKEN = re.compile(r"""\"([^\"]*)\"(?=\s|$)|'([^']*)'(?=\s|$)|(\S+)""")
_BARE = re.compile(r"[^\s\"'#_][^\s]*")
_ROWS_AT_ONCE = 20_000


def read_star(path: str | os.PathLike[str]) -> dict[str, StarTable]:
    """Read every block of a STAR file.

    Parameters
    ----------
    path
        The file or its URL on S3.

    Returns
    -------
    blocks
        Name of the block without ``data_`` to its table. A block of label-value pairs is a table of one row.

    Raises
    ------
    MissingInputError
        No such file.
    FormatError
        Not a STAR file, a row with too few or too many values, a label or a block given twice, or two loops in a block:
        nothing that the file lists is passed over.
    """
    name = os.fspath(path)
    with open_table(path) as file:
        if b"\0" in file.read(4096):
            raise FormatError(f"{name} is not text, so not a STAR file; give the .star file, not the stack of images")
        file.seek(0)
        try:
            with TextIOWrapper(file, encoding="utf-8") as text:
                blocks = _Reader(name).read(text)
        except UnicodeDecodeError as error:
            raise FormatError(f"{name} is not UTF-8 text, so not a STAR file: {error.reason}") from error
    if not blocks:
        raise FormatError(f"{name} is not a STAR file: no line begins with data_")
    return blocks


def write_star(path: str | os.PathLike[str], blocks: Mapping[str, Mapping[str, NDArray[Any]]]) -> None:
    """Write blocks of loops; the file appears when it is whole.

    Parameters
    ----------
    path
        The file or its URL on S3; replaced if it is there.
    blocks
        Name of the block to label to values as text, all of one length.

    Raises
    ------
    StorageError
        Disk full, no permission.
    """
    with new_file(path) as file:
        text = TextIOWrapper(file, encoding="utf-8")
        try:
            for name, table in blocks.items():
                _write_block(text, name, table)
        finally:
            text.detach()


def quoted(value: str) -> str:
    """Return a value as it may stand in a row: in quotes only where it must, since old readers know none."""
    if _BARE.fullmatch(value) and not value.startswith(("data_", "loop_")):
        return value
    clean = " ".join(value.split("\n"))
    return f"'{clean}'" if '"' in clean else f'"{clean}"'


class _Reader:
    """Collects tables line by line; rows become arrays early, because lists of strings take ten times the memory."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._blocks: dict[str, StarTable] = {}
        self._block: str | None = None
        self._labels: dict[str, None] = {}  # in order; a list would be searched for each of them
        self._in_loop = False
        self._rows: list[list[str]] = []
        self._done: list[list[NDArray[Any]]] = []
        self._pairs: StarTable = {}

    def read(self, file: TextIO) -> dict[str, StarTable]:
        """Read the whole file."""
        for number, line in enumerate(file, start=1):
            text = line.strip()
            if text and not text.startswith("#"):
                self._take(text, number)
        self._end_block()
        return self._blocks

    def _take(self, text: str, number: int) -> None:
        if self._begins_block(text):
            self._end_block()
            self._block = text[5:]
            if self._block in self._blocks:
                # RELION reads the first and says nothing of the other: files that were joined lose half their particles
                raise FormatError(
                    f"{self._path} line {number}: the block {text} is there twice; files that were joined have to be "
                    "joined row by row (relion_star_handler --combine), or imported one by one"
                )
            return
        if self._block is None:
            raise FormatError(f"{self._path} is not a STAR file: line {number} comes before any data_ line")
        if text.split("#")[0].split() == ["loop_"]:
            if self._labels or self._pairs:
                raise FormatError(
                    f"{self._path} line {number}: a second table in the block data_{self._block}, of which only one "
                    "would be read; give each a block of its own"
                )
            self._in_loop = True
        elif text.startswith("_") and not self._rows and not self._done:
            self._take_label(text, number)
        elif self._in_loop:
            self._take_row(text, number)
        else:
            raise FormatError(f"{self._path} line {number}: a value without a label: {text[:40]!r}")

    def _begins_block(self, text: str) -> bool:
        """Say whether a line begins a block, and is not a row whose first value looks like that."""
        if not text.startswith("data_") or len(text.split()) > 1:
            return False
        a_row = self._in_loop and len(self._labels) == 1 and self._block is not None
        return not (a_row and any(mark in text for mark in "/@."))  # a file, not the name of a block

    def _take_label(self, text: str, number: int) -> None:
        values = _split(text)
        label = values[0][1:]
        if label in self._labels or label in self._pairs:
            raise FormatError(f"{self._path} line {number}: the label _{label[:60]} is there twice")
        if self._in_loop:
            self._labels[label] = None
        elif len(values) > 1:
            self._pairs[label] = np.array([values[1]], dtype=TEXT)
        else:
            raise FormatError(f"{self._path} line {number}: the label _{label[:60]} has no value")

    def _take_row(self, text: str, number: int) -> None:
        values = _split(text)
        if len(values) != len(self._labels):
            raise FormatError(
                f"{self._path} line {number}: {len(values)} values came for {len(self._labels)} columns; "
                "the file is damaged or was cut off: write it again"
            )
        self._rows.append(values)
        if len(self._rows) >= _ROWS_AT_ONCE:
            self._pack()

    def _pack(self) -> None:
        if self._rows:
            self._done.append([np.array(column, dtype=TEXT) for column in zip(*self._rows, strict=True)])
        self._rows = []

    def _end_loop(self) -> None:
        self._pack()
        if self._labels:
            empty: list[NDArray[Any]] = [np.empty(0, dtype=TEXT)] * len(self._labels)
            columns = [np.concatenate(parts) for parts in zip(*(self._done or [empty]), strict=True)]
            if self._block is not None and self._block not in self._blocks:
                self._blocks[self._block] = dict(zip(self._labels, columns, strict=True))
        self._labels, self._done, self._in_loop = {}, [], False

    def _end_block(self) -> None:
        self._end_loop()
        if self._block is not None and self._block not in self._blocks:
            self._blocks[self._block] = self._pairs
        self._pairs = {}


def _split(text: str) -> list[str]:
    if '"' not in text and "'" not in text:
        return text.split()
    return [double or single or bare for double, single, bare in _TOKEN.findall(text)]


def _write_block(file: TextIO, name: str, table: Mapping[str, NDArray[Any]]) -> None:
    file.write(f"\n# version 30001\n\ndata_{name}\n\nloop_ \n")
    file.writelines(f"_{label} #{number} \n" for number, label in enumerate(table, start=1))
    file.writelines(_lines(list(table.values())))
    file.write(" \n")


def _lines(columns: list[NDArray[Any]]) -> Iterator[str]:
    rows = len(columns[0]) if columns else 0
    for start in range(0, rows, _ROWS_AT_ONCE):
        parts = [[quoted(str(value)) for value in column[start : start + _ROWS_AT_ONCE]] for column in columns]
        yield from (" ".join(row) + " \n" for row in zip(*parts, strict=True))
