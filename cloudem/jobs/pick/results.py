"""The result of a pick: tables of micrographs and picks, and what the report shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.picking_model import PickingModel
from cloudem.errors import CloudemError, ParameterError
from cloudem.io.formats.coordinate_files import assign_micrographs
from cloudem.io.micrographs.images import THUMBNAIL_PX, open_micrograph_image
from cloudem.io.micrographs.tables import read_micrograph_table, write_micrograph_table, write_picks
from cloudem.io.storage.groups import has_group
from cloudem.jobs.pick.stored_models import MODEL, stored_model
from cloudem.jobs.pick.tasks import SCORE_EDGES
from cloudem.model.picks import Picks
from cloudem.model.table import TEXT

if TYPE_CHECKING:
    from cloudem.io.formats.coordinate_files import Coordinates
    from cloudem.jobs.base import Context
    from cloudem.jobs.mapping import Found
    from cloudem.jobs.pick.job import Pick
    from cloudem.model.micrographs import Micrographs

SHOWN = 9
"""Micrographs in the gallery."""


def write_result(job: Pick, context: Context, found: Found) -> tuple[Found, Mapping[str, Any]]:
    """Write both tables; return what the report shows."""
    table = job.table()
    counts = found["each_count"].astype(np.int64) if len(table) else np.zeros(0, np.int64)
    masked = found["masked"] if len(table) else np.zeros(0)
    table = table.with_columns(pick_count=counts, masked_fraction=masked)
    names = np.array(table["micrograph"].tolist(), TEXT)
    picks = Picks((), {
        "micrograph": np.repeat(names, counts),
        "coordinate_x": found["each_x"].astype(np.float64),
        "coordinate_y": found["each_y"].astype(np.float64),
        "pick_score": found["each_score"].astype(np.float64),
    })  # fmt: skip
    write_micrograph_table(context.write, _as_recorded(table))
    write_picks(context.write, picks)
    reasons = found["reason"].tolist()
    empty = [at for at, reason in enumerate(reasons) if reason]
    arrays: dict[str, NDArray[Any]] = {"pick_count": counts, "masked_fraction": np.asarray(masked, np.float64)}
    said: dict[str, Any] = {"pick_count_total": int(counts.sum()), "micrograph_count": len(table)}
    if has_group(context.url, MODEL):
        model = stored_model(context.url)
        threshold = job.threshold if job.threshold is not None else float(model.relative(np.array(model.threshold)))
        arrays |= _of_model(model, threshold, found)
        said |= {
            "diameter_A": model.diameter, "by_chance": model.by_chance, "method": model.kind,
            "score_threshold": threshold if np.isfinite(threshold) else None,
        }  # fmt: skip
    arrays |= gallery_arrays(table, counts, found, job.contrast == "bright")
    if empty:
        arrays["empty_micrograph"] = names[empty]
        arrays["empty_reason"] = np.array([reasons[at] for at in empty], TEXT)
    _say(context, counts, empty)
    return arrays, said


def _as_recorded(table: Micrographs) -> Micrographs:
    """Return micrographs with the images that were recorded: denoised ones are for picking, not for particles."""
    if "recorded_image" not in table:
        return table
    return table.with_columns(image=table["recorded_image"]).without_columns(["recorded_image"])


def _of_model(model: PickingModel, threshold: float, found: Found) -> dict[str, NDArray[Any]]:
    low, high = model.mixture.means
    spread = model.mixture.deviations / (high - low)
    return {
        "score_edges": SCORE_EDGES,
        "score_counts": found["score_counts"].sum(0),
        "score_model": np.concatenate([model.mixture.weights, [0.0, 1.0], spread]),
        "threshold": np.array([threshold]),
        "diameter": np.array([model.diameter]),
        "template": model.templates[0],
    }


def _say(context: Context, counts: NDArray[np.int64], empty: list[int]) -> None:
    middle = np.median(counts) if len(counts) else 0
    context.progress.message(f"{counts.sum():,} particles in {len(counts):,} micrographs, median {middle:.0f}")
    if empty:
        context.progress.message(f"{len(empty):,} of {len(counts):,} micrographs have no picks; the report says why")


def gallery_arrays(
    table: Micrographs, counts: NDArray[np.int64], found: Found, bright: bool
) -> dict[str, NDArray[Any]]:
    """Return small pictures of micrographs from the fewest to the most picks, with the places of their picks."""
    order = np.argsort(counts, kind="stable")
    chosen = order[np.unique(np.linspace(0, len(order) - 1, SHOWN).astype(int))] if len(order) else []
    starts = np.cumsum(counts) - counts
    pictures, names, numbers, places = [], [], [], []
    for at in chosen:
        try:
            opened = open_micrograph_image(str(table["image"][at]))
            small = opened.thumbnail()
        except CloudemError:  # its reason is in the table
            continue
        mine = slice(int(starts[at]), int(starts[at] + counts[at]))
        pictures.append(255 - small if bright else small)
        names.append(str(table["micrograph"][at]))
        numbers.append(int(counts[at]))
        scale = float(max(1, -(-max(opened.shape) // THUMBNAIL_PX)))
        size = scale * float(table["pixel_size"][at])
        places.append(np.stack([found["each_x"][mine] / scale, found["each_y"][mine] / scale,
                                np.full(int(counts[at]), size)], 1))  # fmt: skip
    if not pictures:
        return {}
    shape = np.max([picture.shape for picture in pictures], axis=0)
    sheet = np.zeros((len(pictures), *shape), np.uint8)
    for page, picture in zip(sheet, pictures, strict=True):
        page[: picture.shape[0], : picture.shape[1]] = picture
    return {
        "gallery_image": sheet,
        "gallery_shape": np.array([picture.shape for picture in pictures], np.int32),
        "gallery_name": np.array(names, TEXT),
        "gallery_count": np.array(numbers, np.int64),
        "gallery_place": np.concatenate(places).astype(np.float32),
    }


class Imported(Protocol):
    """What ``import-coordinates`` was given."""

    micrographs: str
    coordinates: str
    flip_y: bool
    scale: float
    diameter_A: float


def write_imported(job: Imported, context: Context, found: Coordinates) -> tuple[Found, Mapping[str, Any]]:
    """Write both tables from coordinates of files; return what the report shows.

    Raises
    ------
    ParameterError
        No coordinate belongs to any of the micrographs.
    """
    table = read_micrograph_table(job.micrographs)
    names = [str(name) for name in table["micrograph"].tolist()]
    stated = [str(name) for name in found.micrograph.tolist()]
    meant, lost = assign_micrographs(stated, names)
    if not meant:
        raise ParameterError(
            f"none of the names in {job.coordinates} ({lost[0]}, …) is one of the micrographs ({names[0]}, …)"
            if names and lost else f"{job.micrographs} holds no micrographs"
        )  # fmt: skip
    row_of = {name: row for row, name in enumerate(names)}
    rows = np.array([row_of[meant[name]] if name in meant else -1 for name in stated])
    order = np.argsort(rows, kind="stable")[int((rows < 0).sum()) :]
    rows = rows[order]
    x, y = found.x[order] * job.scale, found.y[order] * job.scale
    if job.flip_y:
        y = table["height"][rows] - 1 - y
    outside = (x < -0.5) | (y < -0.5) | (x > table["width"][rows] - 0.5) | (y > table["height"][rows] - 0.5)
    if outside.any():
        context.progress.warning(
            f"{int(outside.sum()):,} of {len(x):,} coordinates lie outside their micrographs and are left out; "
            "is --scale right?"
        )
    rows, x, y, score = (values[~outside] for values in (rows, x, y, found.score[order]))
    counts = np.bincount(rows, minlength=len(table)).astype(np.int64)
    text = np.array(names, TEXT)
    picks = {"micrograph": text[rows], "coordinate_x": x, "coordinate_y": y}
    if np.isfinite(score).any():
        picks["pick_score"] = score
    write_micrograph_table(context.write, table.with_columns(pick_count=counts))
    write_picks(context.write, Picks((), picks))
    if lost:
        context.progress.warning(f"{len(lost):,} names of the coordinates are none of the micrographs: {lost[0]}, …")
    context.progress.message(f"{len(x):,} coordinates in {int((counts > 0).sum()):,} of {len(table):,} micrographs")
    arrays: dict[str, NDArray[Any]] = {"pick_count": counts, "diameter": np.array([job.diameter_A])}
    if "image" in table:
        arrays |= gallery_arrays(table, counts, {"each_x": x, "each_y": y}, bright=False)
    if lost:
        arrays["lost_name"] = np.array(lost, TEXT)
    return arrays, {"pick_count_total": len(x), "micrograph_count": len(table)}
