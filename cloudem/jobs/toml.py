"""Read and write the TOML of job files and workflow files."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cloudem.errors import MissingInputError, ParameterError, parsing

LARGEST = 128 << 10
"""Bytes of the largest file that is read: a hundred long steps."""

LONGEST_LINE, MOST_DOTS = 5_000, 200
"""Characters of a line, and dots: the parser's time and memory grow with the square of a dotted key's parts."""


def read_toml(path: str, needed: str) -> dict[str, Any]:
    """Return the table that a TOML file holds.

    Parameters
    ----------
    path
        The file.
    needed
        What to give, for messages: ``"a job file"``.

    Raises
    ------
    MissingInputError
        If there is no such file.
    ParameterError
        If it cannot be read, or is no TOML, or larger than anything that people write.
    """
    try:
        with Path(path).open("rb") as file:
            raw = file.read(LARGEST + 1)
    except FileNotFoundError:
        raise MissingInputError(f"{path}: no such file; give {needed}") from None
    except IsADirectoryError:
        raise ParameterError(f"{path} is a folder; give {needed}") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise ParameterError(f"{path} cannot be read ({error}); give {needed}") from None
    if len(raw) > LARGEST:
        raise ParameterError(f"{path} has more than {LARGEST >> 10} KiB, so it is no TOML of cloudem; give {needed}")
    with parsing(f"{path} is not valid TOML", f"give {needed}", ParameterError):
        text = raw.decode("utf-8").replace("\r\n", "\n")
        for number, line in enumerate(text.split("\n"), start=1):
            if len(line) > LONGEST_LINE or line.count(".") > MOST_DOTS:
                raise ValueError(f"line {number} has more than {LONGEST_LINE:,} characters or {MOST_DOTS} dots")
        return tomllib.loads(text)


def value_toml(value: bool | float | str) -> str:
    """Return a value as TOML writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"{value:.10g}" if isinstance(value, float) else str(value)
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # JSON's escapes are those of TOML


def step_toml(job: str, name: str, values: Mapping[str, Any], remark: str = "") -> str:
    """Return a step of a workflow file as text; values that are None are left out.

    Parameters
    ----------
    job, name
        Kind of the job, and what the step is called; the name is left out where it is the same.
    values
        Parameters, in the order in which they are to stand.
    remark
        Stands behind the job.
    """
    named = {} if name == job else {"name": name}
    given = {"job": job, **named, **{key: value for key, value in values.items() if value is not None}}
    lines = [f"{key} = {value_toml(value)}" for key, value in given.items()]
    if remark:
        lines[0] = f"{lines[0]:<24}# {remark}"
    return "\n".join(["[[step]]", *lines, ""])
