"""The metadata service that machines have, and its client."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloudem.cloud.local.machine import Service, write
from cloudem.cloud.metadata import ENDPOINT, Metadata, unix_time, utc_text
from cloudem.errors import ProviderError

NODE: dict[str, Any] = {
    "id": "local-0123",
    "request": {"start": '{"cloudem": 1, "slot": "worker-0007"}'},
    "pool": ["local.1", "local-a", "spot"],
    "address": "10.97.1.2",
    "tags": {"owner": "somebody", "slot": "worker-0007"},
}

LIFE = "X-aws-ec2-metadata-token-ttl-seconds"
TOKEN = "X-aws-ec2-metadata-token"


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with Service(tmp_path, NODE) as running:
        yield running


def answer(service: Service, method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
    connection = http.client.HTTPConnection(service.endpoint.removeprefix("http://"), timeout=5)
    try:
        connection.request(method, f"/latest/{path}", headers=headers)
        found = connection.getresponse()
        return found.status, found.read().decode()
    finally:
        connection.close()


def test_a_machine_learns_what_it_is(service: Service) -> None:
    metadata = Metadata(service.endpoint)
    assert metadata.instance_id() == "local-0123"
    assert metadata.instance_type() == "local.1"
    assert metadata.zone() == "local-a"
    assert metadata.address() == "10.97.1.2"
    assert metadata.start() == {"cloudem": 1, "slot": "worker-0007"}
    assert metadata.tag("owner") == "somebody"
    assert metadata.tag("nobody") is None
    assert metadata.interruption() is None
    assert metadata.rebalance() is None


def test_notices_appear(service: Service, tmp_path: Path) -> None:
    metadata, taken = Metadata(service.endpoint), float(round(time.time()) + 120)
    write(tmp_path / "rebalance.json", {"at": taken - 120})
    assert metadata.rebalance() == taken - 120
    write(tmp_path / "interruption.json", {"at": taken})
    assert metadata.interruption() == taken
    assert json.loads(metadata.get("meta-data/spot/instance-action") or "") == {
        "action": "terminate",
        "time": utc_text(taken),
    }


def test_times_are_utc() -> None:
    assert utc_text(1_795_241_580.9) == "2026-11-21T06:13:00Z"
    assert unix_time("2026-11-21T06:13:00Z") == 1_795_241_580.0


def test_nothing_is_said_without_a_token(service: Service) -> None:
    status, token = answer(service, "PUT", "api/token", {LIFE: "60"})
    assert status == 200
    assert answer(service, "GET", "meta-data/instance-id", {TOKEN: token}) == (200, "local-0123")
    assert answer(service, "GET", "meta-data/instance-id", {}) == (401, "")
    assert answer(service, "GET", "meta-data/instance-id", {TOKEN: "made up"}) == (401, "")
    assert answer(service, "GET", "meta-data/nothing", {TOKEN: token}) == (404, "")


@pytest.mark.parametrize("life", ["", "0", "21601", "-1", "x"])
def test_a_token_has_a_life_of_at_most_six_hours(service: Service, life: str) -> None:
    assert answer(service, "PUT", "api/token", {LIFE: life})[0] == 400


def test_tokens_are_not_for_those_behind_a_proxy(service: Service) -> None:
    assert answer(service, "PUT", "api/token", {LIFE: "60", "X-Forwarded-For": "10.0.0.1"})[0] == 403
    assert answer(service, "PUT", "api/other", {LIFE: "60"})[0] == 404


def test_an_expired_token_is_replaced(service: Service) -> None:
    metadata = Metadata(service.endpoint)
    assert metadata.instance_id() == "local-0123"
    service.tokens.clear()
    assert metadata.instance_id() == "local-0123"
    (life,) = service.tokens.values()
    assert 21_500 < life - time.monotonic() <= 21_600


def test_boto_finds_it_where_the_environment_says(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    session = pytest.importorskip("botocore.session").get_session()
    utils = pytest.importorskip("botocore.utils")
    monkeypatch.setenv(ENDPOINT, service.endpoint)
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_EC2_METADATA_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    assert utils.IMDSRegionProvider(session).provide() == "local-"  # the zone without its letter
    assert Metadata().zone() == "local-a"


def test_proxies_are_not_asked(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{service.endpoint}/latest/user-data", timeout=1)
    assert Metadata(service.endpoint).instance_id() == "local-0123"


def test_where_there_is_no_service_that_is_said_soon() -> None:
    began = time.monotonic()
    with pytest.raises(
        ProviderError, match=r"http://127\.0\.0\.1:9 gave no answer for meta-data/instance-id"
    ) as caught:
        Metadata("http://127.0.0.1:9", timeout_s=0.5).instance_id()
    assert time.monotonic() - began < 2
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("given", ["no JSON", "[1]", "1", "#cloud-config\n{}x"])
def test_a_start_document_that_is_none_is_refused(tmp_path: Path, given: str) -> None:
    node = {**NODE, "request": {"start": given}}
    with Service(tmp_path, node) as service, pytest.raises(ProviderError, match="not the JSON object"):
        Metadata(service.endpoint).start()
