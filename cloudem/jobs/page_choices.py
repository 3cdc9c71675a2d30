"""What can be chosen on a page of results: parameters of the job that such a choice becomes, as it declares them."""

from __future__ import annotations

from typing import NamedTuple


class PageChoice(NamedTuple):
    """What a job lets people choose on the page of the results that it reads.

    Attributes
    ----------
    source
        Parameter that names these results.
    parameters
        That say what is chosen; a choice takes the place of all of them.
    lists
        Those of them that are files with a name on each line.
    name
        What the step is called, with a number behind it where there is one already.
    """

    source: str
    parameters: tuple[str, ...]
    lists: tuple[str, ...] = ()
    name: str = "good"
