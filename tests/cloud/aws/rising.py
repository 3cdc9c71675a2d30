"""A cluster that rises: what a client asks of AWS until nodes run. As a program, it is killed in the middle."""

import sys

from cloudem.cloud.aws.provider import AWSProvider
from cloudem.cloud.nodes import HEAD, Pool, Request
from tests.cloud.aws.moto import REGION, Moto
from tests.cloud.aws.recorded import Recorded

ZONE, OTHER = "use1-az6", "use1-az2"
ON_DEMAND = (Pool("c7a.large", ZONE, "on-demand"),)
SPOT = (Pool("c7a.xlarge", ZONE, "spot"), Pool("c7a.large", ZONE, "spot"))


def wanted(cluster: str, slot: str = "worker-0001", pools: tuple[Pool, ...] = SPOT, **other: object) -> Request:
    """Return a request with a token of its own for each slot and generation."""
    given = {"generation": 1, "deadline": 1_900_000_000.0, "tags": {"owner": "somebody", "project": "s3://data/one"}}
    given |= other
    return Request(f"{cluster}/{slot}/{given['generation']}", cluster, slot, pools=pools, **given)  # type: ignore[arg-type]


def up(aws: AWSProvider, cluster: str) -> None:
    """Let a cluster rise until its head runs."""
    aws.prepare(cluster, {"owner": "somebody"})
    aws.put_secret(cluster, "certificates", b"not to be seen")
    aws.launch(wanted(cluster, HEAD, ON_DEMAND))


if __name__ == "__main__":
    url, name, number = sys.argv[1:]
    layer = Recorded(Moto(url))
    layer.arm(int(number), "killed after")
    up(AWSProvider(REGION, session=layer.session()), name)
