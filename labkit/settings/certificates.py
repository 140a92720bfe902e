"""What a certificate says of itself: serial number and dates. Reads text and bytes; no I/O.

Python's ``ssl`` shows the dates of a peer's certificate only, and of that only where it was verified. So the few
fields that matter are read here, from the certificate itself (RFC 5280, 4.1; encoding: X.690, 8.1).
"""

import datetime
import logging
import re
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, field

LOGGER = logging.getLogger(__name__)
WARN_BEFORE = 30.0  # days
DAY = datetime.timedelta(days=1)
PEM_BLOCK = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
VERSION, UTC_TIME = 0xA0, 0x17  # tags: the optional first field, and the older of two ways to write a time


@dataclass(frozen=True, slots=True)
class Certificate:
    """Which certificate it is, and how long it holds. ``repr`` shows neither: both differ from machine to machine."""

    serial: int = field(repr=False)
    not_before: datetime.datetime = field(repr=False)
    not_after: datetime.datetime = field(repr=False)

    def days_left(self, now: datetime.datetime | None = None) -> float:
        """Return the days until it is out of date; negative once it is. *now* is aware; None: this moment."""
        return (self.not_after - (now or datetime.datetime.now(datetime.UTC))) / DAY

    @classmethod
    def from_der(cls, der: bytes) -> "Certificate":
        """Read a certificate.

        Raises:
            ValueError: it is none.
        """
        try:
            _, certificate = next(_elements(der))
            _, signed_part = next(_elements(certificate))
            fields = list(_elements(signed_part))
            if fields[0][0] == VERSION:
                del fields[0]
            (_, serial), _, _, (_, validity) = fields[:4]
            begin, end = (_time(tag, content) for tag, content in _elements(validity))
        except (ValueError, IndexError, StopIteration) as exc:
            raise ValueError("this is not a certificate") from exc
        return cls(int.from_bytes(serial, signed=True), begin, end)

    @classmethod
    def from_pem(cls, pem: str) -> "Certificate":
        """Read the first certificate in *pem*: the owner's own, before those that lead to the authority.

        Raises:
            ValueError: there is none.
        """
        block = PEM_BLOCK.search(pem)
        if block is None:
            raise ValueError("there is no certificate in this text")
        return cls.from_der(ssl.PEM_cert_to_DER_cert(block[0]))


def warn_if_short(whose: str, certificate: Certificate | None) -> None:
    """Log a warning if *certificate* is out of date in less than 30 days."""
    if certificate is not None and (left := certificate.days_left()) < WARN_BEFORE:
        LOGGER.warning("%s certificate is out of date in %.1f days: renew it", whose, left)


def _elements(der: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield tag and content of each element in *der*; of what follows a broken one, nothing."""
    at = 0
    while at < len(der):
        tag, size, at = der[at], der[at + 1], at + 2
        if size & 0x80:  # the long form: so many octets hold the size
            octets = size & 0x7F
            size, at = int.from_bytes(der[at : at + octets]), at + octets
        if at + size > len(der):
            raise ValueError("an element is longer than what holds it")
        yield tag, der[at : at + size]
        at += size


def _time(tag: int, content: bytes) -> datetime.datetime:
    text = content.decode("ascii")
    if tag == UTC_TIME:  # two digits for the year: 1950 to 2049 (RFC 5280, 4.1.2.5.1)
        text = f"{'20' if int(text[:2]) < 50 else '19'}{text}"
    return datetime.datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=datetime.UTC)
