"""What a ``ConnectionManager`` holds while it is open: two connections, a publisher, consumers; and how that ends."""

import logging
import time

from labkit.connection import Connection
from labkit.consumer import Consumer
from labkit.errors import NotConnected, describe
from labkit.guard import guard
from labkit.publisher import Publisher

LOGGER = logging.getLogger(__name__)
CONSUMERS_SHARE, PUBLISHER_SHARE = 0.5, 0.5  # of the time that is left when their turn to close comes
LATE_TIMEOUT = 1.0  # seconds to close what was opened, and is of no use: another thread closed the manager meanwhile


class Parts:
    """What one open manager holds; one that is opened again after a close has others. Thread-safe.

    Attributes:
        publishing: The publisher's connection.
        consuming: All consumers' connection.
        is_closing: No consumer is begun any more; those that work may still publish.
        is_closed: Nothing is; what was just being opened is closed by whoever opened it.
    """

    def __init__(self, publishing: Connection, consuming: Connection, publisher: Publisher) -> None:
        self.publishing = publishing
        self.consuming = consuming
        self.publisher = publisher
        self.is_closing = False
        self.is_closed = False
        self._lock = guard()
        self._consumers: tuple[Consumer, ...] = ()  # replaced, never changed
        self._opening: tuple[Consumer, ...] = ()

    @property
    def consumers(self) -> tuple[Consumer, ...]:
        """Those that were not closed."""
        return tuple(each for each in self._consumers if not each.is_closed or each in self._opening)

    def check(self, *, may_be_closing: bool = True) -> None:
        """Raise NotConnected if it is closed."""
        if self.is_closed or (self.is_closing and not may_be_closing):
            raise NotConnected("the ConnectionManager is closed; call open()")

    def begin(self, part: Publisher | Consumer | Connection, seconds: float) -> None:
        """Open *part*, or wait until it can be used again."""
        self.check()
        part.open(deadline=seconds)
        if self.is_closed:  # by another thread, which may have looked before this was open
            self.close(LATE_TIMEOUT)
            if not isinstance(part, Consumer) or not part.handled:  # else its own handler may have closed us
                self.check()

    def consume(self, consumer: Consumer, seconds: float) -> None:
        """Open *consumer* and hold it: from before, since its handler may close all this at its first delivery."""
        self.check(may_be_closing=False)
        with self._lock:
            self._consumers, self._opening = (*self.consumers, consumer), (*self._opening, consumer)
        try:
            self.begin(consumer, seconds)
        finally:
            with self._lock:
                self._opening = tuple(each for each in self._opening if each is not consumer)

    def close(self, timeout: float) -> None:
        """End everything within *timeout* seconds: first what takes messages, then what sends them."""
        ends = time.monotonic() + timeout

        def left(part: float = 1.0) -> float:
            return max(0.0, ends - time.monotonic()) * part

        self.is_closing = True
        consumers = self.consumers
        for index, consumer in enumerate(consumers):
            _close(consumer, left(CONSUMERS_SHARE / (len(consumers) - index)))
        self.is_closed = True
        _close(self.publisher, left(PUBLISHER_SHARE))
        _close(self.consuming, left(0.5))
        _close(self.publishing, left())


def _close(part: Publisher | Consumer | Connection, timeout: float) -> None:
    try:
        part.close(timeout=timeout)
    except Exception as exc:
        LOGGER.warning("closing %r: %s", part, describe(exc), exc_info=exc)
