"""A refinement asks its images whether the point group is theirs, and believes nothing where they say no."""

from __future__ import annotations

import numpy as np
import pytest

from cloudem.algorithms.relaxation import Verdict
from cloudem.io.storage.groups import read_attributes
from cloudem.jobs.refine3d.job import Refine3D
from cloudem.jobs.refine3d.symmetry import DOUBTED, FEWEST, LEAST_ASKED, MOST_ASKED, contradiction, sample
from cloudem.model.symmetry import operators
from tests.jobs.conftest import make_scene, molecule, run

COUNT = 260


@pytest.mark.parametrize(("own", "imposed"), [("C1", "C2"), ("D2", "D2")])
def test_a_symmetry_that_the_images_contradict_is_not_believed(own, imposed, tmp_path, no_report):
    scene = make_scene(tmp_path, count=COUNT, snr=0.2, density=molecule(own))
    progress = run(Refine3D(**scene.refinement(tmp_path / "out", symmetry=imposed, max_iterations=4)))
    result = read_attributes(tmp_path / "out", "result")
    said = [text for text in progress.warnings() if "contradict the symmetry" in text]
    assert "symmetry" in [stage["name"] for stage in result["stages"]]
    if own == imposed:
        assert said == []
        assert result["resolution_source"] == ""
        assert result["resolution_A"] < 14
    else:
        assert len(said) == 1
        assert "no resolution of this map is believed; refine again with --symmetry C1" in said[0]
        assert said[0] in result["warnings"]
        assert result["resolution_source"] == DOUBTED
        assert result["resolution_A"] > 17  # that of the start; the half-maps agree further


def test_what_is_left_of_a_group_is_named():
    group = operators("D7")
    own = np.abs(group[:, 2, 2] - 1) < 1e-6
    verdict = Verdict(np.where(own, 0.05, 0.9), np.where(own, 0.1, 1.0), np.where(own, 9.0, 40.0))
    verdict.share[0] = 0
    assert verdict.broken
    text = contradiction("D7", group, verdict)
    assert "agree with C7 among its axes: refine again with --symmetry C7, and with C1 to compare" in text
    assert "by 90 % of what they match" in text


def test_images_are_asked_from_all_over_the_table():
    halves = (np.arange(40_000) % 2 + 1).astype(np.int8)
    for order in (2, 60):
        chosen = sample(halves, 500, order)
        for half in (1, 2):
            indices = np.concatenate([rows for h, rows in chosen if h == half])
            assert np.all(halves[indices] == half)
            assert len(set(indices)) == len(indices) == (MOST_ASKED if order == 2 else LEAST_ASKED + 4)
            assert indices.min() < 2000
            assert indices.max() > 33_000
    few = sample(halves[:300], 500, 2)
    assert sum(len(rows) for _, rows in few) == 300
    assert FEWEST <= LEAST_ASKED
