"""What went over the network."""

from __future__ import annotations

from cloudem.report.blocks import Block, Drawn, Figure, Figures, Words
from cloudem.report.content import ReportContent
from cloudem.report.sections.network import network_figure, network_table

NOTE = (
    "What all processes received from object storage and from each other, by what it was for, and what they sent; "
    "without the writing of these results and of this report."
)


def transfers(content: ReportContent) -> Drawn | None:
    """Show bytes by iteration and purpose."""
    if not content.transfers:
        return None
    iterations = [each for each in content.transfers if each.label.isdecimal()]
    table = network_table(content.transfers)
    body: Block = table
    if len(iterations) > 1:
        figure = Figure(320, network_figure(iterations), "Bytes received in each iteration.")
        body = Figures([figure, Figure(650, table)])
    return Drawn("Network", [body, Words(NOTE)])
