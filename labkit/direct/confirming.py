"""A channel in confirm mode, with a future for each message.

Reference: RabbitMQ, "Consumer Acknowledgements and Publisher Confirms"; "Direct Reply-to".
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, Self

import pika
import pika.exceptions as px

from labkit.connection.channel_confirms import Confirms
from labkit.direct.aio_link import AsyncLink, LinkChannel
from labkit.direct.queues import REPLY_TO, is_reply_address
from labkit.topology import Message


class ConfirmingChannel:
    """A channel in confirm mode.

    It may hear the answers to what it has sent: with direct reply-to the broker wants both on one channel.
    """

    def __init__(self, channel: LinkChannel) -> None:
        self.channel = channel
        self._confirms = Confirms()
        self._hears_answers = False
        channel.before_end = self._confirms.refused

    @classmethod
    async def open(cls, link: AsyncLink) -> Self:
        """Return an open channel whose confirms are on; raises as :meth:`LinkChannel.open` does."""
        self = cls(await LinkChannel.open(link))
        raw = self.channel.raw
        raw.add_on_return_callback(lambda _, *returned: self._confirms.returned(*returned))
        try:
            await self.channel.ask("confirms", lambda done: raw.confirm_delivery(self._confirms.answered, done))
        except BaseException:  # also if it is cancelled: nobody would close the channel
            self.channel.close_soon()
            raise
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
        confirm = self.channel.promise()
        self._confirms.expect(exchange, queue, message, partial(_settle, confirm))
        return confirm


def _settle(confirm: asyncio.Future[None], error: BaseException | None) -> None:
    if confirm.done():
        return  # its publish() was cancelled, or took too long
    if error is None:
        confirm.set_result(None)
    else:
        confirm.set_exception(error)
