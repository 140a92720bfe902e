"""A handler of an ``AsyncConnection`` and its messages: it is called, and the broker answered for what became of it."""

import asyncio
import contextlib
import inspect
from collections.abc import Callable
from typing import Any

from labkit.content.delivery import Delivery, Settlements
from labkit.content.failed_deliveries import RetryCounts
from labkit.content.stream_position import offset_of
from labkit.direct.aio_link import LinkChannel
from labkit.errors import LabkitError

Handler = Callable[[Any], object]  # of a Message, or of a Delivery


class Settler:
    """Answers the broker for what a handler was called with; a Delivery's own answers go the same way."""

    def __init__(self, channel: LinkChannel, queue: str, retry_counts: RetryCounts, *, auto_ack: bool) -> None:
        self._channel = channel
        self._queue = queue
        self._retry_counts = retry_counts
        self._auto_ack = auto_ack
        self._settlements = Settlements()
        self.takes_back = not auto_ack  # what is not acknowledged; a stream does not

    def delivery(self, method: Any, properties: Any, body: bytes) -> Delivery:
        """Return what Pika has handed over."""
        auto_ack = self._auto_ack
        delivery = Delivery.received(self, self._queue, method, properties, body, auto_ack=auto_ack, is_stream=False)
        delivery.is_stream = offset_of(delivery.message) is not None
        self.takes_back = self.takes_back and not delivery.is_stream
        return delivery

    def succeeded(self, delivery: Delivery) -> None:
        """Acknowledge what its handler has returned from, unless that has settled it."""
        if not delivery.is_settled:
            with contextlib.suppress(LabkitError):  # the channel is gone, or ack(multiple=True) was meant for it, too
                delivery.ack()
        if not self._auto_ack and self._retry_counts:
            self._retry_counts.succeeded(delivery)

    def failed(self, delivery: Delivery) -> None:
        """Give back, or reject, what its handler raised for."""
        if self._auto_ack:
            return
        may_come_again = self._retry_counts.failed(delivery)
        if not delivery.is_settled and self.takes_back:
            with contextlib.suppress(LabkitError):
                # Not left to the end of the channel: that does not count towards a quorum queue's delivery limit.
                delivery.reject(requeue=may_come_again)

    def settle(self, verb: str, tag: int, requeue: bool, timeout: float, may_send: Callable[[], bool]) -> None:  # noqa: ARG002
        """Send the answer of a :class:`Delivery`. On the event loop, at once."""
        raw = self._channel.raw
        if not raw.is_open:
            raise self._channel.lost("settling a delivery")
        self._settlements.check(tag)
        self._settlements.send(raw, verb, tag, requeue, may_send)


async def work(inbox: asyncio.Queue[Any], handler: Handler, settler: Settler, *, deliveries: bool) -> None:
    """Call *handler* with what is in *inbox*, one after the other, until it raises or this task is cancelled."""
    worker = asyncio.current_task()
    while worker is None or not worker.cancelling():  # a handler may have swallowed our cancellation
        delivery = settler.delivery(*await inbox.get())
        try:
            outcome = handler(delivery if deliveries else delivery.message)
            if inspect.isawaitable(outcome):
                await outcome
        except Exception:  # not a cancellation
            settler.failed(delivery)
            raise
        settler.succeeded(delivery)
        await asyncio.sleep(0)  # after a plain handler the loop needs its turn: for heartbeats, or for our cancellation
