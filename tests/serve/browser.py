"""A real browser, driven over its debugging protocol: what a page shows, what it loads, and what it complains of."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tornado.websocket import WebSocketClientConnection, websocket_connect

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)

needs_chromium = pytest.mark.skipif(not CHROMIUM, reason="no Chromium: apt-get install chromium")

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--use-gl=angle", "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist", "--hide-scrollbars", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--remote-debugging-port=0",
)  # fmt: skip


async def hang_up(connection: WebSocketClientConnection) -> None:
    """Close a websocket and its socket.

    Both ends have said that they close before the far one lets go of the connection, for which Tornado waits 5 s; a
    loop that ends before leaves a socket that nobody closes.
    """
    protocol = connection.protocol
    connection.close()
    async with asyncio.timeout(10):
        while not protocol.client_terminated and await connection.read_message() is not None:
            pass
    protocol.stream.close()


class Tab:
    """One page of the browser.

    Attributes
    ----------
    complaints
        Errors and warnings of its console, and exceptions of its scripts.
    requests, failures
        Addresses that it asked for, and those of them that failed or were answered by an error.
    """

    def __init__(self, socket: WebSocketClientConnection) -> None:
        self._socket, self._number = socket, 0
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.failures: list[str] = []
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        while (text := await self._socket.read_message()) is not None:
            message = json.loads(text)
            if "id" in message:
                answer = self._answers.pop(message["id"])
                if "error" in message:
                    answer.set_exception(RuntimeError(str(message["error"])))
                else:
                    answer.set_result(message["result"])
                continue
            about, method = message.get("params", {}), message.get("method")
            if method == "Runtime.exceptionThrown":
                self.complaints.append(str(about["exceptionDetails"]))
            elif method == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
                self.complaints.append(f"{about['entry']['text']} {about['entry'].get('url', '')}")
            elif method == "Network.requestWillBeSent":
                self.requests.append(about["request"]["url"])
            elif method == "Network.responseReceived" and about["response"]["status"] >= 400:
                self.failures.append(f"{about['response']['status']} {about['response']['url']}")

    async def close(self) -> None:
        """Let go of the page."""
        self._reader.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reader
        await hang_up(self._socket)

    async def call(self, method: str, **given: Any) -> Any:
        """Call the browser."""
        self._number += 1
        answer = self._answers[self._number] = asyncio.get_running_loop().create_future()
        await self._socket.write_message(json.dumps({"id": self._number, "method": method, "params": given}))
        return await asyncio.wait_for(answer, 60)

    async def open(self, url: str) -> None:
        """Go to a page, and wait until it is loaded."""
        await self.call("Page.navigate", url=url)
        await self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    async def value(self, expression: str) -> Any:
        """Return what an expression is worth in the page."""
        found = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(str(found["exceptionDetails"]))
        return found["result"].get("value")

    async def until(self, expression: str, seconds: float = 30.0) -> Any:
        """Wait until an expression is true in the page, and return it."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with contextlib.suppress(RuntimeError):  # the page may just be going away
                if found := await self.value(expression):
                    return found
            await asyncio.sleep(0.1)
        raise TimeoutError(f"never true: {expression}; the page says: {await self.value('document.body.innerText')}")

    async def drag(self, selector: str, dx: float, dy: float) -> None:
        """Drag something."""
        x, y = await self.value(
            f"(() => {{ const e = document.querySelector('{selector}'); e.scrollIntoView({{block: 'center'}});"
            " const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        for kind, at in (("mousePressed", 0), ("mouseMoved", 0.5), ("mouseMoved", 1), ("mouseReleased", 1)):
            where = {"x": x + at * dx, "y": y + at * dy, "button": "left", "buttons": 1, "clickCount": 1}
            await self.call("Input.dispatchMouseEvent", type=kind, **where)

    async def picture(self, path: Path, width: int = 1280, height: int = 1400) -> None:
        """Save what the page looks like."""
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )
        await asyncio.sleep(0.4)
        found = await self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))


@contextlib.asynccontextmanager
async def browser() -> AsyncIterator[Tab]:
    """Start a browser with one page, which ends with the block."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen([CHROMIUM, *FLAGS, f"--user-data-dir={folder}", "about:blank"],
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
        try:
            where = Path(folder) / "DevToolsActivePort"
            for _ in range(300):
                if where.exists() and where.read_text().count("\n"):
                    break
                await asyncio.sleep(0.1)
            port = where.read_text().split()[0]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as answer:
                page = next(each for each in json.loads(answer.read()) if each["type"] == "page")
            tab = Tab(await websocket_connect(page["webSocketDebuggerUrl"], max_message_size=64 << 20))
            for domain in ("Page", "Runtime", "Log", "Network"):
                await tab.call(f"{domain}.enable")
            try:
                yield tab
            finally:
                await tab.close()
        finally:
            process.terminate()
            process.wait(20)
