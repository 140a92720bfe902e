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

from labkit.errors import ChannelLost, LabkitError, NotConnected, OutcomeUnknown, PublishRejected, Unroutable
from labkit.events import ChannelClosed, ChannelOpened, ConsumerCancelled, Event, Listener, MessageReturned
from labkit.factory import ConnectionFactory
from labkit.owned import CALL_TIMEOUT, OwnedConnection, channel_lost
from labkit.settings import BrokerSettings
from labkit.topology import Message

LOGGER = logging.getLogger(__name__)
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
        self._link: OwnedConnection | None = None
        self._channel: BlockingChannel | None = None
        self._known: set[str] = set()  # queues that were there when we looked
        self._cancelled: set[str] = set()  # consumers that the broker ended
        self._stop = threading.Event()

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
        if self._link is None or not self._link.is_open:
            connection = self._factory.blocking()
            self._link = OwnedConnection(connection, self._factory.events, self.settings.connection_name)
            self._channel = None
            self._known.clear()
        self.channel  # noqa: B018 - now, so that what is wrong with it shows now
        return self

    def close(self, *, timeout: float = 5.0) -> None:
        """Close within *timeout* seconds: ask, then drop the socket. Twice is fine."""
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
        link = self._opened()
        link.check_owner()
        if self._channel is None or not self._channel.is_open:
            with link.call("opening a channel") as connection:
                channel = connection.channel()
                channel.confirm_delivery()
                channel.basic_qos(prefetch_count=self.prefetch)
                channel.add_on_cancel_callback(lambda frame: self._cancelled.add(frame.method.consumer_tag))
            self._channel = channel
            self._emit(ChannelOpened, number=channel.channel_number)
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
        ends = time.monotonic() + deadline
        link = self._opened()
        link.pump()  # finds out here, not in mid-publish, that the link is dead
        if self.declare:
            self._find(queue, deadline)
        channel = self.channel
        try:
            with link.call("publish", max(0.001, ends - time.monotonic())):
                channel.basic_publish("", queue, message.body, message.to_pika(), mandatory=True)
        except px.UnroutableError as exc:
            self._known.discard(queue)
            self._emit(MessageReturned, exchange="", routing_key=queue, message_id=message.message_id)
            raise Unroutable(f"no queue {queue!r}: the broker returned the message", routing_key=queue) from exc
        except px.NackError as exc:
            raise PublishRejected(f"the broker did not take the message for {queue!r}") from exc
        except NotConnected as exc:
            text = f"the link ended before the broker confirmed the message for {queue!r}: {exc}"
            raise OutcomeUnknown(text, message_id=message.message_id) from exc.reason

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
        ends = None if timeout is None else time.monotonic() + timeout
        link = self._opened()
        self._find(queue, CALL_TIMEOUT)
        channel = self.channel
        work = _Work(callback, auto_ack, self._stop)
        with link.call("consume"):
            tag = channel.basic_consume(queue, work.do, auto_ack=auto_ack)
        try:
            while link.is_open and not self._stop.is_set() and (ends is None or time.monotonic() < ends):
                link.pump(PUMP_STEP if ends is None else max(0.0, min(PUMP_STEP, ends - time.monotonic())))
                self._check_consumer(link, channel, tag, queue, work)
        finally:
            self._end_consumer(link, channel, tag, work)
        work.reraise()

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
        self._opened().run_soon(callback)

    def _opened(self) -> OwnedConnection:
        if self._link is None:
            raise NotConnected("it is not open: call open()")
        if not self._link.is_open:
            raise self._link.not_connected()
        return self._link

    def _emit(self, event: Callable[..., Event], **facts: Any) -> None:
        self._factory.events.emit(event(connection=self.settings.connection_name, **facts))

    def _find(self, queue: str, deadline: float) -> None:
        """Declare *queue*, durable, unless it is there; leave one that is there as it is."""
        if queue in self._known:
            return
        link = self._opened()
        try:
            with link.call("declare", deadline) as connection:
                probe = connection.channel()  # its own channel: a 404 closes the one that asked
                probe.queue_declare(queue, passive=True)
                probe.close()
        except ChannelLost as exc:
            if not self.declare or getattr(exc.reason, "reply_code", None) != 404:
                raise
            channel = self.channel
            with link.call("declare", deadline):
                channel.queue_declare(queue, durable=True)
        self._known.add(queue)

    def _check_consumer(
        self, link: OwnedConnection, channel: BlockingChannel, tag: str, queue: str, work: "_Work"
    ) -> None:
        if not isinstance(work.crash, px.AMQPError):
            work.reraise()  # the callback's own; one of Pika's comes from what we look at below
        if tag in self._cancelled:
            self._known.discard(queue)
            self._emit(ConsumerCancelled, queue=queue, consumer_tag=tag)
            cancelled = px.ConsumerCancelled()
            text = f"the broker cancelled the consumer: queue {queue!r} is gone"
            raise ChannelLost(text, reason=cancelled) from cancelled
        if link.is_open and not channel.is_open:
            reason = getattr(channel, "_closing_reason", None) or work.crash or px.ChannelWrongStateError()
            self._emit(ChannelClosed, number=channel.channel_number, reason=reason)
            raise channel_lost("consume", reason) from reason
        work.reraise()

    def _end_consumer(self, link: OwnedConnection, channel: BlockingChannel, tag: str, work: "_Work") -> None:
        if tag in self._cancelled or not (link.is_open and channel.is_open):
            self._cancelled.discard(tag)
            return
        try:
            with link.call("ending the consumer"):
                # Pika gives back to the queue what was sent ahead; with auto_ack it is ours alone now, so finish it.
                for method, properties, body in channel.basic_cancel(tag):
                    work.do(channel, method, properties, body)
                for delivery_tag in () if work.auto_ack else work.unfinished:
                    channel.basic_nack(delivery_tag, requeue=True)
        except LabkitError as exc:
            LOGGER.info("the consumer ended with its link: %s", exc)


class _Work:
    """What one ``consume()`` does with each message; keeps the callback's exception for the caller."""

    def __init__(self, callback: Callback, auto_ack: bool, stop: threading.Event) -> None:
        self._callback = callback
        self.auto_ack = auto_ack
        self._stop = stop
        self.crash: BaseException | None = None
        self.unfinished: list[int] = []

    def do(self, channel: BlockingChannel, method: Any, properties: pika.BasicProperties, body: bytes) -> None:
        if self.crash is not None or (self._stop.is_set() and not self.auto_ack):
            # Not given back yet: the broker would send it again at once, and again, until the consumer has ended.
            self.unfinished.append(method.delivery_tag)
            return
        try:
            self._callback(channel, method, properties, body)
        except BaseException as exc:  # noqa: BLE001 - kept for consume(): raised here, Pika would pass it on half-done
            self.crash = exc
            self.unfinished.append(method.delivery_tag)
            return
        if not self.auto_ack and channel.is_open:
            channel.basic_ack(method.delivery_tag)

    def reraise(self) -> None:
        if self.crash is not None:
            raise self.crash
