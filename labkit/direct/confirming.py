"""Which publish does the broker's answer belong to? A channel in confirm mode, with a future for each message.

Reference: RabbitMQ, "Consumer Acknowledgements and Publisher Confirms"; "Direct Reply-to".
"""

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import pika
import pika.exceptions as px

from labkit.connection.refusals import refusal, suspects
from labkit.direct.aio_link import AsyncLink, LinkChannel
from labkit.direct.queues import REPLY_TO, is_reply_address
from labkit.errors import PublishRejected, Unroutable
from labkit.topology import Message


@dataclass(slots=True)
class AwaitedConfirm:
    """A message that waits for its confirm."""

    queue: str
    message: Message
    confirm: asyncio.Future[None]
    exchange: str = ""  # the default one, where the routing key is the queue's name
    is_returned: bool = False

    @property
    def where(self) -> str:
        """Where it goes, for a text."""
        return f"{self.queue!r} of exchange {self.exchange!r}" if self.exchange else repr(self.queue)

    @property
    def size(self) -> int:
        """How many bytes its body has."""
        return len(self.message.body)


class ConfirmingChannel:
    """A channel in confirm mode: the broker numbers our publishes from 1, and so do we.

    It may hear the answers to what it has sent: with direct reply-to the broker wants both on one channel.
    """

    def __init__(self, channel: LinkChannel) -> None:
        self.channel = channel
        self._count = 0
        self._sent: dict[int, AwaitedConfirm] = {}
        self._hears_answers = False
        channel.before_end = self._on_end

    @classmethod
    async def open(cls, link: AsyncLink) -> Self:
        """Return an open channel whose confirms are on; raises as :meth:`LinkChannel.open` does."""
        self = cls(await LinkChannel.open(link))
        raw = self.channel.raw
        raw.add_on_return_callback(self._on_return)
        await self.channel.ask("confirms", lambda done: raw.confirm_delivery(self._on_outcome, done))
        return self

    async def hear_answers(self, on_answer: Callable[[Message], object]) -> None:
        """Have *on_answer* called with each answer; only once for a channel. Raises as :meth:`LinkChannel.ask` does."""
        if self._hears_answers:
            return
        self._hears_answers = True  # before the broker's word: if this is cancelled, it consumes all the same

        def hear(_: Any, __: Any, properties: pika.BasicProperties, body: bytes) -> None:
            on_answer(Message.received(properties, body))

        raw = self.channel.raw
        # Direct reply-to demands it. labkit: ignore[auto-ack]
        await self.channel.ask("call", lambda done: raw.basic_consume(REPLY_TO, hear, auto_ack=True, callback=done))

    def publish(
        self, queue: str, message: Message, properties: pika.BasicProperties, exchange: str = ""
    ) -> asyncio.Future[None]:
        """Send *message*; the future is done when the broker has confirmed it, and fails when it has not."""
        is_mandatory = bool(exchange) or not is_reply_address(queue)
        try:
            self.channel.raw.basic_publish(exchange, queue, message.body, properties, mandatory=is_mandatory)
        except px.AMQPError as exc:
            raise self.channel.lost("publish") from exc
        self._count += 1  # only now: what could not be sent has no number
        confirm = self.channel.promise()
        self._sent[self._count] = AwaitedConfirm(queue, message, confirm, exchange)
        return confirm

    def _on_return(self, _: Any, method: Any, properties: pika.BasicProperties, body: bytes) -> None:
        # A return has no number, but it comes before the confirm. Two messages that are equal in all three are the
        # same to whoever reads them, so it does not matter which of them we say was returned.
        for sent in self._sent.values():
            key = (sent.exchange, sent.queue, sent.message.message_id, sent.message.body)
            if not sent.is_returned and key == (method.exchange, method.routing_key, properties.message_id, body):
                sent.is_returned = True
                return

    def _on_end(self, reason: BaseException) -> None:
        """If the broker has closed the channel over one of the messages, say so to that one's publisher."""
        if isinstance(reason, px.ChannelClosedByBroker):
            named, is_certain = suspects(self._sent.values(), reason)
            for sent in named if is_certain else ():
                if not sent.confirm.done():
                    sent.confirm.set_exception(refusal(reason, exchange=sent.exchange, routing_key=sent.queue))

    def _on_outcome(self, frame: Any) -> None:
        tag, is_last_of_many = frame.method.delivery_tag, frame.method.multiple
        tags = list(itertools.takewhile(lambda each: each <= tag, self._sent)) if is_last_of_many else [tag]
        for sent in [self._sent.pop(each) for each in tags]:
            if sent.confirm.done():
                continue  # its publish() was cancelled, or took too long
            if isinstance(frame.method, pika.spec.Basic.Nack):
                text = f"the broker did not take the message for {sent.where}"
                sent.confirm.set_exception(PublishRejected(text))
            elif sent.is_returned:
                text = f"no queue {'for ' if sent.exchange else ''}{sent.where}: the broker returned the message"
                sent.confirm.set_exception(Unroutable(text, exchange=sent.exchange, routing_key=sent.queue))
            else:
                sent.confirm.set_result(None)
