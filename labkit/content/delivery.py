"""A message as it was delivered, and the answer to the broker. Knows its channel only as a way to send that answer."""

import contextlib
import logging
from collections.abc import Callable
from typing import Any, Protocol

from labkit.content.failed_deliveries import RetryCounts, id_of
from labkit.errors import LabkitError, LeaseError, WrongThread
from labkit.topology import Message
from labkit.values import checked_flag, checked_number

LOGGER = logging.getLogger(__name__)
AUTO_ACK = "auto-ack"
SETTLE_TIMEOUT = 10.0  # seconds for a turn on the I/O thread; the broker does not answer an acknowledgement


class Settler(Protocol):
    """What sends the answer: a channel's core."""

    def settle(self, verb: str, tag: int, requeue: bool, timeout: float, may_send: Callable[[], bool]) -> None:
        """Have ``ack``, ``nack`` or ``reject`` sent for the delivery *tag*, if *may_send* says so just before.

        ``ack-multiple`` acknowledges all before it, too.

        Raises:
            LeaseError: an ``ack-multiple`` of a later one has settled it.
        """


class Delivery:
    """One delivered message. Settle it once, from any thread: :meth:`ack`, :meth:`nack` or :meth:`reject`.

    One of an auto-ack consumer, or get, is settled as it comes: the broker has forgotten it, so each of them raises. A
    stream takes nothing back: of its messages (``is_stream``) only :meth:`ack` is allowed, and asks for the next one.

    A delivery lives as long as its channel. When that is gone the broker has given the message to somebody else, and
    settling raises ChannelLost: nothing is sent.

    Attributes:
        message: Body and properties.
        redelivered: Whether it was delivered before, perhaps to somebody else.
        exchange: Where it was published.
        routing_key: With which key.
        queue: Where it was taken from, as far as this side knows.
        is_stream: Whether that is a stream.
    """

    __slots__ = (
        "__weakref__",
        "_is_sent",
        "_settled",
        "_settler",
        "_tag",
        "_token",
        "exchange",
        "is_stream",
        "message",
        "queue",
        "redelivered",
        "routing_key",
    )

    def __init__(
        self,
        message: Message,
        *,
        settler: Settler,
        tag: int,
        redelivered: bool,
        exchange: str,
        routing_key: str,
        queue: str,
        auto_ack: bool = False,
        is_stream: bool = False,
    ) -> None:
        self.message = message
        self.redelivered = redelivered
        self.exchange = exchange
        self.routing_key = routing_key
        self.queue = queue
        self.is_stream = is_stream
        self._settler = settler
        self._tag = tag
        self._token = [] if auto_ack else [True]  # list.pop() is one step, so only one can take it
        self._settled: str | None = AUTO_ACK if auto_ack else None
        self._is_sent = False

    @classmethod
    def received(
        cls, settler: Settler, queue: str, method: Any, properties: Any, body: bytes, *, auto_ack: bool, is_stream: bool
    ) -> "Delivery":
        """Return what Pika has handed over."""
        return cls(
            Message.received(properties, body),
            settler=settler,
            tag=method.delivery_tag,
            redelivered=method.redelivered,
            exchange=method.exchange,
            routing_key=method.routing_key,
            queue=queue,
            auto_ack=auto_ack,
            is_stream=is_stream,
        )

    def __repr__(self) -> str:
        state = self._settled or ("settled" if self._is_sent else "not settled")
        return f"Delivery({len(self.body)} bytes, {state})"

    @property
    def body(self) -> bytes:
        """The message's bytes."""
        return self.message.body

    @property
    def is_settled(self) -> bool:
        """Whether it was acknowledged or given back."""
        return self._settled is not None or self._is_sent

    def ack(self, multiple: bool = False, *, timeout: float = SETTLE_TIMEOUT) -> None:
        """Tell the broker that the message is done, and may be forgotten.

        Args:
            multiple: Acknowledge with it whatever came before it on its channel and is not settled: of every consumer
                there, and what was got. A consumer that labkit restores has a channel of its own.
            timeout: Seconds to wait while too much waits to be sent. Else this returns at once, and the answer is
                sent in the order of the calls on this channel; the broker never says that it has come.

        Raises:
            ChannelLost: the channel is gone; the message will be delivered again. It is, too, if the channel ends
                before the answer was sent.
            LeaseError: it was settled before, or as it came (auto-ack).
            DeadlineExceeded: it was not handed over within *timeout* seconds; it is not settled.
        """
        self._settle("ack-multiple" if checked_flag("multiple", multiple) else "ack", False, timeout)

    def nack(self, *, requeue: bool = True, timeout: float = SETTLE_TIMEOUT) -> None:
        """Give the message back: to its queue, or with ``requeue=False`` to the dead-letter exchange.

        Errors and *timeout* as for :meth:`ack`.
        """
        self._settle("nack", requeue, timeout)

    def reject(self, *, requeue: bool = False, timeout: float = SETTLE_TIMEOUT) -> None:
        """Refuse the message: to the dead-letter exchange, or back to its queue.

        Errors and *timeout* as for :meth:`ack`.
        """
        self._settle("reject", requeue, timeout)

    def _settle(self, verb: str, requeue: bool, timeout: float) -> None:
        checked_flag("requeue", requeue)
        checked_number("timeout", timeout)
        try:
            self._claim(verb)
            self._settler.settle(verb, self._tag, requeue, timeout, self._may_send)
        except (TimeoutError, WrongThread):
            self._unclaim()  # it was not handed over: nothing is sent
            raise
        except Exception:
            raise
        except BaseException:  # an interrupt: it may be sent, or not, or in a moment; so it may be settled again
            self._unclaim()
            raise

    def _claim(self, verb: str) -> None:
        if self.is_stream and not verb.startswith("ack"):
            raise LeaseError(
                f"{self.queue!r} is a stream, which takes nothing back: ack(), or raise to be called again"
            )
        try:
            self._token.pop()
        except IndexError:
            if self._settled == AUTO_ACK:
                text = "this delivery was settled as it came: its consumer, or get(), has auto_ack=True"
            else:
                text = f"this delivery was settled before ({self._settled or 'just now'}); settle it once"
            raise LeaseError(text) from None
        self._settled = verb

    def _unclaim(self) -> None:
        if self._settled != AUTO_ACK:
            self._settled = None
            self._token[:] = [True]

    def _may_send(self) -> bool:
        """The I/O thread is about to send an answer: yes, the first time."""
        is_first, self._is_sent = not self._is_sent, True
        return is_first


def handle(
    delivery: Delivery,
    handler: Callable[[Delivery], object],
    retry_counts: RetryCounts,
    may_go_on: Callable[[], bool] = lambda: True,
) -> bool:
    """Call *handler*; give back, or reject, what it did not settle before it raised. Return whether it returned.

    A stream takes nothing back, so there the retries are made here and now, while *may_go_on* says so. After the last
    one it goes on with the next message.
    """
    is_again = False
    while True:
        try:
            handler(delivery)
        except BaseException:  # SystemExit too: it ends no thread of ours, and a message kept here holds up the others
            LOGGER.exception("the handler for %r failed%s", delivery.queue, id_of(delivery))
        else:
            retry_counts.succeeded(delivery)
            return True
        if delivery.is_settled:
            return False
        may_come_again, is_again = retry_counts.failed(delivery, is_again=is_again), True
        if not (delivery.is_stream and may_come_again):
            break
        if not may_go_on():
            return False  # unsettled, so the next channel begins with it
    with contextlib.suppress(LabkitError):  # its handler's other thread settled it meanwhile, or the link is gone
        if delivery.is_stream:
            delivery.ack()
        else:
            # Not nack(): since RabbitMQ 4.3 only a reject counts towards a quorum queue's delivery limit.
            delivery.reject(requeue=may_come_again)
    return False


class Settlements:
    """What was answered on one channel."""

    def __init__(self) -> None:
        self._acked_up_to = 0  # the highest delivery tag of an ack(multiple=True) that was sent
        self._asked_up_to = 0  # and of one that was asked for

    def check(self, tag: int) -> None:
        """Raise LeaseError if an ``ack-multiple`` has settled *tag*. From any thread."""
        if tag <= self._asked_up_to or tag <= self._acked_up_to:
            raise LeaseError("this delivery was settled before (by ack(multiple=True) of a later one); settle it once")

    def asked(self, verb: str, tag: int) -> None:
        """Take note of what was handed over. From any thread."""
        if verb == "ack-multiple":
            self._asked_up_to = tag

    def send(self, channel: Any, verb: str, tag: int, requeue: bool, may_send: Callable[[], bool]) -> bool:
        """Write the answer for *tag* on Pika's *channel*, on the loop's thread; False: there is none to be written.

        The broker would close the channel over a second answer: *may_send* says no to one for the same delivery, and
        there is none after an ``ack-multiple`` that settled it.
        """
        if tag <= self._acked_up_to or not may_send():
            return False
        if verb.startswith("ack"):
            is_multiple = verb == "ack-multiple"
            if is_multiple:
                self._acked_up_to = tag
            channel.basic_ack(tag, multiple=is_multiple)
        elif verb == "nack":
            channel.basic_nack(tag, requeue=requeue)
        else:
            channel.basic_reject(tag, requeue=requeue)
        return True


def return_unsettled(channel: Any) -> None:
    """Give back all that is unsettled on Pika's *channel*, which is about to be closed: none of that has failed.

    Since RabbitMQ 4.3 a nack does not count towards a quorum queue's delivery limit, and the end of a channel does.
    Before, both count alike, and 3.10 ends the connection (540) over a nack for a stream's message.
    """
    version = str((channel.connection.server_properties or {}).get("version", ""))
    numbers = tuple(int(each) for each in version.split(".")[:2] if each.isdecimal())
    if numbers < (4, 3):
        return
    for tag in channel.consumer_tags:  # first: else the broker would deliver again what it takes back
        channel.basic_cancel(tag)
    channel.basic_nack(0, multiple=True, requeue=True)
