"""The text of the CUDA sources, with the constants that they share with the NumPy references."""

from __future__ import annotations

from importlib.resources import files

import numpy as np

from cloudem.kernels.slices import POLYNOMIALS, WINDOW

BLOCK = 128
"""Threads of a block."""

MODULES = ("slices", "polar", "ctf", "packed_sphere")
"""The sources ``<name>.cu``; each goes with the references of the same name."""


def source(module: str) -> str:
    """Return the whole source of a module: generated constants, the common device functions, its kernels."""
    rows = ", ".join("{" + ", ".join(f"{value:.9e}f" for value in row) + "}" for row in POLYNOMIALS)
    constants = {
        "WINDOW": str(WINDOW),
        "DEGREE": str(POLYNOMIALS.shape[1] - 1),
        "COEFFICIENTS": "{" + rows + "}",
        "BLOCK": str(BLOCK),
        "PI": repr(float(np.pi)),
    }
    lines = [f"#define {name} {value}\n" for name, value in constants.items()]
    package = files(__package__)
    return "".join(lines) + "".join((package / name).read_text("utf-8") for name in ("window.cuh", f"{module}.cu"))
