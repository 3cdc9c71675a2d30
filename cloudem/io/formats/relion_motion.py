"""RELION's motion files: how a movie's frames moved, as Bayesian polishing reads it.

Shifts are those that bring a frame back, minus the displacement of the specimen, in pixels of the movie, 0 in the first
frame. The local model has the same sign: coefficients 0 to 17 along x and 18 to 35 along y, each over 1, x, x², y, y²,
xy (x and y from -1/2 to 1/2 across the frame) and, the fastest, z, z², z³ of the frame's number from 0.
"""

from __future__ import annotations

import os
from io import TextIOWrapper
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cloudem.errors import FormatError
from cloudem.io.formats.star import quoted, read_star
from cloudem.io.storage.files import new_file

Float64 = NDArray[np.float64]


class MotionFile(NamedTuple):
    """What a motion file says.

    Attributes
    ----------
    movie
        Its name.
    shape
        Frames, rows and columns.
    pixel_size
        Å.
    dose_per_frame, pre_exposure
        e/Å²; 0 where they are not known.
    voltage
        kV.
    track
        Displacement of the specimen along x and y in each frame, pixels, ``(frames, 2)``; NaN where it was left out.
    coefficients
        Of displacements besides, ``(2, 6, 3)``; None where there is no local model.
    """

    movie: str
    shape: tuple[int, int, int]
    pixel_size: float
    dose_per_frame: float
    pre_exposure: float
    voltage: float
    track: Float64
    coefficients: Float64 | None = None


def write_motion_star(path: str | os.PathLike[str], motion: MotionFile) -> None:
    """Write a motion file.

    Raises
    ------
    StorageError
        Disk full, no permission.
    """
    frames, rows, columns = motion.shape
    general = (
        ("rlnImageSizeX", str(columns)), ("rlnImageSizeY", str(rows)), ("rlnImageSizeZ", str(frames)),
        ("rlnMicrographMovieName", quoted(motion.movie)), ("rlnMicrographBinning", "1.000000"),
        ("rlnMicrographOriginalPixelSize", f"{motion.pixel_size:.6f}"),
        ("rlnMicrographDoseRate", f"{motion.dose_per_frame:.6f}"),
        ("rlnMicrographPreExposure", f"{motion.pre_exposure:.6f}"), ("rlnVoltage", f"{motion.voltage:.6f}"),
        ("rlnMicrographStartFrame", "1"), ("rlnMotionModelVersion", "0" if motion.coefficients is None else "1"),
    )  # fmt: skip
    lines = ["", "# version 30001", "", "data_general", ""]
    lines += [f"_{name:<40} {value}" for name, value in general]
    known = [(number, x, y) for number, (x, y) in enumerate(motion.track.tolist(), 1) if np.isfinite(x)]
    rows_of = [f"{number:12d} {_number(-x)} {_number(-y)}" for number, x, y in known]
    lines += _loop("global_shift", ("rlnMicrographFrameNumber", "rlnMicrographShiftX", "rlnMicrographShiftY"), rows_of)
    if motion.coefficients is not None:
        values = [f"{place:12d} {_number(-value)}" for place, value in enumerate(motion.coefficients.ravel())]
        lines += _loop("local_motion_model", ("rlnMotionModelCoeffsIdx", "rlnMotionModelCoeff"), values)
    with new_file(path) as file:
        text = TextIOWrapper(file, encoding="utf-8")
        text.write("\n".join([*lines, ""]))
        text.detach()


def read_motion_star(path: str | os.PathLike[str]) -> MotionFile:
    """Read a motion file.

    Raises
    ------
    MissingInputError
        There is no such file.
    FormatError
        It is none.
    """
    name, blocks = os.fspath(path), read_star(path)
    try:
        general = {label: str(values[0]) for label, values in blocks["general"].items()}
        size = [int(general[f"rlnImageSize{axis}"]) for axis in "ZYX"]
        shifts = blocks["global_shift"]
        track = np.full((size[0], 2), np.nan)
        here = shifts["rlnMicrographFrameNumber"].astype(np.int64) - 1
        track[here] = -np.stack([shifts[f"rlnMicrographShift{axis}"].astype(np.float64) for axis in "XY"], axis=1)
        coefficients: Float64 | None = None
        if "local_motion_model" in blocks:
            order = blocks["local_motion_model"]["rlnMotionModelCoeffsIdx"].astype(np.int64)
            flat = np.zeros(36)
            flat[order] = -blocks["local_motion_model"]["rlnMotionModelCoeff"].astype(np.float64)
            coefficients = flat.reshape(2, 6, 3)
        numbers = [
            float(general.get(label, 0))
            for label in (
                "rlnMicrographOriginalPixelSize", "rlnMicrographDoseRate", "rlnMicrographPreExposure", "rlnVoltage",
            )
        ]  # fmt: skip
    except (KeyError, ValueError, IndexError) as error:
        raise FormatError(f"{name} is no motion file of RELION ({error}); give the .star file of one movie") from error
    pixel_size, dose, before, voltage = numbers
    shape = size[0], size[1], size[2]
    return MotionFile(
        general.get("rlnMicrographMovieName", ""), shape, pixel_size, dose, before, voltage, track, coefficients
    )


def _number(value: float) -> str:
    return f"{value + 0.0:.6f}" if value == 0 or abs(value) >= 1e-3 else f"{value:.6e}"


def _loop(block: str, labels: tuple[str, ...], rows: list[str]) -> list[str]:
    head = [f"_{label} #{place}" for place, label in enumerate(labels, 1)]
    return ["", "", "# version 30001", "", f"data_{block}", "", "loop_", *head, *rows]
