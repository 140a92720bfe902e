"""One ``consume()``: a channel of its own, a callback for each message, and an end that gives back the rest."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pika
import pika.exceptions as px
from pika.adapters.blocking_connection import BlockingChannel

from labkit.errors import ChannelLost
from labkit.events import ConsumerCancelled
from labkit.owned import OwnedConnection, channel_lost, interrupted_pika

STEP = 1.0  # seconds; the loop looks up this often even if the broker is silent

Callback = Callable[[BlockingChannel, Any, pika.BasicProperties, bytes], object]


class Consumer:
    """What one ``consume()`` does. For the thread that owns *link*.

    Args:
        link: Where the messages come from.
        queue: Their queue; it must be there.
        callback: Called with each message; see ``SyncConnection.consume``.
        auto_ack: The broker forgets each message as it sends it.
        stop: Set: return as soon as the callback that runs has returned.

    Attributes:
        is_over: Whether all that was unacknowledged has been given back. False after :meth:`run` has ended: an
            interrupt kept it from that.
    """

    def __init__(
        self, link: OwnedConnection, queue: str, callback: Callback, *, auto_ack: bool, stop: threading.Event
    ) -> None:
        self._link = link
        self._queue = queue
        self._callback = callback
        self._auto_ack = auto_ack
        self._stop = stop
        self._channel: BlockingChannel | None = None
        self._crash: BaseException | None = None
        self._is_cancelled = False
        self.is_over = False

    def run(self, prefetch: int, ends: float | None) -> None:
        """Consume until *stop* is set, or the clock says *ends* (None: no limit).

        Raises:
            ChannelLost: the broker cancelled the consumer (queue deleted), or closed the channel.
            NotConnected: the link ended.
        """
        try:
            self._consume(prefetch, ends)
        finally:
            problem = None if self._channel is None else self._link.end_channel(self._channel)
            self.is_over = True
        if problem is not None:
            raise problem

    def _consume(self, prefetch: int, ends: float | None) -> None:
        link = self._link
        channel = self._channel = link.channel(prefetch)
        channel.add_on_cancel_callback(self._cancel)
        with link.call("consume"):
            tag = channel.basic_consume(self._queue, self._do, auto_ack=self._auto_ack)
        while True:
            link.pump()
            self._check(channel)
            left = STEP if ends is None else min(STEP, ends - time.monotonic())
            if self._stop.is_set() or left <= 0 or not link.is_open:
                break
            link.wait(left)
        if self._auto_ack and link.is_open:
            with link.call("ending the consumer"):
                sent_ahead = channel.basic_cancel(tag)
            for delivery in sent_ahead:  # the broker has forgotten them: finish them
                self._do(channel, *delivery)
            self._raise_crash()

    def _do(self, channel: BlockingChannel, method: Any, properties: pika.BasicProperties, body: bytes) -> None:
        if self._crash is not None or (self._stop.is_set() and not self._auto_ack):
            return  # not acknowledged, so it goes back to the queue when the channel closes
        try:
            self._callback(channel, method, properties, body)
            if not self._auto_ack and channel.is_open:
                with self._link.call("acknowledging"):
                    channel.basic_ack(method.delivery_tag)
        except BaseException as exc:  # noqa: BLE001 - kept for consume(): raised here, Pika would pass it on half-done
            self._crash = exc
            if not isinstance(exc, Exception) and interrupted_pika(exc):
                self._link.drop()  # the callback was using the channel: nobody knows what was sent

    def _cancel(self, _: Any) -> None:
        self._is_cancelled = True

    def _check(self, channel: BlockingChannel) -> None:
        """Raise what has ended the consumer, if anything has."""
        if not isinstance(self._crash, px.AMQPError):
            self._raise_crash()  # the callback's own; one of Pika's comes from what we look at below
        if self._is_cancelled:
            cancelled = px.ConsumerCancelled()
            self._link.tell(ConsumerCancelled, queue=self._queue)
            text = f"the broker cancelled the consumer: queue {self._queue!r} is gone"
            raise ChannelLost(text, reason=cancelled) from cancelled
        if self._link.is_open and not channel.is_open:
            reason = self._link.channel_closed(channel, self._crash)
            raise channel_lost("consume", reason) from reason
        self._raise_crash()

    def _raise_crash(self) -> None:
        if self._crash is not None:
            raise self._crash
