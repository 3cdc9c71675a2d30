"""The particle table: one row per particle, one array per column.

Columns that cloudem understands are listed in `COLUMNS`, each with its unit, meaning and name elsewhere; this is the
only place that states them, together with those that several tables share. Columns that it does not understand travel
as text under ``rln:<name>`` or ``cs:<name>``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from cloudem.model.picks import COLUMNS as PICK_COLUMNS
from cloudem.model.table import DEGREE, SHARED_COLUMNS, TEXT, ColumnMeaning, ItemTable

__all__ = ["COLUMNS", "DOUBTFUL", "TEXT", "ColumnMeaning", "Particles"]

COLUMNS: dict[str, ColumnMeaning] = {
    "optics_group": SHARED_COLUMNS["optics_group"],
    "defocus_u": SHARED_COLUMNS["defocus_u"],
    "defocus_v": SHARED_COLUMNS["defocus_v"],
    "defocus_angle": SHARED_COLUMNS["defocus_angle"],
    "phase_shift": SHARED_COLUMNS["phase_shift"],
    "ctf_b_factor": ColumnMeaning(
        "float64", "Å²", "B-factor of the envelope of the CTF", "rlnCtfBfactor", 1.0, "ctf/bfactor"
    ),
    "ctf_scale": ColumnMeaning("float64", "", "factor on the CTF", "rlnCtfScalefactor", 1.0, "ctf/scale"),
    "rot": ColumnMeaning("float64", "rad", "first Euler angle (ZYZ)", "rlnAngleRot", DEGREE, "alignments3D/pose"),
    "tilt": ColumnMeaning("float64", "rad", "second Euler angle (ZYZ)", "rlnAngleTilt", DEGREE, "alignments3D/pose"),
    "psi": ColumnMeaning("float64", "rad", "third Euler angle (ZYZ)", "rlnAnglePsi", DEGREE, "alignments3D/pose"),
    "shift_x": ColumnMeaning(
        "float64", "Å", "x of the particle relative to the box origin", "rlnOriginXAngst", -1.0, "alignments3D/shift"
    ),
    "shift_y": ColumnMeaning(
        "float64", "Å", "y of the particle relative to the box origin", "rlnOriginYAngst", -1.0, "alignments3D/shift"
    ),
    "half_set": ColumnMeaning(
        "int8", "", "half-set 1 or 2; 0 where not yet assigned", "rlnRandomSubset", 1.0, "alignments3D/split"
    ),
    "micrograph": SHARED_COLUMNS["micrograph"],
    "coordinate_x": PICK_COLUMNS["coordinate_x"],
    "coordinate_y": PICK_COLUMNS["coordinate_y"],
    "pick_score": PICK_COLUMNS["pick_score"],
    "image_name": ColumnMeaning(
        "text", "", "image number, from 1, and file that the image came from", "rlnImageName", 1.0, "blob/path"
    ),
    "same_image": ColumnMeaning(
        "int64", "", "number, from 1, that particles with the same pixels share; 0 for an image that is there once"
    ),
    "weight": ColumnMeaning(
        "float64", "", "probability of the pose among all poses of the image", "rlnMaxValueProbDistribution"
    ),
    "keep": ColumnMeaning(
        "float64",
        "",
        "probability that the image shows the molecule in that pose, and its weight in the map",
        "rlnParticleFigureOfMerit",
    ),
    "noise_evidence": ColumnMeaning(
        "float64", "", "natural logarithm of the Bayes factor of the image showing the molecule rather than noise"
    ),
    "other_evidence": ColumnMeaning(
        "float64",
        "",
        "natural logarithm of the same against another molecule; 0 where none is seen among the images",
    ),
    "defocus_error": ColumnMeaning("float64", "Å", "standard error of the defocus, as refine_ctf found it"),
    "class_number": ColumnMeaning("int64", "", "class of the image, from 1; 0 for none", "rlnClassNumber"),
    "class_probability": ColumnMeaning("float64", "", "probability of that class among all classes"),
    "class_psi": ColumnMeaning("float64", "rad", "in-plane angle of the image in its class"),
    "class_shift_x": ColumnMeaning("float64", "Å", "x of the particle relative to the box origin, in its class"),
    "class_shift_y": ColumnMeaning("float64", "Å", "y of the particle relative to the box origin, in its class"),
    "class_detail": ColumnMeaning(
        "float64",
        "",
        "standard deviations of noise by which the image matches its class, beyond four waves across the particle",
    ),
    "class_mirrored": ColumnMeaning("int8", "", "1 if the image shows the mirror image of its class"),
    "intensity_scale": ColumnMeaning("float64", "", "amplitude of the image relative to the reference"),
    "subtract_half": ColumnMeaning("int8", "", "half-set whose map is subtracted of the image when it is read"),
    "subtract_rot": ColumnMeaning("float64", "rad", "first Euler angle (ZYZ) of the pose in which that is done"),
    "subtract_tilt": ColumnMeaning("float64", "rad", "second Euler angle (ZYZ) of the same"),
    "subtract_psi": ColumnMeaning("float64", "rad", "third Euler angle (ZYZ) of the same"),
    "subtract_x": ColumnMeaning("float64", "Å", "x of the particle relative to the box origin, in the same pose"),
    "subtract_y": ColumnMeaning("float64", "Å", "y of the particle relative to the box origin, in the same pose"),
    "subtract_scale": ColumnMeaning("float64", "", "factor on the map that is subtracted"),
    "image_mean": ColumnMeaning(
        "float64", "grey value", "mean of the background in the source: source = stored * image_std + image_mean"
    ),
    "image_std": ColumnMeaning("float64", "grey value", "standard deviation of the background in the source"),
    "store_row": ColumnMeaning(
        "int64", "", "number of the image in the particle store, from 0; absent where a table has all of them in order"
    ),
}
"""Every column of particles that cloudem understands."""

DOUBTFUL = 0.5
"""Particles whose ``keep`` is lower probably do not show the molecule in their pose."""


@dataclass(frozen=True)
class Particles(ItemTable):
    """A table of particles and the optics groups that they belong to, see `ItemTable`."""

    COLUMNS: ClassVar[Mapping[str, ColumnMeaning]] = COLUMNS
    ITEM: ClassVar[str] = "particle"
