"""Compile the CUDA sources at first use, bring arguments to the device, and launch kernels."""

from __future__ import annotations

import functools
from typing import Any

import cupy
import numpy as np
from numpy.typing import DTypeLike

from cloudem.kernels._cupy.source import BLOCK, source


@functools.cache
def _module(name: str) -> Any:
    return cupy.RawModule(code=source(name), options=("--std=c++17",))


def launch(module: str, kernel: str, blocks: tuple[int, int], *arguments: Any) -> None:
    """Run a kernel on blocks of :data:`BLOCK` threads; Python numbers become 32-bit ones."""
    if 0 in blocks:
        return
    _module(module).get_function(kernel)(blocks, (BLOCK,), tuple(map(_typed, arguments)))


def _typed(argument: Any) -> Any:
    if isinstance(argument, int | np.integer):
        return np.int32(argument)
    return np.float32(argument) if isinstance(argument, float) else argument


def blocks(rows: int, columns: int) -> tuple[int, int]:
    """Return the grid that gives each element of an array (rows, columns) its thread."""
    return rows, -(-columns // BLOCK)


def device(values: Any, dtype: DTypeLike) -> Any:
    """Return an array as one on the device, contiguous and of a type; as it is, where it is one already."""
    return cupy.ascontiguousarray(cupy.asarray(values, dtype))


def in_place(array: Any, dtype: DTypeLike) -> Any:
    """Return an array that a kernel will write to, once it is sure that the kernel can."""
    if array.dtype != dtype or not array.flags.c_contiguous:
        raise ValueError(
            f"accumulator of {array.dtype}, contiguous: {array.flags.c_contiguous}; a kernel writes to contiguous "
            f"{np.dtype(dtype)} on the device; allocate it with empty_sums"
        )
    return array
