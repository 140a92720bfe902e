"""The rules for using a ``BlockingConnection``: one thread, limited time, errors that say what closed what.

``labkit.sync`` shows what is built on it. Knows no queues and no messages.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pika
import pika.exceptions as px

from labkit.errors import ChannelLost, DeadlineExceeded, LeaseError, NotConnected, describe
from labkit.events import ConnectionClosed, ConnectionLost, Dispatcher

LOGGER = logging.getLogger(__name__)
CALL_TIMEOUT = 30.0  # seconds for one answer of the broker


class OwnedConnection:
    """An open ``BlockingConnection`` and the thread that opened it.

    Other threads may call :meth:`run_soon` only.

    Attributes:
        reason: What ended the link; None while it lives, or when this side closed it.
    """

    def __init__(self, connection: pika.BlockingConnection, events: Dispatcher, name: str | None) -> None:
        self._connection: pika.BlockingConnection | None = connection
        self._owner = threading.get_ident()
        self._events = events
        self._name = name
        self.reason: BaseException | None = None

    @property
    def is_open(self) -> bool:
        """Whether nothing is known to have ended it. Pump first: only reading from the socket finds out."""
        return self._connection is not None

    @contextmanager
    def call(self, what: str, seconds: float | None = CALL_TIMEOUT) -> Iterator[pika.BlockingConnection]:
        """Do *what* with the connection, for at most *seconds* (None: as long as it takes).

        Raises:
            LeaseError: this is not the thread that owns it.
            NotConnected: the link ended, or did not answer in time; ``reason`` says which.
            ChannelLost: the broker closed the channel; ``reason`` is its answer.
        """
        self.check_owner()
        connection = self._connection
        if connection is None:
            raise self.not_connected()
        try:
            with _limit(connection, seconds, what):
                if not connection.is_open:
                    raise px.ConnectionWrongStateError("the connection is closed")
                yield connection
        except (px.UnroutableError, px.NackError):
            raise  # what became of a message; channel and link are well
        except px.AMQPChannelError as exc:
            if connection.is_open:
                raise channel_lost(what, exc) from exc
            raise self._lost(what, exc) from exc
        except (px.AMQPConnectionError, DeadlineExceeded, OSError) as exc:
            raise self._lost(what, exc) from exc

    def pump(self, seconds: float = 0.0) -> None:
        """Let Pika read, send heartbeats and run callbacks, for *seconds* or until something happened."""
        with self.call("reading", None) as connection:
            connection.process_data_events(seconds)

    def run_soon(self, callback: Callable[[], object]) -> None:
        """Run *callback* on the owner's thread when it is next inside a call. Any thread may call this.

        Raises:
            NotConnected: the link is gone.
        """
        connection = self._connection
        if connection is None:
            raise self.not_connected()
        try:
            connection.add_callback_threadsafe(callback)
        except px.ConnectionWrongStateError as exc:
            raise NotConnected("the connection is closed", reason=exc) from exc

    def close(self, *, timeout: float) -> None:
        """Ask the broker to close; drop the socket after *timeout* seconds. Never raises for a dead link."""
        self.check_owner()
        connection, self._connection = self._connection, None
        if connection is None:
            return
        clean = True
        try:
            with _limit(connection, timeout, "close"):
                connection.close()
        except Exception as exc:  # noqa: BLE001 - closing ends, whatever the link says
            clean = False
            LOGGER.info("closing: the link was dead already: %s", describe(exc))
        self._events.emit(ConnectionClosed(clean=clean, connection=self._name))

    def check_owner(self) -> None:
        """Raise LeaseError unless this thread owns the connection."""
        if self._owner != threading.get_ident():
            raise LeaseError(
                "this connection belongs to the thread that opened it; from another one, call stop() or "
                "add_callback_threadsafe(), or open a connection of your own"
            )

    def not_connected(self) -> NotConnected:
        """Return the error for using it after its end."""
        why = "it is not open: call open()" if self.reason is None else f"the link is gone: {describe(self.reason)}"
        return NotConnected(why, reason=self.reason)

    def _lost(self, what: str, reason: Exception) -> NotConnected:
        self._connection, self.reason = None, reason
        self._events.emit(ConnectionLost(reason=reason, connection=self._name))
        return NotConnected(f"{what}: the link is gone: {describe(reason)}", reason=reason)


def channel_lost(what: str, reason: BaseException) -> ChannelLost:
    """Return the error for a channel that *reason* closed."""
    hint = " (consume() acknowledges for you)" if "unknown delivery tag" in str(reason) else ""
    return ChannelLost(f"{what}: the channel is gone: {describe(reason)}{hint}", reason=reason)


@contextmanager
def _limit(connection: pika.BlockingConnection, seconds: float | None, what: str) -> Iterator[None]:
    """Drop the socket if the block lasts longer than *seconds*; the call inside then raises DeadlineExceeded.

    Pika has no public way to give up on an answer, so this reaches into it: the loop's timer, and the method that
    its own heartbeat checker calls when the other side is gone.
    """
    impl = connection._impl
    if seconds is None or not connection.is_open:
        yield
        return
    late = DeadlineExceeded(f"{what}: no answer within {seconds:g} s, the link was dropped", deadline=seconds)
    timer = impl.ioloop.call_later(seconds, lambda: None if impl.is_closed else impl._terminate_stream(late))
    try:
        yield
    finally:
        impl.ioloop.remove_timeout(timer)
