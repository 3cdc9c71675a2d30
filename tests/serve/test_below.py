"""The pages as a proxy shows them below a path of its own, which it takes off before it passes a request on."""

from __future__ import annotations

import asyncio
import contextlib
import html
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urljoin, urlsplit

import pytest
import tornado.httpserver
import tornado.netutil
import tornado.web
from tornado.httpclient import HTTPRequest
from tornado.iostream import StreamClosedError
from tornado.simple_httpclient import SimpleAsyncHTTPClient

from cloudem.serve.pages import way_home
from tests.serve.browser import browser, needs_chromium
from tests.serve.conftest import TOKEN, Site

BELOW = "/user/x/proxy/8765"


class Prefixed(tornado.web.RequestHandler):
    """Passes requests and answers on piece by piece, as jupyter-server-proxy does."""

    def initialize(self, port: int, client: SimpleAsyncHTTPClient, asking: set[Prefixed]) -> None:
        self._port, self._client, self._asking, self._gone = port, client, asking, False

    def on_connection_close(self) -> None:
        self._gone = True

    async def get(self, path: str) -> None:
        def head(line: str) -> None:
            name, _, value = line.strip().partition(": ")
            if line.startswith("HTTP/"):
                self.set_status(int(line.split()[1]))
            elif name and name not in ("Transfer-Encoding", "Content-Length", "Connection"):
                self.set_header(name, value)

        def body(part: bytes) -> None:
            if self._gone:
                raise StreamClosedError  # which closes the connection to the server as well
            self.write(part)
            self.flush()

        query = f"?{self.request.query}" if self.request.query else ""
        headers = self.request.headers.copy()
        headers["X-Forwarded-Context"] = BELOW
        request = HTTPRequest(
            f"http://127.0.0.1:{self._port}/{path}{query}", headers=headers, follow_redirects=False,
            decompress_response=False, header_callback=head, streaming_callback=body, request_timeout=300,
        )  # fmt: skip
        self._asking.add(self)
        try:
            with contextlib.suppress(StreamClosedError):
                await self._client.fetch(request, raise_error=False)
        finally:
            self._asking.discard(self)


@contextmanager
def prefixed(site: Site) -> Iterator[int]:
    """Show a server below a path, at a port of its own, while the block runs."""
    loop, started, where = asyncio.new_event_loop(), threading.Event(), []
    asking: set[Prefixed] = set()

    async def start() -> None:
        client = SimpleAsyncHTTPClient(force_instance=True, max_clients=50)
        shared = {"port": site.port, "client": client, "asking": asking}
        app = tornado.web.Application([(rf"{BELOW}/(.*)", Prefixed, shared)])
        server = tornado.httpserver.HTTPServer(app)
        sockets = tornado.netutil.bind_sockets(0, "127.0.0.1")
        server.add_sockets(sockets)
        where.append((server, sockets[0].getsockname()[1]))
        started.set()

    def serve() -> None:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(start())
        loop.run_forever()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    assert started.wait(20)
    server, port = where[0]
    try:
        yield port
    finally:
        end = time.monotonic() + 20
        while asking and time.monotonic() < end:  # those who left are noticed with the next sign of life
            time.sleep(0.1)
        loop.call_soon_threadsafe(server.stop)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(20)


@pytest.mark.parametrize("path", ["/", "/job/refine", "/job/refine/-/log", "/nothing/at/all"])
def test_every_address_of_a_page_stays_below_the_path_of_the_proxy(site: Site, path: str) -> None:
    with prefixed(site) as port:
        below = site._replace(port=port)
        page = below.get(BELOW + path).text
        found = re.findall(r'(?:href|src|data-[a-z]+)="([^"]*/[^"]*)"', page)
        assert len(found) > 3
        for address in map(html.unescape, found):
            to = urljoin(f"http://localhost{BELOW}{path}", address)
            assert to.startswith(f"http://localhost{BELOW}/"), address
            if not to.endswith(("/preview/", "/events", "/nothing")):
                assert below.get(urlsplit(to).path).status == 200, address


def test_a_header_changes_no_address_and_no_cookie(site: Site) -> None:
    said = {"X_Forwarded_Context": "//evil.example", "X_Forwarded_Prefix": "/evil", "X_ProxyContextPath": "/evil"}
    assert site.get("/job/refine", **said).text == site.get("/job/refine").text
    assert b"evil" not in site.get("/nothing", **said).body
    assert "Path=/;" in site.get(f"/?token={TOKEN}", token="", **said).headers["Set-Cookie"] + ";"


@pytest.mark.parametrize(
    ("path", "root"), [("/", "./"), ("/job/a", "../"), ("/job/a/b", "../../"), ("/job/a/-/log", "../../../")]
)
def test_the_way_home(path: str, root: str) -> None:
    assert way_home(path) == root
    assert urljoin(f"http://localhost{BELOW}{path}", root) == f"http://localhost{BELOW}/"


@needs_chromium
def test_all_of_a_page_comes_through_a_proxy(site: Site) -> None:
    async def look(port: int) -> None:
        async with browser() as tab:
            await tab.open(f"http://localhost:{port}{BELOW}/?token={TOKEN}")
            assert await tab.value("location.pathname + location.search") == f"{BELOW}/"
            await tab.until("document.getElementById('signal').innerText === 'live'")
            assert await tab.value("getComputedStyle(document.querySelector('nav')).display") == "flex"
            await tab.value("document.querySelector('td a').click()")
            await tab.until("document.getElementById('map')?.dataset.ready")
            await tab.until("document.querySelectorAll('#sections section').length >= 5")
            await tab.until("document.getElementById('signal').innerText === 'live'")
            assert tab.complaints == []
            assert tab.failures == []
            sent = [urlsplit(url).path for url in tab.requests if url.startswith("http")]
            assert all(path.startswith(f"{BELOW}/") for path in sent)
            assert f"{BELOW}/job/refine/-/preview/map-64" in sent

    with prefixed(site) as port:
        asyncio.run(look(port))
