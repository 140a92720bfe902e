"""The only thread that touches Pika for ``labkit.Connection``: one Pika ``IOLoop``, many connections.

Other threads hand it functions (:meth:`IoThread.post`) or ask it questions and wait (:meth:`IoThread.call`). User
code never runs here: a slow function would hold up the heartbeats of every connection.
"""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from pika.adapters.select_connection import IOLoop

from labkit.concurrency.bell import PendingCall
from labkit.concurrency.threads import ThreadOnDemand
from labkit.connection.loop import TICK, Hosted, Loop, Task, Timer
from labkit.errors import DeadlineExceeded, NotConnected, WrongThread

THREAD_NAME = "labkit-io"
HANDED_OVER_MAX = 1000  # functions that may wait for the loop before whoever hands one over waits, too
CLAIMED_MAX = 0.5  # seconds for what had begun as its caller's time ended; it takes microseconds

T = TypeVar("T")


class IoThread:
    """The I/O thread, started when it is needed, ended when it hosts nothing for two seconds. Thread-safe.

    If its loop crashes, every waiting call fails and every connection on it is lost; it goes on.

    Who hands something over takes no lock: see :class:`labkit.concurrency.threads.ThreadOnDemand`.

    Attributes:
        tasks: Handed over, and not yet run.
        crashes: How often the loop has crashed.
    """

    def __init__(self) -> None:
        self.crashes = 0
        self._be_new()

    def _be_new(self) -> None:
        self.tasks: deque[Task] = deque()
        self._waiters: set[PendingCall] = set()
        self._thread = ThreadOnDemand(THREAD_NAME, self._live)
        self._loop: Loop | None = None
        self._trouble: Exception | None = None  # why there is a thread, and no loop

    def __repr__(self) -> str:
        return f"IoThread({'running' if self._loop is not None else 'resting'})"

    @property
    def lag(self) -> float:
        """Seconds the loop is behind: now, or at its worst in the last two seconds or so."""
        loop = self._loop
        # In this order: the loop notes a lag before it says when it will look next.
        return 0.0 if loop is None else max(0.0, time.monotonic() - loop.due, loop.lag)

    @property
    def is_current(self) -> bool:
        """Whether the calling thread is the I/O thread, also while it has no loop yet: Pika logs as it makes one."""
        return self._thread.is_current

    def may_wait(self) -> None:
        """Refuse to wait on the I/O thread itself.

        Raises:
            WrongThread: the calling thread is the I/O thread.
        """
        if self.is_current:
            raise WrongThread("the I/O thread cannot wait for itself: ask from another thread")

    def post(self, function: Task) -> None:
        """Run *function* on the I/O thread soon. What it raises is logged; the loop goes on.

        Raises:
            NotConnected: no thread can be started (the interpreter is ending).
        """
        self.tasks.append(function)
        try:
            self._thread.need()
        except RuntimeError as exc:
            with contextlib.suppress(ValueError):
                self.tasks.remove(function)
            raise NotConnected(f"no I/O thread can be started: {exc}", reason=exc) from exc
        loop = self._loop
        if loop is not None:  # else the thread looks when it has one
            loop.wake()

    def call(self, function: Callable[[], T], *, timeout: float) -> T:
        """Return what *function* returns on the I/O thread; on that thread itself, at once.

        Raises:
            DeadlineExceeded: it did not get its turn within *timeout* seconds, and will not run later.
            NotConnected: the loop crashed first.
        """
        if self.is_current:
            return function()
        waiter = PendingCall()
        try:
            self._waiters.add(waiter)
            self.post(lambda: _answer(waiter, function))
            if not waiter.wait(timeout) and (waiter.abandon() or not waiter.wait(CLAIMED_MAX)):
                why = f"it is {self.lag:.1f} s behind" if self._trouble is None else f"it cannot begin: {self._trouble}"
                raise DeadlineExceeded(
                    f"no turn on the I/O thread within {timeout:g} s; {why}", deadline=timeout
                ) from self._trouble
        finally:
            waiter.abandon()
            self._waiters.discard(waiter)
        result: T = waiter.result()
        return result

    def hand_over(self, function: Callable[[], object], *, timeout: float) -> None:
        """Run *function* on the I/O thread, after what was handed over before; on that thread itself, at once.

        Returns without waiting for it, unless the loop is so far behind that too much waits for it already.

        Raises:
            DeadlineExceeded: the loop is behind, and *function* did not get its turn within *timeout* seconds.
            NotConnected: no thread can be started, or the loop crashed while this waited.
        """
        if self.is_current:
            function()
        elif len(self.tasks) < HANDED_OVER_MAX:
            self.post(function)
        else:
            self.call(function, timeout=timeout)

    def call_later(self, delay: float, function: Task) -> Timer:
        """Run *function* after *delay* seconds. On the I/O thread only."""
        return Timer(self._here(), delay, function)

    def at_end_of_turn(self, function: Task) -> None:
        """Run *function* when all else that is due now has been done, before the loop waits. On the I/O thread only."""
        self._here().at_end_of_turn.append(function)

    def ioloop(self) -> IOLoop:
        """Return Pika's loop, for a new Pika connection. On the I/O thread only."""
        return self._here().ioloop

    def host(self, thing: Hosted) -> None:
        """Tick *thing* from now on, and keep the loop for it. On the I/O thread only."""
        self._here().hosted.add(thing)

    def release(self, thing: Hosted) -> None:
        """Stop hosting *thing*; nothing happens if it is not hosted."""
        loop = self._loop
        if loop is not None:
            loop.hosted.discard(thing)

    def hosted(self) -> list[Hosted]:
        """Return what is hosted now."""
        loop = self._loop
        return [] if loop is None else list(loop.hosted)

    def forget(self) -> list[Any]:
        """Be as new, in a child process after a fork; return what must not be collected.

        Pika's objects are not asked to close anything: the child shares the parent's epoll object, and taking a socket
        out of it would end the parent's loop. Who was forked while waiting for an answer waits no longer.
        """
        loop, waiters = self._loop, list(self._waiters)
        kept = [loop, self._thread, self.tasks]
        self._be_new()
        if loop is not None:
            loop.forget()
        for waiter in waiters:
            waiter.settle(error=NotConnected("the process was forked meanwhile, and this is the child"))
        return kept

    # For the loop, on its thread.

    def may_end(self, loop: Loop) -> bool:
        """Whether *loop* has nothing left to do; if so, it gets nothing any more."""

        def has_work() -> bool:
            if self.tasks or loop.hosted:
                return True
            self._loop = None  # here: the next thread, which has a loop of its own, has not begun yet
            return False

        return self._thread.may_end(has_work)

    def crashed(self, reason: Exception) -> None:
        """Fail who waits for an answer."""
        self.crashes += 1
        for waiter in list(self._waiters):
            waiter.settle(error=NotConnected(str(reason), reason=reason))

    def _live(self) -> None:
        while True:
            try:
                loop = self._loop = Loop(self)
                break
            except Exception as exc:  # noqa: BLE001 - no descriptors are left, most likely: somebody may close some
                self._trouble = exc
                time.sleep(TICK)
        self._trouble = None
        loop.run()

    def _here(self) -> Loop:
        loop = self._loop
        if loop is None or loop.thread.ident != threading.get_ident():
            raise RuntimeError("only the I/O thread may do this")
        return loop


def _answer(waiter: PendingCall, function: Callable[[], object]) -> None:
    if not waiter.claim():
        return
    try:
        waiter.settle(function())
    except BaseException as exc:  # noqa: BLE001 - raised again where it was asked for
        waiter.settle(error=exc)


SHARED = IoThread()
