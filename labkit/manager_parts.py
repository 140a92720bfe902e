"""What a ``ConnectionManager`` holds while it is open: two connections, a publisher, consumers; and how that ends."""

import contextlib
import logging
import os
import time
from typing import Any

from labkit.concurrency.bell import Flag
from labkit.connection.connection import Connection
from labkit.connection.topology_record import TopologyRecord
from labkit.errors import LabkitError, NotConnected, describe
from labkit.messaging.consumer import Consumer
from labkit.messaging.publisher import Publisher
from labkit.settings.settings import BrokerSettings

LOGGER = logging.getLogger(__name__)
CONSUMERS_SHARE, PUBLISHER_SHARE = 0.8, 0.5  # of the time that is left when their turn to close comes
LATE_TIMEOUT = 1.0  # seconds to close what was opened, and is of no use: another thread closed the manager meanwhile


class SharedRecord:
    """The topology of a manager's two connections; a child process after a fork has another. Thread-safe."""

    def __init__(self) -> None:
        self._current = os.getpid(), TopologyRecord()

    def get(self) -> TopologyRecord:
        """Return this process's; in a child, where it is asked for first, there is one thread."""
        if self._current[0] != os.getpid():
            self._current = os.getpid(), TopologyRecord()
        return self._current[1]


class ManagedConnection(Connection):
    """A connection that shares its topology with another."""

    def __init__(self, settings: BrokerSettings, record: SharedRecord, **options: Any) -> None:
        self._shared = record
        super().__init__(settings, **options)

    def _new_record(self) -> TopologyRecord:
        return self._shared.get()


class ConsumingConnection(ManagedConnection):
    """A connection that comes back by itself, however many attempts that takes: no call of a user's asks for it."""

    _gives_up = False


class ManagerResources:
    """What one open manager holds; one that is opened again after a close has others. Thread-safe.

    Attributes:
        publishing: The publisher's connection.
        consuming: All consumers' connection.
        is_closing: No consumer is begun any more; those that work may still publish.
        is_closed: Nothing is; what was just being opened is closed by whoever opened it.
        stopped: All has ended, or is to end: who waits for that goes on.
    """

    def __init__(self, publishing: Connection, consuming: Connection, publisher: Publisher) -> None:
        self.publishing = publishing
        self.consuming = consuming
        self.publisher = publisher
        self.is_closing = False
        self.is_closed = False
        self.stopped = Flag()
        # Changed in one step each, without a lock: a signal handler may come amid any of this, and consume, too.
        self._consumers: list[Consumer] = []
        self._opening: list[Consumer] = []

    @property
    def consumers(self) -> tuple[Consumer, ...]:
        """Those that were not closed."""
        return tuple(each for each in list(self._consumers) if not each.is_closed or each in self._opening)

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
        for each in list(self._consumers):
            if each.is_closed and each not in self._opening:
                with contextlib.suppress(ValueError):  # another has just done it
                    self._consumers.remove(each)
        self._opening.append(consumer)  # first: it is closed until it is open
        self._consumers.append(consumer)
        try:
            self.check(may_be_closing=False)  # close() may have looked before it was there
            self.begin(consumer, seconds)
        finally:
            with contextlib.suppress(ValueError):
                self._opening.remove(consumer)

    def close(self, timeout: float) -> None:
        """End everything within *timeout* seconds: first what takes messages, then what sends them."""
        ends = time.monotonic() + timeout

        def left(part: float = 1.0) -> float:
            return max(0.0, ends - time.monotonic()) * part

        self.is_closing = True
        consumers = self.consumers
        try:
            for consumer in consumers:  # first: while one waits for its handler, no other begins anything
                with contextlib.suppress(LabkitError):
                    consumer._take_no_more()
            for consumer in consumers:
                _close(consumer, left(CONSUMERS_SHARE))
            self.is_closed = True
            _close(self.publisher, left(PUBLISHER_SHARE))
            _close(self.consuming, left(0.5))
            _close(self.publishing, left())
        except BaseException:  # an interrupt: nothing is waited for any more, and nothing goes on
            self.is_closed = True
            for consumer in consumers:
                _close(consumer, 0.0)
            _close(self.publisher, 0.0)
            _close(self.consuming, LATE_TIMEOUT)
            _close(self.publishing, LATE_TIMEOUT)
            raise
        finally:
            self.stopped.set()


def _close(part: Publisher | Consumer | Connection, timeout: float) -> None:
    try:
        part.close(timeout=timeout)
    except Exception as exc:
        LOGGER.warning("closing %r: %s", part, describe(exc), exc_info=exc)
