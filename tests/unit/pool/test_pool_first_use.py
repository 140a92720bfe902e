"""How a pool begins: who opens it, what an interrupt there costs, and what is said while nobody answers. No broker."""

import threading

import pytest

from labkit.concurrency import threads
from labkit.errors import AuthenticationFailed, NotConnected, PoolTimeout
from tests.unit.pool.still_pool import NotThereYet, in_threads, still_pool, threaded_pool
from tests.view import until


def keepers():
    return {each for each in threading.enumerate() if each.name == "labkit-pool-keeper"}


def test_threads_that_use_a_new_pool_at_once_open_it_once():
    before, pool = keepers(), threaded_pool(max_size=2)
    start = threading.Barrier(16)

    def use():
        start.wait(10)
        pool.checkout().checkin()

    for thread in in_threads(16, use):
        thread.join(10)
    until(lambda: len(keepers() - before) == 1)  # one that was asked for at the same moment has ended
    assert pool.get_stats().granted == 16
    pool.close()


@pytest.mark.parametrize("has_begun", [False, True], ids=["before it began", "after it began"])
def test_interrupt_as_the_upkeep_s_thread_starts_costs_nothing(monkeypatch, has_begun):
    start, before, pool = threads.start_daemon, keepers(), threaded_pool()

    def be_interrupted(target, name):
        monkeypatch.undo()
        if has_begun:
            start(target, name)
        raise KeyboardInterrupt

    monkeypatch.setattr(threads, "start_daemon", be_interrupted)
    with pytest.raises(KeyboardInterrupt):
        pool.checkout()
    pool.checkout(timeout=10).checkin()
    until(lambda: len(keepers() - before) == 1)  # one that was asked for at the same moment has ended
    pool.close()


def test_thread_that_was_started_twice_leaves_the_upkeep_to_the_other():
    pool = threaded_pool()
    pool.open(wait=True)
    (second,) = in_threads(1, pool._keeper._thread._begin)
    second.join(10)
    assert not second.is_alive()
    pool.checkout().checkin()
    pool.close()


def test_pool_that_can_start_no_thread_says_so_and_can_be_used_later(monkeypatch):
    def refuse(target, name):
        raise RuntimeError("can't start new thread")

    pool = threaded_pool()
    monkeypatch.setattr(threads, "start_daemon", refuse)
    with pytest.raises(NotConnected, match="can't start new thread"):
        pool.checkout()
    monkeypatch.undo()
    pool.checkout(timeout=10).checkin()
    pool.close()


def test_open_raises_nothing_while_nobody_is_there_and_the_pool_fills_later():
    pool = still_pool(min_size=2)
    pool.things.error = NotThereYet("nobody there")
    pool.open()
    assert pool.get_stats().size == 0
    pool.things.error = None
    for _ in range(2):
        pool.clock.time += 60
        pool.step()
    assert pool.get_stats().idle == 2


def test_open_that_waits_asks_again_after_a_refusal():
    pool = threaded_pool(min_size=1)
    pool.things.error = AuthenticationFailed("wrong password")
    for _ in range(2):
        with pytest.raises(AuthenticationFailed, match="wrong password"):
            pool.open(wait=True, timeout=30)
    pool.things.error = None
    pool.open(wait=True, timeout=30)
    assert pool.get_stats().idle == 1
    pool.close()


def test_what_was_made_before_one_failed_is_kept_and_closed_with_the_pool():
    pool = threaded_pool(min_size=3)

    def fail_the_third():
        if len(pool.things.made) >= 3:
            raise NotThereYet("nobody there")

    pool.things.while_opening = fail_the_third
    with pytest.raises(PoolTimeout, match=r"2 of 3 entries were made within 0\.2 s; last connect error: .*nobody"):
        pool.open(wait=True, timeout=0.2)
    assert pool.get_stats().idle == 2
    pool.close()
    assert pool.things.open_now == []


def test_open_that_waits_returns_when_a_resize_asks_for_less():
    pool = threaded_pool(min_size=2, max_size=2)
    go = threading.Event()
    pool.things.while_opening = lambda: len(pool.things.made) == 1 or go.wait(30)
    (thread,) = in_threads(1, lambda: pool.open(wait=True, timeout=60))
    until(lambda: pool.get_stats().idle == 1 and pool.get_stats().connecting == 1)
    pool.resize(1, 2)
    thread.join(10)
    assert not thread.is_alive()
    go.set()
    pool.close()
