"""A look at what a socket holds, without taking it: has the broker closed, blocked, or hung up?

Pika reads only while its owner lets it: a ``BlockingConnection`` whose thread computes, and a loop that is held up,
know nothing of what has arrived. Here the bytes are looked at where they lie (``MSG_PEEK``), so Pika still gets them
all. Under TLS they are unreadable, and only the end of the link shows.

Reference: AMQP 0-9-1, sections 4.2.3 (General Frame Format), 1.4.2 (connection.close); RabbitMQ, "Blocked Connection
Notifications".
"""

import contextlib
import select
import struct
from dataclasses import dataclass
from typing import Any

from labkit.connector.private_pika import unread

MOST = 256 * 1024  # bytes looked at; a word of the broker behind them is not seen
FRAME = struct.Struct(">BHI")
METHOD_FRAME, FRAME_END = 1, 0xCE
CLOSE, BLOCKED, UNBLOCKED = (10, 50), (10, 60), (10, 61)  # connection.*, class and method
GONE = getattr(select, "POLLRDHUP", 0)  # Linux says so even while there is something to read


@dataclass(frozen=True, slots=True)
class Peek:
    """What a look has found.

    Attributes:
        waiting: Bytes that wait for Pika.
        ended: Why the link is over; None: it is not, as far as anybody can see.
        blocked_for: The broker's reason for taking no publishes; "": it takes them again; None: it says neither.
    """

    waiting: int = 0
    ended: str | None = None
    blocked_for: str | None = None

    @property
    def is_full(self) -> bool:
        """Whether there may be more than was looked at."""
        return self.waiting >= MOST


NOTHING = Peek()


def peek(wire: Any) -> Peek:
    """Look at what waits for *wire*, one of Pika's open connections. From any thread; never waits."""
    try:
        found = unread(wire, MOST)
    except (BlockingIOError, InterruptedError):
        return NOTHING
    except OSError as exc:
        return Peek(ended=f"the socket says: {exc.strerror or exc}")
    if found is None:
        return NOTHING
    waiting, link = found
    ended, blocked_for = read(waiting)
    if ended is None and (not waiting or _has_hung_up(link)):
        ended = "the broker has closed the link"
    return Peek(len(waiting), ended, blocked_for)


def read(waiting: bytes) -> tuple[str | None, str | None]:
    """Return what the broker says in *waiting*: why it closes, and whether it blocks. None: it does not say."""
    ended = blocked_for = None
    at = 0
    while at + FRAME.size <= len(waiting):
        kind, channel, size = FRAME.unpack_from(waiting, at)
        start, end = at + FRAME.size, at + FRAME.size + size
        if end >= len(waiting) or waiting[end] != FRAME_END:
            break  # not whole yet, or Pika has just taken something
        if kind == METHOD_FRAME and channel == 0 and size >= 4:
            method = struct.unpack_from(">HH", waiting, start)
            if method == CLOSE:
                (code,) = struct.unpack_from(">H", waiting, start + 4)
                ended = f"({code}) {_short_string(waiting, start + 6)}"
            elif method == BLOCKED:
                blocked_for = _short_string(waiting, start + 4)
            elif method == UNBLOCKED:
                blocked_for = ""
        at = end + 1
    return ended, blocked_for


def _short_string(data: bytes, at: int) -> str:
    return data[at + 1 : at + 1 + data[at]].decode("utf-8", "replace")


def _has_hung_up(link: Any) -> bool:
    with contextlib.suppress(OSError, ValueError):  # closed meanwhile: Pika knows then
        if GONE and link.fileno() >= 0:
            poll = select.poll()
            poll.register(link, GONE)
            return any(event & (GONE | select.POLLHUP | select.POLLERR) for _, event in poll.poll(0))
    return False
