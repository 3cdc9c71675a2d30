"""Dask's pages through the proxy: what reaches the dashboard, what does not, and what a browser gets back."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import pytest
import tornado.web
from hypothesis import given
from hypothesis import strategies as st
from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.websocket import WebSocketHandler, websocket_connect

from cloudem.errors import ParameterError
from cloudem.runs.records import RunRecord, RunState, RunStore, Wishes
from cloudem.serve import proxy
from cloudem.serve.access import LOOPBACK, POLICY, Access
from cloudem.serve.guard import same_origin
from cloudem.serve.pages import Pages
from cloudem.serve.proxy import (
    BOKEH_POLICY,
    Dashboard,
    Upstream,
    dask_application,
    find_dashboard,
    open_door,
    passed_path,
    passed_query,
    seen_port,
    way_to_dask,
)
from cloudem.serve.server import application
from tests.serve.browser import browser, hang_up, needs_chromium
from tests.serve.conftest import TOKEN, Site, listening

ACCESS = Access(TOKEN, frozenset(LOOPBACK))
needs_bokeh = pytest.mark.skipif(importlib.util.find_spec("bokeh") is None, reason="no Bokeh: pip install bokeh")


class Told(tornado.web.RequestHandler):
    """A dashboard that keeps what it is asked, and answers what a test wants."""

    def get(self) -> None:
        self.application.settings["asked"].append(self.request)
        self.set_header("Set-Cookie", "theirs=1")
        self.set_header("Content-Security-Policy", "default-src *")
        self.set_header("Access-Control-Allow-Origin", "*")
        if location := self.get_query_argument("to", ""):
            self.redirect(location)
        elif self.get_query_argument("large", ""):
            self.finish(b"0" * (proxy.LARGEST_ANSWER + 1))
        else:
            self.finish("answered")

    head = get


class Echo(WebSocketHandler):
    """Its websocket, which takes its own pages only, as Bokeh's does."""

    def check_origin(self, origin: str) -> bool:
        return urlsplit(origin).netloc == self.request.host

    def select_subprotocol(self, subprotocols: list[str]) -> str | None:
        return subprotocols[0] if len(subprotocols) == 2 else None

    def open(self) -> None:
        self.application.settings["asked"].append(self.request)

    async def on_message(self, message: str | bytes) -> None:
        if message == "leave":
            self.close()
        else:
            await self.write_message(message, isinstance(message, bytes))


def through(address: str) -> tornado.web.Application:
    return dask_application(Dashboard(Upstream.of(address), ACCESS, secure=False))


@pytest.fixture(scope="module")
def asked() -> list[Any]:
    """What the dashboard has been asked."""
    return []


@pytest.fixture(scope="module")
def theirs(asked: list[Any]) -> Iterator[int]:
    """Port of a dashboard."""
    with listening(tornado.web.Application([(r"/status/ws", Echo), (r".*", Told)], asked=asked)) as (port,):
        yield port


@pytest.fixture
def shown(theirs: int, asked: list[Any]) -> Iterator[Site]:
    """It is shown, and has not been asked anything yet."""
    with listening(through(f"http://127.0.0.1:{theirs}")) as (port,):
        asked.clear()
        yield Site(port, Pages("none"))


def raw(port: int, *lines: str) -> bytes:
    """Send a request as it stands."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall("\r\n".join((*lines, f"Authorization: token {TOKEN}", "Connection: close", "", "")).encode())
        found = b""
        while part := connection.recv(65536):
            found += part
        return found


def test_a_page_comes_from_the_dashboard_with_our_policy(shown: Site, asked: list[Any], theirs: int) -> None:
    answer = shown.get("/status?theme=dark&x=%20y", Cookie="mine=secret", Referer="http://localhost/job/secret",
                       Origin="http://localhost:1")  # fmt: skip
    assert (answer.status, answer.text) == (200, "answered")
    assert answer.headers["Content-Security-Policy"] == BOKEH_POLICY
    assert "Set-Cookie" not in answer.headers
    assert "Access-Control-Allow-Origin" not in answer.headers
    (request,) = asked
    assert request.uri == "/status?theme=dark&x=%20y"
    assert request.host == f"127.0.0.1:{theirs}"
    assert {"cookie", "authorization", "referer", "origin"}.isdisjoint(name.lower() for name in request.headers)
    assert shown.get("/status", method="HEAD").body == b""


@pytest.mark.parametrize("token", ["", "wrong", TOKEN[:-1]])
def test_the_dashboard_hears_nothing_of_whoever_has_no_token(shown: Site, asked: list[Any], token: str) -> None:
    for path in ("/", "/status", "/status/ws", "/static/js/bokeh.min.js", f"/status?token={token}"):
        answer = shown.get(path, token=token)
        assert answer.status == 401
        assert answer.text.count("\n") == 1
    assert not asked


def test_a_token_becomes_the_cookie_of_our_pages_and_goes_no_further(shown: Site, asked: list[Any]) -> None:
    answer = shown.get(f"/status?token={TOKEN}", token="")
    assert (answer.status, answer.headers["Location"]) == (303, "./status")
    cookie = answer.headers["Set-Cookie"].split(";")[0]
    assert cookie == f"{ACCESS.cookie_name}={ACCESS.cookie}"
    assert not asked
    assert shown.get("/status?a=1&token=stale&%74oken=stale", token="", Cookie=cookie).status == 200
    assert asked[0].uri == "/status?a=1"
    assert "Cookie" not in asked[0].headers
    elsewhere = shown.get(f"//evil.example?token={TOKEN}", token="")
    assert urljoin("http://localhost:1/x", elsewhere.headers["Location"]).startswith("http://localhost:1/")


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8766", "localhost.evil.example"])
def test_foreign_names_are_refused(shown: Site, asked: list[Any], host: str) -> None:
    assert shown.get("/status", Host=host).status == 403
    assert not asked


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_nothing_can_be_changed(shown: Site, asked: list[Any], method: str) -> None:
    for path in ("/status", "/status/ws", "/api/v1/retire_workers"):
        assert shown.get(path, method=method).status == 405
    assert not asked


@pytest.mark.parametrize("target", [
    "//evil.example/", "http://evil.example/status", "https://evil.example", "/../status", "/a/%2e%2e/status", "/a/..",
    "/\\evil.example", "@evil.example/", "*", "evil.example:80", "/proxy/8787/10.0.0.1/status", "/jupyter/lab", "?x",
    "/%6aupyter/lab",
])  # fmt: skip
def test_no_address_leads_elsewhere(shown: Site, asked: list[Any], target: str) -> None:
    answer = raw(shown.port, f"GET {target} HTTP/1.1", "Host: localhost")
    assert answer.split(b" ")[1] in (b"400", b"404"), answer
    assert not asked


@pytest.mark.parametrize(
    "to", ["http://evil.example/", "//evil.example/", "https://127.0.0.1/", "http://[", "ftp://x/"]
)
def test_redirects_to_other_servers_are_not_passed_on(shown: Site, to: str) -> None:
    answer = shown.get(f"/status?to={to}")
    assert answer.status == 502
    assert "Location" not in answer.headers


def test_redirects_of_the_dashboard_hold_behind_any_path(shown: Site, theirs: int) -> None:
    for to in ("/tasks?a=1", "tasks?a=1", f"http://127.0.0.1:{theirs}/tasks?a=1"):
        answer = shown.get(f"/status?to={to}")
        assert (answer.status, answer.headers["Location"]) == (302, "./tasks?a=1")


@given(st.text("/.:\\@ab%?#", max_size=12), st.sampled_from(["/", "/status", "/info/main/workers.html"]))
def test_no_redirect_leaves_this_server(location: str, at: str) -> None:
    found = Upstream.of("http://127.0.0.1:8787").redirected(at, location)
    if found is not None:
        assert urljoin("http://localhost:9000/user/proxy/8766" + at, found).startswith("http://localhost:9000/")
        assert found.startswith("."), "no scheme and no host can stand there"


@given(st.text("/.:\\@ab%2eE?#", min_size=1, max_size=12))
def test_no_path_leaves_the_dashboard(path: str) -> None:
    if (found := passed_path(path)) is not None:
        assert found == path
        assert urlsplit(f"http://127.0.0.1:8787{found}").netloc == "127.0.0.1:8787"
        assert ".." not in path.lower().replace("%2e", ".").split("/")


def test_queries_lose_tokens_only() -> None:
    assert passed_query("a=%26&token=x&b&tok%65n=y&tokens=z&=") == "a=%26&b&tokens=z&="
    assert passed_query("") == ""


@pytest.mark.parametrize("address", ["", "127.0.0.1:8787", "ftp://127.0.0.1", "http://", "http://me:secret@host:1",
                                     "http://host/other", "http://host:1?x", "http://host:99999",
                                     "http://["])  # fmt: skip
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ParameterError, match="--dask"):
        Upstream.of(address)
    assert Upstream.of("http://LOCALHOST:8787/status").origin == "http://localhost:8787"


def test_a_dashboard_that_is_gone_is_told_in_one_line(asked: list[Any]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with listening(through(f"http://127.0.0.1:{free.getsockname()[1]}")) as (port,):
            site = Site(port, Pages("none"))
            for found in (site.get("/status"), site.get("/status/ws", Upgrade="websocket", Connection="Upgrade",
                          Sec_WebSocket_Protocol="bokeh, x")):  # fmt: skip
                assert found.status == 502
                assert found.text.startswith("No Dask dashboard answers at http://127.0.0.1:")
                assert found.text.count("\n") == 1


def test_answers_have_limits_in_size_and_time(shown: Site, monkeypatch) -> None:
    assert shown.get("/status?large=1").status == 502
    monkeypatch.setattr(proxy, "ANSWER_S", 0.3)
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        listening(through(f"http://127.0.0.1:{silent.getsockname()[1]}")) as (port,),
    ):
        assert Site(port, Pages("none")).get("/status").status == 504
    assert shown.get("/status").status == 200


def opened(port: int, path: str = "/status/ws", words: tuple[str, ...] = ("bokeh", "session"), **headers: str) -> Any:
    given = {"Authorization": f"token {TOKEN}"} | {name.replace("_", "-"): value for name, value in headers.items()}
    request = HTTPRequest(f"ws://127.0.0.1:{port}{path}", headers=given)
    return websocket_connect(request, subprotocols=list(words))


def test_websockets_pass_both_ways_through_any_port(shown: Site, asked: list[Any], theirs: int) -> None:
    async def run() -> None:
        near = await opened(shown.port, Host="localhost:9001", Origin="http://localhost:9001", Cookie="mine=secret")
        assert near.selected_subprotocol == "bokeh"
        for message in ("text", b"\x00\xff", "x" * 100_000):
            await near.write_message(message, isinstance(message, bytes))
            assert await near.read_message() == message
        (request,) = asked
        assert request.headers["Origin"] == f"http://127.0.0.1:{theirs}"
        assert request.headers["Sec-WebSocket-Protocol"].replace(" ", "") == "bokeh,session"
        assert {"cookie", "authorization"}.isdisjoint(name.lower() for name in request.headers)
        await near.write_message("leave")
        assert await asyncio.wait_for(near.read_message(), 5) is None, "closed when the dashboard closes"
        await hang_up(near)

    asyncio.run(run())


@pytest.mark.parametrize("headers", [
    {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": "http://localhost:1"}, {"Origin": "file://"},
    {"Host": "evil.example", "Origin": "http://evil.example"}, {"Authorization": "token wrong"}, {"Authorization": ""},
    {"Origin": ""},
])  # fmt: skip
def test_websockets_of_other_sites_are_refused(shown: Site, asked: list[Any], headers: dict[str, str]) -> None:
    async def run() -> None:
        with pytest.raises(HTTPClientError) as refused:
            await opened(shown.port, **headers)
        assert refused.value.code in (401, 403)

    asyncio.run(run())
    assert not asked


def test_only_bokeh_has_websockets_and_not_without_limit(shown: Site, asked: list[Any], monkeypatch) -> None:
    async def run() -> None:
        for path, words in (("/status/ws", ("kernel", "x")), ("/jupyter/ws", ("bokeh", "x"))):
            with pytest.raises(HTTPClientError):
                await opened(shown.port, path, words)
        assert not asked
        monkeypatch.setattr(proxy, "MOST_SOCKETS", 2)
        several = [await opened(shown.port) for _ in range(2)]
        with pytest.raises(HTTPClientError, match="503"):
            await opened(shown.port)
        for near in several:
            await hang_up(near)
        for _ in range(100):  # the places are free again
            try:
                near = await opened(shown.port)
                break
            except HTTPClientError:
                await asyncio.sleep(0.05)
        await near.write_message("x" * (proxy.LARGEST_MESSAGE + 1))
        assert await asyncio.wait_for(near.read_message(), 5) is None, "closed by what is too large"
        await hang_up(near)

    asyncio.run(run())


@pytest.mark.parametrize(("origin", "host", "same"), [
    ("http://localhost:9000", "localhost:9000", True), ("https://em.example.org", "em.example.org", True),
    ("https://em.example.org", "em.example.org:443", True), ("http://LOCALHOST:1", "localhost:1", True),
    ("http://[::1]:1", "[::1]:1", True), ("https://em.example.org", "em.example.org:80", False),
    ("http://localhost:9001", "localhost:9000", False), ("http://localhost", "", False), ("", "", False),
    ("http://localhost.evil.example:1", "localhost:1", False), ("http://localhost:1@evil", "localhost:1", False),
    ("localhost:1", "localhost:1", False), ("http://localhost:x", "localhost:1", False),
])  # fmt: skip
def test_pages_of_this_server_are_told_from_others(origin: str, host: str, same: bool) -> None:
    assert same_origin({"Origin": origin, "Host": host}) == same


def test_our_pages_lead_to_dasks() -> None:
    assert way_to_dask("localhost:9000", "", 8765, 8766) == "//localhost:8766/"
    assert way_to_dask("[::1]:9000", "", 8765, 8766) == "//[::1]:8766/"
    assert way_to_dask("hub.example", "/user/me/proxy/8765", 8765, 8767) == "../../8767/"
    for other in ("/user/proxy/1", "/user/proxy/18765", "/proxy/8765/more"):
        assert way_to_dask("localhost", other, 8765, 8767) == "//localhost:8767/"


@pytest.mark.parametrize(("host", "seen"), [("localhost:9000", 9000), ("localhost", 80), ("[::1]:1", 1), ("a:x", 80)])
def test_a_tunnel_is_known_by_the_port_of_the_browser(host: str, seen: int) -> None:
    assert seen_port(host, 80) == seen


def test_the_link_is_there_when_dask_is(tmp_path: Path) -> None:
    pages = Pages(str(tmp_path))
    app = application(pages, ACCESS, secure=False)
    with listening(app) as (port,):
        site = Site(port, pages)
        assert "dask/" not in site.get("/").text
        assert site.get("/dask/").status == 404
        pages.dask = True
        open_door(app, Dashboard(Upstream.of("http://127.0.0.1:8787"), ACCESS, secure=False), port, 8766)
        assert 'href="./dask/"' in site.get("/").text
        assert site.get("/dask/").headers["Location"] == "//127.0.0.1:8766/"
        told = site.get("/dask/", Host="localhost:9000")
        assert (told.status, told.headers["Content-Security-Policy"]) == (200, POLICY)
        assert "ssh -L 9001:localhost:8766" in told.text
        assert all(f'href="//localhost:{each}/"' in told.text for each in (8766, 9001))
        assert site.get("/dask/", token="").status == 401
        assert site.get("/dask/", Host="evil.example").status == 403


def test_without_a_run_the_usual_place_is_looked_at(tmp_path: Path) -> None:
    assert find_dashboard(str(tmp_path)).origin == "http://127.0.0.1:8787"


@pytest.mark.parametrize(("provider", "pages", "found"), [
    ("local", "http://127.0.7.1:1234/status", "http://127.0.7.1:1234"),
    ("local", "http://10.0.0.1:1234/status", "http://127.0.0.1:8787"),
    ("local", "", "http://127.0.0.1:8787"),
    ("aws", "http://127.0.0.1:1234/status", "http://127.0.0.1:8787"),
])  # fmt: skip
def test_a_run_on_this_machine_is_found(tmp_path: Path, provider: str, pages: str, found: str) -> None:
    name, now = "run-20261121-061300", time.time()
    store = RunStore.of(str(tmp_path), name)
    record = RunRecord(name=name, created=now, owner="me", provider=provider, region="local", steps=(), plan={},
                       version="0")  # fmt: skip
    store.create(record, Wishes(max_usd=1.0, deadline=now + 60))
    head = {"scheduler": "tls://127.0.7.1:1", "pages": pages, "at": now}
    (Path(store.url) / "head.json").write_text(json.dumps(head))
    assert find_dashboard(str(tmp_path)).origin == "http://127.0.0.1:8787", "it does not run"
    store.write_state(RunState(at=now, status="running"))
    assert find_dashboard(str(tmp_path)).origin == found


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Port of the dashboard of a real scheduler."""
    place, port = tmp_path_factory.mktemp("scheduler"), free_port()
    argv = [sys.executable, "-m", "cloudem", "cluster", "scheduler", "--insecure", "--port", str(free_port()),
            "--dashboard", "--dashboard-port", str(port)]  # fmt: skip
    with (place / "log").open("w") as log:
        process = subprocess.Popen(argv, cwd=place, stdout=log, stderr=log)
    try:
        end = time.monotonic() + 60
        while "scheduler at" not in (place / "log").read_text():
            assert process.poll() is None, (place / "log").read_text()
            assert time.monotonic() < end
            time.sleep(0.1)
        yield port
        assert "Traceback" not in (place / "log").read_text()
    finally:
        process.terminate()
        process.wait(20)


@needs_bokeh
def test_a_real_dashboard_answers_and_its_websocket_opens(scheduler: int) -> None:
    with listening(through(f"http://127.0.0.1:{scheduler}/status")) as (port,):
        site = Site(port, Pages("none"))
        first = site.get("/")
        assert (first.status, first.headers["Location"]) == (301, "./status")
        for path in ("/status", "/tasks", "/workers", "/system", "/individual-plots.json", "/metrics", "/health"):
            assert site.get(path).status == 200, path
        script = site.get("/static/js/bokeh.min.js")
        assert len(script.body) > 500_000
        again = site.get("/static/js/bokeh.min.js", If_None_Match=script.headers["Etag"])
        assert (again.status, again.body) == (304, b"")
        asyncio.run(read_document(port, site.get("/status").text))


async def read_document(port: int, page: str) -> None:
    """Read a page's document as Bokeh's script does: messages have three parts, what they are, about, and say."""
    token = re.search(r'"token":"([^"]+)"', page)
    assert token is not None
    near = await opened(port, words=("bokeh", token[1]), Origin=f"http://127.0.0.1:{port}")

    async def heard() -> list[Any]:
        parts = [json.loads(await asyncio.wait_for(near.read_message(), 20)) for _ in range(3)]
        for _ in range(2 * parts[0].get("num_buffers", 0)):
            await asyncio.wait_for(near.read_message(), 20)
        return parts

    assert (await heard())[0]["msgtype"] == "ACK"
    for part in ({"msgid": "1", "msgtype": "PULL-DOC-REQ"}, {}, {}):
        await near.write_message(json.dumps(part))
    header, _, content = await heard()
    while header["msgtype"] == "PATCH-DOC":  # what has changed meanwhile
        header, _, content = await heard()
    assert (header["msgtype"], header["reqid"]) == ("PULL-DOC-REPLY", "1")
    assert content["doc"]["title"] == "Dask: Status"
    await hang_up(near)


@needs_bokeh
@needs_chromium
def test_a_browser_shows_dasks_pages_from_ours(scheduler: int, tmp_path: Path) -> None:
    pages = Pages(str(tmp_path))
    app = application(pages, ACCESS, secure=False)
    dashboard = Dashboard(Upstream.of(f"http://127.0.0.1:{scheduler}"), ACCESS, secure=False)
    with listening(app, dask_application(dashboard)) as (port, dask_port):
        pages.dask = True
        open_door(app, dashboard, port, dask_port)

        async def look() -> None:
            async with browser() as tab:
                await tab.open(f"http://localhost:{port}/?token={TOKEN}")
                await tab.value("document.querySelector('nav a[href$=\"dask/\"]').click()")
                for name in ("status", "workers", "tasks"):
                    if name != "status":
                        await tab.open(f"http://localhost:{dask_port}/{name}")
                    await tab.until(f"location.port === '{dask_port}' && location.pathname === '/{name}'")
                    await tab.until("window.Bokeh && Bokeh.documents.length > 0")  # which come by the websocket
                assert not tab.complaints
                assert not tab.failures
                ours = (f"http://localhost:{port}/", f"http://localhost:{dask_port}/", "data:", "blob:")
                assert all(url.startswith(ours) for url in tab.requests)

        asyncio.run(look())
