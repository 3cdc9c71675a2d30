"""The same bits wherever arrays lie: what compilers may change, and the case in which it was seen."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import textwrap
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numba.core.registry import CPUDispatcher

import cloudem.kernels._numba
from cloudem.kernels.motion import correlation_steps

LOOPS = {"nsz"}
"""The sign of a zero is free, no rounding is. ``reassoc`` and ``contract`` let the vector loop round otherwise than the
scalar loop that runs where short arrays are neighbours, and ``fastmath=True`` holds both."""
READING = {"cloudem.kernels._numba.slices._reduce", "cloudem.kernels._numba.model_fit._dot"}
"""Functions that may have any flags since they write to no array: their loops need no check of where arrays lie, so
there is one path."""


def compiled() -> dict[str, Any]:
    package = cloudem.kernels._numba
    found = {}
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        for name, made in vars(importlib.import_module(module.name)).items():
            if isinstance(made, CPUDispatcher):
                found[f"{made.py_func.__module__}.{name}"] = made
    return found


def test_flags_leave_the_order_and_the_rounding_of_loops_alone() -> None:
    functions = compiled()
    assert len(functions) > 40
    assert set(functions) >= READING
    for name, made in functions.items():
        flags = made.targetoptions.get("fastmath") or set()
        if name in READING and flags:
            assert not writes(made.py_func), f"{name} writes to an array; its flags must be among {sorted(LOOPS)}"
            continue
        assert isinstance(flags, set), f"{name} has fastmath={flags}, which lets sums have any order; name its flags"
        assert flags <= LOOPS, f"{name} has {sorted(flags - LOOPS)}; allowed are {sorted(LOOPS)}"


def writes(function: Callable[..., Any]) -> bool:
    """Return whether a function assigns to elements, or calls what might."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    stored = [node for node in ast.walk(tree) if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store)]
    called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    return bool(stored) or not called <= {"range", "np.float32", "a.ravel"}


@pytest.mark.parametrize("frames", [7, 8, 9, 10])
def test_short_arrays_give_the_same_bits_side_by_side_and_far_apart(frames: int) -> None:
    """With ``reassoc`` the scalar loop ran here for neighbours, and its sums had other bits."""
    rng = np.random.default_rng(frames)
    waves = np.array([[y, x] for y in range(-3, 4) for x in range(1, 5)], np.int32)
    steps, moved = np.array([0.03, 0.05]), rng.normal(size=(frames, 2))
    weight, pattern = rng.random((2, len(waves))).astype(np.float32)
    values = rng.standard_normal((2, len(waves), frames)).astype(np.float32)
    kept, found = [], set()
    for pieces in range(60):
        kept.append([np.empty(int(size), np.uint8) for size in rng.integers(8, 700, pieces)][::2])
        result = correlation_steps(values[0], values[1], waves, steps, weight, pattern, moved)
        found.add(b"".join(np.asarray(part).tobytes() for part in result))
    assert len(found) == 1
