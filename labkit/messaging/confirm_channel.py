"""One channel in confirm mode on one link, on the I/O thread: it says what the broker answers, and decides nothing."""

from collections.abc import Iterable
from typing import Any, Protocol

import pika

from labkit.connection.blame import Step
from labkit.connection.channel_confirms import returned_event
from labkit.connection.link import Link
from labkit.connection.role import Done
from labkit.content.sendable import frame_max_of
from labkit.messaging.role_channel import ChannelOwner, RoleChannel


class Sender(ChannelOwner, Protocol):
    """Who publishes on it."""

    @property
    def in_hand(self) -> Iterable[Step]:
        """The messages that the broker has not answered."""

    def answered(self, tag: int, multiple: bool, is_nack: bool) -> None:
        """The broker confirms, or refuses, one message or all up to one."""

    def returned(self, method: Any, properties: pika.BasicProperties, body: bytes) -> None:
        """The broker could not route a message; its confirm follows."""


class ConfirmChannel(RoleChannel):
    """A channel whose publishes the broker numbers and answers.

    Attributes:
        frame_max: How many bytes one frame may have on its link.
    """

    def __init__(self, link: Link, sender: Sender, done: Done) -> None:
        super().__init__(link, sender, done)
        self._sender = sender
        self.frame_max = frame_max_of(link.connection)

    @property
    def in_hand(self) -> Iterable[Step]:
        """The messages that the broker has not answered."""
        return self._sender.in_hand if self.is_ready else super().in_hand

    def begin(self) -> None:
        """Switch confirms on. The broker counts from there, and nothing is published before its answer."""
        self.pika.add_on_return_callback(self._returned)
        self.pika.confirm_delivery(self._answered, lambda _: self.step(self.begun))

    def _answered(self, frame: Any) -> None:
        method = frame.method
        if not self.is_closed:
            is_nack = isinstance(method, pika.spec.Basic.Nack)
            self._sender.answered(int(method.delivery_tag), bool(method.multiple), is_nack)

    def _returned(self, _: Any, method: Any, properties: pika.BasicProperties, body: bytes) -> None:
        if not self.is_closed:
            self._sender.returned(method, properties, body)
        self.link.emit(returned_event(method, properties))
