"""Metadata of SerialEM: ``.mdoc`` files, of frame sets, tilt series and montages.

Lines are ``key = value``; ``[FrameSet = 0]`` or ``[ZValue = 3]`` begins a section, and ``[T = …]`` is a title. Lengths
in them are µm, angles degrees, and defocus is negative for underfocus.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import PureWindowsPath

from cloudem.errors import FormatError
from cloudem.io.storage.files import open_table

_SECTION = re.compile(r"\[\s*(\w+)\s*=\s*(.*?)\s*\]")
_PAIR = re.compile(r"([A-Za-z_]\w*)\s*=\s*(.*?)\s*")
_DATES = ("%d-%b-%y %H:%M:%S", "%d-%b-%Y %H:%M:%S", "%Y-%b-%d %H:%M:%S")
_MICROMETRE = 1e4


@dataclass(frozen=True)
class MdocSection:
    """A section: ``FrameSet`` or ``ZValue`` or ``MontSection``, its number, and its values as text."""

    kind: str
    number: str
    values: dict[str, str]


@dataclass(frozen=True)
class Mdoc:
    """What an mdoc file says: of all, in sections, and its titles."""

    path: str
    values: dict[str, str]
    sections: list[MdocSection]
    titles: list[str]


@dataclass(frozen=True)
class MdocMovie:
    """What is said of one movie; NaN, 0 or empty where nothing is.

    Parameters
    ----------
    file
        Name of the movie, without the folder that it was written to.
    frames
        How many were saved.
    dose_per_frame
        e/Å², the mean over the frames.
    pixel_size
        Å per pixel of the frames.
    voltage
        kV.
    stage
        x, y and z, µm.
    tilt_angle
        Of the stage, degrees.
    image_shift
        x and y, µm.
    defocus
        Å, positive for underfocus, as the microscope showed it.
    magnification
        Nominal.
    acquired
        Time, as ISO 8601 without a zone.
    gain, defects
        Names of files.
    """

    file: str = ""
    frames: int = 0
    dose_per_frame: float = math.nan
    pixel_size: float = 0.0
    voltage: float = 0.0
    stage: tuple[float, float, float] = (math.nan, math.nan, math.nan)
    tilt_angle: float = math.nan
    image_shift: tuple[float, float] = (math.nan, math.nan)
    defocus: float = math.nan
    magnification: float = 0.0
    acquired: str = ""
    gain: str = ""
    defects: str = ""
    doubts: list[str] = field(default_factory=list)


def read_mdoc(path: str | os.PathLike[str]) -> Mdoc:
    """Read an mdoc file.

    Parameters
    ----------
    path
        The file or its URL.

    Raises
    ------
    MissingInputError
        No such file.
    FormatError
        It is none.
    """
    place = os.fspath(path)
    with open_table(place) as file:
        raw = file.read()
    values: dict[str, str] = {}
    found = Mdoc(place, values, [], [])
    for number, line in enumerate(raw.decode("utf-8", errors="replace").splitlines(), 1):
        text = line.strip()
        if not text:
            continue
        if section := _SECTION.fullmatch(text):
            if section[1] == "T":
                found.titles.append(section[2])
            else:
                values = {}
                found.sections.append(MdocSection(section[1], section[2], values))
        elif (pair := _PAIR.fullmatch(text)) and not (text.startswith("T =") and not found.sections):
            values[pair[1]] = pair[2]
        elif text.startswith("T ="):
            found.titles.append(text.partition("=")[2].strip())
        else:
            raise FormatError(
                f"{place} line {number} is neither 'key = value' nor a section: {text[:40]!r}; is it an mdoc?"
            )
    if not found.values and not found.sections:
        raise FormatError(f"{place} is empty, where an mdoc file of SerialEM is needed")
    return found


def movies_of(mdoc: Mdoc) -> list[MdocMovie]:
    """Return what an mdoc says of movies: none of a montage or a series of images whose frames were not saved.

    Raises
    ------
    FormatError
        Values that are no numbers where numbers are needed.
    """
    return [
        _movie(mdoc, section)
        for section in mdoc.sections
        if section.kind == "FrameSet" or "SubFramePath" in section.values
    ]


def _movie(mdoc: Mdoc, section: MdocSection) -> MdocMovie:
    values = {**mdoc.values, **section.values}

    def numbers(key: str, count: int) -> tuple[float, ...]:
        words = values.get(key, "").split()
        if not words:
            return (math.nan,) * count
        try:
            found = tuple(float(word) for word in words[:count])
        except ValueError:
            found = ()
        if len(found) != count:
            raise FormatError(
                f"{mdoc.path} [{section.kind} = {section.number}]: {key} is {values[key][:40]!r};"
                f" {count} numbers are needed"
            )
        return found

    frames = numbers("NumSubFrames", 1)[0]
    count = 0 if math.isnan(frames) else int(frames)
    x, y = numbers("StagePosition", 2)
    shift_x, shift_y = numbers("ImageShift", 2)
    # of a series of images the pixel size is theirs, which may be binned; of a frame set it is that of the frames
    size = numbers("PixelSpacing", 1)[0] if section.kind == "FrameSet" else math.nan
    voltage, magnification = numbers("Voltage", 1)[0], numbers("Magnification", 1)[0]
    return MdocMovie(
        file=PureWindowsPath(values.get("SubFramePath", "")).name,
        frames=count,
        dose_per_frame=_dose(mdoc, section, values, count),
        pixel_size=0.0 if math.isnan(size) else size,
        voltage=0.0 if math.isnan(voltage) else voltage,
        stage=(x, y, numbers("StageZ", 1)[0]),
        tilt_angle=numbers("TiltAngle", 1)[0],
        image_shift=(shift_x, shift_y),
        defocus=-_MICROMETRE * numbers("Defocus", 1)[0],
        magnification=0.0 if math.isnan(magnification) else magnification,
        acquired=_time(values.get("DateTime", "")),
        gain=PureWindowsPath(values.get("GainReference", "")).name,
        defects=PureWindowsPath(values.get("DefectFile", "")).name,
    )


def _dose(mdoc: Mdoc, section: MdocSection, values: dict[str, str], frames: int) -> float:
    """Return the mean dose of a frame: of pairs of doses and numbers of frames, or else of the whole exposure."""
    words = values.get("FrameDosesAndNumber", "").split()
    try:
        pairs = [(float(dose), int(count)) for dose, count in zip(words[::2], words[1::2], strict=True)]
        exposure = float(values.get("ExposureDose", "0"))
    except ValueError:
        raise FormatError(f"{mdoc.path} [{section.kind} = {section.number}] has a dose that is no number") from None
    total = sum(count for _, count in pairs)
    if total > 0:
        return sum(dose * count for dose, count in pairs) / total
    return exposure / frames if exposure > 0 and frames > 0 else math.nan


def _time(text: str) -> str:
    plain = " ".join(text.split())
    for form in _DATES:
        try:
            return datetime.strptime(plain, form).isoformat()
        except ValueError:
            continue
    return ""
