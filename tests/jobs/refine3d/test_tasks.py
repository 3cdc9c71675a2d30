"""Which tasks a refinement has, and which of them are asked."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cloudem.jobs.refine3d.tasks import spread_groups, tasks


@given(st.integers(0, 4000), st.integers(50, 600), st.integers(1, 2000), st.floats(0, 1), st.integers(0, 9))
def test_groups_are_asked_all_over_the_particles(count: int, size: int, least: int, share: float, seed: int) -> None:
    half_set = np.where(np.random.default_rng(seed).random(count) < share, 1, 2).astype(np.int8)
    items = tasks(half_set, size)
    chosen = spread_groups(items, least)
    for half in (1, 2):
        own, asked = ([item for item in some if item.half == half] for some in (items, chosen))
        images = sum(len(item.indices) for item in asked)
        assert images >= min(least, int(np.count_nonzero(half_set == half)))
        places = [next(i for i, item in enumerate(own) if item is each) for each in asked]
        assert sorted(set(places)) == places
        if len(places) > 1:  # as far from one another everywhere, within one
            gaps = np.diff([*places, len(own)])
            assert gaps.max() - gaps.min() <= 1
