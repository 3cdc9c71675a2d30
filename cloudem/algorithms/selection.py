"""Which particles and classes are worth keeping: a threshold between two groups of values, and why a class is none."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

Float64 = NDArray[np.float64]

APART = 3.6
"""Distance of two groups, in their mean standard deviation, from which on there are two: the halves of one normal
distribution are 2.7 apart, those of a uniform one 3.5."""

FEW = 5
"""Values below which no threshold is looked for."""

BELOW = 2.0
"""An image of a class that is kept may match by so many standard deviations of noise less than the threshold."""

NO_EVIDENCE = 8.0
"""Median evidence against noise, a natural logarithm, below which a class shows nothing."""

OFF_CENTRE = 0.3
"""Distance of a class's centre from that of the box, in radii of the particle, from which on it is off centre."""

AT_EDGE = 0.35
"""Share of a class's power in the outer sixth of the particle's circle from which on it lies at the edge."""


class TwoGroups(NamedTuple):
    """A threshold between two groups of values.

    Attributes
    ----------
    threshold
        Values from it on are of the upper group.
    apart
        Distance of the means in the mean standard deviation.
    """

    threshold: float
    apart: float

    @property
    def there(self) -> bool:
        """Whether there are two groups at all."""
        return self.apart > APART


def two_groups(values: NDArray[Any], weights: NDArray[Any]) -> TwoGroups | None:
    """Return the threshold between two groups; None for too few values, or equal ones.

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
    apart = (means[1] - means[0]) / float(np.sqrt(np.mean(np.square(spreads))))
    threshold = (means[0] * spreads[1] + means[1] * spreads[0]) / sum(spreads)
    return TwoGroups(float(np.clip(threshold, x[at - 1], x[at])), apart)


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


def why_not(image: NDArray[Any], radius: float, evidence: float) -> str:
    """Return, in a few words, what is wrong with a class average that matches its images poorly.

    Parameters
    ----------
    image
        The average, (n, n), protein positive.
    radius
        Of the particle, pixels.
    evidence
        Median evidence of its images against noise.
    """
    if not evidence >= NO_EVIDENCE:
        return "noise"
    n = len(image)
    y, x = np.mgrid[:n, :n] - n // 2
    distance = np.hypot(y, x)
    power = np.square(image, dtype=np.float64)
    rim = power[(distance > 5 / 6 * radius) & (distance <= radius)].sum() / max(power[distance <= radius].sum(), 1e-30)
    if rim > AT_EDGE:
        return "edge, ice or a neighbour"
    bright = np.where(distance <= radius, np.maximum(image - np.median(image[distance <= radius]), 0), 0.0)
    total = max(float(bright.sum()), 1e-30)
    if np.hypot((bright * x).sum(), (bright * y).sum()) / total > OFF_CENTRE * radius:
        return "off centre"
    return "no detail"
