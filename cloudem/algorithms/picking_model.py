"""What particles of a data set look like and from which score on they are particles, learned without marks.

A first round correlates with discs inside rings. The mean profile of what is most probably a particle, with the
contrast transfer as it is in these images, is the template of a second round; it is kept if chance and particles lie
further apart with it. `cloudem.algorithms.picking_threshold` sets the threshold in each round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.picking import (
    APART,
    DISCS,
    Candidates,
    EvenImage,
    Float32,
    ReducedImage,
    candidates_of,
    correlate,
    disc_templates,
    even_image,
    junk_of,
    middle_part,
    phase_randomised,
)
from cloudem.algorithms.picking_network import STEPS, Lesson, network_score, train_network
from cloudem.algorithms.picking_templates import template_score
from cloudem.algorithms.picking_threshold import ScoreMixture, fit_score_mixture, threshold_by_chance
from cloudem.errors import ParameterError

PROFILE = 0.9
"""Radius up to which the mean profile is taken, in diameters of the particle."""

SCALES = (1.0, 1.25, 0.8)
"""Factors of the discs' diameters that are tried: particles may look larger or smaller than they are."""

LEAST_MEMBERS = 30
"""Particles of a mean profile, at least."""

SURE_PICK, SURE_NOISE = 0.8, 0.05
"""Candidates of at least, and at most, such a probability are taught as particles and as noise."""

STRONGER = 8.0
"""Junk is stronger than particles by so many of their robust deviations."""

OVER_CHANCE, SURE = 2.0, 2.0
"""Good candidates must be so many times those with random phases, and more by so many standard deviations of counting,
or it is said that a micrograph shows no particles."""

TOLD_BY = 20
"""Diameters along the side of the part whose phases are made random."""

MOST_MASKED = 0.9
"""Share of a micrograph that may be left out; of the rest too little is known."""

MOST_CHANCE = 3
"""So many candidates with random phases mean nothing."""


@dataclass(frozen=True)
class PickingModel:
    """What is correlated with, and what is a particle.

    Attributes
    ----------
    diameter
        Of the particles, Å.
    pixel_size
        Of the reduced images, Å.
    bright
        Whether protein is bright.
    templates
        (k, m, m), for even images.
    kind
        "disc", "profile", "template" or "learned".
    mixture
        Of the scores of candidates.
    threshold
        Candidates of at least this score are particles; infinity: nothing is.
    by_chance
        Whether the threshold is that of random phases, since the mixture does not separate.
    strength_limit
        What is stronger is junk.
    network
        Weights of `cloudem.algorithms.picking_network`, which scores instead of the templates; None for none.
    """

    diameter: float
    pixel_size: float
    bright: bool
    templates: Float32
    kind: str
    mixture: ScoreMixture
    threshold: float
    by_chance: bool
    strength_limit: float
    network: Mapping[str, Float32] | None = None

    @property
    def across(self) -> float:
        """Diameter in pixels of the reduced image."""
        return self.diameter / self.pixel_size

    def relative(self, score: NDArray[np.floating]) -> Float32:
        """Return scores on a scale on which 0 is the mean of chance and 1 that of particles."""
        low, high = self.mixture.means
        return np.asarray((np.asarray(score, np.float64) - low) / (high - low), np.float32)

    def with_threshold(self, relative: float) -> PickingModel:
        """Return the model with another threshold, on the scale of `relative`."""
        low, high = self.mixture.means
        return replace(self, threshold=float(low + relative * (high - low)))


class Picked(NamedTuple):
    """What was found in a micrograph.

    Attributes
    ----------
    x, y
        Pixels of the micrograph; 0 is the centre of the first one.
    score
        0 for the mean of chance, 1 for that of particles.
    masked
        Share of the micrograph that was left out.
    candidates
        Scores of all candidates, picked or not.
    reason
        Why there are none, in words; empty if there are.
    """

    x: Float32
    y: Float32
    score: Float32
    masked: float
    candidates: Float32
    reason: str


def learn_model(
    images: Sequence[ReducedImage], diameter: float, *, bright: bool = False, seed: int = 0, refine: bool = True,
    templates: Float32 | None = None,
) -> PickingModel:  # fmt: skip
    """Return the model of a data set, from some of its images.

    Parameters
    ----------
    images
        Reduced micrographs; twenty or so that are typical are enough.
    diameter
        Of the particles, Å.
    bright
        Whether protein is bright.
    seed
        Of random phases.
    refine
        Whether to try the mean profile of particles as a template.
    templates
        (k, m, m) instead of discs, of `cloudem.algorithms.picking_templates.turned_templates`.

    Raises
    ------
    ParameterError
        There is no image, or there are no candidates in them.
    """
    if not images:
        raise ParameterError("a picking model needs at least one micrograph to learn from")
    even = [even_image(image, diameter, bright=bright) for image in images]
    chance = [
        even_image(phase_randomised(image, seed + at), diameter, bright=bright) for at, image in enumerate(images)
    ]
    pixel_size = images[0].pixel_size
    sets = [disc_templates(diameter, pixel_size, tuple(scale * size for size in DISCS)) for scale in SCALES]
    kind = "disc" if templates is None else "template"
    nothing = ScoreMixture(np.full(2, 0.5), np.array([0.0, 1.0]), np.ones(2), 0.0)
    blank = PickingModel(diameter, pixel_size, bright, sets[0], kind, nothing, np.inf, False, np.inf)
    models = [
        calibrated(replace(blank, templates=each), even, chance)
        for each in (sets if templates is None else [templates])
    ]
    model = max(models, key=lambda each: (each.mixture.separated, np.isfinite(each.threshold), each.mixture.gain))
    profile = mean_profile(even, model) if refine and templates is None else None
    if profile is not None:
        better = calibrated(replace(model, templates=profile[None], kind="profile"), even, chance)
        if better.mixture.separated and better.mixture.separation > model.mixture.separation:
            return better
    return model


def calibrated(model: PickingModel, even: Sequence[EvenImage], chance: Sequence[EvenImage]) -> PickingModel:
    """Return a model with the mixture, threshold and limits that its templates have in images.

    Parameters
    ----------
    model
        Whose templates are used.
    even, chance
        Images, and those of the same power and random phases.
    """
    found = [all_candidates(image, model) for image in even]
    scores = np.concatenate([each.score for each in found])
    if len(scores) < 2 or np.ptp(scores) == 0:
        raise ParameterError("the micrographs show nothing that could be picked: all of their pixels are alike")
    mixture = fit_score_mixture(scores)
    by_chance = not mixture.separated
    if by_chance:
        random = np.concatenate([all_candidates(image, model).score for image in chance])
        threshold = threshold_by_chance(scores, random)
    else:
        threshold = mixture.equal()
    strength = np.concatenate(
        [_at(image.strength, each, each.score >= threshold) for image, each in zip(even, found, strict=True)]
    )
    limit = np.inf
    if len(strength) >= LEAST_MEMBERS:
        middle = float(np.median(strength))
        limit = middle + STRONGER * 1.4826 * float(np.median(np.abs(strength - middle)))
    return replace(model, mixture=mixture, threshold=threshold, by_chance=by_chance, strength_limit=limit)


def all_candidates(
    image: EvenImage, model: PickingModel, least: float = -np.inf, usable: NDArray[np.bool_] | None = None
) -> Candidates:
    """Return the candidates of an image, where it is usable; if that is not said, outside its junk."""
    if usable is None:
        usable = clean_part(image, model)
    return candidates_of(score_image(image, model), usable, APART * model.across, least)


def score_image(image: EvenImage, model: PickingModel) -> Float32:
    """Return the score of each pixel: its correlation with the templates, or what the network says."""
    if model.kind == "template":
        return template_score(image.image, model.templates, model.pixel_size, image.state)
    if model.network is None:
        return correlate(image.image, model.templates)
    return network_score(image.image, model.network, model.across)


def clean_part(image: EvenImage, model: PickingModel) -> NDArray[np.bool_]:
    """Return where an image is usable and shows no junk."""
    if not np.isfinite(model.strength_limit):
        return image.usable
    return image.usable & ~junk_of(image, model.strength_limit, model.across)


def mean_profile(even: Sequence[EvenImage], model: PickingModel) -> Float32 | None:
    """Return the mean of candidates that are most probably particles, averaged around the centre; None if they are few.

    Returns
    -------
    Shape (m, m): mean 0, norm 1, falling to zero at the rim.
    """
    reach = round(PROFILE * model.across)
    least = max(model.threshold, float(model.mixture.means[1])) if not model.by_chance else model.threshold
    total, members = np.zeros((2 * reach + 1, 2 * reach + 1)), 0
    for image in even:
        found = all_candidates(image, model, least)
        rows, columns = image.image.shape
        for x, y in zip(np.rint(found.x).astype(int), np.rint(found.y).astype(int), strict=True):
            if reach <= x < columns - reach and reach <= y < rows - reach:
                total += image.image[y - reach : y + reach + 1, x - reach : x + reach + 1]
                members += 1
    if members < LEAST_MEMBERS:
        return None
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    radius = np.hypot(x, y)
    ring = np.minimum(np.rint(radius).astype(int), reach)
    values = np.bincount(ring.ravel(), total.ravel()) / np.bincount(ring.ravel())
    rim = np.clip((reach - radius) / (0.3 * reach), 0, 1)
    profile = np.interp(radius, np.arange(reach + 1), values) * rim
    profile -= rim * (profile.sum() / rim.sum())
    return np.asarray(profile / np.sqrt((profile**2).sum()), np.float32)


def taught(
    model: PickingModel,
    images: Sequence[ReducedImage],
    marks: Sequence[NDArray[np.float64]] | None,
    seed: int,
    steps: int = STEPS,
) -> PickingModel:
    """Return a model with a network that was trained on the picks of a model, or on marks.

    Its threshold is where the network finds a particle as probable as none.

    Parameters
    ----------
    model
        Of `learn_model`.
    images
        Reduced micrographs.
    marks
        (k, 2) x and y of the particles of each, pixels of the reduced image, all of them marked; None: those that the
        model finds with a probability of at least `SURE_PICK` are particles, and those that may be have no part.
    seed
        Of the training.
    steps
        Of the training.
    """
    even = [even_image(image, model.diameter, bright=model.bright) for image in images]
    lessons = []
    for at, image in enumerate(even):
        if marks is not None:
            lessons.append(Lesson(image.image, image.usable, marks[at], np.zeros((0, 2))))
            continue
        found = all_candidates(image, model)
        places = np.stack([found.x, found.y], 1).astype(np.float64)
        sure = model.mixture.probability(found.score)
        if model.by_chance:
            sure = (found.score >= model.threshold).astype(np.float64)
        particles, unsure = places[sure >= SURE_PICK], places[(sure < SURE_PICK) & (sure > SURE_NOISE)]
        lessons.append(Lesson(image.image, clean_part(image, model), particles, unsure))
    network = train_network(lessons, model.across, seed, steps)
    limit = np.inf if marks is not None else model.strength_limit  # marks teach what junk is
    new = replace(model, network=network, kind="learned", threshold=0.0, by_chance=False, strength_limit=limit)
    scores = np.concatenate([all_candidates(image, new).score for image in even])
    return replace(new, mixture=fit_score_mixture(scores))


def pick_image(reduced: ReducedImage, model: PickingModel, *, seed: int = 0, margin: float = 0.0) -> Picked:
    """Return the particles of a micrograph.

    Parameters
    ----------
    reduced
        The micrograph.
    model
        What particles look like.
    seed
        Of random phases.
    margin
        Å from the edges within which nothing is picked.
    """
    even = even_image(reduced, model.diameter, bright=model.bright)
    clean = clean_part(even, model)
    masked = 1 - float(clean.mean())
    found = all_candidates(even, model, usable=clean)
    good = found.score >= model.threshold
    reason = ""
    if masked > MOST_MASKED:
        good[:] = False
        reason = f"{100 * masked:.0f} % of it is junk or empty"
    elif not np.isfinite(model.threshold):
        reason = "nothing stands out from chance in this data set"
    elif good.any() and not _beyond_chance(reduced, model, seed):
        good[:] = False
        reason = "its candidates are no better than those of random phases"
    elif not good.any():
        reason = "no candidate reaches the threshold"
    rows, columns = reduced.image.shape
    rim = margin / reduced.pixel_size
    good &= (found.x >= rim) & (found.x <= columns - 1 - rim) & (found.y >= rim) & (found.y <= rows - 1 - rim)
    scale_y, scale_x = reduced.scale
    return Picked(
        (found.x[good] * scale_x).astype(np.float32), (found.y[good] * scale_y).astype(np.float32),
        model.relative(found.score[good]), masked, model.relative(found.score), reason,
    )  # fmt: skip


def _beyond_chance(reduced: ReducedImage, model: PickingModel, seed: int) -> bool:
    """Return whether there are more good candidates than in an image of the same power with random phases.

    That is asked at the threshold, at the mean of particles, and between them; the middle of large images tells.
    """
    part = middle_part(reduced, round(TOLD_BY * model.across))
    high = max(float(model.mixture.means[1]), model.threshold) if model.mixture.separated else model.threshold
    there, chance = (
        all_candidates(even_image(image, model.diameter, bright=model.bright), model, model.threshold).score
        for image in (part, phase_randomised(part, seed))
    )
    if not len(chance):  # few particles on clean ice: nothing by chance is sure enough
        return True
    for least in np.linspace(model.threshold, high, 3):
        real, random = int((there >= least).sum()), int((chance >= least).sum())
        if real >= OVER_CHANCE * random and real - random > SURE * np.sqrt(real + random):
            return True
    return False


def _at(image: Float32, found: Candidates, chosen: NDArray[np.bool_]) -> Float32:
    x, y = np.rint(found.x[chosen]).astype(int), np.rint(found.y[chosen]).astype(int)
    return np.asarray(image[y.clip(0, image.shape[0] - 1), x.clip(0, image.shape[1] - 1)])
