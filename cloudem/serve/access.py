"""Who may read the pages: a token, names of this server that are known, and what pages may load.

As Jupyter does it: whoever opens the address that ``cloudem serve`` prints has the token in it. It is exchanged for a
cookie that scripts cannot read and that other sites' pages cannot send, and the address in the browser is clean again.
Programs send ``Authorization: token …``. A ``Host`` that is not this server's is refused, so that a page elsewhere
cannot reach it by a name that it makes point here (DNS rebinding).
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from urllib.parse import urlsplit

from cloudem.errors import ParameterError
from cloudem.runs.webhook import only_here

LEAST_TOKEN = 16
"""Characters of a token that somebody chose."""

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self' 'unsafe-inline'",  # figures and tables carry their sizes as attributes
        "img-src 'self' data:",
        "connect-src 'self'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
    )
)
"""Nothing is loaded from elsewhere, no script stands in a page, and no page stands in a frame."""

HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Server": "cloudem",
}

LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Access:
    """What a request needs.

    Attributes
    ----------
    token
        The secret.
    hosts
        Names by which this server may be addressed, without ports.
    """

    token: str
    hosts: frozenset[str]

    @property
    def cookie(self) -> str:
        """Value of the cookie: it proves the token and does not contain it."""
        return hmac.new(self.token.encode(), b"cloudem serve cookie", hashlib.sha256).hexdigest()

    @property
    def cookie_name(self) -> str:
        """Cookies do not know ports: servers of several projects on one machine need names of their own."""
        return f"cloudem-{self.cookie[:8]}"

    def knows_host(self, host: str) -> bool:
        """Tell whether a request's ``Host`` is this server's; the port does not matter, since tunnels change it."""
        try:
            name = urlsplit(f"//{host}").hostname
        except ValueError:
            return False
        return name is not None and name.lower() in self.hosts

    def has_token(self, given: str) -> bool:
        """Tell whether this is the token, in a time that does not depend on where it differs."""
        return hmac.compare_digest(given.encode(), self.token.encode())

    def has_cookie(self, given: str) -> bool:
        """Tell whether this is the cookie."""
        return hmac.compare_digest(given.encode(), self.cookie.encode())

    def allows(self, authorization: str, cookie: str) -> bool:
        """Tell whether a request with these headers may read."""
        kind, _, secret = authorization.partition(" ")
        if kind.lower() in ("token", "bearer") and self.has_token(secret.strip()):
            return True
        return bool(cookie) and self.has_cookie(cookie)


def check_exposure(host: str, *, encrypted: bool, plain: bool) -> None:
    """Refuse to send token and maps over a network in the clear, unless that is asked for.

    Raises
    ------
    ParameterError
        Says what to do.
    """
    if not only_here(host) and not encrypted and not plain:
        raise ParameterError(
            f"--host {host} can be reached from other machines, and without TLS they can read along: give "
            "--certificate and --key, or --plain-http if a proxy in front encrypts. A tunnel needs no --host: "
            "ssh -L 8765:localhost:8765"
        )


def check_token(token: str) -> str:
    """Return a token that somebody chose, if it can be one.

    Raises
    ------
    ParameterError
        It is too short, or has characters that an address cannot hold.
    """
    if len(token) < LEAST_TOKEN or not all(one.isascii() and (one.isalnum() or one in "-._~") for one in token):
        raise ParameterError(
            f"the token has to be at least {LEAST_TOKEN} letters, digits or any of -._~ (it has {len(token)} "
            "characters); leave it out, and one is made"
        )
    return token
