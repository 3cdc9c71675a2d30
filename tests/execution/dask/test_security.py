"""Certificates: who can read them, what is said of bad ones, and where none are needed."""

from __future__ import annotations

import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cloudem.errors import MissingInputError, OutputExistsError, ParameterError
from cloudem.execution.dask import security
from cloudem.execution.dask.security import (
    ENVIRONMENT,
    FILES,
    KEY,
    is_loopback,
    make_certificates,
    security_for,
    security_of,
    security_to_listen,
)


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    make_certificates(tmp_path / "certs")
    return tmp_path / "certs"


def test_only_the_owner_reads_them_and_no_key_can_admit_others(certificates: Path) -> None:
    assert stat.S_IMODE(certificates.stat().st_mode) == 0o700
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in certificates.iterdir()} == dict.fromkeys(
        FILES, 0o600
    )
    contents = b"".join(path.read_bytes() for path in certificates.iterdir())
    assert contents.count(b"PRIVATE KEY") == 2  # begin and end of the members' key: the authority's is nowhere


def test_they_are_never_overwritten(certificates: Path) -> None:
    (certificates / "ca.pem").unlink()
    before = (certificates / KEY).read_bytes()
    with pytest.raises(OutputExistsError, match=r"holds certificate\.pem, key\.pem already"):
        make_certificates(certificates)
    assert (certificates / KEY).read_bytes() == before


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "certs").write_text("mine")
    with pytest.raises(OutputExistsError, match="certs is a file, where a folder is needed"):
        make_certificates(tmp_path / "certs")


def test_they_last_as_long_as_asked(tmp_path: Path) -> None:
    end = make_certificates(tmp_path / "certs", days=30)
    assert abs(end - datetime.now(UTC) - timedelta(days=30)) < timedelta(minutes=1)


def test_tls_is_1_3_and_required_at_both_ends(certificates: Path) -> None:
    made = security_of(certificates)
    assert made.require_encryption
    for arguments in (made.get_listen_args("worker"), made.get_connection_args("client")):
        context = arguments["ssl_context"]
        assert context.minimum_version == ssl.TLSVersion.TLSv1_3
        assert context.verify_mode == ssl.CERT_REQUIRED


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(certificates: Path, name: str) -> None:
    (certificates / name).unlink()
    with pytest.raises(MissingInputError, match=rf"there is no {name}; make some with `cloudem cluster certificates"):
        security_of(certificates)


def test_a_key_that_everybody_can_read_is_refused(certificates: Path) -> None:
    (certificates / KEY).chmod(0o644)
    with pytest.raises(ParameterError, match=r"key\.pem is open to everybody on this machine; run chmod 600"):
        security_of(certificates)


def test_what_is_no_certificate_is_refused_without_quoting_it(certificates: Path) -> None:
    (certificates / KEY).write_text("-----BEGIN PRIVATE KEY-----\nsecret\n-----END PRIVATE KEY-----\n")
    with pytest.raises(ParameterError, match=r"are not all whole PEM files") as error:
        security_of(certificates)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [("ca.pem", r"was not signed by ca\.pem"), ("key.pem", r"key\.pem does not belong to certificate\.pem")],
)
def test_files_of_different_clusters_are_told_apart(
    certificates: Path, tmp_path: Path, name: str, message: str
) -> None:
    make_certificates(tmp_path / "other")
    (certificates / name).write_bytes((tmp_path / "other" / name).read_bytes())
    with pytest.raises(ParameterError, match=message):
        security_of(certificates)


@pytest.mark.parametrize(
    ("backdated", "days", "message"),
    [(timedelta(days=3), -1, r"the certificates expired on \d{4}-"), (-timedelta(days=1), 3, r"is the clock right\?")],
)
def test_certificates_of_another_time_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backdated: timedelta, days: int, message: str
) -> None:
    monkeypatch.setattr(security, "CLOCKS_DIFFER", backdated)
    make_certificates(tmp_path / "certs", days=days)
    with pytest.raises(ParameterError, match=message):
        security_of(tmp_path / "certs")


def test_an_address_says_whether_it_is_encrypted(certificates: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    assert security_for("tls://10.99.0.1:8786", str(certificates)).require_encryption
    assert security_for("tcp://127.0.0.1:8786") is None
    assert security_for("tcp://[::1]:8786") is None
    assert security_for("inproc://10.99.0.1/3/1") is None
    assert security_for("tcp://10.99.0.1:8786", insecure=True) is None
    for address in ("tcp://10.99.0.1:8786", "ws://10.99.0.1:8786", "tcp://0.0.0.0:8786"):
        with pytest.raises(ParameterError, match=r"is another machine, .* or accept that with --insecure"):
            security_for(address)
    with pytest.raises(ParameterError, match=r"needs certificates: make some with .* or set CLOUDEM_CERTIFICATES"):
        security_for("tls://10.99.0.1:8786")
    with pytest.raises(ParameterError, match=r"does not use certificates; give the address as tls://10\.99\.0\.1:8786"):
        security_for("tcp://10.99.0.1:8786", str(certificates), insecure=True)
    monkeypatch.setenv(ENVIRONMENT, str(certificates))
    assert security_for("tls://10.99.0.1:8786").require_encryption
    assert security_for("tcp://127.0.0.1:8786") is None


def test_only_the_loopback_is_listened_on_without_certificates(
    certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    assert security_to_listen("127.0.0.1", insecure=True) is None
    with pytest.raises(ParameterError, match="lets every user of this machine run code as you"):
        security_to_listen("127.0.0.1")
    for host in ("0.0.0.0", "10.99.0.1", "::", ""):
        with pytest.raises(ParameterError, match=r"can be reached from other machines and needs certificates"):
            security_to_listen(host, insecure=True)
        assert security_to_listen(host, str(certificates)).require_encryption


def test_names_are_looked_up_to_tell_the_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    def look_up(host: str, port: None) -> list[tuple[object, ...]]:
        if host == "nowhere":
            raise OSError("unknown")
        addresses = {"here": ["127.0.0.1", "::1"], "both": ["127.0.0.1", "10.0.0.1"], "scoped": ["fe80::1%eth0"]}
        return [(0, 0, 0, "", (address, 0)) for address in addresses[host]]

    monkeypatch.setattr(security.socket, "getaddrinfo", look_up)
    assert [is_loopback(host) for host in ("here", "both", "scoped", "nowhere")] == [True, False, False, False]
