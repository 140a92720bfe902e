"""Run functions off the I/O thread, one at a time and in order. Knows nothing of connections.

The thread is a daemon, starts with the first task and ends when there has been none for a while: a hundred
connections that nobody listens to need none.
"""

import contextlib
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable

from labkit.concurrency.bell import Bell
from labkit.concurrency.threads import ThreadOnDemand

LOGGER = logging.getLogger(__name__)
FLUSH_LEAST, FLUSH_MOST = 0.2, 1.0  # seconds that a call gives listeners to hear what happened so far
IDLE = 1.0  # seconds without a task after which the thread ends

Task = Callable[[], object]


def drop_stale(tasks: deque[Task], is_stale: Callable[[Task], bool]) -> None:
    """Take those of *tasks* away that are stale, while other threads take from its head."""
    for each in list(tasks):
        if is_stale(each):
            with contextlib.suppress(ValueError):  # it has just begun
                tasks.remove(each)


class Mailbox:
    """A line of tasks and, while there are any, a thread for them. Thread-safe, without a lock.

    What a task raises is logged and counted, and the next one runs.

    Args:
        name: The thread's.
        limit: Tasks that may wait; more are dropped and counted. ``math.inf``: no limit.

    Attributes:
        dropped: How many tasks found the line full, or no thread to run on (the interpreter is ending).
        failures: How many raised.
    """

    def __init__(self, name: str, *, limit: float) -> None:
        self._name = name
        self._limit = limit
        self._tasks: deque[Task] = deque()
        self._bell = Bell()
        self._thread = ThreadOnDemand(name, self._work)
        self.dropped = 0
        self.failures = 0

    def put(self, task: Task) -> bool:
        """Queue *task* and return at once; False if it was dropped."""
        return self._add(task, self._limit)

    def drop(self, is_stale: Callable[[Task], bool]) -> None:
        """Forget what has not begun and *is_stale*. The others keep their order."""
        drop_stale(self._tasks, is_stale)

    def flush(self, timeout: float) -> bool:
        """Wait until all tasks queued so far are done; False if they are not within *timeout* seconds.

        At once True when nothing runs; at once False inside a task, which cannot wait for itself.
        """
        if self.is_idle:
            return True
        if self.is_current:
            return False
        done = Bell()
        return self._add(done.ring, math.inf) and done.wait(timeout)

    def flush_by(self, ends: float) -> bool:
        """As :meth:`flush`, for a call that has done its work and must end at *ends*, on the monotonic clock."""
        return self.flush(min(FLUSH_MOST, max(FLUSH_LEAST, ends - time.monotonic())))

    @property
    def is_current(self) -> bool:
        """Whether the calling thread is the one that its tasks run on."""
        return self._thread.is_current

    @property
    def is_idle(self) -> bool:
        """Whether it has nothing to do, and its thread has ended."""
        return not self._tasks and self._thread.thread is None

    def wait_idle(self, timeout: float) -> bool:
        """Wait until its thread has ended; for those who count threads."""
        ends = time.monotonic() + timeout
        thread = self._thread.thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(max(0.0, ends - time.monotonic()))
        return self.is_idle

    def _add(self, task: Task, limit: float) -> bool:
        if len(self._tasks) >= limit:
            self.dropped += 1
            return False
        self._tasks.append(task)
        try:
            self._thread.need()
        except RuntimeError:  # the interpreter is ending: no new threads
            self.dropped += 1
            return False
        self._bell.ring()
        return True

    def _work(self) -> None:
        while True:
            try:
                task = self._tasks.popleft()
            except IndexError:
                if not self._bell.wait(IDLE) and self._thread.may_end(lambda: bool(self._tasks)):
                    return
                continue
            try:
                task()
            except BaseException:  # SystemExit too: the next task is another's
                self.failures += 1
                with contextlib.suppress(BaseException):  # a log handler that raises
                    LOGGER.exception("a task of %s failed; the next one runs", self._name)
            del task  # a task may hold what should be collected
