"""The workflow of ``cloudem auto``: from particles to a refined map without a reference, a file that people can edit.

It is an ordinary workflow file. Its first lines say which command wrote it, and a checksum of the rest, by which a
file that was edited since is told from one that was not: the first is never written over.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any, NamedTuple

from cloudem.jobs.toml import step_toml, value_toml

AUTO_FILE = "auto.toml"
"""Name of the file in a project that is a folder."""

FOUND = "auto"
"""Symmetry that is to be found: of the starting map, which is made without any."""

WAVES = 7.5
"""Waves across the particle up to which symmetry is looked for in the starting map: up to there, starts are compared
(`cloudem.jobs.abinitio`). Beyond, maps that were carried on share their images, and may have noise in common, in which
mates do not agree."""

TABLES = (".star", ".cs")
"""Endings of tables that have to be imported first."""

_HEAD = """\
# Written by: {command}
# This is an ordinary workflow, to be edited as you like. The same command goes on with what stands here, and so do
# cloudem run and cloudem submit. Checksum as written: {checksum}
"""

_READ_HEAD = re.compile(r"# Written by: (.*)\n.*\n.*Checksum as written: ([0-9a-f]{12})\n")


class WorkflowText(NamedTuple):
    """What a workflow file says of itself.

    Attributes
    ----------
    command
        That wrote it; empty where it does not say.
    edited
        Whether it was changed since.
    """

    command: str
    edited: bool


def automatic_workflow(
    command: str,
    *,
    project: str,
    particles: str,
    diameter_A: float,
    symmetry: str,
    classes: int = 0,
    seed: int = 0,
    invert_contrast: bool = False,
) -> str:
    """Return the text of the workflow file.

    Parameters
    ----------
    command
        That writes it, in one line.
    project, particles
        Absolute.
    diameter_A
        Of a circle that contains the particle, Å.
    symmetry
        Point group of the particle, or `FOUND`.
    classes
        Number of 2D classes; 0 leaves it to `classify2d`.
    seed
        Of all steps that draw anything at random.
    invert_contrast
        Whether protein is dark in the images of a table.
    """
    steps: list[str] = []

    def add(job: str, name: str, remark: str, **values: Any) -> None:
        steps.append(step_toml(job, name, values, remark))

    store, size = particles, {"diameter_A": diameter_A}
    if particles.lower().endswith(TABLES):
        store = "particles.zarr"
        dark = {"invert_contrast": True} if invert_contrast else {}
        add("import", "import", "images on one scale", particles=particles, **size, **dark, out=store)
    add(
        "classify2d", "classes", "sorts images into classes of like ones",
        particles=store, **size, **({"classes": classes} if classes else {}), seed=seed,
    )  # fmt: skip
    mine = 'takes what the data say; classes = "1,3,5-9" instead of auto takes yours'
    add("select", "good", mine, particles="classes", auto=True)
    again = {"particles": "good", **size}
    known, start = symmetry != FOUND, "start"
    agree = "no map where its starts do not agree"
    add("abinitio", "start", agree, **again, symmetry=symmetry if known else "C1", seed=seed)
    if not known:
        start = "symmetry"
        finest = round(diameter_A / WAVES, 1)
        add("find_symmetry", start, "turns the map onto its axes", map="start", **size, finest_A=finest)
    rest = {"reference": start, "symmetry": symmetry, "seed": seed}
    add("refine3d", "refine", "two independent half-maps", **again, **rest)
    add("postprocess", "post", "resolution inside a mask, and a sharpened map", halves="refine")
    whole = "\n".join([f'project = {value_toml(project)}\nname = "auto"\n', *steps])
    return _HEAD.format(command=command, checksum=_checksum(whole)) + whole


def read_head(text: str) -> WorkflowText:
    """Return what a workflow file says of itself."""
    found = _READ_HEAD.match(text)
    if found is None:
        return WorkflowText("", edited=True)
    return WorkflowText(found[1], edited=_checksum(text[found.end() :]) != found[2])


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
