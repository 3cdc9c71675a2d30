"""The particle table: one row per particle, one array per column.

Columns that cloudem understands are listed in `COLUMNS`, each with its unit, meaning and name elsewhere; this is the
only place that states them. Columns that it does not understand travel as text under ``rln:<name>`` or ``cs:<name>``.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cloudem.errors import InconsistentDataError, MissingColumnError, ParameterError
from cloudem.model.optics import OpticsGroup

TEXT = np.dtypes.StringDType()
"""Text columns are NumPy's variable-width strings."""

_DEGREE = math.pi / 180


@dataclass(frozen=True)
class ColumnMeaning:
    """What a column says.

    Parameters
    ----------
    dtype
        Type of its values; ``"text"`` for strings.
    unit
        Unit of its values inside cloudem; empty for pure numbers.
    meaning
        One sentence.
    relion
        Name in a RELION STAR file without the leading ``_``; None where RELION has none.
    relion_factor
        Our value is RELION's times this.
    cryosparc
        Field of a cryoSPARC file that holds the same thing, perhaps in another form.
    """

    dtype: str
    unit: str
    meaning: str
    relion: str | None = None
    relion_factor: float = 1.0
    cryosparc: str | None = None


COLUMNS: dict[str, ColumnMeaning] = {
    "optics_group": ColumnMeaning(
        "int32", "", "index into the list of optics groups, from 0", "rlnOpticsGroup", 1.0, "ctf/exp_group_id"
    ),
    "defocus_u": ColumnMeaning(
        "float64", "Å", "larger defocus, positive for underfocus", "rlnDefocusU", 1.0, "ctf/df1_A"
    ),
    "defocus_v": ColumnMeaning(
        "float64", "Å", "smaller defocus, positive for underfocus", "rlnDefocusV", 1.0, "ctf/df2_A"
    ),
    "defocus_angle": ColumnMeaning(
        "float64",
        "rad",
        "angle from the x axis to the axis of defocus_u",
        "rlnDefocusAngle",
        _DEGREE,
        "ctf/df_angle_rad",
    ),
    "phase_shift": ColumnMeaning(
        "float64", "rad", "phase shift of a phase plate", "rlnPhaseShift", _DEGREE, "ctf/phase_shift_rad"
    ),
    "ctf_b_factor": ColumnMeaning(
        "float64", "Å²", "B-factor of the envelope of the CTF", "rlnCtfBfactor", 1.0, "ctf/bfactor"
    ),
    "ctf_scale": ColumnMeaning("float64", "", "factor on the CTF", "rlnCtfScalefactor", 1.0, "ctf/scale"),
    "rot": ColumnMeaning("float64", "rad", "first Euler angle (ZYZ)", "rlnAngleRot", _DEGREE, "alignments3D/pose"),
    "tilt": ColumnMeaning("float64", "rad", "second Euler angle (ZYZ)", "rlnAngleTilt", _DEGREE, "alignments3D/pose"),
    "psi": ColumnMeaning("float64", "rad", "third Euler angle (ZYZ)", "rlnAnglePsi", _DEGREE, "alignments3D/pose"),
    "shift_x": ColumnMeaning(
        "float64", "Å", "x of the particle relative to the box origin", "rlnOriginXAngst", -1.0, "alignments3D/shift"
    ),
    "shift_y": ColumnMeaning(
        "float64", "Å", "y of the particle relative to the box origin", "rlnOriginYAngst", -1.0, "alignments3D/shift"
    ),
    "half_set": ColumnMeaning(
        "int8", "", "half-set 1 or 2; 0 where not yet assigned", "rlnRandomSubset", 1.0, "alignments3D/split"
    ),
    "micrograph": ColumnMeaning(
        "text", "", "name of the micrograph", "rlnMicrographName", 1.0, "location/micrograph_path"
    ),
    "image_name": ColumnMeaning(
        "text", "", "image number, from 1, and file that the image came from", "rlnImageName", 1.0, "blob/path"
    ),
    "same_image": ColumnMeaning(
        "int64", "", "number, from 1, that particles with the same pixels share; 0 for an image that is there once"
    ),
    "score": ColumnMeaning(
        "float64", "", "log-likelihood of the pose, up to a constant of the image", "rlnLogLikeliContribution"
    ),
    "weight": ColumnMeaning("float64", "", "weight of the particle in the reconstruction", "rlnParticleFigureOfMerit"),
    "intensity_scale": ColumnMeaning("float64", "", "amplitude of the image relative to the reference"),
    "image_mean": ColumnMeaning(
        "float64", "grey value", "mean of the background in the source: source = stored * image_std + image_mean"
    ),
    "image_std": ColumnMeaning("float64", "grey value", "standard deviation of the background in the source"),
    "store_row": ColumnMeaning(
        "int64", "", "number of the image in the particle store, from 0; absent where a table has all of them in order"
    ),
}
"""Every column that cloudem understands."""


@dataclass(frozen=True)
class Particles:
    """A table of particles and the optics groups that they belong to.

    Parameters
    ----------
    optics
        The optics groups; column ``optics_group`` indexes them.
    columns
        Name to array of shape ``(n,)`` in the units of `COLUMNS`; text columns are of type `TEXT`.
        A column of vectors has shape ``(n, m)``.

    Raises
    ------
    InconsistentDataError
        Columns of different lengths, or an optics group that does not exist.
    """

    optics: tuple[OpticsGroup, ...]
    columns: dict[str, NDArray[Any]]

    def __post_init__(self) -> None:
        """Refuse tables that contradict themselves."""
        lengths = {name: len(values) for name, values in self.columns.items()}
        if len(set(lengths.values())) > 1:
            raise InconsistentDataError(f"columns have different lengths: {lengths}")
        group = self.columns.get("optics_group")
        if group is not None and len(group) and not (group.min() >= 0 and group.max() < len(self.optics)):
            raise InconsistentDataError(
                f"optics_group runs from {group.min()} to {group.max()}, but there are {len(self.optics)} groups"
            )

    def __len__(self) -> int:
        """Return the number of particles."""
        return next((len(values) for values in self.columns.values()), 0)

    def __contains__(self, name: object) -> bool:
        """Say whether the column is there."""
        return name in self.columns

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Return a column; `MissingColumnError` when it is not there."""
        self.require(name)
        return self.columns[name]

    def get(self, name: str, default: float) -> NDArray[Any]:
        """Return a column, or one filled with `default` where the table lacks it."""
        if name in self.columns:
            return self.columns[name]
        return np.full(len(self), default, dtype=COLUMNS[name].dtype)

    def require(self, *names: str) -> None:
        """Raise `MissingColumnError` in one line unless all columns are there."""
        missing = [name for name in names if name not in self.columns]
        if not missing:
            return
        labels = [f"{name} ({COLUMNS[name].relion})" if _has_relion_name(name) else name for name in missing]
        raise MissingColumnError(
            f"the particles have no column {', '.join(labels)}; they have {', '.join(sorted(self.columns)) or 'none'}: "
            "import from a file that has it, or run the job that makes it"
        )

    def take(self, indices: ArrayLike) -> Self:
        """Return the rows at `indices` (integers, in that order) or where a boolean mask is true."""
        chosen = np.asarray(indices)
        return replace(self, columns={name: values[chosen] for name, values in self.columns.items()})

    def with_columns(self, **columns: ArrayLike) -> Self:
        """Return the table with columns added or replaced, in the types of `COLUMNS`.

        Raises
        ------
        ParameterError
            A name that `COLUMNS` does not list.
        InconsistentDataError
            A column of another length.
        """
        unknown = sorted(set(columns) - set(COLUMNS))
        if unknown:
            raise ParameterError(f"unknown particle column {', '.join(unknown)}: describe it in COLUMNS first")
        typed = {name: typed_column(name, values) for name, values in columns.items()}
        return replace(self, columns={**self.columns, **typed})

    def without_columns(self, names: Iterable[str]) -> Self:
        """Return the table without the named columns; those that are not there do not matter."""
        dropped = set(names)
        return replace(self, columns={name: v for name, v in self.columns.items() if name not in dropped})


def typed_column(name: str, values: ArrayLike) -> NDArray[Any]:
    """Return `values` in the type that `COLUMNS` gives the column; unlisted columns are text."""
    dtype = COLUMNS[name].dtype if name in COLUMNS else "text"
    return np.asarray(values, dtype=TEXT if dtype == "text" else dtype)


def _has_relion_name(name: str) -> bool:
    return name in COLUMNS and COLUMNS[name].relion is not None
