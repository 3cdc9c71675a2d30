"""A webhook on this computer that keeps what it is sent, and answers as a test wants."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "T0SECRET0TOKEN"


class Hook:
    """A server; a context manager.

    Attributes
    ----------
    answers
        Status codes of the next answers; 200 when there are none.
    silent_s
        How long it waits before it answers, seconds.
    got
        The messages.
    others
        Methods and paths of other requests.
    """

    def __init__(self) -> None:
        self.answers: list[int] = []
        self.silent_s, self.body = 0.0, b"ok"
        self.got: list[dict[str, Any]] = []
        self.others: list[str] = []
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                (hook.got if self.path == f"/{TOKEN}" else hook.others).append(body)
                time.sleep(hook.silent_s)
                code = hook.answers.pop(0) if hook.answers else 200
                self.send_response(code)
                if 300 <= code < 400:
                    self.send_header("Location", f"http://127.0.0.1:{hook.port}/elsewhere")
                self.end_headers()
                self.wfile.write(hook.body)

            def do_GET(self) -> None:
                hook.others.append(self.path)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]  # of clients that left
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}/{TOKEN}"

    def __enter__(self) -> Hook:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def texts(self) -> list[str]:
        """What it was told."""
        return [str(each["text"]) for each in self.got]


def wait_for(holds: Callable[[], bool], limit_s: float = 20.0) -> None:
    """Wait until something is true."""
    limit = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < limit
        time.sleep(0.01)
