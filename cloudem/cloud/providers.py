"""Providers by name."""

from __future__ import annotations

from cloudem.cloud.provider import Provider
from cloudem.errors import ParameterError

NAMES = ("local", "aws")

LOCAL = "local"
"""Region of the local provider."""


def provider_of(name: str, region: str) -> Provider:
    """Return the provider of a name, for a region.

    Raises
    ------
    ParameterError
        There is none of that name.
    """
    if name == "local":
        from cloudem.cloud.local.provider import LocalProvider

        return LocalProvider()
    if name == "aws":
        from cloudem.cloud.aws.provider import AWSProvider

        return AWSProvider(region)
    raise ParameterError(f"there is no provider {name!r}; providers are {', '.join(NAMES)}")


def provider_name(region: str) -> str:
    """Return which provider has a region."""
    return LOCAL if region == LOCAL else "aws"
