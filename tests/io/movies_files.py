"""Small movies as detectors' programs write them."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cloudem.testing.eer import encode_eer_frame, write_eer

IMOD = 1146047817


def write_mrc(
    path: Path,
    frames: NDArray,
    mode: int,
    order: str = "<",
    extended: int = 0,
    columns: int = 0,
    flags: int | None = None,
) -> Path:
    """Write frames (n, rows, stored columns), already packed, with a header of so many columns."""
    n, rows, stored = frames.shape
    header = bytearray(1024)
    struct.pack_into(f"{order}10i", header, 0, columns or stored, rows, n, mode, 0, 0, 0, columns or stored, rows, n)
    struct.pack_into(f"{order}3f", header, 40, 1.5 * (columns or stored), 1.5 * rows, 1.5 * n)
    struct.pack_into(f"{order}3i", header, 64, 1, 2, 3)
    struct.pack_into(f"{order}i", header, 92, extended)
    if flags is not None:
        struct.pack_into(f"{order}2i", header, 152, IMOD, flags)
    header[208:216] = b"MAP " + (b"DD\0\0" if order == "<" else b"\x11\x11\0\0")
    data = frames.astype(frames.dtype.newbyteorder(order)).tobytes()
    path.write_bytes(bytes(header) + b"\xff" * extended + data)
    return path


def nibbles(frames: NDArray) -> NDArray:
    """Pack pixels of 4 bits, the first in the low half, rows filled up to whole bytes."""
    even = np.concatenate([frames, np.zeros((*frames.shape[:2], frames.shape[2] % 2), np.uint8)], axis=2)
    return even[..., ::2] | even[..., 1::2] << 4


def events(seed: int, pixels: int, share: float) -> tuple[NDArray, NDArray]:
    """Return pixels with events and their symbols."""
    rng = np.random.default_rng(seed)
    positions = np.flatnonzero(rng.random(pixels) < share)
    return positions, rng.integers(0, 16, len(positions))


def eer_movie(
    path: Path, frames: int = 7, shape: tuple[int, int] = (32, 48), compression: int = 65001, share: float = 0.02
) -> list[tuple[NDArray, NDArray]]:
    """Write an EER movie, and return the events of each frame."""
    made = [events(number, shape[0] * shape[1], share) for number in range(frames)]
    coded = [encode_eer_frame(*each, shape[0] * shape[1], compression) for each in made]
    write_eer(
        path, coded, shape, compression, metadata=f'<metadata><item name="numberOfFrames">{frames}</item></metadata>'
    )
    return made
