"""One consumer of a channel: its handler, and what waits for that. The channel's core tells what happens to it."""

import math
from collections.abc import Callable
from typing import Any

from labkit.connection.consume_options import ConsumeOptions
from labkit.connection.mailbox import Mailbox
from labkit.connector.private_pika import ignore_late_deliveries
from labkit.content.delivery import Delivery, handle
from labkit.content.failed_deliveries import RetryCounts

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
