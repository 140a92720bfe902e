"""The I/O thread without any connection: turns, deadlines, crashes, and the end of its life."""

import threading
import time

import pika.exceptions as px
import pytest

from labkit import io_thread as module
from labkit.errors import DeadlineExceeded, NotConnected
from labkit.io_thread import IoThread, Waiter
from tests.view import until


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

    def dispose(self, reason):
        self.told.append((threading.current_thread(), "dispose"))


def crash(io):
    def bug():
        raise SystemError("a bug below us")

    io.call(lambda: io.ioloop().add_callback(bug), timeout=10)  # past the guard, as Pika's own error would be


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


def test_an_interrupt_in_the_middle_of_a_hand_over_delays_no_later_function(io, monkeypatch):
    io.call(lambda: None, timeout=10)
    done = threading.Event()

    def interrupted(_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(io._loop.ioloop, "add_callback_threadsafe", interrupted)
        with pytest.raises(KeyboardInterrupt):
            io.post(done.set)
    assert io.call(lambda: "its turn", timeout=2) == "its turn"
    assert done.wait(2)


def test_a_posted_function_that_raises_leaves_the_loop_running(io):
    io.post(lambda: 1 / 0)
    assert io.call(lambda: 7, timeout=10) == 7
    assert io.crashes == 0


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
    waiter = Waiter()
    io.call(lambda: io.call_later(0.02, waiter.settle), timeout=10)
    assert waiter.wait(10)
    assert done == ["ran"]


def test_a_crash_fails_who_waits_tells_guests_on_a_new_loop_and_loses_no_function(io):
    guest, go, done, begun = Guest(), threading.Event(), [], threading.Event()
    io.call(lambda: io.host(guest), timeout=10)
    old = io._loop.thread

    def bug():
        begun.set()
        go.wait(10)
        raise SystemError("a bug below us")

    io.call(lambda: io.ioloop().add_callback(bug), timeout=10)
    assert begun.wait(10)
    errors = []

    def wait():
        try:
            io.call(lambda: done.append("not this"), timeout=10)
        except NotConnected as exc:
            errors.append(exc)

    waiting = threading.Thread(target=wait)
    waiting.start()
    while not io._loop.waiters:
        time.sleep(0.001)
    io.post(lambda: done.append("posted"))
    go.set()
    waiting.join(10)
    old.join(10)
    assert [type(error.reason) for error in errors] == [px.StreamLostError]
    assert "a bug below us" in str(errors[0])
    io.call(lambda: None, timeout=10)
    assert done == ["posted"]
    assert io.crashes == 1
    told = {what if what == "dispose" else "crashed": thread for thread, what in guest.told}
    assert told["dispose"] is old
    assert told["crashed"] is not old


def test_a_timer_of_a_loop_that_crashed_can_be_cancelled_on_the_next_one(io, monkeypatch):
    monkeypatch.setattr(module, "DISPOSAL", 0.05)
    ran = []
    timers = [io.call(lambda: io.call_later(60, lambda: ran.append(1)), timeout=10) for _ in range(2)]
    old = io._loop.thread
    crash(io)
    until(lambda: io.crashes)
    io.call(timers[0].cancel, timeout=10)  # while the old loop closes its sockets, perhaps
    old.join(10)
    io.call(timers[1].cancel, timeout=10)
    assert not old.is_alive()
    assert ran == []


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


def test_crashes_in_a_row_are_survived(io):
    for number in range(1, 6):
        crash(io)
        while io.crashes < number:
            time.sleep(0.001)
        assert io.call(lambda: 1, timeout=10) == 1


def test_a_forgotten_thread_is_replaced_by_one_of_its_own():
    io = IoThread()
    io.call(lambda: None, timeout=10)
    parents = io._loop
    kept = io.forget()
    assert kept == [parents]
    assert io.call(lambda: 1, timeout=10) == 1
    assert io._loop is not parents
    ends_when_idle(io)
    parents.thread.join(10)


def test_the_first_answer_counts():
    waiter = Waiter()
    assert not waiter.wait(0)
    assert waiter.settle(1)
    assert not waiter.settle(error=ValueError("late"))
    assert waiter.wait(0)
    assert waiter.result() == 1


def test_an_answer_that_comes_after_the_caller_gave_up_is_nobody_s():
    waiter = Waiter()
    assert waiter.abandon()
    assert not waiter.claim()
    assert not waiter.settle(1)


def test_what_was_begun_or_answered_cannot_be_given_up_any_more():
    begun, answered = Waiter(), Waiter()
    assert begun.claim()
    assert not begun.abandon()
    assert begun.settle(1)
    assert answered.settle(1)
    assert not answered.abandon()


def test_a_function_that_has_its_turn_as_the_time_ends_is_answered_and_not_late(io):
    assert io.call(lambda: time.sleep(0.2) or "done", timeout=0.05) == "done"
