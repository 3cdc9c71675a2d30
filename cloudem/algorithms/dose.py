"""Radiation damage: how much of a signal is left after a dose, and how frames are weighted by it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

CURVE = 0.24499, -1.6649, 2.8141
"""Of the critical dose at 300 kV, ``a * k^b + c`` e/Å² at k in 1/Å; Grant & Grigorieff 2015, 10.7554/eLife.06980."""

VOLTAGES, SHARES = (100.0, 200.0, 300.0), (0.532, 0.8, 1.0)
"""Critical doses at these voltages (kV) as shares of those at 300 kV. At 200 kV: the same paper. At 100 kV programs
differ: cisTEM has 0.532, as here, and RELION 0.64. Squared speeds of electrons, to which damage is nearly inverse, have
a ratio of 0.50."""


def critical_dose(frequency: Float64, voltage: float) -> Float64:
    """Return the dose after which the amplitude of a signal has fallen to ``exp(-1/2)``.

    Parameters
    ----------
    frequency
        1/Å, any shape.
    voltage
        kV; between those that are known it is interpolated, beyond them the nearest one counts.

    Returns
    -------
    dose
        e/Å²; infinite at 0.
    """
    scale, power, constant = CURVE
    with np.errstate(divide="ignore"):
        at_300 = scale * np.asarray(frequency, np.float64) ** power + constant
    return np.asarray(at_300 * np.interp(voltage, VOLTAGES, SHARES))


def dose_weights(frequency: Float64, doses: Float64, voltage: float) -> Float64:
    """Return the weight of each frame: ``exp(-dose / (2 critical dose))``.

    Parameters
    ----------
    frequency
        1/Å, ``(m,)``.
    doses
        That the specimen had received at the end of each frame, e/Å², ``(frames,)``.
    voltage
        kV.

    Returns
    -------
    weights
        Shape ``(frames, m)``.
    """
    return np.asarray(np.exp(-0.5 * np.asarray(doses)[:, None] / critical_dose(frequency, voltage)))
