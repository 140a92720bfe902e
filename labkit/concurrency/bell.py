"""Wait for another thread, and wake one: at any moment, from anywhere. No Pika, no I/O.

Python's own ``Condition``, ``Event`` and ``queue.Queue`` take a lock in code written in Python. An interrupt (Ctrl-C)
at the wrong step leaves that lock taken, and a signal handler or a finalizer that comes while its own thread holds it
waits forever. Here every wait is in C and holds nothing, and who wakes waits for nobody.
"""

import threading
from collections.abc import Callable
from typing import Any


class Bell:
    """One thread waits, any thread rings. A ring that nobody waits for is kept for the next wait; two count as one."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.Lock()  # taken: not rung
        self._lock.acquire()

    def ring(self) -> None:
        """Wake the thread that waits."""
        if not self._lock.locked():  # it was rung already, and nobody has used that up: no error to raise and catch
            return
        try:  # noqa: SIM105 - no suppress(): that is a call in Python, so an interrupt could come first
            self._lock.release()
        except RuntimeError:  # another thread has rung it just now
            pass

    def wait(self, timeout: float) -> bool:
        """Wait for a ring, and use it up; False if there is none within *timeout* seconds."""
        return self._lock.acquire(timeout=min(max(0.0, timeout), threading.TIMEOUT_MAX))


class Flag:
    """What ``threading.Event`` does, for any number of waiting threads."""

    __slots__ = ("_bells", "_is_set")

    def __init__(self) -> None:
        self._is_set = False
        self._bells: list[Bell] = []

    def is_set(self) -> bool:
        """Whether it is set."""
        return self._is_set

    def set(self) -> None:
        """Wake all who wait, now and until :meth:`clear`."""
        self._is_set = True
        for bell in list(self._bells):
            bell.ring()

    def clear(self) -> None:
        """Have threads wait again."""
        self._is_set = False

    def wait(self, timeout: float) -> bool:
        """Wait until it is set; False if it is not within *timeout* seconds."""
        if self._is_set:
            return True
        bell = Bell()
        try:
            self._bells.append(bell)  # before the look: who sets it after that finds the bell
            return self._is_set or bell.wait(timeout)
        finally:
            if bell in self._bells:
                self._bells.remove(bell)


_CLAIMED = object()
_ABANDONED = object()


class PendingCall:
    """One answer for one waiting thread. The first :meth:`settle` counts.

    What became of it is one entry of a dict, which ``setdefault`` makes or finds in one step that Python does not
    divide: no lock is needed to decide who was first.
    """

    __slots__ = ("_bell", "_fate")

    def __init__(self) -> None:
        self._bell = Bell()
        self._fate: dict[str, Any] = {}  # claimed, abandoned, or the answer: its value and its error

    @property
    def is_settled(self) -> bool:
        """Whether there is an answer."""
        return type(self._fate.get("")) is tuple

    @property
    def is_abandoned(self) -> bool:
        """Whether nobody waits any more: what has not begun need not begin."""
        return self._fate.get("") is _ABANDONED

    def claim(self) -> bool:
        """Begin what cannot be taken back, and settle it at once; False: nobody waits any more, so do not begin."""
        return self._fate.setdefault("", _CLAIMED) is _CLAIMED

    def release(self) -> None:
        """What was claimed has been done, and its answer comes later: the caller may give up on that."""
        if self._fate.get("") is _CLAIMED:
            self._fate.clear()

    def abandon(self) -> bool:
        """Wait no more, and have no answer any more; False if there is one, or will be at once."""
        return self._fate.setdefault("", _ABANDONED) is _ABANDONED

    def settle(self, value: Any = None, error: BaseException | None = None) -> bool:
        """Give the answer, and wake who waits; False if there was one already, or nobody waits any more."""
        answer = (value, error)
        before = self._fate.setdefault("", answer)
        if before is _CLAIMED:  # by who settles now
            self._fate[""] = answer
        elif before is not answer:
            return False
        self._bell.ring()
        return True

    def wait(self, timeout: float) -> bool:
        """Wait for the answer; False if there is none within *timeout* seconds."""
        if self._bell.wait(timeout):
            self._bell.ring()  # for the next wait
        return self.is_settled

    def result(self) -> Any:
        """Return the answer, or raise it."""
        value, error = self._fate[""]
        if error is not None:
            self._fate[""] = (None, None)  # an error whose traceback holds this would keep both alive
            raise error
        return value


class WatchedCall(PendingCall):
    """One that need not be waited for: *told* is called with its error, or None, by who settles it."""

    __slots__ = ("_told",)

    def __init__(self, told: Callable[[BaseException | None], object]) -> None:
        super().__init__()
        self._told = told

    def settle(self, value: Any = None, error: BaseException | None = None) -> bool:
        """Give the answer; False if there was one already, or it was abandoned."""
        is_first = super().settle(value, error)
        if is_first:
            self._told(error)
        return is_first
