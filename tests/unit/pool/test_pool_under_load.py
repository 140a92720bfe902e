"""Many threads at once: bursts, numbers that add up in every snapshot, and a close in the middle. No broker."""

import random
import threading

import pytest

from labkit.errors import PoolClosed, PoolTimeout, TooManyWaiting
from tests.unit.pool.still_pool import NotThereYet, adds_up, in_threads, threaded_pool
from tests.view import until


def test_burst_of_short_jobs_is_served_by_what_is_there_and_not_by_growing_to_the_maximum():
    pool = threaded_pool(min_size=1, max_size=10)
    pool.open(wait=True)
    go = threading.Event()
    pool.things.while_opening = lambda: go.wait(30)  # a slow connect
    lease = pool.checkout()
    threads = in_threads(50, lambda: pool.checkout(timeout=60).checkin())
    until(lambda: pool.get_stats().waiting == 50)
    lease.checkin()
    for thread in threads:
        thread.join(30)
    assert pool.get_stats().granted == 51
    go.set()
    until(lambda: pool.get_stats().connecting == 0)
    assert len(pool.things.made) == 2  # the one that was under way
    pool.close()


def come_back_dead(pool, leases):
    leases[0].connection.die()
    leases.pop().checkin()


def come_back_after_a_drain(pool, leases):
    pool.drain()
    leases.pop().checkin()


def come_back_half(pool, leases):
    leases.pop()._held.pop()  # an interrupt came after the first step
    pool._keeper.wake()


def be_forgotten(pool, leases):
    leases.clear()
    pool._keeper.wake()


@pytest.mark.parametrize(
    "free",
    [
        lambda pool, leases: leases.pop().checkin(),
        lambda pool, leases: pool.resize(0, 2),
        come_back_dead,
        come_back_after_a_drain,
        come_back_half,
        be_forgotten,
    ],
    ids=["given back", "resized", "dead", "drained", "interrupted", "forgotten"],
)
def test_whatever_frees_a_place_the_next_in_the_line_gets_it(free):
    pool = threaded_pool(min_size=0, max_size=1)
    leases = [pool.checkout()]
    served = []

    def wait(number):
        with pool.connection(timeout=60) as thing:
            assert thing.is_open
            served.append(number)

    threads = []
    for number in range(3):
        threads.append(threading.Thread(target=wait, args=[number], daemon=True))
        threads[-1].start()
        until(lambda expected=number + 1: pool.get_stats().waiting == expected)
    free(pool, leases)
    for thread in threads:
        thread.join(10)
    assert served == [0, 1, 2]
    assert adds_up(pool.get_stats())
    for lease in leases:
        lease.checkin()
    pool.close()


def test_goodbye_that_takes_for_ever_delays_nobody_and_is_counted_as_retired():
    pool = threaded_pool(max_size=1)
    ended = []
    pool.things.is_ended = lambda thing: thing in ended
    for number in range(1, 4):
        with pool.connection(timeout=10) as thing:
            thing.die()
        until(lambda expected=number: pool.get_stats().retired == expected)
        assert pool.get_stats().size <= 1
    ended += pool.things.made
    until(lambda: pool.get_stats().retired == 0)
    pool.close()


def test_close_from_several_threads_at_once_is_one_close():
    pool = threaded_pool(min_size=3)
    pool.open(wait=True)
    lease = pool.checkout()
    threads = in_threads(6, lambda: pool.close(timeout=1))
    lease.checkin()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert pool.things.open_now == []
    assert pool.get_stats().size == 0


@pytest.mark.parametrize("seed", range(3))
def test_close_in_the_middle_of_everything_ends_everybody_and_leaves_nothing(seed):
    rng, pool = random.Random(seed), threaded_pool(min_size=1, max_size=3)
    problems = []

    def work(number):
        mine = random.Random(seed * 100 + number)
        try:
            while True:
                with pool.connection(timeout=60) as thing:
                    if mine.random() < 0.1:
                        thing.die()
        except PoolClosed:
            pass
        except BaseException as exc:
            problems.append(exc)

    threads = [threading.Thread(target=work, args=[number], daemon=True) for number in range(8)]
    for thread in threads:
        thread.start()
    asked = rng.randint(20, 200)
    until(lambda: pool.get_stats().granted >= asked)
    pool.close(timeout=5)
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert problems == []
    until(lambda: pool.things.open_now == [])
    stats = pool.get_stats()
    assert adds_up(stats)
    assert (stats.size, stats.waiting, stats.closed > 0) == (0, 0, True)


def test_numbers_add_up_in_every_snapshot_of_a_storm():
    storm(seed=1, actions=150)


def storm(seed, actions):
    """Eight borrowers, a world that breaks things, and one who looks all the time; return how often, and requests."""
    bad = set()

    def check(thing):
        if thing in bad:
            raise ValueError("bad")

    pool = threaded_pool(min_size=1, max_size=4, max_waiting=5, check=check, max_lifetime=0.05)
    things, over, problems, looks = pool.things, threading.Event(), [], []
    guard, users, answers = threading.Lock(), {}, dict.fromkeys(["granted", "timeouts", "rejected"], 0)

    def answered(how):
        with guard:
            answers[how] += 1

    def borrow(number):
        rng = random.Random(seed * 1000 + number)
        for _ in range(actions):
            try:
                with pool.connection(timeout=rng.choice([0.0, 0.002, 30.0])) as thing:
                    with guard:
                        if users.setdefault(thing, number) != number:
                            problems.append(f"{thing} is shared")
                    answered("granted")
                    if rng.random() < 0.05:
                        thing.die()
                    if rng.random() < 0.05:
                        bad.add(thing)
                    with guard:
                        users.pop(thing, None)
            except PoolTimeout:
                answered("timeouts")
            except TooManyWaiting:
                answered("rejected")
            except BaseException as exc:
                problems.append(repr(exc))

    def break_things():
        rng = random.Random(seed)
        while not over.is_set():
            what = rng.randrange(6)
            if what == 0:
                pool.drain()
            elif what == 1:
                pool.check()
            elif what == 2:
                low = rng.randint(0, 2)
                pool.resize(low, low + rng.randint(1, 3))
            else:
                things.error = NotThereYet("away") if what == 3 else None
            over.wait(0.002)
        things.error = None

    def look():
        while not over.is_set():
            stats = pool.get_stats()
            looks.append(stats.requests)
            if not adds_up(stats):
                problems.append(vars(stats))
                return

    borrowers = [threading.Thread(target=borrow, args=[number], daemon=True) for number in range(8)]
    others = [threading.Thread(target=each, daemon=True) for each in (break_things, look)]
    for thread in borrowers + others:
        thread.start()
    for thread in borrowers:
        thread.join(60 + actions * 0.1)
    over.set()
    for thread in others:
        thread.join(30)
    assert not any(thread.is_alive() for thread in borrowers + others)
    assert problems == []
    assert len(looks) > 10
    assert looks == sorted(looks)
    stats = pool.get_stats()
    assert adds_up(stats)
    assert (stats.leased, stats.waiting, stats.interrupted, stats.recovered) == (0, 0, 0, 0)
    assert {name: getattr(stats, name) for name in answers} == answers
    assert stats.requests == 8 * actions
    pool.close()
    assert things.open_now == []
    return len(looks), stats.requests
