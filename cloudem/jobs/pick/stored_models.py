"""Picking models in results: the group ``model`` has templates, and from which score on candidates are particles."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.picking_model import PickingModel
from cloudem.algorithms.picking_threshold import ScoreMixture
from cloudem.errors import FormatError
from cloudem.io.storage.groups import has_group, read_attributes, read_group
from cloudem.io.storage.location import exists

MODEL = "model"
"""Group of the model in a result."""

NETWORK = "network_"
"""Names of the weights of a network begin so."""

_LIMITS = ("threshold", "strength_limit")


def stored(model: PickingModel, said: Mapping[str, Any]) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Return arrays and attributes of a model, with what is said of its origin."""
    arrays: dict[str, NDArray[Any]] = {
        "templates": model.templates,
        "weights": model.mixture.weights,
        "means": model.mixture.means,
        "deviations": model.mixture.deviations,
        "limits": np.array([getattr(model, name) for name in _LIMITS]),
    }
    if model.network is not None:
        arrays |= {f"{NETWORK}{name}": values for name, values in sorted(model.network.items())}
    digest = hashlib.sha256(b"".join(np.ascontiguousarray(values).tobytes() for values in arrays.values()))
    facts = {
        "kind": "picking model", "method": model.kind, "diameter_A": model.diameter, "pixel_size_A": model.pixel_size,
        "bright": model.bright, "by_chance": model.by_chance, "gain": model.mixture.gain,
        "digest": digest.hexdigest()[:20],
    }  # fmt: skip
    return arrays, {**said, **facts}


def stored_model(url: str) -> PickingModel:
    """Read the model of a result.

    Raises
    ------
    FormatError
        There is none, or it is damaged.
    """
    if not has_group(url, MODEL):
        raise FormatError(
            f"{url} {'holds no picking model' if exists(url) else 'does not exist'}; give the results of cloudem pick"
        )
    arrays, said = read_group(url, MODEL)
    try:
        mixture = ScoreMixture(arrays["weights"], arrays["means"], arrays["deviations"], float(said["gain"]))
        network = {name.removeprefix(NETWORK): values for name, values in arrays.items() if name.startswith(NETWORK)}
        threshold, strength = (float(value) for value in arrays["limits"])
        return PickingModel(
            float(said["diameter_A"]), float(said["pixel_size_A"]), bool(said["bright"]), arrays["templates"],
            str(said["method"]), mixture, threshold, bool(said["by_chance"]), strength, network or None,
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"the picking model of {url} is damaged ({error}); pick again") from error


@lru_cache(maxsize=2)
def model_at(url: str, digest: str) -> PickingModel:
    """Return the model of a result; workers keep it."""
    return stored_model(url)


def model_digest(url: str) -> str:
    """Return what tells a model from others, empty where there is none yet."""
    return str((read_attributes(url, MODEL) or {}).get("digest", ""))
