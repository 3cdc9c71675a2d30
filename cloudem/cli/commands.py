"""Commands other than jobs: a declaration of what each takes, from which its options and its help follow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from cloudem.cli.declare import Command, normalise, options_of


class DeclaredCommand(click.Command):
    """The command that runs one declaration."""

    def __init__(self, name: str, declaration: type[Command], *, hidden: bool = False) -> None:
        self.declaration = declaration
        super().__init__(
            name,
            params=options_of(declaration),
            context_settings={"token_normalize_func": normalise},
            callback=self._call,
            help=declaration.summary,
            hidden=hidden,
        )

    def _call(self, **given: Any) -> None:
        self.declaration(**{name: value for name, value in given.items() if value not in (None, ())}).run()

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Print every parameter with unit, default and meaning, and the examples."""
        from cloudem.cli.help import print_command_help

        print_command_help(self.declaration)


class DeclaredGroup(click.Group):
    """Commands of one name."""

    def __init__(self, name: str, summary: str, commands: Mapping[str, type[Command]]) -> None:
        super().__init__(name, help=summary, no_args_is_help=True)
        self._summary, self._declared = summary, commands
        for each, declaration in commands.items():
            self.add_command(DeclaredCommand(each, declaration))

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Print the names and summaries of the group's commands."""
        from cloudem.cli.help import print_group_help

        summaries = {name: command.summary for name, command in self._declared.items()}
        print_group_help(str(self.name), self._summary, summaries)
