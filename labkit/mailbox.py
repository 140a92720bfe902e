"""Run functions off the I/O thread, one at a time and in order. Knows nothing of connections.

The thread is a daemon, starts with the first task and ends when there has been none for a while: a hundred
connections that nobody listens to need none.
"""

import contextlib
import logging
import math
import queue
import threading
import time
from collections.abc import Callable

from labkit.guard import guard

LOGGER = logging.getLogger(__name__)
FLUSH_LEAST, FLUSH_MOST = 0.2, 1.0  # seconds that a call gives listeners to hear what happened so far
IDLE = 1.0  # seconds without a task after which the thread ends

Task = Callable[[], object]


class Mailbox:
    """A line of tasks and, while there are any, a thread for them. Thread-safe.

    What a task raises is logged and counted, and the next one runs.

    Args:
        name: The thread's.
        limit: Tasks that may wait; more are dropped and counted.

    Attributes:
        dropped: How many tasks found the line full, or no thread to run on (the interpreter is ending).
        failures: How many raised.
    """

    def __init__(self, name: str, *, limit: int) -> None:
        self._name = name
        self._limit = limit
        self._tasks: queue.SimpleQueue[Task] = queue.SimpleQueue()
        self._lock = guard()
        self._thread: threading.Thread | None = None
        self.dropped = 0
        self.failures = 0

    def put(self, task: Task) -> bool:
        """Queue *task* and return at once; False if it was dropped."""
        return self._add(task, self._limit)

    def drop(self, is_stale: Callable[[Task], bool]) -> None:
        """Forget what has not begun and *is_stale*. The others keep their order."""
        tasks: list[Task] = []
        with self._lock:
            with contextlib.suppress(queue.Empty):
                while True:
                    tasks.append(self._tasks.get_nowait())
            for each in tasks:
                if not is_stale(each):
                    self._tasks.put(each)

    def flush(self, timeout: float) -> bool:
        """Wait until all tasks queued so far are done; False if they are not within *timeout* seconds.

        At once True when nothing runs; at once False inside a task, which cannot wait for itself.
        """
        thread = self._thread
        if thread is None:
            return True
        if thread is threading.current_thread():
            return False
        done = threading.Lock()
        done.acquire()
        return self._add(done.release, math.inf) and done.acquire(timeout=max(0.0, timeout))

    def flush_by(self, ends: float) -> bool:
        """As :meth:`flush`, for a call that has done its work and must end at *ends*, on the monotonic clock."""
        return self.flush(min(FLUSH_MOST, max(FLUSH_LEAST, ends - time.monotonic())))

    @property
    def is_idle(self) -> bool:
        """Whether its thread has ended."""
        return self._thread is None

    def wait_idle(self, timeout: float) -> bool:
        """Wait until its thread has ended; for those who count threads."""
        ends = time.monotonic() + timeout
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(max(0.0, ends - time.monotonic()))
        return self.is_idle

    def _add(self, task: Task, limit: float) -> bool:
        with self._lock:
            if self._tasks.qsize() >= limit:
                self.dropped += 1
                return False
            self._tasks.put(task)
            if self._thread is not None:
                return True
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            try:
                self._thread.start()
            except RuntimeError:  # the interpreter is ending: no new threads
                self._thread = None
                self.dropped += 1
                return False
            return True

    def _run(self) -> None:
        while True:
            try:
                task = self._tasks.get(timeout=IDLE)
            except queue.Empty:
                with self._lock:
                    if self._tasks.empty():
                        self._thread = None
                        return
                continue
            try:
                task()
            except BaseException:  # SystemExit too: the next task is another's
                self.failures += 1
                LOGGER.exception("a task of %s failed; the next one runs", self._name)
            del task  # a task may hold what should be collected
