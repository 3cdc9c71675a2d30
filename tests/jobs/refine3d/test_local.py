"""refine3d --local about a pivot: a part that is off the middle of the box, refined where it is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cloudem.algorithms.align import Anchors, Prior, start_poses
from cloudem.algorithms.mask import soft_sphere
from cloudem.errors import ParameterError
from cloudem.io.formats.mrc_writer import write_volume
from cloudem.io.storage.groups import read_group
from cloudem.io.storage.tables import table_from_arrays
from cloudem.jobs.reconstruct.job import Reconstruct
from cloudem.jobs.refine3d.focusing import spread_of
from cloudem.jobs.refine3d.job import Refine3D
from cloudem.kernels.shells import fourier_shell_correlation
from cloudem.model.particles import Particles
from cloudem.model.poses import angle_between, euler_to_matrix, matrix_to_euler, rotate
from tests.jobs.conftest import BOX, PIXEL, make_scene, molecule, run

OFF = (0, 0, 7)
"""Voxels along z, y, x by which the molecule is off the middle."""

pytestmark = pytest.mark.usefixtures("no_report")


@dataclass(frozen=True)
class Aside:
    """Images of a molecule off the middle, with poses that are a little wrong, and what is true."""

    particles: str
    whole: str
    mask: str
    density: NDArray[np.float32]
    truth: Particles
    off: float

    def job(self, out: Path, **values: Any) -> Refine3D:
        given = {"particles": self.particles, "reference": self.whole, "local": True, "mask": self.mask}
        given |= {"diameter_A": 100.0, "poses": 2, "group_size": 50, "max_iterations": 3, "out": str(out)}
        return Refine3D(**{**given, **values})


def rotations_of(table: Particles) -> NDArray[np.float64]:
    return euler_to_matrix(table["rot"], table["tilt"], table["psi"])


@pytest.fixture(scope="module")
def aside(tmp_path_factory: pytest.TempPathFactory) -> Aside:
    folder, rng = tmp_path_factory.mktemp("aside"), np.random.default_rng(3)
    small = molecule() * soft_sphere(BOX, 8, 3.0)
    density = np.roll(small, OFF, (0, 1, 2))

    def turned(truth: Particles) -> Particles:
        """Turn poses about the middle of the molecule by some degrees: what a hinge does."""
        a = rotations_of(truth)
        b = rotate(a, rng.normal(0, np.radians(4), (len(truth), 3)))
        x, y = ((a - b) @ (PIXEL * np.array(OFF[::-1])))[:, :2].T
        rot, tilt, psi = matrix_to_euler(b)
        shifted = {"shift_x": truth["shift_x"] + x, "shift_y": truth["shift_y"] + y}
        return truth.with_columns(rot=rot, tilt=tilt, psi=psi, **shifted)

    made = make_scene(folder, count=200, snr=0.5, density=density, columns=turned)
    write_volume(folder / "mask.mrc", np.roll(soft_sphere(BOX, 9, 3.0), OFF, (0, 1, 2)), PIXEL)
    run(Reconstruct(particles=made.particles, out=str(folder / "whole"), report=False))
    given = table_from_arrays(Particles, *read_group(folder / "whole", "particles"))
    off = float(np.degrees(np.median(angle_between(rotations_of(given), rotations_of(made.truth)))))
    return Aside(made.particles, str(folder / "whole"), str(folder / "mask.mrc"), density, made.truth, off)


@pytest.mark.parametrize("options", [{}, {"window_px": 24, "prior_deg": 8.0, "prior_A": 6.0}])
def test_a_part_is_refined_where_it_is(aside: Aside, options: dict[str, Any], tmp_path: Path) -> None:
    """Poses and maps of the result are those of the whole box, whatever was refined inside."""
    run(aside.job(tmp_path / "part", **options))
    arrays, _ = read_group(tmp_path / "part", "result")
    found = table_from_arrays(Particles, *read_group(tmp_path / "part", "particles"))
    error = np.degrees(np.median(angle_between(rotations_of(found), rotations_of(aside.truth))))
    assert aside.off > 4
    assert error < 0.75 * aside.off
    for name in ("x", "y"):
        assert np.median(np.abs(found[f"shift_{name}"] - aside.truth[f"shift_{name}"])) < 0.5 * PIXEL
    mask = arrays["mask"]
    before = read_group(aside.whole, "result")[0]["map_unfiltered"]
    fsc, was = (
        fourier_shell_correlation(each * mask, aside.density * mask)[3:13]
        for each in (arrays["map_unfiltered"], before)
    )
    assert fsc.mean() > was.mean()
    assert fsc[:5].min() > 0.8
    run(Reconstruct(particles=str(tmp_path / "part"), mask=aside.mask, out=str(tmp_path / "again"), report=False))
    again = read_group(tmp_path / "again", "result")[0]["map_unfiltered"]
    assert fourier_shell_correlation(again * mask, arrays["map_unfiltered"] * mask)[1:8].min() > 0.95


def test_strong_priors_leave_poses_where_they_are(aside: Aside, tmp_path: Path) -> None:
    run(aside.job(tmp_path / "held", prior_deg=0.01, prior_A=0.01, max_iterations=1))
    found = table_from_arrays(Particles, *read_group(tmp_path / "held", "particles"))
    given = table_from_arrays(Particles, *read_group(aside.whole, "particles"))
    assert np.degrees(angle_between(rotations_of(found), rotations_of(given))).max() < 0.2
    assert np.abs(found["shift_x"] - given["shift_x"]).max() < 0.05 * PIXEL


def test_what_makes_no_sense_is_refused(aside: Aside, tmp_path: Path) -> None:
    for options, words in (
        ({"local": False, "prior_deg": 5.0}, "is for --local"),
        ({"pivot_A": "1,2"}, "three numbers are needed"),
        ({"pivot_A": "500,0,0"}, "lies outside of the box"),
        ({"window_px": 31}, "is odd"),
        ({"window_px": 64}, "larger than the images"),
        ({"window_px": 10}, "into which --diameter-A 100 does not fit"),
    ):
        with pytest.raises(ParameterError, match=words):
            aside.job(tmp_path / "out", **options).preflight()
    with pytest.raises(ParameterError, match="off the axes of C2"):
        run(aside.job(tmp_path / "out", symmetry="C2"))


@pytest.mark.parametrize("true", [0.0, 1.0, 4.0])
def test_how_far_poses_have_moved_is_found_beyond_their_noise(true: float) -> None:
    """Of posterior modes with any prior: those shrink, and what is left of the noise in them is known."""
    rng, count, radian = np.random.default_rng(1), 4000, np.radians(1.0)
    noise = radian * rng.uniform(1, 3, count)  # images differ in what they know
    for sigma in (2 * radian, 6 * radian):
        shrink = sigma**2 / (sigma**2 + noise**2)
        moved = true * radian * rng.standard_normal((count, 3)) + noise[:, None] * rng.standard_normal((count, 3))
        turns, shifts = shrink[:, None] * moved, shrink[:, None] * moved[:, :2] / radian
        precision = np.zeros((count, 5, 5))
        for axis in range(5):
            unit = 1.0 if axis < 3 else radian
            precision[:, axis, axis] = (1 / noise**2 + 1 / sigma**2) * unit**2
        start = np.tile(np.eye(3), (count, 1, 1))
        best = replace(start_poses(np.arange(count), rotate(start, turns), shifts), precision=precision)
        anchors = Anchors(start, np.zeros((count, 2)))
        turn, shift = spread_of(best, anchors, Prior((sigma / radian) ** 2, sigma**2))
        assert np.degrees(np.sqrt(turn)) == pytest.approx(max(true, 0.1), abs=0.3)
        assert np.sqrt(shift) == pytest.approx(true, abs=0.4)
