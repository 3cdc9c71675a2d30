"""``cloudem serve``: the pages of a project in the browser."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import ssl
import webbrowser
from typing import TYPE_CHECKING, ClassVar

import click

from cloudem.cli.declare import Command
from cloudem.errors import MissingInputError, ParameterError
from cloudem.jobs.parameters import parameter

if TYPE_CHECKING:
    from tornado.web import Application

    from cloudem.serve.access import Access
    from cloudem.serve.proxy import Dashboard

TOKEN_VARIABLE = "CLOUDEM_SERVE_TOKEN"  # noqa: S105  the name of a variable


class Serve(Command):
    """Serve the pages of a project."""

    name: ClassVar[str] = "serve"
    summary: ClassVar[str] = "Show jobs, maps, runs and costs of a project in the browser; read-only by default."
    examples: ClassVar[tuple[str, ...]] = (
        "cloudem serve my-project",
        "cloudem serve s3://bucket/project --port 9000 --no-browser",
        "cloudem serve my-project --host 0.0.0.0 --certificate cert.pem --key key.pem --allow-host em.example.org",
        "cloudem serve my-project --dask auto",
        "cloudem serve my-project --allow-writing     # classes that are clicked become a workflow file",
        "ssh -L 8765:localhost:8765 workstation cloudem serve my-project --port 8765   # from a laptop",
    )

    project: str = parameter(meaning="folder or s3:// URL that holds results and runs", positional=True)
    port: int = parameter(
        8765, meaning="port; the next free one is taken if it is in use, and any if 0", ge=0, le=65535
    )
    host: str = parameter("127.0.0.1", meaning="address to listen at; other machines reach none but this one's own")
    allow_host: tuple[str, ...] = parameter((), meaning="another name by which browsers address this server")
    certificate: str | None = parameter(None, meaning="certificate for TLS, PEM")
    key: str | None = parameter(None, meaning="its private key, PEM")
    plain_http: bool = parameter(False, meaning="serve other machines without TLS, as behind a proxy that encrypts")
    dask: str | None = parameter(
        None, meaning="show this Dask dashboard as well, such as http://127.0.0.1:8787, or 'auto' for this machine's"
    )
    dask_port: int = parameter(8766, meaning="port at which it is shown, or the next free one", ge=0, le=65535)
    allow_writing: bool = parameter(
        False, meaning="let pages write workflow files into the project, such as a selection of classes; nothing is run"
    )
    browser: bool = parameter(True, meaning="open the page in the browser, if there is one")

    def run(self) -> None:
        """Serve until interrupted."""
        from cloudem.serve.access import LOOPBACK, Access, check_exposure, check_token
        from cloudem.serve.choosing import check_writing
        from cloudem.serve.pages import Pages
        from cloudem.serve.server import application

        if (self.certificate is None) != (self.key is None):
            raise ParameterError("--certificate and --key go together: give both or neither")
        check_exposure(self.host, encrypted=self.certificate is not None, plain=self.plain_http)
        check_writing(self.project, self.host, self.allow_writing)
        given = os.environ.get(TOKEN_VARIABLE)
        token = check_token(given) if given else secrets.token_urlsafe(24)
        pages = Pages(self.project)
        pages.project()  # what is wrong with the project is said here, not in the browser
        names = frozenset(name.lower() for name in (*LOOPBACK, self.host, *self.allow_host))
        access = Access(token, names)
        encryption = self._encryption()
        app = application(pages, access, secure=encryption is not None, allow_writing=self.allow_writing)
        dashboard = self._dashboard(access, secure=encryption is not None)
        pages.dask = dashboard is not None
        asyncio.run(self._serve(app, dashboard, encryption, token))

    def _dashboard(self, access: Access, *, secure: bool) -> Dashboard | None:
        if self.dask is None:
            return None
        from cloudem.serve.proxy import Dashboard, Upstream, find_dashboard

        upstream = find_dashboard(self.project) if self.dask == "auto" else Upstream.of(self.dask)
        return Dashboard(upstream, access, secure=secure)

    def _encryption(self) -> ssl.SSLContext | None:
        if self.certificate is None:
            return None
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            context.load_cert_chain(self.certificate, self.key)
        except OSError as error:
            raise MissingInputError(
                f"--certificate {self.certificate} and --key {self.key} cannot be used together: {error}"
            ) from error
        return context

    async def _serve(
        self, app: Application, dashboard: Dashboard | None, encryption: ssl.SSLContext | None, token: str
    ) -> None:
        from cloudem.serve.server import listen_near

        server, port = listen_near(app, self.host, self.port, encryption)
        name = "localhost" if self.host in ("127.0.0.1", "0.0.0.0", "::1", "::") else self.host  # noqa: S104
        address = f"{'https' if encryption else 'http'}://{name}:{port}/?token={token}"
        may = "look, and write workflow files" if self.allow_writing else "look"
        until = f"until you press Ctrl-C. Whoever has this address can {may}."
        click.echo(f"{self.project} is shown at\n\n    {address}\n\n{until}")
        if dashboard is not None:
            self._serve_dask(app, dashboard, encryption, port)
        if self.browser and (os.environ.get("DISPLAY") or os.environ.get("BROWSER")):
            webbrowser.open(address)
        over = asyncio.Event()
        for each in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(each, over.set)
        await over.wait()
        server.stop()

    def _serve_dask(self, app: Application, dashboard: Dashboard, encryption: ssl.SSLContext | None, port: int) -> None:
        from cloudem.serve.proxy import dask_application, open_door
        from cloudem.serve.server import listen_near

        shown = dask_application(dashboard)
        _, dask_port = listen_near(shown, self.host, self.dask_port, encryption, option="--dask-port")
        open_door(app, dashboard, port, dask_port)
        tunnel = f"a tunnel has to pass it on as well: ssh -L {dask_port}:localhost:{dask_port}"
        click.echo(f"The Dask dashboard at {dashboard.upstream.origin} is shown at port {dask_port}; {tunnel}")
