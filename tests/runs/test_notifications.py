"""What a run tells a webhook: once, in plain words, in its own time, and never where to."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from cloudem.cloud.local.provider import LocalProvider
from cloudem.cloud.money import NodeEnded, NodeStarted
from cloudem.cloud.nodes import HEAD
from cloudem.io.storage.groups import write_group
from cloudem.runs import notifications as module
from cloudem.runs.controller.loop import Controller
from cloudem.runs.notifications import LOST_EVERY_S, OLD_S, Notifications, Observer, escaped, lost_nodes
from cloudem.runs.records import RunState
from cloudem.runs.submit import end
from tests.runs.hooks import TOKEN, Hook, wait_for
from tests.runs.test_controller import SPOT, START, World


@pytest.fixture
def hook() -> Iterator[Hook]:
    with Hook() as made:
        yield made


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def told(world: World, hook: Hook, url: Callable[[], bytes | None] | None = None) -> Controller:
    """Return a controller that tells the hook."""
    notifications = Notifications(
        world.store, world.store.record(), url or (lambda: hook.url.encode()), lambda seconds: time.sleep(0.01)
    )
    controller = world.controller()
    controller._tell_webhook = notifications.look
    return controller


def test_a_run_that_finishes_says_so_once_with_its_resolution(world: World, hook: Hook) -> None:
    out = str(world.store.record().steps[0]["out"])
    write_group(out, "result", {}, {"resolution_A": 3.14})
    controller = told(world, hook)
    world.tick(controller, 20)
    world.jobs[0].how = "done"
    state = world.tick(controller, 400)
    assert state.status == "done"
    (text,) = hook.texts()
    name = world.store.record().name
    assert text.startswith(f"run {name} finished in ")
    assert re.fullmatch(r".*: 3\.1 Å, \$0\.0\d+ of \$5\.00", text)
    message = hook.got[0]
    assert (message["event"], message["id"], message["resolution_A"]) == ("finished", f"{name}/done-1", 3.14)
    assert message["spent_usd"] == pytest.approx(state.spent_usd, abs=1e-5)
    again = told(world, hook)  # a controller that died after it had told it, before anybody else heard of it
    again._tell(state)
    time.sleep(0.3)
    assert len(hook.got) == 1


def test_a_run_that_fails_says_why_and_no_job_can_write_mentions(world: World, hook: Hook) -> None:
    controller = told(world, hook)
    world.tick(controller, 20)
    world.jobs[0].progress = ("<!channel> a & b",)  # type: ignore[misc]
    world.jobs[0].how = "failed"
    assert world.tick(controller, 400).status == "failed"
    (text,) = hook.texts()
    assert "failed after" in text
    assert "0-refine3d failed: &lt;!channel&gt; a &amp; b" in text
    assert hook.got[0]["why"] == "0-refine3d failed: <!channel> a & b"


def test_money_is_told_at_four_fifths_and_again_after_the_cap_was_raised(world: World, hook: Hook) -> None:
    controller = told(world, hook)
    spent = world.tick(controller, 600).spent_usd
    assert hook.got == []
    world.store.change(max_usd=spent / 0.79)
    world.tick(controller, 5)
    assert hook.got == []
    world.store.change(max_usd=spent / 0.82)
    world.tick(controller, 10)
    wait_for(lambda: len(hook.got) == 1)
    assert hook.got[0]["event"] == "budget"
    assert " has spent $0.0" in hook.texts()[0]
    again = told(world, hook)  # the controller died, another one goes on
    world.tick(again, 5)
    time.sleep(0.3)
    assert [each["event"] for each in hook.got if each["event"] == "budget"] == ["budget"]


def test_a_stopped_run_says_how_to_go_on(world: World, hook: Hook) -> None:
    controller = told(world, hook)
    world.tick(controller, 20)
    world.store.change(stop=True)
    world.tick(controller, 10)
    world.jobs[0].how = "stopped"
    assert world.tick(controller, 400).status == "stopped"
    assert "stopped after" in hook.texts()[-1]
    assert "requested by its owner" in hook.texts()[-1]
    assert hook.texts()[-1].endswith("cloudem submit --resume goes on from there")


def test_a_lost_node_is_told_but_not_one_that_the_run_ends(world: World, hook: Hook) -> None:
    controller = told(world, hook)
    world.tick(controller, 30)
    lost = world.alive()[0]
    world.provider.terminate([lost])  # behind the controller's back
    world.tick(controller, 60)
    wait_for(lambda: len(hook.got) == 1)
    assert hook.got[0]["event"] == "nodes-lost"
    assert hook.got[0]["nodes"] == [lost]
    world.jobs[0].how = "done"
    world.tick(controller, 400)
    assert [each["event"] for each in hook.got] == ["nodes-lost", "finished"]


def test_losses_are_told_together_and_old_ones_never(world: World) -> None:
    record = world.store.record()
    ledger = [NodeStarted(START, f"n{i}", "worker-0000" if i else HEAD, SPOT, 0.1) for i in range(9)]
    observer = Observer(record)

    def events(at: float) -> list[tuple[str, ...]]:
        return [event.keys for event in observer.events(RunState(at=at, status="running"), 9.0, ledger)]

    ledger_ends = [NodeEnded(START + 10, f"n{i}", "ended") for i in range(4)]
    ledger.extend(ledger_ends)  # type: ignore[arg-type]
    assert events(START + 12) == [("lost-n1", "lost-n2", "lost-n3")]  # not the head
    ledger.append(NodeEnded(START + 20, "n4", "not listed for 60 s"))  # type: ignore[arg-type]
    ledger.append(NodeEnded(START + 20, "n5", "not needed"))  # type: ignore[arg-type]
    assert events(START + 22) == []
    assert events(START + 12 + LOST_EVERY_S) == [("lost-n4",)]
    assert events(START + 300) == []
    assert lost_nodes(ledger, START + 15).keys() == {"n4"}
    assert Observer(record).events(RunState(at=START + 30 + OLD_S, status="running"), 9.0, ledger) == []


def test_a_second_controller_tells_only_of_what_the_first_did_not(world: World, hook: Hook) -> None:
    record = world.store.record()
    assert world.store.claim_message("lost-n1")
    assert not world.store.claim_message("lost-n1")
    ledger = [NodeStarted(START, f"n{i}", "worker-0000", SPOT, 0.1) for i in (1, 2)]
    ends = [NodeEnded(START + 10, f"n{i}", "ended") for i in (1, 2)]
    notifications = Notifications(world.store, record, lambda: hook.url.encode())
    notifications.look(RunState(at=START + 20, status="running"), 9.0, [*ledger, *ends])
    wait_for(lambda: bool(hook.got))
    assert hook.got[0]["nodes"] == ["n2"]
    assert "lost a node (n2)" in hook.texts()[0]


def test_a_webhook_that_hangs_holds_nobody_up(world: World, hook: Hook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FLUSH_S", 0.5)
    hook.silent_s = 3.0
    controller = told(world, hook)
    world.tick(controller, 20)
    world.jobs[0].how = "failed"
    began = time.monotonic()
    assert world.tick(controller, 400).status == "failed"
    assert time.monotonic() - began < 2.5  # far below what the webhook takes


def test_a_keeper_of_secrets_that_hangs_holds_nobody_up(
    world: World, hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FLUSH_S", 0.2)
    stuck = threading.Event()
    controller = told(world, hook, lambda: stuck.wait(20) or None)  # type: ignore[func-returns-value,arg-type,return-value]
    world.tick(controller, 20)
    world.jobs[0].how = "done"
    began = time.monotonic()
    assert world.tick(controller, 400).status == "done"
    assert time.monotonic() - began < 5
    stuck.set()


def test_nothing_is_told_where_no_webhook_was_given(world: World, hook: Hook) -> None:
    controller = told(world, hook, lambda: None)
    world.tick(controller, 20)
    world.jobs[0].how = "done"
    assert world.tick(controller, 400).status == "done"
    assert hook.got == []
    assert not Path(world.store.url, "notified").exists()


def test_failures_are_logged_without_the_url(world: World, hook: Hook, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    hook.answers = [404]
    controller = told(world, hook)
    world.tick(controller, 20)
    world.jobs[0].how = "done"
    world.tick(controller, 400)
    wait_for(lambda: "was not delivered: it answered 404" in caplog.text)
    bad = Notifications(world.store, world.store.record(), lambda: f"http://elsewhere/{TOKEN}".encode())
    wait_for(lambda: "holds no URL of a webhook" in caplog.text)
    assert bad is not None
    assert TOKEN not in caplog.text


def test_slack_sees_no_markup() -> None:
    assert escaped("<@U1> & >") == "&lt;@U1&gt; &amp; &gt;"


# --- a whole run ------------------------------------------------------------------------------------------------------


@pytest.fixture
def cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("CLOUDEM_LOCAL_CLOUD", str(tmp_path / "cloud"))
    monkeypatch.setenv("CLOUDEM_LOCAL_NAMESPACES", "0")
    yield tmp_path / "cloud"
    made = LocalProvider()
    for resource in made.resources():
        end(resource.cluster, made)


def test_a_submitted_run_tells_and_its_url_is_nowhere(cloud: Path, hook: Hook, tmp_path: Path) -> None:
    project = tmp_path / "project"
    made = tmp_path / "set"
    call = [sys.executable, "-m", "cloudem"]
    demo = ["simulate", "--demo", "--box-px", "48", "--pixel-size-A", "4", "--count", "20", "--out", str(made)]
    subprocess.run([*call, *demo], check=True, capture_output=True)
    workflow = tmp_path / "w.toml"
    workflow.write_text(
        f'project = "{project}"\n[[step]]\njob = "mask"\nmap = "{made}/start.mrc"\nout = "{project}/mask.mrc"\n'
    )
    seen = list[str]()
    arguments = [
        *call,
        "submit",
        str(workflow),
        "--region",
        "local",
        "--yes",
        "--run-name",
        "apo",
        "--max-usd",
        "1",
        "--max-hours",
        "1",
    ]
    with subprocess.Popen(
        arguments,
        env={**os.environ, "CLOUDEM_WEBHOOK": hook.url},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        while process.poll() is None:
            for each in psutil.process_iter():
                try:
                    if each.pid != process.pid and TOKEN in " ".join(
                        [*each.cmdline(), *map(str, each.environ().items())]
                    ):
                        seen.append(each.name())
                except psutil.Error:
                    continue
            for path in [*cloud.rglob("*"), *project.rglob("*")]:
                try:
                    if path.is_file() and path.name != "webhook" and TOKEN.encode() in path.read_bytes():
                        seen.append(str(path))
                except OSError:
                    continue
            time.sleep(0.05)
        assert process.stdout is not None
        output = process.stdout.read()
    assert process.returncode == 0, output
    assert "notifications: to the webhook" in output
    assert TOKEN not in output
    assert str(hook.port) not in output
    assert seen == []
    (text,) = hook.texts()
    assert text.startswith("run apo-")
    assert "finished in" in text
    assert text.endswith(" of $1.00")
    assert not list(cloud.rglob("webhook"))  # it went with the cluster
    assert [path.name for path in project.glob("runs/*/notified/*")] == ["done-1.json"]
    log = next(project.glob("runs/*/log.txt")).read_text()
    assert "notification finished was delivered" in log
