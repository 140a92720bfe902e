"""Several threads for the handlers of one consumer: one line before them, and each takes what is next.

A :class:`Workers` does for n threads what :class:`labkit.connection.mailbox.Mailbox` does for one. No Pika, no lock.
"""

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable

from labkit.concurrency.bell import Bell, PendingCall
from labkit.concurrency.threads import ThreadOnDemand
from labkit.connection.mailbox import IDLE, Task, drop_stale

LOGGER = logging.getLogger(__name__)


class Workers:
    """A line of tasks, begun in order, and up to *count* threads for them, which are there while there is work.

    Nothing is lost between who puts a task and a thread that finds none: the former puts it down, then looks who is
    idle; the latter says that it is idle, then looks once more.

    Args:
        name: The threads'.
        count: How many tasks may run at once.
        limit: Tasks that may wait; more are dropped. ``math.inf``: no limit.
    """

    def __init__(self, name: str, count: int, *, limit: float) -> None:
        self._name = name
        self._limit = limit
        self._tasks: deque[Task] = deque()
        self._workers = [_Worker(self, name) for _ in range(count)]
        self._flushers: list[tuple[PendingCall, threading.Thread]] = []

    def put(self, task: Task) -> bool:
        """Queue *task* and return at once; False if it was dropped: the line is full, or the interpreter is ending."""
        if len(self._tasks) >= self._limit:
            return False
        self._tasks.append(task)
        needed = len(self._tasks)
        for worker in self._workers:
            if needed and not worker.is_at_work:
                needed -= 1
                if not worker.wake():
                    return False
        return True

    def drop(self, is_stale: Callable[[Task], bool]) -> None:
        """Forget what has not begun and *is_stale*. The others keep their order."""
        drop_stale(self._tasks, is_stale)

    def flush(self, timeout: float) -> bool:
        """Wait until nothing waits and nothing runs, but for the caller's own task; False: not within *timeout* s."""
        waiter = PendingCall()
        flusher = waiter, threading.current_thread()
        self._flushers.append(flusher)
        try:
            self._tell()
            return waiter.wait(timeout)
        finally:
            self._flushers.remove(flusher)

    def _tell(self) -> None:
        for waiter, thread in list(self._flushers):
            others = (each for each in self._workers if each.thread is not thread)
            if not self._tasks and not any(each.is_at_work for each in others):
                waiter.settle()

    def _take(self, worker: "_Worker") -> Task | None:
        worker.is_at_work = True  # first: who puts a task now need not wake this one for those before it
        with contextlib.suppress(IndexError):
            return self._tasks.popleft()
        worker.is_at_work = False
        self._tell()
        return None

    def _run(self, task: Task) -> None:
        try:
            task()
        except BaseException:  # SystemExit too: the next task is another's
            with contextlib.suppress(BaseException):  # a log handler that raises
                LOGGER.exception("a task of %s failed; the next one runs", self._name)

    @property
    def _has_work(self) -> bool:
        return bool(self._tasks)


class _Worker:
    """One thread; *is_at_work*: it runs a task, or is about to."""

    def __init__(self, line: Workers, name: str) -> None:
        self._line = line
        self._bell = Bell()
        self._on_demand = ThreadOnDemand(name, self._work)
        self.is_at_work = False

    @property
    def thread(self) -> threading.Thread | None:
        return self._on_demand.thread

    def wake(self) -> bool:
        try:
            self._on_demand.need()
        except RuntimeError:  # the interpreter is ending: no new threads
            return False
        self._bell.ring()
        return True

    def _work(self) -> None:
        line = self._line
        while True:
            task = line._take(self)
            if task is not None:
                line._run(task)
                del task  # it may hold what should be collected
            elif line._has_work:
                continue
            elif not self._bell.wait(IDLE) and self._on_demand.may_end(lambda: line._has_work):
                return
