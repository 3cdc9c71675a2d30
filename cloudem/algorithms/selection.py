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

FEW = 20
"""Images below which no threshold is looked for."""

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
    lost, kept
        Shares: of the upper group that lies below the threshold, and of what lies above it that is of the lower group,
        if both were normally distributed.
    """

    threshold: float
    apart: float
    lost: float
    kept: float

    @property
    def there(self) -> bool:
        """Whether there are two groups at all."""
        return self.apart > APART


def two_groups(values: NDArray[Any]) -> TwoGroups | None:
    """Return the threshold between two groups that leaves least variance within them (Otsu 1979,
    10.1109/TSMC.1979.4310076); None for too few values, or equal ones.

    Parameters
    ----------
    values
        (n,); those that are no numbers are left out.
    """
    known = np.sort(np.asarray(values, np.float64)[np.isfinite(values)])
    count = len(known)
    if count < FEW or known[0] == known[-1]:
        return None
    first = np.arange(1, count)
    sums = np.cumsum(known)
    low, high = sums[:-1] / first, (sums[-1] - sums[:-1]) / (count - first)
    between = first * (count - first) * (low - high) ** 2
    between[known[1:] == known[:-1]] = -1  # no threshold lies between equal values
    at = int(between.argmax()) + 1
    below, above = known[:at], known[at:]
    spread = [max(float(part.std()), 1e-12) for part in (below, above)]
    apart = float(above.mean() - below.mean()) / float(np.sqrt(np.mean(np.square(spread))))
    # where the two normal distributions have fallen equally far, rather than in the middle of the gap
    threshold = float((below.mean() * spread[1] + above.mean() * spread[0]) / sum(spread))
    threshold = float(np.clip(threshold, below[-1], above[0])) if apart > APART else float(above[0])
    lost = float(ndtr((threshold - above.mean()) / spread[1]))
    junk = float(ndtr((below.mean() - threshold) / spread[0])) * len(below)
    return TwoGroups(threshold, apart, lost, junk / max(junk + len(above), 1.0))


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
