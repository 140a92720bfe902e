"""Where in a stream a consumer goes on, so that no message is left out. No I/O, no Pika; times are arguments.

A stream keeps its messages and numbers them; who reads says from where. It takes nothing back: a broker that is told
"requeue" goes on with the next message (RabbitMQ 4), or ends the connection (3.10).

Reference: RabbitMQ, "Streams and Super Streams", Consuming.
"""

import datetime
from collections.abc import Mapping
from typing import Any

from labkit.topology import Message

OFFSET = "x-stream-offset"  # the consumer's argument, and the header that every message of a stream has
MARGIN = datetime.timedelta(seconds=10)  # by which the broker's clock may be behind ours

Offset = int | str | datetime.datetime


def offset_of(message: Message) -> int | None:
    """Return which message of a stream it is; None: of none. It may only have been there: a shovel copies headers."""
    offset = message.headers.get(OFFSET)
    return offset if isinstance(offset, int) else None


class StreamPosition:
    """The place of one consumer, through its channels and links. For one thread at a time.

    It is known that a queue is a stream when the consumer's arguments or its declaration say so. Else the first message
    tells, and the broker is asked: it refuses an offset for a queue of another kind.

    Args:
        arguments: Of the consumer.
        queue_type: That of the queue, if it was declared with one.

    Attributes:
        is_stream: None: not known yet.
    """

    def __init__(self, arguments: Mapping[str, Any], queue_type: object = None) -> None:
        self._start: Offset | None = arguments.get(OFFSET)
        self._is_said = self._start is not None or queue_type == "stream"
        self.is_stream: bool | None = True if self._is_said else None if queue_type is None else False
        self._next: int | None = None  # after the last message that came
        self._unsettled: dict[int, int] = {}  # offsets by delivery tag, in order
        self._begun = 0
        self._since: datetime.datetime | None = None

    @property
    def goes_on(self) -> bool:
        """Whether :meth:`begin` would go back to a stream."""
        return bool(self.is_stream) and self._begun > 0

    def begin(self, now: datetime.datetime) -> Offset | None:
        """Return from where a new channel is to consume; None: the queue is no stream, as far as is known."""
        self._next = next(iter(self._unsettled.values()), self._next)
        self._unsettled = {}
        self._begun += 1
        self._since = self._since or now
        if not self.is_stream:
            return None
        if self._next is not None:
            return self._next
        if self._start in (None, "next") and self._begun > 1:  # what came since the first time must not be left out
            return self._since - MARGIN
        return "next" if self._start is None else self._start

    def delivered(self, tag: int, offset: int) -> None:
        """Take note of a message that came."""
        self._unsettled[tag] = offset
        self._next = offset + 1

    def settled(self, tag: int, *, multiple: bool = False) -> None:
        """The message that came under *tag* is done; with *multiple*, all before it too."""
        self._unsettled.pop(tag, None)
        if multiple:
            self._unsettled = {each: offset for each, offset in self._unsettled.items() if each > tag}

    def finds_stream(self, offset: int | None) -> bool:
        """Judge by the first message what the queue is; True: consume again, from where :meth:`begin` says."""
        if self.is_stream is not None:
            return False
        self.is_stream = offset is not None
        if self._begun == 1:  # later, some may have been left out already
            self._next = offset
        return self.is_stream

    def finds_none(self) -> bool:
        """The broker knows no offset in this queue; False: nobody may say that it is a stream, then."""
        if not self._is_said:
            self.is_stream = False
        return not self._is_said

    def restart(self) -> None:
        """The stream has gone: all that comes into the next one is to be read."""
        if self.goes_on:
            self._start, self._next, self._unsettled, self._begun = "first", None, {}, 0
