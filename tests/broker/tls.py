"""What the tests of TLS share: a handshake of our own, and a look at the certificates of open connections."""

import gc
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

import pika
import pika.exceptions
from cryptography import x509
from pika.adapters.utils.connection_workflow import AMQPConnectorException
from pika.credentials import ExternalCredentials

from labkit.brokers.certificates import Pair
from labkit.settings.settings import BrokerSettings

# Whatever a broker or Pika makes of a refusal: which one it is depends on the TLS version and on who is faster.
REFUSED = (ssl.SSLError, OSError, pika.exceptions.AMQPError, AMQPConnectorException)


def showing(settings: BrokerSettings, pair: Pair) -> BrokerSettings:
    return settings.replace(tls=settings.tls.replace(**pair._asdict()))


def by_certificate(settings: BrokerSettings) -> pika.BlockingConnection:
    """A connection that logs in by EXTERNAL."""
    parameters = settings.to_pika()[0]
    parameters.credentials = ExternalCredentials()
    return pika.BlockingConnection(parameters)


@contextmanager
def handshake(settings: BrokerSettings, maximum=ssl.TLSVersion.MAXIMUM_SUPPORTED) -> Iterator[ssl.SSLSocket]:
    """A TLS connection as *settings* say, and no AMQP on it."""
    context = settings.tls.make_context()
    context.maximum_version = maximum
    with (
        socket.create_connection((settings.host, settings.port), 10) as plain,
        context.wrap_socket(plain, server_hostname=settings.host) as link,
    ):
        yield link


def serial_of(link: ssl.SSLSocket) -> int:
    """The serial number of the certificate that the other side showed."""
    shown = link.getpeercert(binary_form=True)
    assert shown is not None
    return x509.load_der_x509_certificate(shown).serial_number


def serial_shown(settings: BrokerSettings) -> int:
    """The serial number that a new connection is shown."""
    with handshake(settings) as link:
        return serial_of(link)


def serials_in_use(port: int) -> set[int]:
    """The serial numbers that this process's open TLS connections to *port* were shown when they began."""
    links = [each for each in gc.get_objects() if type(each) is ssl.SSLSocket]
    return {serial for link in links if (serial := _serial_on(link, port)) is not None}


def _serial_on(link: ssl.SSLSocket, port: int) -> int | None:
    try:
        return serial_of(link) if link.getpeername()[1] == port else None
    except (OSError, ValueError):  # not connected any more
        return None
