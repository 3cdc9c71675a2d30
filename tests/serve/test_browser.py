"""A job from its start to its stop, as somebody sees it who only looks at the pages, in a real browser."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from cloudem.jobs.live import LIVE_FILE, read_live
from cloudem.serve import pages
from tests.jobs.conftest import DIAMETER, make_scene
from tests.serve.browser import Tab, browser, needs_chromium
from tests.serve.conftest import TOKEN, Site, served

pytestmark = needs_chromium


def nothing_wrong(tab: Tab, site: Site) -> None:
    """No complaint in the console, no failed request, and none to anybody else."""
    assert tab.complaints == []
    assert tab.failures == []
    assert {urlsplit(url).netloc for url in tab.requests if not url.startswith(("data:", "blob:"))} <= {
        f"localhost:{site.port}"
    }


async def pixels(tab: Tab) -> str:
    """Return a picture of the surface, as text."""
    return str(await tab.value("document.getElementById('surface').toDataURL().length + ':' + document.getElementById("
                               "'surface').toDataURL().slice(-4000)"))  # fmt: skip


def test_a_job_is_watched_from_its_start_to_its_stop(tmp_path: Path) -> None:
    scene = make_scene(tmp_path / "data", count=3000, snr=0.05)  # so many that it is not over before all is seen

    async def watch(site: Site) -> None:
        async with browser() as tab:
            await tab.open(f"http://localhost:{site.port}/?token={TOKEN}")
            assert await tab.value("location.search") == ""
            given = ("--particles", scene.particles, "--reference", scene.reference, "--diameter-A", str(DIAMETER))
            command = (*given, "--symmetry", "C1", "--executor", "serial", "--out", str(tmp_path / "watched"))
            quiet = {"stdout": asyncio.subprocess.DEVNULL, "stderr": asyncio.subprocess.DEVNULL}
            job = await asyncio.create_subprocess_exec(sys.executable, "-m", "cloudem", "refine3d", *command, **quiet)
            try:
                await tab.until("document.querySelector('a[href=\\'./job/watched\\']') !== null", 60)
                await tab.open(f"http://localhost:{site.port}/job/watched")
                await tab.until("document.querySelector('.status').innerText === 'running'")
                first = await tab.until("document.getElementById('map').dataset.ready", 60)
                shown = await tab.until("document.getElementById('map-what').innerText")
                # the page goes on by itself
                await tab.until(f"document.getElementById('map-what').innerText !== {shown!r}", 60)
                assert await tab.value("performance.getEntriesByType('navigation').length") == 1
                assert first
                await tab.until("document.querySelectorAll('#sections section').length >= 2")
                await turn_and_cut(tab)
                job.send_signal(signal.SIGINT)
                await tab.until("document.querySelector('.status').innerText === 'stopped'", 40)
                assert "run the same command again to resume" in await tab.value("document.body.innerText")
            finally:
                if job.returncode is None:
                    job.kill()
                await job.wait()
            nothing_wrong(tab, site)

    with served(tmp_path) as site:
        asyncio.run(watch(site))


async def turn_and_cut(tab: Tab) -> None:
    """Turn the surface, choose another level and another slice."""
    before = await pixels(tab)
    await tab.drag("#surface", 120, 40)
    await asyncio.sleep(0.3)
    turned = await pixels(tab)
    assert turned != before
    triangles = int(await tab.value("document.getElementById('surface').dataset.triangles"))
    assert triangles > 1000
    await tab.value("(() => { const l = document.getElementById('level'); l.value = Number(l.value) + 15;"
                    " l.dispatchEvent(new Event('input')); })()")  # fmt: skip
    await tab.until(f"Number(document.getElementById('surface').dataset.triangles) < {triangles}")
    assert "σ" in await tab.value("document.getElementById('level-text').innerText")
    told = await tab.value("document.getElementById('slices-told').innerText")
    await tab.value(
        "document.getElementById('slice-z').dispatchEvent(new MouseEvent('click', {clientX: 0, clientY: 0}))"
    )
    assert await tab.value("document.getElementById('slices-told').innerText") != told


def test_a_finished_job_shows_its_map_and_gives_it_away(site: Site) -> None:
    async def look() -> None:
        async with browser() as tab:
            await tab.open(f"http://localhost:{site.port}/job/refine?token={TOKEN}")
            await tab.until("document.getElementById('map').dataset.ready")
            await tab.until("document.querySelectorAll('#sections section').length >= 5")
            assert await tab.value("document.querySelector('.status').innerText") == "finished"
            await choose(tab)
            link = await tab.value("document.querySelector('#downloads a').href")
            size = await tab.value(f"fetch({link!r}).then((a) => a.arrayBuffer()).then((b) => b.byteLength)")
            assert size > 1024
            assert await tab.value("document.documentElement.scrollWidth <= innerWidth")
            nothing_wrong(tab, site)

    asyncio.run(look())


async def choose(tab: Tab) -> None:
    """Look at the half-maps and the mask, and at the map again."""
    names = await tab.value("[...document.querySelectorAll('#of option')].map((each) => each.text)")
    assert names == ["map", "half-map 1", "half-map 2", "mask"]
    seen = [await pixels(tab)]
    for name in ("half1", "mask", "map"):
        await tab.value(
            "(() => { delete document.getElementById('map').dataset.ready; const of = document.getElementById('of');"
            f" of.value = '{name}'; of.dispatchEvent(new Event('change')); }})()"
        )
        await tab.until("document.getElementById('map').dataset.ready")
        seen.append(await pixels(tab))
        assert await tab.value("document.getElementById('fineness').disabled") == (name != "map")
        if name == "mask":
            assert await tab.value("document.getElementById('level').value") == "50"
    assert len(set(seen)) == 3
    assert seen[0] == seen[-1]


def test_without_webgl_there_are_slices(site: Site) -> None:
    async def look() -> None:
        async with browser() as tab:
            await tab.call("Page.enable")
            script = (
                "const real = HTMLCanvasElement.prototype.getContext; HTMLCanvasElement.prototype.getContext ="
                " function (kind, ...more) { return kind === 'webgl2' ? null : real.call(this, kind, ...more); };"
            )
            await tab.call("Page.addScriptToEvaluateOnNewDocument", source=script)
            await tab.open(f"http://localhost:{site.port}/job/refine?token={TOKEN}")
            await tab.until("document.getElementById('slices-told').innerText.includes('Å')")
            assert await tab.value("document.getElementById('surface').hidden")
            assert "slices only" in await tab.value("document.body.innerText")
            nothing_wrong(tab, site)

    asyncio.run(look())


def test_the_graph_leads_to_jobs_and_stays_where_it_was_scrolled_to(project: Path, tmp_path: Path) -> None:
    shutil.copytree(project / "refine", tmp_path / "refine")
    chain = {f"job-{number}": [f"job-{number - 1}" if number else "refine"] for number in range(12)}
    for name in chain:
        (tmp_path / name).mkdir()

    def note(state: str) -> None:
        of = {"kind": "refine3d", "began": 1e9, "updated": 1e9 + 1}
        jobs = {name: {**of, "state": state, "inputs": {"reference": ones[0]}} for name, ones in chain.items()}
        jobs["refine"] = {**of, "state": "finished", "updated": time.time() + 60}
        (tmp_path / "index.json").write_text(json.dumps({"format": 1, "jobs": jobs}))

    async def look(site: Site) -> None:
        async with browser() as tab:
            await tab.open(f"http://localhost:{site.port}/?token={TOKEN}")
            await tab.until("document.querySelectorAll('.graph a.good').length === 13")
            assert await tab.value("document.documentElement.scrollWidth <= innerWidth")
            assert await tab.value("document.querySelector('.graph').scrollWidth > innerWidth")
            await tab.value("document.querySelector('.graph').scrollTo(300, 0)")
            note("failed")
            await tab.until("document.querySelectorAll('.graph a.bad').length === 12")
            assert await tab.value("document.querySelector('.graph').scrollLeft") == 300
            await tab.value(
                "document.querySelector('.graph a.good').dispatchEvent(new MouseEvent('click', {bubbles: true}))"
            )
            await tab.until("location.pathname === '/job/refine'")
            await tab.until("document.getElementById('map').dataset.ready")
            nothing_wrong(tab, site)

    note("finished")
    with served(tmp_path) as site:
        asyncio.run(look(site))


def test_what_is_unfolded_stays_so_while_the_job_goes_on(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "DRAWING_SHARE", 100.0)  # drawn at once, however long that takes
    shutil.copytree(project / "refine", tmp_path / "refine")
    live = read_live(str(tmp_path / "refine"))
    assert live is not None
    path = tmp_path / "refine" / LIVE_FILE

    def goes_on(number: int) -> None:
        row = {"iteration": number, "resolution_A": 9.0}
        now = {"state": "running", "updated": time.time(), "iterations": (*live.iterations, row)}
        path.write_text(live.model_copy(update=now).model_dump_json())

    async def look(site: Site) -> None:
        async with browser() as tab:
            await tab.open(f"http://localhost:{site.port}/job/refine?token={TOKEN}")
            await tab.until("document.querySelectorAll('#details details').length === 3")
            await tab.value("document.querySelector('#of-log summary').click()")
            with (tmp_path / "refine" / "log.txt").open("a") as log:
                log.write("a line that was not there\n")
            goes_on(78)
            await tab.until("document.querySelector('#of-log').innerText.includes('a line that was not there')")
            assert await tab.value("document.querySelector('#of-log').open")
            assert not await tab.value("document.querySelector('#of-parameters').open")
            await tab.until("[...document.querySelectorAll('#sections td')].some((cell) => cell.innerText === '78')")
            nothing_wrong(tab, site)

    goes_on(77)
    with served(tmp_path) as site:
        site.pages.every_s = 0.3
        asyncio.run(look(site))


@pytest.mark.parametrize("path", ["/job/nothing", "/"])
def test_whoever_has_no_token_is_told_what_to_do(site: Site, path: str) -> None:
    async def look() -> None:
        async with browser() as tab:
            await tab.open(f"http://localhost:{site.port}{path}")
            assert "cloudem serve printed" in await tab.value("document.body.innerText")

    asyncio.run(look())
