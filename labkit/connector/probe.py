"""Look once more, without Pika, at who did not answer AMQP: two mistakes look like a broker that hung up.

Plain AMQP sent to a TLS port: the broker answers with a TLS alert, which Pika takes for the start of a frame and waits
for the rest. And a client certificate that the broker does not take: with TLS 1.3 our side of the handshake is over
before the broker has looked at it, Pika speaks on, and the reset that follows may overtake the alert. Here nothing
is said that an alert could be lost over.
"""

import socket
import time

import pika
import pika.exceptions as px

from labkit.verdicts import SPEAKS_TLS, TLS_ALERT, describe, root_cause

PATIENCE = 2.0  # seconds for the other side to say what it does not like; a broker says it in milliseconds
SHORTEST_WAIT = 0.001  # seconds; a socket takes 0 for "do not wait"
PROTOCOL_HEADER = b"AMQP\x00\x00\x09\x01"  # AMQP 0-9-1, section 4.2.2
TLS_ALERT_RECORD = b"\x15\x03"  # content type 21, major version 3 (RFC 8446, 5.1)


def is_unclear(error: BaseException) -> bool:
    """Whether *error* leaves open if the other side refuses us or is not ready."""
    cause = root_cause(error)
    return isinstance(cause, px.IncompatibleProtocolError) and not TLS_ALERT.search(str(cause))


class ProbeOnce:
    """Which addresses a bring-up has probed. Once is enough: a broker that is booting is not to get twice the links.

    One thread at a time.
    """

    def __init__(self) -> None:
        self._addresses: set[tuple[str, int]] = set()

    def claim(self, parameters: pika.ConnectionParameters, error: BaseException) -> bool:
        """Whether to probe that address now, after *error*; true once for each."""
        address = (parameters.host, parameters.port)
        if not is_unclear(error) or address in self._addresses:
            return False
        self._addresses.add(address)
        return True


def probe(parameters: pika.ConnectionParameters, error: Exception, seconds: float) -> Exception:
    """Return *error*, or a clearer one whose cause it is; takes *seconds* at most, and 2 s.

    Args:
        parameters: Of the attempt that failed; its host is an address.
        error: What the attempt ended with, one that :func:`is_unclear`.
        seconds: What is left.
    """
    if seconds <= 0:
        return error
    finding = _look(parameters, min(PATIENCE, seconds))
    if not finding:
        return error
    clearer: Exception = px.IncompatibleProtocolError(f"{finding} (at first: {describe(error)})")
    clearer.__cause__ = error
    return clearer


def _look(parameters: pika.ConnectionParameters, seconds: float) -> str:
    """Return the alert that the other side sends, as text; empty if it sends none."""
    tls, ends = parameters.ssl_options, time.monotonic() + seconds

    def limit(link: socket.socket) -> None:  # a socket's own is for one wait, and this look has three
        link.settimeout(max(SHORTEST_WAIT, ends - time.monotonic()))

    try:
        with socket.create_connection((parameters.host, parameters.port), timeout=seconds) as plain:
            limit(plain)
            if tls is None:
                plain.sendall(PROTOCOL_HEADER)
                return SPEAKS_TLS if plain.recv(2) == TLS_ALERT_RECORD else ""
            with tls.context.wrap_socket(plain, server_hostname=tls.server_hostname) as link:
                limit(link)
                link.recv(1)
    except OSError as exc:  # ssl.SSLError is one, and so is the end of our patience
        return repr(exc) if TLS_ALERT.search(repr(exc)) else ""
    return ""
