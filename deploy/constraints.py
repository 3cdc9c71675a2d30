"""Prints the versions of all that cloudem needs, as installed here.

``python deploy/constraints.py > deploy/constraints.txt``, where the tests have just passed: image and container install
exactly these. constraints-gpu.txt, for the extra ``gpu``, is what pip resolves where no GPU is there to test it: these
without dask and distributed, given to ``pip install --dry-run --report - --constraint … '.[aws,fsspec,movies,gpu]'``.
"""

from __future__ import annotations

import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

PROJECT = Path(__file__).parents[1] / "pyproject.toml"
EXTRAS = ("aws", "fsspec", "movies")


def direct() -> list[Requirement]:
    """Return what pyproject.toml asks for, with the extras that nodes have."""
    project = tomllib.loads(PROJECT.read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in EXTRAS for line in project["optional-dependencies"][extra])]
    return [Requirement(line) for line in lines]


def closure(waiting: list[Requirement]) -> set[str]:
    """Return the normalised names of all packages that are needed, directly or not."""
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        need = waiting.pop()
        key = (re.sub(r"[-_.]+", "-", need.name).lower(), frozenset(need.extras))
        if key in seen:
            continue
        seen.add(key)
        for line in metadata.requires(need.name) or []:
            further = Requirement(line)
            if further.marker is None or any(further.marker.evaluate({"extra": one}) for one in ("", *need.extras)):
                waiting.append(further)
    return {name for name, _ in seen}


if __name__ == "__main__":
    print(f"# Python {sys.version_info.major}.{sys.version_info.minor}; written by deploy/constraints.py")
    for name in sorted(closure(direct())):
        print(f"{name}=={metadata.version(name)}")
