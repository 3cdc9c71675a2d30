"""What is done to a micrograph: it is read, made smaller, and picked; what goes wrong is a reason."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.picking import MicroscopeState, ReducedImage, reduce_image
from cloudem.algorithms.picking_model import Picked, PickingModel, pick_image
from cloudem.errors import CloudemError, recorded_reason
from cloudem.io.micrographs.images import open_micrograph_image
from cloudem.jobs.mapping import Found
from cloudem.jobs.pick.stored_models import model_at
from cloudem.model.table import TEXT

if TYPE_CHECKING:
    from cloudem.model.micrographs import Micrographs

SCORE_EDGES = np.linspace(-1.5, 3.0, 91)
"""Of the histogram of scores; those beyond are counted in its ends."""

ALIKE = 0.1
"""Pixel sizes of reduced images may differ so much from that of the model."""


class PickEntry(NamedTuple):
    """What a task needs to know of a micrograph; ``pixel_size`` in Å, ``state`` None where the CTF is not known."""

    name: str
    place: str
    pixel_size: float
    problem: str
    state: MicroscopeState | None = None


def pick_entries(table: Micrographs) -> list[PickEntry]:
    """Return what tasks need of each micrograph."""
    problems = table["problem"].tolist() if "problem" in table else [""] * len(table)
    sizes = table["pixel_size"].tolist()
    names, images = table["micrograph"].tolist(), table["image"].tolist()
    return [
        PickEntry(str(name), str(image), float(size), str(problem or ""), state)
        for name, image, size, problem, state in zip(names, images, sizes, problems, _states(table), strict=True)
    ]


def _states(table: Micrographs) -> list[MicroscopeState | None]:
    """Return what the CTF of each micrograph follows from, None where it is not known."""
    if "defocus_u" not in table or not table.optics:
        return [None] * len(table)
    groups = table.get("optics_group", 0).tolist()
    u, v = table["defocus_u"], table["defocus_v"] if "defocus_v" in table else table["defocus_u"]
    columns = zip(u, v, table.get("defocus_angle", 0.0), table.get("phase_shift", 0.0), groups, strict=True)
    states: list[MicroscopeState | None] = []
    for *values, group in columns:
        scope = table.optics[group]
        microscope = (scope.voltage, scope.spherical_aberration, scope.amplitude_contrast)
        known = np.isfinite(values).all() and scope.voltage > 0
        states.append(MicroscopeState(*microscope, *(float(value) for value in values)) if known else None)
    return states


def reduced_images(task: tuple[PickEntry, Sequence[float]]) -> list[ReducedImage] | str:
    """Return a micrograph reduced for each of the diameters, or why that cannot be: a reason of this one alone."""
    entry, diameters = task
    try:
        image = open_micrograph_image(entry.place).read()
        return [reduce_image(image, entry.pixel_size, each)._replace(state=entry.state) for each in diameters]
    except CloudemError as error:
        return recorded_reason(error)


def pick_micrographs(
    entries: Sequence[PickEntry], url: str, digest: str, threshold: float | None, margin: float, seed: int
) -> Found:
    """Pick micrographs with the model that the result under ``url`` holds.

    Parameters
    ----------
    entries
        The micrographs.
    url, digest
        Where the model is, and what tells it from others.
    threshold
        Least score, 0 for chance and 1 for particles; None for that of the model.
    margin
        Å.
    seed
        Of random phases.
    """
    found, unread = [], []
    for entry in entries:
        unread.append(False)
        if entry.problem:
            found.append(nothing(entry.problem))
            continue
        model = model_at(url, digest)
        try:
            image = open_micrograph_image(entry.place).read()
        except CloudemError as error:
            found.append(nothing(recorded_reason(error)))
            unread[-1] = True
            continue
        found.append(
            _picked(image, entry, model if threshold is None else model.with_threshold(threshold), margin, seed)
        )
    histograms = [np.histogram(np.clip(each.candidates, *SCORE_EDGES[[0, -1]]), SCORE_EDGES)[0] for each in found]
    return {
        "unread": np.array(unread, np.bool_),
        "masked": np.array([each.masked for each in found], np.float32),
        "reason": np.array([each.reason for each in found], TEXT),
        "score_counts": np.array(histograms, np.int32),
        "each_count": np.array([len(each.x) for each in found], np.int64),
        "each_x": np.concatenate([each.x for each in found]),
        "each_y": np.concatenate([each.y for each in found]),
        "each_score": np.concatenate([each.score for each in found]),
    }


def _picked(image: NDArray[np.float32], entry: PickEntry, model: PickingModel, margin: float, seed: int) -> Picked:
    try:
        reduced = reduce_image(image, entry.pixel_size, model.diameter)
    except CloudemError as error:
        return nothing(recorded_reason(error))
    reduced = reduced._replace(state=entry.state)
    if abs(reduced.pixel_size / model.pixel_size - 1) > ALIKE:
        return nothing(f"its pixels of {entry.pixel_size:g} Å are too large for a model of {model.pixel_size:.2f} Å")
    return pick_image(reduced, model, seed=seed + zlib.crc32(entry.name.encode()), margin=margin)


def nothing(reason: str) -> Picked:
    """Return what is found in a micrograph that cannot be used."""
    none = np.zeros(0, np.float32)
    return Picked(none, none, none, float("nan"), none, reason)
