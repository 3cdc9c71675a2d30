"""Starting a run from anywhere, following it, starting it again: the user's side of `cloudem.runs.controller.loop`.

Whatever fails while a run is started, what was made for it is removed again. Once its controller lives, the run needs
nobody: who follows it may leave and come back, on another machine, too.
"""

from __future__ import annotations

import getpass
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from cloudem import __version__
from cloudem.cloud.catalogue import Catalogue, cache_file, region_of
from cloudem.cloud.money import NodeEnded, account, describe_cap
from cloudem.cloud.nodes import HEAD, Node, Pool, Request, Resource
from cloudem.cloud.planning.plan import Plan
from cloudem.cloud.provider import Provider
from cloudem.errors import CloudemError, ParameterError, ProviderError
from cloudem.execution.dask.security import make_certificates
from cloudem.io.storage.location import is_remote
from cloudem.runs.agent import ALONE_S, certificates_as_secret, certificates_from_secret
from cloudem.runs.reckoning import SILENT_S
from cloudem.runs.records import LATENCY_S, RunRecord, RunState, RunStore, Wishes, wishes_of
from cloudem.runs.webhook import WEBHOOK_SECRET
from cloudem.runs.workflow import Workflow

Say = Callable[[str], None]

PASSED_ON = ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "CLOUDEM_LOCAL_CLOUD")
"""Of this process's environment what nodes get, too; nothing of it is secret."""

CERTIFICATES = "certificates"
"""Name of the secret with which the nodes of a run know each other."""

PATIENCE_S: Mapping[str, float] = {"local": 60.0, "aws": 420.0}
"""How long to wait for the first sign of life of a head."""

SPARE = 1.5
"""Where no limits are given they are so many times the upper ends of the plan."""

HEADS = 5
"""Other pools that are tried for the head where the planned one has no capacity."""

LOOK_S: Mapping[str, float] = {"local": 0.3, "aws": 3.0}

HEAD_GONE_S: Mapping[str, float] = {"local": 30.0, "aws": 180.0}
"""How long to wait until the head of an earlier launch has ended."""


def new_run(
    workflow: Workflow,
    plan: Plan,
    provider: str,
    name: str,
    max_usd: float | None,
    max_hours: float | None,
    now: float,
    *,
    dashboard: bool = False,
) -> tuple[RunStore, RunRecord, Wishes]:
    """Return the record of a new run, which nobody has written yet.

    Raises
    ------
    ParameterError
        Nodes could not reach the project.
    """
    if not workflow.project:
        raise ParameterError('a job file has no project; write project = "s3://bucket/prefix" and [[step]]')
    if provider != "local" and not is_remote(workflow.project):
        raise ParameterError(f"project: nodes cannot reach {workflow.project}; give s3://bucket/prefix")
    steps = tuple({"job": step.job.name, **step.job.model_dump(mode="json")} for step in workflow.steps)
    record = RunRecord(
        name=name,
        created=now,
        owner=f"{_user()}@{platform.node()}",
        provider=provider,
        region=plan.region,
        steps=steps,
        plan=plan.as_json(),
        version=__version__,
        dashboard=dashboard,
    )
    usd = max_usd if max_usd is not None else max(plan.usd.high * SPARE, 0.01)
    seconds = max_hours * 3600 if max_hours is not None else plan.wall.high * SPARE
    return RunStore.of(workflow.project, name), record, wishes_of(max_usd=usd, deadline=now + seconds)


def start(
    store: RunStore,
    provider: Provider,
    catalogue: Catalogue,
    say: Say,
    clock: Callable[[], float] = time.time,
    webhook: bytes | None = None,
) -> Node:
    """Launch the head of a run and wait until its controller lives; on any failure remove what was made.

    The URL of a webhook goes the way of the certificates: it is a secret of the cluster, and goes with it.

    Raises
    ------
    ProviderError
        There is no machine to be had, or it does not come to life.
    """
    record, wanted = store.record(), store.wanted()
    tags = {"project": store.url.rpartition("/runs/")[0], "job": record.name, "owner": record.owner}
    _await_no_head(provider, record)
    try:
        provider.prepare(record.name, tags)
        provider.put_secret(record.name, CERTIFICATES, certificates())
        if webhook is not None:
            provider.put_secret(record.name, WEBHOOK_SECRET, webhook)
        request = head_request(store, record, wanted, tags, catalogue)
        say(f"requesting the head node: {' or '.join(' '.join(pool) for pool in request.pools[:3])}")
        node = provider.launch(request)
        say(f"{node.id} is starting in {node.pool.zone}")
        _await_controller(store, provider, node, wanted.launch, record.provider, clock)
        return node
    except BaseException:
        if _newest(store) in (wanted.launch, None):  # what somebody else launched since is not ours to remove
            say("removing what was created")
            end(record.name, provider)
        raise


def head_request(
    store: RunStore, record: RunRecord, wanted: Wishes, tags: Mapping[str, str], catalogue: Catalogue
) -> Request:
    """Return the request for the head node of a run's newest launch."""
    plan = Plan.from_json(record.plan)
    document = {
        "cloudem": 1,
        "project": store.url.rpartition("/runs/")[0],
        "run": record.name,
        "cluster": record.name,
        "slot": HEAD,
        "generation": wanted.launch,
        "provider": record.provider,
        "deadline": wanted.deadline,
        "certificates": CERTIFICATES,
        "environment": {name: os.environ[name] for name in PASSED_ON if name in os.environ},
        "dashboard": record.dashboard,
        "tags": dict(tags),
    }
    return Request(
        token=f"{record.name}/{HEAD}/{wanted.launch}",
        cluster=record.name,
        slot=HEAD,
        generation=wanted.launch,
        pools=head_pools(plan.head, catalogue),
        deadline=wanted.deadline,
        start=json.dumps(document),
        tags=tags,
    )


def head_pools(planned: Pool, catalogue: Catalogue) -> tuple[Pool, ...]:
    """Return where a head may come from: as planned, else what is no smaller, in the same zone first, then cheapest."""
    least = catalogue.types[planned.instance_type]
    found = []
    for name, kind in catalogue.types.items():
        no_smaller = kind.vcpus >= least.vcpus and kind.memory_GiB >= least.memory_GiB
        if kind.gpus or not no_smaller or kind.architecture != least.architecture:
            continue
        for zone in catalogue.zones(region_of(planned.zone)):
            pool = Pool(name, zone, "on-demand")
            if pool != planned and (price := catalogue.price(pool)) is not None:
                found.append((zone != planned.zone, price.usd_per_hour, pool))
    return (planned, *(pool for *_, pool in sorted(found)[:HEADS]))


def certificates() -> bytes:
    """Return new certificates of a cluster as a secret."""
    with tempfile.TemporaryDirectory(prefix="cloudem-certificates-") as folder:
        make_certificates(Path(folder) / "certificates")
        return certificates_as_secret(Path(folder) / "certificates")


def certificates_folder(cluster: str) -> Path:
    """Return where the certificates of a standing cluster are kept for its owner."""
    return cache_file().parent / "certificates" / cluster


def keep_certificates(provider: Provider, cluster: str) -> Path:
    """Keep the certificates of a standing cluster, so that its owner's jobs are let in; return their folder.

    Raises
    ------
    ProviderError
        The cluster has none.
    """
    value, folder = provider.secret(cluster, CERTIFICATES), certificates_folder(cluster)
    if value is None:
        raise ProviderError(f"{cluster} no longer has certificates")
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    certificates_from_secret(value, folder)
    return folder


def promise(plan: Plan, wanted: Wishes, catalogue: Catalogue) -> str:
    """Return what is promised of money and time, by the highest rate that the plan may come to."""
    prices = {pool: price.usd_per_hour for pool in pools_of(plan) if (price := catalogue.price(pool)) is not None}
    highest = max((step.count * max(prices.get(pool, 0.0) for pool in step.pools) for step in plan.steps), default=0.0)
    rate = prices.get(plan.head, 0.0) + highest
    latency_s = LATENCY_S["local" if plan.region == "local" else "aws"]
    text = describe_cap(wanted.max_usd, rate, latency_s=latency_s, patience_s=ALONE_S)
    return f"{text}; ends by {time.strftime('%Y-%m-%d %H:%M', time.localtime(wanted.deadline))}"


def pools_of(plan: Plan) -> set[Pool]:
    """Return all pools that a plan may use."""
    return {plan.head, *(pool for step in plan.steps for pool in step.pools)}


def resume(store: RunStore, max_usd: float | None, max_hours: float | None, now: float) -> Wishes:
    """Have a stopped run go on from its last finished step and iteration, with another cap where one is given.

    Raises
    ------
    ParameterError
        It runs, or is finished, or its cap leaves nothing.
    """
    state, wanted = store.state(), store.wanted()
    if state is not None and not state.over and now - state.at < SILENT_S:
        raise ParameterError(f"{store.url} is running; follow it with `cloudem submit --attach {store.url}`")
    if state is not None and state.status == "done":
        raise ParameterError(f"{store.url} is finished; there is nothing left to do")
    usd = wanted.max_usd if max_usd is None else max_usd
    if state is not None and usd <= state.spent_usd:
        raise ParameterError(
            f"--max-usd: ${state.spent_usd:.2f} of ${usd:.2f} are spent; give a higher limit to resume"
        )
    deadline = wanted.deadline if max_hours is None else now + max_hours * 3600
    if deadline <= now:
        raise ParameterError("--max-hours: the run is out of time; give more hours to resume")
    return store.change(max_usd=usd, deadline=deadline, stop=False, launch=wanted.launch + 1, after=wanted.launch)


def follow(store: RunStore, show: Callable[[RunState], None], provider: Provider | None = None) -> RunState:
    """Show how a run stands until it is over.

    Raises
    ------
    ProviderError
        Its head is gone, and nothing was heard of its controller since.
    """
    record, shown = store.record(), None
    while True:
        state = store.state()
        if state is not None and state != shown:
            show(state)
            shown = state
        if state is not None and state.over and state.launch == store.wanted().launch:
            return state
        if provider is not None and state is not None and time.time() - state.at > SILENT_S:
            heads = [node for node in provider.nodes(record.name) if node.slot == HEAD and node.alive]
            if not heads:
                raise ProviderError(
                    f"the head of {store.url} is gone, and its controller has been silent for {SILENT_S:.0f} s; resume"
                    f" with `cloudem submit --resume {store.url}`"
                )
        time.sleep(LOOK_S[record.provider])


def end(cluster: str, provider: Provider, patience_s: float = 300.0) -> list[Resource]:
    """End all nodes of a cluster and remove whatever it has; return what could not be removed in time."""
    deadline = time.monotonic() + patience_s
    while True:
        left: list[Resource] = []
        try:
            provider.terminate([node.id for node in provider.nodes(cluster) if node.alive])
            left = provider.release(cluster) or provider.resources(cluster)
            if not left:
                return []
        except ProviderError:
            if time.monotonic() > deadline:
                raise
        if time.monotonic() > deadline:
            return left
        time.sleep(1.0)


def conclude(store: RunStore, why: str, now: float) -> None:
    """Say of a run whose nodes were ended without its controller that it is stopped, and enter their ends."""
    state = store.state()
    if state is None or state.over:
        return
    entries = store.ledger()
    store.append(*(NodeEnded(now, node, why) for node in sorted(account(entries, now).alive)))
    spent = max(account(store.ledger(), now).total, state.spent_usd)  # entries may be missing
    values = {"at": now, "status": "stopped", "why": why, "nodes": (), "usd_per_hour": 0.0, "spent_usd": spent}
    store.write_state(state.model_copy(update=values))


def _await_no_head(provider: Provider, record: RunRecord) -> None:
    """Wait until the head of an earlier launch is gone, which ends as soon as its controller sees the new one."""
    limit = time.monotonic() + HEAD_GONE_S[record.provider]
    while heads := [node.id for node in provider.nodes(record.name) if node.slot == HEAD and node.alive]:
        if time.monotonic() > limit:
            raise ProviderError(
                f"{heads[0]}, the head of an earlier launch of {record.name}, is still running; try again, or stop it:"
                " cloudem cluster down --now"
            )
        time.sleep(LOOK_S[record.provider])


def _newest(store: RunStore) -> int | None:
    """Return the number of the newest launch; None where the store does not tell."""
    try:
        return store.wanted().launch
    except CloudemError:
        return None


def _await_controller(
    store: RunStore, provider: Provider, node: Node, launch: int, kind: str, clock: Callable[[], float]
) -> None:
    began = clock()
    while clock() - began < PATIENCE_S[kind]:
        state = store.state()
        if state is not None and state.launch == launch:
            return
        if any(each.id == node.id and not each.alive for each in provider.nodes(node.cluster)):
            raise ProviderError(f"the head node {node.id} ended at once{_last_line(provider, node)}")
        time.sleep(LOOK_S[kind])
    raise ProviderError(
        f"the head node {node.id} gave no sign of life for {PATIENCE_S[kind]:.0f} s; can it reach {store.url}, and does"
        f" its image have this version of cloudem?{_last_line(provider, node)}"
    )


def _last_line(provider: Provider, node: Node) -> str:
    lines = [line for line in provider.log(node.id).splitlines() if line.strip()]
    return f"; its last message: {lines[-1].strip()}" if lines else ""


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return f"user-{os.getuid()}"
