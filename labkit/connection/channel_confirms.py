"""Which publish does the broker's answer belong to? The numbers of one channel in confirm mode. No Pika, no I/O.

Reference: RabbitMQ, "Consumer Acknowledgements and Publisher Confirms".
"""

from dataclasses import dataclass
from typing import Any

import pika.exceptions as px

from labkit.concurrency.bell import PendingCall
from labkit.connection.refusals import refusal, suspects
from labkit.errors import PublishRejected, Unroutable
from labkit.topology import Message


@dataclass(slots=True)
class OutstandingConfirm:
    """A message that waits for its confirm."""

    waiter: PendingCall
    exchange: str
    routing_key: str
    message: Message
    is_returned: bool = False

    @property
    def size(self) -> int:
        """How many bytes its body has."""
        return len(self.message.body)


class Confirms:
    """The broker numbers the publishes of a channel from 1, and so do we. On the I/O thread only."""

    def __init__(self) -> None:
        self._count = 0
        self._sent: dict[int, OutstandingConfirm] = {}

    def expect(self, waiter: PendingCall, exchange: str, routing_key: str, message: Message) -> int:
        """Give the message that was just sent its number; *waiter* gets the answer."""
        self._count += 1  # only now: what could not be sent has no number
        self._sent[self._count] = OutstandingConfirm(waiter, exchange, routing_key, message)
        return self._count

    def returned(self, method: Any, message_id: str | None, body: bytes) -> None:
        """The broker sends a message back. It says no number, but it says so before it confirms."""
        # Two messages that are equal in all of this are the same to whoever reads them: either may be the one.
        key = (method.exchange, method.routing_key, message_id, body)
        for sent in self._sent.values():
            message = sent.message
            if not sent.is_returned and key == (sent.exchange, sent.routing_key, message.message_id, message.body):
                sent.is_returned = True
                return

    def refused(self, reason: px.ChannelClosed) -> None:
        """The broker has closed the channel over one of them: settle that, if it is clear which."""
        named, is_certain = suspects(self._sent.values(), reason)
        for sent in named if is_certain else ():
            sent.waiter.settle(error=refusal(reason, exchange=sent.exchange, routing_key=sent.routing_key))

    def answered(self, frame: Any) -> None:
        """Settle one message, or all up to it."""
        tag, is_last_of_many = frame.method.delivery_tag, frame.method.multiple
        for each in [number for number in self._sent if number <= tag] if is_last_of_many else [tag]:
            sent = self._sent.pop(each)
            if frame.method.NAME == "Basic.Nack":
                text = f"the broker did not take the message for {sent.routing_key!r}"
                sent.waiter.settle(error=PublishRejected(text))
            elif sent.is_returned:
                text = f"no queue for {sent.routing_key!r}: the broker returned the message"
                error = Unroutable(text, exchange=sent.exchange, routing_key=sent.routing_key)
                sent.waiter.settle(error=error)
            else:
                sent.waiter.settle()
