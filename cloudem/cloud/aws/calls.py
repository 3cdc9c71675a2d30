"""Calls to AWS: clients with time limits, and its many errors as the few of cloudem, one line each.

What AWS says may quote what was sent, or an access key: messages are cut, keys are struck out, and of calls that carry
a secret only the error's code is told.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Collection, Iterator
from typing import Any

from cloudem.errors import CapacityError, ProviderError, QuotaError, ThrottledError

_THROTTLED = frozenset(
    {
        "BandwidthLimitExceeded",
        "EC2ThrottledException",
        "PriorRequestNotComplete",
        "RequestLimitExceeded",
        "RequestThrottled",
        "RequestThrottledException",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "ThrottledException",
        "TooManyRequestsException",
        "TooManyUpdates",
    }
)

_CAPACITY = frozenset(
    {
        "InsufficientCapacity",
        "InsufficientFreeAddressesInSubnet",  # another zone has a subnet of its own
        "InsufficientHostCapacity",
        "InsufficientInstanceCapacity",
        "InsufficientReservedInstanceCapacity",
        "NoSubnet",  # ours: the account's network does not reach into this zone
        "SpotMaxPriceTooLow",
        "UnfulfillableCapacity",
        "Unsupported",  # this type is not offered in this zone
    }
)

_QUOTA = frozenset(
    {
        "InstanceLimitExceeded",
        "MaxSpotInstanceCountExceeded",
        "SecurityGroupLimitExceeded",
        "VcpuLimitExceeded",
        "VolumeLimitExceeded",
        "ParameterLimitExceeded",
    }
)

_DENIED = ("UnauthorizedOperation", "AccessDenied", "AccessDeniedException")

_HINTS = {
    "AuthFailure": "check the credentials",
    "ExpiredToken": "sign in again",
    "ExpiredTokenException": "sign in again",
    "InvalidClientTokenId": "check the credentials",
    "OptInRequired": "enable the region in the account",
    "RequestExpired": "sign in again, or set the clock",
    "UnrecognizedClientException": "check the credentials",
    **dict.fromkeys(_DENIED, "the actions that are needed are listed in deploy/policies"),
}

_KEY = re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{12,}\b")
_MESSAGE = 240


_PAUSES_S = (0.5, 1.0, 2.0)


class NotKnownError(ProviderError):
    """AWS knows nothing of what a call is about: gone, or made so lately that not all of AWS has heard of it."""


def error_class(code: str) -> type[ProviderError]:
    """Return the class of cloudem's errors that an error code of AWS belongs to."""
    if code in _THROTTLED:
        return ThrottledError
    if code in _CAPACITY:
        return CapacityError
    if code in _QUOTA:
        return QuotaError
    return NotKnownError if "NotFound" in code else ProviderError


def clean(message: str) -> str:
    """Return a message of AWS as part of one line: without keys, and not longer than people read."""
    line = " ".join(message.split()).partition("Encoded authorization failure message")[0]
    line = _KEY.sub("…", line).rstrip(" .")
    return line if len(line) <= _MESSAGE else line[: _MESSAGE - 1] + "…"


class Calls:
    """Calls with the credentials of one profile in one region.

    Parameters
    ----------
    region
        Such as ``us-east-1``.
    profile
        Of the user's AWS configuration; None for the standard order of credentials.
    session
        A boto3 session instead of a new one.

    Raises
    ------
    ProviderError
        boto3 is not installed, or there is no such profile.
    """

    def __init__(self, region: str, profile: str | None = None, session: Any = None) -> None:
        try:
            import boto3
            from botocore.config import Config
            from botocore.exceptions import BotoCoreError
        except ImportError:
            raise ProviderError("AWS needs boto3, which is not installed; try: pip install 'cloudem[aws]'") from None
        self.region = region
        try:
            self._session = session or boto3.session.Session(profile_name=profile, region_name=region)
        except BotoCoreError as error:
            raise ProviderError(f"cannot use AWS: {clean(str(error))}; check ~/.aws/config") from None
        self._config = Config(
            connect_timeout=5,
            read_timeout=30,
            retries={"mode": "standard", "total_max_attempts": 4},
            user_agent_extra="cloudem",
        )
        self._clients: dict[str, Any] = {}
        self._lock = threading.Lock()  # sessions, unlike clients, are not safe to share between threads

    def call(
        self, service: str, operation: str, *, accept: Collection[str] = (), secret: bool = False, **given: Any
    ) -> Any:
        """Call an operation; return its answer, or None for an error whose code is accepted.

        Parameters
        ----------
        service, operation
            As boto3 names them: ``ec2``, ``create_fleet``.
        accept
            Error codes that are an answer, too; ``NotFound`` stands for all codes in which it occurs.
        secret
            Whether the call carries a secret: nothing of AWS's message is repeated.
        given
            The operation's parameters.

        Raises
        ------
        ProviderError
            Or one of its subclasses, from the code.
        """
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return getattr(self._client(service), operation)(**given)
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", "unknown"))
            if code in accept or ("NotFound" in accept and "NotFound" in code):
                return None
            message = "" if secret else str(error.response.get("Error", {}).get("Message", ""))
        except BotoCoreError as error:
            # A parameter that botocore refuses is quoted by it, an endpoint that did not answer is not a secret.
            name = type(error).__name__
            said = name if secret else f"{name}: {clean(str(error))}"
            hint = "sign in, or set AWS_PROFILE" if "Credential" in name or "Token" in name else "the same may be tried"
            raise ProviderError(f"AWS did not do {operation} in {self.region} ({said}); {hint}") from None
        hint = _HINTS.get(code, "")
        raise error_class(code)(
            f"AWS refused {operation} in {self.region} ({code})"
            + (f": {clean(message)}" if message else "")
            + (f"; {hint}" if hint else "")
        )

    def call_on_new(self, service: str, operation: str, **given: Any) -> Any:
        """Call an operation on what was made a moment ago; again, for some seconds, while AWS does not know of it."""
        for pause_s in _PAUSES_S:
            try:
                return self.call(service, operation, **given)
            except NotKnownError:
                time.sleep(pause_s)
        return self.call(service, operation, **given)

    def pages(self, service: str, operation: str, key: str, **given: Any) -> Iterator[Any]:
        """Yield what an operation lists under ``key``, page after page."""
        name = "nextToken" if service == "logs" else "NextToken"
        while True:
            answer = self.call(service, operation, **given)
            yield from answer.get(key, ())
            if not answer.get(name):
                return
            given[name] = answer[name]

    def _client(self, service: str) -> Any:
        with self._lock:
            if service not in self._clients:
                self._clients[service] = self._session.client(service, region_name=self.region, config=self._config)
            return self._clients[service]
