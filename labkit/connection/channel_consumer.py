"""One consumer of a channel: its handler, and what waits for that. The channel's core tells what happens to it."""

import contextlib
import math
from collections.abc import Callable, Iterator

from labkit.connection.consume_options import ConsumeOptions
from labkit.connection.mailbox import Mailbox
from labkit.content.delivery import Delivery, handle
from labkit.content.failed_deliveries import RetryCounts

WAITING_MAX = 65536  # deliveries; the largest prefetch is 65535


class ChannelConsumer:
    """Calls *handler* with one delivery after the other, on a thread of its own.

    Attributes:
        waiting: What is queued for the handler and can be given back, by delivery tag.
        is_counted: Whether it is in the record of the topology.
        is_cancelled: Whether no more comes.
    """

    def __init__(self, queue: str, handler: Callable[[Delivery], object], options: ConsumeOptions) -> None:
        self.queue = queue
        self.options = options
        self.waiting: dict[int, Delivery] = {}
        self.is_counted = False
        self.is_cancelled = False
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

    def take_waiting(self) -> Iterator[int]:
        """Empty :attr:`waiting`, from which the handler's thread takes too, and yield the tags."""
        with contextlib.suppress(KeyError):
            while True:
                yield self.waiting.popitem()[0]

    def _handle(self, delivery: Delivery | None) -> None:
        if delivery is not None:  # else it was given back meanwhile
            handle(delivery, self._handler, self._retry_counts)
