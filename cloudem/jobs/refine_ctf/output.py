"""What a CTF refinement says of aberrations: rows of a table in the usual units, and sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.ctf_refinement import DEGREES, FAMILIES, LEAST_CS, NAMES, Judged
from cloudem.kernels.aberrations import beam_tilt_terms
from cloudem.model.optics import OpticsGroup

Float64 = NDArray[np.float64]

PER_CENT = np.array([2.0, 2.0, 1.0]) * 100
"""Factors on the parameters of M: M00 - M11 and M01 + M10 are twice theirs."""

SAID = {
    (True, True): "applied",
    (False, True): "not significant, applied with the defocus",
    (False, False): "not significant",
}
"""Verdicts, by whether a parameter is significant, and whether it is applied."""


def units_of(group: OpticsGroup) -> tuple[Float64, list[str]]:
    """Return the factor and the unit with which people read each of the 14 parameters."""
    factor = np.ones(len(NAMES))
    unit = ["%"] * 3 + ["rad\u00a0Å³"] * 4 + ["rad\u00a0Å²"] * 2 + ["rad\u00a0Å⁴"] * 5
    factor[:3] = PER_CENT
    if group.spherical_aberration >= LEAST_CS:  # else it is not written as a beam tilt
        factor[3:5] = 1 / beam_tilt_terms((1.0, 0.0), group.spherical_aberration, group.voltage)[2]
        unit[3:5] = ["mrad"] * 2
    return factor, unit


def aberration_arrays(
    optics: Sequence[OpticsGroup], judged: Sequence[Judged], change: Float64, limit: float
) -> dict[str, NDArray[Any]]:
    """Return the columns of the table of aberrations, with the parameters and covariances as they were fitted.

    Parameters
    ----------
    optics, judged
        Groups, and what is believed of each.
    change
        What is applied, (g, 14).
    limit
        Frequency limit, 1/Å.
    """
    rows: list[tuple[Any, ...]] = []
    for group, verdict, applied in zip(optics, judged, change, strict=True):
        factor, unit = units_of(group)
        for place in np.flatnonzero(verdict.fitted):
            value = applied[place] if verdict.believed[place] else verdict.values[place]
            phase = np.rad2deg(value * limit ** DEGREES[place]) if DEGREES[place] else np.nan
            said = SAID[bool(verdict.significant[place]), bool(verdict.believed[place])]
            error = verdict.errors[place] * abs(factor[place])
            rows.append(
                (
                    group.name, NAMES[place], value * factor[place], error, unit[place], phase,
                    verdict.deviations[place], said,
                )
            )  # fmt: skip
    names = ("group", "name", "value", "error", "unit", "phase_deg", "deviations", "verdict")
    columns = zip(*rows, strict=True) if rows else [() for _ in names]
    numbers = {"value", "error", "phase_deg", "deviations"}
    found: dict[str, NDArray[Any]] = {
        f"aberration_{name}": np.array(column, np.float64 if name in numbers else str)
        for name, column in zip(names, columns, strict=True)
    }
    return {
        **found,
        "aberration_values": np.array([verdict.values for verdict in judged]),
        "aberration_change": change,
        "aberration_covariance": np.array([verdict.covariance for verdict in judged]),
    }


def sentences(optics: Sequence[OpticsGroup], judged: Sequence[Judged]) -> list[str]:
    """Return what was found of each optics group, a sentence each."""
    out = []
    for group, verdict in zip(optics, judged, strict=True):
        kinds: dict[str, list[str]] = {said: [] for said in SAID.values()}
        for name, places in FAMILIES:
            here = [place for place in places if verdict.fitted[place]]
            if here:
                said = SAID[bool(verdict.significant[here[0]]), bool(verdict.believed[here[0]])]
                kinds[said].append(f"{name} ({verdict.deviations[here[0]]:.1f})")
        if said_of := [f"{word}: {', '.join(names)}" for word, names in kinds.items() if names]:
            out.append(f"optics group {group.name}, standard deviations from no change: {'; '.join(said_of)}")
    return out
