"""The IAM actions that each method of the provider needs, from the calls that it makes.

``python -m tests.cloud.aws.actions`` writes them into calls.json; a test compares.
"""

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cloudem.cloud.aws.provider import AWSProvider
from cloudem.cloud.nodes import HEAD, Pool, Resource
from tests.cloud.aws.moto import REGION, server
from tests.cloud.aws.recorded import Recorded
from tests.cloud.aws.rising import ON_DEMAND, SPOT, ZONE, wanted

FILE = Path(__file__).with_name("calls.json")

_PREFIX = {"service-quotas": "servicequotas"}

_IMPLIED: Mapping[str, tuple[str, ...]] = {
    "ec2:CreateFleet": ("ec2:RunInstances", "iam:PassRole"),  # in the name of who asks for the fleet
}
_TAGGING = {"ec2": "ec2:CreateTags", "ssm": "ssm:AddTagsToResource"}


def actions(account: Recorded) -> dict[str, list[str]]:
    """Live through a cluster's life; return method -> actions."""
    needed: dict[str, set[str]] = {}
    method = ""

    def note(params: Mapping[str, Any], model: Any, **_: Any) -> None:
        service = model.service_model.service_name
        action = f"{_PREFIX.get(service, service)}:{model.name}"
        tagging = [_TAGGING[service]] if params.get("TagSpecifications") or params.get("Tags") else []
        needed.setdefault(method, set()).update([action, *_IMPLIED.get(action, ()), *tagging])

    session = account.session()
    session.events.register("provide-client-params", note)
    aws = AWSProvider(REGION, session=session)
    steps: list[tuple[str, Callable[[], object]]] = [
        ("prepare", lambda: aws.prepare("one", {})),
        ("prepare", lambda: aws.prepare("one", {})),
        ("put_secret", lambda: aws.put_secret("one", "certificates", b"key")),
        ("put_secret", lambda: aws.put_secret("one", "certificates", b"another")),
        ("secret", lambda: aws.secret("one", "certificates")),
        ("launch", lambda: AWSProvider(REGION, session=session).launch(wanted("one", HEAD, ON_DEMAND))),
        ("launch", lambda: aws.launch(wanted("one", "worker-0001", SPOT))),
        ("launch", lambda: aws.launch(wanted("one", "worker-0001", SPOT))),
        ("nodes", lambda: AWSProvider(REGION, session=session).nodes("one")),
        ("quotas", aws.quotas),
        ("spot_prices", lambda: AWSProvider(REGION, session=session).spot_prices([Pool("c7a.large", ZONE, "spot")])),
        ("terminate", lambda: aws.terminate([node.id for node in aws.nodes("one")][:1])),
        ("resources", aws.resources),
        ("remove", lambda: [aws.remove(one) for one in [*aws.resources(), *_LEFT]]),
    ]
    for name, step in steps:
        method = name
        step()
    for name in ("terminate", "remove"):  # they list what to end only here
        needed[name] -= needed["resources"] | needed["nodes"]
    return {name: sorted(found) for name, found in needed.items()}


_LEFT = (
    Resource("address", "eipalloc-0123456789abcdef0", "one"),
    Resource("log-group", "/cloudem/one/head", "one"),
)

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, server(Path(folder)) as moto:
        import os

        os.environ.update(moto.environment)
        moto.reset()
        FILE.write_text(json.dumps(actions(Recorded(moto)), indent=2) + "\n")
