"""``cloudem prices``: what machines cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import click

from cloudem.cli.declare import Command
from cloudem.jobs.parameters import parameter

if TYPE_CHECKING:
    pass


SUMMARY = "Show or update the prices of machines."


class UpdatePrices(Command):
    """Newer prices."""

    name: ClassVar[str] = "prices update"
    summary: ClassVar[str] = "Fetch current prices, instance types and spot history from AWS; needs credentials."
    examples: ClassVar[tuple[str, ...]] = ("cloudem prices update --region eu-central-1",)

    region: tuple[str, ...] = parameter((), meaning="regions to update; by default, those of the shipped prices")

    def run(self) -> None:
        """Refresh the user's copy."""
        from cloudem.cloud.aws.prices import refresh
        from cloudem.cloud.catalogue import Catalogue

        known = Catalogue.load()
        regions = self.region or tuple(name for name in known.regions() if name != "local")
        click.echo(f"wrote {refresh(regions, sorted(known.types), click.echo)}")


class ShowPrices(Command):
    """Prices as they are known."""

    name: ClassVar[str] = "prices show"
    summary: ClassVar[str] = "Show instance types, their prices, and the dates of the prices."
    examples: ClassVar[tuple[str, ...]] = ("cloudem prices show --region us-east-1 --type g6",)

    region: str | None = parameter(None, meaning="show only this region")
    type: str = parameter("", meaning="show only types that begin with this")

    def run(self) -> None:
        """Print a table."""
        from cloudem.cli.help import console
        from cloudem.cloud.aws.prices import show
        from cloudem.cloud.catalogue import Catalogue

        console().print(show(Catalogue.load(), self.region, self.type))


COMMANDS: dict[str, type[Command]] = {"show": ShowPrices, "update": UpdatePrices}
