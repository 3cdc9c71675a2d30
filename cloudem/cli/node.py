"""``cloudem node``: what runs on rented machines."""

from __future__ import annotations

import sys
from typing import ClassVar

from cloudem.cli.declare import Command


class NodeAgent(Command):
    """What runs on nodes."""

    name: ClassVar[str] = "node"
    summary: ClassVar[str] = "Run as a node of a cluster; started by the machine image, not by users."
    examples: ClassVar[tuple[str, ...]] = ("cloudem node",)

    def run(self) -> None:
        """Run until the machine is to end."""
        from cloudem.runs.agent import run_agent

        sys.exit(run_agent())
