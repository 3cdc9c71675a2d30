"""Sending a message to a webhook: a URL that is itself a secret, such as Slack's incoming webhooks.

Whoever knows the URL can write into the channel. It is therefore in no log, error, record or representation of an
object: failures are told by the number of an answer or the kind of an error, never in words that came from elsewhere.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from cloudem.errors import ParameterError

WEBHOOK = "CLOUDEM_WEBHOOK"
"""Environment variable that holds the URL."""

WEBHOOK_FILE = "CLOUDEM_WEBHOOK_FILE"
"""Environment variable that names a file that holds the URL."""

WEBHOOK_SECRET = "webhook"  # noqa: S105 - its name
"""Name of the secret of a run with which its controller gets the URL."""

ANSWER_S = 5.0
"""How long the webhook may be silent, seconds: while it is connected to, and while it answers."""

PAUSES_S: Sequence[float] = (1.0, 4.0, 16.0)
"""Pauses before a message is tried again, seconds."""

LARGEST_ANSWER = 4096
"""Bytes of an answer that are read; they are not looked at."""

LARGEST_URL = 2000
"""Characters of the longest URL; more may not fit into a secret."""


class Webhook:
    """Where messages go.

    Parameters
    ----------
    url
        ``https://…``; ``http://…`` only on this computer's loopback.

    Raises
    ------
    ParameterError
        It is no such URL; the message does not show it.
    """

    __slots__ = ("_opener", "_url")

    def __init__(self, url: str) -> None:
        plain = _checked(url)
        # of the loopback no proxy must hear: what is not encrypted would be read there
        proxies = [urllib.request.ProxyHandler({})] if plain else []
        self._url, self._opener = url, urllib.request.build_opener(_Stay(), *proxies)

    def __repr__(self) -> str:
        """Return what it is, not where."""
        return "Webhook(…)"

    def __reduce__(self) -> Any:
        """Refuse to be copied into anything."""
        raise TypeError("a webhook is not pickled: its URL is a secret")

    def deliver(self, message: Mapping[str, Any], pause: Callable[[float], object] = time.sleep) -> str:
        """Send a message, several times where that may help; return why it did not arrive, or an empty text.

        What is tried again after a lost answer may arrive twice.

        Parameters
        ----------
        message
            Ready for JSON.
        pause
            Waits for so many seconds.
        """
        body = json.dumps(message).encode()
        for wait_s in (*PAUSES_S, None):
            problem, worth = self._post(body)
            if not (problem and worth) or wait_s is None:
                break
            pause(wait_s)
        return problem

    def _post(self, body: bytes) -> tuple[str, bool]:
        """Send once; return what went wrong, and whether trying again may help."""
        headers = {"Content-Type": "application/json", "User-Agent": "cloudem"}
        try:
            request = urllib.request.Request(self._url, body, headers, method="POST")  # noqa: S310 - checked before
            with self._opener.open(request, timeout=ANSWER_S) as answer:
                answer.read(LARGEST_ANSWER)
        except urllib.error.HTTPError as error:
            error.close()
            again = error.code == http.client.TOO_MANY_REQUESTS or error.code >= http.client.INTERNAL_SERVER_ERROR
            return f"it answered {error.code:d}", again
        except TimeoutError:
            return f"it did not answer within {ANSWER_S:.0f} s", True
        except urllib.error.URLError as error:
            if isinstance(error.reason, TimeoutError):
                return f"it did not answer within {ANSWER_S:.0f} s", True
            return f"it could not be reached ({type(error.reason).__name__})", True
        except Exception as error:  # whatever it says may hold the URL
            return f"sending failed ({type(error).__name__})", isinstance(error, OSError | http.client.HTTPException)
        return "", False


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: nobody but the given server is to hear anything."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> None:
        """Refuse."""


def taken_webhook(environment: MutableMapping[str, str] = os.environ) -> bytes | None:
    """Return the URL that the environment gives, and take it out of there, so that no other process inherits it.

    Raises
    ------
    ParameterError
        It is no URL of a webhook, or its file cannot be read; the message does not show it.
    """
    url, file = environment.pop(WEBHOOK, "").strip(), environment.pop(WEBHOOK_FILE, "")
    if not url and file:
        try:
            with Path(file).open(encoding="utf-8") as opened:
                url = opened.read(LARGEST_URL + 2).strip()
        except (OSError, ValueError) as error:
            raise ParameterError(f"{WEBHOOK_FILE} cannot be read: {type(error).__name__}") from None
        if not url:
            raise ParameterError(f"{WEBHOOK_FILE} names an empty file; write the webhook's URL into it")
    if not url:
        return None
    Webhook(url)
    return url.encode()


def _checked(url: str) -> bool:
    """Return whether messages to a URL go unencrypted, as they may on the loopback."""
    wrong = ParameterError(f"{WEBHOOK} is no https:// URL of a webhook (http:// is allowed on 127.0.0.1 only)")
    if len(url) > LARGEST_URL or not url.isascii() or not url.isprintable() or " " in url:
        raise wrong
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        raise wrong from None
    if not host or parts.username is not None or parts.password is not None:
        raise wrong
    if parts.scheme == "http" and only_here(host):
        return True
    if parts.scheme != "https":
        raise wrong
    return False


def only_here(host: str) -> bool:
    """Return whether only this machine can be meant by an address, or by ``localhost``; no name is looked up."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
