"""What a rented machine can ask about itself: the metadata service that every machine of the cloud reaches.

Version 2 of the protocol alone (IMDSv2): first a token by PUT, then questions that carry it. The service is at
169.254.169.254, or where ``AWS_EC2_METADATA_SERVICE_ENDPOINT`` says. Source: Amazon EC2 User Guide, "Instance metadata
and user data", "Spot Instance interruption notices", "Rebalance recommendations".
"""

from __future__ import annotations

import calendar
import http.client
import json
import os
import time
import urllib.error
import urllib.request
from typing import Any

from cloudem.errors import ProviderError, parsing, shown

ENDPOINT = "AWS_EC2_METADATA_SERVICE_ENDPOINT"
"""Environment variable with the address of the service; boto knows it as well."""

STANDARD = "http://169.254.169.254"

TOKEN_S = 6 * 3600
"""How long a token is asked for, seconds: the most there is."""

_LAUNCH_AGAIN = "launch it again with this version of cloudem"
_TOKEN, _LIFE = "X-aws-ec2-metadata-token", "X-aws-ec2-metadata-token-ttl-seconds"


class Metadata:
    """Questions to the metadata service of this machine.

    Parameters
    ----------
    endpoint
        Address of the service; by default the one that the environment names, or the standard one.
    timeout_s
        How long to wait for an answer, seconds; each question is asked twice.
    """

    def __init__(self, endpoint: str | None = None, timeout_s: float = 1.0) -> None:
        self._endpoint = (endpoint or os.environ.get(ENDPOINT) or STANDARD).rstrip("/")
        self._timeout_s = timeout_s
        self._token, self._until = "", 0.0
        # A proxy would answer for its own machine, or not at all.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def get(self, path: str) -> str | None:
        """Return what the service says under a path such as ``meta-data/instance-id``; None where there is nothing.

        Raises
        ------
        ProviderError
            It does not answer, or refuses.
        """
        for last in (False, True):
            try:
                return self._ask("GET", path, {_TOKEN: self._current_token()})
            except urllib.error.HTTPError as error:
                if error.code == 404:
                    return None
                self._until = 0.0  # 401: the token has expired
                reason = f"{error.code} {error.reason}"
            except (OSError, http.client.HTTPException) as error:
                reason = str(error)
            if last:
                break
        raise ProviderError(
            f"the metadata service at {self._endpoint} gave no answer for {path} ({reason}); is this a rented machine?"
        )

    def instance_id(self) -> str:
        """Return this machine's name at its provider."""
        return self._needed("meta-data/instance-id")

    def instance_type(self) -> str:
        """Return what kind of machine this is."""
        return self._needed("meta-data/instance-type")

    def zone(self) -> str:
        """Return the zone in which this machine is."""
        return self._needed("meta-data/placement/availability-zone")

    def address(self) -> str:
        """Return the address at which the other machines of the cluster reach this one."""
        return self._needed("meta-data/local-ipv4")

    def tag(self, key: str) -> str | None:
        """Return a tag of this machine; None where it has none, or may not know them."""
        return self.get(f"meta-data/tags/instance/{key}")

    def start(self) -> dict[str, Any]:
        """Return what this machine was told to do at its start (`cloudem.cloud.nodes.Request.start`).

        Raises
        ------
        ProviderError
            There is no answer, or it is no JSON object.
        """
        given = self._needed("user-data")
        with parsing(
            "this machine's user-data is not the JSON object that cloudem gives to its nodes",
            _LAUNCH_AGAIN,
            ProviderError,
        ):
            document = json.loads(given.removeprefix("#cloud-config\n"))
            if isinstance(document, dict) and "write_files" in document:  # in a frame for cloud-init (aws_template.py)
                document = json.loads(document["write_files"][0]["content"])
            if not isinstance(document, dict):
                raise ValueError("no JSON object")
            return document

    def interruption(self) -> float | None:
        """Return when this machine will be taken, unix seconds; None while nobody wants it."""
        return self._time_in("meta-data/spot/instance-action", "time")

    def rebalance(self) -> float | None:
        """Return since when this machine is likely to be taken soon, unix seconds; None while it is not."""
        return self._time_in("meta-data/events/recommendations/rebalance", "noticeTime")

    def _needed(self, path: str) -> str:
        found = self.get(path)
        if found is None:
            raise ProviderError(f"the metadata service at {self._endpoint} knows no {path}")
        return found

    def _time_in(self, path: str, key: str) -> float | None:
        found = self.get(path)
        if found is None:
            return None
        said = f"the metadata service says {shown(found)} under {path}, in which there is no {key}"
        with parsing(said, _LAUNCH_AGAIN, ProviderError):
            return unix_time(json.loads(found)[key])

    def _current_token(self) -> str:
        if time.monotonic() >= self._until:
            self._token = self._ask("PUT", "api/token", {_LIFE: str(TOKEN_S)})
            self._until = time.monotonic() + TOKEN_S - 60
        return self._token

    def _ask(self, method: str, path: str, headers: dict[str, str]) -> str:
        address = f"{self._endpoint}/latest/{path}"
        request = urllib.request.Request(address, method=method, headers=headers)  # noqa: S310  http by its nature
        with self._opener.open(request, timeout=self._timeout_s) as answer:
            said: bytes = answer.read()
        return said.decode()


def unix_time(text: str) -> float:
    """Return the unix seconds of a time such as ``2026-11-21T06:13:00Z``."""
    return float(calendar.timegm(time.strptime(text, "%Y-%m-%dT%H:%M:%SZ")))


def utc_text(unix: float) -> str:
    """Return a time as the service writes it; fractions of a second are dropped."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(unix))
