"""Dask's own pages behind the token of ``cloudem serve``: one scheduler's dashboard, read only, at a port of its own.

Bokeh, which draws them, has scripts in its pages and makes functions of text; what it may do must not hold for our own
pages, hence another port, which to a browser is another origin. Cookies do not know ports: whoever may see the one may
see the other. The dashboard itself has no protection at all, and takes websockets from pages at its own address only:
it gets requests as if they came from there, with nothing of ours in them, after this server has checked where they are
from.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, unquote_plus, urljoin, urlsplit

import tornado.web
from tornado.httpclient import HTTPClientError, HTTPRequest, HTTPResponse
from tornado.iostream import StreamClosedError
from tornado.simple_httpclient import HTTPTimeoutError, SimpleAsyncHTTPClient
from tornado.websocket import (
    WebSocketClientConnection,
    WebSocketClosedError,
    WebSocketError,
    WebSocketHandler,
    websocket_connect,
)

from cloudem.errors import ParameterError
from cloudem.runs.webhook import only_here
from cloudem.serve.access import HEADERS, Access
from cloudem.serve.guard import DEFAULT_PORTS, Guarded, same_origin, unlogged
from cloudem.serve.pages import page_templates

BOKEH_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",  # Bokeh's pages hold scripts, its tables compile templates
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
    )
)
"""What Bokeh needs, and still nothing from elsewhere."""

PASSED_ON = ("Accept", "Accept-Language", "If-None-Match", "If-Modified-Since")
"""Headers of a request that the dashboard gets; no cookie, no token, no word of where the page is shown."""

PASSED_BACK = ("Content-Type", "Etag", "Last-Modified")
"""Headers of its answers that the browser gets; it can set no cookie and loosen no policy."""

REDIRECTS = (301, 302, 303, 307, 308)

LARGEST_ANSWER = 16 << 20
"""Bytes of an answer or a message of the dashboard: Bokeh's scripts have 5 MB at most."""

LARGEST_MESSAGE = 1 << 20
"""Bytes of a message of the browser."""

CONNECT_S, ANSWER_S = 5.0, 30.0
"""How long a connection to the dashboard and its answer may take."""

ALIVE_S = 20.0
"""So often both ends of a websocket are asked whether they are there."""

MOST_REQUESTS, MOST_SOCKETS = 16, 100
"""At the same time; further requests wait, further websockets are refused."""

USUAL_DASHBOARD = "http://127.0.0.1:8787"
"""Where jobs and schedulers serve it unless they are told otherwise."""

CLOSED_ROOMS = ("proxy", "jupyter")
"""What schedulers of others may serve beside their pages: passing requests on to any worker, and notebooks."""


@dataclass(frozen=True)
class Upstream:
    """Where requests go, and nowhere else.

    Attributes
    ----------
    scheme, netloc
        Of the dashboard's address.
    """

    scheme: str
    netloc: str

    @property
    def origin(self) -> str:
        """Its address without a path."""
        return f"{self.scheme}://{self.netloc}"

    @classmethod
    def of(cls, address: str) -> Upstream:
        """Read the address of a dashboard, as a job or a scheduler says it (``http://127.0.0.1:8787/status``).

        Raises
        ------
        ParameterError
            It is none.
        """
        with contextlib.suppress(ValueError):
            parts = urlsplit(address)
            plain = not parts.query and not parts.fragment and parts.path in ("", "/", "/status")
            known = parts.scheme in DEFAULT_PORTS and parts.hostname and parts.port != 0 and "@" not in parts.netloc
            if known and plain:
                return cls(parts.scheme, parts.netloc.lower())
        raise ParameterError(f"--dask {address}: needs the address of a Dask dashboard, such as http://127.0.0.1:8787")

    def redirected(self, at: str, location: str) -> str | None:
        """Return where a redirect leads as a relative path, which holds behind any proxy; None if it leads elsewhere.

        Parameters
        ----------
        at
            Path that answered by it.
        location
            As the dashboard says it.
        """
        try:
            to = urlsplit(urljoin(self.origin + at, location))
        except ValueError:
            return None
        if (to.scheme, to.netloc.lower()) != (self.scheme, self.netloc):
            return None
        # from "." or "..": no server's name can stand there, whatever the rest is
        up = "../" * (at.count("/") - 1) or "./"
        return up + to.path[1:] + (f"?{to.query}" if to.query else "")


def passed_path(path: str) -> str | None:
    """Return a path that may be asked of the dashboard, None for what leads out of it or into closed rooms."""
    rooms = [unquote(room) for room in path.split("/")]
    if not path.startswith("/") or path.startswith("//") or "\\" in path or any(room in (".", "..") for room in rooms):
        return None
    return None if rooms[1] in CLOSED_ROOMS else path


def passed_query(query: str) -> str:
    """Return a query without any token."""
    return "&".join(part for part in query.split("&") if unquote_plus(part.partition("=")[0]) != "token")


class Dashboard:
    """What the handlers share: who may read, where it comes from, and a client to read it.

    Parameters
    ----------
    upstream
        The dashboard.
    access
        Who may read.
    secure
        Whether this is served by TLS.
    """

    def __init__(self, upstream: Upstream, access: Access, *, secure: bool) -> None:
        self.upstream, self.access, self.secure = upstream, access, secure
        self.sockets = 0
        self._client: SimpleAsyncHTTPClient | None = None

    @property
    def gone(self) -> str:
        """What is said when it does not answer."""
        why = "its job is over, has not begun, or another server is there"
        return f"No Dask dashboard answers at {self.upstream.origin}: {why}"

    async def fetch(self, request: HTTPRequest) -> HTTPResponse:
        """Ask for something; whatever the answer is, it is one."""
        if self._client is None:  # not earlier: it belongs to the loop that serves
            self._client = SimpleAsyncHTTPClient(
                force_instance=True, max_clients=MOST_REQUESTS,
                max_body_size=LARGEST_ANSWER, max_buffer_size=LARGEST_ANSWER,
            )  # fmt: skip
        return await self._client.fetch(request, raise_error=False)

    def close(self) -> None:
        """Drop what is still being asked."""
        if self._client is not None:
            self._client.close()


class Passing(Guarded):
    """A request for the dashboard, which is allowed, or refused before the dashboard hears of it."""

    def initialize(self, dashboard: Dashboard) -> None:
        """Keep what all handlers share."""
        self.dashboard, self.access, self.secure = dashboard, dashboard.access, dashboard.secure

    def set_default_headers(self) -> None:
        """Say what Bokeh's pages may load."""
        for name, value in {**HEADERS, "Content-Security-Policy": BOKEH_POLICY}.items():
            self.set_header(name, value)

    def refused(self) -> str:
        """Return what is said to whoever has no token."""
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        return "A token is needed: open the address that cloudem serve printed, and from there Dask's pages.\n"

    def write_error(self, status_code: int, **_: Any) -> None:
        """Say what went wrong in one line, without its inside."""
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish(f"{self._reason}\n")

    def asked(self, scheme: str) -> str:
        """Return the address that is asked of the dashboard.

        Raises
        ------
        tornado.web.HTTPError
            There is no such page.
        """
        path = passed_path(self.request.path)
        if path is None:
            raise tornado.web.HTTPError(404, reason="There is no such page")
        query = passed_query(self.request.query)
        return f"{scheme}://{self.dashboard.upstream.netloc}{path}" + (f"?{query}" if query else "")


class DaskPage(Passing):
    """A page of the dashboard, or part of one."""

    async def get(self) -> None:
        """Answer as the dashboard does."""
        found = await self._found()
        if found.code in REDIRECTS:
            to = self.dashboard.upstream.redirected(self.request.path, found.headers.get("Location", ""))
            if to is None:
                raise tornado.web.HTTPError(502, reason="The Dask dashboard points to another server; not followed")
            self.redirect(to, status=found.code)
            return
        self.set_status(found.code)
        for name in PASSED_BACK:
            if name in found.headers:
                self.set_header(name, found.headers[name])
        if self.request.method == "HEAD" and "Content-Length" in found.headers:
            self.set_header("Content-Length", found.headers["Content-Length"])
        if self.request.path.startswith(("/static/", "/statics/")):  # Bokeh's scripts, which are no secret, but large
            self.set_header("Cache-Control", "private, no-cache")
        self.finish(found.body or None)

    head = get

    def compute_etag(self) -> str | None:
        """Leave the dashboard's own."""
        return None

    async def _found(self) -> HTTPResponse:
        headers = {name: self.request.headers[name] for name in PASSED_ON if name in self.request.headers}
        request = HTTPRequest(
            self.asked(self.dashboard.upstream.scheme), method=self.request.method or "GET", headers=headers,
            follow_redirects=False, connect_timeout=CONNECT_S, request_timeout=ANSWER_S, decompress_response=False,
        )  # fmt: skip
        try:
            return await self.dashboard.fetch(request)
        except HTTPTimeoutError as error:
            raise tornado.web.HTTPError(504, reason="The Dask dashboard does not answer in time") from error
        except (OSError, HTTPClientError, ValueError) as error:  # nobody listens, or what answers is no such server
            raise tornado.web.HTTPError(502, reason=self.dashboard.gone) from error


class DaskSocket(Passing, WebSocketHandler):
    """What Bokeh's pages say to the dashboard, and hear of it."""

    _far: WebSocketClientConnection | None = None

    async def get(self, *_: Any, **__: Any) -> None:
        """Connect the two, for as long as both stay."""
        if not same_origin(self.request.headers):
            raise tornado.web.HTTPError(403, reason="This page is not of this server")
        if self.request.headers.get("Upgrade", "").lower() != "websocket":
            raise tornado.web.HTTPError(400, reason="This is for websockets")
        if self.dashboard.sockets >= MOST_SOCKETS:
            raise tornado.web.HTTPError(503, reason="Too many pages are open")
        self.dashboard.sockets += 1
        try:
            self._far = await self._connected()
            await super().get()  # returns when the browser has gone
        finally:
            self.dashboard.sockets -= 1
            self._leave()

    def _leave(self) -> None:
        """Part from the dashboard without waiting for its answer: a scheduler may be busy for long."""
        if self._far is not None and self._far.protocol is not None:
            stream = self._far.protocol.stream
            self._far.close()
            if stream is not None:
                stream.close()

    async def _connected(self) -> WebSocketClientConnection:
        upstream = self.dashboard.upstream
        # Bokeh sends its name and the session of the page as if they were protocols
        said = [word.strip() for word in self.request.headers.get("Sec-WebSocket-Protocol", "").split(",")]
        if said[0] != "bokeh":
            raise tornado.web.HTTPError(400, reason="This is for Bokeh's pages")
        request = HTTPRequest(
            self.asked("wss" if upstream.scheme == "https" else "ws"), headers={"Origin": upstream.origin},
            connect_timeout=CONNECT_S, request_timeout=ANSWER_S,
        )  # fmt: skip
        try:
            return await websocket_connect(
                request, subprotocols=said, max_message_size=LARGEST_ANSWER, ping_interval=ALIVE_S, ping_timeout=ALIVE_S
            )
        except (OSError, HTTPClientError, WebSocketError, ValueError) as error:
            raise tornado.web.HTTPError(502, reason=self.dashboard.gone) from error

    def select_subprotocol(self, subprotocols: list[str]) -> str | None:
        """Return what the dashboard has chosen."""
        return None if self._far is None else self._far.selected_subprotocol

    def check_origin(self, origin: str) -> bool:
        """Tell whether the page is of this server: once more, so that this holds however Tornado gets here."""
        return same_origin(self.request.headers)

    def open(self, *_: Any, **__: Any) -> None:
        """Pass on what the dashboard says."""
        self._hearing = asyncio.create_task(self._hear())

    async def on_message(self, message: str | bytes) -> None:
        """Pass on what the page says; the next message waits until that has gone."""
        if self._far is not None:
            with contextlib.suppress(WebSocketClosedError, StreamClosedError):
                await self._far.write_message(message, isinstance(message, bytes))

    async def _hear(self) -> None:
        if self._far is None:
            return
        with contextlib.suppress(WebSocketClosedError, StreamClosedError):
            while (message := await self._far.read_message()) is not None:
                await self.write_message(message, isinstance(message, bytes))  # waits for pages that read slowly
        self.close()


def dask_application(dashboard: Dashboard) -> tornado.web.Application:
    """Return the application that shows a dashboard."""
    shared = {"dashboard": dashboard}
    return tornado.web.Application(
        [(r"/[^/]+/ws", DaskSocket, shared), (r".*", DaskPage, shared)],
        compress_response=True,
        log_function=unlogged,
        websocket_max_message_size=LARGEST_MESSAGE,
        websocket_ping_interval=ALIVE_S,
        websocket_ping_timeout=ALIVE_S,
    )


class DaskDoor(Passing):
    """The way from our pages to Dask's, at the port of ours: only a request says how the browser finds this machine."""

    set_default_headers = Guarded.set_default_headers  # nothing of Bokeh's is shown here

    def initialize(self, dashboard: Dashboard, port: int = 0, dask_port: int = 0) -> None:
        """Keep what all handlers share, and the two ports."""
        super().initialize(dashboard)
        self._ports = port, dask_port

    def get(self) -> None:
        """Send the browser there, or say which port has to be passed on where only a tunnel knows its number."""
        host, (port, dask_port) = self.request.host, self._ports
        way = way_to_dask(host, self.request.headers.get("X-Forwarded-Context", ""), port, dask_port)
        seen = seen_port(host, DEFAULT_PORTS["https" if self.secure else "http"])
        if seen == port or not way.startswith("//"):
            self.redirect(way)
            return
        far = dask_port if seen in DEFAULT_PORTS.values() else seen + 1
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.finish(
            page_templates().get_template("tunnel.html").render(
                root="../", dask=False, name=host_name(host), seen=seen, port=port, far=far, dask_port=dask_port
            )
        )  # fmt: skip

    head = get


def host_name(host: str) -> str:
    """Return the name in a ``Host``, as it stands in addresses."""
    name = urlsplit(f"//{host}").hostname or "localhost"
    return f"[{name}]" if ":" in name else name


def seen_port(host: str, usual: int) -> int:
    """Return the port in a ``Host``, which is not the server's behind a tunnel; where it has none, the usual one."""
    with contextlib.suppress(ValueError):
        return urlsplit(f"//{host}").port or usual
    return usual


def way_to_dask(host: str, context: str, port: int, dask_port: int) -> str:
    """Return where a browser finds Dask's pages, at the host name by which it has found ours.

    Parameters
    ----------
    host, context
        Of the request: ``Host``, and the path under which jupyter-server-proxy shows our port, if it does.
    port, dask_port
        Where our pages are served, and Dask's.
    """
    if re.fullmatch(rf".*/proxy/{port}/?", context):
        return f"../../{dask_port}/"  # from …/proxy/8765/dask/; whole paths it would put behind its own
    return f"//{host_name(host)}:{dask_port}/"


def open_door(app: tornado.web.Application, dashboard: Dashboard, port: int, dask_port: int) -> None:
    """Let the application of our pages, served at ``port``, answer ``/dask/`` with the way to Dask's."""
    shared = {"dashboard": dashboard, "port": port, "dask_port": dask_port}
    app.add_handlers(r".*", [(r"/dask/", DaskDoor, shared)])


def find_dashboard(project: str) -> Upstream:
    """Return the dashboard of the project's run on this machine, or else that of a job with ``--dashboard``.

    Records of a project lie where others may write: no other machine is looked at because they say so.
    """
    from cloudem.runs.project import read_project
    from cloudem.runs.records import RunStore

    for run in read_project(project).runs:
        if run.status not in ("running", "draining"):
            continue
        store = RunStore.of(project, run.name)
        head = store.head()
        if head is not None and head.pages and store.record().provider == "local":
            found = Upstream.of(head.pages)
            if only_here(urlsplit(found.origin).hostname or ""):
                return found
    return Upstream.of(USUAL_DASHBOARD)
