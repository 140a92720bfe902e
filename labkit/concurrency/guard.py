"""A lock for ``with`` blocks that nothing leaves taken: no interrupt, and no fork. No Pika, no threads of its own.

Python looks for an interrupt (Ctrl-C, the stop button of a notebook) after a call of something written in C. Up to
Python 3.13 there was no such look between a lock's ``__enter__`` and the block, so ``with threading.RLock():`` was
safe. Since 3.14 there is one: the interrupt comes when the lock is taken and the block is not entered, so nobody gives
it back, and every thread that wants it waits forever.

The same thread may take it again: a signal handler or a finalizer can come in the middle of a block, and would wait
forever for what its own thread has. So a block reads and changes what belongs together with no call in between, which
is where such a one can come; and no block calls what is not ours, or waits.
"""

import os
import sys
import threading
import weakref
from contextlib import AbstractContextManager
from operator import attrgetter
from types import TracebackType
from typing import TYPE_CHECKING, Any


class Guard:
    """One owner at a time, for a ``with`` block: safe to interrupt at any moment, on every Python.

    What enters is a function in Python, which can catch the interrupt: there is no look between its end and the block.
    What leaves is in C, so nothing can come before it. The thread that has it may take it again.
    """

    __slots__ = ("__weakref__", "_exit", "_lock")

    def __init__(self) -> None:
        self._lock = threading.RLock()  # knows its owner: only who has taken it can give it back
        self._exit = self._lock.__exit__

    def _is_owned(self) -> bool:
        return bool(self._lock._is_owned())  # type: ignore[attr-defined]

    def _at_fork_reinit(self) -> None:
        self._lock._at_fork_reinit()  # type: ignore[attr-defined]

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
    lock = Guard() if sys.version_info >= (3, 14) else threading.RLock()
    _ALL.add(lock)
    return lock


_ALL: weakref.WeakSet[Any] = weakref.WeakSet()


def _in_child() -> None:
    """Free what another thread of the parent had taken: it is not here to give it back."""
    for each in list(_ALL):
        if not each._is_owned():
            each._at_fork_reinit()  # not public, but what Python's own modules do


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_in_child)
