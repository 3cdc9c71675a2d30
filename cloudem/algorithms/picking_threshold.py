"""From which score on candidates are particles: decided by the candidates of all images together.

Scores of candidates are of two kinds, those that chance makes and those of particles. Where two normal distributions
describe them and lie apart (`SEPARATED`), the threshold is where a candidate is of either kind with equal probability:
what is then picked has nearly the best F1 that a threshold can have, for which the probability should be half the F1.
Where they do not lie apart, the threshold is the score above which images of the same power and random phases have few
candidates (`FALSE_SHARE` of those of the images); noise alone has no such score, and nothing is picked.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SEPARATED = 2.2
"""Least distance of the means in units of the mean deviation (D of Ashman, Bird & Zepf 1994, who ask for 2).

Candidates of noise alone, which are maxima and thus skew, give 0.8 to 1.9.
"""

LEAST_GAIN = 0.045
"""Logarithm of the likelihood of a candidate that two distributions gain over one, at least."""

FALSE_SHARE = 0.1
"""Of the picks, without two distributions."""

LEAST_PICKS = 20
"""Picks that a threshold from random phases must have."""

BINS = 400
STEPS = 500


@dataclass(frozen=True)
class ScoreMixture:
    """Two normal distributions of scores: of chance, and of particles.

    Attributes
    ----------
    weights, means, deviations
        (2,) the lower one first.
    gain
        Logarithm of the likelihood, mean over candidates, over that of one distribution.
    """

    weights: NDArray[np.float64]
    means: NDArray[np.float64]
    deviations: NDArray[np.float64]
    gain: float

    @property
    def separation(self) -> float:
        """Distance of the means in units of the root mean square deviation."""
        return float((self.means[1] - self.means[0]) / np.sqrt((self.deviations**2).mean()))

    @property
    def separated(self) -> bool:
        """Whether there are two kinds."""
        return self.separation >= SEPARATED and self.gain >= LEAST_GAIN

    def probability(self, scores: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return with what probability candidates are particles; above the mean of particles it does not fall."""
        inside = np.clip(np.asarray(scores, np.float64), self.means[0], self.means[1])
        chance, particle = (self._log_density(inside, number) for number in (0, 1))
        return np.asarray(1 / (1 + np.exp(np.clip(chance - particle, -500, 500))))

    def equal(self) -> float:
        """Return the score at which both kinds are equally probable."""
        grid = np.linspace(self.means[0], self.means[1], 2001)
        above = self.probability(grid) >= 0.5
        return float(grid[int(np.argmax(above))] if above.any() else grid[-1])

    def _log_density(self, scores: NDArray[np.float64], number: int) -> NDArray[np.float64]:
        deviation = self.deviations[number]
        off = (scores - self.means[number]) / deviation
        return np.asarray(np.log(self.weights[number] / deviation) - off**2 / 2)


def fit_score_mixture(scores: NDArray[np.floating]) -> ScoreMixture:
    """Fit two normal distributions to scores by expectation and maximisation, from several starts.

    Parameters
    ----------
    scores
        (n,) at least two different ones.
    """
    values = np.asarray(scores, np.float64)
    counts, edges = np.histogram(values, BINS)
    middles, share = (edges[1:] + edges[:-1]) / 2, counts / counts.sum()
    width = edges[1] - edges[0]
    mean = (share * middles).sum()
    variance = (share * (middles - mean) ** 2).sum() + width**2 / 12
    alone = -0.5 - 0.5 * np.log(variance)
    fits = [_fitted(middles, share, width, float(np.quantile(values, upper))) for upper in (0.5, 0.7, 0.85, 0.95)]
    likelihood, mixture = max(fits, key=lambda fit: fit[0])
    order = np.argsort(mixture[1])
    weights, means, deviations = (part[order] for part in mixture)
    return ScoreMixture(weights, means, deviations, float(likelihood - alone))


def _fitted(
    middles: NDArray[np.float64], share: NDArray[np.float64], width: float, split: float
) -> tuple[float, tuple[NDArray[np.float64], ...]]:
    member = np.stack([middles <= split, middles > split]).astype(np.float64)
    least = (3 * width) ** 2
    likelihood = -np.inf
    for _ in range(STEPS):
        mass = member * share
        weights = np.maximum(mass.sum(1), 1e-9)
        means = (mass * middles).sum(1) / weights
        variances = (mass * (middles - means[:, None]) ** 2).sum(1) / weights + width**2 / 12
        variances = np.maximum(variances, least)
        logs = np.log(weights / weights.sum() / np.sqrt(variances))[:, None]
        logs = logs - (middles - means[:, None]) ** 2 / 2 / variances[:, None]
        total = np.logaddexp(logs[0], logs[1])
        member = np.exp(logs - total)
        before, likelihood = likelihood, float((share * total).sum())
        if likelihood - before < 1e-9:
            break
    return likelihood, (weights / weights.sum(), means, np.sqrt(variances))


def threshold_by_chance(scores: NDArray[np.floating], chance: NDArray[np.floating]) -> float:
    """Return the least score above which random phases have few candidates; infinity if there is none.

    Parameters
    ----------
    scores
        Of the candidates of images.
    chance
        Of those of the same images with random phases.
    """
    ordered, random = np.sort(scores)[::-1], np.sort(chance)
    above = np.arange(1, len(ordered) + 1)
    false = len(random) - np.searchsorted(random, ordered, side="left")
    good = (false + 1 <= FALSE_SHARE * above) & (above >= LEAST_PICKS)
    return float(ordered[np.flatnonzero(good)[-1]]) if good.any() else float("inf")
