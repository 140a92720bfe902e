"""A ``BlockingConnection`` with one owner, small enough to read whole.

What it adds to Pika: queues are declared or missed loudly, publishes are confirmed, a message counts as done only
when its callback has returned, every error says what closed what, and every wait but ``consume()`` has a limit.
What it cannot add: Pika works only inside a call, so a connection that idles for three heartbeats is closed by the
broker. Call :meth:`SyncConnection.is_open` or publish now and then, or use ``labkit.Connection``.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import pika
import pika.exceptions as px
from pika.adapters.blocking_connection import BlockingChannel

from labkit.errors import (
    ChannelLost,
    DeadlineExceeded,
    LabkitError,
    LeaseError,
    NotConnected,
    OutcomeUnknown,
    PublishRejected,
    Unroutable,
    describe,
)
from labkit.events import (
    ChannelClosed,
    ChannelOpened,
    ConnectionClosed,
    ConnectionLost,
    ConsumerCancelled,
    Listener,
    MessageReturned,
)
from labkit.factory import ConnectionFactory
from labkit.settings import BrokerSettings
from labkit.topology import Message

LOGGER = logging.getLogger(__name__)
CALL_TIMEOUT = 30.0  # seconds for one answer of the broker
PUMP_STEP = 1.0  # seconds; consume() looks up this often even if the broker is silent

Callback = Callable[[BlockingChannel, Any, pika.BasicProperties, bytes], object]


class SyncConnection:
    """One connection and one channel, for one thread: the one that called :meth:`open`.

    The others may call :meth:`stop` and :meth:`add_callback_threadsafe` only; anything else is a ``LeaseError``.
    It does not reconnect: after ``NotConnected``, :meth:`open` it again.

    Args:
        settings: Where to connect; None: the defaults.
        prefetch: How many unacknowledged messages the broker may send ahead.
        declare: Declare a missing queue, durable. False: a missing queue is an error.
        listeners: Functions that hear of every event.
    """

    def __init__(
        self,
        settings: BrokerSettings | None = None,
        *,
        prefetch: int = 10,
        declare: bool = True,
        listeners: Iterable[Listener] = (),
    ) -> None:
        self.settings = settings if settings is not None else BrokerSettings()
        self.prefetch = prefetch
        self.declare = declare
        self._factory = ConnectionFactory(self.settings, listeners=listeners)
        self._events = self._factory.events
        self._connection: pika.BlockingConnection | None = None
        self._channel: BlockingChannel | None = None
        self._owner: int | None = None
        self._reason: BaseException | None = None
        self._known: set[str] = set()
        self._cancelled: set[str] = set()
        self._stop = threading.Event()

    def __repr__(self) -> str:
        return f"SyncConnection({'open' if self._connection is not None else 'closed'})"

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, _: TracebackType | None) -> None:
        self.close()  # never raises, so the body's own exception survives

    def open(self) -> Self:
        """Connect and open the channel; nothing happens if it is open.

        Raises:
            ConnectError: as :meth:`ConnectionFactory.blocking` does.
        """
        if self._connection is None:
            self._connection = self._factory.blocking()
            self._owner = threading.get_ident()
            self._reason, self._channel = None, None
            self._known.clear()
            self.channel  # noqa: B018 - opened now, so that what is wrong shows now
        self._check_owner()
        return self

    def close(self, *, timeout: float = 5.0) -> None:
        """Close within *timeout* seconds: ask, then drop the socket. Twice is fine; never raises for a dead link."""
        if self._connection is None:
            return
        self._check_owner()
        connection, self._connection, self._channel = self._connection, None, None
        clean = True
        try:
            with _limit(connection, timeout, "close"):
                connection.close()
        except Exception as exc:
            clean = False
            LOGGER.info("closing: the link was dead already: %s", describe(exc))
        self._events.emit(ConnectionClosed(clean=clean, connection=self.settings.connection_name))

    @property
    def is_open(self) -> bool:
        """Whether the link lives. Looks: Pika's own flag stays True until something reads from the socket."""
        if self._connection is None:
            return False
        try:
            with self._call("is_open") as connection:
                connection.process_data_events(0)
        except LabkitError:
            if self._connection is not None:
                raise
        return self._connection is not None

    @property
    def channel(self) -> BlockingChannel:
        """The channel: confirms on, prefetch set. Opened anew, with both, after an error has closed it."""
        if self._channel is None or not self._channel.is_open:
            with self._call("channel") as connection:
                channel = connection.channel()
                channel.confirm_delivery()
                channel.basic_qos(prefetch_count=self.prefetch)
                channel.add_on_cancel_callback(lambda frame: self._cancelled.add(frame.method.consumer_tag))
                self._channel = channel
            self._events.emit(ChannelOpened(number=channel.channel_number, connection=self.settings.connection_name))
        self._check_owner()
        return self._channel

    def publish(self, queue: str, message: Message | str | bytes, *, deadline: float = CALL_TIMEOUT) -> None:
        """Put *message* into *queue*, and return when the broker has confirmed it.

        Raises:
            Unroutable: the queue does not exist.
            PublishRejected: the broker said no; it may be full.
            OutcomeUnknown: the link ended, or *deadline* seconds went by, before the broker answered.
            ChannelLost, NotConnected: it was not sent; ``reason`` says what closed the channel or the link.
        """
        message = Message.of(message)
        with self._call("publish", deadline) as connection:
            connection.process_data_events(0)  # finds out here, not in mid-publish, that the link is dead
        if self.declare:
            self._find(queue, deadline)
        channel = self.channel
        try:
            with self._call("publish", deadline):
                channel.basic_publish("", queue, message.body, message.to_pika(), mandatory=True)
        except px.UnroutableError as exc:
            self._known.discard(queue)
            self._events.emit(MessageReturned(exchange="", routing_key=queue, message_id=message.message_id))
            raise Unroutable(f"no queue {queue!r}: the broker returned the message", routing_key=queue) from exc
        except px.NackError as exc:
            raise PublishRejected(f"the broker did not take the message for {queue!r}") from exc
        except NotConnected as exc:
            raise OutcomeUnknown(
                f"the link ended before the broker confirmed the message for {queue!r}: {exc}",
                message_id=message.message_id,
            ) from exc.reason

    def consume(self, queue: str, callback: Callback, auto_ack: bool = False, *, timeout: float | None = None) -> None:
        """Call *callback* (channel, method, properties, body) with each message until :meth:`stop`.

        A message is acknowledged when its callback has returned: do not acknowledge it yourself. If the callback
        raises, that message and those sent ahead go back to the queue and the exception leaves ``consume()``. With
        *auto_ack* the broker forgets each message as it sends it, so a crash loses all that were sent ahead.

        Args:
            queue: Declared first if it is missing (see ``declare``).
            callback: Runs on this thread. Heartbeats wait for it: keep it well under two of them.
            auto_ack: Trade the messages for speed.
            timeout: Seconds after which to return as if stopped; None: no limit.

        Raises:
            ChannelLost: the broker cancelled the consumer (queue deleted), or closed the channel.
            NotConnected: the link ended.
        """
        self._stop.clear()
        self._find(queue, CALL_TIMEOUT)
        consuming = _Consuming(callback, auto_ack, self._stop)
        channel = self.channel
        with self._call("consume"):
            tag = channel.basic_consume(queue, consuming.on_message, auto_ack=auto_ack)
        ends = None if timeout is None else time.monotonic() + timeout
        try:
            while not self._stop.is_set() and (ends is None or time.monotonic() < ends):
                step = PUMP_STEP if ends is None else max(0.0, min(PUMP_STEP, ends - time.monotonic()))
                with self._call("consume", None) as connection:
                    connection.process_data_events(step)
                consuming.reraise()
                self._check_consumer(channel, tag, queue)
        finally:
            self._end_consumer(channel, tag, consuming)
        consuming.reraise()

    def stop(self) -> None:
        """End a running :meth:`consume`. Any thread may call this; nothing happens if none runs."""
        self._stop.set()
        try:
            self.add_callback_threadsafe(lambda: None)  # wakes the loop up
        except NotConnected:
            LOGGER.debug("nothing to stop")

    def add_callback_threadsafe(self, callback: Callable[[], object]) -> None:
        """Run *callback* on the owner's thread, the next time it is inside a call. Any thread may call this.

        Raises:
            NotConnected: there is no open connection.
        """
        connection = self._connection
        if connection is None:
            raise self._not_connected()
        try:
            connection.add_callback_threadsafe(callback)
        except px.ConnectionWrongStateError as exc:
            raise NotConnected("the connection is closed", reason=exc) from exc

    def _find(self, queue: str, deadline: float) -> None:
        """Declare *queue*, durable, unless it is there; leave one that is there as it is."""
        if queue in self._known:
            return
        try:
            with self._call("declare", deadline) as connection:
                probe = connection.channel()  # its own channel: a 404 closes the one that asked
                probe.queue_declare(queue, passive=True)
                probe.close()
        except ChannelLost as exc:
            if not self.declare or getattr(exc.reason, "reply_code", None) != 404:
                raise
            channel = self.channel
            with self._call("declare", deadline):
                channel.queue_declare(queue, durable=True)
        self._known.add(queue)

    def _check_consumer(self, channel: BlockingChannel, tag: str, queue: str) -> None:
        reason: BaseException | None = None
        if tag in self._cancelled:
            self._known.discard(queue)
            reason = px.ConsumerCancelled()
            self._events.emit(ConsumerCancelled(queue=queue, consumer_tag=tag))
            raise ChannelLost(f"the broker cancelled the consumer: queue {queue!r} is gone", reason=reason) from reason
        if not channel.is_open and self._connection is not None:
            raise self._channel_lost(
                "consume", getattr(channel, "_closing_reason", None) or px.ChannelWrongStateError()
            )

    def _end_consumer(self, channel: BlockingChannel, tag: str, consuming: "_Consuming") -> None:
        if self._connection is None or not channel.is_open or tag in self._cancelled:
            self._cancelled.discard(tag)
            return
        try:
            with self._call("cancel"):
                # Gives back to the queue what was sent ahead; with auto_ack it is ours alone now, so finish it.
                for method, properties, body in channel.basic_cancel(tag):
                    consuming.on_message(channel, method, properties, body)
        except LabkitError as exc:
            LOGGER.info("the consumer ended with its link: %s", exc)

    @contextmanager
    def _call(self, what: str, seconds: float | None = CALL_TIMEOUT) -> Iterator[pika.BlockingConnection]:
        """Do something with Pika: on the right thread, for a limited time, with errors that are ours."""
        if self._connection is None:
            raise self._not_connected()
        self._check_owner()
        connection = self._connection
        try:
            with _limit(connection, seconds, what):
                if not connection.is_open:
                    raise px.ConnectionWrongStateError("the connection is closed")
                yield connection
        except (px.UnroutableError, px.NackError):
            raise
        except px.AMQPChannelError as exc:
            if connection.is_open:
                raise self._channel_lost(what, exc) from exc
            raise self._lost(what, exc) from exc
        except (px.AMQPConnectionError, DeadlineExceeded, OSError) as exc:
            raise self._lost(what, exc) from exc

    def _check_owner(self) -> None:
        if self._owner not in (None, threading.get_ident()):
            raise LeaseError(
                "this connection belongs to the thread that opened it; from another one, call stop() or "
                "add_callback_threadsafe(), or open a connection of your own"
            )

    def _not_connected(self) -> NotConnected:
        why = "it is not open: call open()" if self._reason is None else f"the link is gone: {describe(self._reason)}"
        return NotConnected(why, reason=self._reason)

    def _lost(self, what: str, reason: Exception) -> NotConnected:
        self._connection, self._channel, self._reason = None, None, reason
        self._events.emit(ConnectionLost(reason=reason, connection=self.settings.connection_name))
        return NotConnected(f"{what}: the link is gone: {describe(reason)}", reason=reason)

    def _channel_lost(self, what: str, reason: BaseException) -> ChannelLost:
        if self._channel is not None and not self._channel.is_open:
            number, self._channel = self._channel.channel_number, None
            self._events.emit(ChannelClosed(number=number, reason=reason, connection=self.settings.connection_name))
        return ChannelLost(f"{what}: the channel is gone: {describe(reason)}", reason=reason)


class _Consuming:
    """What one ``consume()`` does with each message; keeps the callback's exception for the caller."""

    def __init__(self, callback: Callback, auto_ack: bool, stop: threading.Event) -> None:
        self._callback = callback
        self._auto_ack = auto_ack
        self._stop = stop
        self._crash: BaseException | None = None

    def on_message(self, channel: BlockingChannel, method: Any, properties: pika.BasicProperties, body: bytes) -> None:
        # After the end, messages that were sent ahead still arrive here: give them back, unless nobody else has them.
        if self._crash is not None or (self._stop.is_set() and not self._auto_ack):
            if not self._auto_ack:
                channel.basic_nack(method.delivery_tag, requeue=True)
            return
        try:
            self._callback(channel, method, properties, body)
        except BaseException as exc:
            self._crash = exc  # raised by consume(), so that it is not taken for an error of the link
            if not self._auto_ack and channel.is_open:
                channel.basic_nack(method.delivery_tag, requeue=True)
            return
        if not self._auto_ack:
            channel.basic_ack(method.delivery_tag)

    def reraise(self) -> None:
        if self._crash is not None:
            raise self._crash


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
