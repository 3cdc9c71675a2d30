"""The movie table: one row per movie, one array per column."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from cloudem.model.table import SHARED_COLUMNS, ColumnMeaning, ItemTable

COLUMNS: dict[str, ColumnMeaning] = {
    "optics_group": SHARED_COLUMNS["optics_group"],
    "micrograph": SHARED_COLUMNS["micrograph"],
    "movie": ColumnMeaning("text", "", "file of the movie, or its URL", "rlnMicrographMovieName"),
    "file_bytes": ColumnMeaning("int64", "", "size of that file"),
    "file_version": ColumnMeaning("text", "", "what tells the file from a later one of that name"),
    "format": ColumnMeaning("text", "", "MRC, TIFF or EER"),
    "encoding": ColumnMeaning("text", "", "how its pixels are stored"),
    "frames": ColumnMeaning("int32", "", "number of frames in the file; of EER, raw frames"),
    "height": ColumnMeaning("int32", "px", "rows of a frame"),
    "width": ColumnMeaning("int32", "px", "columns of a frame"),
    "pixel_size": ColumnMeaning("float64", "Å", "size of a pixel of a frame", "rlnMicrographOriginalPixelSize"),
    "dose_per_frame": ColumnMeaning(
        "float64", "e/Å²", "electrons that one frame received; of EER, one raw frame", "rlnMicrographDoseRate"
    ),
    "pre_exposure": ColumnMeaning("float64", "e/Å²", "electrons before the first frame", "rlnMicrographPreExposure"),
    "group": ColumnMeaning("int32", "", "raw frames of EER that are added up to one frame; 1 of other formats"),
    "gain": ColumnMeaning("text", "", "gain reference; empty for none", "rlnMicrographGainName"),
    "gain_rotation": ColumnMeaning("int8", "", "quarter turns of the gain reference, clockwise"),
    "gain_flip": ColumnMeaning("int8", "", "1 upside down, 2 left to right, after turning; 0 for none"),
    "defects": ColumnMeaning("text", "", "list or map of bad pixels; empty for none", "rlnMicrographDefectFile"),
    "stage_x": ColumnMeaning("float64", "µm", "position of the stage along x"),
    "stage_y": ColumnMeaning("float64", "µm", "position of the stage along y"),
    "stage_z": ColumnMeaning("float64", "µm", "height of the stage"),
    "stage_tilt": ColumnMeaning("float64", "rad", "tilt of the stage"),
    "image_shift_x": ColumnMeaning("float64", "µm", "image shift along x"),
    "image_shift_y": ColumnMeaning("float64", "µm", "image shift along y"),
    "nominal_defocus": ColumnMeaning("float64", "Å", "defocus that the microscope showed, positive for underfocus"),
    "acquired": ColumnMeaning("text", "", "time of the exposure, by the microscope's clock"),
}
"""Every column of movies that cloudem understands."""


@dataclass(frozen=True)
class Movies(ItemTable):
    """A table of movies and the optics groups that they belong to, see `ItemTable`.

    ``micrograph`` is the name that the micrograph made of a movie gets: no two movies share one.
    """

    COLUMNS: ClassVar[Mapping[str, ColumnMeaning]] = COLUMNS
    ITEM: ClassVar[str] = "movie"
