"""Grey pictures as JPEG: a tenth of the bytes that PNG takes for the noise of micrographs."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def grey_jpeg(image: NDArray[np.uint8], most_px: int = 0, quality: int = 60) -> bytes:
    """Return an image as JPEG.

    Parameters
    ----------
    image
        ``(rows, columns)``; the first row is at the top.
    most_px
        Its greatest size in pixels; 0 for the size it has.
    quality
        1 to 95.
    """
    picture = Image.fromarray(np.ascontiguousarray(image))
    if most_px and max(image.shape) > most_px:
        scale = most_px / max(image.shape)
        size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
        picture = picture.resize(size, Image.Resampling.BOX)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue()


def embedded(jpeg: bytes) -> str:
    """Return an address that holds the picture itself."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


def spread(values: NDArray[np.floating[Any]], sigmas: float = 2.5) -> NDArray[np.uint8]:
    """Return values as grey: 0 and 255 are so many standard deviations below and above their mean."""
    mean, deviation = float(values.mean()), float(values.std()) or 1.0
    grey = (values - mean) * np.float32(127.5 / (sigmas * deviation)) + np.float32(127.5)
    found: NDArray[np.uint8] = np.clip(np.rint(grey), 0, 255).astype(np.uint8)
    return found
