"""The I/O thread without any connection: turns, deadlines, crashes, what strikes in the middle, the end of its life."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pika.exceptions as px
import pytest

from labkit.concurrency.bell import PendingCall
from labkit.connection import loop as module
from labkit.connection.io_thread import IoThread
from labkit.errors import DeadlineExceeded, NotConnected
from tests.unit.striking import files_of, struck_everywhere
from tests.view import until

PARTS = files_of("connection.io_thread", "concurrency.bell", "concurrency.wake_up", "concurrency.threads")


@pytest.fixture
def io(monkeypatch):
    monkeypatch.setattr(module, "TICK", 0.01)
    io = IoThread()
    yield io
    ends_when_idle(io)


def ends_when_idle(io):
    loop = io._loop
    if loop is not None:
        loop.thread.join(10)
    assert repr(io) == "IoThread(resting)"


class Guest:
    """Something hosted."""

    def __init__(self):
        self.ticks = 0
        self.told = []

    def tick(self, now, is_late):
        self.ticks += 1

    def crashed(self, reason):
        self.told.append((threading.current_thread(), reason))


def bug():
    raise SystemError("a bug below us")


def crash(io):
    io.call(lambda: io.ioloop().add_callback(bug), timeout=10)  # past the guard, as an error of Pika's loop would be


def test_a_call_returns_or_raises_what_the_function_does(io):
    assert io.call(lambda: threading.current_thread().name, timeout=10) == "labkit-io"
    with pytest.raises(ZeroDivisionError):
        io.call(lambda: 1 / 0, timeout=10)
    assert io.call(lambda: io.call(lambda: io.is_current, timeout=10), timeout=10)
    assert not io.is_current


def test_functions_run_in_the_order_in_which_they_were_posted(io):
    done = []
    for number in range(100):
        io.post(lambda number=number: done.append(number))
    io.call(lambda: None, timeout=10)
    assert done == list(range(100))


def test_a_call_that_gets_no_turn_in_time_is_not_made_later(io):
    go, begun, done = threading.Event(), threading.Event(), []
    io.post(lambda: (begun.set(), go.wait(10)))
    assert begun.wait(10)
    with pytest.raises(DeadlineExceeded, match="no turn on the I/O thread"):
        io.call(lambda: done.append(1), timeout=0.01)
    go.set()
    io.call(lambda: None, timeout=10)
    assert done == []


def test_a_posted_function_that_raises_leaves_the_loop_running(io):
    io.post(lambda: 1 / 0)
    io.post(lambda: sys.exit(3))
    assert io.call(lambda: 7, timeout=10) == 7
    assert io.crashes == 0


def test_a_log_handler_that_raises_costs_nothing(io):
    class Broken(module.logging.Handler):
        def emit(self, record):
            raise ZeroDivisionError

    handler = Broken()
    module.LOGGER.addHandler(handler)
    try:
        io.post(lambda: 1 / 0)
        assert io.call(lambda: 7, timeout=10) == 7
        assert io.crashes == 0
    finally:
        module.LOGGER.removeHandler(handler)


def test_a_log_handler_is_told_on_which_thread_it_is_while_the_loop_is_being_made(io):
    class Asking(module.logging.Handler):
        def emit(self, record):
            told.append((threading.current_thread().name, io.is_current, io._loop is None))

    told, handler, logger = [], Asking(), module.logging.getLogger("pika.adapters.select_connection")
    logger.addHandler(handler)
    logger.setLevel(module.logging.DEBUG)
    try:
        io.call(lambda: None, timeout=10)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(module.logging.NOTSET)
    assert ("labkit-io", True, True) in told
    assert {is_current for name, is_current, _ in told if name == "labkit-io"} == {True}


def test_the_thread_ends_when_idle_and_comes_back_when_needed(io):
    io.call(lambda: None, timeout=10)
    first = io._loop.thread
    first.join(10)
    assert not first.is_alive()
    assert io.lag == 0.0
    assert io.call(lambda: 1, timeout=10) == 1


def test_a_guest_keeps_the_thread_and_is_ticked(io):
    guest = Guest()
    io.call(lambda: io.host(guest), timeout=10)
    thread = io._loop.thread
    thread.join(module.IDLE_TICKS * 0.05)
    assert thread.is_alive()
    assert guest.ticks > 0
    io.call(lambda: io.release(guest), timeout=10)
    ends_when_idle(io)


def test_a_guest_whose_tick_raises_ends_alone(io):
    class Broken(Guest):
        def tick(self, now, is_late):
            super().tick(now, is_late)
            raise ZeroDivisionError

    broken, well = Broken(), Guest()
    io.call(lambda: (io.host(broken), io.host(well)), timeout=10)
    until(lambda: well.ticks > 5)
    io.call(lambda: io.release(well), timeout=10)
    ((thread, reason),) = broken.told
    assert thread.name == "labkit-io"
    assert "ZeroDivisionError" in str(reason)
    assert (broken.ticks, well.told, io.crashes) == (1, [], 0)


def test_only_the_io_thread_may_touch_the_loop(io):
    io.call(lambda: None, timeout=10)
    with pytest.raises(RuntimeError, match="only the I/O thread"):
        io.host(Guest())
    with pytest.raises(RuntimeError, match="only the I/O thread"):
        io.call_later(1, lambda: None)


def test_a_timer_runs_once_and_a_cancelled_one_never(io):
    done = []

    def start():
        io.call_later(0.0, lambda: done.append("ran"))
        cancelled = io.call_later(0.0, lambda: done.append("not this"))
        cancelled.cancel()
        cancelled.cancel()

    io.call(start, timeout=10)
    waiter = PendingCall()
    io.call(lambda: io.call_later(0.02, waiter.settle), timeout=10)
    assert waiter.wait(10)
    assert done == ["ran"]


def test_a_timer_whose_function_raises_leaves_the_others_running(io):
    done = threading.Event()

    def start():
        io.call_later(0.0, lambda: 1 / 0)
        io.call_later(0.0, done.set)

    io.call(start, timeout=10)
    assert done.wait(10)
    assert io.crashes == 0


# The loop itself fails.


def test_a_crash_fails_who_waits_tells_guests_and_loses_no_function(io):
    guest, go, done, begun = Guest(), threading.Event(), [], threading.Event()
    io.call(lambda: io.host(guest), timeout=10)

    def fail():
        begun.set()
        go.wait(10)
        bug()

    io.call(lambda: io.ioloop().add_callback(fail), timeout=10)
    assert begun.wait(10)
    errors = []

    def wait():
        try:
            io.call(lambda: done.append("not this"), timeout=10)
        except NotConnected as exc:
            errors.append(exc)

    waiting = threading.Thread(target=wait)
    waiting.start()
    until(lambda: io._waiters)
    io.post(lambda: done.append("posted"))
    go.set()
    waiting.join(10)
    assert [type(error.reason) for error in errors] == [px.StreamLostError]
    assert "a bug below us" in str(errors[0])
    io.call(lambda: None, timeout=10)
    assert done == ["posted"]
    assert io.crashes == 1
    ((thread, reason),) = guest.told
    assert thread is io._loop.thread
    assert isinstance(reason.__cause__, SystemError)
    io.call(lambda: io.release(guest), timeout=10)


def test_what_a_guest_raises_when_it_is_told_of_a_crash_keeps_no_other_from_being_told(io):
    class Broken(Guest):
        def crashed(self, reason):
            super().crashed(reason)
            raise ZeroDivisionError

    guests = [Broken() for _ in range(3)]
    io.call(lambda: [io.host(each) for each in guests], timeout=10)
    crash(io)
    until(lambda: io.crashes)
    io.call(lambda: [io.release(each) for each in guests], timeout=10)
    assert [len(each.told) for each in guests] == [1, 1, 1]


def test_a_timer_outlives_a_crash_and_can_be_cancelled_after_it(io):
    ran, guest = [], Guest()
    io.call(lambda: io.host(guest), timeout=10)
    cancelled = io.call(lambda: io.call_later(0.2, lambda: ran.append("not this")), timeout=10)
    io.call(lambda: io.call_later(0.1, lambda: ran.append("ran")), timeout=10)
    crash(io)
    until(lambda: io.crashes)
    io.call(cancelled.cancel, timeout=10)
    until(lambda: ran)
    time.sleep(0.2)
    io.call(lambda: io.release(guest), timeout=10)
    assert ran == ["ran"]


def test_a_loop_that_failed_leaves_no_descriptor(io):
    fds = Path("/proc/self/fd" if sys.platform == "linux" else "/dev/fd")
    io.call(lambda: None, timeout=10)
    before = len(list(fds.iterdir()))
    for number in range(1, 6):
        crash(io)
        until(lambda number=number: io.crashes == number)
    io.call(lambda: None, timeout=10)
    until(lambda: len(list(fds.iterdir())) <= before)  # the last loop that crashed closes its own a moment later


def test_calls_from_many_threads_while_the_loop_comes_and_goes_are_all_answered(io, monkeypatch):
    monkeypatch.setattr(module, "IDLE_TICKS", 0)
    monkeypatch.setattr(module, "TICK", 0.0005)
    answers = []

    def work(number):
        for step in range(40):
            answers.append(io.call(lambda: (number, step), timeout=10) == (number, step))  # noqa: B023
            if step % 8 == number:
                time.sleep(0.002)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert answers == [True] * 320


def test_calls_from_many_threads_while_the_loop_crashes_are_answered_or_say_so(io):
    answers, over = [], threading.Event()

    def work():
        while not over.is_set():
            try:
                answers.append(io.call(lambda: 1, timeout=10))
            except NotConnected:
                answers.append(0)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    while io.crashes < 30:
        with contextlib.suppress(NotConnected):  # it may be hit by the last crash itself
            crash(io)
    over.set()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    assert answers.count(1) > 30


FORKS = """
import os, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: a process with threads forks
import labkit
from labkit.connection.io_thread import SHARED
SHARED.call(lambda: None, timeout=10)
parents = SHARED._loop
child = os.fork()
if child == 0:
    answered = SHARED.call(lambda: 1, timeout=10) == 1
    os._exit(0 if answered and SHARED._loop is not parents else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), SHARED.call(lambda: 2, timeout=10), SHARED._loop is parents)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_process_has_a_thread_of_its_own_and_the_parent_keeps_its():
    done = subprocess.run([sys.executable, "-c", FORKS], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("0 2 True\n", "")


def test_a_function_that_has_its_turn_as_the_time_ends_is_answered_and_not_late(io):
    io.call(lambda: None, timeout=10)
    assert io.call(lambda: time.sleep(0.3) or "done", timeout=0.15) == "done"


# What comes in the middle of a hand-over.


@pytest.fixture
def brisk(monkeypatch):
    monkeypatch.setattr(module, "TICK", 0.01)
    made = []

    def make():
        made.append(IoThread())
        return made[-1]

    yield make
    for each in made:
        ends_when_idle(each)


def resting(make):
    return make


def running(make):
    def made():
        io = make()
        io.call(lambda: None, timeout=10)
        return io

    return made


@pytest.mark.parametrize("state", [resting, running])
def test_a_signal_handler_that_asks_in_the_middle_of_any_step_is_answered_and_so_is_who_it_interrupts(brisk, state):
    answers = []

    def act(io):
        io.post(lambda: answers.append("posted"))
        answers.append(io.call(lambda: "called", timeout=10))

    def strike(io):
        io.post(lambda: answers.append("posted by the handler"))
        answers.append(io.call(lambda: "called by the handler", timeout=10))

    for io, raised in struck_everywhere(state(brisk), act, strike, PARTS, at_least=15):
        assert raised is None
        io.call(lambda: None, timeout=10)
        assert sorted(set(answers)) in (
            ["called", "posted"],
            ["called", "called by the handler", "posted", "posted by the handler"],
        )
        answers.clear()
        assert io._waiters == set()


@pytest.mark.parametrize("state", [resting, running])
def test_an_interrupt_at_any_step_of_a_hand_over_delays_nobody_else(brisk, state):
    def act(io):
        io.post(lambda: None)
        io.call(lambda: None, timeout=10)

    def interrupt(_):
        raise KeyboardInterrupt

    for io, _ in struck_everywhere(state(brisk), act, interrupt, PARTS, at_least=15):
        answers = []
        thread = threading.Thread(target=lambda io=io, answers=answers: answers.append(io.call(lambda: 1, timeout=10)))
        thread.start()
        thread.join(5)
        assert answers == [1]


def test_nobody_needs_the_lock_that_pika_takes_to_wake_its_loop(io):
    """An interrupt can leave it taken, on Python 3.14."""
    io.call(lambda: None, timeout=10)
    mutex = io._loop.ioloop._poller._waking_mutex
    mutex.acquire()
    try:
        began = time.monotonic()
        assert io.call(lambda: 1, timeout=5) == 1
        done = threading.Event()
        io.post(done.set)
        assert done.wait(5)
        assert time.monotonic() - began < 2
    finally:
        mutex.release()


SIGNALS = """
import random, signal, sys, threading, time
from labkit.connection import loop
from labkit.connection.io_thread import IoThread
if {comes_and_goes}:
    loop.TICK, loop.IDLE_TICKS = 0.001, 0
io, rng, count, seen = IoThread(), random.Random({seed}), 0, 0
io.call(lambda: None, timeout=5)
def handler(*_):
    global count
    count += 1
    io.post(lambda: None)
    assert io.call(lambda: 5, timeout=5) == 5
    arm()
def arm():
    signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, 1e-3))
signal.signal(signal.SIGALRM, handler)
arm()
while count < {count}:
    io.post(lambda: None)
    assert io.call(lambda: 7, timeout=5) == 7
    if {comes_and_goes}:
        time.sleep(rng.uniform(0, 0.003))
signal.setitimer(signal.ITIMER_REAL, 0)
print(io.crashes, count >= {count})
"""


def run(script, *, timeout=60, **arguments):
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", textwrap.dedent(script).format(**arguments)],
        capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip
    return done.stdout + done.stderr


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timer that interrupts on this system")
@pytest.mark.parametrize("comes_and_goes", [False, True], ids=["the thread stays", "the thread comes and goes"])
def test_signal_handlers_that_hand_over_at_random_moments_hang_nobody(comes_and_goes):
    assert run(SIGNALS, seed=1, count=400, comes_and_goes=comes_and_goes) == "0 True\n"


# No descriptors are left.

STARVED = """
import os, resource, sys, threading, time
from labkit.errors import DeadlineExceeded
from labkit.connection.io_thread import IoThread
import logging; logging.disable(logging.CRITICAL)
held = []
def starve():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        while True:
            held.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        pass
def feed():
    while held:
        os.close(held.pop())
class Guest:
    told = None
    def tick(self, now, is_late): pass
    def crashed(self, reason): self.told = str(reason)
io, guest = IoThread(), Guest()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no limit of descriptors here")
def test_a_loop_that_cannot_begin_for_want_of_descriptors_says_why_in_time_and_begins_when_there_are_some():
    script = (
        STARVED
        + """
starve()
began = time.monotonic()
try:
    io.call(lambda: None, timeout=0.5)
except DeadlineExceeded as exc:
    print(type(exc.__cause__).__name__, exc.__cause__.errno, time.monotonic() - began < 2)
feed()
print(io.call(lambda: "there", timeout=5))
"""
    )
    assert run(script) == "OSError 24 True\nthere\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no limit of descriptors here")
def test_a_crash_without_descriptors_is_told_to_everybody_and_the_loop_goes_on():
    script = (
        STARVED
        + """
io.call(lambda: io.host(guest), timeout=5)
starve()
def bug(): raise SystemError("a bug below us")
io.call(lambda: io.ioloop().add_callback(bug), timeout=5)
ends = time.monotonic() + 5
while guest.told is None and time.monotonic() < ends:
    time.sleep(0.01)
print(guest.told)
print(io.call(lambda: "goes on", timeout=5))
feed()
print(io.call(lambda: "still", timeout=5), io.crashes)
"""
    )
    assert run(script) == "the I/O thread crashed: SystemError('a bug below us')\ngoes on\nstill 1\n"
