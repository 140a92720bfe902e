"""The lab's certificate authority and what it signs, as PEM files of a bench. Knows no broker and opens no socket.

Two authorities: the lab's own, which the lab's settings trust, and another one that nobody here trusts. Nothing in
here is for a service: the keys lie unencrypted in the bench's private directory.
"""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Literal, NamedTuple, get_args

import filelock
import trustme
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from labkit.brokers.home import private_directory, replace_file
from labkit.errors import BrokerError, ConfigurationError

DIRECTORY: Final = "certificates"
SERVER_NAMES: Final = ("localhost", "127.0.0.1", "::1")
ELSEWHERE: Final = "elsewhere.example"  # the one name in the certificate with the wrong name
CLIENT_NAME: Final = "client.example"  # beside the common name, which is what counts: a certificate must hold some name
LIFETIME: Final = timedelta(days=365)
RENEW_BEFORE: Final = timedelta(days=30)  # what has less than this left is made again
LAG: Final = timedelta(days=1)  # the clocks of this machine and of a container may differ
LOCK_TIMEOUT: Final = 30.0  # seconds; making everything takes well under one
KEY_MODE: Final = 0o600
SERVER_KEY_MODE: Final = 0o644  # a container reads it as another user; the directory around it is private
COMMON_NAME: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z._@-]{0,63}")  # 64 is X.509's own limit (RFC 5280, A.1)

Flaw = Literal["expired", "not-yet-valid", "wrong-name", "other-ca"]
Validity = Literal["now", "past", "future"]


class Pair(NamedTuple):
    """A certificate and its key, two PEM files. ``tls.replace(**pair._asdict())`` shows it to the broker."""

    cert_file: Path
    key_file: Path

    def __repr__(self) -> str:
        """Show which one it is and no directory (notebooks compare what they print)."""
        return f"<certificate {self.cert_file.stem}>"


@dataclass(frozen=True, slots=True)
class Issued:
    """One certificate of the bench, as ``labkit certs show`` tells of it."""

    path: Path
    subject: str
    names: tuple[str, ...]
    days_left: int  # whole days until it expires; negative once it has

    def __repr__(self) -> str:
        return f"Issued(subject={self.subject!r}, names={self.names!r})"


@dataclass(frozen=True, slots=True)
class _Order:
    """What a certificate is to be; one that is there already is kept if it still is that."""

    file: str
    names: tuple[str, ...] = SERVER_NAMES
    common_name: str | None = None
    validity: Validity = "now"
    authority: str = "ca"
    key_mode: int = KEY_MODE

    def period(self, now: datetime) -> tuple[datetime, datetime]:
        """Return from when to when it is good."""
        begin = {"now": now - LAG, "past": now - 2 * LIFETIME, "future": now + LIFETIME}[self.validity]
        return begin, begin + LIFETIME

    def is_still_met(self, certificate: x509.Certificate, now: datetime) -> bool:
        begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if self.validity == "past":
            return end < now
        if self.validity == "future":
            return begin > now + RENEW_BEFORE
        return begin <= now and end > now + RENEW_BEFORE


SERVER: Final = _Order("server", key_mode=SERVER_KEY_MODE)
FLAWED: Final[dict[Flaw, _Order]] = {
    "expired": _Order("expired", validity="past"),
    "not-yet-valid": _Order("not-yet-valid", validity="future"),
    "wrong-name": _Order("wrong-name", names=(ELSEWHERE,)),
    "other-ca": _Order("other-ca", authority="impostor-ca"),
}


class LabCertificates:
    """The certificates of one bench directory, each made when it is first asked for and then kept.

    One that is about to expire, or that does not belong to the authority any more, is made again. Thread-safe, and
    safe among processes: who makes something holds a lock, and readers see old files or new ones, never halves.

    Args:
        home: The bench directory.
    """

    def __init__(self, home: Path) -> None:
        self.directory = home / DIRECTORY

    def __repr__(self) -> str:
        return "<LabCertificates>"

    @property
    def ca_file(self) -> Path:
        """The certificate of the lab's authority: what a client is to trust.

        Raises:
            BrokerError: the bench directory cannot be written, or is held by a process that hangs.
        """
        with self._lock():
            self._authority("ca")
        return self.directory / "ca.pem"

    def server(self, flaw: Flaw | None = None) -> Pair:
        """Return a server's certificate for localhost, 127.0.0.1 and ::1; with a *flaw*, one that must be refused.

        Args:
            flaw: None for the broker's own. "expired" and "not-yet-valid" have only the wrong time, "wrong-name" only
                the wrong name; "other-ca" is in order, but signed by an authority that nobody here trusts.

        Raises:
            ConfigurationError: there is no such flaw.
            BrokerError: as for :attr:`ca_file`.
        """
        if flaw is not None and flaw not in FLAWED:
            raise ConfigurationError(
                f"flaw: must be one of {', '.join(get_args(Flaw))}, not {flaw!r}",
                field="flaw", value=flaw, allowed=", ".join(get_args(Flaw)),
            )  # fmt: skip
        return self._pair(SERVER if flaw is None else FLAWED[flaw])

    def client(self, common_name: str) -> Pair:
        """Return a client's certificate for the user *common_name*, as the EXTERNAL login reads it.

        Raises:
            ConfigurationError: *common_name* is no name that fits a certificate and a file.
            BrokerError: as for :attr:`ca_file`.
        """
        return self._pair(_Order(f"client-{_checked(common_name)}", (CLIENT_NAME,), common_name))

    def stranger(self, common_name: str) -> Pair:
        """Return what :meth:`client` does, signed by the authority that the broker does not trust."""
        order = _Order(f"stranger-{_checked(common_name)}", (CLIENT_NAME,), common_name, authority="impostor-ca")
        return self._pair(order)

    def renew_server(self) -> Pair:
        """Make a new certificate and key for the broker, in the same files. A running broker has to be told."""
        with self._lock():
            return self._make(SERVER)

    def make(self) -> None:
        """Make what is missing of the authority, the broker's certificate and the flawed ones."""
        self.server()
        for flaw in FLAWED:
            self.server(flaw)

    def issued(self) -> tuple[Issued, ...]:
        """Return every certificate that is there now, by file name; makes none."""
        now = datetime.now(UTC)
        found = ((path, _read(path)) for path in sorted(self.directory.glob("*.pem")))
        return tuple(_told(path, certificate, now) for path, certificate in found if certificate is not None)

    # --- helpers -------------------------------------------------------------------------------------------

    def _pair(self, order: _Order) -> Pair:
        with self._lock():
            authority = self._authority(order.authority)
            certificate, key = self._paths(order.file)
            kept = _read(certificate)
            good = (
                kept is not None
                and order.is_still_met(kept, datetime.now(UTC))
                and _common_name(kept) == order.common_name  # some file systems take "Lab" and "lab" for one
                and _signed_by(kept, authority)
                and _belongs_to(key, kept)
            )
            return Pair(certificate, key) if good else self._make(order)

    def _make(self, order: _Order) -> Pair:
        begin, end = order.period(datetime.now(UTC))
        leaf = self._authority(order.authority).issue_cert(
            *order.names, common_name=order.common_name, organization_name="labkit",
            organization_unit_name=order.file, not_before=begin, not_after=end,
        )  # fmt: skip
        pair = Pair(*self._paths(order.file))
        replace_file(pair.key_file, leaf.private_key_pem.bytes(), mode=order.key_mode)
        replace_file(pair.cert_file, leaf.cert_chain_pems[0].bytes(), mode=0o644)
        return pair

    def _authority(self, name: str) -> trustme.CA:
        certificate, key = self._paths(name)
        kept = _read(certificate)
        if kept is not None and kept.not_valid_after_utc > datetime.now(UTC) and _belongs_to(key, kept):
            return trustme.CA.from_pem(certificate.read_bytes(), key.read_bytes())
        made = trustme.CA(organization_name="labkit", organization_unit_name=name)
        replace_file(key, made.private_key_pem.bytes(), mode=KEY_MODE)
        replace_file(certificate, made.cert_pem.bytes(), mode=0o644)
        return made

    def _paths(self, name: str) -> tuple[Path, Path]:
        return self.directory / f"{name}.pem", self.directory / f"{name}.key"

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """Hold the directory against other processes and threads; re-entrant within one thread."""
        for place in (self.directory.parent, self.directory):
            private_directory(place)
        lock = filelock.FileLock(self.directory / ".lock", is_singleton=True)
        try:
            held = lock.acquire(timeout=LOCK_TIMEOUT)
        except filelock.Timeout as error:
            raise BrokerError(
                f"another process has been making certificates in {self.directory} for {LOCK_TIMEOUT:g} s; "
                "wait for it, or end it and try again"
            ) from error
        with held:
            yield


def _checked(common_name: str) -> str:
    if isinstance(common_name, str) and COMMON_NAME.fullmatch(common_name):
        return common_name
    allowed = "1 to 64 letters, digits and . _ @ -, beginning with a letter or a digit"
    raise ConfigurationError(
        f"common_name: allowed: {allowed}; not {common_name!r}", field="common_name", value=common_name, allowed=allowed
    )


def _read(path: Path) -> x509.Certificate | None:
    """Return the certificate in *path*; None where there is none, or something else."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError):
        return None


def _belongs_to(key_file: Path, certificate: x509.Certificate) -> bool:
    try:
        key = load_pem_private_key(key_file.read_bytes(), password=None)
    except (OSError, ValueError, TypeError):
        return False
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return key.public_key().public_bytes(*form) == certificate.public_key().public_bytes(*form)


def _signed_by(certificate: x509.Certificate, authority: trustme.CA) -> bool:
    try:
        certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.cert_pem.bytes()))
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _common_name(certificate: x509.Certificate) -> str | None:
    held = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    return str(held[0].value) if held else None


def _told(path: Path, certificate: x509.Certificate, now: datetime) -> Issued:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        shown = tuple(str(name.value) for name in names)
    except x509.ExtensionNotFound:  # an authority has none
        shown = ()
    left = certificate.not_valid_after_utc - now
    return Issued(path, certificate.subject.rfc4514_string(), shown, left.days)
