"""What is done to a micrograph that is denoised, and the training before it."""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.denoising import denoise_pair
from cloudem.algorithms.denoising_network import PIXEL, network_denoised, reduced_pair, train_denoiser
from cloudem.errors import CloudemError, recorded_reason
from cloudem.io.micrographs.images import EVEN, ODD, SUM, open_micrograph_image, write_micrograph_image
from cloudem.io.storage.groups import read_group
from cloudem.jobs.mapping import Found
from cloudem.jobs.pick.tasks import PickEntry, pick_entries
from cloudem.model.table import TEXT

if TYPE_CHECKING:
    from cloudem.jobs.base import Context
    from cloudem.model.micrographs import Micrographs

MODEL = "model"
"""Group of the network in the result."""

MOST_MADE_UP = 0.01
"""Power of what is made of noise, as a share of it: with more, a micrograph is not denoised."""

NO_SUMS = "it has no sums of even and odd frames; correct_motion makes them"


def trained(table: Micrographs, most: int, seed: int, context: Context) -> None:
    """Train the network on some of the micrographs, and write it into the result; say so where there are none."""
    usable = [entry for entry in pick_entries(table) if not entry.problem]
    chosen = [usable[at] for at in np.unique(np.linspace(0, len(usable) - 1, most).astype(int))] if usable else []
    pairs, names = [], []
    with context.progress.stage("train", 1, "networks") as stage:
        for entry, pair in zip(chosen, context.executor.map(pair_of, chosen), strict=True):
            if pair is not None:
                pairs.append(pair)
                names.append(entry.name)
        if not pairs:  # there may be later
            context.progress.warning("no micrograph has sums of even and odd frames to learn from")
            return
        weights = train_denoiser(pairs, seed)
        stage.advance(1)
    digest = hashlib.sha256(b"".join(weights[name].tobytes() for name in sorted(weights))).hexdigest()[:20]
    context.write(
        MODEL, dict(weights), {"kind": "denoising model", "micrographs": names, "seed": seed, "digest": digest}
    )


def pair_of(entry: PickEntry) -> NDArray[np.float32] | None:
    """Return both sums of a micrograph, reduced; None where it has none that can be read."""
    try:
        opened = open_micrograph_image(entry.place)
        if not {EVEN, ODD} <= set(opened.kinds):
            return None
        return reduced_pair(opened.read(EVEN), opened.read(ODD), entry.pixel_size)
    except CloudemError as error:
        recorded_reason(error)  # of one micrograph alone; `denoise_micrographs` says it
        return None


@lru_cache(maxsize=2)
def _network(url: str, digest: str) -> dict[str, Any]:
    return read_group(url, MODEL)[0]


def denoise_micrographs(entries: Sequence[PickEntry], url: str, digest: str, seed: int) -> Found:
    """Denoise micrographs and write their images into the result under ``url``.

    Parameters
    ----------
    entries
        The micrographs.
    url
        Of the result.
    digest
        Of its network; empty for the Wiener filter.
    seed
        Of the noise that the filter is tried on.
    """
    found = [_denoised(entry, url, digest, seed) for entry in entries]
    places, reasons, resolutions, shares = zip(*found, strict=True)
    return {
        "place": np.array([place or "" for place in places], TEXT),
        "unread": np.array([place is None for place in places], np.bool_),
        "reason": np.array(reasons, TEXT),
        "resolution": np.array(resolutions),
        "hallucination": np.array(shares),
    }


def _denoised(entry: PickEntry, url: str, digest: str, seed: int) -> tuple[str | None, str, float, float]:
    """Return where the image is, None if there was none to read; why there is none; resolution and share of noise."""
    unknown = float("nan")
    if entry.problem:
        return "", entry.problem, unknown, unknown
    try:
        opened = open_micrograph_image(entry.place)
        if not {EVEN, ODD} <= set(opened.kinds):
            return "", NO_SUMS, unknown, unknown
        even, odd = opened.read(EVEN), opened.read(ODD)
        if digest:
            pair = reduced_pair(even, odd, entry.pixel_size)
            image, made_up = network_denoised(pair, _network(url, digest), opened.shape)
            resolution = 2 * max(PIXEL, entry.pixel_size)
        else:
            image, _, resolution, made_up = denoise_pair(
                even, odd, entry.pixel_size, entry.state, seed + zlib.crc32(entry.name.encode())
            )
    except CloudemError as error:
        return None, recorded_reason(error), unknown, unknown
    if made_up > MOST_MADE_UP:
        return "", f"{100 * made_up:.1f} % of noise would become structure", unknown, made_up
    if not math.isfinite(resolution):
        return "", "both sums share nothing that is above noise", unknown, made_up
    said = {"denoised": "noise2noise" if digest else "wiener", "hallucination": made_up, "resolution_A": resolution}
    place = write_micrograph_image(url, entry.name, {SUM: image}, pixel_size=entry.pixel_size, attributes=said)
    return place, "", resolution, made_up
