"""Which publishes a channel's end refused, and with what error. No I/O."""

import re
from collections.abc import Iterable
from typing import Protocol, TypeVar

import pika.exceptions as px

from labkit.errors import (
    MessageRefused,
    Unroutable,
    describe,
)

NOT_FOUND, ACCESS_REFUSED = 404, 403  # AMQP 0-9-1, section 1.2 (Constants)
TOO_LARGE = re.compile(r"message size \d+ is larger than configured max size (\d+)")


class InFlight(Protocol):
    """A message on its way."""

    @property
    def exchange(self) -> str:
        """Where it was published."""

    @property
    def size(self) -> int:
        """How many bytes its body has."""


S = TypeVar("S", bound=InFlight)


def refusal(reason: BaseException, *, exchange: str, routing_key: str) -> Unroutable | MessageRefused:
    """Return the error for a message over which the broker closed the channel, or twice the connection."""
    error: Unroutable | MessageRefused
    if isinstance(reason, px.ChannelClosed) and reason.reply_code == NOT_FOUND:
        text = f"there is no exchange {exchange!r}: {describe(reason)}"
        error = Unroutable(text, exchange=exchange, routing_key=routing_key, reply_code=NOT_FOUND)
    else:
        what = "channel" if isinstance(reason, px.ChannelClosed) else "connection, twice,"
        error = MessageRefused(f"the broker closed the {what} over it: {describe(reason)}", reason=reason)
    error.__cause__ = reason
    return error


def suspects(sent: Iterable[S], reason: px.ChannelClosed) -> tuple[list[S], bool]:
    """Return those of *sent* over which the broker may have closed the channel, and whether it refuses each of them.

    A Close does not say over which message. Its text may name the exchange, or the size.
    """
    text, named = str(reason.reply_text), list(sent)
    limit = TOO_LARGE.search(text)
    too_large = [each for each in named if limit is not None and each.size > int(limit[1])]
    if too_large:
        return too_large, True
    if reason.reply_code in (NOT_FOUND, ACCESS_REFUSED):
        named = [each for each in named if f"'{each.exchange or 'amq.default'}'" in text] or named
    return named, len(named) == 1
