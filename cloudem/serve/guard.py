"""What every request has to pass before anything is read, at each port that ``cloudem serve`` listens at."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import tornado.web

from cloudem.serve.access import HEADERS, Access

DEFAULT_PORTS = {"http": 80, "https": 443}


class Guarded(tornado.web.RequestHandler):
    """A request that is allowed, or refused before anything is read."""

    SUPPORTED_METHODS: tuple[str, ...] = ("GET", "HEAD")
    open_to_all = False
    """Whether it may be read without the token."""

    access: Access
    secure: bool
    """Whether browsers reach it by TLS: then they send the cookie by nothing else."""

    def set_default_headers(self) -> None:
        """Say what the page may load, and that nobody keeps it."""
        for name, value in HEADERS.items():
            self.set_header(name, value)

    def prepare(self) -> None:
        """Refuse foreign names and those without the token; exchange the token in an address for a cookie."""
        if not self.access.knows_host(self.request.host):
            raise tornado.web.HTTPError(403, reason="Unknown host")
        if self.open_to_all:
            return
        given = self.get_query_argument("token", "")
        if given and self.access.has_token(given):
            name, value = self.access.cookie_name, self.access.cookie
            self.set_cookie(name, value, path="/", httponly=True, samesite="Strict", secure=self.secure)
            # relative, since a proxy may show this under another path, and never "//host", which is another server
            self.redirect(f"./{self.request.path.rpartition('/')[2]}", status=303)
            return
        cookie = self.get_cookie(self.access.cookie_name) or ""
        if not self.access.allows(self.request.headers.get("Authorization", ""), cookie):
            self.set_status(401)
            self.finish(self.refused())

    def refused(self) -> str:
        """Return what is said to whoever has no token."""
        raise NotImplementedError


def unlogged(_: tornado.web.RequestHandler) -> None:
    """Requests are not logged: addresses may hold a token."""


WRITING = "X-Cloudem"
"""Header of a request that writes: a page elsewhere cannot send one without being asked whether it may, which it is
refused."""


def may_write(headers: Any, access: Access) -> bool:
    """Tell whether a request that was let in may write, too.

    The cookie alone is not enough: browsers send it for every page of the same host, whatever the port. So the request
    has to come from a page of this very server and say so, or have the token itself.
    """
    kind, _, secret = headers.get("Authorization", "").partition(" ")
    if kind.lower() in ("token", "bearer") and access.has_token(secret.strip()):
        return True
    return headers.get("Origin") is not None and same_origin(headers) and WRITING in headers


def same_origin(headers: Any) -> bool:
    """Tell whether a page that opens a websocket came from this server; browsers themselves let every page try.

    Parameters
    ----------
    headers
        Of the request. Programs send no ``Origin``, browsers always do. That of a page which may be anybody's is
        ``null``. The port matters here, unlike for cookies: another user's server may have the same host name. The
        scheme does not, since whoever encrypts may stand in front.
    """
    origin = headers.get("Origin")
    if origin is None:
        return True
    try:
        here, there = urlsplit(f"//{headers.get('Host', '')}"), urlsplit(origin)
        usual = DEFAULT_PORTS[there.scheme]
        return here.hostname is not None and (here.hostname, here.port or usual) == (
            there.hostname,
            there.port or usual,
        )
    except (ValueError, KeyError):
        return False
