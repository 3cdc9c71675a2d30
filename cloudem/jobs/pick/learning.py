"""The model of a pick: learned once of some micrographs, kept in the result, and used for all that come later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.picking_model import PickingModel, learn_model, taught
from cloudem.algorithms.picking_templates import turned_templates, views_of_averages, views_of_map
from cloudem.errors import CloudemError, FormatError, ParameterError
from cloudem.io.formats.coordinate_files import assign_micrographs, join_coordinates, read_coordinates
from cloudem.io.micrographs.tables import PICK_TABLE, read_picks
from cloudem.io.storage.groups import has_group, read_attributes, read_group
from cloudem.io.storage.listing import has_wildcard, matching_files
from cloudem.jobs.pick.stored_models import MODEL, stored, stored_model
from cloudem.jobs.pick.tasks import pick_entries, reduced_images

if TYPE_CHECKING:
    from cloudem.algorithms.picking import ReducedImage
    from cloudem.jobs.base import Context
    from cloudem.jobs.pick.job import Pick

MOST_CLASSES = 40
"""Class averages that are picked with, the largest."""

ENOUGH = 8
"""A model of fewer micrographs is learned anew when there are more, and all micrographs are picked again."""


def prepare_model(job: Pick, context: Context) -> None:
    """Make sure that the result holds a model: its own, or one of another result."""
    kept = read_attributes(context.url, MODEL)
    if job.model is not None:
        if kept is None:
            context.write(MODEL, *_as_stored(job, context))
        return
    usable = [entry for entry in pick_entries(job.table()) if not entry.problem]
    if kept is not None:
        learned = int(kept.get("micrograph_count", 0))
        if job.train_on is not None or learned >= min(ENOUGH, job.learn_from) or learned >= len(usable):
            return
    if not usable:  # there may be later
        context.progress.warning(f"{job.micrographs} holds no micrograph that can be used; see its report for why")
        return
    marks = marks_of(job, context)
    if marks is not None:
        usable = [entry for entry in usable if entry.name in marks]
    chosen = [usable[at] for at in np.unique(np.linspace(0, len(usable) - 1, job.learn_from).astype(int))]
    diameters = job.diameters()
    images: list[list[ReducedImage]] = []
    names: list[str] = []
    with context.progress.stage("learn", len(chosen), "micrographs") as stage:
        tasks = [(entry, diameters) for entry in chosen]
        for entry, found in zip(chosen, context.executor.map(reduced_images, tasks), strict=True):
            if isinstance(found, str):
                context.progress.warning(f"{entry.name} is not learned from: {found}")
            else:
                images.append(found)
                names.append(entry.name)
            stage.advance(1)
        if not images:
            raise ParameterError("none of the micrographs can be read; the log says why")
        models = [_tried(job, [each[at] for each in images], diameter) for at, diameter in enumerate(diameters)]
    found_models: list[PickingModel] = [model for model in models if model is not None]
    if not found_models:
        raise ParameterError("the micrographs show nothing that could be picked: all of their pixels are alike")
    model = max(found_models, key=lambda each: (each.mixture.separated, each.mixture.gain))
    _say(model, context, len(found_models))
    if job.learned:
        at = diameters.index(model.diameter)
        model = _taught(job, context, model, [each[at] for each in images], names, marks)
    context.write(MODEL, *stored(model, {"micrograph_count": len(names), "micrographs": names, "seed": job.seed}))


def _taught(
    job: Pick,
    context: Context,
    model: PickingModel,
    images: Sequence[ReducedImage],
    names: Sequence[str],
    marks: Mapping[str, NDArray[np.float64]] | None,
) -> PickingModel:
    """Return the model with a trained network; the same where there is nothing to train on."""
    if marks is None and not np.isfinite(model.threshold):
        context.progress.warning("no network is trained: there are no picks to train on")
        return model
    places = None
    if marks is not None:
        places = [marks[name] / image.scale[::-1] for name, image in zip(names, images, strict=True)]
    with context.progress.stage("train", 1, "networks") as stage:
        model = taught(model, images, places, job.seed)
        stage.advance(1)
    return model


def marks_of(job: Pick, context: Context) -> dict[str, NDArray[np.float64]] | None:
    """Return the marks by micrograph, (k, 2) pixels; None where none were given.

    Raises
    ------
    ParameterError
        None of them is in a micrograph of this job.
    """
    if job.train_on is None:
        return None
    if has_group(job.train_on, PICK_TABLE):
        picks = read_picks(job.train_on)
        found = (picks["micrograph"].tolist(), picks["coordinate_x"], picks["coordinate_y"])
    else:
        files = matching_files(job.train_on) if has_wildcard(job.train_on) else [job.train_on]
        read = join_coordinates([read_coordinates(file) for file in files])
        found = (read.micrograph.tolist(), read.x, read.y)
    known = [str(name) for name in job.table()["micrograph"].tolist()]
    meant, lost = assign_micrographs([str(name) for name in found[0]], known)
    if not meant:
        raise ParameterError(f"no mark of {job.train_on} is in one of the micrographs; names should be alike")
    if lost:
        context.progress.warning(f"marks of {len(lost):,} other micrographs are left out: {lost[0]}, …")
    places: dict[str, list[tuple[float, float]]] = {name: [] for name in dict.fromkeys(meant.values())}
    for name, x, y in zip(found[0], found[1].tolist(), found[2].tolist(), strict=True):
        if str(name) in meant:
            places[meant[str(name)]].append((x, y))
    return {name: np.array(values) for name, values in places.items()}


def _tried(job: Pick, images: Sequence[ReducedImage], diameter: float) -> PickingModel | None:
    try:
        templates = None if job.template is None else _templates(job.template, diameter, images[0].pixel_size)
        return learn_model(images, diameter, bright=job.contrast == "bright", seed=job.seed, templates=templates)
    except ParameterError:
        return None


def _templates(place: str, diameter: float, pixel_size: float) -> NDArray[np.float32]:
    """Return the templates of a map or of class averages, in all orientations."""
    from cloudem.jobs.good_classes import class_arrays
    from cloudem.jobs.maps import read_map

    averages = class_arrays(place) if has_group(place, "result") else {}
    if averages:
        stated = float((read_attributes(place, "result") or {}).get("pixel_size_A") or 0.0)
        shown = np.argsort(averages["class_members"])[::-1][:MOST_CLASSES]
        views = views_of_averages(averages["class_averages"][shown], stated, diameter, pixel_size)
    else:
        volume = read_map(place)
        views = views_of_map(volume.data, volume.pixel_size, diameter, pixel_size)
    return turned_templates(views)


def _say(model: PickingModel, context: Context, tried: int) -> None:
    size = f"; of {tried} diameters, {model.diameter:.0f} Å stands out best" if tried > 1 else ""
    if not model.by_chance:
        context.progress.message(
            f"particles and noise are {model.mixture.separation:.1f} deviations apart ({model.kind}){size}"
        )
    elif np.isfinite(model.threshold):
        context.progress.warning(
            "scores of particles and noise overlap; the threshold is where random phases give a tenth of the picks"
            f"{size}"
        )
    else:
        context.progress.warning(
            f"nothing of {model.diameter:.0f} Å stands out from noise of random phases, so nothing is picked; "
            "try another --diameter-A or --contrast"
        )


def _as_stored(job: Pick, context: Context) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    assert job.model is not None  # noqa: S101 - for the type checker
    stored_model(job.model)  # so that what is damaged is said
    try:
        arrays, said = read_group(job.model, MODEL)
    except CloudemError as error:
        raise FormatError(f"the picking model of {job.model} cannot be read: {error}") from error
    context.progress.message(f"the model of {job.model} is used")
    return arrays, {**said, "taken_from": job.model}
