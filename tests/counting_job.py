"""A job that does nothing but count, and the command line with it alone, for tests in processes of their own."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

from cloudem.cli import main
from cloudem.cloud.planning.work import Size, Stage, Work
from cloudem.errors import InconsistentDataError, ParameterError
from cloudem.jobs import base
from cloudem.jobs.base import Context, Job
from cloudem.jobs.parameters import parameter
from cloudem.model.columns import ITERATION, Column


def wait(item: int, seconds: float) -> int:
    time.sleep(seconds)
    return item


class Count(Job):
    """Counts."""

    name: ClassVar[str] = "count"
    summary: ClassVar[str] = "Count to a number."
    examples: ClassVar[tuple[str, ...]] = ("cloudem count 3 --edge-A 2 --out result",)

    columns: ClassVar[tuple[Column, ...]] = (ITERATION, Column("resolution_A", "resolution", "Å", ".2f"))

    numbers: tuple[str, ...] = parameter(meaning="numbers to count to", positional=True)
    edge_A: float = parameter(10.0, meaning="width of the edge", gt=0, le=50)
    window_px: tuple[int, int] = parameter((1, 2), meaning="first and last pixel")
    kind: Literal["up", "down"] = parameter("up", meaning="direction")
    limit: int | None = parameter(None, meaning="where to stop", ge=1)
    loud: bool = parameter(True, meaning="say it")
    task_s: float = parameter(0.0, meaning="duration of a task", ge=0)
    fail: str = parameter("", meaning="how to fail")
    memory_GiB: float = parameter(0.001, meaning="memory to ask for", ge=0)

    def model_post_init(self, _: object) -> None:
        if self.kind == "down" and self.limit is None:
            raise ParameterError("count --kind down needs --limit: where to stop")

    def work(self, sizes: Mapping[str, Size]) -> Work:
        stage = Stage("counting", len(self.numbers), "numbers", cpu_s=25, parallel=True, task_bytes=2**20)
        needed = int(self.memory_GiB * 2**30)
        return Work((stage,), needed, stored_bytes=2**20, notes=(f"{len(self.numbers)} numbers",))

    def run(self, context: Context) -> None:
        if self.fail == "early":
            raise InconsistentDataError("stack has 3 images,\n  table has 4; export them again")
        folder = Path(context.url)
        folder.mkdir(exist_ok=True)
        if self.fail == "oddly":
            (folder / "part").touch()
            raise KeyError("foo")
        if self.fail == "interrupted":
            exec("raise KeyboardInterrupt")  # as while a named tuple is made
        if self.fail == "swallowed":  # as in a callback of a library, which then goes on
            with contextlib.suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            return
        if self.fail == "disguised":  # as by a library that was interrupted while it was imported
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt:
                raise ImportError("numpy is not usable") from None
        if self.fail == "unraisable":  # as in a callback of compiled code

            class Callback:
                def __del__(self) -> None:
                    signal.raise_signal(signal.SIGINT)

            Callback()
            return
        if self.fail == "disk":
            raise OSError(28, "No space left on device", "result/map")
        numbers = [int(number) for number in self.numbers]
        seconds = context.executor.share(float, self.task_s)
        with context.progress.stage("counting", len(numbers), unit="numbers") as stage:
            total = sum(
                context.executor.map(wait, numbers, shared=lambda _: [seconds], on_done=lambda _: stage.advance())
            )
        context.progress.iteration({"iteration": 1, "resolution_A": 9.875, "total": total})
        context.progress.warning("that was all")
        (folder / "total").write_text(str(total))


if __name__ == "__main__":
    base.JOBS.clear()
    base.JOBS["count"] = "tests.counting_job:Count"
    main()
