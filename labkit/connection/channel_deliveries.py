"""What comes on a channel: deliveries, to its consumers and for its gets; what waits, what goes back, what is settled.

On the I/O thread only, but for :meth:`ChannelDeliveries.settle` and looks at what is left.
"""

import math
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import pika
import pika.exceptions as px

from labkit.connection.channel_outbox import ANSWER, HandedOver
from labkit.connection.consume_options import ConsumeOptions
from labkit.connection.mailbox import Mailbox
from labkit.connection.topology_record import TopologyRecord
from labkit.connector.private_pika import ignore_late_deliveries
from labkit.content.delivery import Delivery, Settlements, handle
from labkit.content.failed_deliveries import RetryCounts
from labkit.errors import ConfigurationError
from labkit.events import ConsumerCancelled

WAITING_MAX = 65536  # deliveries; the largest prefetch is 65535


class Consuming:
    """What a consumer's handler has not begun, and how that goes back when the consumer is cancelled.

    Attributes:
        tag: Its name on the channel.
        is_stream: Whether its queue is one, which takes nothing back.
        waiting: What is queued for the handler and can be given back, by delivery tag; nothing with auto-ack.
        is_cancelled: Whether no more is asked for; set before :meth:`cancel`.
    """

    def __init__(self, *, is_stream: bool = False) -> None:
        self.tag = ""
        self.is_stream = is_stream
        self.waiting: dict[int, Delivery] = {}
        self.is_cancelled = False

    def cancel(self, channel: Any, then: Callable[[list[int]], object]) -> None:
        """Have no more delivered on Pika's *channel*, then call *then* with the tags of what went back."""

        def cancelled(_: Any) -> None:
            tags = [each for each in list(self.waiting) if self.waiting.pop(each, None) is not None]
            for each in tags:
                self.give_back(channel, each)
            then(tags)

        if self.is_stream:
            ignore_late_deliveries(channel, self.tag)
        channel.basic_cancel(self.tag, callback=cancelled)

    def give_back(self, channel: Any, tag: int) -> None:
        """Return to its queue what the handler has not begun, or what came late."""
        if channel.is_open and not self.is_stream:
            channel.basic_nack(tag, requeue=True)


class ChannelConsumer(Consuming):
    """Calls *handler* with one delivery after the other, on a thread of its own.

    Attributes:
        is_counted: Whether it is in the record of the topology.
    """

    def __init__(self, queue: str, handler: Callable[[Delivery], object], options: ConsumeOptions) -> None:
        super().__init__(is_stream=options.is_stream)
        self.queue = queue
        self.options = options
        self.is_counted = False
        self._handler = handler
        self._retry_counts = RetryCounts("requeue-once")
        # With auto-ack the broker sends on, whatever waits here.
        self._mailbox = Mailbox("labkit-consumer", limit=math.inf if options.auto_ack else WAITING_MAX)

    def put(self, tag: int, delivery: Delivery) -> None:
        """Have *delivery* handled when it is its turn."""
        if self.options.auto_ack:  # the broker has forgotten it: it is handled, whatever becomes of the channel
            self._mailbox.put(lambda: self._handle(delivery))
        else:
            self.waiting[tag] = delivery
            self._mailbox.put(lambda: self._handle(self.waiting.pop(tag, None)))

    def _handle(self, delivery: Delivery | None) -> None:
        if delivery is not None:  # else it was given back meanwhile
            handle(delivery, self._handler, self._retry_counts)


class ChannelDeliveries:
    """The consumers and the gets of one channel. True: a message is unsettled, or may come.

    Attributes:
        consumers: By tag.
        unsettled: By delivery tag, with whose they are; None: of a get. Whoever settles takes out of it, on any thread:
            look at a copy.
        has_come: Whether any was to be settled.
    """

    def __init__(self, core: Any, topology: TopologyRecord) -> None:
        self.consumers: dict[str, ChannelConsumer] = {}
        self.unsettled: dict[int, ChannelConsumer | None] = {}
        self.has_come = False
        self._gets: deque[tuple[str, bool, Any]] = deque()  # of which queue, whether with auto-ack, whose
        self._settlements = Settlements()
        self._core = core  # a ChannelIo, whose module imports this one
        self._topology = topology

    def __bool__(self) -> bool:
        return bool(self.unsettled or self.consumers or self._gets)

    def begin(self, channel: Any) -> None:
        """Have Pika's *channel* tell what is not a delivery."""
        channel.add_on_cancel_callback(self._cancelled_by_broker)
        # One for all gets: a callback a call would pile up, for Pika 1.4 cannot take one back.
        channel.add_callback(lambda _: self._got(None), [pika.spec.Basic.GetEmpty], one_shot=False)

    def end(self, *, is_link_lost: bool) -> bool:
        """Forget all, with the channel; return whether anything was unsettled."""
        had_unsettled, self.unsettled = bool(self.unsettled), {}
        self._gets.clear()
        for consumer in self.consumers.values():
            self._over(consumer, self._topology.lost if is_link_lost else self._topology.cancelled)
            consumer.waiting.clear()
        self.consumers.clear()
        return had_unsettled

    def get(self, queue: str, auto_ack: bool, request: Any) -> None:
        """Ask for one message; one get at a time, for the answer does not say whose it is."""
        request.is_answered = False  # before it is asked it costs nothing to give it up
        self._gets.append((queue, auto_ack, request))
        if len(self._gets) == 1:
            self._ask()

    def consume(self, queue: str, handler: Callable[[Delivery], object], options: ConsumeOptions, request: Any) -> None:
        """Start a consumer; the request gets its tag."""
        consumer = ChannelConsumer(queue, handler, options)

        def consuming(_: Any) -> None:
            if not consumer.is_cancelled:
                consumer.is_counted = True
                self._topology.consumed(queue)
            request.settle(tag)

        try:
            tag = consumer.tag = options.consume(self._core.pika, queue, partial(self._deliver, consumer), consuming)
        except px.DuplicateConsumerTag as exc:
            problem = f"tag: {options.tag!r} is in use on this channel; allowed: one that no consumer here has had"
            raise ConfigurationError(problem, field="tag", value=options.tag) from exc
        self.consumers[tag] = consumer

    def cancel(self, tag: str, request: Any) -> None:
        """End a consumer."""
        consumer = self.consumers.pop(tag, None)
        if consumer is None:
            request.settle()
            return
        self._over(consumer, self._topology.cancelled)

        def cancelled(given_back: list[int]) -> None:
            for each in given_back:
                self.unsettled.pop(each, None)
            request.settle()

        consumer.cancel(self._core.pika, cancelled)

    def settle(self, verb: str, tag: int, requeue: bool, timeout: float, may_send: Callable[[], bool]) -> None:
        """Hand the answer for a delivery over; from any thread."""
        core = self._core
        if not core.is_open:
            raise core.lost()
        self._settlements.check(tag)

        def send() -> None:
            try:
                self._settlements.send(core.pika, verb, tag, requeue, may_send)
            except px.AMQPError:  # closed between its last sign of life and now
                core.unsent_answers += 1

        # First: while a message is unsettled, or its answer unsent, the channel stays, though nobody holds it.
        core.hand_over(HandedOver(send, ANSWER), timeout)
        tags = [each for each in self.unsettled.copy() if each < tag] if verb == "ack-multiple" else []
        for each in [*tags, tag]:
            self.unsettled.pop(each, None)  # another thread may answer it too, or the broker has just taken it back
        self._settlements.asked(verb, tag)

    def _ask(self) -> None:
        queue, auto_ack, request = self._gets[0]
        request.is_answered = True

        def got(_: Any, method: Any, properties: pika.BasicProperties, body: bytes) -> None:
            self._got(self._received(queue, auto_ack, None, method, properties, body))

        try:
            self._core.pika.basic_get(queue, got, auto_ack=auto_ack)
        except px.AMQPError as exc:
            self._gets.popleft()
            request.waiter.settle(error=self._core.lost(self._core.reason or exc))

    def _got(self, delivery: Delivery | None) -> None:
        if self._gets:
            self._gets.popleft()[2].settle(delivery)
        while self._gets and self._gets[0][2].waiter.is_abandoned:
            self._gets.popleft()
        if self._gets:
            self._ask()

    def _received(
        self, queue: str, auto_ack: bool, consumer: ChannelConsumer | None, method: Any, properties: Any, body: bytes
    ) -> Delivery:
        if not auto_ack:
            self.unsettled[method.delivery_tag] = consumer
            self.has_come = True
        is_stream = consumer is not None and consumer.is_stream  # the broker refuses a get from one
        return Delivery.received(self, queue, method, properties, body, auto_ack=auto_ack, is_stream=is_stream)

    def _deliver(self, consumer: ChannelConsumer, _: Any, method: Any, properties: Any, body: bytes) -> None:
        auto_ack, tag = consumer.options.auto_ack, method.delivery_tag
        if consumer.is_cancelled and not auto_ack:
            consumer.give_back(self._core.pika, tag)
        else:
            consumer.put(tag, self._received(consumer.queue, auto_ack, consumer, method, properties, body))

    def _cancelled_by_broker(self, frame: Any) -> None:
        tag = frame.method.consumer_tag
        consumer = self.consumers.pop(tag, None)
        if consumer is not None:
            self._over(consumer, self._topology.lost)
            consumer.waiting.clear()
            # Void at the broker: a channel that nobody can use any more need not wait for them.
            for void in [tag for tag, each in self.unsettled.copy().items() if each is consumer]:
                self.unsettled.pop(void, None)
            self._core.link.emit(ConsumerCancelled(queue=consumer.queue, consumer_tag=tag))

    def _over(self, consumer: ChannelConsumer, tell: Callable[[str], None]) -> None:
        consumer.is_cancelled = True
        if consumer.is_counted:
            consumer.is_counted = False
            tell(consumer.queue)
