"""What the server answers, to whom, and what gets through it: nothing that is not asked for properly."""

from __future__ import annotations

import contextlib
import gzip
import html
import json
import re
import shutil
import socket
import time
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest

from cloudem.io.formats.mrc import read_volume
from cloudem.io.storage.groups import read_group, write_group
from cloudem.jobs.live import LIVE_FILE, read_live
from cloudem.serve.pages import Pages
from tests.serve.conftest import TOKEN, Site, served

ADDRESSES = ("/", "/news", "/events", "/metrics", "/job/refine", "/job/refine/-/news", "/job/refine/-/sections",
             "/job/refine/-/details", "/job/refine/-/cluster", "/job/refine/-/cluster/news",
             "/job/refine/-/log", "/job/refine/-/preview/map-64", "/job/refine/-/file/map.mrc",
             "/job/refine/-/choice?classes=1", "/run/none")  # fmt: skip


@pytest.mark.parametrize("path", ADDRESSES)
@pytest.mark.parametrize("token", ["", "wrong", TOKEN[:-1], f"{TOKEN}x"])
def test_nothing_is_read_without_the_token(site: Site, path: str, token: str) -> None:
    answer = site.get(path, token=token)
    assert answer.status == 401
    assert b"refine" not in answer.body
    assert site.pages.name.encode() not in answer.body
    assert "Content-Security-Policy" in answer.headers


def test_the_token_in_an_address_becomes_a_cookie(site: Site) -> None:
    answer = site.get(f"/job/refine?token={TOKEN}", token="")
    assert answer.status == 303
    assert answer.headers["Location"] == "./refine"
    cookie = answer.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert TOKEN not in cookie
    assert site.get("/job/refine", token="", Cookie=cookie.split(";")[0]).status == 200
    assert site.get("/job/refine?token=wrong", token="").status == 401


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "localhost.evil.example"])
def test_foreign_names_are_refused_whatever_they_know(site: Site, host: str) -> None:
    assert site.get("/", Host=host).status == 403


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_nothing_can_be_changed(site: Site, method: str) -> None:
    for path in ("/", "/job/refine", "/job/refine/-/file/map.mrc"):
        assert site.get(path, method=method).status == 405


@pytest.mark.parametrize("path", [
    "/job/../../etc/passwd", "/job/%2e%2e/%2e%2e/etc/passwd", "/job//etc/passwd", "/job/refine/../data", "/job/..",
    "/job/refine/-/file/..%2f..%2flog.mrc", "/static/../server.py", "/static/%2e%2e/server.py", "/static/page.py",
    "/run/..%2f..", "/job/refine/-/file/particles.mrc", "/job/nothing", "/nothing", "/job/refine%00", "/job/%ff",
])  # fmt: skip
def test_nothing_beside_the_project_can_be_read(site: Site, path: str) -> None:
    answer = site.get(path)
    assert answer.status in (400, 404)
    assert b"root:" not in answer.body
    assert b"import" not in answer.body


def test_pages_say_how_jobs_stand(site: Site, project: Path) -> None:
    first = site.get("/").text
    assert "refine3d" in first
    assert "finished" in first
    assert 'href="./job/refine"' in first
    page = site.get("/job/refine").text
    stated = f"{read_group(str(project / 'refine'), 'result')[1]['resolution_A']:.2f} Å"
    assert f"<b>{stated}</b>" in page
    sections = site.get("/job/refine/-/sections").text
    assert sections.count("<h2>") >= 5
    assert "Fourier shell correlation" in sections
    assert re.findall("<h2>(Map|Slices and projections|Parameters)", page + sections) == [
        "Map",
        "Slices and projections",
    ]
    assert "refine3d" in html.unescape(site.get("/job/refine/-/log").text)


def test_news_are_the_page(site: Site) -> None:
    news = json.loads(site.get("/job/refine/-/news").body)
    assert news["over"] is True
    assert news["html"] in site.get("/job/refine").text


@pytest.mark.parametrize("name", ["map", "half1", "half2", "mask"])
def test_a_preview_is_an_array_of_the_result_in_bytes(site: Site, project: Path, name: str) -> None:
    answer = site.get(f"/job/refine/-/preview/{name}-64", Accept_Encoding="gzip")
    about = json.loads(answer.headers["X-Map"])
    voxels = np.frombuffer(gzip.decompress(answer.body), np.uint8).reshape(about["shape"])
    density = about["minimum"] + voxels / 255 * (about["maximum"] - about["minimum"])
    whole = read_group(str(project / "refine"), "result")[0][name]
    assert about["iteration"] == 0
    assert density.shape == whole.shape
    assert np.corrcoef(density.ravel(), whole.ravel())[0, 1] > 0.999


def test_only_previews_that_there_are_can_be_asked_for(site: Site) -> None:
    for name in ("map-65", "mask-128", "map_unfiltered-64", "../map-64", "64"):
        assert site.get(f"/job/refine/-/preview/{name}").status == 404


def test_of_results_without_other_previews_the_map_is_offered_alone(project: Path, tmp_path: Path) -> None:
    shutil.copytree(project / "refine", tmp_path / "refine")
    pages = Pages(str(tmp_path))
    assert 'data-others="half1 half2 mask"' in (pages.job("refine") or "")
    path = tmp_path / "refine/preview/map-64.json"
    said = json.loads(path.read_text())
    del said["others"]
    path.write_text(json.dumps(said))
    assert 'data-others=""' in (pages.job("refine") or "")
    assert (pages.job_news("refine") or {})["others"] == ()
    path.write_text(json.dumps({**said, "others": ["../../x"]}))
    assert 'data-map="0"' in (pages.job("refine") or "")


@pytest.mark.parametrize("name", ["map", "half1", "mask"])
def test_maps_can_be_had_as_they_are(site: Site, project: Path, tmp_path: Path, name: str) -> None:
    answer = site.get(f"/job/refine/-/file/{name}.mrc")
    assert f'filename="refine-{name}.mrc"' in answer.headers["Content-Disposition"]
    (tmp_path / "found.mrc").write_bytes(answer.body)
    np.testing.assert_array_equal(
        read_volume(tmp_path / "found.mrc").data, read_group(str(project / "refine"), "result")[0][name]
    )


def test_chimerax_opens_what_was_downloaded(site: Site) -> None:
    script = site.get("/job/refine/-/file/map.cxc").text
    assert "open refine-map.mrc" in script
    assert re.search(r"volume #1 level [\d.e-]+", script)


def events(site: Site, path: str) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", site.port), timeout=20)
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: token {TOKEN}\r\n\r\n".encode())
    return connection


def read_until(connection: socket.socket, words: str, seconds: float = 15.0) -> str:
    found, end = b"", time.monotonic() + seconds
    while words.encode() not in found and time.monotonic() < end:
        found += connection.recv(65536)
    return found.decode(errors="replace")


def test_what_changes_is_said_to_all_who_listen(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(project / "refine", tmp_path / "refine")
    path = tmp_path / "refine" / LIVE_FILE
    live = read_live(str(tmp_path / "refine"))
    assert live is not None
    asked: list[str] = []
    look = Pages.job_news
    monkeypatch.setattr(Pages, "job_news", lambda pages, name: asked.append(name) or look(pages, name))
    with served(tmp_path) as site:
        listeners = [events(site, "/job/refine/-/events") for _ in range(10)]
        for each in listeners:
            assert "text/event-stream" in read_until(each, "finished")
        looks = len(asked)
        time.sleep(3 * site.pages.every_s)
        assert len(asked) - looks <= 5  # one poller for all, though they came at the same time
        path.write_text(live.model_copy(update={"state": "failed", "why": "a told reason"}).model_dump_json())
        for each in listeners:
            assert "a told reason" in read_until(each, "a told reason")
            each.close()


def test_scripts_in_names_and_texts_are_shown_not_run(project: Path, tmp_path: Path) -> None:
    evil = "<img src=x onerror=alert(1)>"
    shutil.copytree(project / "refine", tmp_path / evil)
    live = read_live(str(tmp_path / evil))
    assert live is not None
    said = {"warnings": (evil,), "why": evil, "state": "failed", "iterations": ({"iteration": 1, evil: evil},)}
    (tmp_path / evil / LIVE_FILE).write_text(live.model_copy(update=said).model_dump_json())
    (tmp_path / evil / "log.txt").write_text(f"{evil}\x1b[31m\n")
    pages = Pages(str(tmp_path))
    for page in (
        pages.project(),
        pages.job(evil),
        pages.log(evil),
        pages.details(evil),
        pages.project_news()["html"],
        pages.problem("/", 404, evil),
    ):
        assert page is not None
        assert "<img" not in page
        assert "\x1b" not in page
        assert html.escape(evil)[:9] in page
    assert "<img" not in (pages.sections(evil) or "")


def test_whoever_sends_too_much_or_too_little_disturbs_nobody(site: Site) -> None:
    slow = [socket.create_connection(("127.0.0.1", site.port)) for _ in range(50)]
    for each in slow:
        each.sendall(b"GET / HTTP/1.1\r\nHost: localh")
    with socket.create_connection(("127.0.0.1", site.port), timeout=20) as large:
        large.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * (1 << 20))
        answer = b""
        with contextlib.suppress(ConnectionError):
            answer = large.recv(1024)
        assert b"200" not in answer.partition(b"\r\n")[0]
    assert site.get("/", Content_Length="999999999").status in (400, 413)
    assert site.get("/").status == 200
    for each in slow:
        each.close()


def test_a_project_that_is_not_there_is_named(tmp_path: Path) -> None:
    from cloudem.errors import MissingInputError

    with pytest.raises(MissingInputError, match="does not exist"):
        Pages(str(tmp_path / "nothing")).project()


def test_prometheus_scrapes_what_pages_show(site: Site, project: Path) -> None:
    answer = site.get("/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    stated = read_group(str(project / "refine"), "result")[1]["resolution_A"]
    line = next(
        each for each in answer.text.splitlines() if each.startswith('cloudem_job_resolution_angstroms{job="refine"}')
    )
    assert float(line.split()[-1]) == pytest.approx(stated, rel=0.2)


def test_a_map_that_is_given_away_lies_where_the_result_does(project: Path, tmp_path: Path) -> None:
    at = (12.0, -8.0, 4.0)
    shutil.copytree(project / "refine", tmp_path / "moved")
    arrays, attributes = read_group(str(tmp_path / "moved"), "result")
    write_group(str(tmp_path / "moved"), "result", arrays, {**attributes, "origin_A": at})
    found = Pages(str(tmp_path)).download("moved", "half2.mrc")
    assert found is not None
    with found[1] as file:
        (tmp_path / "found.mrc").write_bytes(file.read())
    assert read_volume(tmp_path / "found.mrc").origin == at


def test_a_jobs_name_gives_no_command_to_chimerax(project: Path, tmp_path: Path) -> None:
    name = 'a"b; runscript evil.py'
    shutil.copytree(project / "refine", tmp_path / name)
    found = Pages(str(tmp_path)).download(name, "map.cxc")
    assert found is not None
    script = found[1].read().decode()
    assert ";" not in script
    assert "open a-b-runscript-evil.py-map.mrc" in script
    with served(tmp_path) as site:
        answer = site.get(f"/job/{quote(name)}/-/file/map.mrc")
    assert answer.headers["Content-Disposition"] == 'attachment; filename="a-b-runscript-evil.py-map.mrc"'


def test_a_job_that_has_said_nothing_yet_has_pages(tmp_path: Path) -> None:
    now = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())
    write_group(str(tmp_path / "begun"), "", {}, {"kind": "result", "job": "refine3d", "parameters": {}, "date": now})
    pages = Pages(str(tmp_path))
    for page in (pages.project(), pages.job("begun")):
        assert "running: it has just begun" in str(page)
    for part in (pages.job_news("begun"), pages.sections("begun"), pages.details("begun"), pages.cluster("begun")):
        assert part is not None
    assert b'cloudem_job_running{job="begun"} 1.0' in pages.metrics()
