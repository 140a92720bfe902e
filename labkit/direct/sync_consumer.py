"""One ``consume()``: a channel of its own, a callback for each message, and an end that gives back the rest."""

import logging
import time
from collections.abc import Callable
from typing import Any

import pika
import pika.exceptions as px
from pika.adapters.blocking_connection import BlockingChannel

from labkit.concurrency.bell import Flag
from labkit.content.failed_deliveries import Handled, RetryCounts
from labkit.content.stream_position import OFFSET
from labkit.direct.queues import is_missing
from labkit.direct.sync_link import CLOSE_TIMEOUT, OwnedConnection, answer_within, channel_lost, interrupted_pika
from labkit.errors import ChannelLost, LabkitError
from labkit.events import ConsumerCancelled
from labkit.topology import Message
from labkit.verdicts import why_cancelled

LOGGER = logging.getLogger(__name__)
STEP = 1.0  # seconds; the loop looks up this often even if the broker is silent

Callback = Callable[[BlockingChannel, Any, pika.BasicProperties, bytes], object]


class ConsumeLoop:
    """What one ``consume()`` does. For the thread that owns *link*.

    Args:
        link: Where the messages come from.
        queue: Their queue; it must be there.
        callback: Called with each message; see ``SyncConnection.consume``.
        auto_ack: The broker forgets each message as it sends it.
        stop: Set: return as soon as the callback that runs has returned.
        retry_counts: Whether a message whose callback raised goes back, or is rejected.

    Attributes:
        is_over: Whether all that was unacknowledged has been given back. False after :meth:`run` has ended: an
            interrupt kept it from that.
    """

    def __init__(
        self,
        link: OwnedConnection,
        queue: str,
        callback: Callback,
        *,
        auto_ack: bool,
        stop: Flag,
        retry_counts: RetryCounts,
    ) -> None:
        self._link = link
        self._queue = queue
        self._callback = callback
        self._auto_ack = auto_ack
        self._stop = stop
        self._retry_counts = retry_counts
        self._channel: BlockingChannel | None = None
        self._ends: float | None = None
        self._crash: BaseException | None = None
        self._is_cancelled = False
        self._takes_back = True  # what is not acknowledged; a stream does not
        self.is_over = False

    def run(self, prefetch: int, ends: float | None) -> None:
        """Consume until *stop* is set, or the clock says *ends* (None: no limit).

        Raises:
            ChannelLost: the broker cancelled the consumer, or closed the channel; it says what is known of the cause.
            NotConnected: the link ended, or the broker did not answer by then.
        """
        self._ends = ends
        try:
            self._consume(prefetch)
        finally:
            seconds = answer_within(self._ends, CLOSE_TIMEOUT)
            problem = None if self._channel is None else self._link.end_channel(self._channel, seconds)
            self.is_over = True
        if problem is not None:
            raise problem

    def _consume(self, prefetch: int) -> None:
        link = self._link
        channel = self._channel = link.channel(prefetch, answer_within(self._ends))
        channel.add_on_cancel_callback(self._cancel)
        with link.call("consume", answer_within(self._ends)):
            tag = channel.basic_consume(self._queue, self._do, auto_ack=self._auto_ack)
        while True:
            link.pump()
            self._check(channel)
            left = STEP if self._ends is None else min(STEP, self._ends - time.monotonic())
            if self._stop.is_set() or left <= 0 or not link.is_open:
                break
            link.wait(left)
        if self._auto_ack and link.is_open:
            with link.call("ending the consumer", answer_within(self._ends)):
                sent_ahead = channel.basic_cancel(tag)
            for delivery in sent_ahead:  # the broker has forgotten them: finish them
                self._do(channel, *delivery)
            self._raise_crash()

    def _do(self, channel: BlockingChannel, method: Any, properties: pika.BasicProperties, body: bytes) -> None:
        self._takes_back = self._takes_back and OFFSET not in (properties.headers or {})
        if self._crash is not None or (self._stop.is_set() and not self._auto_ack):
            return  # not acknowledged, so it goes back to the queue when the channel closes
        try:
            try:
                self._callback(channel, method, properties, body)
            except Exception:
                self._return_failed(channel, method, properties, body)
                raise
            if not self._auto_ack and channel.is_open:
                with self._link.call("acknowledging"):
                    channel.basic_ack(method.delivery_tag)
                if self._retry_counts:
                    self._retry_counts.succeeded(self._handled(method, properties, body))
        except BaseException as exc:  # noqa: BLE001 - kept for consume(): raised here, Pika would pass it on half-done
            self._crash = exc
            if not isinstance(exc, Exception) and interrupted_pika(exc):
                self._link.drop()  # the callback was using the channel: nobody knows what was sent

    def _return_failed(
        self, channel: BlockingChannel, method: Any, properties: pika.BasicProperties, body: bytes
    ) -> None:
        if self._auto_ack:
            return
        may_come_again = self._retry_counts.failed(self._handled(method, properties, body))
        if not (channel.is_open and self._takes_back):
            return
        try:
            with self._link.call("giving back"):
                # Not left to the end of the channel: that does not count towards a quorum queue's delivery limit.
                channel.basic_reject(method.delivery_tag, requeue=may_come_again)
        except LabkitError as exc:  # consume() raises what the callback raised
            LOGGER.info("not given back: %s", exc)

    def _handled(self, method: Any, properties: pika.BasicProperties, body: bytes) -> Handled:
        message = Message.received(properties, body)
        return Handled(message, method.exchange, method.routing_key, self._queue, method.redelivered)

    def _cancel(self, _: Any) -> None:
        self._is_cancelled = True

    def _check(self, channel: BlockingChannel) -> None:
        """Raise what has ended the consumer, if anything has."""
        if not isinstance(self._crash, px.AMQPError):
            self._raise_crash()  # the callback's own; one of Pika's comes from what we look at below
        if self._is_cancelled:
            cancelled = px.ConsumerCancelled()
            self._link.tell(ConsumerCancelled, queue=self._queue)
            why = why_cancelled(self._queue, is_missing(self._link, self._queue, self._ends))
            text = f"the broker cancelled the consumer: {why}"
            raise ChannelLost(text, reason=cancelled) from cancelled
        if self._link.is_open and not channel.is_open:
            reason = self._link.channel_closed(channel, self._crash)
            raise channel_lost("consume", reason) from reason
        self._raise_crash()

    def _raise_crash(self) -> None:
        if self._crash is not None:
            raise self._crash
