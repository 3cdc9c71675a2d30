"""A value that all workers read: made on one, and handed on among them, whole or in pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from cloudem.execution.executor import Pieces, itself
from cloudem.execution.reduction_tree import Subtree, copied_from

FEWEST = 3
"""Workers from which on pieces are worth it: one of two just copies it from the other."""


class Spread:
    """What each worker makes of a shared value, as far as it was asked for.

    Whole copies are made from earlier ones along a binary tree: each link carries two at a time, level by level. Of
    pieces (`cloudem.execution.dask.peer_transfer`) each worker gets one from where the value was made, and all others
    from their owners, so that no link carries more than the value twice, whatever the number of workers.

    Parameters
    ----------
    submit
        ``submit(function, rows of arguments, workers)``: futures.
    build, args, local, pieces
        As for :meth:`cloudem.execution.executor.Executor.spread`.
    """

    def __init__(
        self,
        submit: Callable[[Callable[..., Any], Sequence[Sequence[Any]], Sequence[str]], list[Any]],
        build: Callable[..., Any],
        args: Sequence[Any],
        local: Callable[..., Any],
        pieces: Pieces[Any] | None,
    ) -> None:
        self._submit = submit
        self._build, self._args = build, args
        self._local = local
        self._pieces = pieces
        self._copies: list[Any] = []
        self._cut: dict[str, Any] = {}  # the piece of each worker, in their order
        self._holdings: Any = None
        self._made: dict[str, Any] = {}

    def at(self, worker: str) -> Any:
        """Return the future of what a worker makes of the value."""
        self.prepare([worker])
        return self._made[worker]

    def prepare(self, workers: Iterable[str]) -> None:
        """Have it made on those workers that have none yet."""
        new = [worker for worker in dict.fromkeys(workers) if worker not in self._made]
        if not new:
            return
        if not self._copies:
            first, *new = new
            self._copies = self._submit(self._build, [self._args], [first])
            self._made[first] = self._submit(self._local, [(self._copies[0],)], [first])[0]
            if self._pieces is not None and len(new) + 1 >= FEWEST:
                self._cut_for([first, *new], self._pieces)
        if self._pieces is not None and self._cut:
            self._assemble(new, self._pieces)
        else:
            self._copy(new)

    def _copy(self, new: Sequence[str]) -> None:
        """Have whole copies made, a level of the tree at a time."""
        before = len(self._copies)
        while len(self._copies) < before + len(new):
            known = len(self._copies)
            places = new[known - before : 2 * known + 1 - before]  # their sources are there
            rows = [(self._copies[copied_from(known + number)],) for number in range(len(places))]
            self._copies += self._submit(itself, rows, places)
        made = self._submit(self._local, [(copy,) for copy in self._copies[before:]], new)
        self._made.update(zip(new, made, strict=True))

    def _cut_for(self, workers: Sequence[str], pieces: Pieces[Any]) -> None:
        """Have each worker get a piece of the value, which the first has."""
        from cloudem.execution.dask.peer_transfer import HeldPart, Holdings, one_of

        (whole,), (first, *others), count = self._copies, workers, len(workers)
        here = Holdings([HeldPart(Subtree(0, 0), whole.key, first)])
        (held,) = self._submit(_once_made, [(here, whole)], [first])
        rows = [(held, pieces.cut, number, count) for number in range(1, count)]
        cut = self._submit(pieces.cut, [(whole, 0, count)], [first]) + self._submit(one_of, rows, others)
        self._cut = dict(zip(workers, cut, strict=True))
        parts = [HeldPart(Subtree(0, n), piece.key, worker) for n, (worker, piece) in enumerate(self._cut.items())]
        (self._holdings,) = self._submit(_once_made, [(Holdings(parts), whole)], [first])

    def _assemble(self, new: Sequence[str], pieces: Pieces[Any]) -> None:
        """Have workers get all pieces from each other, each once it has its own; later ones have none."""
        from cloudem.execution.dask.peer_transfer import value_of_pieces

        numbers = {worker: number for number, worker in enumerate(self._cut)}
        common = self._holdings, pieces.join, self._local
        rows = [(*common, numbers.get(worker, 0), self._cut.get(worker)) for worker in new]
        self._made.update(zip(new, self._submit(value_of_pieces, rows, new), strict=True))


def _once_made(result: Any, _value: Any) -> Any:
    return result
