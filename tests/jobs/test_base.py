"""Declarations of jobs: what they accept, what they say, what they keep."""

from __future__ import annotations

import json
import math

import pytest

from cloudem import __version__
from cloudem.errors import ParameterError
from cloudem.jobs.base import JOBS, Job, find_job
from cloudem.jobs.parameters import label_of, option_of, unit_of
from cloudem.jobs.provenance import job_record
from tests.counting_job import Count


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("diameter_A", "Å"),
        ("b_factor_A2", "Å²"),
        ("dose_e_per_A2", "e/Å²"),
        ("angle_deg", "°"),
        ("cs_mm", "mm"),
        ("voltage_kV", "kV"),
        ("box_px", "px"),
        ("symmetry", ""),
        ("A", ""),
    ],
)
def test_the_unit_is_part_of_the_name(name: str, unit: str) -> None:
    assert unit_of(name) == unit


def test_options_are_named_after_fields() -> None:
    assert option_of("search_step_deg") == "--search-step-deg"
    assert (label_of(Count, "numbers"), label_of(Count, "edge_A")) == ("NUMBERS", "--edge-A")


@pytest.mark.parametrize("name", JOBS)
def test_every_job_is_declared_completely(name: str) -> None:
    declaration = find_job(name)
    assert declaration.name == name
    assert declaration.summary.endswith(".")
    assert declaration.examples
    assert declaration.run is not Job.run
    for field_name, field in declaration.model_fields.items():
        assert field.description, f"{field_name} has no meaning"
        assert not field.description.endswith(".")


def test_an_unknown_job_is_refused_with_the_nearest() -> None:
    with pytest.raises(ParameterError, match="there is no job 'refin3d', did you mean 'refine3d'"):
        find_job("refin3d")


def test_all_that_is_wrong_is_said_in_one_line() -> None:
    with pytest.raises(ParameterError) as caught:
        Count(numbers=("1",), edge_A=60, window_px=(1,), kind="sideways", out=3)
    message = str(caught.value)
    assert "\n" not in message
    assert (
        message.split("; ")[0] == "--out: got 3, needs a valid string (folder for the results, or s3://bucket/prefix)"
    )
    assert "--edge-A: got 60, needs less than or equal to 50, in Å (width of the edge)" in message
    assert "--kind: got 'sideways', needs up or down (direction)" in message


@pytest.mark.parametrize("value", [math.nan, math.inf, "nan"])
def test_numbers_are_finite(value: float) -> None:
    with pytest.raises(ParameterError, match="needs a finite number"):
        Count(numbers=("1",), out="x", edge_A=value)


def test_a_misspelt_parameter_is_named_with_the_nearest() -> None:
    with pytest.raises(ParameterError, match=r"count has no parameter 'edge_a', did you mean 'edge_A'\?"):
        Count(numbers=("1",), out="x", edge_a=3)


def test_a_validator_of_a_job_has_its_own_line() -> None:
    with pytest.raises(ParameterError, match=r"^count --kind down needs --limit: where to stop$"):
        Count(numbers=("1",), out="x", kind="down")


def test_the_record_makes_the_same_job_again() -> None:
    job = Count(numbers=("1", "2"), out="x", edge_A=3, limit=4)
    record = json.loads(json.dumps(job_record(job)))
    assert Count(**record["parameters"]) == job
    assert record["job"] == "count"
    assert record["versions"]["cloudem"] == __version__
    assert {"python", "numpy", "zarr"} <= set(record["versions"])
    assert record["date"].endswith("+00:00")


def test_places_are_absolute(tmp_path, monkeypatch):
    """Workers and a later run may have another working directory."""
    monkeypatch.chdir(tmp_path)
    job = find_job("refine3d")(particles="s3://bucket//a/", reference="r.mrc", diameter_A=100, out="file:///x/y")
    assert (job.particles, job.reference, job.out, job.mask) == ("s3://bucket/a", f"{tmp_path}/r.mrc", "/x/y", None)
    with pytest.raises(ParameterError, match="gopher:// locations are not known"):
        find_job("report")(out="gopher://x/y")
