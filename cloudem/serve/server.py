"""The web server of ``cloudem serve``: what each address answers, and to whom. It only reads, unless told otherwise."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

import tornado.httpserver
import tornado.iostream
import tornado.netutil
import tornado.web

from cloudem.errors import CloudemError, ParameterError
from cloudem.report.style import CSS
from cloudem.serve.access import Access
from cloudem.serve.edited_picks import LARGEST_BODY as LARGEST_PICKS
from cloudem.serve.guard import Guarded, may_write, unlogged
from cloudem.serve.pages import Pages
from cloudem.serve.watching import Watches

Answer = TypeVar("Answer")

STATIC = Path(__file__).parent / "static"
READERS = 4
"""Threads that read the project: more would only wait for the same disk."""

LARGEST_HEADERS, LARGEST_BODY = 16 << 10, 1 << 10
"""Bytes of a request; nothing that this server does takes a body."""

PORTS = 20
"""So many ports are tried from the one that is asked for."""

PIECE = 1 << 20
"""Bytes of a file that are sent at a time."""

PATIENCE_S = 20.0
"""How long a request may take to arrive, and a connection to say nothing."""

PATH = r"((?:[^/]+/)*[^/]+)"


class Readers:
    """What handlers share: the pages, who may see them, and threads that read."""

    def __init__(self, pages: Pages, access: Access, *, secure: bool) -> None:
        self.pages, self.access, self.secure = pages, access, secure
        self.watches = Watches()
        self._threads = ThreadPoolExecutor(READERS, thread_name_prefix="cloudem-serve")

    async def read(self, function: Callable[..., Answer], *given: Any) -> Answer:
        """Run what reads in a thread, so that a slow store keeps nobody else waiting."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(function, *given))


class Handler(Guarded):
    """A request for the pages."""

    def initialize(self, readers: Readers, make: str = "", kind: str = "text/html") -> None:
        """Keep what all handlers share; ``make`` is the method of the pages that answers, ``kind`` what it returns."""
        self.readers, self.pages, self._make, self._kind = readers, readers.pages, make, kind
        self.access, self.secure = readers.access, readers.secure

    async def made(self, words: tuple[str, ...]) -> Any:
        """Return what the pages make of what the address says, or say that there is nothing of that name."""
        found = await self.readers.read(attrgetter(self._make)(self.pages), *words)
        if found is None:
            raise tornado.web.HTTPError(404, reason="There is no such page")
        return found

    def refused(self) -> str:
        """Return the page of whoever has no token."""
        return self.pages.refused(self.request.path)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Say what went wrong in one line, without its inside."""
        _, error, _ = kwargs.get("exc_info", (None, None, None))
        told = str(error) if isinstance(error, CloudemError) else self._reason
        self.finish(self.pages.problem(self.request.path, status_code, told))

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        """Log what nobody foresaw; what the project says of itself is told to whoever asked."""
        if not isinstance(value, CloudemError | tornado.web.HTTPError):
            super().log_exception(typ, value, tb)


class Page(Handler):
    """A page or part of one, as the pages make it."""

    async def get(self, *words: str) -> None:
        """Answer."""
        found = await self.made(words)
        self.set_header("Content-Type", f"{self._kind}; charset=utf-8")
        self.finish(found)

    head = get


class File(Handler):
    """Bytes to keep: maps, and what opens them elsewhere."""

    async def get(self, *words: str) -> None:
        """Answer."""
        name, file = await self.made(words)
        self.set_header("Content-Type", "application/octet-stream")
        self.set_header("Content-Disposition", f'attachment; filename="{name}"')
        with file:
            while part := await self.readers.read(file.read, PIECE):
                self.write(part)
                await self.flush()  # waits for whoever reads slowly, so that no map is held in memory for them


class Voxels(Handler):
    """The preview of a map: bytes, compressed as they lie in the store; a header says what they mean."""

    async def get(self, *words: str) -> None:
        """Answer."""
        found = await self.made(words)
        self.set_header("Content-Type", "application/octet-stream")
        self.set_header("Content-Encoding", "gzip")
        self.set_header("X-Map", found.info.model_dump_json())
        self.finish(found.data)


class Events(Handler):
    """News of the project or of a job, for as long as the page is seen."""

    async def get(self, *words: str) -> None:
        """Send what is new when it is."""
        await self.made(words)
        # nothing is waited for from here until it is listened to: a watch that nobody listens to is forgotten, and
        # pages that are opened at the same time would each have a poller of their own
        watch = self.readers.watches.of("/".join((self._make, *words)), self._look(words), self.pages.every_s)
        if watch is None:
            raise tornado.web.HTTPError(503, reason="Too many pages are open")
        self.set_header("Content-Type", "text/event-stream")
        self.set_header("X-Accel-Buffering", "no")
        self.set_header("Content-Encoding", "identity")  # a compressor would hold events back
        try:
            async with contextlib.aclosing(watch.news()) as news:  # whoever leaves is listened for no more
                async for text in news:
                    self.write(f"data: {text}\n\n" if text else "event: beat\ndata:\n\n")
                    await self.flush()
        except (tornado.iostream.StreamClosedError, asyncio.CancelledError):
            self._auto_finish = False  # the page is closed, or the server ends: nobody hears an end either

    def _look(self, words: tuple[str, ...]) -> Callable[[], Awaitable[str]]:
        readers, make = self.readers, attrgetter(self._make)(self.pages)

        async def look() -> str:
            return json.dumps(await readers.read(make, *words))

        return look


class News(Handler):
    """The same once, for pages that hear no events."""

    async def get(self, *words: str) -> None:
        """Answer."""
        found = await self.made(words)
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps(found))


class Choosing(Handler):
    """Classes that somebody has clicked: what they become; nothing is written."""

    async def get(self, *words: str) -> None:
        """Answer with the command and the step of a workflow."""
        await self._answer("choice", words)

    async def _answer(self, make: str, words: tuple[str, ...]) -> None:
        self._make = make
        chosen = self.get_query_arguments("classes")
        try:
            found = await self.made((*words, chosen[-1])) if chosen else {}  # of nothing there is nothing to say
        except CloudemError as error:
            self.set_status(400)
            found = {"problem": str(error)}
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps(found))


class ChoosingAndWriting(Choosing):
    """The same; a POST writes it, from a page of this very server or with the token in a header."""

    SUPPORTED_METHODS = ("GET", "HEAD", "POST")

    async def post(self, *words: str) -> None:
        """Write the file of a choice, and say so."""
        if not may_write(self.request.headers, self.access):
            raise tornado.web.HTTPError(403, reason="Only pages of this server may write")
        await self._answer("write_choice", words)


class MicrographPictures(Handler):
    """A picture of a micrograph; the browser keeps it a while, since lists of them are paged back and forth."""

    async def get(self, *words: str) -> None:
        """Answer; where there is none, with why."""
        try:
            found = await self.made(words)
        except CloudemError as error:
            self.set_status(404)
            self.set_header("Content-Type", "text/plain; charset=utf-8")
            self.finish(str(error))
            return
        self.set_header("Content-Type", "image/jpeg")
        self.set_header("Cache-Control", "private, max-age=600")
        self.finish(found)


class MicrographLimits(Handler):
    """Limits of micrographs and lists of them: what they become; nothing is written."""

    async def get(self, *words: str) -> None:
        """Answer with how many stay, the command and the step of a workflow."""
        await self._answer("micrographs.choice", words)

    async def _answer(self, make: str, words: tuple[Any, ...]) -> None:
        self._make = make
        try:
            found = await self.made((*words, *self.given()))
        except CloudemError as error:
            self.set_status(400)
            found = {"problem": str(error)}
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps(found))

    def given(self) -> tuple[Any, ...]:
        """Return what the request says besides the job."""
        return ({name: self.get_query_arguments(name)[-1] for name in self.request.query_arguments},)


class LimitsAndWriting(MicrographLimits):
    """The same; a POST writes it, from a page of this very server or with the token in a header."""

    SUPPORTED_METHODS = ("GET", "HEAD", "POST")

    async def post(self, *words: str) -> None:
        """Write the files of a choice, and say so."""
        if not may_write(self.request.headers, self.access):
            raise tornado.web.HTTPError(403, reason="Only pages of this server may write")
        await self._answer("micrographs.write_choice", words)


@tornado.web.stream_request_body
class PicksWriting(MicrographLimits):
    """Picks that were edited: a POST writes them; its body is read only of whoever may write."""

    SUPPORTED_METHODS = ("POST",)

    def prepare(self) -> None:
        """Refuse before anything is read, and then take a body longer than other requests have."""
        self._body = bytearray()
        super().prepare()
        if self._finished:
            return
        if not may_write(self.request.headers, self.access):
            raise tornado.web.HTTPError(403, reason="Only pages of this server may write")
        self.request.connection.set_max_body_size(LARGEST_PICKS)  # type: ignore[union-attr]

    def data_received(self, chunk: bytes) -> None:
        """Keep a part of the body."""
        self._body += chunk

    def given(self) -> tuple[Any, ...]:
        """Return the body."""
        return (bytes(self._body),)

    async def get(self, *words: str) -> None:
        """Say that there is nothing to read."""
        raise tornado.web.HTTPError(405)

    async def post(self, *words: str) -> None:
        """Write the file of coordinates and the workflow, and say so."""
        await self._answer("micrographs.write_picks", words)


class Unknown(Handler):
    """Any other address."""

    async def get(self) -> None:
        """Say that there is nothing."""
        raise tornado.web.HTTPError(404, reason="There is no such page")


class Static(Handler):
    """Scripts and style sheets of the package, which are no secret."""

    open_to_all = True

    async def get(self, name: str) -> None:
        """Answer."""
        kinds = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
        if name == "report.css":
            self.set_header("Content-Type", "text/css; charset=utf-8")
            self.set_header("Cache-Control", "private, max-age=60")
            self.finish(CSS)
            return
        path = STATIC / name
        if path.parent != STATIC or path.suffix not in kinds or not path.is_file():
            raise tornado.web.HTTPError(404)
        self.set_header("Content-Type", f"{kinds[path.suffix]}; charset=utf-8")
        self.set_header("Cache-Control", "private, max-age=60")
        self.finish(path.read_bytes())


def application(pages: Pages, access: Access, *, secure: bool, allow_writing: bool = False) -> tornado.web.Application:
    """Return the application: addresses, and what answers them; what writes is there only if it is allowed."""
    pages.writes = allow_writing
    choosing, limits = (ChoosingAndWriting, LimitsAndWriting) if allow_writing else (Choosing, MicrographLimits)
    shared = {"readers": Readers(pages, access, secure=secure)}

    def of(make: str, kind: str = "text/html") -> dict[str, Any]:
        return {**shared, "make": make, "kind": kind}

    picks = (
        [(rf"/job/{PATH}/-/micrographs/picks", PicksWriting, of("micrographs.write_picks"))] if allow_writing else []
    )
    return tornado.web.Application(
        [
            (r"/", Page, of("project")),
            (r"/events", Events, of("project_news")),
            (r"/news", News, of("project_news")),
            (r"/metrics", Page, of("metrics", "text/plain; version=0.0.4")),
            (r"/static/([a-z-]+\.[a-z]+)", Static, shared),
            (rf"/run/{PATH}/-/events", Events, of("run_news")),
            (rf"/run/{PATH}/-/news", News, of("run_news")),
            (rf"/run/{PATH}", Page, of("run")),
            (rf"/job/{PATH}/-/events", Events, of("job_news")),
            (rf"/job/{PATH}/-/news", News, of("job_news")),
            (rf"/job/{PATH}/-/sections", Page, of("sections")),
            (rf"/job/{PATH}/-/details", Page, of("details")),
            (rf"/job/{PATH}/-/cluster", Page, of("cluster")),
            (rf"/job/{PATH}/-/cluster/events", Events, of("cluster_news")),
            (rf"/job/{PATH}/-/cluster/news", News, of("cluster_news")),
            (rf"/job/{PATH}/-/log", Page, of("log")),
            (rf"/job/{PATH}/-/choice", choosing, of("choice")),
            (rf"/job/{PATH}/-/micrographs", Page, of("micrographs.table", "application/json")),
            (rf"/job/{PATH}/-/micrographs/choice", limits, of("micrographs.choice")),
            *picks,
            (rf"/job/{PATH}/-/micrographs/picks\.star", Page, of("micrographs.star", "text/plain")),
            (
                rf"/job/{PATH}/-/micrograph/(small|large|smooth|spectrum)/{PATH}",
                MicrographPictures,
                of("micrographs.picture"),
            ),
            (rf"/job/{PATH}/-/micrograph/details/{PATH}", Page, of("micrographs.details", "application/json")),
            (rf"/job/{PATH}/-/preview/(map|half1|half2|mask)-(64|128)", Voxels, of("preview")),
            (rf"/job/{PATH}/-/file/([a-z0-9_]+\.(?:mrc|cxc))", File, of("download")),
            (rf"/job/{PATH}", Page, of("job")),
        ],
        default_handler_class=Unknown,
        default_handler_args=shared,
        compress_response=True,
        log_function=unlogged,
    )


def listen_near(
    app: tornado.web.Application,
    host: str,
    port: int,
    encryption: ssl.SSLContext | None = None,
    option: str = "--port",
) -> tuple[tornado.httpserver.HTTPServer, int]:
    """Serve at a port, or at one of the next if it is in use; return the server and its port.

    Raises
    ------
    ParameterError
        None of them is free, or the address is not one of this machine.
    """
    server = tornado.httpserver.HTTPServer(
        app,
        ssl_options=encryption,
        max_header_size=LARGEST_HEADERS,
        max_body_size=LARGEST_BODY,
        idle_connection_timeout=PATIENCE_S,
        body_timeout=PATIENCE_S,
    )
    why = OSError("no port")
    for each in range(port, min(port + PORTS, 65536)) if port else (0,):
        try:
            sockets = tornado.netutil.bind_sockets(each, host)
        except OSError as error:
            why = error
            continue
        server.add_sockets(sockets)
        return server, int(sockets[0].getsockname()[1])
    raise ParameterError(f"cannot listen at {host}, port {port} or the next {PORTS - 1}: {why}; try another {option}")
