"""Access to S3, found as the AWS tools find it.

Keys come from the environment, a profile or the machine's role; the endpoint from ``AWS_ENDPOINT_URL_S3``,
``AWS_ENDPOINT_URL`` or the profile. Each process finds its own: stores hold keys, and are neither pickled nor shown.
"""

import platform
import re
import threading
from collections.abc import Mapping
from contextlib import closing
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from cloudem.errors import ParameterError, StorageError

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

SCHEME = "s3://"

_CLIENT: "ClientConfig" = {"connect_timeout": "5s", "read_timeout": "3min", "timeout": "10min"}
_RETRY: "RetryConfig" = {
    "max_retries": 1000,  # the time is what counts
    "retry_timeout": timedelta(minutes=2),
    "backoff": {"init_backoff": timedelta(milliseconds=200), "max_backoff": timedelta(seconds=5), "base": 3},
}
# What must not be written late: a lease, and what it protects.
_PROMPT_CLIENT: "ClientConfig" = {"connect_timeout": "4s", "timeout": "8s"}
_PROMPT_RETRY: "RetryConfig" = {**_RETRY, "retry_timeout": timedelta(seconds=10)}
# The first request to a server: whoever mistyped its address shall not wait for minutes.
_FIRST_CLIENT: "ClientConfig" = {"connect_timeout": "3s", "timeout": "4s"}
_FIRST_RETRY: "RetryConfig" = {**_RETRY, "max_retries": 1}

_CREDENTIALS_S = 300
"""Keys are asked for again after so long; those of a machine's role are good for at least ten minutes then."""

_lock = threading.Lock()
_buckets: dict[str, Mapping[str, Any]] = {}
_opened: dict[tuple[str, bool], S3Store] = {}

_REASONS = {
    "NoSuchBucket": "there is no such bucket at {endpoint}; make it first, or check name and endpoint",
    "InvalidAccessKeyId": "{endpoint} does not know the access key; check AWS_ACCESS_KEY_ID or the profile",
    "SignatureDoesNotMatch": "{endpoint} refuses the secret key; check AWS_SECRET_ACCESS_KEY or the profile",
    "ExpiredToken": "the credentials have expired; log in again",
    "RequestTimeTooSkewed": "this machine's clock differs from that of {endpoint}; set the clock",
    "PermanentRedirect|AuthorizationHeaderMalformed": "the bucket is in another region; set AWS_DEFAULT_REGION to it",
    "QuotaExceeded|InsufficientCapacity|507 Insufficient": "{endpoint} has no room left; free some, or ask for more",
    "error sending request|operation timed out|dns error": (
        "{endpoint} cannot be reached; check AWS_ENDPOINT_URL_S3 and the network"
    ),
    "AccessDenied|403 Forbidden|Unauthenticated": "{endpoint} denies access; these credentials lack the permission",
}
"""What an object store's error says (a regular expression) -> what is wrong and what to try; the first that fits."""


def open_store(url: str, *, prompt: bool = False) -> S3Store:
    """Open the store under an ``s3://`` URL; one for each URL in a process.

    Parameters
    ----------
    url
        Absolute, see `cloudem.io.storage.location.absolute`.
    prompt
        Whether requests end within 20 s, instead of being repeated for two minutes.

    Raises
    ------
    StorageError
        No boto3, no credentials, refused credentials, no such bucket, or its server cannot be reached.
    """
    bucket, prefix = bucket_and_prefix(url)
    with _lock:
        found, access = _opened.get((url, prompt)), _buckets.get(bucket)
    if found is not None:
        return found
    if access is None:  # asked without the lock: a server that does not answer holds up nobody who uses another
        access = _access(url)
        try:
            _ask(_connect(bucket, prefix, access, _FIRST_CLIENT, _FIRST_RETRY))
        except (OSError, BaseError) as error:
            raise StorageError(f"{url}: {what_is_wrong(error)}") from error
    settings = (_PROMPT_CLIENT, _PROMPT_RETRY) if prompt else (_CLIENT, _RETRY)
    with _lock:
        access = _buckets.setdefault(bucket, access)
        if (url, prompt) not in _opened:
            _opened[url, prompt] = _connect(bucket, prefix, access, *settings)
        return _opened[url, prompt]


def bucket_and_prefix(url: str) -> tuple[str, str]:
    """Take an ``s3://`` URL apart.

    Raises
    ------
    ParameterError
        It names no bucket, or holds keys, or a prefix with ``..`` in it.
    """
    bucket, _, prefix = url.removeprefix(SCHEME).partition("/")
    if "@" in bucket:  # somebody's keys, which no message may show
        raise ParameterError("an s3:// URL holds no keys; give them in the environment or in a profile")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{2,254}", bucket):
        raise ParameterError(f"{url} names no bucket; give s3://bucket/prefix")
    parts = [part for part in prefix.split("/") if part]
    if "." in parts or ".." in parts:
        raise ParameterError(f"{url}: a prefix has no . or .. in it")
    return bucket, "/".join(parts)


def what_is_wrong(error: BaseException) -> str:
    """Return what an error of the store means and what to try, or else its first line."""
    return _reason(error) or _first_line(error)[:300]


def _connect(
    bucket: str, prefix: str, access: Mapping[str, Any], client: "ClientConfig", retry: "RetryConfig"
) -> S3Store:
    client = {**client, "allow_http": str(access["endpoint"]).startswith("http://")}
    return S3Store(bucket, prefix=prefix or None, client_options=client, retry_config=retry, **access)


def _access(url: str) -> dict[str, Any]:
    """Return what a store needs to know of endpoint, region and credentials."""
    try:
        import boto3
        from botocore.exceptions import BotoCoreError
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError as error:
        raise StorageError(f"{url} needs boto3, which is not installed; pip install 'cloudem[aws]'") from error
    try:
        session = boto3.Session()
        if session.get_credentials() is None:
            raise StorageError(
                f"{url}: no AWS credentials were found on {platform.node()}; set AWS_ACCESS_KEY_ID and"
                " AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, where cloudem starts there"
            )
        with closing(session.client("s3", region_name=session.region_name or "us-east-1")) as client:
            endpoint, region = client.meta.endpoint_url, client.meta.region_name
        provider = Boto3CredentialProvider(session, ttl=timedelta(seconds=_CREDENTIALS_S))
    except (BotoCoreError, ValueError) as error:  # no such profile; an endpoint that is no URL
        raise StorageError(f"{url}: {_first_line(error)}") from error
    return {
        "endpoint": endpoint,
        "region": region,
        "virtual_hosted_style_request": False,
        "credential_provider": provider,
    }


def _ask(store: S3Store) -> None:
    """Ask for an object that need not be there; raise if the answer says that nothing will work."""
    try:
        obstore.get(store, "zarr.json")
    except (OSError, BaseError) as error:
        text = str(error)
        if "NoSuchKey" in text or "AccessDenied" in text or _reason(error) is None:
            return
        raise


def _reason(error: BaseException) -> str | None:
    text = _without_keys(str(error))
    endpoint = re.search(r"https?://[^/\s]+", text)
    for pattern, advice in _REASONS.items():
        if re.search(pattern, text):
            return advice.format(endpoint=endpoint[0] if endpoint else "the server")
    return None


def _first_line(error: BaseException) -> str:
    return (_without_keys(str(error)).splitlines() or [type(error).__name__])[0]


def _without_keys(text: str) -> str:
    """Take out what a URL may hold before its host."""
    return re.sub(r"://[^/\s]*@", "://", text)
