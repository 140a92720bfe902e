"""What TLS means on a link that is open: version, cipher, the broker's certificate."""

import contextlib
from dataclasses import dataclass, field
from typing import Any

from labkit.connector.private_pika import tls_object
from labkit.settings.certificates import Certificate, warn_if_short


@dataclass(frozen=True, slots=True)
class TlsSession:
    """What both sides of one link agreed on.

    Attributes:
        version: ``"TLSv1.3"``, for example.
        cipher: OpenSSL's name of the cipher suite.
        certificate: The broker's; None: it cannot be read.
    """

    version: str
    cipher: str = field(repr=False)
    certificate: Certificate | None


def tls_session(connection: Any) -> TlsSession | None:
    """Return what TLS means on one of Pika's connections; None: it is not open, or speaks plain AMQP.

    For the thread that owns the connection.
    """
    link = tls_object(connection)
    if link is None or link.version() is None:
        return None
    certificate = None
    with contextlib.suppress(ValueError):  # one that we cannot read is not worth the link
        certificate = Certificate.from_der(link.getpeercert(binary_form=True) or b"")
    name, _, _ = link.cipher() or ("", "", 0)
    return TlsSession(str(link.version()), str(name), certificate)


def agreed(connection: Any) -> TlsSession | None:
    """As :func:`tls_session`, for a link that has just opened: warns in the log of a certificate that ends soon."""
    session = tls_session(connection)
    if session is not None:
        warn_if_short("the broker's", session.certificate)
    return session
