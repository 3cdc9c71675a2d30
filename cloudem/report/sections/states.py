"""Pages."""
from __future__ import annotations
from cloudem.report.blocks import Drawn
from cloudem.report.content import ReportContent
def summary(content: ReportContent) -> Drawn | None:
    return None
def maps(content: ReportContent) -> Drawn | None:
    return None
def curves(content: ReportContent) -> Drawn | None:
    return None
