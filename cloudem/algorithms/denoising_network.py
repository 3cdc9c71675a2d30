"""Micrographs denoised by a network that learned to tell the odd frames from the even ones; never for refinement.

Noise2noise (Lehtinen et al. 2018): a network that predicts one noisy image of a specimen from another learns the
specimen, for the noise of the other cannot be predicted. It works on images reduced to a pixel of `PIXEL` Å and
divided by their deviation, and is the U-Net of `cloudem.algorithms.picking_network` with another aim.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from cloudem.algorithms.picking import SAMPLES, Float32, reduce_image
from cloudem.algorithms.picking_network import BATCH, CROP, first_weights, forward, one_thread, require_torch
from cloudem.errors import ParameterError

PIXEL = 6.0
"""Å, of the reduced images; what is finer is not kept."""

NOISE = 2
"""Crops of a step that are noise alone."""

STEPS, RATE = 300, 1e-3
"""Of the training, and of Adam at its start."""


def reduced_pair(even: Float32, odd: Float32, pixel_size: float) -> Float32:
    """Return both sums reduced, of mean 0 and deviation 1, (2, rows, columns)."""
    pair = np.stack([reduce_image(image, pixel_size, SAMPLES * PIXEL).image for image in (even, odd)])
    pair -= pair.mean((1, 2), keepdims=True)
    return np.asarray(pair / max(float(pair.std()), 1e-20), np.float32)


def train_denoiser(pairs: Sequence[Float32], seed: int, steps: int = STEPS) -> dict[str, Float32]:
    """Return the weights of a network that predicts either sum from the other.

    Parameters
    ----------
    pairs
        Of `reduced_pair`, of several micrographs.
    seed
        Of the first weights and of the crops.
    steps
        Of the training.

    Raises
    ------
    ParameterError
        There are no pairs, or PyTorch is not installed.
    """
    if not pairs:
        raise ParameterError("a network needs even and odd sums to learn from; correct_motion makes them")
    torch = require_torch()
    rng = np.random.default_rng(seed)
    first = first_weights(rng)
    first["out"] *= 0.1
    first["out_bias"][:] = 0
    with one_thread(torch):
        weights = {name: torch.tensor(value, requires_grad=True) for name, value in first.items()}
        optimiser = torch.optim.Adam(list(weights.values()), lr=RATE)
        for step in range(steps):
            for group in optimiser.param_groups:
                group["lr"] = RATE * 0.5 * (1 + np.cos(np.pi * step / steps))
            given, wanted = (torch.tensor(part) for part in _crops(pairs, rng))
            loss = ((forward(torch, weights, given) - wanted) ** 2).mean()
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(list(weights.values()), 1.0)
            optimiser.step()
        return {name: value.detach().numpy().copy() for name, value in weights.items()}


def _crops(pairs: Sequence[Float32], rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return crops of one sum and of the other, each (b, 1, CROP, CROP), turned and mirrored at random.

    `NOISE` of them are of noise, the half difference of both sums, which should become nothing.
    """
    crops = []
    for number in range(BATCH):
        pair = pairs[int(rng.integers(len(pairs)))]
        y, x = (int(rng.integers(max(1, count - CROP + 1))) for count in pair.shape[1:])
        crop = pair[:, y : y + CROP, x : x + CROP]
        crop = np.pad(crop, ((0, 0), *((0, CROP - count) for count in crop.shape[1:])))
        crop = np.rot90(crop, int(rng.integers(4)), (1, 2))
        crop = crop[:, :, ::-1] if rng.integers(2) else crop
        crop = crop[::-1] if rng.integers(2) else crop
        if number < NOISE:
            noise = (crop[0] - crop[1]) / np.float32(np.sqrt(2))
            crop = np.stack([noise, np.zeros_like(noise)])
        crops.append(crop)
    both = np.ascontiguousarray(np.stack(crops, 1)[:, :, None])
    return both[0], both[1]


def network_denoised(pair: Float32, weights: Mapping[str, Float32], shape: tuple[int, int]) -> tuple[Float32, float]:
    """Return a denoised micrograph of its full size, and what becomes of its noise.

    Parameters
    ----------
    pair
        Of `reduced_pair`.
    weights
        Of `train_denoiser`.
    shape
        Rows and columns of the micrograph.

    Returns
    -------
    image
        Mean of what both sums give; in deviations of a sum.
    hallucination
        Power of what becomes of the half difference of both sums, which is noise alone, as a share of it.
    """
    noise = (pair[0] - pair[1]) / np.float32(np.sqrt(2))
    made = [_predicted(image, weights) for image in (pair[0], pair[1], noise)]
    share = float((made[2].astype(np.float64) ** 2).sum() / max(float((noise.astype(np.float64) ** 2).sum()), 1e-300))
    return enlarged(((made[0] + made[1]) / 2).astype(np.float32), shape), share


def _predicted(image: Float32, weights: Mapping[str, Float32]) -> Float32:
    torch = require_torch()
    rows, columns = (-(-count // 8) * 8 for count in image.shape)
    padded = np.zeros((1, 1, rows, columns), np.float32)
    padded[0, 0, : image.shape[0], : image.shape[1]] = image
    with one_thread(torch), torch.no_grad():
        made = forward(torch, {name: torch.from_numpy(value) for name, value in weights.items()}, torch.tensor(padded))
    return np.asarray(made[0, 0, : image.shape[0], : image.shape[1]].numpy(), np.float32)


def enlarged(small: Float32, shape: tuple[int, int]) -> Float32:
    """Return an image at a larger size, by zeros beyond the frequencies that it has; the inverse of reducing it."""
    if small.shape == shape:
        return small
    spectrum = scipy.fft.rfft2(small)
    rows, columns = small.shape
    whole = np.zeros((shape[0], shape[1] // 2 + 1), np.complex64)
    whole[: rows // 2, : columns // 2] = spectrum[: rows // 2, : columns // 2]
    whole[shape[0] - (rows // 2 - 1) :, : columns // 2] = spectrum[rows - (rows // 2 - 1) :, : columns // 2]
    scale = np.float32(shape[0] * shape[1] / (rows * columns))
    return np.asarray(scipy.fft.irfft2(whole, s=shape) * scale, np.float32)
