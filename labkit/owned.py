"""The rules for using a ``BlockingConnection``: one thread, limited time, errors that say what closed what.

``labkit.sync`` shows what is built on it. Knows no queues and no messages.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pika
import pika.exceptions as px
from pika.adapters.blocking_connection import BlockingChannel

from labkit.errors import ChannelLost, DeadlineExceeded, LabkitError, LeaseError, NotConnected, describe
from labkit.events import ChannelClosed, ChannelOpened, ConnectionClosed, ConnectionLost, Dispatcher

LOGGER = logging.getLogger(__name__)
CALL_TIMEOUT = 30.0  # seconds for one answer of the broker
CLOSE_TIMEOUT = 5.0  # seconds for its goodbye


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
        self._raised: list[Exception] = []  # by callbacks of other threads
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

        An interrupt (Ctrl-C) in the middle drops the link: nobody knows what was sent, and an answer that comes
        later would be taken for the next call's.
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
        except (KeyboardInterrupt, SystemExit):
            self.drop()
            raise

    def pump(self, seconds: float = 0.0) -> None:
        """Let Pika read, send heartbeats and run callbacks, for *seconds* or until something happened.

        An interrupt leaves the link open: nothing was asked that could be answered late.
        """
        interrupt: BaseException | None = None
        with self.call("reading", None) as connection:
            try:
                connection.process_data_events(seconds)
            except (KeyboardInterrupt, SystemExit) as exc:
                interrupt = exc
        if interrupt is not None:
            raise interrupt
        if self._raised:
            raise self._raised.pop(0)

    def channel(self, prefetch: int, seconds: float = CALL_TIMEOUT) -> BlockingChannel:
        """Return a new channel with publisher confirms, to which the broker sends *prefetch* messages ahead."""
        with self.call("opening a channel", seconds) as connection:
            channel = connection.channel()
            channel.confirm_delivery()
            channel.basic_qos(prefetch_count=prefetch)
        self._events.emit(ChannelOpened(number=channel.channel_number, connection=self._name))
        return channel

    def channel_closed(self, channel: BlockingChannel, otherwise: BaseException | None = None) -> BaseException:
        """Say that *channel* was found closed, and return why: what Pika kept of it, or *otherwise*."""
        reason = getattr(channel, "_closing_reason", None) or otherwise or px.ChannelWrongStateError()
        self._events.emit(ChannelClosed(number=channel.channel_number, reason=reason, connection=self._name))
        return reason

    def end_channel(self, channel: BlockingChannel) -> LabkitError | None:
        """Close *channel*: the broker takes back all that is unacknowledged there. Return what went wrong."""
        if not (self.is_open and channel.is_open):
            return None
        try:
            with self.call("closing the channel", CLOSE_TIMEOUT):
                channel.close()
        except LabkitError as exc:
            LOGGER.info("the channel ended by itself: %s", exc)
            return exc
        except Exception as exc:  # noqa: BLE001 - an interrupt has left the channel half-way; the link goes with it
            return self._lost("closing the channel", exc)
        self._events.emit(ChannelClosed(number=channel.channel_number, connection=self._name))
        return None

    def run_soon(self, callback: Callable[[], object]) -> None:
        """Run *callback* on the owner's thread when it is next inside a call. Any thread may call this.

        What it raises leaves the owner's next :meth:`pump`, not the call that happens to wait for an answer: that
        answer would come later, and be taken for the next call's.

        Raises:
            NotConnected: the link is gone.
        """
        connection = self._connection
        if connection is None:
            raise self.not_connected()
        try:
            connection.add_callback_threadsafe(lambda: self._contain(callback))
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
        except (KeyboardInterrupt, SystemExit):
            _drop(connection, px.ConnectionOpenAborted("interrupted while closing"))
            raise
        except Exception as exc:  # noqa: BLE001 - closing ends, whatever the link says
            clean = False
            LOGGER.info("closing: the link was dead already: %s", describe(exc))
        self._events.emit(ConnectionClosed(clean=clean, connection=self._name))

    def drop(self) -> None:
        """Close the socket without asking the broker; nothing happens if the link has ended."""
        if self._connection is not None:
            self._lost("dropping", px.ConnectionOpenAborted("interrupted in the middle of a call"))

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

    def _contain(self, callback: Callable[[], object]) -> None:
        try:
            callback()
        except Exception as exc:  # noqa: BLE001 - raised again by pump()
            self._raised.append(exc)

    def _lost(self, what: str, reason: Exception) -> NotConnected:
        connection, self._connection, self.reason = self._connection, None, reason
        if connection is not None and not connection.is_closed:
            _drop(connection, reason)
        self._events.emit(ConnectionLost(reason=reason, connection=self._name))
        return NotConnected(f"{what}: the link is gone: {describe(reason)}", reason=reason)


def channel_lost(what: str, reason: BaseException) -> ChannelLost:
    """Return the error for a channel that *reason* closed."""
    hint = " (consume() acknowledges for you)" if "unknown delivery tag" in str(reason) else ""
    return ChannelLost(f"{what}: the channel is gone: {describe(reason)}{hint}", reason=reason)


def _drop(connection: pika.BlockingConnection, reason: Exception) -> None:
    """Close the socket without asking the broker; it gives back to its queues what was unacknowledged."""
    try:
        connection._impl._terminate_stream(reason)
        connection._flush_output(lambda: False)  # until Pika has closed the socket and its own loop
    except Exception as exc:  # noqa: BLE001 - it says what ended it: we did
        LOGGER.debug("dropped: %s", describe(exc))


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
