"""Electron events of a frame in EER (electron event representation), unpacked and added up.

A frame is a string of codes, least bit first: how many pixels without an event follow, row by row, and then where in
its pixel the next event lies. The greatest run says only that so many pixels are empty. A frame is whole when its runs
end exactly at the last pixel. Source: Guo et al. 2020, 10.1107/S205225252000929X, and the files' own tags.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cloudem.backend.kernel import kernel

ENDS_EARLY, RUNS_OVER = -1, -2
"""What `unpack_events` returns of a frame whose codes end before its last pixel, and of one whose codes go beyond."""


@kernel
def unpack_events(
    data: NDArray[np.uint8],
    run_bits: int,
    symbol_bits: int,
    padded: bool,
    pixels: int,
    positions: NDArray[np.int32],
    symbols: NDArray[np.uint8],
) -> int:
    """Unpack the events of a frame.

    Parameters
    ----------
    data
        The codes, shape ``(k,)``.
    run_bits, symbol_bits
        Bits of a run, and of the place in the pixel.
    padded
        Whether a run without an event is followed by the bits of a symbol that has no meaning (compression 65000).
    pixels
        Of the frame.
    positions, symbols
        For the pixel, row by row, of each event, and its symbol as it is stored; at least
        ``8 * k // (run_bits + symbol_bits)`` long.

    Returns
    -------
    count
        Events; or `ENDS_EARLY` or `RUNS_OVER`, and then what was unpacked is of no use.
    """
    bits = np.unpackbits(data, bitorder="little")
    total = len(bits)
    longest = (1 << run_bits) - 1
    at, place, count = 0, 0, 0
    while place < pixels:
        if at + run_bits > total:
            return ENDS_EARLY
        run = _number(bits[at : at + run_bits])
        at += run_bits
        place += run
        if place >= pixels:
            break
        if run == longest:
            at += symbol_bits if padded else 0
            continue
        if at + symbol_bits > total:
            return ENDS_EARLY
        positions[count], symbols[count] = place, _number(bits[at : at + symbol_bits])
        at += symbol_bits
        count += 1
        place += 1
    return count if place == pixels else RUNS_OVER


@kernel
def add_events(
    positions: NDArray[np.int32],
    symbols: NDArray[np.uint8],
    columns: int,
    x_bits: int,
    y_bits: int,
    zoom_bits: int,
    out: NDArray[np.uint16],
) -> None:
    """Add events to an image.

    The low bits of a symbol are for x, the others for y; the first of each is stored inverted (XOR 0x0A of two and two
    bits, XOR 3 of one and one), so that a symbol of zeros lies just behind the middle of its pixel.

    Parameters
    ----------
    positions, symbols
        As `unpack_events` leaves them, shape ``(n,)``.
    columns
        Pixels of a row of the detector.
    x_bits, y_bits
        Bits of a symbol for x and y.
    zoom_bits
        The image has ``2 ** zoom_bits`` pixels along each side of one of the detector's; at most `x_bits` and `y_bits`.
    out
        Shape ``(rows << zoom_bits, columns << zoom_bits)``.
    """
    x = (symbols & ((1 << x_bits) - 1)) ^ ((1 << x_bits) >> 1)
    y = (symbols >> x_bits) ^ ((1 << y_bits) >> 1)
    row = (positions // columns << zoom_bits) | (y >> (y_bits - zoom_bits))
    column = (positions % columns << zoom_bits) | (x >> (x_bits - zoom_bits))
    np.add.at(out, (row, column), np.uint16(1))


def _number(bits: NDArray[np.uint8]) -> int:
    """Return the number of some bits, least first."""
    return int(sum(int(bit) << place for place, bit in enumerate(bits)))
