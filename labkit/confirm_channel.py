"""One channel in confirm mode on one link, on the I/O thread: it says what the broker answers, and decides nothing."""

import logging
from collections.abc import Callable
from typing import Any, Protocol

import pika
import pika.exceptions as px

from labkit.channel_core import UNSENT_MAX
from labkit.events import ChannelClosed, ChannelOpened, MessageReturned
from labkit.io_thread import Waiter
from labkit.link import Link
from labkit.private_pika import unsent_bytes

LOGGER = logging.getLogger(__name__)

Done = Callable[[BaseException | int], None]


class ChannelOwner(Protocol):
    """Who sends on it."""

    def ready(self, channel: "ConfirmChannel", done: Done | None) -> None:
        """Confirms are on; call *done* when all is as it was."""

    def channel_ended(self, channel: "ConfirmChannel", reason: BaseException | None) -> None:
        """It is gone; None: this side closed it."""

    def answered(self, tag: int, multiple: bool, is_nack: bool) -> None:
        """The broker confirms, or refuses, one message or all up to one."""

    def returned(self, method: Any, properties: pika.BasicProperties, body: bytes) -> None:
        """The broker could not route a message; its confirm follows."""

    def pump(self) -> None:
        """The broker takes publishes again."""

    def tick(self) -> None:
        """Look after itself; four times a second."""


class ConfirmChannel:
    """Pika's channel, confirms on. See ``labkit.link.ChannelCore`` for what the link tells it.

    Args:
        link: Where it is opened.
        owner: Who hears of the answers.
        done: Told once: handed to the owner when the channel is ready, or called with what ended it before.
    """

    def __init__(self, link: Link, owner: ChannelOwner, done: Done) -> None:
        self.link = link
        self.is_ready = False
        self.is_closed = False
        self.pika: Any = None
        self.number = 0
        self._owner = owner
        self._done: Done | None = done
        self._on_closed: Waiter | None = None

    def open(self) -> None:
        """Open Pika's channel and switch confirms on."""
        connection = self.link.connection
        if connection is None or not self.link.is_open:
            raise self.link.reason or px.ConnectionWrongStateError("the connection is closed")
        self.pika = connection.channel(on_open_callback=self._opened)
        self.number = self.pika.channel_number
        self.link.channels.add(self)
        self.pika.add_on_close_callback(self._pika_closed)
        self.pika.add_on_return_callback(self._returned)

    def close(self, closed: Waiter | None = None) -> None:
        """Close it, asked for by this side."""
        self._on_closed = closed
        channel, was_closed = self.pika, self.is_closed
        self._end(None)
        try:
            if (
                channel is not None
                and self.link.is_open
                and not (was_closed or channel.is_closed or channel.is_closing)
            ):
                channel.close()
                return
        except px.AMQPError as exc:  # it is just ending
            LOGGER.debug("closing a channel: %r", exc)
        if closed is not None:
            closed.settle()

    @property
    def may_publish(self) -> bool:
        """Whether the broker takes publishes, and the socket what was published."""
        connection = self.link.connection
        return not self.link.is_blocked and connection is not None and unsent_bytes(connection) < UNSENT_MAX

    # What the link tells.

    def link_ended(self, reason: BaseException) -> None:
        """The channel is gone with its link."""
        asked = isinstance(reason, px.ConnectionClosedByClient)
        self._end(None if asked else reason, told=reason)

    def tick(self) -> None:
        """Look for what an interrupt may have left."""
        self._owner.tick()

    def forget(self, reason: BaseException) -> None:  # noqa: ARG002 - nobody is told: the parent has it
        """Be gone, in a child process after a fork."""
        self.is_ready, self.is_closed = False, True

    def resume(self) -> None:
        """The broker takes publishes again."""
        self._owner.pump()

    # What Pika tells.

    def _opened(self, _: Any) -> None:
        if self.is_closed:
            return
        # The broker counts from the moment it reads Confirm.Select, and nothing is published before its answer.
        self.pika.confirm_delivery(self._answered, self._confirms_on)

    def _confirms_on(self, _: Any) -> None:
        if self.is_closed:
            return
        self.is_ready = True
        self.link.emit(ChannelOpened(number=self.number))
        done, self._done = self._done, None
        self._owner.ready(self, done)

    def _answered(self, frame: Any) -> None:
        method = frame.method
        if not self.is_closed:
            is_nack = isinstance(method, pika.spec.Basic.Nack)
            self._owner.answered(int(method.delivery_tag), bool(method.multiple), is_nack)

    def _returned(self, _: Any, method: Any, properties: pika.BasicProperties, body: bytes) -> None:
        if not self.is_closed:
            self._owner.returned(method, properties, body)
        self.link.emit(
            MessageReturned(
                exchange=method.exchange,
                routing_key=method.routing_key,
                reply_code=method.reply_code,
                reply_text=method.reply_text,
                message_id=properties.message_id,
            )
        )

    def _pika_closed(self, _: Any, reason: BaseException) -> None:
        if self._on_closed is not None:
            self._on_closed.settle()
        self._end(reason)

    def _end(self, reason: BaseException | None, told: BaseException | None = None) -> None:
        if self.is_closed:
            return
        was_ready, self.is_ready, self.is_closed = self.is_ready, False, True
        self.link.channels.discard(self)
        if was_ready:
            self.link.emit(ChannelClosed(number=self.number, reason=reason))
        done, self._done = self._done, None
        self._owner.channel_ended(self, told or reason)
        if done is not None:
            done(told or reason or px.ChannelClosedByClient(200, "closed by this side"))
