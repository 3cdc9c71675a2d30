"""numba twins of :mod:`cloudem.kernels.eer`."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

from cloudem.kernels.eer import ENDS_EARLY, RUNS_OVER


@numba.njit(nogil=True, cache=True)
def _unpack(
    data: NDArray[np.uint8],
    run_bits: int,
    symbol_bits: int,
    padded: bool,
    pixels: int,
    positions: NDArray[np.int32],
    symbols: NDArray[np.uint8],
) -> int:
    one = np.uint64(1)
    runs, marks = (one << np.uint64(run_bits)) - one, (one << np.uint64(symbol_bits)) - one
    held, bits, byte = np.uint64(0), 0, 0  # bits that were read and are not used yet
    place, count = 0, 0
    while place < pixels:
        while bits <= 48 and byte < data.size:
            held |= np.uint64(data[byte]) << np.uint64(bits)
            byte += 1
            bits += 8
        if bits < run_bits:
            return ENDS_EARLY
        run = held & runs
        held >>= np.uint64(run_bits)
        bits -= run_bits
        place += int(run)
        if place >= pixels:
            break
        if run == runs:
            if padded:
                if bits < symbol_bits:
                    return ENDS_EARLY
                held >>= np.uint64(symbol_bits)
                bits -= symbol_bits
            continue
        if bits < symbol_bits:
            return ENDS_EARLY
        positions[count] = place
        symbols[count] = np.uint8(held & marks)
        held >>= np.uint64(symbol_bits)
        bits -= symbol_bits
        count += 1
        place += 1
    return count if place == pixels else RUNS_OVER


@numba.njit(nogil=True, cache=True)
def _add(
    positions: NDArray[np.int32],
    symbols: NDArray[np.uint8],
    columns: int,
    x_bits: int,
    y_bits: int,
    zoom_bits: int,
    out: NDArray[np.uint16],
) -> None:
    for i in range(positions.size):
        symbol = np.int64(symbols[i])
        x = (symbol & ((1 << x_bits) - 1)) ^ ((1 << x_bits) >> 1)
        y = (symbol >> x_bits) ^ ((1 << y_bits) >> 1)
        row = ((positions[i] // columns) << zoom_bits) | (y >> (y_bits - zoom_bits))
        column = ((positions[i] % columns) << zoom_bits) | (x >> (x_bits - zoom_bits))
        out[row, column] += np.uint16(1)


def unpack_events(
    data: NDArray[np.uint8],
    run_bits: int,
    symbol_bits: int,
    padded: bool,
    pixels: int,
    positions: NDArray[np.int32],
    symbols: NDArray[np.uint8],
) -> int:
    """Twin of :func:`cloudem.kernels.eer.unpack_events`."""
    return int(_unpack(data, run_bits, symbol_bits, padded, pixels, positions, symbols))


def add_events(
    positions: NDArray[np.int32],
    symbols: NDArray[np.uint8],
    columns: int,
    x_bits: int,
    y_bits: int,
    zoom_bits: int,
    out: NDArray[np.uint16],
) -> None:
    """Twin of :func:`cloudem.kernels.eer.add_events`."""
    _add(positions, symbols, columns, x_bits, y_bits, zoom_bits, out)
