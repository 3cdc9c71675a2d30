"""Alert rules and dashboard: sound to promtool, and answered by a real Prometheus that scrapes a real job."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from cloudem.cloud.catalogue import Catalogue
from cloudem.cloud.local.provider import LocalProvider
from cloudem.cloud.money import account
from cloudem.jobs.refine3d.job import Refine3D
from cloudem.runs.exposition import CONTENT_TYPE, disk_of, exposition, job_figures, poses_kept, run_figures
from cloudem.runs.submit import follow, start
from tests.deploy.test_account import DEPLOY
from tests.execution.dask.test_cluster import free_ports
from tests.jobs.conftest import make_scene
from tests.runs.test_controller import World
from tests.runs.test_exposition import Watched, view_of, watched
from tests.runs.test_runs import new, provider  # noqa: F401  a fixture
from tests.serve.conftest import TOKEN, served

RULES = DEPLOY / "prometheus"
BOARD = json.loads((DEPLOY / "grafana" / "cloudem.json").read_text())
LIMIT_S = 60.0

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (apt-get install prometheus)"
)
needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="prometheus is not installed (apt-get install prometheus)"
)


def promtool(*arguments: str) -> None:
    done = subprocess.run(["promtool", *arguments], cwd=RULES, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def queries() -> list[str]:
    """Return every query of the dashboard, for all jobs, as Grafana sends it."""
    found = [target["expr"] for panel in BOARD["panels"] for target in panel["targets"]]
    return [query.replace("$job", ".*").replace("$__rate_interval", "1m") for query in found]


def alerts() -> dict[str, str]:
    groups = yaml.safe_load((RULES / "alerts.yml").read_text())["groups"]
    return {rule["alert"]: rule["expr"] for group in groups for rule in group["rules"]}


@needs_promtool
def test_rules_and_configuration_are_sound() -> None:
    promtool("check", "rules", "alerts.yml")
    promtool("check", "config", "--syntax-only", "prometheus.yml")


@needs_promtool
def test_each_alert_fires_when_it_should_and_not_before() -> None:
    tests = yaml.safe_load((RULES / "alerts_test.yml").read_text())["tests"]
    tested = {each["alertname"] for test in tests for each in test["alert_rule_test"] if each["exp_alerts"]}
    assert tested == alerts().keys()
    promtool("test", "rules", "alerts_test.yml")


def test_the_dashboard_asks_for_nothing_that_is_not_told() -> None:
    text = exposition({}, {}, disk_of("/")).decode()
    told = set(re.findall(r"^# TYPE (\S+) ", text, re.MULTILINE))
    for query in [*queries(), *alerts().values()]:
        asked = set(re.findall(r"\bcloudem_\w+", query))
        assert asked <= told, query
    labels = {
        each for query in queries() for group in re.findall(r"by \(([^)]*)\)", query) for each in group.split(", ")
    }
    assert labels <= {"job", "step", "purpose"}


def test_panels_have_ids_places_and_a_source_of_their_own() -> None:
    panels = BOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(taken) == len(set(taken))
    assert max(x for x, _ in taken) == 23
    assert {panel["datasource"]["uid"] for panel in panels} == {"${source}"}


class Metrics(ThreadingHTTPServer):
    """Serves what a test says."""

    text = b""

    def __init__(self) -> None:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", CONTENT_TYPE)
                self.end_headers()
                self.wfile.write(server.text)

            def log_message(self, *_: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)


@contextlib.contextmanager
def prometheus(folder: Path, target: int, token: str = "") -> Iterator[str]:
    """Run a Prometheus that scrapes a port of this computer every second, with our rules; yield its address."""
    config = yaml.safe_load((RULES / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    (scrape,) = config["scrape_configs"]
    del scrape["authorization"]
    if token:
        scrape["authorization"] = {"credentials": token}
    scrape["static_configs"] = [{"targets": [f"127.0.0.1:{target}"]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    shutil.copy(RULES / "alerts.yml", folder)
    (port,) = free_ports(1)
    arguments = [
        "prometheus",
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (folder / "log").open("wb") as log, subprocess.Popen(arguments, stdout=log, stderr=log) as process:
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def ask(address: str, query: str, back_s: int = 0) -> list[dict[str, Any]]:
    """Return the answer to a query now, or second by second for some time back, as the panels of a dashboard ask."""
    given: dict[str, Any] = {"query": query}
    if back_s:
        given |= {"start": time.time() - back_s, "end": time.time(), "step": 1}
    kind = f"query{'_range' if back_s else ''}?{urllib.parse.urlencode(given)}"
    with urllib.request.urlopen(f"{address}/api/v1/{kind}", timeout=5) as answer:
        found = json.loads(answer.read())
    assert found["status"] == "success"
    return list(found["data"]["result"])


def wait(address: str, query: str) -> list[dict[str, Any]]:
    """Return the answer to a query as soon as there is one."""
    limit = time.monotonic() + LIMIT_S
    while True:
        with contextlib.suppress(OSError):
            if found := ask(address, query):
                return found
        assert time.monotonic() < limit, query
        time.sleep(0.2)


@needs_prometheus
def test_a_real_prometheus_answers_every_query_of_a_real_job(tmp_path: Path) -> None:
    world = World(tmp_path)
    controller = world.controller()
    scene = make_scene(tmp_path / "scene", count=400)
    job = Refine3D(**scene.refinement(tmp_path / "out", max_iterations=4, max_resolution_A=14.0, report=False))
    server, progress = Metrics(), Watched()

    def tell(state: str) -> None:
        world.tick(controller, 5)
        runs = {world.store.record().name: found} if (found := run_figures(world.store)) is not None else {}
        jobs = {"refine": job_figures(view_of(progress, state), poses_kept(job.out))}
        server.text = exposition(jobs, runs, disk_of(str(tmp_path)))

    tell("running")
    with prometheus(tmp_path, server.server_port) as address:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        wait(address, "cloudem_job_running")
        over = threading.Event()

        def watch() -> None:
            while not over.wait(0.2):
                tell("running")

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            watched(job, progress)
        finally:
            over.set()
            watcher.join()
        rows = progress.iterations()
        assert rows
        tell("running")
        wait(address, f"cloudem_job_images_aligned_total == {400 * len(rows)}")
        wait(address, "rate(cloudem_job_images_aligned_total[1m]) > 0")
        for query in queries():
            assert ask(address, query, back_s=120), query
        found = wait(address, f"cloudem_job_resolution_angstroms == {rows[-1]['resolution_A']!r}")[0]
        assert found["metric"]["job"] == "refine"  # not that of the scrape
        (spent,) = wait(address, "cloudem_run_spent_usd")
        state = world.store.state()
        assert state is not None
        for expression in alerts().values():
            ask(address, expression)  # a parse error raises
        world.store.change(max_usd=state.spent_usd / 0.85)  # what the ledger says is what fires
        tell("running")
        firing = wait(address, 'ALERTS{alertname="CloudemBudget", alertstate="firing"}')
        assert firing[0]["metric"]["job"] == world.store.record().name == spent["metric"]["job"]
    server.shutdown()
    server.server_close()


@needs_prometheus
def test_a_real_prometheus_hears_of_a_real_run_what_log_and_ledger_say(
    provider: LocalProvider, tmp_path: Path  # noqa: F811
) -> None:  # fmt: skip
    project = tmp_path / "project"
    store = new(make_scene(tmp_path / "scene", count=600), project, 5.0, steps=1)
    (tmp_path / "prometheus").mkdir()
    with served(project) as site, prometheus(tmp_path / "prometheus", site.port, TOKEN) as address:
        start(store, provider, Catalogue.shipped(), lambda line: None)
        wait(address, "cloudem_run_workers == 2")
        state = follow(store, lambda state: None, provider)
        assert state.status == "done"
        name, spent = store.record().name, account(store.ledger(), time.time()).total
        (found,) = wait(address, f"abs(cloudem_run_spent_usd - {spent!r}) < 1e-4 and cloudem_run_running == 0")
        assert found["metric"]["job"] == name
        told = {query: float(ask(address, query)[0]["value"][1]) for query in (
            "cloudem_run_cap_usd", "cloudem_run_failed", "max_over_time(cloudem_run_nodes_lost_total[10m])",
            'cloudem_job_images_aligned_total{job="refine"}', 'cloudem_job_running{job="refine"}',
            'cloudem_job_resolution_angstroms{job="refine"}')}  # fmt: skip
        log = (project / "refine" / "log.txt").read_text()
        (resolution,) = re.findall(r" resolution ([0-9.]+) Å \(corrected", log)
        assert list(told.values())[:5] == [5.0, 0.0, 0.0, 600.0 * len(re.findall(r" iteration \d+, ", log)), 0.0]
        assert f"{list(told.values())[5]:.2f}" == resolution
