"""Which images of a refinement show the molecule: judged for each half-set by itself, and said in one sentence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.align import best_of
from cloudem.algorithms.junk import Judgement, amplitude_evidence, judge
from cloudem.jobs.refine3d.tasks import Found
from cloudem.model.particles import DOUBTFUL

WORTH_SAYING = 0.02
"""Share of the images from which on leaving them out is suggested: so many are doubtful in clean sets, too."""

MOST_JUNK = 0.5
"""Share beyond which doubtful images are not taken for junk: a map is that of the molecule that most images show."""


def judged(found: Sequence[Found], scale: NDArray[np.float64], shown: bool) -> Judgement:
    """Judge the images of both half-sets, each from its own.

    Parameters
    ----------
    found
        Of each half-set.
    scale
        Of all particles of the store, with which they were aligned: what shows nothing was made faint by it, and is
        judged as it would be without. Particles without a half-set are 1 in ``keep``, and 0 in the evidence.
    shown
        Something beyond the starting map was shown. Before, all that images can match is that map, and to weight them
        by how well they do would draw the result towards it: all are 1 in ``keep``.
    """
    keep, (noise, other) = np.ones(len(scale)), np.zeros((2, len(scale)))
    for half in found:
        best = half.poses.take(best_of(half.poses.images))
        images, unscaled = best.images, half.matches.copy()
        unscaled[:, 0] -= amplitude_evidence(best.numerator, best.norm)
        unscaled[:, 0] += amplitude_evidence(best.numerator / scale[images], best.norm / scale[images] ** 2)
        judgement = judge(unscaled)
        noise[images] = judgement.noise_evidence
        if shown:
            keep[images], other[images] = judgement.keep, judgement.other_evidence
    return Judgement(keep, noise, other)


def advice(judgement: Judgement, half_set: NDArray[np.int8]) -> str:
    """Return how many images to leave out, as a sentence; "" where it is not worth it."""
    keep = judgement.keep[half_set > 0]
    doubtful = keep < DOUBTFUL
    count = int(np.count_nonzero(doubtful))
    if count < WORTH_SAYING * len(keep):
        return ""
    share = f"{count:,} of {len(keep):,} images ({count / len(keep):.0%})"
    if count > MOST_JUNK * len(keep):
        return (
            f"{share} match the fine detail of the map less than the others do, and hardly counted in it: most of them "
            "are probably too faint to be placed exactly. Leaving them out would not help"
        )
    noise = int(np.count_nonzero(doubtful & (judgement.noise_evidence[half_set > 0] < 0)))
    return (
        f"{share} probably show another molecule or nothing, or lie in a wrong pose ({noise:,} of them match no better "
        "than noise): they hardly counted in the map. To leave them out, take those with keep "
        f"(rlnParticleFigureOfMerit in an exported table) of {DOUBTFUL:g} or more"
    )
