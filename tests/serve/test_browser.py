"""A job from its start to its stop, as somebody sees it who only looks at the pages, in a real browser."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

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
                await tab.until("document.querySelector('a[href=\\'/job/watched\\']') !== null", 60)
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
            link = await tab.value("document.querySelector('#downloads a').href")
            size = await tab.value(f"fetch({link!r}).then((a) => a.arrayBuffer()).then((b) => b.byteLength)")
            assert size > 1024
            assert await tab.value("document.documentElement.scrollWidth <= innerWidth")
            nothing_wrong(tab, site)

    asyncio.run(look())


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


@pytest.mark.parametrize("path", ["/job/nothing", "/"])
def test_whoever_has_no_token_is_told_what_to_do(site: Site, path: str) -> None:
    async def look() -> None:
        async with browser() as tab:
            await tab.open(f"http://localhost:{site.port}{path}")
            assert "cloudem serve printed" in await tab.value("document.body.innerText")

    asyncio.run(look())
