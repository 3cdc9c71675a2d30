"""What a refinement that goes on does about particles: the same ones, and those that were lost since."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from cloudem.errors import InconsistentDataError
from cloudem.jobs.base import Context
from cloudem.jobs.iterative import CHECKPOINT
from cloudem.jobs.refine3d.tasks import read_checkpoint


def leave_out(context: Context, particles: str, without: NDArray[np.int64]) -> None:
    """Take particles whose images were lost since the last iteration out of the half-sets."""
    checkpoint, attributes = read_checkpoint(context.url)
    gone = np.setdiff1d(np.flatnonzero(checkpoint.half_set == 0), without)
    if len(gone):
        context.progress.warning(
            f"{len(gone):,} of {len(checkpoint.half_set):,} particles are skipped, as their shards were lost before; "
            "use --restart to include them again"
        )
    if not checkpoint.half_set[without].any():
        return
    half_set = checkpoint.half_set.copy()
    half_set[without] = 0
    if not all(np.any(half_set == h) for h in (1, 2)):
        raise InconsistentDataError(f"{particles} has no images left in one half-set; import the particles again")
    context.write(CHECKPOINT, replace(checkpoint, half_set=half_set).arrays(), attributes)
