"""Nobody reads without the token, under a foreign name, or over an open network by mistake."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudem.errors import ParameterError
from cloudem.serve.access import LOOPBACK, POLICY, Access, check_exposure, check_token

ACCESS = Access("a-token-of-some-length", frozenset(LOOPBACK))


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8765", "127.0.0.1:1", "[::1]:8765", "127.0.0.1"])
def test_its_own_names_are_known_at_any_port(host: str) -> None:
    assert ACCESS.knows_host(host)


@pytest.mark.parametrize("host", ["evil.example:8765", "localhost.evil.example", "", "[", "127.0.0.1.x"])
def test_foreign_names_are_not(host: str) -> None:
    assert not ACCESS.knows_host(host)


@given(st.text(max_size=60))
def test_no_other_text_is_the_token_or_the_cookie(text: str) -> None:
    assert ACCESS.has_token(text) == (text == ACCESS.token)
    assert ACCESS.has_cookie(text) == (text == ACCESS.cookie)
    assert not ACCESS.allows(text, "")


def test_programs_and_browsers_may_read() -> None:
    assert ACCESS.allows(f"token {ACCESS.token}", "")
    assert ACCESS.allows(f"Bearer {ACCESS.token}", "")
    assert ACCESS.allows("", ACCESS.cookie)
    assert not ACCESS.allows(f"Basic {ACCESS.token}", "")
    assert not ACCESS.allows("", "")
    assert not ACCESS.allows("token ", "")


def test_the_cookie_does_not_give_the_token_away() -> None:
    assert ACCESS.token not in ACCESS.cookie
    assert Access("another-token-of-length", ACCESS.hosts).cookie != ACCESS.cookie


@pytest.mark.parametrize(("host", "encrypted", "plain"), [("127.0.0.1", False, False), ("::1", False, False),
                         ("localhost", False, False), ("0.0.0.0", True, False), ("10.0.0.7", False, True)])  # fmt: skip
def test_what_others_cannot_read_along_is_served(host: str, encrypted: bool, plain: bool) -> None:
    check_exposure(host, encrypted=encrypted, plain=plain)


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.7", "em.example.org", "::"])
def test_other_machines_need_encryption(host: str) -> None:
    with pytest.raises(ParameterError, match="--certificate"):
        check_exposure(host, encrypted=False, plain=False)


@pytest.mark.parametrize("token", ["short", "with spaces in it, quite long", "ünïcode-token-long-enough", ""])
def test_weak_or_awkward_tokens_are_refused(token: str) -> None:
    with pytest.raises(ParameterError, match="at least 16"):
        check_token(token)


def test_no_script_stands_in_a_page_and_nothing_comes_from_elsewhere() -> None:
    rules = dict(rule.split(" ", 1) for rule in POLICY.split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == "'self'"
    assert not any("http" in rule or "*" in rule or "eval" in rule for rule in rules.values())
