"""Commands as declarations: what each takes, from which arguments and options of the command line are derived."""

from __future__ import annotations

from typing import Any, ClassVar, get_args, get_origin

import click

from cloudem.jobs.parameters import Declaration, is_positional, option_of


def options_of(declaration: type[Declaration]) -> list[click.Parameter]:
    """Derive arguments and options from fields; values stay text, the declaration itself reads and checks them."""
    derived: list[click.Parameter] = []
    for name, field in declaration.model_fields.items():
        several, count = _length(field.annotation)
        if is_positional(field):
            derived.append(click.Argument([name], required=False, nargs=-1 if several else count))
        elif field.annotation is bool:
            option = option_of(name)
            derived.append(click.Option([f"{option}/--no-{option[2:]}", name], default=None))
        else:
            derived.append(click.Option([option_of(name), name], multiple=several, nargs=count, default=None))
    return derived


def _length(annotation: Any) -> tuple[bool, int]:
    """Return whether an option may be repeated, and how many values it takes each time."""
    for kind in (annotation, *get_args(annotation)):
        if get_origin(kind) is tuple:
            parts = get_args(kind)
            return (True, 1) if parts[-1] is Ellipsis else (False, len(parts))
    return False, 1


def normalise(token: str) -> str:
    """Return an option as it is compared: in any case, with hyphens or underscores."""
    return token.lower().replace("_", "-")


class Command(Declaration):
    """What one command takes and does."""

    summary: ClassVar[str]
    examples: ClassVar[tuple[str, ...]]

    def run(self) -> None:
        """Do it."""
        raise NotImplementedError(f"{type(self).__name__} declares no run()")
