"""Ranges, and the speeds of machines."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudem.cloud.catalogue import Catalogue
from cloudem.cloud.nodes import InstanceType
from cloudem.cloud.planning import calibration
from cloudem.cloud.planning.calibration import SpeedRow, keep, speeds
from cloudem.cloud.planning.estimate import Duration, Range, total
from cloudem.errors import FormatError

POSITIVE = st.floats(1e-3, 1e6)


@st.composite
def ranges(draw: st.DrawFn) -> Range:
    return Range(*sorted(draw(st.tuples(POSITIVE, POSITIVE, POSITIVE))))


@given(ranges(), ranges(), POSITIVE)
def test_sums_and_products_of_ranges_are_ranges(a: Range, b: Range, by: float) -> None:
    for result in (a.plus(b), a.times(b), a.times(by), total([a, b, a])):
        assert result.low <= result.expected <= result.high
    assert a.plus(b).expected == a.expected + b.expected
    assert a.times(b).holds(a.low * b.high)


@given(POSITIVE, st.floats(1, 10))
def test_a_range_within_a_factor_holds_both_its_ends(expected: float, factor: float) -> None:
    found = Range.within(expected, factor)
    assert found.holds(expected)
    assert not found.holds(expected * factor * 1.01)
    assert math.isclose(found.high / found.low, factor**2)


@pytest.mark.parametrize(
    ("tasks", "gpu_GiB", "limit"), [(8, 0.0, 0), (7, 0.0, 7), (2, 0.0, 2), (2, 5.0, 0), (1, 5.0, 1)]
)
def test_memory_limits_threads_or_with_gpus_the_workers(tasks: int, gpu_GiB: float, limit: int) -> None:
    kind = InstanceType("x.8", vcpus=8, cores=4, memory_GiB=8, gpu="X", gpus=2)
    assert Duration(Range.exactly(1.0), "x", gpu_GiB=gpu_GiB, tasks=tasks).limit(kind) == limit


def test_nothing_sums_to_zero() -> None:
    assert total([]) == (0, 0, 0)


def test_every_type_of_the_catalogue_has_a_row_and_no_gpu_was_measured() -> None:
    table = speeds()
    for kind in Catalogue.shipped().types.values():
        family = kind.name.partition(".")[0]
        assert family in table.families
        gpu = table.gpu(kind)
        assert (gpu is None) == (kind.gpus == 0)
        if gpu is not None:
            assert kind.gpu in table.gpus
            assert gpu.how != "measured"
            assert gpu.spread >= 3


def test_only_the_reference_was_measured_and_every_row_says_how() -> None:
    table = calibration._shipped()
    measured = [name for name, row in table.families.items() if row.how == "measured"]
    assert measured == ["reference"]
    for row in (*table.families.values(), *table.gpus.values()):
        assert row.date
        assert row.source
        assert row.how == "measured" or row.spread > calibration.MEASURED_SPREAD


def test_hyperthreads_share_a_core() -> None:
    row = SpeedRow("x", core=2.0, threads=1.2, spread=1.1, how="scaled", date="", source="")
    kind = InstanceType("x.8", vcpus=8, cores=4, memory_GiB=8)
    assert row.busy(kind, 1) == row.busy(kind, 4) == 2.0
    assert row.busy(kind, 8) == pytest.approx(0.6 * 2.0)
    assert 8 * row.busy(kind, 8) > 6 * row.busy(kind, 6) > 4 * row.busy(kind, 4)


def test_this_machines_own_row_is_kept_and_used(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CLOUDEM_CACHE", str(tmp_path))
    assert speeds().families["local"].how == "supposed"
    own = SpeedRow("my processor", 1.5, 1.0, 1.15, "measured", "2026-11-21", "test", cores=2)
    assert keep(own) == tmp_path / "speed.json"
    assert speeds().families["local"] == own


@pytest.mark.parametrize("text", ["", "[]", '{"core": 1}', '{"nonsense": 1}'])
def test_a_damaged_row_of_this_machine_is_one_line_that_says_what_to_do(tmp_path, text) -> None:
    path = tmp_path / "speed.json"
    path.write_text(text)
    with pytest.raises(FormatError, match="cloudem plan --benchmark"):
        speeds(path)


def test_benchmark_times_the_kernels_of_a_refinement(monkeypatch) -> None:
    monkeypatch.setattr(calibration, "SECONDS", 0.02)
    reference = calibration._document()["kernels"]["seconds"]
    taken = calibration.time_kernels()
    assert taken.keys() == reference.keys() == calibration.WEIGHTS.keys()
    monkeypatch.setattr(calibration, "time_kernels", lambda: {name: 2 * s for name, s in reference.items()})
    row = calibration.benchmark()
    assert row.core == pytest.approx(0.5)
    assert row.how == "measured"
    assert json.dumps(row.source)
    assert all(0 < seconds < 5 for seconds in taken.values())
