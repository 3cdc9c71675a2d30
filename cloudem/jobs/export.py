"""``cloudem export``: a particle store or the result of a job becomes files for RELION and everyone else."""

from __future__ import annotations

from typing import ClassVar

from cloudem.jobs.base import Context, Job, Place, parameter


class Export(Job):
    """Declaration of ``cloudem export``."""

    name: ClassVar[str] = "export"
    summary: ClassVar[str] = "Export results or a particle store to MRC and STAR files that RELION can read."
    examples: ClassVar[tuple[str, ...]] = (
        "cloudem export refine --out files",
        "cloudem export particles.zarr --out files",
        "cloudem export s3://bucket/refine --out s3://bucket/files",
    )
    keeps_log: ClassVar[bool] = False
    new_out: ClassVar[bool] = True
    parallel: ClassVar[bool] = False

    source: Place = parameter(meaning="results of a job, or a particle store", positional=True)
    out: Place = parameter(meaning="new folder for the files, or s3://bucket/prefix")
    stack: bool = parameter(False, meaning="also export the images of a result, with their original grey values")
    particles: Place | None = parameter(None, meaning="particle store that the result was made from, if it has moved")

    def run(self, context: Context) -> None:
        """Write the files."""
        from cloudem.io.exporting import export

        with context.progress.stage("export") as stage:
            names = export(
                self.source,
                context.url,
                stack=self.stack,
                particles=self.particles,
                on_progress=stage.advance,
                guard=context.check,
            )
        context.progress.message(f"wrote {', '.join(names)} into {context.url}")
