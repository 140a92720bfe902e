"""A lock that no interrupt leaves taken, on any Python. No broker."""

import os
import random
import signal
import sys
import threading

import pytest

from labkit import BrokerSettings, ConnectError, Consumer, LabkitError, Publisher
from labkit.concurrency.guard import Guard, guard
from tests.unit.pool.still_pool import in_threads


def is_free(lock):
    """Whether another thread can have it now."""
    got = []

    def take():
        with lock:
            got.append(True)

    (thread,) = in_threads(1, take)
    thread.join(1)
    return bool(got)


def test_guard_lets_one_thread_in_at_a_time():
    lock, inside, most = Guard(), [0], [0]

    def work():
        for _ in range(200):
            with lock:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                inside[0] -= 1

    for thread in in_threads(8, work):
        thread.join(30)
    assert most == [1]


def test_guard_is_free_after_a_block_that_raised():
    lock = Guard()
    with pytest.raises(ZeroDivisionError), lock:
        raise ZeroDivisionError
    assert is_free(lock)


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # one strikes Hypothesis' own gc callback
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timer that interrupts on this system")
@pytest.mark.parametrize("make", [Guard, guard], ids=["the guard", "what this Python needs"])
def test_lock_is_free_after_interrupts_at_random_moments(make):
    rng, lock, seen = random.Random(1), make(), 0

    def strike(*_):
        signal.setitimer(signal.ITIMER_REAL, 0)  # on a busy machine the next one would come before the end of the block
        raise KeyboardInterrupt

    def take_it_again_and_again():
        # Python may lose a signal that comes as it looks for one; then there is another, and a test that goes on.
        signal.setitimer(signal.ITIMER_REAL, rng.uniform(5e-5, 3e-4), 0.05)
        try:
            while True:
                with lock:
                    pass
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    before = signal.signal(signal.SIGALRM, strike)
    try:
        while seen < 300:
            with pytest.raises(KeyboardInterrupt):
                take_it_again_and_again()
            seen += 1
            assert is_free(lock), f"nobody can take it after interrupt {seen}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class InterruptedOnce:
    """A lock whose first owner is interrupted when it has it, and does not know it yet."""

    def __init__(self, lock):
        self._lock, self._is_due = lock, True
        self.release = lock.release

    def acquire(self, timeout):
        taken = self._lock.acquire(timeout=timeout)
        if self._is_due:
            self._is_due = False
            raise KeyboardInterrupt
        return taken


@pytest.mark.parametrize("role", [Publisher, lambda settings: Consumer(settings, "jobs", print)])
def test_role_whose_opening_was_interrupted_can_be_opened_by_another_thread(role):
    opened = role(BrokerSettings(host="127.0.0.1", port=1, connection_attempts=1))
    opened._opening = InterruptedOnce(opened._opening)
    with pytest.raises(KeyboardInterrupt):
        opened.open()
    errors = []

    def open_it():
        with pytest.raises(LabkitError) as caught:
            opened.open(deadline=2)
        errors.append(type(caught.value))

    (thread,) = in_threads(1, open_it)
    thread.join(10)
    opened.close()
    assert errors == [ConnectError]  # the port refused; nobody waited for the lock


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="there Python's own lock is not safe")
def test_python_s_own_lock_is_used_where_it_is_safe():
    assert isinstance(guard(), type(threading.RLock()))


@pytest.mark.parametrize("make", [Guard, guard], ids=["the guard", "what this Python needs"])
def test_a_signal_handler_in_the_middle_of_a_block_may_take_the_same_lock(make):
    lock = make()
    with lock, lock:
        assert not is_free(lock)
    assert is_free(lock)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_child_process_can_take_what_another_thread_of_its_parent_has():
    lock, has_it, go = guard(), threading.Event(), threading.Event()

    def hold():
        with lock:
            has_it.set()
            go.wait(10)

    (thread,) = in_threads(1, hold)
    assert has_it.wait(10)
    pid = os.fork()
    if pid == 0:
        signal.alarm(3)  # ends a child that waits
        with lock:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert not is_free(lock)
    go.set()
    thread.join(10)
    assert is_free(lock)
