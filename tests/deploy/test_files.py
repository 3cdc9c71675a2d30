"""Container, pinned versions, Kubernetes manifests and example workflows: whatever can be said without running them."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from packaging.requirements import Requirement

from cloudem.errors import MissingInputError
from cloudem.runs.workflow import read_workflow
from tests.deploy.test_account import DEPLOY

# --- container and versions -------------------------------------------------------------------------------------------


def _instructions() -> list[tuple[str, str]]:
    text = re.sub(r"\\\n\s*", "", (DEPLOY / "Containerfile").read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines)]


def test_the_container_starts_from_a_digest_and_does_not_run_as_root() -> None:
    instructions = _instructions()
    (base,) = [rest for word, rest in instructions if word == "ARG" and rest.startswith("BASE=")]
    assert re.fullmatch(r"BASE=\S+@sha256:[0-9a-f]{64}", base)
    assert {rest.split()[0] for word, rest in instructions if word == "FROM"} == {"${BASE}"}
    users = [number for number, (word, _) in enumerate(instructions) if word == "USER"]
    assert instructions[users[-1]][1] == "10001:10001"
    assert "RUN" not in [word for word, _ in instructions[users[-1] :]]
    assert ("ENTRYPOINT", '["cloudem"]') in instructions
    assert "ADD" not in [word for word, _ in instructions]


def test_what_the_container_copies_exists() -> None:
    for word, rest in _instructions():
        if word == "COPY" and not rest.startswith("--from"):
            for source in rest.split()[:-1]:
                assert (DEPLOY.parent / source).exists(), source


@pytest.mark.parametrize(
    ("file", "extras"),
    [
        ("constraints.txt", ["aws", "fsspec", "movies"]),
        ("constraints-gpu.txt", ["aws", "fsspec", "movies", "gpu"]),
    ],
)
def test_all_that_is_needed_is_pinned_to_what_fits(file: str, extras: list[str]) -> None:
    lines = [line for line in (DEPLOY / file).read_text().splitlines() if line and not line.startswith("#")]
    pinned = dict(line.split("==") for line in lines)
    assert len(pinned) == len(lines)
    project = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + [line for extra in extras for line in project["optional-dependencies"][extra]]
    for need in map(Requirement, wanted):
        assert need.specifier.contains(pinned[need.name.lower()]), f"{need} but {pinned[need.name.lower()]}"


# --- Kubernetes -------------------------------------------------------------------------------------------------------


def _documents(name: str) -> list[Any]:
    return list(yaml.safe_load_all((DEPLOY / "kubernetes" / name).read_text()))


def _pods() -> Iterator[tuple[str, Any]]:
    (cluster,) = _documents("cluster.yaml")
    yield "scheduler", cluster["spec"]["scheduler"]["spec"]
    yield "worker", cluster["spec"]["worker"]["spec"]
    (job,) = [one for one in _documents("job.yaml") if one["kind"] == "Job"]
    yield "job", job["spec"]["template"]["spec"]


def _unknown(schema: Mapping[str, Any], value: Any, path: str = "") -> Iterator[str]:
    """Yield fields that a schema does not know: the API server would drop them without a word."""
    if schema.get("x-kubernetes-preserve-unknown-fields"):
        return
    if isinstance(value, dict):
        known = schema.get("properties", {})
        for key, inner in value.items():
            if key in known:
                yield from _unknown(known[key], inner, f"{path}.{key}")
            elif "additionalProperties" not in schema and (path or key not in ("apiVersion", "kind", "metadata")):
                yield f"{path}.{key}"
    if isinstance(value, list):
        for inner in value:
            yield from _unknown(schema.get("items", {}), inner, f"{path}[]")


def test_the_cluster_is_what_the_operator_takes() -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    found = importlib.util.find_spec("dask_kubernetes")
    if found is None or found.origin is None:
        pytest.skip("dask-kubernetes is not installed (pip install --no-deps dask-kubernetes)")
    chart = Path(found.origin).parent / "operator/deployment/helm/dask-kubernetes-operator/crds/daskcluster.yaml"
    (version,) = yaml.safe_load(chart.read_text())["spec"]["versions"]
    schema = version["schema"]["openAPIV3Schema"]
    (cluster,) = _documents("cluster.yaml")
    assert cluster["apiVersion"] == f"kubernetes.dask.org/{version['name']}"
    assert [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(cluster)] == []
    assert list(_unknown(schema, cluster)) == []


@pytest.mark.parametrize(("name", "pod"), list(_pods()), ids=lambda value: value if isinstance(value, str) else "")
def test_pods_are_not_root_and_show_certificates(name: str, pod: Any) -> None:
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    (container,) = pod["containers"]
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert {"cpu", "memory"} <= set(container["resources"]["requests"])
    assert "memory" in container["resources"]["limits"]
    mounted = {one["name"]: one["mountPath"] for one in container["volumeMounts"]}
    place = container["args"][container["args"].index("--certificates") + 1]
    assert mounted["certificates"] == place
    (secret,) = [one["secret"] for one in pod["volumes"] if "secret" in one]
    assert secret["secretName"] == "cloudem-certificates"
    assert secret["defaultMode"] & 0o007 == 0, "cloudem refuses a key that everybody can read"
    assert {one["name"] for one in pod["volumes"]} == set(mounted)


@pytest.mark.parametrize(("name", "pod"), list(_pods()), ids=lambda value: value if isinstance(value, str) else "")
def test_commands_of_pods_are_understood(name: str, pod: Any) -> None:
    """Each gets as far as its certificates, or its file, which are not here."""
    from cloudem.cli.command_line import COMMANDS

    (container,) = pod["containers"]
    said = CliRunner().invoke(COMMANDS, [one.replace("$(POD_IP)", "127.0.0.1") for one in container["args"]])
    assert isinstance(said.exception, MissingInputError), said.output


# --- examples ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", sorted(path.name for path in (DEPLOY / "examples").glob("*.toml")))
def test_each_example_is_a_workflow(file: str) -> None:
    assert read_workflow(str(DEPLOY / "examples" / file)).steps


@pytest.mark.parametrize(
    ("file", "jobs"),
    [
        ("first-map.toml", ["refine3d", "postprocess", "report"]),
        ("rehearsal.toml", ["import", "refine3d", "postprocess", "report"]),
    ],
)
def test_example_workflows_are_read(file: str, jobs: list[str]) -> None:
    workflow = read_workflow(str(DEPLOY / "examples" / file))
    assert [step.job.name for step in workflow.steps] == jobs
    results = {step.job.name: getattr(step.job, "out", None) for step in workflow.steps}
    refined = next(step.name for step in workflow.steps if step.job.name == "refine3d")
    assert workflow.region
    assert str(results["refine3d"]).removeprefix("./") == f"{workflow.project}/{refined}".removeprefix("./")
