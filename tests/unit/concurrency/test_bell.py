"""Waits that nothing breaks: an interrupt, a signal handler or another thread, at any step. No broker."""

import ast
import random
import signal
import threading
from pathlib import Path

import pytest

import labkit
from labkit import ConnectionClosed, ConnectionOpened, Timeline
from labkit.concurrency.bell import Bell, Flag, PendingCall, WatchedCall
from labkit.events import Dispatcher
from tests.unit.pool.still_pool import in_threads
from tests.unit.striking import files_of, struck_everywhere

PACKAGE = Path(labkit.__file__).parent
NOT_THE_LIBRARY = {"lab", "wire", "brokers", "trials", "diagnosis"}
BELL, EVENTS = files_of("concurrency.bell", "events")
LOCKED_IN_PYTHON = {
    "threading": {"Condition", "Event", "Semaphore", "BoundedSemaphore", "Barrier", "Timer"},
    "queue": {"Queue", "LifoQueue", "PriorityQueue"},
}


def interrupt(*_):
    raise KeyboardInterrupt


def test_a_ring_is_kept_for_the_next_wait_and_two_count_as_one():
    bell = Bell()
    assert not bell.wait(0)
    bell.ring()
    bell.ring()
    assert bell.wait(0)
    assert not bell.wait(0)


def test_a_flag_wakes_all_who_wait_until_it_is_cleared():
    flag, woken = Flag(), []
    threads = in_threads(5, lambda: woken.append(flag.wait(10)))
    while len(flag._bells) < 5:
        threading.Event().wait(0.001)
    flag.set()
    for each in threads:
        each.join(10)
    assert woken == [True] * 5
    assert flag.is_set()
    assert flag.wait(0)
    flag.clear()
    assert not flag.wait(0)
    assert flag._bells == []


def test_the_first_answer_counts():
    waiter = PendingCall()
    assert not waiter.wait(0)
    assert waiter.settle(1)
    assert not waiter.settle(error=ValueError("late"))
    assert waiter.wait(0)
    assert waiter.result() == 1


def test_an_answer_that_comes_after_the_caller_gave_up_is_nobody_s():
    waiter = PendingCall()
    assert waiter.abandon()
    assert waiter.is_abandoned
    assert not waiter.claim()
    assert not waiter.settle(1)


def test_what_was_begun_or_answered_cannot_be_given_up_any_more():
    begun, answered = PendingCall(), PendingCall()
    assert begun.claim()
    assert not begun.abandon()
    assert begun.settle(1)
    assert answered.settle(1)
    assert not answered.abandon()


def test_what_was_released_can_be_given_up_again():
    waiter = PendingCall()
    assert waiter.claim()
    waiter.release()
    assert waiter.abandon()
    waiter.release()
    assert waiter.is_abandoned


def test_an_error_is_raised_once_and_not_kept():
    waiter = PendingCall()
    waiter.settle(error=ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        waiter.result()
    assert waiter.result() is None
    assert waiter.is_settled


ENDS = {
    "settle": lambda waiter: waiter.settle("a"),
    "abandon": lambda waiter: waiter.abandon(),
    "claim": lambda waiter: waiter.claim() and waiter.settle("a"),
    "claim and release": lambda waiter: waiter.claim() and (waiter.release(), waiter.settle("a"))[1],
}


@pytest.mark.parametrize("verb", ENDS)
def test_whoever_comes_in_the_middle_there_is_one_end(verb):
    """A signal handler that settles the same thing, at every single step."""

    def make():
        return PendingCall(), []

    def act(made):
        waiter, wins = made
        wins.append(ENDS[verb](waiter))

    def strike(made):
        waiter, wins = made
        if not waiter._fate or waiter.is_settled or waiter.is_abandoned:  # what is claimed, its claimer settles
            wins.append(waiter.settle("b"))

    for (waiter, wins), raised in struck_everywhere(make, act, strike, [BELL], at_least=1):
        assert raised is None
        wins.append(waiter.settle("c"))
        assert wins.count(True) == 1, wins


def test_a_flag_set_in_the_middle_of_a_wait_ends_it():
    for flag, raised in struck_everywhere(Flag, lambda flag: flag.wait(0.001), Flag.set, [BELL], at_least=5):
        assert raised is None
        assert flag._bells == []


def test_an_interrupted_wait_or_set_leaves_a_flag_that_works():
    def act(flag):
        flag.wait(0.0001)
        flag.set()
        flag.wait(0.0001)

    for flag, _ in struck_everywhere(Flag, act, interrupt, [BELL], at_least=10):
        woken = []
        (thread,) = in_threads(1, lambda flag=flag, woken=woken: woken.append(flag.wait(10)))
        flag.set()
        thread.join(10)
        assert woken == [True]


def test_an_event_recorded_in_the_middle_of_any_call_of_a_timeline_is_there_and_counted_once():
    def act(timeline):
        timeline(ConnectionOpened())
        timeline.mark()
        timeline.wait_for(ConnectionOpened, timeout=0, since=0)
        list(timeline.events)
        timeline(ConnectionOpened())

    def strike(timeline):
        mark = timeline.mark()
        timeline(ConnectionClosed())
        assert timeline.wait_for(ConnectionClosed, timeout=0, since=mark) == ConnectionClosed()

    for timeline, raised in struck_everywhere(Timeline, act, strike, [EVENTS, BELL], at_least=20):
        assert raised is None
        assert timeline.names().count("ConnectionOpened") == 2
        assert timeline.names().count("ConnectionClosed") <= 1
        assert timeline.mark() == len(timeline.events)
        assert timeline.dropped == 0
        assert timeline._bells == []


def test_a_listener_that_comes_or_goes_in_the_middle_of_any_call_stays_so():
    def first(event):
        raise ZeroDivisionError

    def second(event):
        heard.append(event)

    def act(dispatcher):
        dispatcher.add(first)
        dispatcher.emit(ConnectionOpened())
        dispatcher.remove(first)

    heard = []
    for dispatcher, raised in struck_everywhere(
        Dispatcher, act, lambda dispatcher: dispatcher.add(second), [EVENTS], at_least=10
    ):
        assert raised is None
        assert dispatcher.failures == 1
        assert dispatcher.listeners in ((), (second,))
        if dispatcher.listeners:
            dispatcher.emit(ConnectionClosed())
            assert heard.pop() == ConnectionClosed()
    heard.clear()


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # one strikes Hypothesis' own gc callback
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timer that interrupts on this system")
def test_a_timeline_works_for_other_threads_after_interrupts_at_random_moments():
    rng, timeline = random.Random(1), Timeline()

    def mark_again_and_again():
        # Python may lose a signal that comes as it looks for one; then there is another, and a test that goes on.
        signal.setitimer(signal.ITIMER_REAL, rng.uniform(5e-5, 3e-4), 0.05)
        try:
            while True:
                timeline.mark()
                timeline(ConnectionOpened())
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for seen in range(300):
            with pytest.raises(KeyboardInterrupt):
                mark_again_and_again()
            got = []
            (thread,) = in_threads(1, lambda got=got: got.append((timeline.mark(), timeline(ConnectionClosed()))))
            thread.join(2)
            assert got, f"nobody can use it after interrupt {seen + 1}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def attributes(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield node.value.id, node.attr
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.module, alias.name) for alias in node.names)


def test_nothing_in_the_library_waits_on_a_lock_that_is_taken_in_python():
    paths = [each for each in PACKAGE.rglob("*.py") if each.relative_to(PACKAGE).parts[0] not in NOT_THE_LIBRARY]
    assert len(paths) > 40
    found = {
        f"{path.name}: {module}.{name}"
        for path in paths
        for module, name in attributes(path)
        if name in LOCKED_IN_PYTHON.get(module, ())
    }
    assert found == set()


def test_who_watches_a_call_is_told_once_what_became_of_it_unless_it_was_abandoned():
    told = []
    failed, done, abandoned = (WatchedCall(told.append) for _ in range(3))
    error = ValueError("no")
    assert failed.settle(error=error)
    assert not failed.settle(error=KeyError("later"))
    assert done.settle(7)
    assert done.wait(0)
    assert abandoned.abandon()
    assert not abandoned.settle(error=KeyError("nobody cares"))
    assert told == [error, None]
