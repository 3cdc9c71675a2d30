"""A toy job in one file that goes in iterations. Nothing else in cloudem knows of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from cloudem.cloud.planning.work import Size, Stage, Work
from cloudem.jobs.base import Context
from cloudem.jobs.iterative import IterationResult, Iterations, IterativeJob, PlainState, clear
from cloudem.jobs.parameters import parameter
from cloudem.jobs.provenance import job_record
from cloudem.jobs.report import run_attributes
from cloudem.model.columns import ITERATION, SECONDS, Column


def half(number: float, pause_s: float) -> float:
    time.sleep(pause_s)
    return number / 2


class Halving(IterativeJob):
    """Declaration of ``cloudem halving``."""

    name: ClassVar[str] = "halving"
    summary: ClassVar[str] = "Halve numbers until they are small."
    examples: ClassVar[tuple[str, ...]] = ("cloudem halving --largest 100 --out halves",)
    columns: ClassVar[tuple[Column, ...]] = (ITERATION, Column("mean_A", "mean", "Å", ".3f"), SECONDS)

    largest: float = parameter(100.0, meaning="largest of the numbers", gt=0)
    numbers: int = parameter(8, meaning="how many there are", ge=1)
    until: float = parameter(1.0, meaning="mean at which it has converged", gt=0)
    pause_s: float = parameter(0.0, meaning="pause of each task", ge=0)

    def work(self, sizes: Mapping[str, Size]) -> Work:
        each = Stage("halve", self.numbers, "numbers", 1e-3 + self.pause_s, parallel=True, passes=7)
        return Work((each,), base_bytes=100 << 20, stored_bytes=8 * self.numbers)

    def iterations(self, context: Context, *, resumes: bool) -> Iterations[PlainState]:
        return Run(self, context)


class Run(Iterations[PlainState]):
    """What it does."""

    def __init__(self, job: Halving, context: Context) -> None:
        super().__init__(context)
        self.job = job

    def begin(self) -> PlainState:
        clear(self.context, self.job)
        self.context.write("", {}, {"kind": "result", **job_record(self.job)})
        self.commit(PlainState(), {"numbers": np.linspace(1, self.job.largest, self.job.numbers)})
        return PlainState()

    def state(self, record: Mapping[str, Any]) -> PlainState:
        return PlainState(**record)

    def iterate(self, state: PlainState) -> IterationResult[PlainState]:
        from functools import partial

        before = self.checkpoint()[0]["numbers"].tolist()
        with self.context.progress.stage("halve", len(before), "numbers") as stage:
            done = self.context.executor.map(
                partial(half, pause_s=self.job.pause_s), before, on_done=lambda _: stage.advance()
            )
            numbers = np.array(list(done))
        mean = float(numbers.mean())
        after = state.following(converged=mean < self.job.until, most=self.job.max_iterations)
        onward = PlainState(state.iteration + 1)
        row = {"iteration": state.iteration, "mean_A": mean}
        return IterationResult(
            after, row, {"numbers": numbers}, onward=onward, curves={"numbers": numbers}, result=numbers
        )

    def finish(self, last: IterationResult[PlainState], wall_s: float) -> None:
        kept = run_attributes(self.context.progress, self.context.executor.traffic())
        self.context.write("result", {"numbers": last.result}, {"wall_s": wall_s, **kept})
