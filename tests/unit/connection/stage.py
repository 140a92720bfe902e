"""A stage for a connection: the real classes, links that are only open or not, and threads that take turns.

A thread is a greenlet here: it runs until it waits, and goes on when the test says so. So a test decides what happens
first, to the last step, and a run can be repeated. No broker, no time but the stage's own.
"""

import traceback
from collections import deque
from types import SimpleNamespace

import pika.exceptions as px
import pytest

from labkit import BrokerSettings, Connection
from labkit.concurrency import bell
from labkit.connection import connection as connection_module
from labkit.connection import io_thread, lifecycle, link, opening
from labkit.connection.io_thread import IoThread
from labkit.connection.link import Link
from labkit.connection.states import TRANSITIONS, after
from labkit.retry import Backoff, SystemClock

greenlet = pytest.importorskip("greenlet", reason="comes with gevent")
SETTINGS = BrokerSettings(hosts=("127.0.0.1:1", "127.0.0.2:1"), connect_deadline=20.0)
PAUSES = Backoff(initial=1.0, maximum=2.0, jitter="none", attempts=3)


class Line(IoThread):
    """The I/O thread: what a thread posts runs in that thread's order; whose turn it is, the test decides."""

    def __init__(self):
        super().__init__()
        self.posted = {}  # by thread
        self.timers = []
        self.things = set()
        self.is_running = False

    @property
    def is_current(self):
        return self.is_running

    def post(self, function):
        self.posted.setdefault(greenlet.getcurrent(), deque()).append(function)

    def call_later(self, delay, function):
        timer = SimpleNamespace(
            run=function, cancel=lambda: self.timers.remove(timer) if timer in self.timers else None
        )
        self.timers.append(timer)
        return timer

    def at_end_of_turn(self, function):
        function()

    def host(self, thing):
        self.things.add(thing)

    def release(self, thing):
        self.things.discard(thing)

    def hosted(self):
        return list(self.things)

    def run(self, function):
        self.is_running = True
        try:
            function()
        finally:
            self.is_running = False

    def run_next(self, thread):
        """Run what *thread* posted first of all that has not run."""
        function = self.posted[thread].popleft()
        if not self.posted[thread]:
            del self.posted[thread]
        self.run(function)


class StandIn(Link):
    """A link without Pika, on the stage."""

    made: list[Link]

    def start(self, parameters, waiter):
        self._waiter = waiter
        self.has_opened = self.has_ended = False
        self.io.host(self)
        self.made.append(self)

    @property
    def is_connecting(self):
        return not self.has_opened and not self.has_ended

    @property
    def is_closing(self):
        return bool(self._on_gone) and not self.has_ended

    def opens(self):
        self.is_open = self.has_opened = True
        if self._waiter.is_abandoned:
            self.drop(px.ConnectionOpenAborted("nobody waits"))
        else:
            self._waiter.settle(self)

    def ends(self, reason, *, is_clean=False):
        if not self.has_ended:
            self.has_ended = True
            self._lost(reason)
            self._gone(is_clean=is_clean)

    def agrees(self):
        """The broker answers the close."""
        self.ends(px.ConnectionClosedByClient(200, "closed"), is_clean=True)

    def drop(self, reason):
        self.ends(reason)

    def retire(self, reason):
        if self.is_open:
            self.ends(reason)

    def close(self, timeout, done):
        if self.has_ended:
            done(True)
            return
        self._end_quietly()
        self._on_gone.append(done)
        self.io.call_later(timeout, lambda: self.drop(px.ConnectionOpenAborted("no answer to the close")))


def after_at_most(state, trigger):
    """Return what the table has, and raise where it has nothing."""
    assert (state, trigger) in TRANSITIONS
    return after(state, trigger)


class Stage:
    """One connection, its threads, its links and its clock."""

    def __init__(self, *, recovery, listeners=()):
        self.now = 1000.0
        self.hub = greenlet.getcurrent()
        self.waiting = {}  # each thread's bell, and when its time is over
        self.failures = []  # what threads raised that they must not
        self.recovering = set()  # the threads that labkit has begun
        self.has_threads = True
        self.line = Line()
        self.links = StandIn.made = []
        self._patch = pytest.MonkeyPatch()
        clock = SimpleNamespace(monotonic=lambda: self.now)
        for module in (connection_module, io_thread, lifecycle, link, opening):
            self._patch.setattr(module, "time", clock)
        self._patch.setattr(lifecycle, "after", after_at_most)
        self._patch.setattr(lifecycle, "Link", StandIn)
        threads = SimpleNamespace(Thread=self._thread, get_ident=lambda: id(greenlet.getcurrent()))
        self._patch.setattr(opening, "threading", threads)
        self._patch.setattr(lifecycle, "threading", threads)
        self._patch.setattr(opening, "SystemClock", lambda: _Clock(self))
        real_wait = bell.Bell.wait
        self._patch.setattr(
            bell.Bell,
            "wait",
            lambda each, timeout: (
                self._wait(each, timeout) if greenlet.getcurrent() in self.waiting else real_wait(each, timeout)
            ),
        )
        self.connection = Connection(SETTINGS, backoff=PAUSES, recovery=recovery, listeners=listeners)
        self.connection._io = self.line
        self.life = self.connection._life = self.connection._new_life()
        self.life.mailbox.put = lambda task: task()

    def end(self):
        self._patch.undo()

    # Threads

    def begin(self, function, *expected):
        """Run *function* on a thread of its own until it waits; it may raise *expected*."""

        def live():
            try:
                function()
            except expected:
                pass
            except Exception as exc:
                self.failures.append(exc)
            finally:
                del self.waiting[thread]

        thread = greenlet.greenlet(live, self.hub)
        self.waiting[thread] = (None, 0.0)
        thread.switch()
        return thread

    def who_waits(self):
        """The functions, outermost first, in which each thread waits."""
        return [[each.name for each in traceback.extract_stack(thread.gr_frame)] for thread in self.waiting]

    def can_go_on(self):
        """The threads whose bell has rung, or whose time is over."""
        return [each for each, (bell, ends) in self.waiting.items() if bell._lock.locked() is False or ends <= self.now]

    def go_on(self, thread):
        thread.switch()

    def run_on(self):
        """Run all that needs neither time nor luck; whoever is asked to close agrees."""
        for _ in range(10_000):
            closing = [each for each in self.links if each.is_closing]
            if self.line.posted:
                self.line.run_next(next(iter(self.line.posted)))
            elif ready := self.can_go_on():
                self.go_on(ready[0])
            elif closing:
                self.line.run(closing[0].agrees)
            else:
                return
        raise AssertionError("there is always something to do")

    def pass_time(self, seconds):
        self.now += seconds

    def allow_threads(self, allowed):
        self.has_threads = allowed

    def interrupt(self, thread):
        """Ctrl-C, while it waits."""
        thread.throw(KeyboardInterrupt)

    def _wait(self, ringing, timeout):
        if ringing._lock.acquire(blocking=False):
            return True
        if timeout <= 0:
            return False
        self.waiting[greenlet.getcurrent()] = (ringing, self.now + timeout)
        self.hub.switch()
        return ringing._lock.acquire(blocking=False)

    def _thread(self, target, **_):
        if not self.has_threads:
            raise RuntimeError("can't start new thread")
        return SimpleNamespace(start=lambda: self._start(target))

    def _start(self, target):
        """Begin a thread from a turn on the I/O thread: it runs after that turn."""
        self.line.post(lambda: self._off_the_line(target))

    def _off_the_line(self, target):
        self.line.is_running = False
        self.recovering.add(self.begin(target))


class _Clock(SystemClock):
    def __init__(self, stage):
        self.now = lambda: stage.now
