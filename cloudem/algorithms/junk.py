"""Which images show the molecule: the evidence of each against noise, and against another molecule.

**Noise.** With N = Re⟨X C/σ², S⟩, D = ⟨C²/σ², |S|²⟩ and an amplitude a of the image, the likelihood of a pose over that
of noise is ``exp(a N - a² D / 2)``. Its mean over all poses and amplitudes is the Bayes factor of "this image shows the
molecule" against "it shows nothing": the amplitude is integrated in closed form, with a prior of 1 ± `CONTRAST`, which
leaves thin and thick ice alone; rotation and shift by Laplace's approximation, as for the weights of poses
(:func:`cloudem.algorithms.align.evidence`). That all poses were tried is thereby paid for, and of noise it is negative.
(MacKay 2003, Information Theory, Inference, and Learning Algorithms, chapter 28.)

**Another molecule** matches at low frequencies, where globules of one size look alike, and less beyond, in any pose. An
image of weak contrast matches less everywhere. So of each image the match beyond :func:`alike_shell` is held against
the match up to there: images that show the molecule in its pose lie about one line, others about a line below. Two
lines are fitted by expectation maximisation (a mixture of linear regressions: Quandt & Ramsey 1978,
10.1080/01621459.1978.10480085), and believed only if they are better than one and far apart. Nothing is supposed of
the distribution of contrasts.

Each half-set is judged from its own images, with its own reference.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.align import Poses, Prior, Weighted, evaluate, evidence

Float64 = NDArray[np.float64]

CONTRAST = 0.5
"""Standard deviation of images' amplitudes about that of the reference, before they are looked at."""

ALIKE = 4.0
"""Waves across the particle's diameter up to which globular molecules of one size look alike."""

LEAST_GAIN = 15.0
"""Natural logarithm of the likelihood by which two lines have to be better than one."""

LEAST_APART = 1.5
"""Standard deviations by which the lines have to lie apart where the others are."""

LEAST_OTHERS, MOST_OTHERS = 10, 0.5
"""Fewest images, and largest share of all, that may be called another molecule: a map is that of the molecule that most
images show. Of a clean set, two lines may divide images by how exactly they are placed; with 0.8, two thirds of a
half-set of 1,000 were left out of every other iteration, and the map's FSC with the truth fell by 0.05."""

LEAST_SHOWN = 0.2
"""Share of the images that have to show the molecule for evidence against noise to count: images too faint to be told
from noise one by one are told apart by their luck, and weights would follow that."""

LEAST_VARIANCE = 0.25
"""Of a line: a match in standard deviations of noise varies by 1, so that a narrower line is one of a few images."""

SAMPLE = 20_000
"""Images of a half-set from all over the table that the lines are fitted to; all are judged by them."""

STARTS = (0.05, 0.15, 0.3, 0.5)
"""Shares of the worst matches that the fit begins with as another molecule."""

ROUNDS, ENOUGH = 300, 1e-6
"""Most rounds of expectation maximisation, and the gain for each image below which it ends."""

STEEPEST = 50.0
"""Evidence beyond this, either way, is certainty."""

DIGITS = 4
"""Of a probability: free of the last bits, which depend on where arrays lie in memory."""


class Lines(NamedTuple):
    """Two lines, that of the molecule first: ``high = level + slope (low - centre) ± sqrt(variance)``.

    ``share`` is that of the images; each of them has shape (2,), ``centre`` is a number.
    """

    centre: float
    level: Float64
    slope: Float64
    variance: Float64
    share: Float64


@dataclass(frozen=True)
class Judgement:
    """What is known of each image of a half-set, (b,).

    Attributes
    ----------
    keep
        Probability that it shows the molecule, in the pose that was found, 0 to 1.
    noise_evidence
        Natural logarithm of the Bayes factor against noise.
    other_evidence
        The same against another molecule; 0 where none is seen among the images.
    """

    keep: Float64
    noise_evidence: Float64
    other_evidence: Float64


def alike_shell(box: int, radius: float) -> int:
    """Return the highest shell at which molecules of that radius (pixels) look alike."""
    return max(1, int(ALIKE * box / (2 * radius)))


def pose_matches(
    volume: NDArray[np.complex64],
    padding: float,
    box: int,
    low: Weighted,
    highest: int,
    best: Poses,
    share: Float64,
    prior: Prior,
    order: int,
) -> Float64:
    """Return what the most probable pose of each image says, for :func:`judge`.

    Parameters
    ----------
    volume, padding, box, prior
        As for :func:`cloudem.algorithms.align.evaluate`.
    low
        The batch on the shells up to :func:`alike_shell`.
    highest
        Last shell that was scored.
    best
        One pose for each image, scored on all shells.
    share
        Its part of the image's probability, (b,).
    order
        Of the point group: so many poses are the same.

    Returns
    -------
    Shape (b, 3): natural logarithm of the Bayes factor against noise, and the match ``N / sqrt(D)`` on the shells of
    ``low`` and on those beyond; NaN where there are none.
    """
    inner, _ = evaluate(volume, padding, box, low, best, prior)
    found = [(inner.numerator, inner.norm), (best.numerator - inner.numerator, best.norm - inner.norm)]
    # poses may have moved by a last step since they were scored on all shells: without others, the rest is not nothing
    there = (True, highest > int(low.disc.shell.max()))
    seen = [some & (norm > 1e-4 * best.norm) for some, (_, norm) in zip(there, found, strict=True)]
    matches = [
        np.where(some, n / np.sqrt(np.where(some, d, 1.0)), np.nan) for (n, d), some in zip(found, seen, strict=True)
    ]
    return np.stack([noise_evidence(best, prior, order) - np.log(share), *matches], axis=1)


def noise_evidence(best: Poses, prior: Prior, order: int) -> Float64:
    """Return the logarithm of the Bayes factor of each image against noise, from one of its poses alone, (b,).

    A pose is one of a volume of them, `Prior.log_volume`.
    """
    peak = evidence(best) - best.score + 2.5 * np.log(2 * np.pi)
    known = prior.log_of(best) + peak - prior.log_volume(order)
    return np.asarray(amplitude_evidence(best.numerator, best.norm) + known)


def amplitude_evidence(numerator: Float64, norm: Float64) -> Float64:
    """Return the logarithm of the Bayes factor against noise in one pose, with any amplitude of the image, (b,).

    ``∫ exp(a N - a² D/2) p(a) da`` for a Gaussian prior of mean 1 and variance τ² is
    ``exp((N + 1/τ²)² / (2 (D + 1/τ²)) - 1/(2 τ²)) / sqrt(1 + D τ²)``.
    """
    sharp = 1 / CONTRAST**2
    exponent = (numerator + sharp) ** 2 / (2 * (norm + sharp)) - sharp / 2
    return np.asarray(exponent - np.log1p(norm * CONTRAST**2) / 2)


def judge(matches: Float64) -> Judgement:
    """Return what is known of the images of one half-set, from :func:`pose_matches`, (b, 3)."""
    against_noise, low, high = matches.T
    step = max(1, -(-len(matches) // SAMPLE))
    shows = _sigmoid(against_noise + _log_odds(against_noise[::step]))
    if shows.mean() < LEAST_SHOWN:
        shows = np.ones(len(matches))
    known, others = np.isfinite(low) & np.isfinite(high), np.zeros(len(matches))
    part = np.flatnonzero(known)[::step]
    lines = two_lines(low[part], high[part], shows[part]) if len(part) else None
    keep = shows.copy()
    if lines is not None:
        density = _densities(lines, low[known], high[known])
        others[known] = density[0] - density[1]
        keep[known] *= _sigmoid(others[known] + np.log(lines.share[0] / lines.share[1]))
    return Judgement(np.round(keep, DIGITS), against_noise, others)


def two_lines(low: Float64, high: Float64, weight: Float64) -> Lines | None:
    """Fit two lines to the matches of images, each with a weight of 0 to 1; None where one line says it as well.

    Parameters
    ----------
    low, high
        Matches up to :func:`alike_shell` and beyond, in standard deviations of noise, (b,).
    weight
        How much each image counts.
    """
    total = float(weight.sum())
    if total < 2 * LEAST_OTHERS:
        return None
    centre = float((weight * low).sum()) / total
    single = _fitted(low - centre, high, weight[None], centre)
    rest = high - single.level - single.slope * (low - centre)
    alone = float((weight * _densities(single, low, high)[0]).sum())
    best, likelihood = None, alone + LEAST_GAIN
    for worst in STARTS:
        lines, reached = _climbed(low, high, weight, centre, rest > np.quantile(rest, worst))
        if reached > likelihood and _apart(lines, low, high, weight):
            best, likelihood = lines, reached
    return best


def _climbed(
    low: Float64, high: Float64, weight: Float64, centre: float, better: NDArray[np.bool_]
) -> tuple[Lines, float]:
    """Return the two lines to which expectation maximisation leads, and the logarithm of their likelihood."""
    first, before = 0.05 + 0.9 * better, -np.inf
    for _ in range(ROUNDS):
        lines = _fitted(low - centre, high, weight * np.stack([first, 1 - first]), centre)
        joint = np.log(lines.share)[:, None] + _densities(lines, low, high)
        total = np.logaddexp(joint[0], joint[1])
        likelihood = float((weight * total).sum())
        first = np.exp(joint[0] - total)
        if likelihood - before < ENOUGH * len(low):
            break
        before = likelihood
    if lines.level[0] < lines.level[1]:
        lines = Lines(centre, *(np.asarray(part)[::-1] for part in lines[1:]))
    return lines, likelihood


def _fitted(x: Float64, y: Float64, weights: Float64, centre: float) -> Lines:
    """Return the weighted regressions of y on x, one for each row of weights."""
    total = np.maximum(weights.sum(axis=1), 1e-9)
    middle = [((weights * values).sum(axis=1) / total)[:, None] for values in (x, y)]
    dx, dy = x - middle[0], y - middle[1]
    slope = (weights * dx * dy).sum(axis=1) / np.maximum((weights * dx * dx).sum(axis=1), 1e-9)
    rest = dy - slope[:, None] * dx
    variance = np.maximum((weights * rest * rest).sum(axis=1) / total, LEAST_VARIANCE)
    return Lines(centre, middle[1][:, 0] - slope * middle[0][:, 0], slope, variance, total / total.sum())


def _densities(lines: Lines, low: Float64, high: Float64) -> Float64:
    """Return the logarithm of the density of ``high`` given ``low`` by each line, (lines, b)."""
    rest = high - lines.level[:, None] - lines.slope[:, None] * (low - lines.centre)
    variance = lines.variance[:, None]
    return np.asarray(-(rest**2) / (2 * variance) - np.log(2 * np.pi * variance) / 2)


def _apart(lines: Lines, low: Float64, high: Float64, weight: Float64) -> bool:
    """Tell whether the second line is another kind of images: enough of them, and well below where they are."""
    joint = np.log(lines.share)[:, None] + _densities(lines, low, high)
    others = weight * _sigmoid(joint[1] - joint[0])
    count = float(others.sum())
    if count < LEAST_OTHERS or count > MOST_OTHERS * weight.sum():
        return False
    there = float((others * low).sum()) / count - lines.centre
    distance = lines.level[0] - lines.level[1] + (lines.slope[0] - lines.slope[1]) * there
    return bool(distance > LEAST_APART * np.sqrt(lines.variance.mean()))


def _log_odds(against_noise: Float64) -> float:
    """Return the logarithm of the odds with which any image shows the molecule, by expectation maximisation."""
    odds = 0.0
    for _ in range(ROUNDS):
        share = float(np.clip(_sigmoid(against_noise + odds).mean(), 1e-3, 1 - 1e-3))
        before, odds = odds, float(np.log(share / (1 - share)))
        if abs(odds - before) < 1e-6:
            break
    return odds


def _sigmoid(value: Any) -> Float64:
    return np.asarray(1 / (1 + np.exp(-np.clip(value, -STEEPEST, STEEPEST))))
