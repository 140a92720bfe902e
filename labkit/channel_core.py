"""The side of a channel that lives on the I/O thread: Pika's channel, and who waits for which answer.

Holds neither the user's ``Channel`` nor its ``Connection``, so that both can be collected when they are forgotten.
"""

import contextlib
import logging
import struct
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pika
import pika.exceptions as px

from labkit.channel_confirms import Confirms
from labkit.delivery import Delivery
from labkit.errors import ChannelLost, ConfigurationError, LabkitError, describe
from labkit.events import ChannelClosed, ChannelOpened, ConsumerCancelled, MessageReturned
from labkit.io_thread import Waiter
from labkit.link import Link
from labkit.mailbox import Mailbox
from labkit.private_pika import unsent_bytes
from labkit.topology import Message
from labkit.topology_record import TopologyRecord

LOGGER = logging.getLogger(__name__)
UNSENT_MAX = 8 * 1024 * 1024  # bytes that may wait for the socket before publishes wait too
WAITING_MAX = 65536  # deliveries; the largest prefetch is 65535
UNSENT_PAUSE = 0.02  # seconds between two looks at them
# What Pika and Python raise for a value that does not fit AMQP (a long name, an odd header); nothing was sent.
NOT_SENDABLE = (
    px.ShortStringTooLong,
    px.UnsupportedAMQPFieldException,
    struct.error,
    TypeError,
    ValueError,
    AttributeError,
    OverflowError,
)


class Request:
    """One call on its way: what to do on the I/O thread, and who waits for the answer.

    Args:
        begin: Sends it; later it, or Pika's callback, settles the request.
        is_publish: It may be held back while the broker takes no publishes.
    """

    __slots__ = ("begin", "is_publish", "waiter")

    def __init__(self, begin: Callable[["Request"], None], *, is_publish: bool = False) -> None:
        self.begin = begin
        self.is_publish = is_publish
        self.waiter = Waiter()

    def settle(self, value: Any = None) -> None:
        """Answer."""
        self.waiter.settle(value)


@dataclass(eq=False)
class _Consumer:
    queue: str
    handler: Callable[[Delivery], object]
    mailbox: Mailbox
    waiting: dict[int, Delivery] = field(default_factory=dict)  # queued for the handler, by delivery tag
    is_counted: bool = False  # in the record of the topology
    is_cancelled: bool = False


class Core:
    """One Pika channel on one link. On the I/O thread only, but for ``reason`` and what begins with ``is_``."""

    def __init__(self, link: Link, facade: object, topology: TopologyRecord, *, confirm: bool = False) -> None:
        self.link = link
        self._topology = topology
        self.confirms = Confirms() if confirm else None
        self._has_delivered = False
        self._facade = weakref.ref(facade)
        self._unsettled = 0  # messages got here and not settled
        self.io = link.io
        self.pika: Any = None
        self.number = 0
        self.prefetch: int | None = None
        self.reason: BaseException | None = None
        self.is_open = False
        self.is_closed = False
        self.is_doubtful = False  # a call was interrupted, and whether that ends the channel is not known yet
        self._pending: set[Request] = set()
        self._gets: deque[tuple[str, Request]] = deque()
        self._held: deque[Request] = deque()
        self._consumers: dict[str, _Consumer] = {}
        self._is_polling = False

    def tick(self) -> None:
        """Close a channel that nobody can use any more: an interrupt may have come before its user had it."""
        self._prune()
        if self.is_open and self._facade() is None and not (self._consumers or self._unsettled):
            self._end(None)

    def begin(self, request: Request) -> None:
        """Start *request*, unless nobody waits for it any more."""
        if request.waiter.is_abandoned:
            return
        if self.is_closed:
            request.waiter.settle(error=self.lost())
            return
        if request.is_publish and (self._held or not self._may_publish()):
            self._held.append(request)
            self._look_again()
            return
        self._start(request)

    def give_up(self, request: Request, reason: BaseException) -> None:
        """Its caller waits no more: if it was sent and the answer not taken, the channel cannot be trusted any more."""
        asked = [each for _, each in self._gets][1:]  # these wait for the first one's answer
        if request in self._held:
            self._held.remove(request)
        elif request in asked:
            self._gets = deque(each for each in self._gets if each[1] is not request)
            self._pending.discard(request)
        elif request.waiter.is_settled:  # interrupted just then; a message that it got would never be settled
            if not request.is_publish:
                self._end(reason)
        elif request in self._pending:
            self._end(reason)

    def open(self, request: Request) -> None:
        """Open Pika's channel."""
        connection = self.link.connection
        if connection is None or not self.link.is_open:
            raise self.lost(self.link.reason or px.ConnectionWrongStateError("the connection is closed"))

        def opened(_: Any) -> None:
            if not self.is_closed:
                self.is_open = True
                self.link.emit(ChannelOpened(number=self.number))
            if self.confirms is None or self.is_closed:
                request.settle()
            else:
                self.pika.confirm_delivery(self.confirms.answered, callback=request.settle)

        try:
            self.pika = connection.channel(on_open_callback=opened)
        except px.AMQPError as exc:
            self.is_closed, self.reason = True, exc
            raise self.lost() from exc
        self.number = self.pika.channel_number
        self.link.channels.add(self)
        self.pika.add_on_close_callback(lambda _, reason: self._end(reason))
        self.pika.add_on_return_callback(self._returned)
        self.pika.add_on_cancel_callback(self._cancelled_by_broker)
        # One for all gets: a callback a call would pile up, for Pika 1.4 cannot take one back.
        self.pika.add_callback(lambda _: self._got(None), [pika.spec.Basic.GetEmpty], one_shot=False)

    def close(self, request: Request) -> None:
        """Close it, asked for by this side."""
        channel = self.pika
        self._end(None, but=request)
        if channel is None or channel.is_closed or not self.link.is_open:
            request.settle()
        else:
            channel.add_on_close_callback(lambda *_: request.settle())

    def link_ended(self, reason: BaseException) -> None:
        """The channel is gone with its link."""
        self._end(reason)

    def forget(self, reason: BaseException) -> None:
        """Be closed, in a child process after a fork: no lock, no event, no word to the broker."""
        self.is_open, self.is_closed, self.reason = False, True, reason

    def resume(self) -> None:
        """Send the publishes that were held back, as far as they may go."""
        while self._held and self._may_publish():
            self._start(self._held.popleft())

    def get(self, queue: str, request: Request) -> None:
        """Ask for one message; one get at a time, for the answer does not say whose it is."""
        self._gets.append((queue, request))
        if len(self._gets) == 1:
            self._ask()

    def consume(self, queue: str, handler: Callable[[Delivery], object], request: Request) -> None:
        """Start a consumer; the request gets its tag."""
        consumer = _Consumer(queue, handler, Mailbox("labkit-consumer", limit=WAITING_MAX))

        def consuming(_: Any) -> None:
            if not consumer.is_cancelled:
                consumer.is_counted = True
                self._topology.consumed(queue)
            request.settle(tag)

        tag: str = self.pika.basic_consume(
            queue,
            lambda _, method, properties, body: self._deliver(consumer, method, properties, body),
            callback=consuming,
        )
        self._consumers[tag] = consumer

    def cancel(self, tag: str, request: Request) -> None:
        """End a consumer."""
        consumer = self._consumers.pop(tag, None)
        if consumer is None:
            request.settle()
            return
        self._over(consumer, self._topology.cancelled)

        def cancelled(_: Any) -> None:
            for each in _take_all(consumer.waiting):
                self._unsettled -= 1
                self.pika.basic_nack(each, requeue=True)
            request.settle()

        self.pika.basic_cancel(tag, callback=cancelled)

    def settle(self, verb: str, tag: int, requeue: bool, timeout: float, may_send: Callable[[], bool]) -> None:
        """Send the answer for a delivery; from any thread."""

        def send() -> None:
            if not self.is_open:
                raise self.lost()
            if not may_send():
                return
            self._unsettled -= 1
            try:
                if verb == "ack":
                    self.pika.basic_ack(tag)
                elif verb == "nack":
                    self.pika.basic_nack(tag, requeue=requeue)
                else:
                    self.pika.basic_reject(tag, requeue=requeue)
            except px.AMQPError as exc:  # closed between its last sign of life and now
                raise self.lost(self.reason or exc) from exc

        self.io.call(send, timeout=timeout)

    @property
    def is_clean(self) -> bool:
        """Whether the next user would meet nothing of the last one's: no consumer, no message, no open call.

        From any thread.
        """
        if self.is_doubtful:
            return False
        is_awaited = any(not each.waiter.is_settled for each in (*self._pending, *self._held))
        return self.prefetch is None and not self._has_delivered and not is_awaited

    def lost(self, reason: BaseException | None = None) -> ChannelLost:
        """Return the error for using it after its end."""
        reason = reason or self.reason
        text = "it was closed by this side" if reason is None else describe(reason)
        return ChannelLost(f"the channel is gone: {text}", reason=reason)

    def _start(self, request: Request) -> None:
        if request.waiter.is_abandoned:
            return
        self._prune()
        self._pending.add(request)
        try:
            request.begin(request)
        except NOT_SENDABLE as exc:
            problem = ConfigurationError(f"this cannot be sent: {describe(exc)}")
            problem.__cause__ = exc
            request.waiter.settle(error=problem)
        except LabkitError as exc:
            request.waiter.settle(error=exc)
        except px.AMQPError as exc:  # closed between its last sign of life and now
            request.waiter.settle(error=self.lost(self.reason or exc))
        if request.waiter.is_settled:
            self._pending.discard(request)

    def _prune(self) -> None:
        self._pending = {each for each in self._pending if not each.waiter.is_settled}

    def _may_publish(self) -> bool:
        connection = self.link.connection
        return not self.link.is_blocked and connection is not None and unsent_bytes(connection) < UNSENT_MAX

    def _look_again(self) -> None:
        """An alarm's end is told; that the socket takes bytes again is not."""
        if self._is_polling:
            return
        self._is_polling = True

        def look() -> None:
            self._is_polling = False
            self.resume()
            if self._held:
                self._look_again()

        self.io.call_later(UNSENT_PAUSE, look)

    def _end(self, reason: BaseException | None, but: Request | None = None) -> None:
        """The channel is over, for *reason*; None: this side closed it."""
        if self.is_closed:
            return
        was_open = self.is_open
        self.is_open, self.is_closed, self.reason = False, True, reason
        self.link.channels.discard(self)
        for request in (*self._pending, *self._held):
            if request is not but:
                request.waiter.settle(error=self.lost())
        self._pending.clear()
        self._held.clear()
        self._gets.clear()
        # Pika tells the channels before the link; and the end of the link is no cancel.
        is_link_lost = not self.link.is_open or isinstance(reason, px.AMQPConnectionError)
        for consumer in self._consumers.values():
            self._over(consumer, self._topology.lost if is_link_lost else self._topology.cancelled)
            consumer.waiting.clear()
        self._consumers.clear()
        if self.pika is not None and not (self.pika.is_closed or self.pika.is_closing) and self.link.is_open:
            self.pika.close()
        if was_open:
            asked = isinstance(reason, px.ConnectionClosedByClient)  # the connection was closed, by this side
            self.link.emit(ChannelClosed(number=self.number, reason=None if asked else reason))

    def _ask(self) -> None:
        queue, request = self._gets[0]
        try:
            self.pika.basic_get(
                queue,
                lambda _, method, properties, body: self._got(self._delivery(queue, method, properties, body)),
            )
        except px.AMQPError as exc:
            self._gets.popleft()
            request.waiter.settle(error=self.lost(self.reason or exc))

    def _got(self, delivery: Delivery | None) -> None:
        if self._gets:
            _, request = self._gets.popleft()
            request.settle(delivery)
        if self._gets:
            self._ask()

    def _delivery(self, queue: str, method: Any, properties: pika.BasicProperties, body: bytes) -> Delivery:
        self._unsettled += 1
        self._has_delivered = True
        return Delivery(
            Message.received(properties, body),
            settler=self,
            tag=method.delivery_tag,
            redelivered=method.redelivered,
            exchange=method.exchange,
            routing_key=method.routing_key,
            queue=queue,
        )

    def _deliver(self, consumer: _Consumer, method: Any, properties: pika.BasicProperties, body: bytes) -> None:
        if consumer.is_cancelled:
            if self.is_open:
                self.pika.basic_nack(method.delivery_tag, requeue=True)
            return
        tag = method.delivery_tag
        consumer.waiting[tag] = self._delivery(consumer.queue, method, properties, body)
        consumer.mailbox.put(lambda: _handle(consumer, tag))

    def _returned(self, _: Any, method: Any, properties: pika.BasicProperties, body: bytes) -> None:
        if self.confirms is not None:
            self.confirms.returned(method, properties.message_id, body)
        self.link.emit(
            MessageReturned(
                exchange=method.exchange,
                routing_key=method.routing_key,
                reply_code=method.reply_code,
                reply_text=method.reply_text,
                message_id=properties.message_id,
            )
        )

    def _cancelled_by_broker(self, frame: Any) -> None:
        tag = frame.method.consumer_tag
        consumer = self._consumers.pop(tag, None)
        if consumer is not None:
            self._over(consumer, self._topology.lost)
            consumer.waiting.clear()
            self.link.emit(ConsumerCancelled(queue=consumer.queue, consumer_tag=tag))

    def _over(self, consumer: _Consumer, tell: Callable[[str], None]) -> None:
        consumer.is_cancelled = True
        if consumer.is_counted:
            consumer.is_counted = False
            tell(consumer.queue)


def _take_all(waiting: dict[int, Delivery]) -> Iterator[int]:
    """Empty *waiting*, from which the handler's thread takes too, and yield the tags."""
    with contextlib.suppress(KeyError):
        while True:
            yield waiting.popitem()[0]


def _handle(consumer: _Consumer, tag: int) -> None:
    """Call the handler; on the consumer's own thread."""
    delivery = consumer.waiting.pop(tag, None)
    if delivery is None:  # given back meanwhile
        return
    try:
        consumer.handler(delivery)
    except BaseException:  # sys.exit() too: a message kept here would hold up its consumer for ever
        LOGGER.exception("the handler for %r failed", consumer.queue)
        if not delivery.is_settled:
            try:
                delivery.nack(requeue=not delivery.redelivered)
            except LabkitError as exc:
                LOGGER.info("not given back: %s", exc)
