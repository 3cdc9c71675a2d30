"""A small U-Net that says where particles are: trained on picks or marks, in seconds, on one thread.

It sees the even image (`cloudem.algorithms.picking.even_image`) at half the size, eleven pixels across a particle,
through four levels joined by skips (Ronneberger, Fischer & Brox 2015), without normalisation layers, since the image is
normal already. Its answer is the logarithm of the odds that a pixel belongs to the middle of a particle. What is
uncertain, the rims of particles and candidates that may be either, has no part in the training.

The weights are arrays, and a model is a function of them: what is kept needs no class of a library. Training is a pure
function of images, places and seed, on one thread, so that it gives the same bits wherever it runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cloudem.errors import ParameterError

Float32: TypeAlias = NDArray[np.float32]
Weights: TypeAlias = Mapping[str, Float32]

CHANNELS = (12, 24, 48, 48)
"""Of the levels, from the finest."""

STEPS, BATCH, CROP = 500, 8, 64
"""Steps of the training, crops of a step, and pixels along a crop at half the size."""

RATE = 2e-3
"""Of Adam (Kingma & Ba 2015) at the start; it falls to zero along half a cosine."""

MIDDLE, RIM = 0.2, 0.38
"""Radius that is particle, and from which on it is not, in diameters; between them nothing is learned."""

SMOOTH = 0.08
"""Deviation of the Gaussian that the answer is smoothed with, diameters."""


class Lesson(NamedTuple):
    """An image to learn from.

    Attributes
    ----------
    image
        Even image.
    usable
        Where it counts.
    particles
        (k, 2) x and y of what are particles, pixels.
    uncertain
        (m, 2) of what may be.
    """

    image: Float32
    usable: NDArray[np.bool_]
    particles: NDArray[np.float64]
    uncertain: NDArray[np.float64]


def train_network(lessons: Sequence[Lesson], across: float, seed: int, steps: int = STEPS) -> dict[str, Float32]:
    """Return the weights of a network that tells the particles of the lessons from all else.

    Parameters
    ----------
    lessons
        At least one.
    across
        Of a particle, pixels of the images.
    seed
        Of the first weights and of the order of crops.
    steps
        Of the training.

    Raises
    ------
    ParameterError
        PyTorch is not installed, or there are no particles to learn from.
    """
    torch = require_torch()
    if not sum(len(lesson.particles) for lesson in lessons):
        raise ParameterError("there are no particles to train with; give marks, or let the picks without marks succeed")
    rng = np.random.default_rng(seed)
    pages = [_page(lesson, across) for lesson in lessons]
    with one_thread(torch):
        weights = {name: torch.tensor(value, requires_grad=True) for name, value in first_weights(rng).items()}
        optimiser = torch.optim.Adam(list(weights.values()), lr=RATE)
        for step in range(steps):
            for group in optimiser.param_groups:
                group["lr"] = RATE * 0.5 * (1 + np.cos(np.pi * step / steps))
            image, label, counts = (torch.tensor(part) for part in _crops(pages, rng))
            odds = forward(torch, weights, image)
            loss = torch.nn.functional.binary_cross_entropy_with_logits(odds, label, weight=counts, reduction="sum")
            optimiser.zero_grad()
            (loss / counts.sum().clamp(min=1)).backward()
            torch.nn.utils.clip_grad_norm_(list(weights.values()), 1.0)
            optimiser.step()
        return {name: value.detach().numpy().copy() for name, value in weights.items()}


def network_score(image: Float32, weights: Weights, across: float) -> Float32:
    """Return the logarithm of the odds of each pixel of an even image, smoothed.

    Parameters
    ----------
    image
        Shape ``(rows, columns)``.
    weights
        Of `train_network`.
    across
        Of a particle, pixels.
    """
    from scipy import ndimage

    torch = require_torch()
    half = _halved(image)
    step = 2 ** (len(CHANNELS) - 1)
    rows, columns = (-(-count // step) * step for count in half.shape)
    padded = np.zeros((1, 1, rows, columns), np.float32)
    padded[0, 0, : half.shape[0], : half.shape[1]] = half
    with one_thread(torch), torch.no_grad():
        odds = forward(torch, {name: torch.from_numpy(value) for name, value in weights.items()}, torch.tensor(padded))
    small = odds[0, 0, : half.shape[0], : half.shape[1]].numpy()
    smooth = ndimage.gaussian_filter(small, SMOOTH * across / 2)
    # pixel i of the half size lies at 2 i + 1/2 of the whole
    y, x = ((np.arange(count) - 0.5) / 2 for count in image.shape)
    lines = np.stack([np.interp(x, np.arange(small.shape[1]), row) for row in smooth])
    return np.stack([np.interp(y, np.arange(small.shape[0]), line) for line in lines.T], 1).astype(np.float32)


def require_torch() -> Any:
    """Return PyTorch, or say how to install it."""
    try:
        import torch
    except ImportError as error:
        raise ParameterError("networks need PyTorch: pip install 'cloudem[torch]'") from error
    return torch


@contextmanager
def one_thread(torch: Any) -> Iterator[None]:
    """Hold PyTorch to one thread: sums do not depend on how many cores a machine has."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _halved(image: Float32) -> Float32:
    """Return means of squares of four pixels, an odd row or column left out, of deviation near one again."""
    rows, columns = (count // 2 for count in image.shape)
    means = image[: 2 * rows, : 2 * columns].reshape(rows, 2, columns, 2).mean((1, 3))
    return np.asarray(means * np.float32(1.5), np.float32)


def _page(lesson: Lesson, across: float) -> Float32:
    """Return image, label and weight at half the size, (3, rows, columns), with a frame of nothing around them."""
    image, usable = _halved(lesson.image), _halved(lesson.usable.astype(np.float32)) > 1
    label, counts = np.zeros_like(image), usable.astype(np.float32)
    for places, true in ((lesson.uncertain, False), (lesson.particles, True)):
        for x, y in (np.asarray(places, np.float64).reshape(-1, 2) - 0.5) / 2:
            rows, columns, far = _around(x, y, RIM * across / 2, image.shape)
            near = far <= (MIDDLE if true else RIM) * across / 2
            part = counts[rows, columns]
            part[(far <= RIM * across / 2) & (label[rows, columns] == 0)] = 0
            if true:
                label[rows, columns][near] = 1
                part[near] = usable[rows, columns][near]
    frame = CROP // 4
    return np.pad(np.stack([image, label, counts]), ((0, 0), (frame, frame), (frame, frame)))


def _around(x: float, y: float, radius: float, shape: tuple[int, ...]) -> tuple[slice, slice, NDArray[np.float64]]:
    rows = slice(max(0, int(y - radius)), min(shape[0], int(y + radius) + 2))
    columns = slice(max(0, int(x - radius)), min(shape[1], int(x + radius) + 2))
    down, along = np.mgrid[rows, columns]
    return rows, columns, np.hypot(along - x, down - y)


def _crops(pages: Sequence[Float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Return image, label and weight of crops, each (b, 1, CROP, CROP), turned and mirrored at random."""
    crops = []
    for _ in range(BATCH):
        page = pages[int(rng.integers(len(pages)))]
        y, x = (int(rng.integers(max(1, count - CROP + 1))) for count in page.shape[1:])
        crop = page[:, y : y + CROP, x : x + CROP]
        crop = np.pad(crop, ((0, 0), *((0, CROP - count) for count in crop.shape[1:])))
        crop = np.rot90(crop, int(rng.integers(4)), (1, 2))
        crops.append(crop[:, :, ::-1] if rng.integers(2) else crop)
    return np.ascontiguousarray(np.stack(crops, 1)[:, :, None])


def first_weights(rng: np.random.Generator) -> dict[str, Float32]:
    """Return weights before the training (He et al. 2015), by level and place."""
    shapes: dict[str, tuple[int, int, int]] = {}
    before = 1
    for level, count in enumerate(CHANNELS):
        shapes[f"down{level}a"], shapes[f"down{level}b"] = (count, before, 3), (count, count, 3)
        before = count
    for level in reversed(range(len(CHANNELS) - 1)):
        count = CHANNELS[level]
        shapes[f"up{level}a"], shapes[f"up{level}b"] = (count, before + count, 3), (count, count, 3)
        before = count
    shapes["out"] = (1, before, 1)
    weights: dict[str, Float32] = {}
    for name, (to, of, size) in shapes.items():
        spread = np.sqrt(2 / (of * size**2))
        weights[name] = (spread * rng.standard_normal((to, of, size, size))).astype(np.float32)
        weights[f"{name}_bias"] = np.zeros(to, np.float32)
    weights["out_bias"][:] = -2.0  # most of an image is no particle
    return weights


def forward(torch: Any, weights: Mapping[str, Any], image: Any) -> Any:
    """Return the odds of images (b, 1, rows, columns); both sides a multiple of 8."""
    functional = torch.nn.functional

    def twice(values: Any, name: str) -> Any:
        for part in "ab":
            weight, bias = weights[f"{name}{part}"], weights[f"{name}{part}_bias"]
            values = functional.leaky_relu(functional.conv2d(values, weight, bias, padding=1), 0.1)
        return values

    skips = []
    values = image
    for level in range(len(CHANNELS)):
        if level:
            values = functional.avg_pool2d(values, 2)
        values = twice(values, f"down{level}")
        skips.append(values)
    for level in reversed(range(len(CHANNELS) - 1)):
        values = functional.interpolate(values, scale_factor=2, mode="nearest")
        values = twice(torch.cat([values, skips[level]], 1), f"up{level}")
    return functional.conv2d(values, weights["out"], weights["out_bias"])
