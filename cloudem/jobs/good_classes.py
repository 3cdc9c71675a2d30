"""What the classes of a result say of its particles: which of them are worth keeping, and why others are not."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cloudem.model.particles import Particles

DETAIL = "class_detail"
"""Column of particles and array of classes by which the automatic selection goes."""

IN_CLASS = re.compile(r"in a class that (?:shows|is) ")
"""Begins a reason that holds for a class; the rest is shown beside its average."""


def class_arrays(url: str) -> dict[str, NDArray[Any]]:
    """Return the arrays of the classes of a result, nothing if it has none."""
    from cloudem.io.storage.groups import has_group, read_group

    if not has_group(url, "result"):
        return {}
    arrays, attributes = read_group(url, "result")
    if "class_averages" not in arrays:
        return {}
    import numpy as np

    radius = (attributes.get("diameter_A") or 0.0) / 2 / float(attributes.get("pixel_size_A") or 1.0)
    return {**arrays, "radius": np.array(radius)}


def of_classes(
    averages: Mapping[str, NDArray[Any]], number: NDArray[Any], reason: NDArray[Any], words: list[str]
) -> dict[str, NDArray[Any]]:
    """Return the arrays of classes for the report: of the images of this table, and what becomes of most of them."""
    import numpy as np

    arrays = {name: values for name, values in averages.items() if name.startswith("class_")}
    count = len(averages["class_averages"])
    inside = (number >= 1) & (number <= count)
    share = [np.bincount(number[inside & some] - 1, minlength=count) for some in (reason == 0, reason >= 0)]
    arrays["class_members"] = share[1]
    arrays["class_share"] = share[1] / max(int(share[1].sum()), 1)
    arrays["class_kept"] = share[0] / np.maximum(share[1], 1)
    most = ["" for _ in range(count)]
    for at in np.flatnonzero(arrays["class_kept"] < 0.5):
        why = np.bincount(reason[(number == at + 1) & (reason > 0)], minlength=1)
        most[at] = IN_CLASS.sub("", words[int(why.argmax()) - 1]) if why.any() else "no images"
    arrays["class_reason"] = np.array(most)
    return arrays


def automatic(
    table: Particles,
    averages: Mapping[str, NDArray[Any]],
    leave_out: Callable[[NDArray[np.bool_], str], None],
    arrays: dict[str, NDArray[Any]],
    tell: Callable[[str], None],
    notes: list[str],
    neighbours: NDArray[np.bool_] | None = None,
) -> None:
    """Leave out classes that show no particle, and of the others the lower of two groups by detail, if there are.

    Of ``neighbours``, (n,), each says whether a particle has another one nearer than its diameter; None where that is
    not known.
    """
    import numpy as np

    from cloudem.algorithms.selection import APART, BELOW, OFF, distance_of, overlap, threshold_between

    detail, number = table[DETAIL], table["class_number"]
    arrays["detail"] = np.asarray(detail, np.float32)
    classes, of_class, members = np.unique(number, return_inverse=True, return_counts=True)
    medians = np.array([np.median(detail[of_class == each]) for each in range(len(classes))])
    near = None if neighbours is None else np.bincount(of_class, neighbours, len(classes)) > members / 2
    if near is not None and near.any():
        said = (
            f"in {np.count_nonzero(near)} of {len(classes)} classes most particles have a neighbour nearer than the "
            "diameter, and what lies at the edge of these counts only if there is no particle in the middle"
        )
        tell(said)
        notes.append(f"{said[0].upper()}{said[1:]}.")
    reasons, aside = reasons_of(averages, classes, members, near)
    for kind in aside:
        said = f"most classes lie {kind}, so that this is no reason here: see --diameter-A, and look at them"
        tell(said)
        notes.append(f"{said[0].upper()}{said[1:]}.")
    for each, why in enumerate(reasons):
        if why:
            leave_out(of_class == each, f"in a class that {'is' if why == OFF else 'shows'} {why}")
    alone = sum(bool(why) for why in reasons)
    tell(f"{alone} of {len(classes)} classes show noise, an edge, or what lies off centre")
    left = np.array([not why for why in reasons])
    threshold = threshold_between(medians[left], members[left])
    good = np.zeros(len(classes), bool) if threshold is None else left & (medians >= threshold)
    known = left[of_class]
    apart = distance_of(detail[known], good[of_class][known])
    if threshold is None or apart < APART:
        why = "there are too few" if threshold is None else f"{apart:.1f} standard deviations apart, {APART} count"
        tell(f"no other class is left out: they do not fall into two groups by their detail ({why}); look at them")
        return
    least = threshold - BELOW
    lost, hidden = overlap(detail[known], good[of_class][known], least)
    said = (
        f"classes that their images match by {threshold:.1f} standard deviations or more are kept, and of these "
        f"the images with {least:.1f} or more; the groups are {apart:.1f} apart. Expected: {100 * lost:.1f} % "
        f"of the good images are lost, and {100 * hidden:.1f} % of those kept are none"
    )
    tell(said)
    notes.append(f"{said[0].upper()}{said[1:]}.")
    leave_out((left & ~good)[of_class], "in a class that shows no detail")
    leave_out(~(detail >= least), "matches its class poorly")


def reasons_of(
    averages: Mapping[str, NDArray[Any]],
    classes: NDArray[Any],
    members: NDArray[Any],
    crowded: NDArray[np.bool_] | None = None,
) -> tuple[list[str], list[str]]:
    """Return what speaks against classes of these numbers, as far as there are averages, and rules set aside."""
    import numpy as np

    from cloudem.algorithms.selection import reasons_against

    found, aside = [""] * len(classes), list[str]()
    if averages:
        images, evidence = averages["class_averages"], averages["class_evidence"]
        known = np.flatnonzero((classes >= 1) & (classes <= len(images)))
        places = classes[known] - 1
        radius = float(averages["radius"]) or images.shape[-1] / 2
        among = () if crowded is None else crowded[known].tolist()
        reasons, aside = reasons_against(list(images[places]), radius, evidence[places], members[known], among)
        for at, why in zip(known, reasons, strict=True):
            found[at] = why
    return found, aside
