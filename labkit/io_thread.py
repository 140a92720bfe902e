"""The only thread that touches Pika for ``labkit.Connection``: one Pika ``IOLoop``, many connections.

Other threads hand it functions (:meth:`IoThread.post`) or ask it questions and wait (:meth:`IoThread.call`). User
code never runs here: a slow function would hold up the heartbeats of every connection.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, TypeVar

import pika.exceptions as px
from pika.adapters.select_connection import IOLoop

from labkit.errors import DeadlineExceeded, NotConnected
from labkit.guard import guard

LOGGER = logging.getLogger(__name__)
THREAD_NAME = "labkit-io"
TICK = 0.25  # seconds between two looks at the clock and at every connection's byte counter
LAG_SHOWN = 2.0  # seconds for which a lag is shown after it is over
IDLE_TICKS = 8  # ticks without a connection or a task after which the thread ends
CLAIMED_MAX = 0.5  # seconds for what had begun as its caller's time ended; it takes microseconds
DISPOSAL = 0.5  # seconds that a crashed loop gets to close its sockets

T = TypeVar("T")


class Hosted(Protocol):
    """What lives on the loop: a :class:`labkit.link.Link`."""

    def tick(self, now: float, is_late: bool) -> None:
        """Look at the byte counter and at whoever owns this."""

    def crashed(self, reason: BaseException) -> None:
        """The loop has ended; run on the next one."""

    def dispose(self, reason: Exception) -> None:
        """Close the socket; run on the loop that crashed."""


class Waiter:
    """One answer for one waiting thread. The first :meth:`settle` counts.

    The wait is a lock's, in C: an interrupt (Ctrl-C) ends it and leaves nothing half-done.
    """

    __slots__ = ("_error", "_flag", "_guard", "_value", "is_abandoned", "is_claimed", "is_settled")

    def __init__(self) -> None:
        self._flag = threading.Lock()
        self._flag.acquire()
        self._guard = guard()
        self._value: Any = None
        self._error: BaseException | None = None
        self.is_settled = False
        self.is_abandoned = False  # nobody waits any more: what has not begun need not begin
        self.is_claimed = False

    def claim(self) -> bool:
        """Begin what cannot be taken back, and settle it at once; False: nobody waits any more, so do not begin."""
        with self._guard:
            self.is_claimed = not (self.is_abandoned or self.is_settled)
            return self.is_claimed

    def release(self) -> None:
        """What was claimed has been done, and its answer comes later: the caller may give up on that."""
        with self._guard:
            self.is_claimed = False

    def abandon(self) -> bool:
        """Wait no more, and have no answer any more; False if there is one, or will be at once."""
        with self._guard:
            self.is_abandoned = not (self.is_claimed or self.is_settled)
            return self.is_abandoned

    def settle(self, value: Any = None, error: BaseException | None = None) -> bool:
        """Give the answer, and wake who waits; False if there was one already, or nobody waits any more."""
        with self._guard:
            if self.is_settled or self.is_abandoned:
                return False
            self._value, self._error, self.is_settled = value, error, True
        self._flag.release()
        return True

    def wait(self, timeout: float) -> bool:
        """Wait for the answer; False if there is none within *timeout* seconds."""
        if self._flag.acquire(timeout=min(max(0.0, timeout), threading.TIMEOUT_MAX)):
            self._flag.release()
        return self.is_settled

    def result(self) -> Any:
        """Return the answer, or raise it."""
        error, self._error = self._error, None  # an error whose traceback holds this would keep both alive
        if error is not None:
            raise error
        return self._value


class Timer:
    """A function that will run once on the I/O thread; :meth:`cancel` there too."""

    __slots__ = ("_handle", "_ioloop")

    def __init__(self, ioloop: IOLoop, handle: object) -> None:
        self._ioloop: IOLoop | None = ioloop
        self._handle = handle

    def cancel(self) -> None:
        """Do not run it; nothing happens if it ran, or its loop has crashed."""
        ioloop, self._ioloop = self._ioloop, None
        if ioloop is not None:
            ioloop.remove_timeout(self._handle)


class Loop:
    """One life of the thread: a Pika loop, what it hosts, and who waits for it."""

    def __init__(self, owner: "IoThread") -> None:
        self._owner = owner
        self.ioloop = IOLoop()
        self.hosted: set[Hosted] = set()
        self.waiters: set[Waiter] = set()
        self.tasks: deque[Callable[[], object]] = deque()  # handed over, and not yet run
        self.has_ended = False  # guarded by the owner's lock
        self.lag = 0.0  # the worst of late, since who holds the interpreter's lock lets nobody look meanwhile
        self.due = time.monotonic() + TICK
        self._lag_fades = 0.0
        self._idle_ticks = 0
        self.thread = threading.Thread(target=self._run, name=THREAD_NAME, daemon=True)

    def _run(self) -> None:
        self.due = time.monotonic() + TICK
        self.ioloop.call_later(TICK, self._tick)
        crash: BaseException | None = None
        try:
            self.ioloop.start()
        except BaseException as exc:  # whatever it is, nobody may be left waiting
            crash = exc
            LOGGER.critical("the I/O thread crashed; every connection on it is lost", exc_info=exc)
        if crash is not None:
            self._owner.replace(self, crash)
            self._dispose(crash)
        self.ioloop.close()

    def _dispose(self, crash: BaseException) -> None:
        reason = px.StreamLostError(f"the I/O thread crashed: {crash!r}")
        for each in list(self.hosted):
            try:
                each.dispose(reason)
            except Exception:
                LOGGER.exception("could not close a socket of the crashed loop")
        self.hosted.clear()
        try:
            self.ioloop.call_later(DISPOSAL, self.ioloop.stop)
            self.ioloop.start()
        except BaseException:
            LOGGER.exception("the crashed loop crashed again while it closed its sockets")

    def run_tasks(self) -> None:
        """Run what was handed over so far: also a task whose thread was interrupted before it could say so."""
        for _ in range(len(self.tasks)):
            try:
                task = self.tasks.popleft()
            except IndexError:  # the loop crashed, and its successor has taken them
                return
            _contain(task)

    def _tick(self) -> None:
        if self.has_ended:
            return
        now = time.monotonic()
        lag = max(0.0, now - self.due)
        if lag >= self.lag or now >= self._lag_fades:
            self.lag, self._lag_fades = lag, now + LAG_SHOWN
        is_late = lag > TICK
        for each in list(self.hosted):
            each.tick(now, is_late)
        self.run_tasks()
        self._idle_ticks = 0 if self.hosted or self.tasks else self._idle_ticks + 1
        if self._idle_ticks >= IDLE_TICKS and self._owner.may_end(self):
            self.ioloop.stop()
            return
        # After a late tick look again at once, when the loop has read what waits in the sockets.
        pause = 0.0 if is_late else TICK
        self.due = time.monotonic() + pause
        self.ioloop.call_later(pause, self._tick)


class IoThread:
    """The I/O thread, started when it is needed, ended when it hosts nothing for two seconds. Thread-safe.

    If it crashes, every waiting call fails, every connection on it is lost, and the next use starts a new one.
    """

    def __init__(self) -> None:
        self._lock = guard()
        self._loop: Loop | None = None
        self.crashes = 0

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
        """Whether the calling thread is the I/O thread."""
        loop = self._loop
        return loop is not None and loop.thread.ident == threading.get_ident()

    def post(self, function: Callable[[], object]) -> None:
        """Run *function* on the I/O thread soon. What it raises is logged; the loop goes on.

        Raises:
            NotConnected: no thread can be started (the interpreter is ending).
        """
        with self._lock:
            self._hand_over(self._running(), function)

    def call(self, function: Callable[[], T], *, timeout: float) -> T:
        """Return what *function* returns on the I/O thread; on that thread itself, at once.

        Raises:
            DeadlineExceeded: it did not get its turn within *timeout* seconds, and will not run later.
            NotConnected: the loop crashed first.
        """
        if self.is_current:
            return function()
        waiter = Waiter()
        with self._lock:
            loop = self._running()
            loop.waiters.add(waiter)
            self._hand_over(loop, lambda: _answer(loop, waiter, function))
        try:
            if not waiter.wait(timeout) and (waiter.abandon() or not waiter.wait(CLAIMED_MAX)):
                raise DeadlineExceeded(
                    f"no turn on the I/O thread within {timeout:g} s; it is {self.lag:.1f} s behind", deadline=timeout
                )
        finally:
            waiter.is_abandoned = True
            loop.waiters.discard(waiter)
        result: T = waiter.result()
        return result

    def call_later(self, delay: float, function: Callable[[], object]) -> Timer:
        """Run *function* after *delay* seconds. On the I/O thread only."""
        ioloop = self.ioloop()
        return Timer(ioloop, ioloop.call_later(delay, lambda: _contain(function)))

    def ioloop(self) -> IOLoop:
        """Return Pika's loop, for a new Pika connection. On the I/O thread only."""
        loop = self._loop
        if loop is None or loop.thread is not threading.current_thread():
            raise RuntimeError("only the I/O thread may do this")
        return loop.ioloop

    def host(self, thing: Hosted) -> None:
        """Tick *thing* from now on, and keep the loop for it. On the I/O thread only."""
        self.ioloop()
        if self._loop is not None:
            self._loop.hosted.add(thing)

    def release(self, thing: Hosted) -> None:
        """Stop hosting *thing*; nothing happens if it is not hosted."""
        if self._loop is not None:
            self._loop.hosted.discard(thing)

    def hosted(self) -> list[Hosted]:
        """Return what is hosted now."""
        loop = self._loop
        return [] if loop is None else list(loop.hosted)

    def forget(self) -> list[Any]:
        """Be as new, in a child process after a fork; return what must not be collected.

        Touches neither Pika nor the descriptors: the child shares the parent's epoll object, and taking a socket
        out of it would end the parent's loop.
        """
        self._lock = guard()
        loop, self._loop = self._loop, None
        return [] if loop is None else [loop]

    def _running(self) -> Loop:
        """Return the loop, starting one if need be. The lock is held."""
        if self._loop is None:
            loop = Loop(self)
            try:
                loop.thread.start()
            except RuntimeError as exc:
                loop.ioloop.close()
                raise NotConnected(f"no I/O thread can be started: {exc}", reason=exc) from exc
            self._loop = loop
        return self._loop

    def _hand_over(self, loop: Loop, function: Callable[[], object]) -> None:
        loop.tasks.append(function)
        loop.ioloop.add_callback_threadsafe(loop.run_tasks)

    def may_end(self, loop: Loop) -> bool:
        """Whether *loop* has nothing left to do; if so, it gets nothing any more."""
        with self._lock:
            if loop.tasks or loop.hosted:
                return False
            loop.has_ended = True
            if self._loop is loop:
                self._loop = None
            return True

    def replace(self, loop: Loop, crash: BaseException) -> None:
        """Let the next use start a new loop, fail who waits, and say there what is lost."""
        reason = px.StreamLostError(f"the I/O thread crashed: {crash!r}")
        reason.__cause__ = crash
        with self._lock:
            self.crashes += 1
            loop.has_ended = True
            if self._loop is loop:
                self._loop = None
            waiters, loop.waiters = loop.waiters, set()
            tasks, loop.tasks = loop.tasks, deque()
            hosted = list(loop.hosted)
        for waiter in waiters:
            waiter.settle(error=NotConnected(str(reason), reason=reason))
        for each in hosted:
            self.post(partial(each.crashed, reason))
        for task in tasks:
            self.post(task)


def _contain(function: Callable[[], object]) -> None:
    try:
        function()
    except Exception:
        LOGGER.exception("a function on the I/O thread failed; the loop goes on")


def _answer(loop: Loop, waiter: Waiter, function: Callable[[], object]) -> None:
    if not waiter.claim():
        return
    try:
        waiter.settle(function())
    except Exception as exc:  # noqa: BLE001 - raised again where it was asked for
        waiter.settle(error=exc)
    finally:
        loop.waiters.discard(waiter)


SHARED = IoThread()
