"""Particles of cryoSPARC: ``.cs`` files, which are NumPy structured arrays.

Conventions, as public readers of such files agree on them: ``alignments3D/pose`` is a rotation vector whose matrix is
the transpose of ours; ``alignments3D/shift`` is in pixels of ``alignments3D/psize_A`` with RELION's sign; defocus,
its angle and the phase shift are in Å and radians and mean the same as RELION's; ``alignments3D/split`` is 0 or 1;
images times ``blob/sign`` have bright protein. What cloudem does not understand travels as text under ``cs:<field>``.
"""

import hashlib
import io
import json
import math
import os
import warnings
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from cloudem.errors import FormatError, InconsistentDataError, MissingColumnError, ParameterError, parsing, shown
from cloudem.io.formats.sources import LARGEST, SourceMicrographTable, SourceMovieTable, SourceTable
from cloudem.io.storage.files import open_table
from cloudem.io.storage.location import folder_of, is_local
from cloudem.model.micrographs import Micrographs
from cloudem.model.movies import Movies
from cloudem.model.optics import OpticsGroup
from cloudem.model.particles import TEXT, Particles
from cloudem.model.poses import matrix_to_euler
from cloudem.model.table import distinct

CARRIED = "cs:"
"""Prefix of the columns that are carried as text."""

_MM = 1e7
_NUMBERS = {
    "defocus_u": "ctf/df1_A",
    "defocus_v": "ctf/df2_A",
    "defocus_angle": "ctf/df_angle_rad",
    "phase_shift": "ctf/phase_shift_rad",
    "ctf_b_factor": "ctf/bfactor",
    "ctf_scale": "ctf/scale",
}
_OF_MICROGRAPHS = {
    **{name: _NUMBERS[name] for name in ("defocus_u", "defocus_v", "defocus_angle", "phase_shift")},
    "ctf_fit_resolution": "ctf_stats/ctf_fit_to_A",
}
_OPTICS = ("ctf/accel_kv", "ctf/cs_mm", "ctf/amp_contrast")
_GROUP = "ctf/exp_group_id"
_USED = {
    *_NUMBERS.values(), *_OPTICS, _GROUP, "blob/path", "blob/idx", "blob/psize_A", "blob/shape", "blob/sign",
    "alignments3D/pose", "alignments3D/shift", "alignments3D/psize_A", "alignments3D/split", "location/micrograph_path",
}  # fmt: skip

GAIN_TURNS = ("gain_ref_blob/flip_x", "gain_ref_blob/flip_y", "gain_ref_blob/rotate_num")
"""What an exposure file says of the orientation of its gain reference; carried as text."""

Fields = dict[str, NDArray[Any]]


def read_particles_cs(
    path: str | os.PathLike[str], passthrough: Sequence[str | os.PathLike[str]] = (), *, allow_no_ctf: bool = False
) -> SourceTable:
    """Read a cryoSPARC particle file.

    Parameters
    ----------
    path
        The ``.cs`` file or its URL.
    passthrough
        Further ``.cs`` files of the same job that hold the other fields of the particles; joined by ``uid``.
    allow_no_ctf
        Accept particles without defocus.

    Raises
    ------
    MissingInputError
        No such file.
    FormatError
        Not a ``.cs`` file, or values of the wrong type.
    MissingColumnError
        No images or no defocus.
    ParameterError
        No particles.
    InconsistentDataError
        Mixed pixel or box sizes, or files that list different particles.
    """
    path = os.fspath(path)
    fields = _load(path)
    for other in passthrough:
        fields = _join(fields, _load(os.fspath(other)), path, os.fspath(other))
    rows = len(next(iter(fields.values())))
    if rows == 0:
        raise ParameterError(f"{path} lists no particles: the selection is empty")
    if "blob/path" not in fields or "blob/idx" not in fields:
        raise MissingColumnError(
            f"{path} lists no particle images (no blob/path); give the file that has them with --passthrough"
        )
    if "ctf/df1_A" not in fields and not allow_no_ctf:
        raise MissingColumnError(
            f"{path} has no defocus (ctf/df1_A); give the file that has it with --passthrough, or --allow-no-ctf"
        )
    sizes = _sizes(path, fields)
    kinds = np.unique(sizes, axis=0)
    mixed = len(kinds) > 1
    pixel_size, box = (0.0, 0.0) if mixed else kinds[0].tolist()
    stacks, stack, _ = distinct(_text(fields["blob/path"]))
    section = _numbers(path, fields, "blob/idx").astype(np.int64)
    if section.min() < 0:
        raise FormatError(f"{path}: blob/idx is negative for {(section < 0).sum()} particles; write the file again")
    columns = _columns(path, fields, sizes[:, 0])
    optics, columns["optics_group"], of_groups = _optics(path, fields, allow_no_ctf, sizes)
    names = [str(name).removeprefix(">") for name in stacks]
    columns["image_name"] = np.array(
        [f"{s + 1:06d}@{names[i]}" for s, i in zip(section, stack, strict=True)], dtype=TEXT
    )
    sign = _numbers(path, fields, "blob/sign") if "blob/sign" in fields else np.ones(rows)
    return SourceTable(
        path, Particles(optics, columns), tuple(names), stack.astype(np.int32), section, pixel_size, int(box),
        np.where(sign < 0, -1.0, 1.0),
        "alignments3D/shift" in fields and "alignments3D/psize_A" not in fields and not sizes[:, 0].all(),
        of_groups if mixed else (),
    )  # fmt: skip


def read_movies_cs(path: str | os.PathLike[str]) -> SourceMovieTable:
    """Read a cryoSPARC exposure file: its movies, and what it says of dose, gain and microscope.

    Parameters
    ----------
    path
        The ``.cs`` file or its URL.

    Raises
    ------
    MissingInputError
        No such file.
    FormatError
        Not a ``.cs`` file, or values of the wrong type.
    MissingColumnError
        No movies.
    ParameterError
        No rows.
    InconsistentDataError
        Mixed pixel sizes.
    """
    path = os.fspath(path)
    fields = _exposures(path, "movies", "movie_blob/path", "the imported_movies.cs or exposures of a job")
    rows = len(fields["movie_blob/path"])
    frames = np.zeros(rows, np.int64)
    if "movie_blob/shape" in fields:
        frames = _numbers(path, fields, "movie_blob/shape", 3)[:, 0].astype(np.int64)
    optics, group = _exposure_optics(path, fields, rows)
    columns: dict[str, NDArray[Any]] = {
        "optics_group": group,
        "movie": _plain_names(fields["movie_blob/path"]),
        "frames": frames.astype(np.int32),
    }
    if "mscope_params/total_dose_e_per_A2" in fields and (frames > 0).all():
        columns["dose_per_frame"] = _numbers(path, fields, "mscope_params/total_dose_e_per_A2") / frames
    for name, field in {"gain": "gain_ref_blob/path", "defects": "mscope_params/defect_path"}.items():
        if field in fields:
            columns[name] = _plain_names(fields[field])
    columns |= {CARRIED + name: _carried(fields[name]) for name in GAIN_TURNS if name in fields}
    return SourceMovieTable(
        path, Movies(optics, columns), _one_value(path, fields, "movie_blob/psize_A", "pixel sizes")
    )


def read_micrographs_cs(path: str | os.PathLike[str]) -> SourceMicrographTable:
    """Read a cryoSPARC exposure file: its micrographs, and their CTF where it was estimated.

    Parameters
    ----------
    path
        The ``.cs`` file or its URL.

    Raises
    ------
    MissingInputError
        No such file.
    FormatError
        Not a ``.cs`` file, or values of the wrong type.
    MissingColumnError
        No micrographs.
    ParameterError
        No rows.
    InconsistentDataError
        Mixed pixel sizes.
    """
    path = os.fspath(path)
    wanted = "the exposures of a job that makes or imports them"
    fields = _exposures(path, "micrographs", "micrograph_blob/path", wanted)
    optics, group = _exposure_optics(path, fields, len(fields["micrograph_blob/path"]))
    names = _plain_names(fields["micrograph_blob/path"])
    columns: dict[str, NDArray[Any]] = {"optics_group": group, "micrograph": names}
    if "movie_blob/path" in fields:
        columns["movie"] = _plain_names(fields["movie_blob/path"])
    for name, field in _OF_MICROGRAPHS.items():
        if field in fields:
            columns[name] = _numbers(path, fields, field)
    pixel_size = _one_value(path, fields, "micrograph_blob/psize_A", "pixel sizes")
    return SourceMicrographTable(path, Micrographs(optics, columns), pixel_size)


def _exposures(path: str, items: str, column: str, wanted: str) -> Fields:
    """Return the fields of a file of exposures that lists some items in a column."""
    fields = _load(path)
    if column not in fields:
        raise MissingColumnError(f"{path} lists no {items} (no {column}); give {wanted}")
    if len(fields[column]) == 0:
        raise ParameterError(f"{path} lists no {items}: the selection is empty")
    return fields


def _plain_names(values: NDArray[Any]) -> NDArray[Any]:
    return np.array([str(name).removeprefix(">") for name in _text(values)], dtype=TEXT)


def _exposure_optics(path: str, fields: Fields, rows: int) -> tuple[tuple[OpticsGroup, ...], NDArray[np.int32]]:
    """Return an optics group for each exposure group, 0 for what the file does not say."""
    names = ("mscope_params/exp_group_id", "mscope_params/accel_kv", "mscope_params/cs_mm", "ctf/amp_contrast")
    values = [_numbers(path, fields, name) if name in fields else np.zeros(rows) for name in names]
    kinds, group = np.unique(np.stack(values, axis=1), axis=0, return_inverse=True)
    optics = tuple(
        OpticsGroup(f"group{int(number)}", float(f"{kv:.7g}"), float(f"{cs:.7g}") * _MM, float(f"{contrast:.7g}"))
        for number, kv, cs, contrast in kinds
    )
    return optics, group.reshape(-1).astype(np.int32)


def _load(path: str) -> Fields:
    # A pickle is refused; a file is mapped, which needs no memory but that of the fields.
    with open_table(path) as file:
        mapped = is_local(path)
        with parsing(f"{path} is not a cryoSPARC .cs file, or is truncated", "export or copy it again"):
            _check_header(file)
            file.seek(0)
            data = np.load(folder_of(path) if mapped else file, mmap_mode="r" if mapped else None, allow_pickle=False)
    names = data.dtype.names
    if not names or data.ndim != 1:
        raise FormatError(f"{path} is not a cryoSPARC .cs file: it holds no table")
    bad = [name for name in names if data.dtype[name].base.kind not in "biufSU" or not data.dtype[name].itemsize]
    if bad:
        kind = shown(str(data.dtype[bad[0]]))
        raise FormatError(f"{path} has fields of unknown type ({shown(bad[0])}: {kind}); write it again")
    return {name: np.array(data[name]) for name in names}


def _check_header(file: BinaryIO) -> None:
    """Raise ValueError, before anything is allocated, unless the file has the bytes that its header promises."""
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"version {version[0]}.{version[1]} of NumPy's format, and 1.0 or 2.0 is needed")
    with warnings.catch_warnings():  # Python's, about the text of a damaged header
        warnings.simplefilter("ignore")
        shape, _, dtype = read(file)
    start, size = file.tell(), math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or size > file.seek(0, os.SEEK_END) - start:
        raise ValueError(f"{shape} rows of {dtype.itemsize} bytes are more than it holds")


def _join(first: Fields, second: Fields, path: str, other: str) -> Fields:
    """Add the fields that only `second` has, row by row of the same uid."""
    if "uid" not in first or "uid" not in second:
        raise MissingColumnError(f"{path} and {other} cannot be joined: both need the field uid")
    order = np.argsort(second["uid"], kind="stable")
    place = np.searchsorted(second["uid"][order], first["uid"]).clip(max=max(0, len(order) - 1))
    if not len(order) or not np.array_equal(second["uid"][order][place], first["uid"]):
        raise InconsistentDataError(f"{other} lacks particles of {path}; give the passthrough file of the same job")
    return {**{name: values[order][place] for name, values in second.items()}, **first}


def _columns(path: str, fields: Fields, pixel_size: NDArray[np.float64]) -> dict[str, NDArray[Any]]:
    columns: dict[str, NDArray[Any]] = {}
    for name, field in _NUMBERS.items():
        if field in fields:
            columns[name] = _numbers(path, fields, field)
    if "defocus_u" in columns:
        columns.setdefault("defocus_v", columns["defocus_u"].copy())
        columns.setdefault("defocus_angle", np.zeros(len(columns["defocus_u"])))
    if "alignments3D/pose" in fields:
        turns = Rotation.from_rotvec(_numbers(path, fields, "alignments3D/pose", 3)).as_matrix()
        columns["rot"], columns["tilt"], columns["psi"] = matrix_to_euler(turns.swapaxes(-1, -2))
    if "alignments3D/shift" in fields:
        # Shifts count pixels of the images that were aligned, which may have been binned.
        # Where neither size is known, shifts stay in pixels, and the import finds it.
        known = "alignments3D/psize_A" in fields
        scale = _numbers(path, fields, "alignments3D/psize_A") if known else np.where(pixel_size > 0, pixel_size, 1.0)
        shift = -_numbers(path, fields, "alignments3D/shift", 2) * np.reshape(scale, (-1, 1))
        columns["shift_x"], columns["shift_y"] = shift[:, 0].copy(), shift[:, 1].copy()
    if "alignments3D/split" in fields:
        split = _numbers(path, fields, "alignments3D/split")
        if not np.isin(split, (0, 1)).all():
            raise FormatError(f"{path}: alignments3D/split has values other than 0 and 1; correct the file")
        columns["half_set"] = (split + 1).astype(np.int8)
    if "location/micrograph_path" in fields:
        columns["micrograph"] = _text(fields["location/micrograph_path"])
    for name, values in fields.items():
        if name not in _USED:
            columns[CARRIED + name] = _carried(values)
    return columns


def _optics(
    path: str, fields: Fields, allow_no_ctf: bool, sizes: NDArray[np.float64]
) -> tuple[tuple[OpticsGroup, ...], NDArray[np.int32], tuple[tuple[float, int], ...]]:
    """Return the optics groups, that of each particle, and pixel and box size of each group.

    There is one for each exposure group with constants and sizes of its own.
    """
    rows = len(fields["blob/path"])
    missing = [field for field in _OPTICS if field not in fields]
    if missing and not allow_no_ctf:
        raise MissingColumnError(
            f"{path} has no {missing[0]}, which the CTF needs; give --passthrough or --allow-no-ctf"
        )
    constants = [_numbers(path, fields, field) if field in fields else np.zeros(rows) for field in _OPTICS]
    number = _numbers(path, fields, _GROUP) if _GROUP in fields else np.zeros(rows)
    kinds, group = np.unique(np.column_stack([number, *constants, sizes]), axis=0, return_inverse=True)
    if not missing and not (kinds[:, 1] > 0).all():
        raise FormatError(f"{path} states a voltage of {kinds[:, 1].min():g} kV; correct it")
    # Fields are single precision: 2.7 mm is 2.7000000477.
    clean = [[float(f"{value:.7g}") for value in kind] for kind in kinds]
    optics = tuple(OpticsGroup(f"group{int(k)}", kv, cs * _MM, contrast) for k, kv, cs, contrast, *_ in clean)
    of_groups = tuple((size, int(box)) for *_, size, box in clean)
    return optics, group.reshape(-1).astype(np.int32), of_groups


def _sizes(path: str, fields: Fields) -> NDArray[np.float64]:
    """Return pixel and box size of each image, ``(n, 2)``, 0 for what is not said; close pixel sizes count as one."""
    rows = len(fields["blob/path"])
    sizes = np.zeros((rows, 2))
    if "blob/psize_A" in fields:
        found, number = np.unique(_numbers(path, fields, "blob/psize_A"), return_inverse=True)
        clean = np.array([float(f"{size:.7g}") for size in found])
        for place in range(1, len(clean)):
            if clean[place] - clean[place - 1] <= 1e-4 * clean[place]:
                clean[place] = clean[place - 1]
        sizes[:, 0] = clean[number.reshape(-1)]
    if "blob/shape" in fields:
        shape = _numbers(path, fields, "blob/shape", 2)
        if (shape[:, 0] != shape[:, 1]).any():
            raise InconsistentDataError(f"{path} has images that are not square; crop them in cryoSPARC")
        sizes[:, 1] = shape[:, 0]
    return sizes


def _one_value(path: str, fields: Fields, field: str, what: str) -> float:
    if field not in fields:
        return 0.0
    values = _numbers(path, fields, field, None)
    if np.ptp(values) > 1e-4 * abs(values.flat[0]):
        found = ", ".join(f"{value:g}" for value in np.unique(values)[:4])
        raise InconsistentDataError(f"{path} mixes {what}: {found}; import each apart, or scale to one")
    return float(f"{values.flat[0]:.7g}")


def _numbers(path: str, fields: Fields, field: str, width: int | None = 0) -> NDArray[np.float64]:
    """Return a field as finite numbers, ``(n,)`` or ``(n, width)``; any shape where `width` is None."""
    values = fields[field]
    if values.dtype.kind not in "iufb" or (width is not None and values.shape[1:] != ((width,) if width else ())):
        raise FormatError(
            f"{path}: {field} has the type {values.dtype} {values.shape[1:]}, which is not what it should be"
        )
    numbers = values.astype(np.float64)
    bad = np.flatnonzero(~(np.abs(numbers) <= LARGEST).reshape(len(numbers), -1).all(axis=1))
    if len(bad):
        raise FormatError(
            f"{path}: {field} of particle {bad[0] + 1} is not a finite number ({len(bad)} such rows); leave those out"
        )
    return numbers


def _text(values: NDArray[Any]) -> NDArray[Any]:
    if values.dtype.kind not in "SU":
        return np.array([str(value) for value in values], dtype=TEXT)
    return np.array([v.decode(errors="replace") if isinstance(v, bytes) else v for v in values.tolist()], dtype=TEXT)


def _carried(values: NDArray[Any]) -> NDArray[Any]:
    """Return a field as text that loses nothing: numbers in full, vectors as JSON lists."""
    if values.dtype.kind in "SU" and values.ndim == 1:
        return _text(values)
    if values.ndim == 1:
        return np.array([str(value) for value in values], dtype=TEXT)
    return np.array([json.dumps([str(v) for v in np.ravel(value)]) for value in values], dtype=TEXT)


def read_locations_cs(
    path: str | os.PathLike[str],
) -> tuple[NDArray[Any], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Read where particles lie in their micrographs.

    Parameters
    ----------
    path
        The ``.cs`` file or its URL: picks, extracted particles or their passthrough.

    Returns
    -------
    micrograph, x, y, score
        Each ``(n,)``: its path; pixels from the first row and column as they are stored; NaN where there is none.

    Raises
    ------
    MissingInputError
        No such file.
    FormatError
        Not a ``.cs`` file, or values of the wrong type.
    MissingColumnError
        No locations.
    """
    path = os.fspath(path)
    fields = _load(path)
    needed = ("location/micrograph_path", "location/center_x_frac", "location/center_y_frac")
    lacking = [name for name in (*needed, "location/micrograph_shape") if name not in fields]
    if lacking:
        raise MissingColumnError(f"{path} has no {lacking[0]}; give the picked or extracted particles of a job")
    shape = _numbers(path, fields, "location/micrograph_shape", 2)
    x = _numbers(path, fields, "location/center_x_frac") * shape[:, 1]
    y = _numbers(path, fields, "location/center_y_frac") * shape[:, 0]
    score = np.full(len(x), np.nan)
    if "pick_stats/ncc_score" in fields:
        score = _numbers(path, fields, "pick_stats/ncc_score")
    return _plain_names(fields[needed[0]]), x, y, score


def locations_to_cs(
    micrograph: Sequence[str],
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    score: NDArray[np.float64],
    shape: NDArray[np.int64],
    pixel_size: NDArray[np.float64],
) -> bytes:
    """Return a ``.cs`` file of picks: the inverse of `read_locations_cs`.

    Parameters
    ----------
    micrograph
        Path of each particle's micrograph.
    x, y, score
        (n,) pixels, and the score.
    shape
        (n, 2) rows and columns of the micrograph.
    pixel_size
        (n,) Å.
    """
    width = max((len(name.encode()) for name in micrograph), default=1) or 1
    table = np.zeros(len(x), [
        ("uid", "<u8"), ("location/micrograph_path", f"S{width}"), ("location/micrograph_shape", "<u4", (2,)),
        ("location/micrograph_psize_A", "<f4"), ("location/center_x_frac", "<f4"), ("location/center_y_frac", "<f4"),
        ("pick_stats/ncc_score", "<f4"),
    ])  # fmt: skip
    table["uid"] = [
        int.from_bytes(hashlib.sha256(f"{name} {a!r} {b!r} {number}".encode()).digest()[:8], "little")
        for number, (name, a, b) in enumerate(zip(micrograph, x.tolist(), y.tolist(), strict=True))
    ]
    table["location/micrograph_path"] = [name.encode() for name in micrograph]
    table["location/micrograph_shape"] = shape
    table["location/micrograph_psize_A"] = pixel_size
    table["location/center_x_frac"], table["location/center_y_frac"] = x / shape[:, 1], y / shape[:, 0]
    table["pick_stats/ncc_score"] = np.nan_to_num(score)
    file = io.BytesIO()
    np.save(file, table, allow_pickle=False)
    return file.getvalue()
