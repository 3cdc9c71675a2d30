"""A run that its cap stops, seen on its page and that of its project, and a job that fails, in a real browser."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from cloudem.cloud.catalogue import Catalogue
from cloudem.cloud.local.provider import LocalProvider
from cloudem.errors import InconsistentDataError
from cloudem.execution.executor import SerialExecutor
from cloudem.jobs.refine3d.job import Refine3D
from cloudem.runs.submit import follow, start
from tests.jobs.conftest import make_scene, run
from tests.runs.test_runs import new, provider  # noqa: F401  a fixture
from tests.serve.browser import browser, needs_chromium
from tests.serve.conftest import TOKEN, Site, served
from tests.serve.test_browser import nothing_wrong

pytestmark = needs_chromium


def test_a_run_is_watched_until_its_cap_stops_it(provider: LocalProvider, tmp_path: Path) -> None:  # noqa: F811
    made = make_scene(tmp_path / "data", count=6000, snr=0.02)  # so many that it is not over before it is seen
    store = new(made, tmp_path / "project", 5.0, steps=1)
    name = store.record().name
    start(store, provider, Catalogue.shipped(), lambda line: None)
    following = threading.Thread(target=follow, args=(store, lambda state: None, provider))
    following.start()

    async def watch(site: Site) -> None:
        async with browser() as tab:
            while (state := store.state()) is None or state.status != "running":
                await asyncio.sleep(0.1)
            await tab.open(f"http://localhost:{site.port}/?token={TOKEN}")
            await tab.until(f"document.querySelector('a[href$=\\'run/{name}\\']') !== null")
            await tab.value(f"document.querySelector('a[href$=\\'run/{name}\\']').click()")
            await tab.until("location.pathname.startsWith('/run/') && document.readyState === 'complete'")
            assert await tab.value("document.querySelector('.status').innerText") == "running"
            store.change(max_usd=0.004)
            # the page goes on by itself
            await tab.until("document.querySelector('.status').innerText === 'stopped'", 90)
            assert await tab.value("performance.getEntriesByType('navigation').length") == 1
            assert "of $0.0040 are spent" in await tab.value("document.querySelector('header').innerText")
            assert (await tab.value("document.querySelector('.tiles').innerText")).startswith("$0.0")
            await tab.value("document.querySelector('nav a').click()")
            await tab.until("location.pathname === '/' && document.body.innerText.includes('stopped: $0.00')")
            nothing_wrong(tab, site)

    try:
        with served(tmp_path / "project") as site:
            asyncio.run(watch(site))
    finally:
        following.join(120)


def test_the_page_of_a_job_that_failed_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_scene(tmp_path / "data", count=200)
    accumulate, calls = SerialExecutor.accumulate, []

    def fails_later(self: SerialExecutor, *given: Any, **more: Any) -> Any:
        calls.append(given)
        if len(calls) > 3:
            raise InconsistentDataError("shard 3 is <b>damaged</b>")
        return accumulate(self, *given, **more)

    monkeypatch.setattr(SerialExecutor, "accumulate", fails_later)
    with pytest.raises(InconsistentDataError):
        run(Refine3D(**made.refinement(tmp_path / "refine", max_iterations=9)))

    async def look(site: Site) -> None:
        async with browser() as tab:
            await tab.open(f"http://localhost:{site.port}/job/refine?token={TOKEN}")
            assert await tab.value("document.querySelector('.status').innerText") == "failed"
            assert "failed: shard 3 is <b>damaged</b>" in await tab.value("document.querySelector('header').innerText")
            nothing_wrong(tab, site)

    with served(tmp_path) as site:
        asyncio.run(look(site))
