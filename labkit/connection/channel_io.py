"""The side of a channel that lives on the I/O thread: Pika's channel, and who waits for which answer.

Holds neither the user's ``Channel`` nor its ``Connection``, so that both can be collected when they are forgotten.
"""

import contextlib
import logging
import struct
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

import pika
import pika.exceptions as px

from labkit.concurrency.bell import PendingCall
from labkit.connection.blame import SOMEBODY
from labkit.connection.channel_confirms import Confirms, returned_event
from labkit.connection.channel_deliveries import ChannelDeliveries
from labkit.connection.channel_outbox import ANSWER, CALL, MESSAGE, HandedOver, Outbox
from labkit.connection.io_thread import CLAIMED_MAX
from labkit.connection.link import Link
from labkit.connection.topology_record import TopologyRecord
from labkit.connector.private_pika import BASIC_PUBLISH, closing_method
from labkit.content.delivery import return_unsettled
from labkit.content.properties import Properties, size
from labkit.errors import ChannelLost, ConfigurationError, LabkitError, LeaseError, describe
from labkit.events import ChannelClosed, ChannelOpened

LOGGER = logging.getLogger(__name__)
JUST_PUBLISHED = 5.0  # seconds in which the broker ends a link over a message; it takes milliseconds
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
        is_answered: By the broker; else it costs nothing to give it up.
    """

    __slots__ = ("begin", "is_answered", "is_publish", "waiter")

    def __init__(
        self, begin: Callable[["Request"], None], *, is_publish: bool = False, is_answered: bool = True
    ) -> None:
        self.begin = begin
        self.is_publish = is_publish
        self.is_answered = is_answered
        self.waiter = PendingCall()

    def settle(self, value: Any = None) -> None:
        """Answer."""
        self.waiter.settle(value)


class ChannelIo:
    """One Pika channel on one link. On the I/O thread only, but for ``reason`` and what begins with ``is_``.

    Attributes:
        outbox: What was handed over and is not written yet.
        deliveries: What comes, and is to be settled.
        unsent_messages: Messages that were handed over and never will be written.
        unsent_answers: The same, of answers.
        told: How many unsent messages its user was told of.
    """

    def __init__(self, link: Link, facade: object, topology: TopologyRecord, *, confirm: bool = False) -> None:
        self.link = link
        self.confirms = Confirms() if confirm else None
        self._facade = weakref.ref(facade)
        self.io = link.io
        self.outbox = Outbox(link)
        self.deliveries = ChannelDeliveries(self, topology)
        self.unsent_messages = self.unsent_answers = self.told = 0
        self.pika: Any = None
        self.number = 0
        self.prefetch: int | None = None
        self.reason: BaseException | None = None
        self.is_open = False
        self.is_closed = False
        self.is_leaving = False  # its user has closed it without waiting for that; set from any thread
        self.is_doubtful = False  # a call was interrupted, and whether that ends the channel is not known yet
        self._pending: set[Request] = set()
        self._held: deque[Request] = deque()
        self._closing_method: Callable[[], tuple[int, int] | None] = lambda: None
        self._published_at = float("-inf")  # the last message that nobody answers

    def tick(self) -> None:
        """Close a channel that nobody can use any more: an interrupt may have come before its user had it."""
        self._prune()
        self.outbox.tick()
        if self.is_open and self._facade() is None and not (self.deliveries or self.outbox):
            self._end(None)

    def call(self, request: Request) -> None:
        """Begin *request* when all that was handed over before is sent. From any thread."""
        entry = HandedOver(lambda: self.begin(request), CALL)
        if not self.outbox.put(entry, timeout=0.0):
            self.io.post(entry.send)

    def publish(
        self, exchange: str, routing_key: str, body: bytes, properties: Properties, mandatory: bool, timeout: float
    ) -> None:
        """Hand a message over, which has been checked. From any thread.

        Raises:
            ChannelLost, DeadlineExceeded, WrongThread, NotConnected: it is not handed over.
        """

        def send() -> None:
            try:
                self.pika.basic_publish(exchange, routing_key, body, properties, mandatory)
                self._published_at = time.monotonic()
            except Exception as exc:  # noqa: BLE001 - whatever it is, nobody waits for this message
                self.unsent_messages += 1
                if not isinstance(exc, px.AMQPError):  # else closed between its last sign of life and now
                    LOGGER.error("a message for %r of exchange %r cannot be sent: %r", routing_key, exchange, exc)  # noqa: TRY400

        self.hand_over(HandedOver(send, MESSAGE, len(body) + size(properties)), timeout)

    def begin(self, request: Request) -> None:
        """Start *request*, unless nobody waits for it any more."""
        if request.waiter.is_abandoned:
            return
        if self.is_closed:
            request.waiter.settle(error=self.lost())
            return
        if request.is_publish and (self._held or not self.link.may_publish):
            self._held.append(request)
            self.link.look_again(self.resume)
            return
        self._start(request)

    def give_up(self, request: Request, reason: BaseException) -> None:
        """The caller waits no more: a request sent and never answered leaves a channel that cannot be trusted."""
        if request in self._held:
            self._held.remove(request)
        elif request.waiter.is_settled:  # interrupted just then; a message that it got would never be settled
            if not request.is_publish:
                self._end(reason)
        elif request in self._pending:
            if request.is_answered:
                self._end(reason)
            else:
                self._pending.discard(request)

    def flush(self, request: Request) -> None:
        """Answer when the socket has taken all that is written by now."""
        connection, link = self.link.connection, self.link
        written = 0 if connection is None else connection.bytes_sent

        def look() -> None:
            if self.is_closed or request.waiter.is_abandoned or connection is None:  # at its end it gets the error
                return
            if connection.bytes_sent - link.unsent >= written:
                request.settle()
            else:
                link.look_again(look)

        self.io.at_end_of_turn(look)

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
        self._closing_method = closing_method(self.pika)
        self.pika.add_on_close_callback(lambda _, reason: self._gone(reason))
        self.pika.add_on_return_callback(self._returned)
        self.deliveries.begin(self.pika)

    def close(self, request: Request) -> None:
        """Close it, asked for by this side."""
        channel = self.pika
        self._end(None, but=request)
        if channel is None or channel.is_closed or not self.link.is_open:
            request.settle()
        else:
            channel.add_on_close_callback(lambda *_: request.settle())

    def close_soon(self) -> None:
        """Close it as soon as all is sent; nobody waits for that."""
        if self.outbox and not self.is_closed:
            self.link.look_again(self.close_soon)
        else:
            self.close(Request(lambda _: None))

    def give_back(self) -> None:
        """Close it, which its borrower has left open."""
        self._end(LeaseError("what it was opened on was given back to its pool"))

    def when_gone(self, function: Callable[["ChannelIo"], None]) -> None:
        """Call *function* when the broker has closed it, or its link has ended in order."""
        self.pika.add_on_close_callback(lambda *_: function(self))

    def link_ended(self, reason: BaseException) -> None:
        """The channel is gone with its link."""
        if isinstance(reason, px.ConnectionClosedByClient):  # in order, and Pika sends all that it gets before that
            self.outbox.drain(len(self.outbox))
        self._end(reason)

    def forget(self, reason: BaseException) -> None:
        """Be closed, in a child process after a fork: no lock, no event, no word to the broker."""
        self.outbox.shut()
        self.is_open, self.is_closed, self.reason = False, True, reason
        self.outbox.wake()

    def resume(self) -> None:
        """Send the publishes that were held back, as far as they may go."""
        self.outbox.drain()
        while self._held and self.link.may_publish:
            self._start(self._held.popleft())
        if self._held:
            self.link.look_again(self.resume)

    @property
    def is_clean(self) -> bool:
        """Whether the next user would meet nothing of the last one's but a prefetch: no consumer, message, open call.

        From any thread.
        """
        is_used = self.is_doubtful or self.deliveries.has_come or self.deliveries.consumers or self.outbox
        return not (is_used or self._unanswered())

    @property
    def holds(self) -> bool:
        """Whether messages may go back to their queues when it ends. From any thread."""
        return bool(self.deliveries or self._unanswered())

    def held(self) -> str:
        """Return what its user has not ended, in words; "": nothing. From any thread."""
        counts = {
            "consumer": len(self.deliveries.consumers),
            "unsettled message": len(self.deliveries.unsettled),
            "unanswered call": self._unanswered(),
        }
        return _in_words(counts)

    def lost(self, reason: BaseException | None = None) -> ChannelLost:
        """Return the error for using it after its end."""
        reason = reason or self.reason
        text = "it was closed by this side" if reason is None else describe(reason)
        messages, unsent = self.unsent_messages, self.unsent_messages + self.unsent_answers
        if unsent:
            text += f"; not sent: {_in_words({'message': messages, 'acknowledgement': self.unsent_answers})}"
        return ChannelLost(f"the channel is gone: {text}", reason=reason, unsent=unsent, unsent_messages=messages)

    def untold(self) -> ChannelLost | None:
        """Return what its user must be told as it closes: messages are lost of which no call has told yet."""
        if self.unsent_messages <= self.told:
            return None
        self.told = self.unsent_messages
        return self.lost()

    def hand_over(self, entry: HandedOver, timeout: float) -> None:
        """Have it done in its turn. From any thread; errors as for :meth:`publish`."""
        if not self.is_open:
            raise self.lost()
        if not self.outbox.put(entry, timeout=timeout):
            with contextlib.suppress(LabkitError):  # the I/O thread is at its end, and counts
                self.io.call(lambda: None, timeout=CLAIMED_MAX)
            raise self.lost()

    def _start(self, request: Request) -> None:
        if request.waiter.is_abandoned:
            return
        self._prune()
        self._pending.add(request)
        try:
            request.begin(request)
        except LabkitError as exc:
            request.waiter.settle(error=exc)
        except NOT_SENDABLE as exc:
            request.waiter.settle(error=not_sendable(exc))
        except px.AMQPError as exc:  # closed between its last sign of life and now
            request.waiter.settle(error=self.lost(self.reason or exc))
        if request.waiter.is_settled:
            self._pending.discard(request)
            if request.is_publish:
                self._published_at = time.monotonic()

    def _is_anything_in_hand(self) -> bool:
        """Whether the broker may have ended the link over something from here."""
        is_awaited = any(each.is_answered and not each.waiter.is_settled for each in self._pending)
        return is_awaited or time.monotonic() - self._published_at < JUST_PUBLISHED

    def _unanswered(self) -> int:
        if not (self._pending or self._held):  # a pool asks at each checkin, and mostly there is nothing to count
            return 0
        return sum(1 for each in (*self._pending, *self._held) if not each.waiter.is_settled)

    def _gone(self, reason: BaseException) -> None:
        """Pika's channel is closed."""
        self.link.giving_back.discard(self)
        self._end(reason)

    def _prune(self) -> None:
        self._pending = {each for each in self._pending if not each.waiter.is_settled}

    def _end(self, reason: BaseException | None, but: Request | None = None) -> None:
        """The channel is over, for *reason*; None: this side closed it."""
        if self.is_closed:
            return
        if but is not None:
            self._pending.discard(but)
        was_open, may_give_back = self.is_open, self.holds
        left = self.outbox.shut()  # counted before the channel is said to be closed: every error has the whole count
        answers = sum(1 for each in left if each.kind == ANSWER)
        self.unsent_answers += answers
        self.unsent_messages += sum(1 for each in left if each.kind == MESSAGE)
        self.is_open, self.is_closed, self.reason = False, True, reason
        self.link.channels.discard(self)
        if reason is not None and self.confirms is not None and self._closing_method() == BASIC_PUBLISH:
            self.confirms.refused(reason)
        # Pika tells the channels before the link; and the end of the link is not a cancel.
        is_link_lost = not self.link.is_open or isinstance(reason, px.AMQPConnectionError)
        if is_link_lost and self._is_anything_in_hand():
            self.link.in_hand.add(SOMEBODY)
        for request in (*self._pending, *self._held):
            request.waiter.settle(error=self.lost())
        for each in left:
            if each.kind == CALL:
                each.send()
        self.outbox.wake()
        if self.unsent_messages or self.unsent_answers:
            LOGGER.warning("%s", self.lost())  # its user may have no next call
        self._pending.clear()
        self._held.clear()
        has_unsettled = self.deliveries.end(is_link_lost=is_link_lost) or answers
        if self.pika is not None and not (self.pika.is_closed or self.pika.is_closing) and self.link.is_open:
            if has_unsettled:
                return_unsettled(self.pika)
            if may_give_back:
                self.link.giving_back.add(self)
            self.pika.close()
        if was_open:
            asked = isinstance(reason, px.ConnectionClosedByClient)  # the connection was closed, by this side
            self.link.emit(ChannelClosed(number=self.number, reason=None if asked else reason))

    def _returned(self, _: Any, method: Any, properties: pika.BasicProperties, body: bytes) -> None:
        if self.confirms is not None:
            self.confirms.returned(method, properties, body)
        self.link.emit(returned_event(method, properties))


def _in_words(counts: dict[str, int]) -> str:
    return ", ".join(f"{n} {what}{'s' if n > 1 else ''}" for what, n in counts.items() if n)


def not_sendable(error: Exception) -> ConfigurationError:
    """Return what the user gets for one of NOT_SENDABLE."""
    problem = ConfigurationError(f"this cannot be sent: {describe(error)}")
    problem.__cause__ = error
    return problem
