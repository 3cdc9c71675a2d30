"""The micrograph table: one row per micrograph, one array per column."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from cloudem.model.movies import COLUMNS as MOVIE_COLUMNS
from cloudem.model.table import SHARED_COLUMNS, ColumnMeaning, ItemTable

COLUMNS: dict[str, ColumnMeaning] = {
    **SHARED_COLUMNS,
    "image": ColumnMeaning("text", "", "where its images lie: a group of a result, or a file"),
    "image_version": ColumnMeaning("text", "", "what tells its images from later ones in that place"),
    "recorded_image": ColumnMeaning("text", "", "where its images lie as recorded, if the others are denoised"),
    "height": ColumnMeaning("int32", "px", "rows of its images"),
    "width": ColumnMeaning("int32", "px", "columns of its images"),
    "pixel_size": ColumnMeaning("float64", "Å", "size of a pixel of its images"),
    "problem": ColumnMeaning("text", "", "why it is of no use; empty where it is"),
    "movie": ColumnMeaning("text", "", "file of the movie that the micrograph was made of", "rlnMicrographMovieName"),
    "frames": ColumnMeaning("int32", "", "number of frames that were summed"),
    "dose": ColumnMeaning("float64", "e/Å²", "electrons that the summed frames received"),
    "dose_per_frame": ColumnMeaning("float64", "e/Å²", "electrons that one frame received", "rlnMicrographDoseRate"),
    "pre_exposure": ColumnMeaning(
        "float64", "e/Å²", "electrons before the first frame that was summed", "rlnMicrographPreExposure"
    ),
    "motion_total": ColumnMeaning("float64", "Å", "path length of the motion over all frames", "rlnAccumMotionTotal"),
    "motion_early": ColumnMeaning("float64", "Å", "path length of the motion at the start", "rlnAccumMotionEarly"),
    "motion_late": ColumnMeaning("float64", "Å", "path length of the motion after the start", "rlnAccumMotionLate"),
    "local_motion": ColumnMeaning("float64", "Å", "root mean square over the micrograph of how far it moved locally"),
    "local_reason": ColumnMeaning("text", "", "why local motion was not corrected; empty where it was"),
    "motion_reason": ColumnMeaning("text", "", "why motion was not corrected at all; empty where it was"),
    "ctf_fit_resolution": ColumnMeaning(
        "float64", "Å", "resolution up to which the fitted CTF agrees with the image", "rlnCtfMaxResolution"
    ),
    "ctf_fit_score": ColumnMeaning(
        "float64",
        "",
        "how well the fitted CTF agrees with the image, as the fitting program has it",
        "rlnCtfFigureOfMerit",
    ),
    "ice_ring_density": ColumnMeaning(
        "float64", "", "power of the image around 3.7 Å, as CTF estimation has it", "rlnCtfIceRingDensity"
    ),
    "ice_thickness": ColumnMeaning("float64", "Å", "thickness of the ice", "rlnMicrographIceThickness"),
    "pick_count": ColumnMeaning("int32", "", "number of particles that were picked in it"),
    "masked_fraction": ColumnMeaning("float64", "", "share of its area that picking left out as junk or empty"),
    "bits": ColumnMeaning("float64", "", "information that its frames hold about the specimen, bits"),
    "tilt_axis": ColumnMeaning("float64", "rad", "angle from the x axis to the axis of the specimen's tilt"),
    "tilt_angle": ColumnMeaning(
        "float64", "rad", "tilt of the specimen: the defocus grows by its tangent along (-sin axis, cos axis)"
    ),
    "stage_x": MOVIE_COLUMNS["stage_x"],
    "stage_y": MOVIE_COLUMNS["stage_y"],
    "nominal_defocus": MOVIE_COLUMNS["nominal_defocus"],
    "acquired": MOVIE_COLUMNS["acquired"],
}
"""Every column of micrographs that cloudem understands."""


@dataclass(frozen=True)
class Micrographs(ItemTable):
    """A table of micrographs and the optics groups that they belong to, see `ItemTable`.

    ``micrograph`` is the name that the column ``micrograph`` of a particle table refers to.
    """

    COLUMNS: ClassVar[Mapping[str, ColumnMeaning]] = COLUMNS
    ITEM: ClassVar[str] = "micrograph"
