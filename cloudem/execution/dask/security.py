"""Who may talk to the cluster: a private authority, certificates that it signed, and where encryption is required.

Whoever reaches a scheduler or a worker can run any code on it, because tasks travel as pickles. So every connection
that leaves a machine is encrypted, and both of its ends must show a certificate of the cluster's own authority; the
check is made before anything that came is read. There is one certificate for all members: a client may run code on
the workers anyway and could read theirs, so that a second kind would promise a separation that is not there. The
authority's key is thrown away once it has signed: nothing that lies around can admit further members, and to change
who is admitted one makes a new folder. Names and addresses are not part of a certificate, since only the authority
counts; machines may come and go under any address.
"""

from __future__ import annotations

import ipaddress
import os
import secrets
import socket
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from cloudem.errors import MissingInputError, OutputExistsError, ParameterError

AUTHORITY, CERTIFICATE, KEY = "ca.pem", "certificate.pem", "key.pem"
FILES = (AUTHORITY, CERTIFICATE, KEY)

ENVIRONMENT = "CLOUDEM_CERTIFICATES"
"""Names the folder of certificates where no option does."""

CLOCKS_DIFFER = timedelta(hours=1)
"""Certificates count from that long before they were made, for machines whose clocks are behind."""

LARGEST = 64 << 10
"""Bytes of the largest certificate or key that is read."""

HOW_TO_MAKE = "make some with `cloudem cluster certificates --out certs` and give --certificates certs"


def make_certificates(folder: str | Path, days: int = 365) -> datetime:
    """Make an authority, and the certificate and key that every member of a cluster holds.

    The folder is then copied, by a way that is private, to every machine of the cluster.

    Parameters
    ----------
    folder
        Gets ``ca.pem``, ``certificate.pem`` and ``key.pem``; readable by its owner alone (0700, key 0600).
    days
        How long the certificate is good for.

    Returns
    -------
    datetime
        When it expires, UTC.

    Raises
    ------
    OutputExistsError
        If the folder holds certificates already: a cluster may be using them; or if it is a file.
    """
    folder = Path(folder)
    if folder.is_file():
        raise OutputExistsError(f"{folder} is a file, where a folder is needed; choose another --out")
    there = [name for name in FILES if (folder / name).exists()]
    if there:
        raise OutputExistsError(f"{folder} holds {', '.join(there)} already; give another folder, or remove it first")
    contents, end = _issue(timedelta(days=days))
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    for name, content in contents.items():
        _write_new(folder / name, content)
    return end


def security_of(folder: str | Path) -> Any:
    """Return the ``distributed.Security`` of the certificates in a folder, after checking that they are good.

    Raises
    ------
    MissingInputError
        If a file is missing.
    ParameterError
        If one cannot be read or used, has expired, does not belong to the others, or if everybody can read the key.
    """
    paths = {name: Path(folder).absolute() / name for name in FILES}
    missing = [name for name, path in paths.items() if not path.is_file()]
    if missing:
        raise MissingInputError(f"{folder}: there is no {' and no '.join(missing)}; {HOW_TO_MAKE}")
    if paths[KEY].stat().st_mode & 0o007:
        raise ParameterError(f"{paths[KEY]} is open to everybody on this machine; run chmod 600 {paths[KEY]}")
    contents = {}
    for name, path in paths.items():
        try:
            with path.open("rb") as file:
                contents[name] = file.read(LARGEST + 1)
        except OSError as error:
            raise ParameterError(f"{path} cannot be read ({error.strerror}); run as the user who owns it") from None
        if len(contents[name]) > LARGEST:
            raise ParameterError(f"{path} has more than {LARGEST >> 10} KiB, so it is no certificate; {HOW_TO_MAKE}")
    _check(folder, contents)
    return _security({name: str(path) for name, path in paths.items()})


def temporary_security() -> Any:
    """Return a ``distributed.Security`` that is known to this process and its children alone."""
    contents, _ = _issue(timedelta(days=365))
    return _security({name: content.decode() for name, content in contents.items()})


def security_for(address: str, certificates: str | None = None, *, insecure: bool = False) -> Any | None:
    """Return the ``distributed.Security`` with which to talk to an address, None where nothing is encrypted.

    Parameters
    ----------
    address
        Such as ``tls://10.0.0.1:8786``.
    certificates
        Folder of certificates; by default the one that the environment names.
    insecure
        Whether an address of another machine may be without encryption.

    Raises
    ------
    MissingInputError, ParameterError
        If the certificates are no good, or there are none where some are needed.
    """
    scheme, _, place = address.partition("://")
    if scheme == "tls":
        folder = certificates or os.environ.get(ENVIRONMENT)
        if not folder:
            raise ParameterError(f"{address} needs certificates: {HOW_TO_MAKE}, or set {ENVIRONMENT}=certs")
        return security_of(folder)
    if certificates is not None:
        raise ParameterError(f"{address} does not use certificates; give the address as tls://{place}")
    if scheme != "inproc" and not insecure and not is_loopback(host_of(address)):
        raise ParameterError(
            f"{address} is another machine, and whoever is on the way to it could run code here and there; start the"
            f" scheduler with certificates and give tls://{place}, or accept that with --insecure"
        )
    return None


def security_to_listen(host: str, certificates: str | None = None, *, insecure: bool = False) -> Any | None:
    """Return the ``distributed.Security`` with which to listen on an address, None for this machine alone.

    Parameters
    ----------
    host
        The address.
    certificates
        Folder of certificates; by default the one that the environment names.
    insecure
        Whether to do without, so that every user of this machine can run code as whoever listens.

    Raises
    ------
    MissingInputError, ParameterError
        If the certificates are no good, or there are none, and other machines reach this address or that was not asked
        for.
    """
    folder = certificates or os.environ.get(ENVIRONMENT)
    if folder:
        return security_of(folder)
    if not is_loopback(host):  # whatever was accepted
        raise ParameterError(f"--host {host} can be reached from other machines and needs certificates: {HOW_TO_MAKE}")
    if not insecure:
        raise ParameterError(
            f"a scheduler without certificates lets every user of this machine run code as you: {HOW_TO_MAKE}, or"
            " accept that with --insecure"
        )
    return None


def host_of(address: str) -> str:
    """Return the host of ``scheme://host:port``."""
    return address.partition("://")[2].rpartition(":")[0].strip("[]")


def is_loopback(host: str) -> bool:
    """Return whether a name or an address is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        pass
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None)} if host else set()
    except OSError:
        return False
    return bool(found) and all(ipaddress.ip_address(address.partition("%")[0]).is_loopback for address in found)


def refusal_of(error: BaseException) -> str:
    """Return why two ends of a connection did not agree on who they are, empty if that was not it."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return "it shows certificates of another cluster, or expired ones"
        if isinstance(cause, ssl.SSLError) and "WRONG_VERSION" in str(cause):
            return "it does not encrypt"
        if isinstance(cause, ssl.SSLError):
            return f"it refuses these certificates ({cause.reason})"
        cause = cause.__cause__ or cause.__context__
    return ""


def _issue(lifetime: timedelta) -> tuple[dict[str, bytes], datetime]:
    """Return the contents of the three files, and when they expire."""
    start = datetime.now(UTC) - CLOCKS_DIFFER
    end = start + CLOCKS_DIFFER + lifetime
    authority_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    authority = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"cloudem cluster {secrets.token_hex(8)}")])
    member = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "cloudem cluster member")])
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())

    def sign(subject: x509.Name, public: ec.EllipticCurvePublicKey, is_authority: bool) -> x509.Certificate:
        return (
            x509.CertificateBuilder(subject_name=subject, issuer_name=authority, public_key=public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(is_authority, 0 if is_authority else None), critical=True)
            .add_extension(_usage(is_authority), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(identifier, critical=False)
            .sign(authority_key, hashes.SHA256())
        )

    pem = serialization.Encoding.PEM
    contents = {
        AUTHORITY: sign(authority, authority_key.public_key(), True).public_bytes(pem),
        CERTIFICATE: sign(member, key.public_key(), False).public_bytes(pem),
        KEY: key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    }
    return contents, end


def _usage(is_authority: bool) -> x509.KeyUsage:
    names = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "crl_sign")
    never = dict.fromkeys((*names, "encipher_only", "decipher_only"), False)
    return x509.KeyUsage(digital_signature=not is_authority, key_cert_sign=is_authority, **never)


def _write_new(path: Path, content: bytes) -> None:
    """Write a file that only its owner may ever have read; fail if somebody was first."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:  # noqa: PTH123  an open file
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _check(folder: str | Path, contents: dict[str, bytes]) -> None:
    """Say what is wrong with certificates here, where there is a name for it, rather than in a failing handshake.

    What the parser raises is no fixed list: kinds of keys and versions that it does not know have errors of their own.
    What it says may quote the key, so that it is not repeated.
    """
    try:
        authority = x509.load_pem_x509_certificate(contents[AUTHORITY])
        certificate = x509.load_pem_x509_certificate(contents[CERTIFICATE])
        key = serialization.load_pem_private_key(contents[KEY], password=None)
        public, known = key.public_key(), certificate.public_key()
        start = max(one.not_valid_before_utc for one in (authority, certificate))
        end = min(one.not_valid_after_utc for one in (authority, certificate))
    except Exception:
        raise ParameterError(f"{folder}: {', '.join(FILES)} are not all whole PEM files; {HOW_TO_MAKE}") from None
    try:
        certificate.verify_directly_issued_by(authority)
    except Exception:
        raise ParameterError(f"{folder}: {CERTIFICATE} was not signed by {AUTHORITY}; copy the whole folder") from None
    if public != known:
        raise ParameterError(f"{folder}: {KEY} does not belong to {CERTIFICATE}; copy the whole folder")
    now = datetime.now(UTC)
    if now > end:
        raise ParameterError(f"{folder}: the certificates expired on {end:%Y-%m-%d %H:%M} UTC; {HOW_TO_MAKE}")
    if now < start:
        raise ParameterError(
            f"{folder}: the certificates count from {start:%Y-%m-%d %H:%M} UTC on; is the clock right?"
        )


def _security(values: dict[str, str]) -> Any:
    from distributed import Security  # half a second, so only now

    members = {f"tls_{role}_cert": values[CERTIFICATE] for role in ("scheduler", "worker", "client")}
    members |= {f"tls_{role}_key": values[KEY] for role in ("scheduler", "worker", "client")}
    return Security(
        require_encryption=True, tls_ca_file=values[AUTHORITY], tls_min_version=ssl.TLSVersion.TLSv1_3, **members
    )
