"""The rules for using a ``BlockingConnection``: one thread, limited time, errors that say what closed what.

``labkit.direct.sync`` shows what is built on it. Knows no queues and no messages.

Interrupts. Ctrl-C may come between any two steps, also in a ``finally``. So a call leaves a mark when it begins and
takes it away when it is over; an interrupt drops the link, and where it kept even that from happening, the next call
finds the mark and does it. Only :meth:`OwnedConnection.wait` and the callbacks may be interrupted without harm:
Pika does nothing meanwhile.
"""

import contextlib
import logging
import os
import selectors
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import pika
import pika.exceptions as px
from pika.adapters.blocking_connection import BlockingChannel

from labkit.concurrency.wake_up import WakeUp
from labkit.connector.abandon import HalfOpenConnection, abort
from labkit.connector.facts import LinkFacts, Traffic
from labkit.connector.private_pika import BASIC_PUBLISH, closing_method
from labkit.content.delivery import return_unsettled
from labkit.content.sendable import frame_max_of
from labkit.errors import ChannelLost, DeadlineExceeded, LabkitError, LeaseError, NotConnected, describe
from labkit.events import ChannelClosed, ChannelOpened, ConnectionClosed, ConnectionLost, Dispatcher, Event
from labkit.factory import ConnectionFactory

LOGGER = logging.getLogger(__name__)
CALL_TIMEOUT = 30.0  # seconds for one answer of the broker
CLOSE_TIMEOUT = 5.0  # seconds for its close handshake
GRACE = 0.4  # seconds after its end in which a call that ends by itself may still have an answer


class OwnedConnection:
    """A ``BlockingConnection`` and the thread that opened it.

    Other threads may call :meth:`run_soon` only.

    Args:
        factory: Where the connections come from.

    Attributes:
        reason: What ended the link; None before it is open, while it lives, and when this side closed it.
    """

    def __init__(self, factory: ConnectionFactory) -> None:
        self._factory = factory
        self._opening = HalfOpenConnection()
        self._connection: pika.BlockingConnection | None = None
        self._owner = threading.get_ident()
        self._soon: deque[Callable[[], object]] = deque()  # callbacks of other threads
        self._wake_up: WakeUp | None = None
        self._raised: list[BaseException] = []  # by those callbacks
        self._standing: BlockingChannel | None = None
        self._closing_method: Callable[[], tuple[int, int] | None] = lambda: None  # of the standing channel
        self._inside: object | None = None  # the call that is under way: the mark
        self.reason: BaseException | None = None
        self.traffic = Traffic()
        _ALL.add(self)

    @property
    def is_open(self) -> bool:
        """Whether nothing is known to have ended it. Pump first: only reading from the socket finds out."""
        return self._connection is not None

    @property
    def events(self) -> Dispatcher:
        """Who is told of what happens to it."""
        return self._factory.events

    @property
    def frame_max(self) -> int:
        """How many bytes a frame may have."""
        return frame_max_of(self._connection and self._connection._impl)

    def open(self, prefetch: int) -> None:
        """Connect, and open the standing channel, within the settings' ``connect_deadline``; this thread owns it now.

        Raises:
            ConnectError: as ``ConnectionFactory.blocking`` does.
            NotConnected: it connected, and then the broker opened no channel in time, or has no publisher confirms.
        """
        ends = time.monotonic() + self._factory.settings.connect_deadline
        self._opening.drop()  # what an interrupt left of an earlier one
        self._owner = threading.get_ident()
        self._raised, self._standing, self._inside, self.reason = [], None, None, None
        self._soon.clear()
        self._opening = HalfOpenConnection()
        try:
            connection = self._factory.blocking(self._opening)
            facts = self.traffic.begin(LinkFacts(connection))
            facts.take_tls()
            facts.watch()
            with contextlib.suppress(OSError):  # no descriptors are left: then callbacks wait for the next look
                self._wake_up = WakeUp()
            self._connection = connection
        except BaseException:
            self._opening.drop()
            raise
        try:
            self.standing_channel(prefetch, left(ends))  # now, so that what is wrong with it shows now
        except BaseException as exc:
            self.close(timeout=CLOSE_TIMEOUT)
            if isinstance(exc, Exception) and not isinstance(exc, LabkitError):  # what answers there is no RabbitMQ
                raise NotConnected(f"opening a channel: {describe(exc)}", reason=exc) from exc
            raise

    @property
    def is_in_callback(self) -> bool:
        """Whether Pika runs a callback right now, so that whoever asks is inside another call."""
        return self._connection is not None and self._connection._event_dispatch_suspend_depth > 0

    @contextmanager
    def call(self, what: str, seconds: float | None = CALL_TIMEOUT) -> Iterator[pika.BlockingConnection]:
        """Do *what* with the connection, for at most *seconds* (None: as long as it takes).

        Raises:
            LeaseError: this is not the thread that owns it.
            NotConnected: the link ended, or did not answer in time; ``reason`` says which.
            ChannelLost: the broker closed the channel; ``reason`` is its answer.

        An interrupt in the middle drops the link: nobody knows what was sent, and an answer that comes later would
        be taken for the next call's.
        """
        connection = self._usable()
        outer, this = self._inside, object()
        self._inside = this
        try:
            with self._told(what, connection, seconds):
                yield connection
        except Exception:
            self._end_call(connection, this, outer)
            raise
        except BaseException:
            if self._connection is connection:  # else this is the late end of a call that was abandoned, and garbage
                self.drop()
            raise
        self._end_call(connection, this, outer)

    def _end_call(self, connection: pika.BlockingConnection, this: object, outer: object | None) -> None:
        if self._inside is not this and self._connection is connection:
            self.drop()  # an interrupt came between a call inside this one and its block, and nothing has ended it
        self._inside = outer

    @contextmanager
    def _told(self, what: str, connection: pika.BlockingConnection, seconds: float | None) -> Iterator[None]:
        """Limit the time, and tell Pika's errors as ours."""
        try:
            with _limit(connection, seconds, what):
                if not connection.is_open:
                    raise px.ConnectionWrongStateError("the connection is closed")  # noqa: TRY301 - told below
                yield
        except (px.UnroutableError, px.NackError):
            raise  # what became of a message; channel and link are well
        except px.NoFreeChannels as exc:  # to Pika an error of the connection, which is well
            raise channel_lost(what, exc) from exc
        except px.AMQPChannelError as exc:
            if connection.is_open:
                raise channel_lost(what, exc) from exc
            raise self._lost(what, exc) from exc
        except (px.AMQPConnectionError, DeadlineExceeded, OSError) as exc:
            raise self._lost(what, exc) from exc
        except Exception as exc:
            if self._connection is connection:
                raise
            raise self.not_connected() from exc  # the process was forked meanwhile, and this is the child

    def pump(self) -> None:
        """Let Pika read what is there, send heartbeats and run callbacks."""
        with self.call("reading", None) as connection, contextlib.suppress(px.ChannelClosedByBroker):
            if self._wake_up is not None:
                self._wake_up.silence()
            if self._soon:
                connection.call_later(0, self._run_callbacks)
            # Pika 1.5 reports here, once more, a channel that the broker closed. Whoever uses that channel is told.
            connection.process_data_events(0)
        if self._raised:
            raise self._raised.pop(0)

    def wait(self, seconds: float) -> None:
        """Return after *seconds*, or as soon as there is something to :meth:`pump`. An interrupt leaves the link open.

        For that, the waiting is not left to Pika: it would wait, read and understand in one go.
        """
        connection = self._usable()
        if (
            self._raised
            or self._soon
            or connection._ready_events
            or connection._channels_pending_dispatch
            or not connection.is_open
        ):
            return
        impl = connection._impl
        due = impl.ioloop._get_remaining_interval()  # of Pika's timers, such as its heartbeat; 0: something is to do
        with selectors.DefaultSelector() as selector:
            selector.register(impl._transport._sock, selectors.EVENT_READ)
            if self._wake_up is not None:
                selector.register(self._wake_up.reading, selectors.EVENT_READ)  # run_soon() writes there
            selector.select(seconds if due is None else min(seconds, due))

    def channel(self, prefetch: int, seconds: float = CALL_TIMEOUT) -> BlockingChannel:
        """Return a new channel with publisher confirms, to which the broker sends *prefetch* messages ahead."""
        with self.call("opening a channel", seconds) as connection:
            channel = connection.channel()
            channel.confirm_delivery()
            channel.basic_qos(prefetch_count=prefetch)
        self.tell(ChannelOpened, number=channel.channel_number)
        return channel

    def standing_channel(self, prefetch: int, seconds: float = CALL_TIMEOUT) -> BlockingChannel:
        """Return the same :meth:`channel` each time, and a new one after an error has closed it."""
        self.check_owner()
        channel = self._standing
        if channel is None or not channel.is_open:
            if channel is not None:
                self.channel_closed(channel)
            self._standing = None
            channel = self.channel(prefetch, seconds)
            self._closing_method = closing_method(channel._impl)
            self._standing = channel
        return channel

    @property
    def is_closed_over_publish(self) -> bool:
        """Whether the broker has closed the standing channel, over a message."""
        return self._closing_method() == BASIC_PUBLISH

    def channel_closed(self, channel: BlockingChannel, otherwise: BaseException | None = None) -> BaseException:
        """Say that *channel* was found closed, and return why: what Pika kept of it, or *otherwise*."""
        reason = getattr(channel, "_closing_reason", None) or otherwise or px.ChannelWrongStateError()
        self.tell(ChannelClosed, number=channel.channel_number, reason=reason)
        return reason

    def end_channel(self, channel: BlockingChannel, seconds: float) -> LabkitError | None:
        """Close *channel*: the broker takes back all that is unacknowledged there. Return what went wrong.

        An answer that takes longer than *seconds* is not waited for: it costs no link, which may only be slow.
        """
        if not (self.is_open and channel.is_open):
            return None
        try:
            with self.call("closing the channel", CLOSE_TIMEOUT) as connection:
                # Not left to BlockingChannel: it rejects what waits in it, and that counts as failed.
                return_unsettled(channel._impl)
                channel._consumer_infos.clear()
                channel._impl.close()
                over: list[bool] = []
                timer = connection._impl.ioloop.call_later(seconds, lambda: over.append(True))
                channel._flush_output(lambda: bool(over))
                connection._impl.ioloop.remove_timeout(timer)
        except LabkitError as exc:
            LOGGER.info("the channel ended by itself: %s", exc)
            return exc
        except Exception as exc:  # noqa: BLE001 - it was left half-way; the link goes with it
            return self._lost("closing the channel", exc)
        self.tell(ChannelClosed, number=channel.channel_number)
        return None

    def run_soon(self, callback: Callable[[], object]) -> None:
        """Run *callback* on the owner's thread when it is next inside a call. Any thread may call this.

        What it raises leaves the owner's next :meth:`pump`, not the call that happens to wait for an answer: that
        answer would come later, and be taken for the next call's.

        Raises:
            NotConnected: the link is gone.
        """
        connection, wake_up = self._connection, self._wake_up
        if connection is None:
            raise self.not_connected()
        if not connection.is_open:
            raise NotConnected("the connection is closed", reason=px.ConnectionWrongStateError())
        # Not Pika's add_callback_threadsafe(): it holds a lock of its own while it writes, and a signal handler may
        # come while its own thread has it.
        self._soon.append(callback)
        if wake_up is not None:
            wake_up.ring()

    def close(self, *, timeout: float) -> None:
        """Ask the broker to close; drop the socket after *timeout* seconds. Never raises for a dead link."""
        connection = self._connection
        if connection is None:
            self._opening.drop()  # if an interrupt came before there was a connection
            return
        self.check_owner()
        if self._inside is not None and not self.is_in_callback:
            self.drop()  # its answers are not to be trusted
            return
        self._inside = connection
        clean = True
        try:
            with _limit(connection, timeout, "close"):
                connection.close()
        except Exception as exc:  # noqa: BLE001 - closing ends, whatever the link says
            clean = False
            LOGGER.info("closing: the link was dead already: %s", describe(exc))
            abort(connection._impl, exc)
        except BaseException:
            self.drop()
            raise
        self._connection = self._wake_up = None
        self.tell(ConnectionClosed, clean=clean)

    def drop(self) -> None:
        """Close the socket without asking the broker; nothing happens if the link has ended."""
        if self._connection is not None:
            self._lost("dropping", px.ConnectionOpenAborted("interrupted in the middle of a call"))

    def forget(self) -> object:
        """Be lost, in a child process after a fork: the link is the parent's. Return what must not be collected."""
        kept, opening = self._connection, self._opening
        opening.forget()
        if kept is not None:
            self.reason = px.ConnectionWrongStateError("made before a fork, and this is the child process")
        self._connection, self._wake_up, self._standing, self._opening = None, None, None, HalfOpenConnection()
        self._inside = None
        self.traffic = Traffic()
        return kept, opening

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

    def tell(self, event: type[Event], **facts: Any) -> None:
        """Emit *event* with *facts* and this connection's name."""
        self._factory.events.emit(event(connection=self._factory.settings.connection_name, **facts))

    def _usable(self) -> pika.BlockingConnection:
        self.check_owner()
        if self._inside is not None and not self.is_in_callback:
            self.drop()  # an interrupt ended an earlier call, and what should have done this
        if self._connection is None:
            raise self.not_connected()
        return self._connection

    def _run_callbacks(self) -> None:
        for _ in range(len(self._soon)):
            try:
                self._soon.popleft()()
            except BaseException as exc:  # noqa: BLE001 - raised again by pump(); here it would interrupt Pika
                self._raised.append(exc)

    def _lost(self, what: str, reason: Exception) -> NotConnected:
        if self._connection is not None:  # even if Pika says that it is closed: it may be half-way there
            abort(self._connection._impl, reason)
        self._connection, self._wake_up, self.reason = None, None, reason
        self.tell(ConnectionLost, reason=reason)
        return NotConnected(f"{what}: the link is gone: {describe(reason)}", reason=reason)


def left(ends: float) -> float:
    """Return the seconds until the clock says *ends*; a little more than 0 if it has, since Pika takes no less."""
    return max(0.001, ends - time.monotonic())


def answer_within(ends: float | None, longest: float = CALL_TIMEOUT) -> float:
    """Return the seconds for an answer: *longest*, or what is left until *ends* (None: no limit); at least GRACE."""
    return longest if ends is None else min(longest, max(GRACE, left(ends)))


def channel_lost(what: str, reason: BaseException) -> ChannelLost:
    """Return the error for a channel that *reason* closed."""
    hint = " (consume() acknowledges for you)" if "unknown delivery tag" in str(reason) else ""
    return ChannelLost(f"{what}: the channel is gone: {describe(reason)}{hint}", reason=reason)


def interrupted_pika(error: BaseException) -> bool:
    """Whether *error* came out of Pika's own code, rather than out of what was called around it."""
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        if str(trace.tb_frame.f_globals.get("__name__", "")).startswith("pika."):
            return True
        trace = trace.tb_next
    return False


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


_ALL: weakref.WeakSet[OwnedConnection] = weakref.WeakSet()
_INHERITED: list[object] = []  # what a child process must not collect: it belongs to the parent


def _in_child() -> None:
    _INHERITED.extend([each.forget() for each in list(_ALL)])


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_in_child)
