"""A channel in confirm mode each of whose publishers waits for the answer to one message. No threads, no I/O."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pika
import pika.exceptions as px

from labkit.connection.confirm_ledger import ConfirmLedger, Facts
from labkit.connection.refusals import refusal, suspects
from labkit.errors import PublishRejected, Unroutable
from labkit.events import MessageReturned
from labkit.topology import Message


@dataclass(slots=True)
class AwaitedConfirm:
    """A message that waits for its confirm; *tell* is called once, with what went wrong, or None."""

    exchange: str
    routing_key: str
    message: Message
    tell: Callable[[BaseException | None], object]
    returned: tuple[int, str] | None = None
    stamp: None = None

    @property
    def where(self) -> str:
        """Where it goes, for a text."""
        return f"{self.routing_key!r} of exchange {self.exchange!r}" if self.exchange else repr(self.routing_key)

    @property
    def size(self) -> int:
        """How many bytes its body has."""
        return len(self.message.body)

    @property
    def facts(self) -> Facts:
        """All that the broker says of it if it comes back."""
        return self.exchange, self.routing_key, self.message.message_id, self.message.body


class Confirms:
    """What was sent on the channel, and what the broker's answers mean for it. On the channel's thread only."""

    def __init__(self) -> None:
        self._ledger: ConfirmLedger[AwaitedConfirm] = ConfirmLedger()

    def expect(
        self, exchange: str, routing_key: str, message: Message, tell: Callable[[BaseException | None], object]
    ) -> None:
        """Count the message that was just sent, and not one that could not be; *tell* gets the answer."""
        self._ledger.sent(AwaitedConfirm(exchange, routing_key, message, tell))

    def returned(self, method: Any, properties: pika.BasicProperties, body: bytes) -> None:
        """The broker sends a message back; its confirm follows."""
        facts = (method.exchange, method.routing_key, properties.message_id, body)
        self._ledger.returned((method.reply_code, method.reply_text), facts)

    def refused(self, reason: BaseException) -> None:
        """The channel has ended: if the broker closed it over one message, and it is clear which, tell that one's."""
        if isinstance(reason, px.ChannelClosedByBroker):
            named, is_certain = suspects(self._ledger, reason)
            for sent in named if is_certain else ():
                sent.tell(refusal(reason, exchange=sent.exchange, routing_key=sent.routing_key))

    def answered(self, frame: Any) -> None:
        """The broker confirms, or refuses, one message or all up to one."""
        method = frame.method
        for sent in self._ledger.settled(method.delivery_tag, method.multiple):
            error: Exception | None = None
            if isinstance(method, pika.spec.Basic.Nack):
                error = PublishRejected(f"the broker did not take the message for {sent.where}")
            elif sent.returned is not None:
                text = f"no queue for {sent.where}: the broker returned the message"
                error = Unroutable(text, exchange=sent.exchange, routing_key=sent.routing_key)
            sent.tell(error)


def returned_event(method: Any, properties: pika.BasicProperties) -> MessageReturned:
    """Return the event for a message that the broker sends back."""
    return MessageReturned(
        exchange=method.exchange,
        routing_key=method.routing_key,
        reply_code=method.reply_code,
        reply_text=method.reply_text,
        message_id=properties.message_id,
    )
