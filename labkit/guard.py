"""A lock for ``with`` blocks that an interrupt never leaves taken. No Pika, no threads of its own.

Python looks for an interrupt (Ctrl-C, the stop button of a notebook) after a call of something written in C. Up to
Python 3.13 there was no such look between a lock's ``__enter__`` and the block, so ``with threading.Lock():`` was safe.
Since 3.14 there is one: the interrupt comes when the lock is taken and the block is not entered, so nobody gives it
back, and every thread that wants it waits for ever.
"""

import sys
import threading
from contextlib import AbstractContextManager
from operator import attrgetter
from types import TracebackType
from typing import TYPE_CHECKING


class Guard:
    """One owner at a time, for a ``with`` block: safe to interrupt at any moment, on every Python.

    What enters is a function in Python, which can catch the interrupt: there is no look between its end and the block.
    What leaves is in C, so nothing can come before it. The thread that has it may take it again.
    """

    __slots__ = ("_exit", "_lock")

    def __init__(self) -> None:
        self._lock = threading.RLock()  # knows its owner: only who has taken it can give it back
        self._exit = self._lock.__exit__

    def __enter__(self) -> None:
        try:
            self._lock.acquire()
        except BaseException:
            try:  # noqa: SIM105 - no suppress(): that is a call in Python, so another interrupt could come first
                self._lock.release()
            except RuntimeError:  # the interrupt came before it was taken
                pass
            raise

    if TYPE_CHECKING:

        def __exit__(
            self, kind: type[BaseException] | None, value: BaseException | None, _: TracebackType | None
        ) -> None: ...
    else:
        __exit__ = property(attrgetter("_exit"))


def guard() -> AbstractContextManager[object]:
    """Return a new lock for ``with`` blocks: Python's own where that is safe, and cheaper."""
    return Guard() if sys.version_info >= (3, 14) else threading.Lock()
