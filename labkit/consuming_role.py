"""The side of a ``Consumer`` that lives on the I/O thread: its channel, the line before the handler, what is dropped.

It is a role of a recovering connection. Consuming goes on, on a new link, after the broker cancelled the consumer, and
when a queue that was missing is there; a queue's trouble never costs the connection.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import pika
import pika.exceptions as px

from labkit.channel_core import WAITING_MAX
from labkit.delivery import Delivery
from labkit.errors import ChannelLost, LabkitError, NotConnected, classify, describe
from labkit.events import ConsumerCancelled, QueueRenamed
from labkit.frozen import FrozenMapping
from labkit.io_thread import Waiter
from labkit.lifecycle import Lifecycle
from labkit.link import Link
from labkit.mailbox import Mailbox
from labkit.recovering import RecoveringRole
from labkit.retry import STABLE_AFTER, Backoff
from labkit.role_channel import Done, RoleChannel
from labkit.topology import Message, Queue

LOGGER = logging.getLogger(__name__)
PAUSES = Backoff(initial=0.1, maximum=5.0, jitter="none")  # before consuming is tried again on the same link

Handler = Callable[[Delivery], object]
OnError = Literal["requeue-once", "reject"]


class ConsumingChannel(RoleChannel):
    """A channel with one consumer. It is the settler of its deliveries, which are void when it is gone."""

    def __init__(self, link: Link, role: "ConsumerRole", done: Done) -> None:
        super().__init__(link, role, done)
        self.tag = ""
        self.waiting: dict[int, Delivery] = {}  # queued for the handler, by delivery tag
        self._role = role
        self._is_stopping = False

    def begin(self) -> None:
        """Set the prefetch, declare the queue if it was given as a Queue, consume."""
        self.pika.add_on_cancel_callback(self._cancelled_by_broker)
        self.pika.basic_qos(0, self._role.prefetch, callback=lambda _: self.step(self._declare))

    def cancel(self, waiter: Waiter) -> None:
        """Have no more delivered, and give back what the handler has not begun; then settle *waiter*."""
        self._is_stopping = True

        def cancelled() -> None:
            for tag in list(self.waiting):
                if self.waiting.pop(tag, None) is not None:
                    self.pika.basic_nack(tag, requeue=True)

        def answered(_: Any) -> None:
            self.step(cancelled)
            waiter.settle()

        if self.is_ready:
            self.step(lambda: self.pika.basic_cancel(self.tag, callback=answered))
        else:
            waiter.settle()

    def settle(self, verb: str, tag: int, requeue: bool, timeout: float, may_send: Callable[[], bool]) -> None:
        """Send the answer for a delivery; drop and count it if this channel is gone. From any thread."""

        def send() -> None:
            if self.is_closed or self.pika.is_closed or self.pika.is_closing:
                # The broker has given the message to somebody else; on a later channel the tag means another message.
                self._role.dropped_acks += 1
            elif not may_send():
                return
            elif verb == "ack":
                self.pika.basic_ack(tag)
            elif verb == "nack":
                self.pika.basic_nack(tag, requeue=requeue)
            else:
                self.pika.basic_reject(tag, requeue=requeue)

        try:
            self.link.io.call(send, timeout=timeout)
        except NotConnected:  # the loop has crashed, and this channel with it
            self._role.dropped_acks += 1

    def _declare(self) -> None:
        queue = self._role.declared
        if self._role.follow_name() or queue is None:
            self._consume()
            return
        self.pika.queue_declare(
            queue.name,
            False,
            queue.durable,
            queue.exclusive,
            queue.auto_delete,
            FrozenMapping(queue.arguments).thaw() or None,  # Pika wants plain dicts and lists
            callback=lambda frame: self.step(lambda: self._declared(frame)),
        )

    def _declared(self, frame: Any) -> None:
        self._role.declared_as(str(frame.method.queue))
        self._consume()

    def _consume(self) -> None:
        self.tag = self.pika.basic_consume(self._role.queue, self._deliver, callback=lambda _: self.step(self.begun))

    def _deliver(self, _: Any, method: Any, properties: pika.BasicProperties, body: bytes) -> None:
        tag = method.delivery_tag
        if self.is_closed:
            return
        if self._is_stopping:
            self.step(lambda: self.pika.basic_nack(tag, requeue=True))
            return
        self.waiting[tag] = Delivery(
            Message.received(properties, body),
            settler=self,
            tag=tag,
            redelivered=method.redelivered,
            exchange=method.exchange,
            routing_key=method.routing_key,
            queue=self._role.queue,
        )
        self._role.mailbox.put(Turn(self, tag))

    def hand_over(self, tag: int) -> None:
        """Call the handler with what waits under *tag*; on the consumer's own thread."""
        self._role.handle(self.waiting.pop(tag, None))

    def forget_waiting(self) -> None:
        """The broker delivers it again: it must not take up the places of what comes on the next channel."""
        self.waiting.clear()
        self._role.mailbox.drop(lambda task: isinstance(task, Turn) and task.channel is self)

    def _cancelled_by_broker(self, frame: Any) -> None:
        if not self.is_closed:
            self.link.emit(ConsumerCancelled(queue=self._role.queue, consumer_tag=frame.method.consumer_tag))
            self._role.cancelled(self)


@dataclass(frozen=True, slots=True)
class Turn:
    """The place of a delivery in the line before the handler."""

    channel: ConsumingChannel
    tag: int

    def __call__(self) -> None:
        """It is its turn."""
        self.channel.hand_over(self.tag)


class ConsumerRole(RecoveringRole[ConsumingChannel]):
    """Keeps one consumer going, and its handler supplied.

    Attributes:
        queue: The queue's name; of one that the broker names, the present one.
        declared: The queue to declare on each link; None: it must be there.
        dropped_acks: Answers for deliveries of a channel that was gone.
        handled: How many deliveries the handler has returned from.
        failures: From how many it raised.
    """

    def __init__(
        self, life: Lifecycle, facade: object, *, queue: str | Queue, handler: Handler, prefetch: int, on_error: OnError
    ) -> None:
        super().__init__(life, facade)
        self.declared = queue if isinstance(queue, Queue) else None
        self.queue = queue.name if isinstance(queue, Queue) else queue
        self.prefetch = prefetch
        self.mailbox = Mailbox("labkit-consumer", limit=2 * WAITING_MAX)  # the prefetch, and ends of channels
        self.dropped_acks = 0
        self.handled = 0
        self.failures = 0
        self.thread: int | None = None  # the one that the handler runs on now
        self.is_stopping = False  # begin nothing any more; set from any thread
        self._handler = handler
        self._on_error = on_error
        self._tries = 0
        self._ready_at = 0.0
        self._refusal: ChannelLost | None = None
        # In the record of the topology, through all links, until the end:
        self._is_counted = False  # this consumer
        self._is_recorded = False  # its queue, if nobody else has declared it on this connection
        if self.declared is not None:
            life.keep_topology()

    def make_channel(self, link: Link, done: Done) -> ConsumingChannel:
        """Return a channel that will consume. What the broker says of the queue is no reason to give up the link."""

        def contained(told: BaseException | int) -> None:
            done(0 if isinstance(told, px.ChannelClosed) else told)

        return ConsumingChannel(link, self, contained)

    def ready(self, channel: ConsumingChannel, done: Done | None) -> None:
        """Messages come."""
        if not self._is_counted:
            self._is_counted = True
            self.life.topology.consumed(self.queue)
        self._refusal = None
        self._ready_at = time.monotonic()
        super().ready(channel, done)

    def channel_ended(self, channel: ConsumingChannel, reason: BaseException | None) -> None:
        """Forget what waits: the broker delivers it again. If only the channel has ended, try another."""
        channel.forget_waiting()
        if channel is not self.channel:
            return
        self.channel = None
        if isinstance(reason, px.ChannelClosed) and channel.link.is_open:
            LOGGER.warning("consuming from %r: %s", self.queue, describe(reason))
            if not classify(reason).is_retryable:
                self._refusal = ChannelLost(f"consuming from {self.queue!r}: {describe(reason)}", reason=reason)
                self._refusal.__cause__ = reason
                self.answer_waiters(self._refusal)
            self._try_again(channel.link)

    def cancelled(self, channel: ConsumingChannel) -> None:
        """The broker has ended the consumer (its queue is gone, or its node): try again on another channel."""
        if channel is self.channel and not self.is_stopped:
            link = channel.link
            self.channel = None
            channel.forget_waiting()
            # Not closed at once: the handler's present delivery may still be settled on it.
            self.mailbox.put(lambda: self.life.io.post(channel.close))
            self._try_again(link)

    def when_ready(self, waiter: Waiter) -> None:
        """Settle *waiter* when messages come, or the broker has refused."""
        if not self.is_ready and self._refusal is not None:
            waiter.settle(error=self._refusal)
        else:
            super().when_ready(waiter)

    def cancel(self, waiter: Waiter) -> None:
        """Have no more delivered; then settle *waiter*."""
        self.is_stopped = True
        if self.channel is None:
            waiter.settle()
        else:
            self.channel.cancel(waiter)

    def stop(self, waiter: Waiter) -> None:
        """End for good: a queue of its own is not declared again, nor an auto-delete one without other consumers."""
        self.follow_name()
        topology = self.life.topology
        if self._is_counted:
            self._is_counted = False
            topology.cancelled(self.queue)
        if self._is_recorded:
            self._is_recorded = False
            topology.deleted(Queue(self.queue))
        super().stop(waiter)

    def follow_name(self) -> bool:
        """Take the present name of a queue that the broker named, and say whether it is a new one: it is there."""
        before, self.queue = self.queue, self.life.topology.current(self.queue)
        return before != self.queue

    def declared_as(self, name: str) -> None:
        """Take note of the queue, so that it is there on the next link before what is bound to it."""
        topology = self.life.topology
        if topology.renamed(self.queue, name):
            self.life.emit(QueueRenamed(old=self.queue, new=name))
        self.queue = name
        if self.declared is not None and not topology.has_queue(name):
            self._is_recorded = True
            topology.declared(self.declared, name)

    def handle(self, delivery: Delivery | None) -> None:
        """Call the handler; on the consumer's own thread. None: the delivery was given back meanwhile."""
        if delivery is None:
            return
        if self.is_stopping:
            with contextlib.suppress(LabkitError):
                delivery.nack(requeue=True)
            return
        self.thread = threading.get_ident()
        try:
            self._handler(delivery)
            self.handled += 1
        except BaseException:  # SystemExit too: it ends no thread of ours
            self.failures += 1
            LOGGER.exception("the handler for %r failed", self.queue)
            self._refuse(delivery)
        finally:
            self.thread = None

    def _refuse(self, delivery: Delivery) -> None:
        if delivery.is_settled:
            return
        try:
            delivery.nack(requeue=self._on_error == "requeue-once" and not delivery.redelivered)
        except LabkitError as exc:  # its handler's other thread settled it meanwhile, for example
            LOGGER.info("not given back: %s", exc)

    def _try_again(self, link: Link) -> None:
        if time.monotonic() - self._ready_at > STABLE_AFTER:
            self._tries = 0
        pause = PAUSES.delay(self._tries)
        self._tries += 1

        def again() -> None:
            if self.channel is not None or self.is_stopped or not link.is_open:
                return
            try:
                self.restore(link, lambda _: None)
            except px.AMQPError as exc:  # no free channel, for example
                LOGGER.warning("no channel to consume on: %s", describe(exc))
                self._try_again(link)

        self.life.io.call_later(pause, again)
