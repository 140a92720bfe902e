"""A broker is ready when it has answered a whole AMQP handshake. Knows settings, no backend."""

import socket
import time
from collections.abc import Callable

from labkit.brokers.handshake import CONNECT_ERRORS, Handshake
from labkit.errors import BrokerError
from labkit.settings.settings import BrokerSettings

POLL = 0.05  # seconds
SILENCE = 0.15  # seconds: a broker waits for us to speak first, a proxy without one hangs up


def wait_until_ready(
    settings: BrokerSettings,
    *,
    timeout: float,
    ended: Callable[[], str | None],
    clue: Callable[[], str],
) -> None:
    """Return once a connection as *settings* say could be opened and closed.

    The cheap question comes first: does the port accept us and then wait? Docker's proxy accepts
    before the broker listens, and hangs up. A connection that sends nothing leaves no line in the
    broker's log; a bare protocol header leaves two.

    Args:
        settings: Who connects, and where.
        timeout: Seconds for the whole wait.
        ended: Returns how the broker ended ("exited with code 1"), or None while it lives.
        clue: Returns the line of the broker's log that says most.

    Raises:
        BrokerError: not ready in time, or the broker ended.
    """
    host, port = settings.host, settings.port or 5672
    end = time.monotonic() + timeout
    tried = "nothing listens there"
    while True:
        how = ended()
        if how is not None:
            raise BrokerError(f"the broker at {host}:{port} ended while starting ({how}); its log says: {clue()}")
        if listens(host, port):
            answer = handshake(settings, max(1.0, min(10.0, end - time.monotonic())))
            if answer is None:
                return
            tried = answer
        if time.monotonic() >= end:
            raise BrokerError(
                f"broker not ready after {timeout:g} s at {host}:{port} ({tried}); its log says: {clue()}"
            )
        time.sleep(POLL)


def listens(host: str, port: int, timeout: float = 2.0) -> bool:
    """Return whether *port* accepts a connection and does not hang up on it at once."""
    try:
        with socket.create_connection((host, port), timeout) as link:
            link.settimeout(SILENCE)
            try:
                return link.recv(1) != b""
            except TimeoutError:
                return True
    except OSError:
        return False


def handshake(settings: BrokerSettings, timeout: float) -> str | None:
    """Open one connection and close it; return None when that worked, else what went wrong."""
    try:
        Handshake(settings, timeout).close()
    except CONNECT_ERRORS as error:
        return f"{type(error).__name__}: {error}".rstrip(": ")
    return None
