"""A ``BlockingConnection`` with one owner, small enough to read whole.

What it adds to Pika: queues are declared or missed loudly, publishes are confirmed, a message counts as done only
when its callback has returned, every error says what closed what, and every wait but ``consume()`` has a limit.
What it cannot add: Pika works only inside a call, so the broker closes a connection that idles for three
heartbeats. Look at ``is_open`` or publish now and then; or use ``labkit.Connection``, which has a thread for that.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Self

import pika
import pika.exceptions as px
from pika.adapters.blocking_connection import BlockingChannel

from labkit.errors import ChannelLost, LeaseError, NotConnected, OutcomeUnknown, PublishRejected, Unroutable
from labkit.events import ConsumerCancelled, Listener, MessageReturned
from labkit.factory import ConnectionFactory
from labkit.owned import CALL_TIMEOUT, CLOSE_TIMEOUT, OwnedConnection, channel_lost
from labkit.settings import BrokerSettings
from labkit.topology import Message
from labkit.validation import checked_name, checked_number

LOGGER = logging.getLogger(__name__)
PUMP_STEP = 1.0  # seconds; consume() looks up this often even if the broker is silent

Callback = Callable[[BlockingChannel, Any, pika.BasicProperties, bytes], object]


class SyncConnection:
    """One connection, with a channel of yours and one for :meth:`consume`, for the thread that called :meth:`open`.

    The others may call :meth:`stop` and :meth:`add_callback_threadsafe` only; anything else is a ``LeaseError``.
    It does not reconnect: after ``NotConnected``, :meth:`open` it again.

    Args:
        settings: Where to connect; None: the defaults.
        prefetch: How many unacknowledged messages the broker may send ahead.
        declare: Declare a missing queue, durable. False: a missing queue is an error.
        listeners: Functions that hear of every event.

    Raises:
        ConfigurationError: here, as from every method, a value that cannot be, before anything is sent.
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
        self.prefetch = checked_number("prefetch", prefetch, 65535, whole=True)
        self.declare = declare
        self._factory = ConnectionFactory(self.settings, listeners=listeners)
        self._link: OwnedConnection | None = None
        self._channel: BlockingChannel | None = None
        self._known: set[str] = set()  # queues that were there when we looked
        self._stop = threading.Event()
        self._is_consuming = False

    def __repr__(self) -> str:
        return f"SyncConnection({'open' if self._link is not None and self._link.is_open else 'closed'})"

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, _: TracebackType | None) -> None:
        self.close()  # raises nothing for a dead link, so the body's own exception survives

    def open(self) -> Self:
        """Connect and open the channel; nothing happens if it is open.

        Raises:
            ConnectError: as :meth:`ConnectionFactory.blocking` does.
        """
        if not self.is_open:
            connection = self._factory.blocking()
            self._link = OwnedConnection(connection, self._factory.events, self.settings.connection_name)
            self._channel = None
            self._known.clear()
            try:
                self.channel  # noqa: B018 - now, so that what is wrong with it shows now
            except BaseException:
                self.close()
                raise
        return self

    def close(self, *, timeout: float = CLOSE_TIMEOUT) -> None:
        """Close within *timeout* seconds: ask, then drop the socket. Twice is fine."""
        checked_number("timeout", timeout)
        if self._link is not None:
            self._link.close(timeout=timeout)
            self._channel = None

    @property
    def is_open(self) -> bool:
        """Whether the link lives. It looks: Pika's own flag stays True until something reads from the socket."""
        if self._link is None or not self._link.is_open:
            return False
        try:
            self._link.pump()
        except NotConnected:
            return False
        return True

    @property
    def channel(self) -> BlockingChannel:
        """Pika's channel, with confirms and prefetch. Opened anew, with both, after an error has closed it."""
        return self._channel_within(CALL_TIMEOUT)

    def publish(self, queue: str, message: Message | str | bytes, *, deadline: float = CALL_TIMEOUT) -> None:
        """Put *message* into *queue*, and return when the broker has confirmed it.

        Raises:
            Unroutable: the queue does not exist.
            PublishRejected: the broker said no; it may be full.
            OutcomeUnknown: the link ended, or *deadline* seconds went by, before the broker answered.
            ChannelLost, NotConnected: it was not sent; ``reason`` says what closed the channel or the link.
        """
        message = Message.of(message)
        checked_name("queue", queue)
        ends = time.monotonic() + checked_number("deadline", deadline)
        link = self._opened()
        link.pump()  # finds out here, not in mid-publish, that the link is dead
        if self.declare:
            self._find(queue, ends)
        channel = self._channel_within(_left(ends))
        try:
            with link.call("publish", _left(ends)):
                channel.basic_publish("", queue, message.body, message.to_pika(), mandatory=True)
        except px.UnroutableError as exc:
            self._known.discard(queue)
            name = self.settings.connection_name
            event = MessageReturned(exchange="", routing_key=queue, message_id=message.message_id, connection=name)
            self._factory.events.emit(event)
            raise Unroutable(f"no queue {queue!r}: the broker returned the message", routing_key=queue) from exc
        except px.NackError as exc:
            raise PublishRejected(f"the broker did not take the message for {queue!r}") from exc
        except NotConnected as exc:
            text = f"the link ended before the broker confirmed the message for {queue!r}: {exc}"
            raise OutcomeUnknown(text, message_id=message.message_id) from exc.reason

    def consume(self, queue: str, callback: Callback, auto_ack: bool = False, *, timeout: float | None = None) -> None:
        """Call *callback* (channel, method, properties, body) with each message until :meth:`stop`.

        A message is acknowledged when its callback has returned: do not acknowledge it yourself. If the callback
        raises, or Ctrl-C interrupts it, that message and those sent ahead go back to the queue and the exception
        leaves ``consume()``: the consumer has a channel of its own, and closing that gives them back. With
        *auto_ack* the broker forgets each message as it sends it, so a crash loses all that were sent ahead.

        Args:
            queue: Declared first if it is missing (see ``declare``).
            callback: Runs on this thread. Heartbeats wait for it: keep it well under two of them.
            auto_ack: Trade the messages for speed.
            timeout: Seconds after which to return as if stopped; None: no limit.

        Raises:
            ChannelLost: the broker cancelled the consumer (queue deleted), or closed the channel.
            NotConnected: the link ended.
            LeaseError: a callback of this connection's running ``consume()`` called it.
        """
        checked_name("queue", queue)
        ends = None if timeout is None else time.monotonic() + checked_number("timeout", timeout)
        link = self._opened()
        link.check_owner()
        if self._is_consuming:  # Pika gives no message to a loop inside a callback: it would wait for ever
            raise LeaseError("this connection consumes already; open another one for a consumer inside a callback")
        self._find(queue, time.monotonic() + CALL_TIMEOUT)
        work = _Work(callback, auto_ack, self._stop)
        self._stop.clear()
        self._is_consuming = True
        channel: BlockingChannel | None = None
        try:
            channel = link.channel(self.prefetch)
            channel.add_on_cancel_callback(work.cancel)
            with link.call("consume"):
                tag = channel.basic_consume(queue, work.do, auto_ack=auto_ack)
            while link.is_open and not self._stop.is_set() and (ends is None or time.monotonic() < ends):
                link.pump(PUMP_STEP if ends is None else min(PUMP_STEP, _left(ends)))
                self._check(link, channel, queue, work)
            if auto_ack and link.is_open:
                with link.call("ending the consumer"):
                    sent_ahead = channel.basic_cancel(tag)
                for delivery in sent_ahead:  # the broker has forgotten them: finish them
                    work.do(channel, *delivery)
        finally:
            self._is_consuming = False
            try:
                problem = None if channel is None else link.end_channel(channel)
            except BaseException:  # a second interrupt: what is unacknowledged must not stay with an open link
                link.drop()
                raise
        work.reraise()
        if problem is not None:
            raise problem

    def stop(self) -> None:
        """End a running :meth:`consume`. Any thread may call this; nothing happens if none runs."""
        self._stop.set()
        try:
            self.add_callback_threadsafe(lambda: None)  # wakes the loop up
        except NotConnected:
            LOGGER.debug("nothing to stop")

    def add_callback_threadsafe(self, callback: Callable[[], object]) -> None:
        """Run *callback* on the owner's thread, the next time it is inside a call. Any thread may call this.

        What it raises leaves ``consume()``, or the owner's next call.

        Raises:
            NotConnected: there is no open connection.
        """
        self._opened().run_soon(callback)

    def _opened(self) -> OwnedConnection:
        if self._link is None:
            raise NotConnected("it is not open: call open()")
        if not self._link.is_open:
            raise self._link.not_connected()
        return self._link

    def _channel_within(self, seconds: float) -> BlockingChannel:
        link = self._opened()
        link.check_owner()
        if self._channel is None or not self._channel.is_open:
            if self._channel is not None:
                link.channel_closed(self._channel)
            self._channel = None
            self._channel = link.channel(self.prefetch, seconds)
        return self._channel

    def _find(self, queue: str, ends: float) -> None:
        """Declare *queue*, durable, unless it is there; leave one that is there as it is."""
        if queue in self._known:
            return
        link = self._opened()
        try:
            with link.call("declare", _left(ends)) as connection:
                probe = connection.channel()  # its own channel: a 404 closes the one that asked
                probe.queue_declare(queue, passive=True)
                probe.close()
        except ChannelLost as exc:
            code = getattr(exc.reason, "reply_code", None)
            if code == 404 and self.declare:
                channel = self._channel_within(_left(ends))
                with link.call("declare", _left(ends)):
                    channel.queue_declare(queue, durable=True)
            elif code != 405:  # 405: it is there, another connection's; publishing to it is allowed
                raise
        self._known.add(queue)

    def _check(self, link: OwnedConnection, channel: BlockingChannel, queue: str, work: "_Work") -> None:
        """Raise what has ended the consumer, if anything has."""
        if not isinstance(work.crash, px.AMQPError):
            work.reraise()  # the callback's own; one of Pika's comes from what we look at below
        if work.is_cancelled:
            self._known.discard(queue)
            cancelled = px.ConsumerCancelled()
            self._factory.events.emit(ConsumerCancelled(queue=queue, connection=self.settings.connection_name))
            text = f"the broker cancelled the consumer: queue {queue!r} is gone"
            raise ChannelLost(text, reason=cancelled) from cancelled
        if link.is_open and not channel.is_open:
            reason = link.channel_closed(channel, work.crash)
            raise channel_lost("consume", reason) from reason
        work.reraise()


class _Work:
    """What one ``consume()`` does with each message; keeps the callback's exception for the caller."""

    def __init__(self, callback: Callback, auto_ack: bool, stop: threading.Event) -> None:
        self._callback = callback
        self._auto_ack = auto_ack
        self._stop = stop
        self.crash: BaseException | None = None
        self.is_cancelled = False

    def do(self, channel: BlockingChannel, method: Any, properties: pika.BasicProperties, body: bytes) -> None:
        if self.crash is not None or (self._stop.is_set() and not self._auto_ack):
            return  # not acknowledged, so it goes back to the queue when the channel closes
        try:
            self._callback(channel, method, properties, body)
            if not self._auto_ack and channel.is_open:
                channel.basic_ack(method.delivery_tag)
        except BaseException as exc:  # noqa: BLE001 - kept for consume(): raised here, Pika would pass it on half-done
            self.crash = exc

    def cancel(self, _: Any) -> None:
        self.is_cancelled = True

    def reraise(self) -> None:
        if self.crash is not None:
            raise self.crash


def _left(ends: float) -> float:
    return max(0.001, ends - time.monotonic())  # Pika refuses a limit below 0
