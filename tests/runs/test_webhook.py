"""Messages to a webhook: retried where that helps, and never telling anybody the URL."""

from __future__ import annotations

import pickle
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloudem.errors import ParameterError
from cloudem.runs import webhook as module
from cloudem.runs.webhook import LARGEST_URL, PAUSES_S, WEBHOOK, WEBHOOK_FILE, Webhook, taken_webhook
from tests.runs.hooks import TOKEN, Hook


@pytest.fixture
def hook() -> Iterator[Hook]:
    with Hook() as made:
        yield made


def test_a_message_arrives(hook: Hook) -> None:
    assert Webhook(hook.url).deliver({"text": "3.1 Å", "n": 2}) == ""
    assert hook.got == [{"text": "3.1 Å", "n": 2}]


@pytest.mark.parametrize("code", [500, 503, 429])
def test_what_may_pass_is_tried_again_with_growing_pauses(hook: Hook, code: int) -> None:
    hook.answers, pauses = [code, code], list[float]()
    assert Webhook(hook.url).deliver({"text": "x"}, pauses.append) == ""
    assert len(hook.got) == 3
    assert pauses == list(PAUSES_S[:2])
    hook.answers = [code] * 10
    assert Webhook(hook.url).deliver({"text": "x"}, lambda s: None) == f"it answered {code}"
    assert len(hook.got) == 3 + 1 + len(PAUSES_S)


@pytest.mark.parametrize("code", [400, 403, 404, 410])
def test_what_will_not_pass_is_not(hook: Hook, code: int) -> None:
    hook.answers = [code] * 10
    assert Webhook(hook.url).deliver({"text": "x"}, lambda s: None) == f"it answered {code}"
    assert len(hook.got) == 1


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed(hook: Hook, code: int) -> None:
    hook.answers = [code]
    assert Webhook(hook.url).deliver({"text": "x"}, lambda s: None) == f"it answered {code}"
    assert hook.others == []


def test_who_is_silent_is_not_waited_for(hook: Hook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWER_S", 0.2)
    hook.silent_s = 1.0
    assert Webhook(hook.url).deliver({"text": "x"}, lambda s: None) == "it did not answer within 0 s"
    assert len(hook.got) == 1 + len(PAUSES_S)


def test_of_a_long_answer_little_is_read(hook: Hook) -> None:
    hook.body = b"x" * (64 << 20)
    assert Webhook(hook.url).deliver({"text": "x"}) == ""


def test_nobody_there_is_told_without_the_url() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    problem = Webhook(f"http://127.0.0.1:{port}/{TOKEN}").deliver({"text": "x"}, lambda s: None)
    assert problem == "it could not be reached (ConnectionRefusedError)"


def test_a_loopback_webhook_never_goes_through_a_proxy(hook: Hook, monkeypatch: pytest.MonkeyPatch) -> None:
    with Hook() as proxy:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
        monkeypatch.delenv("no_proxy", raising=False)
        assert Webhook(hook.url).deliver({"text": "x"}) == ""
        assert (len(hook.got), proxy.others, proxy.got) == (1, [], [])


BAD = [
    "http://hooks.example/" + TOKEN,
    "ftp://127.0.0.1/" + TOKEN,
    "file:///etc/" + TOKEN,
    "https://user:word@hooks.example/" + TOKEN,
    "https:///" + TOKEN,
    "https://hooks.example:99999/" + TOKEN,
    "https://hooks.example/\r\nHost: " + TOKEN,
    "https://hooks.example/ " + TOKEN,
    "https://[::1/" + TOKEN,
    "http://127.0.0.1.hooks.example/" + TOKEN,
    "https://hooks.example/" + TOKEN * LARGEST_URL,
    TOKEN,
]


@pytest.mark.parametrize("url", BAD)
def test_no_other_url_is_taken_and_none_is_shown(url: str) -> None:
    with pytest.raises(ParameterError) as caught:
        Webhook(url)
    assert TOKEN not in str(caught.value)
    assert "hooks" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    "url", ["https://hooks.example/x", "http://localhost:8/x", "http://[::1]/x", "http://127.9.9.9/"]
)
def test_https_and_the_loopback_are_taken(url: str) -> None:
    assert taken_webhook({WEBHOOK: f" {url}\n"}) == url.encode()


def test_the_object_shows_nothing() -> None:
    made = Webhook(f"https://hooks.example/{TOKEN}")
    assert TOKEN not in f"{made} {made!r}"
    with pytest.raises(TypeError, match="secret"):
        pickle.dumps(made)


def test_the_environment_loses_it(tmp_path: Path) -> None:
    file = tmp_path / "hook"
    file.write_text(f"https://hooks.example/{TOKEN}\n")
    given = {WEBHOOK_FILE: str(file), "HOME": "/"}
    assert taken_webhook(given) == f"https://hooks.example/{TOKEN}".encode()
    assert given == {"HOME": "/"}
    assert taken_webhook(given) is None
    with pytest.raises(ParameterError, match="cannot be read: FileNotFoundError"):
        taken_webhook({WEBHOOK_FILE: str(tmp_path / "none")})
    file.write_text("\n")
    with pytest.raises(ParameterError, match="empty file"):
        taken_webhook({WEBHOOK_FILE: str(file)})
