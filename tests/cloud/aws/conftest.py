"""An account in which a stack and an image were made, for each test anew."""

from collections.abc import Callable

import pytest

from cloudem.cloud.aws.provider import AWSProvider
from tests.cloud.aws.moto import REGION, Moto
from tests.cloud.aws.recorded import Recorded

Another = Callable[..., AWSProvider]


@pytest.fixture
def account(moto: Moto, monkeypatch: pytest.MonkeyPatch) -> Recorded:
    """An account of its own, without clusters."""
    for name, value in moto.environment.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    moto.reset()
    return Recorded(moto)


@pytest.fixture
def another(account: Recorded) -> Another:
    """Makes providers for that account, whose subnets give public addresses unless they are told not to."""
    session = account.session()
    make, made = session.client, {}

    def client(service: str, **given: object) -> object:
        if service not in made:
            made[service] = make(service, **given)
        return made[service]

    session.client = client  # providers know nothing of each other but the connection, which takes a while to make
    return lambda **given: AWSProvider(REGION, session=session, **{"public_addresses": False, **given})


@pytest.fixture
def aws(another: Another) -> AWSProvider:
    return another()
