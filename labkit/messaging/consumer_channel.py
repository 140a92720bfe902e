"""The channel of a ``Consumer``, on the I/O thread: one consumer, what waits for its handler, and how that is settled.

Its role, ``labkit.messaging.consumer_io``, decides what follows when it has ended.
"""

import datetime
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pika

from labkit.concurrency.bell import PendingCall
from labkit.connection.blame import Step, declaring
from labkit.connection.channel_deliveries import Consuming
from labkit.connection.link import Link
from labkit.connection.role import Done
from labkit.content.delivery import Delivery, Settlements, return_unsettled
from labkit.content.stream_position import offset_of
from labkit.errors import NotConnected
from labkit.events import ConsumerCancelled
from labkit.messaging.role_channel import RoleChannel
from labkit.values import FrozenMapping


class ConsumingChannel(RoleChannel):
    """A channel with one consumer. It is the settler of its deliveries, which are void when it is gone."""

    def __init__(self, link: Link, role: Any, done: Done) -> None:
        super().__init__(link, role, done)
        self._consuming = Consuming()
        self._settlements = Settlements()
        self._at_work: set[int] = set()  # threads on which the handler has a delivery of this channel, or is about to
        self._closes_when_idle = False
        self._role = role  # a ConsumerRole, whose module imports this one
        self._step: Step = role  # what it is at: making its consumer, or declaring the queue

    def begin(self) -> None:
        """Set the prefetch, have the queue and its bindings there, consume."""
        self.pika.add_on_cancel_callback(self._cancelled_by_broker)
        self.pika.basic_qos(0, self._role.prefetch, callback=lambda _: self.step(self._declare))

    @property
    def in_hand(self) -> Iterable[Step]:
        """The step that the broker has not answered."""
        return () if self.is_ready else (self._step,)

    def close_when_idle(self) -> None:
        """Close it when the handler has returned: its present deliveries may still be settled on it."""
        self._closes_when_idle = True
        if not self._at_work:
            self.close()

    def cancel(self, waiter: PendingCall) -> None:
        """Have no more delivered, and give back what the handler has not begun; then settle *waiter*."""
        self._consuming.is_cancelled = True
        if self.is_ready:
            self.step(lambda: self._consuming.cancel(self.pika, lambda _: waiter.settle()))
        else:
            waiter.settle()

    def close(self, closed: PendingCall | None = None) -> None:
        """Close it, asked for by this side, and give back what is not settled."""
        if self.pika is not None and self.pika.is_open and self.link.is_open:
            self.step(lambda: return_unsettled(self.pika))
        super().close(closed)

    def settle(self, verb: str, tag: int, requeue: bool, timeout: float, may_send: Callable[[], bool]) -> None:
        """Hand the answer for a delivery over; drop and count it if this channel is gone. From any thread."""
        self._settlements.check(tag)

        def send() -> None:
            if self.is_closed or self.pika.is_closed or self.pika.is_closing:
                # The broker has given the message to somebody else; on a later channel the tag means another message.
                self._dropped()
                return
            if not self._settlements.send(self.pika, verb, tag, requeue, may_send):
                return
            if verb.startswith("ack") and self._role.channel is self:
                self._role.position.settled(tag, multiple=verb == "ack-multiple")
            self._role.tally.settled["ack" if verb.startswith("ack") else verb] += 1

        try:
            self.link.io.hand_over(send, timeout=timeout)
        except NotConnected:  # the loop has crashed, and this channel with it
            self._dropped()
            return
        self._settlements.asked(verb, tag)

    def _dropped(self) -> None:
        self._role.dropped_acks += 1
        self._role.tally.dropped += 1

    def _declare(self) -> None:
        queue = self._role.to_declare()
        if queue is None:
            self._bind()
            return
        self._step = self._role.declaration
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
        self._role.life.blame.clear(self._step)
        self._step = self._role
        self._role.declared_as(str(frame.method.queue))
        self._role.mend(self.link, lambda: self.step(self._bind))

    def _bind(self) -> None:
        binding = self._role.to_bind()
        if binding is None:
            self._consume()
            return

        def bound() -> None:
            self._role.life.blame.clear(self._step)
            self._step = self._role
            self._role.life.topology.declared(binding)
            self._bind()

        self._step = declaring(binding, "")

        self.pika.queue_bind(
            binding.destination,
            binding.source,
            binding.routing_key,
            FrozenMapping(binding.arguments).thaw() or None,
            callback=lambda _: self.step(bound),
        )

    def _consume(self) -> None:
        role, options = self._role, self._role.options
        offset = role.position.begin(datetime.datetime.now(datetime.UTC))
        if offset is not None:
            self._consuming.is_stream, options = True, options.starting_at(offset)
        self._consuming.tag = options.consume(self.pika, role.queue, self._deliver, lambda _: self.step(self.begun))

    def _deliver(self, _: Any, method: Any, properties: pika.BasicProperties, body: bytes) -> None:
        tag, role, consuming = method.delivery_tag, self._role, self._consuming
        auto_ack, is_stream = role.options.auto_ack, consuming.is_stream
        if self.is_closed:
            return
        if consuming.is_cancelled and not auto_ack:
            consuming.give_back(self.pika, tag)
            return
        role.tally.delivered += 1
        delivery = Delivery.received(self, role.queue, method, properties, body, auto_ack=auto_ack, is_stream=is_stream)
        offset = offset_of(delivery.message)
        if role.position.finds_stream(offset):
            consuming.is_stream = True
            role.begin_again(self)
            return
        if is_stream and offset is not None:
            role.position.delivered(tag, offset)
        if auto_ack:  # the broker has forgotten it: it is handled, whatever becomes of the channel
            role.mailbox.put(lambda: role.handle(delivery))
        elif consuming.waiting or self._at_work or not role.handle_at_once(delivery):  # one after the other, in order
            consuming.waiting[tag] = delivery
            role.mailbox.put(QueuedDelivery(self, tag))

    def hand_over(self, tag: int) -> None:
        """Call the handler with what waits under *tag*; on one of the consumer's own threads."""
        me = threading.get_ident()
        self._at_work.add(me)  # before it is taken: see close_when_idle()
        try:
            self._role.handle(self._consuming.waiting.pop(tag, None))
        finally:
            self._at_work.discard(me)
            if self._closes_when_idle and not self._at_work:
                self.link.io.post(self.close)

    def forget_waiting(self) -> None:
        """The broker delivers it again: it must not take up the places of what comes on the next channel."""
        self._consuming.waiting.clear()
        self._role.mailbox.drop(lambda task: isinstance(task, QueuedDelivery) and task.channel is self)

    def _cancelled_by_broker(self, frame: Any) -> None:
        if not self.is_closed:
            self.link.emit(ConsumerCancelled(queue=self._role.queue, consumer_tag=frame.method.consumer_tag))
            self._role.cancelled(self)


@dataclass(frozen=True, slots=True, eq=False)  # a mailbox removes it in one step, without a call of Python code
class QueuedDelivery:
    """The place of a delivery in the line before the handler."""

    channel: ConsumingChannel
    tag: int

    def __call__(self) -> None:
        """Have the delivery handled: its turn has come."""
        self.channel.hand_over(self.tag)
