"""Which particles and classes are worth keeping: a threshold between two groups of values, and why a class is none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.special import ndtr

Float64 = NDArray[np.float64]

APART = 2.2
"""Distance of the images of two groups of classes, in their mean standard deviation, from which on there are two.
Classes of one kind that are split in the middle are about 1.5 apart."""

RIM, PLANE, BRIGHT = 0.95, 0.4, 0.4
"""Inside this share of the radius, a class is that of a film's edge if a plane explains more than that share of its
variance; its bright parts are those above that share of the maximum."""

FEW = 5
"""Values below which no threshold is looked for."""

BELOW = 3.0
"""An image of a class that is kept may match by so many standard deviations of noise less than the threshold."""

NO_EVIDENCE = 8.0
"""Median evidence against noise, a natural logarithm, below which a class shows nothing."""

NOISE, OFF, EDGE = "noise", "off centre", "at the edge of the circle"
"""Why a class shows no particle; what lies at the edge is named more closely."""

MOST_OUT = 0.5
"""A rule by the shape of averages that would leave out a larger share of the images that are no noise is set aside."""

OFF_CENTRE = 0.2
"""Distance of a class's centre of mass from that of the box, in radii of the particle, from which on it is off centre;
of classes of particles it is below 0.1."""

AT_EDGE = 0.15
"""Share of a class's power in the outer sixth of the particle's circle from which on it lies at the edge; of classes of
particles it is below 0.05."""

IN_THE_MIDDLE = 0.4
"""Share of a class's variance that rings about the middle explain, from which on it shows one particle there; of
apoferritin between neighbours it is above 0.55, of what lies between two of them below 0.1."""


def threshold_between(values: NDArray[Any], weights: NDArray[Any]) -> float | None:
    """Return a threshold between two groups, whether there are two or not; None for too few values, or equal ones.

    The groups are those that leave least variance within them (Otsu 1979, 10.1109/TSMC.1979.4310076), the threshold
    lies as many standard deviations above the mean of the lower one as below that of the upper one.

    Parameters
    ----------
    values, weights
        (n,); values that are no numbers, and those of no weight, are left out.
    """
    known = np.isfinite(values) & (weights > 0)
    order = np.argsort(values[known], kind="stable")
    x, w = (np.asarray(part, np.float64)[known][order] for part in (values, weights))
    if len(x) < FEW or x[0] == x[-1]:
        return None
    mass, total = np.cumsum(w), np.cumsum(w * x)
    low, high = total[:-1] / mass[:-1], (total[-1] - total[:-1]) / (mass[-1] - mass[:-1])
    between = mass[:-1] * (mass[-1] - mass[:-1]) * (low - high) ** 2
    between[x[1:] == x[:-1]] = -1  # no threshold lies between equal values
    at = int(between.argmax()) + 1
    means, spreads = [], []
    for part in (slice(None, at), slice(at, None)):
        mean = float(np.average(x[part], weights=w[part]))
        means.append(mean)
        spreads.append(max(float(np.average((x[part] - mean) ** 2, weights=w[part])) ** 0.5, 1e-12))
    threshold = (means[0] * spreads[1] + means[1] * spreads[0]) / sum(spreads)
    return float(np.clip(threshold, x[at - 1], x[at]))


def distance_of(values: NDArray[Any], upper: NDArray[np.bool_]) -> float:
    """Return how far two groups of values (n,) are apart, in their mean standard deviation; 0 if one is empty."""
    above, below = values[upper], values[~upper]
    if not len(above) or not len(below):
        return 0.0
    spread = float(np.sqrt((above.var() + below.var()) / 2))
    return float(above.mean() - below.mean()) / max(spread, 1e-12)


def overlap(values: NDArray[Any], upper: NDArray[np.bool_], threshold: float) -> tuple[float, float]:
    """Return which share of an upper group lies below a threshold, and which share of what lies above it is of a lower
    one, if both are normally distributed.

    Parameters
    ----------
    values
        (n,).
    upper
        Which are of the upper group, (n,).
    threshold
        Between them.
    """
    above, below = values[upper], values[~upper]
    lost = float(ndtr((threshold - above.mean()) / max(float(above.std()), 1e-12)))
    if not len(below):
        return lost, 0.0
    hidden = len(below) * float(ndtr((below.mean() - threshold) / max(float(below.std()), 1e-12)))
    return lost, hidden / max(hidden + len(above) * (1 - lost), 1.0)


def reasons_against(
    images: Sequence[NDArray[Any]],
    radius: float,
    evidence: NDArray[Any],
    members: NDArray[Any],
    crowded: Sequence[bool] = (),
) -> tuple[list[str], list[str]]:
    """Return why classes show no particle, "" for those that nothing speaks against; and rules that were set aside.

    A rule that speaks against most of the images that are no noise tells nothing: particles may fill their circle, or
    lie close together, and then most classes have much at the edge, or their centre of mass beside that of the box.

    Parameters
    ----------
    images
        Averages, (n, n) each.
    radius
        Of the particle, pixels.
    evidence
        Median evidence of the images of each class against noise, (k,).
    members
        Images of each class, (k,).
    crowded
        Whether most images of each class have neighbours in their circle, (k,); of none if nothing is known.
    """
    aside: list[str] = []
    among = list(crowded) or [False] * len(images)
    while True:
        rules = {"edge": EDGE not in aside, "centre": OFF not in aside}
        found = [
            why_not(image, radius, float(one), crowded=near, **rules)
            for image, one, near in zip(images, evidence, among, strict=True)
        ]
        evident = np.array([why != NOISE for why in found], bool)
        kinds = np.array([why if why in ("", NOISE, OFF) else EDGE for why in found], str)
        most = [
            kind
            for kind in (EDGE, OFF)
            if kind not in aside and members[kinds == kind].sum() > MOST_OUT * members[evident].sum()
        ]
        if not most:
            return found, aside
        aside.append(most[0])


def why_not(
    image: NDArray[Any],
    radius: float,
    evidence: float,
    *,
    edge: bool = True,
    centre: bool = True,
    crowded: bool = False,
) -> str:
    """Return, in a few words, why a class shows no particle by itself; "" if nothing speaks against it.

    Parameters
    ----------
    image
        The average, (n, n), protein positive.
    radius
        Of the particle, pixels.
    evidence
        Median evidence of its images against noise.
    edge, centre
        Whether what lies at the edge of the circle, and a centre of mass that is off centre, count.
    crowded
        Whether most of its images have neighbours in their circle: these are at the edge then, and move the centre of
        mass, so neither counts if there is one particle in the middle.
    """
    if not evidence >= NO_EVIDENCE:
        return NOISE
    if crowded and shows_one_in_the_middle(image, radius):
        return ""
    n = len(image)
    y, x = np.mgrid[:n, :n] - n // 2
    distance = np.hypot(y, x)
    inside = distance <= radius
    power = np.square(image, dtype=np.float64)
    if edge and power[inside & (distance > 5 / 6 * radius)].sum() > AT_EDGE * power[inside].sum():
        return what_lies_at_the_edge(image, radius)
    if not centre:
        return ""
    bright = np.where(inside, np.maximum(image - np.median(image[inside]), 0), 0.0)
    moment = np.hypot((bright * x).sum(), (bright * y).sum())
    return OFF if moment > OFF_CENTRE * radius * max(float(bright.sum()), 1e-30) else ""


def shows_one_in_the_middle(image: NDArray[Any], radius: float) -> bool:
    """Tell whether a class shows one particle in the middle of its circle, whatever lies around it.

    Rings about the middle explain the average of a particle there, and not that of two with the middle between them,
    nor that of the edge of a film; and the particle is brighter than what lies in the outer sixth. Details are blurred
    away, so that the particle need not be round.

    Parameters
    ----------
    image, radius
        As for `why_not`.
    """
    n = len(image)
    y, x = np.mgrid[:n, :n] - n // 2
    distance = np.hypot(y, x)
    inside = distance <= radius
    blurred = ndimage.gaussian_filter(np.asarray(image, np.float64), radius / 10)[inside]
    blurred -= blurred.mean()
    ring = distance[inside].astype(np.intp)
    profile = np.bincount(ring, blurred) / np.maximum(np.bincount(ring), 1)
    far = distance[inside] / radius
    brighter = blurred[far <= 2 / 3].mean() > blurred[far > 5 / 6].mean()
    return bool(brighter and np.square(profile[ring]).sum() > IN_THE_MIDDLE * np.square(blurred).sum())


def what_lies_at_the_edge(image: NDArray[Any], radius: float) -> str:
    """Return what a class shows that has much power at the edge of the particle's circle, as far as it can be told.

    Across the edge of a film the brightness rises in one direction, as a plane does; two particles, or one between
    others, are bright in places on several sides. This only names what `why_not` has found.

    Parameters
    ----------
    image, radius
        As for `why_not`.
    """
    n = len(image)
    y, x = np.mgrid[:n, :n] - n // 2
    distance = np.hypot(y, x)
    inside = distance <= RIM * radius
    values = image[inside].astype(np.float64) - image[inside].mean()
    slopes = [float((values * axis[inside]).sum() / np.square(axis[inside]).sum()) for axis in (x, y)]
    rest = values - slopes[0] * x[inside] - slopes[1] * y[inside]
    if 1 - float(np.square(rest).sum()) / max(float(np.square(values).sum()), 1e-30) > PLANE:
        return "an edge of the film"
    bright = np.where(distance <= radius, image - np.median(image[distance <= radius]), 0.0)
    bright = np.maximum(ndimage.gaussian_filter(bright, radius / 10), 0)
    parts, count = ndimage.label(bright > BRIGHT * bright.max())
    numbers = np.arange(1, count + 1)
    masses = ndimage.sum(bright, parts, numbers)
    centres = np.reshape(ndimage.center_of_mass(bright, parts, numbers), (-1, 2)) - n // 2
    large = masses > BRIGHT * masses.max(initial=0)
    far = np.hypot(*centres.T) > radius / 2
    return "two particles" if np.count_nonzero(large & far) > 1 else "ice or a neighbour"
