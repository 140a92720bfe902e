"""The threads of a server: those that run endpoints, and the one that does things later. Daemons, there on demand."""

import heapq
import itertools
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable

from labkit.concurrency.bell import Bell
from labkit.concurrency.guard import guard
from labkit.concurrency.threads import ThreadOnDemand
from labkit.connection.io_thread import SHARED
from labkit.connection.mailbox import Mailbox

LOGGER = logging.getLogger(__name__)
LOOK = 0.5  # seconds between two looks whether to go on waiting
IDLE = 1.0  # seconds without work after which a thread ends


class Workers:
    """Up to *count* threads. Who has a job waits for a free one, so nothing is taken that nobody can do. Thread-safe.

    Args:
        name: Of the threads.
        count: How many.
    """

    def __init__(self, name: str, count: int) -> None:
        self._count = count
        self._free = deque(Mailbox(name, limit=math.inf) for _ in range(count))  # the last one in is the first out
        self._freed = Bell()
        self._idle = Bell()

    @property
    def busy(self) -> int:
        """How many are at work."""
        return self._count - len(self._free)

    def take(self, may_wait: Callable[[], bool]) -> Mailbox | None:
        """Return a free one, to be given a job by :meth:`run`; None: *may_wait* says no, or this is the I/O thread."""
        while may_wait():
            try:
                worker = self._free.pop()
            except IndexError:
                if SHARED.is_current:
                    return None
                self._freed.wait(LOOK)
                continue
            if self._free:
                self._freed.ring()  # two that became free at once have rung once
            return worker
        return None

    def run(self, worker: Mailbox, job: Callable[[], object]) -> None:
        """Have *worker* do it."""

        def work() -> None:
            try:
                job()
            finally:
                self.give_back(worker)

        if not worker.put(work):  # the interpreter is ending
            self.give_back(worker)

    def give_back(self, worker: Mailbox) -> None:
        """Have it free again."""
        self._free.append(worker)
        self._freed.ring()
        if len(self._free) == self._count:
            self._idle.ring()

    def wait_idle(self, timeout: float) -> bool:
        """Wait until none is at work; False if some still are after *timeout* seconds."""
        ends = time.monotonic() + timeout
        while self.busy:
            left = ends - time.monotonic()
            if left <= 0:
                return False
            self._idle.wait(min(left, LOOK))
        return True


class Later:
    """Functions to be called at a later moment, on one thread. Thread-safe.

    Args:
        name: Of the thread.
    """

    def __init__(self, name: str) -> None:
        self._due: list[tuple[float, int, Callable[[], float | None]]] = []
        self._lock = guard()
        self._numbers = itertools.count()
        self._bell = Bell()
        self._thread = ThreadOnDemand(name, self._work)

    def __len__(self) -> int:
        return len(self._due)

    def call(self, seconds: float, function: Callable[[], float | None]) -> None:
        """Call *function* in *seconds*; it returns the seconds until it is called again, or None."""
        entry = (time.monotonic() + seconds, next(self._numbers), function)
        with self._lock:
            heapq.heappush(self._due, entry)
        try:
            self._thread.need()
        except RuntimeError:  # the interpreter is ending
            return
        self._bell.ring()

    def forget(self) -> None:
        """Call none of them any more."""
        with self._lock:
            self._due.clear()
        self._bell.ring()

    def _work(self) -> None:
        while True:
            now = time.monotonic()
            entry = None
            with self._lock:
                if self._due and self._due[0][0] <= now:
                    entry = heapq.heappop(self._due)
                pause = self._due[0][0] - now if self._due else IDLE
            if entry is not None:
                self._call(entry[2])
            elif not self._bell.wait(min(pause, threading.TIMEOUT_MAX)) and self._thread.may_end(
                lambda: bool(self._due)
            ):
                return

    def _call(self, function: Callable[[], float | None]) -> None:
        try:
            again = function()
        except Exception:
            LOGGER.exception("what was to be done later failed")
            return
        if again is not None:
            self.call(again, function)
