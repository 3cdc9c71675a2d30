"""Parameters of a job or a command: declared as fields, with their units, and wrong values said in one line."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeAlias, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticUndefined

from cloudem.errors import CloudemError, ParameterError, shown

UNITS: dict[str, str] = {
    "A": "Å",
    "A2": "Å²",
    "deg": "°",
    "rad": "rad",
    "mrad": "mrad",
    "mm": "mm",
    "kV": "kV",
    "px": "px",
    "s": "s",
    "GiB": "GiB",
    "A_per_dose": "Å per e/Å²",
    "e_per_A2": "e/Å²",
    "e_per_A3": "e/Å³",
}
"""Ending of a parameter's name -> unit as people write it."""

Kind: TypeAlias = Literal[
    "movies", "micrographs", "coordinates", "particles", "volume", "halves", "mask", "curves", "classes", "model",
    "table", "files",
]  # fmt: skip
"""What an artefact is: what a job reads or makes."""

KINDS: dict[Kind, str] = {
    "movies": "movies",
    "micrographs": "micrographs",
    "coordinates": "coordinates of particles",
    "particles": "particles",
    "volume": "a map",
    "halves": "half-maps",
    "mask": "a mask",
    "curves": "curves",
    "classes": "classes",
    "model": "an atomic model",
    "table": "a particle table",
    "files": "files",
}
"""Kinds in words."""


def parameter(
    default: Any = PydanticUndefined,
    *,
    meaning: str,
    positional: bool = False,
    reads: tuple[Kind, ...] = (),
    gt: float | None = None,
    ge: float | None = None,
    lt: float | None = None,
    le: float | None = None,
) -> Any:
    """Declare one parameter of a job.

    Parameters
    ----------
    default
        Value where none is given; left out, the parameter is required.
    meaning
        What it is, in a few words, without the unit (the name has it) and without the default.
    positional
        Whether it is given without an option's name on the command line; ``tuple[str, ...]`` takes several.
    reads
        Of an input, the kinds of artefacts that may be there: the first is what it usually is.
    gt, ge, lt, le
        Bounds of a number.
    """
    extra: dict[str, Any] = {"positional": positional, "reads": list(reads)}
    return Field(default, description=meaning, gt=gt, ge=ge, lt=lt, le=le, json_schema_extra=extra)


def _absolute(url: str) -> str:
    from cloudem.io.storage.location import absolute  # takes a while, and a declaration alone needs no store

    return absolute(url)


Place: TypeAlias = Annotated[str, AfterValidator(_absolute)]
"""A file, folder or URL that a job reads or writes; absolute, so that workers and a later run mean the same."""


def places(declaration: type[Declaration]) -> set[str]:
    """Return the parameters of a job that are files, folders or URLs."""
    validator = next(part for part in get_args(Place) if isinstance(part, AfterValidator))
    return {
        name
        for name, field in declaration.model_fields.items()
        if validator in field.metadata or any(validator in get_args(part) for part in get_args(field.annotation))
    }


def unit_of(name: str) -> str:
    """Return the unit that a parameter's name ends in, as people write it; empty where it has none."""
    endings = [ending for ending in UNITS if name.endswith(f"_{ending}")]
    return UNITS[max(endings, key=len)] if endings else ""


def option_of(name: str) -> str:
    """Return the command-line option of a parameter: ``diameter_A`` -> ``--diameter-A``, ``json_`` -> ``--json``."""
    return "--" + name.rstrip("_").replace("_", "-")


def is_positional(field: FieldInfo) -> bool:
    """Return whether a parameter is given without an option's name on the command line."""
    return isinstance(field.json_schema_extra, dict) and bool(field.json_schema_extra.get("positional"))


def label_of(declaration: type[Declaration], name: str) -> str:
    """Return how people give a parameter: ``--diameter-A``, or ``MAP`` if it is positional."""
    return name.upper() if is_positional(declaration.model_fields[name]) else option_of(name)


class Declaration(BaseModel):
    """Parameters as fields.

    Constructing one with values that it cannot use raises `ParameterError` with one line. A validator raises
    `ParameterError` itself where the line should be its own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: ClassVar[str]

    def __init__(self, /, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ParameterError(_one_line(type(self), error)) from None


def did_you_mean(name: str, known: Mapping[str, Any]) -> str:
    """Return the end of a message: the known name that one resembles, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f", did you mean {close[0]!r}?" if close else ""


def _one_line(declaration: type[Declaration], error: ValidationError) -> str:
    return "; ".join(_describe(declaration, detail) for detail in error.errors())


def _describe(declaration: type[Declaration], detail: ErrorDetails) -> str:
    """Say of one wrong parameter which it is, what came and what was needed."""
    original = detail.get("ctx", {}).get("error")
    if isinstance(original, CloudemError):
        return str(original)
    if not detail["loc"]:
        return f"{declaration.name}: {detail['msg'].removeprefix('Value error, ')}"
    name = str(detail["loc"][0])
    if detail["type"] == "extra_forbidden":
        return f"{declaration.name} has no parameter {shown(name)}{did_you_mean(name, declaration.model_fields)}"
    field = declaration.model_fields[name]
    if detail["type"] == "missing":
        return f"{declaration.name} needs {label_of(declaration, name)}: {field.description}"
    unit = unit_of(name)
    needed = detail["msg"].removeprefix("Value error, ").replace("Input should be", "needs").replace("'", "")
    unit = f", in {unit}" if unit else ""
    return f"{label_of(declaration, name)}: got {shown(detail['input'])}, {needed}{unit} ({field.description})"
