"""The command line. What it is made of is imported when it is called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit."""
    from cloudem.cli import command_line

    command_line.main(arguments)
