"""An encoder of EER movies in all three compressions, for tests and benchmarks: no real ones can be had for them."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

RUN_BITS = {65000: 8, 65001: 7}


def encode_eer_frame(
    positions: NDArray[np.int64],
    symbols: NDArray[np.int64],
    pixels: int,
    compression: int = 65001,
    run_bits: int = 7,
    symbol_bits: int = 4,
) -> bytes:
    """Return the codes of a frame.

    Parameters
    ----------
    positions
        Pixels with an event, counted row by row, ascending and each once.
    symbols
        Place of each event in its pixel, as it is to be stored.
    pixels
        Of the frame.
    compression
        65000, 65001 or 65002; the first two have their own bits.
    run_bits, symbol_bits
        Of 65002.
    """
    if compression in RUN_BITS:
        run_bits, symbol_bits = RUN_BITS[compression], 4
    longest = (1 << run_bits) - 1
    bits: list[tuple[int, int]] = []
    place = 0
    for position, symbol in [*zip(positions.tolist(), symbols.tolist(), strict=True), (pixels, 0)]:
        run = position - place
        while run >= longest:
            bits.append((longest, run_bits))
            if compression == 65000:
                bits.append((0, symbol_bits))
            run -= longest
        bits += [(run, run_bits), (symbol, symbol_bits)]
        place = position + 1
    string = "".join(format(value, f"0{width}b")[::-1] if width else "" for value, width in bits)
    string += "0" * (-len(string) % 64)  # whole words, as detectors write them
    return bytes(int(string[at : at + 8][::-1], 2) for at in range(0, len(string), 8))


def write_eer(
    path: Path,
    frames: Sequence[bytes],
    shape: tuple[int, int],
    compression: int = 65001,
    bits: tuple[int, int, int] = (7, 2, 2),
    metadata: str = "",
) -> None:
    """Write encoded frames as an EER file, which is a BigTIFF file.

    Parameters
    ----------
    path
        The file.
    frames
        Of `encode_eer_frame`.
    shape
        Rows and columns of the detector.
    compression
        65000, 65001 or 65002.
    bits
        Of a run, of x and of y; written as tags of 65002.
    metadata
        XML of the acquisition.
    """
    out = bytearray(b"II+\0" + struct.pack("<HHQ", 8, 0, 16))
    link = 8  # where the place of the next directory is written
    for number, data in enumerate(frames):
        start = len(out)
        out += data
        text = metadata.encode() if number == 0 else b""
        text_at = len(out)
        out += text
        entries = [
            (256, 4, 1, shape[1]), (257, 4, 1, shape[0]), (258, 3, 1, 1), (259, 3, 1, compression), (262, 3, 1, 1),
            (273, 16, 1, start), (277, 3, 1, 1), (278, 4, 1, shape[0]), (279, 16, 1, len(data)),
        ]  # fmt: skip
        if text:
            field = int.from_bytes(text.ljust(8, b"\0")[:8], "little") if len(text) <= 8 else text_at
            entries.append((65001, 7, len(text), field))
        if compression == 65002:
            entries += [(65007 + place, 3, 1, value) for place, value in enumerate(bits)]
        out += b"\0" * (-len(out) % 8)
        struct.pack_into("<Q", out, link, len(out))
        out += struct.pack("<Q", len(entries))
        for tag, kind, count, value in entries:
            out += struct.pack("<HHQQ", tag, kind, count, value)
        link = len(out)
        out += struct.pack("<Q", 0)
    path.write_bytes(bytes(out))
