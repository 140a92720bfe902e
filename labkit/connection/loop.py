"""One life of the I/O thread: a Pika ``IOLoop`` that survives what runs on it. Knows no connections.

What a task, a timer or a guest raises costs that one. What Pika's own loop raises costs every guest: each is told on
this thread, which needs no new descriptor for it, and the loop goes on.
"""

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Protocol

import pika.exceptions as px
from pika.adapters.select_connection import IOLoop

from labkit.concurrency.wake_up import WakeUp
from labkit.connector.abandon import forget_loop

LOGGER = logging.getLogger(__name__)
TICK = 0.25  # seconds between two looks at the clock and at every connection's byte counter
LAG_SHOWN = 2.0  # seconds for which a lag is shown after it is over
IDLE_TICKS = 8  # ticks without a connection or a task after which the thread ends
LAST_TURNS = 3  # turns of a loop that failed, for what Pika does about a socket that was closed

Task = Callable[[], object]


class Hosted(Protocol):
    """What lives on the loop: a :class:`labkit.connection.link.Link`."""

    def tick(self, now: float, is_late: bool) -> None:
        """Look at the byte counter and at whoever owns this."""

    def crashed(self, reason: Exception) -> None:
        """End, with every socket closed: the loop has failed, or :meth:`tick` has."""


class LoopOwner(Protocol):
    """The I/O thread, through all its lives."""

    tasks: deque[Task]

    def may_end(self, loop: "Loop") -> bool:
        """Whether *loop* has nothing left to do; if so, it gets nothing any more."""

    def crashed(self, reason: Exception) -> None:
        """Fail who waits for an answer."""


class Timer:
    """A function that will run once on the I/O thread; :meth:`cancel` there too."""

    __slots__ = ("_ends", "_function", "_handle", "_loop")

    def __init__(self, loop: "Loop", delay: float, function: Task) -> None:
        self._loop: Loop | None = loop
        self._ends = time.monotonic() + delay
        self._function = function
        loop.timers.add(self)
        self.set_on(loop.ioloop)

    def set_on(self, ioloop: IOLoop) -> None:
        """Have that loop of Pika's run it."""
        self._handle = ioloop.call_later(max(0.0, self._ends - time.monotonic()), self._run)

    def cancel(self) -> None:
        """Do not run it; nothing happens if it ran."""
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.timers.discard(self)
            loop.ioloop.remove_timeout(self._handle)

    def _run(self) -> None:
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.timers.discard(self)
            contain(self._function)


class Loop:
    """One life of the thread. On that thread only, but for :meth:`wake`.

    Raises:
        OSError: no descriptors are left.
    """

    def __init__(self, owner: LoopOwner) -> None:
        self._owner = owner
        self._wake_up = WakeUp()
        self.wake: Callable[[], None] = self._wake_up.ring
        self.thread = threading.current_thread()
        self.hosted: set[Hosted] = set()
        self.timers: set[Timer] = set()
        self.at_end_of_turn: list[Task] = []
        self.ioloop = self._new_ioloop()
        self.lag = 0.0  # the worst of late, since who holds the interpreter's lock lets nobody look meanwhile
        self.due = time.monotonic() + TICK
        self._lag_fades = 0.0
        self._idle_ticks = 0
        self._is_over = False

    def run(self) -> None:
        """Serve until there is nothing left to do."""
        self._tick_in(TICK)
        self.wake()  # for what was handed over before there was a loop
        while not self._is_over:
            try:
                self.ioloop.poll()
                self.ioloop.process_timeouts()
                self._end_turn()
            except BaseException as exc:  # noqa: BLE001 - whatever it is, nobody may be left waiting
                self._crashed(exc)
        _end(self.ioloop)
        # Its sockets go with the last thread that has it; this object may live on in the traceback of an error.
        self.wake = _nobody
        del self._wake_up

    def forget(self) -> None:
        """Be over, in a child process after a fork; the parent's loop goes on."""
        self._is_over = True
        self.wake = _nobody
        self.hosted.clear()
        self.at_end_of_turn.clear()
        forget_loop(self.ioloop)

    def _new_ioloop(self) -> IOLoop:
        ioloop = IOLoop()
        try:
            ioloop.activate_poller()
            ioloop.add_handler(self._wake_up.reading.fileno(), self._woken, IOLoop.READ)
        except BaseException:
            _end(ioloop)
            raise
        return ioloop

    def _woken(self, *_event: int) -> None:
        """Run what was handed over so far."""
        self._wake_up.silence()
        tasks = self._owner.tasks
        for _ in range(len(tasks)):
            contain(tasks.popleft())

    def _end_turn(self) -> None:
        while self.at_end_of_turn:
            tasks, self.at_end_of_turn = self.at_end_of_turn, []
            for each in tasks:
                contain(each)

    def _tick_in(self, seconds: float) -> None:
        self.due = time.monotonic() + seconds
        Timer(self, seconds, self._tick)

    def _tick(self) -> None:
        now = time.monotonic()
        lag = max(0.0, now - self.due)
        if lag >= self.lag or now >= self._lag_fades:
            self.lag, self._lag_fades = lag, now + LAG_SHOWN
        is_late = lag > TICK
        # After a late tick look again at once, when the loop has read what waits in the sockets.
        self._tick_in(0.0 if is_late else TICK)
        for each in list(self.hosted):
            self._look_after(each, now, is_late)
        self._woken()  # in case a thread was cut off as it rang
        self._idle_ticks = 0 if self.hosted or self._owner.tasks else self._idle_ticks + 1
        self._is_over = self._idle_ticks >= IDLE_TICKS and self._owner.may_end(self)

    def _look_after(self, guest: Hosted, now: float, is_late: bool) -> None:
        try:
            guest.tick(now, is_late)
        except Exception as exc:  # noqa: BLE001 - the others go on
            say(logging.ERROR, f"looking after {guest!r} failed; it ends", exc)
            self.hosted.discard(guest)
            contain(partial(guest.crashed, failure(f"looking after it failed: {exc!r}", exc)))

    def _crashed(self, crash: BaseException) -> None:
        say(logging.CRITICAL, "the I/O thread crashed; every connection on it is lost", crash)
        reason = failure(f"the I/O thread crashed: {crash!r}", crash)
        contain(partial(self._owner.crashed, reason))
        for each in list(self.hosted):
            contain(partial(each.crashed, reason))
        self._renew()

    def _renew(self) -> None:
        """Go on with another loop of Pika's; as far as it works with this one, if there are no descriptors."""
        try:
            fresh = self._new_ioloop()
        except OSError as exc:
            say(logging.ERROR, "no other loop can be made; this one goes on", exc)
            time.sleep(TICK)  # it may fail again at once
            return
        worn, self.ioloop = self.ioloop, fresh
        for timer in list(self.timers):
            timer.set_on(fresh)
        _end(worn)


def contain(function: Task) -> None:
    """Call *function*; what it raises is logged."""
    try:
        function()
    except BaseException as exc:  # noqa: BLE001 - SystemExit too: the thread is everybody's
        say(logging.ERROR, "a function on the I/O thread failed; the loop goes on", exc)


def failure(text: str, cause: BaseException) -> Exception:
    """Return what a link is said to be lost with."""
    reason: Exception = px.StreamLostError(text)
    reason.__cause__ = cause
    return reason


def say(level: int, text: str, error: BaseException) -> None:
    """Log it. A handler that raises is not to cost more than what it is told about."""
    with contextlib.suppress(BaseException):
        LOGGER.log(level, text, exc_info=error)


def _nobody() -> None:
    """Wake nobody: the loop has ended."""


def _end(ioloop: IOLoop) -> None:
    """Close *ioloop*; its callbacks go first: a connection that was dropped closes its socket in one."""
    for _ in range(LAST_TURNS):
        contain(ioloop.process_timeouts)
    contain(ioloop.close)
