"""What goes wrong between here and AWS is one line of cloudem's, and never a secret."""

import builtins
import io
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cloudem.cloud.aws.calls import Calls, clean, error_class
from cloudem.cloud.aws.provider import AWSProvider
from cloudem.cloud.nodes import Resource
from cloudem.errors import CapacityError, ProviderError, QuotaError, ThrottledError
from tests.cloud.aws.actions import FILE, actions
from tests.cloud.aws.listing import everything
from tests.cloud.aws.moto import REGION, Moto
from tests.cloud.aws.recorded import Recorded
from tests.cloud.aws.rising import up

Another = Callable[..., AWSProvider]


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("RequestLimitExceeded", ThrottledError),
        ("ThrottlingException", ThrottledError),
        ("TooManyRequestsException", ThrottledError),
        ("InsufficientInstanceCapacity", CapacityError),
        ("SpotMaxPriceTooLow", CapacityError),
        ("UnfulfillableCapacity", CapacityError),
        ("MaxSpotInstanceCountExceeded", QuotaError),
        ("VcpuLimitExceeded", QuotaError),
        ("InternalError", ProviderError),
        ("UnauthorizedOperation", ProviderError),
    ],
)
def test_codes(code: str, kind: type[ProviderError]) -> None:
    assert error_class(code) is kind


def test_messages_are_one_short_line_without_keys() -> None:
    said = "You are not\n authorized, AKIAIOSFODNN7EXAMPLE. Encoded authorization failure message: " + "x" * 900
    assert clean(said) == "You are not authorized, …"
    assert len(clean("word " * 200)) == 240


def test_a_call_that_is_throttled_is_repeated(account: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four times in all, as the client is set up, with growing pauses in between."""
    from botocore.awsrequest import AWSResponse

    monkeypatch.setattr("botocore.endpoint.time.sleep", lambda _: None)
    body = (
        b"<Response><Errors><Error><Code>RequestLimitExceeded</Code><Message>slow</Message></Error></Errors></Response>"
    )
    sent: list[int] = []
    refusing = 3

    def refuse(**_: Any) -> Any:
        sent.append(1)
        raw = io.BytesIO(body)
        raw.stream = lambda *_, **__: iter([body])  # type: ignore[attr-defined]
        return AWSResponse("http://refused", 503, {}, raw) if len(sent) <= refusing else None

    session = account.session()
    session.events.register("before-send.ec2.DescribeInstances", refuse)
    assert AWSProvider(REGION, session=session).nodes("one") == []
    assert len(sent) == 4
    sent.clear()
    refusing = 9
    with pytest.raises(ThrottledError, match=r"refused describe_instances in us-east-1 \(RequestLimitExceeded\): slow"):
        AWSProvider(REGION, session=session).nodes("one")
    assert len(sent) == 4


def test_secrets_are_in_no_error(account: Recorded) -> None:
    """Even where AWS quotes what it was given."""
    given: list[Any] = []

    def quote(parsed: dict[str, Any], model: Any, http_response: Any, **_: Any) -> None:
        http_response.status_code = 400
        parsed.update(Error={"Code": "ValidationException", "Message": f"Value {given[-1]['Value']!r} at 'value'"})

    session = account.session()
    session.events.register("provide-client-params.ssm.PutParameter", lambda params, **_: given.append(params))
    session.events.register("after-call.ssm.PutParameter", quote)
    with pytest.raises(ProviderError) as caught:
        AWSProvider(REGION, session=session).put_secret("one", "certificates", b"not to be seen")
    assert given[-1]["Value"] == "bm90IHRvIGJlIHNlZW4="
    assert str(caught.value) == "AWS refused put_parameter in us-east-1 (ValidationException)"
    assert caught.value.__cause__ is caught.value.__context__ is None, "nor in what led to it"


def test_secrets_are_in_nothing_that_is_kept(
    account: Recorded, another: Another, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        up(another(), "one")
    listed = json.dumps([sorted(items) for items in everything(account.moto).values()])
    ec2 = account.moto.client("ec2")
    templates = ec2.describe_launch_template_versions(LaunchTemplateName="cloudem-one")["LaunchTemplateVersions"]
    kept = listed + json.dumps(templates, default=str) + caplog.text + repr(another().resources())
    assert "cloudem-one" in kept
    for form in ("not to be seen", "bm90IHRvIGJlIHNlZW4"):
        assert form not in kept
    parameter = account.moto.client("ssm").describe_parameters()["Parameters"][0]
    assert (parameter["Name"], parameter["Type"]) == ("/cloudem/one/certificates", "SecureString")


def test_without_boto3(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: Any, **given: Any) -> Any:
        if name.partition(".")[0] in ("boto3", "botocore"):
            raise ImportError(name)
        return real(name, *rest, **given)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ProviderError, match=r"pip install 'cloudem\[aws\]'"):
        AWSProvider(REGION)


def test_without_credentials(account: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(ProviderError, match=r"NoCredentialsError: .*; sign in, or set AWS_PROFILE"):
        AWSProvider(REGION).nodes("one")
    with pytest.raises(ProviderError, match=r"nobody.*check ~/\.aws/config"):
        AWSProvider(REGION, "nobody")


def test_nobody_answers(monkeypatch: pytest.MonkeyPatch, account: Recorded) -> None:
    monkeypatch.setattr("botocore.endpoint.time.sleep", lambda _: None)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    said = r"did not do describe_instances in us-east-1 \(EndpointConnectionError"
    with pytest.raises(ProviderError, match=said) as caught:
        AWSProvider(REGION).nodes("one")
    assert len(str(caught.value).splitlines()) == 1


def test_calls_have_time_limits(account: Recorded) -> None:
    config = Calls(REGION)._client("ec2").meta.config
    assert (config.connect_timeout, config.read_timeout) == (5, 30)
    assert config.retries == {"mode": "standard", "total_max_attempts": 4}


def test_what_is_gone_may_be_removed_again(aws: AWSProvider) -> None:
    for kind, name in [
        *(("instance", "i-0123456789abcdef0"), ("volume", "vol-0123456789abcdef0")),
        *(("address", "eipalloc-0123456789abcdef0"), ("interface", "eni-0123456789abcdef0")),
        *(("launch-template", "lt-0123456789abcdef0"), ("security-group", "sg-0123456789abcdef0")),
        *(("parameter", "/cloudem/one/nothing"), ("log-group", "/cloudem/one/nothing")),
    ]:
        aws.remove(Resource(kind, name, "one"))
    with pytest.raises(ProviderError, match="no bucket data that could be removed"):
        aws.remove(Resource("bucket", "data", "one"))


def test_the_actions_are_those_that_are_listed(moto: Moto, account: Recorded) -> None:
    """``python -m tests.cloud.aws.actions`` writes the list; the policies of deploy/ are made from the same calls."""
    assert actions(account) == json.loads(Path(FILE).read_text())
