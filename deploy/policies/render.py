"""Writes submitter.json, head.json and worker.json from account.yaml, which is where the permissions are decided.

For accounts that are not managed by CloudFormation: REGION, ACCOUNT, BUCKET and VPC stand for what the stack would
fill in. ``python deploy/policies/render.py`` writes them anew; a test compares.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
TEMPLATE = HERE.parent / "account.yaml"
POLICIES = {"submitter": "SubmitterPolicy", "head": "HeadPolicy", "worker": "WorkerPolicy"}
PLACEHOLDERS = {
    "AWS::Partition": "aws",
    "AWS::Region": "REGION",
    "AWS::AccountId": "ACCOUNT",
    "Bucket": "BUCKET",
    "Bucket.Arn": "arn:aws:s3:::BUCKET",
    "Vpc": "VPC",
    "HeadRole.Arn": "arn:aws:iam::ACCOUNT:role/cloudem-head",
    "WorkerRole.Arn": "arn:aws:iam::ACCOUNT:role/cloudem-worker",
}
"""What a template may refer to -> what stands for it."""


class _Loader(yaml.SafeLoader):
    """Reads CloudFormation's short forms: ``!Sub x`` as ``{"Fn::Sub": x}``."""


def _short_form(loader: _Loader, name: str, node: yaml.Node) -> dict[str, Any]:
    if isinstance(node, yaml.ScalarNode):
        value: Any = loader.construct_scalar(node)
    elif isinstance(node, yaml.SequenceNode):
        value = loader.construct_sequence(node, deep=True)
    else:
        value = loader.construct_mapping(node, deep=True)
    return {name if name in ("Ref", "Condition") else f"Fn::{name}": value}


_Loader.add_multi_constructor("!", _short_form)


def template() -> dict[str, Any]:
    """Return account.yaml with its functions unresolved."""
    loaded: dict[str, Any] = yaml.load(TEMPLATE.read_text(), Loader=_Loader)  # noqa: S506 - a SafeLoader
    return loaded


def resolve(value: Any, names: Mapping[str, str]) -> Any:
    """Replace ``Ref``, ``Fn::GetAtt`` and ``Fn::Sub`` by what the names stand for; KeyError where one is missing."""
    if isinstance(value, list):
        return [resolve(item, names) for item in value]
    if not isinstance(value, dict):
        return value
    if set(value) & {"Ref", "Fn::GetAtt"}:
        return names[next(iter(value.values()))]
    if set(value) == {"Fn::Sub"}:
        return re.sub(r"\$\{([^}!]+)\}", lambda match: names[match[1]], value["Fn::Sub"])
    return {key: resolve(item, names) for key, item in value.items()}


def policies(names: Mapping[str, str] = PLACEHOLDERS) -> dict[str, dict[str, Any]]:
    """Return the policy of each role as IAM gets it."""
    resources = template()["Resources"]
    documents = {role: resources[name]["Properties"]["PolicyDocument"] for role, name in POLICIES.items()}
    return {role: resolve(document, names) for role, document in documents.items()}


def text(policy: Mapping[str, Any]) -> str:
    """Return a policy as its file holds it."""
    return json.dumps(policy, indent=2) + "\n"


if __name__ == "__main__":
    for role, policy in policies().items():
        (HERE / f"{role}.json").write_text(text(policy))
