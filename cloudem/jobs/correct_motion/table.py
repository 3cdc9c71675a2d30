"""From what was found of movies to the table of micrographs, and to what the report draws."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudem.io.movies.sources import below_shared_folder
from cloudem.model.micrographs import Micrographs
from cloudem.model.movies import Movies
from cloudem.model.table import TEXT

Found = Mapping[str, NDArray[Any]]

MOVED = (
    "frames", "dose", "motion_total", "motion_early", "motion_late", "local_motion", "bits", "height", "width",
    "pixel_size", "problem", "image", "image_version", "local_reason", "motion_reason",
)  # fmt: skip
"""Columns of micrographs that are found."""

FROM_MOVIES = ("optics_group", "micrograph", "movie", "dose_per_frame", "pre_exposure")


def micrographs_of(movies: Movies, found: Found) -> Micrographs:
    """Return the table of micrographs: a row for each movie, those that could not be used with the reason.

    What else the table of movies says of a column that micrographs have (positions of the stage, time) goes on.
    """
    own = {name: movies[name] for name in movies.columns if name in Micrographs.COLUMNS and name not in MOVED}
    own |= {name: movies[name] for name in FROM_MOVIES if name in movies and name in Micrographs.COLUMNS}
    table = Micrographs(movies.optics, own)
    return table.with_columns(**{name: found[name] for name in MOVED})


def motion_sayings(movies: Movies, found: Found) -> tuple[list[str], dict[str, NDArray[Any]]]:
    """Return lines about what could not be corrected, and the arrays of the result."""
    names = movies["movie"].tolist()
    below = np.array(below_shared_folder(names), TEXT)
    good = found["problem"] == ""
    lines = _counted("left out", below[~good].tolist(), found["problem"][~good].tolist())
    arrays: dict[str, NDArray[Any]] = {
        f"{name}_A": found[name][good] for name in ("motion_total", "motion_early", "motion_late", "local_motion")
    }
    arrays |= {name: found[name] for name in ("bits", "pattern", "coefficients", "hot_pixels", "outliers")}
    arrays |= {name: values for name, values in found.items() if name.startswith("each_")}
    arrays["micrograph"] = movies["micrograph"]
    if not good.all():
        arrays |= {"left_out_movie": below[~good], "left_out_reason": found["problem"][~good]}
    reasons = Counter[str]()
    for kind, column in (("no motion", "motion_reason"), ("no local motion", "local_reason"), ("", "note")):
        for reason in found[column][good].tolist():
            if reason:
                plain = reason.split(" (")[0]
                reasons[f"{kind}: {plain}" if kind else plain] += 1
        if column != "local_reason":
            lines += _counted(kind or "note", below[good].tolist(), found[column][good].tolist())
    if reasons:
        arrays["reason"] = np.array(list(reasons), TEXT)
        arrays["reason_micrographs"] = np.array(list(reasons.values()))
    return lines, arrays


def _counted(what: str, names: list[str], reasons: list[str]) -> list[str]:
    first = {why: name for name, why in zip(reversed(names), reversed(reasons), strict=True) if why}
    counts = Counter(why for why in reasons if why).most_common(5)
    return [
        f"{what}: {first[why]}" + (f" and {count - 1:,} more" if count > 1 else "") + f": {why}"
        for why, count in counts
    ]
