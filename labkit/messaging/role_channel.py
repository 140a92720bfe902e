"""One channel that a role opens on each new link, on the I/O thread. It says what happens, and decides nothing."""

import logging
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import pika.exceptions as px

from labkit.concurrency.bell import PendingCall
from labkit.connection.blame import SOMEBODY, Step
from labkit.connection.link import Link
from labkit.connection.role import Done
from labkit.events import ChannelClosed, ChannelOpened

LOGGER = logging.getLogger(__name__)


class ChannelOwner(Protocol):
    """The role that uses it."""

    def ready(self, channel: Any, done: Done | None) -> None:
        """The channel is configured; call *done* when the role is ready too."""

    def channel_ended(self, channel: Any, reason: BaseException | None) -> None:
        """The channel is gone; None: this side closed it."""

    def resume(self) -> None:
        """The broker takes publishes again."""

    def tick(self) -> None:
        """Look after itself; four times a second."""


class RoleChannel:
    """Pika's channel from its opening to its end. See ``connection.link.ChannelCore`` for what the link tells it.

    Args:
        link: Where it is opened.
        owner: Who is told what happens.
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
        self._on_closed: PendingCall | None = None

    @property
    def in_hand(self) -> Iterable[Step]:
        """What was begun on it and is not answered."""
        return () if self.is_ready else (SOMEBODY,)

    def open(self) -> None:
        """Open Pika's channel; :meth:`begin` goes on when it is open."""
        connection = self.link.connection
        if connection is None or not self.link.is_open:
            raise self.link.reason or px.ConnectionWrongStateError("the connection is closed")
        self.pika = connection.channel(on_open_callback=lambda _: self.step(self.begin))
        self.number = self.pika.channel_number
        self.link.channels.add(self)
        self.pika.add_on_close_callback(self._pika_closed)

    def begin(self) -> None:
        """Configure the channel, and call :meth:`begun`."""
        raise NotImplementedError

    def begun(self) -> None:
        """The channel is ready."""
        self.is_ready = True
        self.link.emit(ChannelOpened(number=self.number))
        done, self._done = self._done, None
        self._owner.ready(self, done)

    def let_go(self) -> None:
        """Have the link wait for it no longer; it goes on beside the others."""
        done, self._done = self._done, None
        if done is not None:
            done(0)

    def step(self, function: Callable[[], object]) -> None:
        """Go on with *function* unless it has ended; an error in a callback of Pika's would end the whole loop."""
        if self.is_closed:
            return
        try:
            function()
        except px.AMQPError as exc:  # it is just ending, and the callback for that follows
            LOGGER.debug("a step of a channel: %r", exc)

    def close(self, closed: PendingCall | None = None) -> None:
        """Close it, asked for by this side; settle *closed* when the broker has agreed."""
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

    def link_ended(self, reason: BaseException) -> None:
        """The channel is gone with its link."""
        asked = isinstance(reason, px.ConnectionClosedByClient)
        self._end(None if asked else reason, told=reason)

    def tick(self) -> None:
        """Have the role look after itself."""
        self._owner.tick()

    def forget(self, reason: BaseException) -> None:  # noqa: ARG002 - nobody is told: the parent has it
        """Be gone, in a child process after a fork."""
        self.is_ready, self.is_closed = False, True

    def resume(self) -> None:
        """The broker takes publishes again."""
        self._owner.resume()

    def _pika_closed(self, _: Any, reason: BaseException) -> None:
        if self._on_closed is not None:
            self._on_closed.settle()
        self._end(reason)

    def _end(self, reason: BaseException | None, told: BaseException | None = None) -> None:
        if self.is_closed:
            return
        if isinstance(reason, px.AMQPConnectionError):
            self.link.in_hand.update(self.in_hand)
        was_ready, self.is_ready, self.is_closed = self.is_ready, False, True
        self.link.channels.discard(self)
        if was_ready:
            self.link.emit(ChannelClosed(number=self.number, reason=reason))
        done, self._done = self._done, None
        self._owner.channel_ended(self, told or reason)
        if done is not None:
            done(told or reason or px.ChannelClosedByClient(200, "closed by this side"))
