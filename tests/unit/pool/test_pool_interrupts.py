"""An interrupt at every single point of a checkout and a checkin where Python lets one in, one after the other.

KeyboardInterrupt is raised at the n-th of those points, for n = 1, 2, 3 ... until the scenario runs through.
"""

import contextlib
import subprocess
import sys
import threading

import pytest

from labkit.errors import LabkitError
from tests.unit.pool.still_pool import adds_up, still_pool, threaded_pool
from tests.unit.striking import StrikeAt, files_of
from tests.view import until

PARTS = files_of(
    "pool.connections",
    "pool.base",
    "pool.lease",
    "pool.line",
    "pool.places",
    "concurrency.guard",
    "concurrency.bell",
    "concurrency.threads",
    "pool.keeper",
)


def interrupt():
    raise KeyboardInterrupt


class InterruptAt(StrikeAt):
    """Raises KeyboardInterrupt in this thread at the *number*-th point where Python would look for a signal."""

    def __init__(self, number, parts=PARTS[:-1]):  # a still pool's upkeep runs in the caller's thread: leave it out
        super().__init__(number, interrupt, parts)


def points(scenario, *, at_least):
    """Run *scenario* with an interrupt at each point; yield what it left behind, with the traceback kept."""
    with InterruptAt(sys.maxsize):  # Python 3.12 reports the steps of a function from its second traced call on
        scenario(still_pool(max_size=2, min_size=2))
    number = 0
    while True:
        number += 1
        kept = None
        pool = still_pool(max_size=2, min_size=2)
        pool.open()
        struck = InterruptAt(number)
        try:
            with struck:
                scenario(pool)
        except KeyboardInterrupt as exc:
            kept = exc
        yield pool, kept
        if not struck.has_struck:
            assert number > at_least, "the tracer saw too few points"
            return


def nothing_is_lost(pool):
    pool.clock.time += 60
    pool.step()
    stats = pool.get_stats()
    assert (stats.size, stats.idle, stats.leased, stats.waiting) == (2, 2, 0, 0)
    assert adds_up(stats)
    first, second = pool.checkout(), pool.checkout()
    assert first.connection is not second.connection
    assert first.connection.is_open
    assert second.connection.is_open


def test_block_interrupted_anywhere_loses_nothing_while_its_traceback_is_kept():
    def scenario(pool):
        with pool.connection():
            pass

    for pool, kept in points(scenario, at_least=30):
        nothing_is_lost(pool)
        del kept


def test_checkout_and_checkin_interrupted_anywhere_lose_nothing_once_the_lease_is_gone():
    def scenario(pool):
        lease = pool.checkout()
        try:
            pass
        finally:
            lease.checkin()

    for pool, kept in points(scenario, at_least=30):
        del kept  # the caller's own variable holds the lease if the interrupt came before checkin() began
        nothing_is_lost(pool)


@pytest.mark.slow
def test_wait_in_the_line_interrupted_anywhere_leaves_the_line_whole():
    def scenario(pool):
        with pool.connection(), pool.connection(), contextlib.suppress(LabkitError):
            pool.checkout(timeout=0)

    for pool, kept in points(scenario, at_least=100):
        nothing_is_lost(pool)
        del kept


def test_block_that_leaves_something_and_is_interrupted_anywhere_lends_nothing_unclean():
    def scenario(pool):
        pool.open()
        pool.keeper.works = False  # that would be another thread, which no interrupt reaches
        with pool.connection() as thing:
            thing.left.append("a channel")

    for pool, kept in points(scenario, at_least=40):
        pool.keeper.works = True
        nothing_is_lost(pool)
        assert all(thing.left == [] for thing in pool.things.open_now)
        del kept


def test_reset_after_a_checkin_that_is_interrupted_anywhere_is_made_up_for():
    number = 0
    while True:
        number += 1
        kept, used, reset = None, [], []
        pool = threaded_pool(max_size=1, reset=reset.append)
        pool.open(wait=True)
        struck = InterruptAt(number)
        try:
            with pool.connection() as thing:
                used.append(thing)
                struck.__enter__()
        except KeyboardInterrupt as exc:
            kept = exc
        finally:
            struck.__exit__()
        with pool.connection(timeout=10) as thing:
            assert thing is not used[0] or reset == used, f"lent as it was after interrupt {number}"
        assert adds_up(pool.get_stats())
        pool.close()
        if not struck.has_struck:
            break
        del kept
    assert number > 10, "the tracer saw too few points"


def test_upkeep_asked_for_and_interrupted_anywhere_loses_nothing():
    def scenario(pool):
        pool.keeper.works = False  # that would be another thread, which no interrupt reaches
        pool.check()
        pool.get_stats()
        pool.pop_stats()
        pool.resize(2, 2)
        pool.drain()

    for pool, kept in points(scenario, at_least=100):
        pool.keeper.works = True
        nothing_is_lost(pool)
        del kept


def test_close_interrupted_anywhere_is_completed_by_the_next_one():
    def scenario(pool):
        pool.keeper.works = False
        pool.close(timeout=0)

    for pool, kept in points(scenario, at_least=30):
        pool.close(timeout=0)
        assert pool.things.open_now == []
        assert pool.get_stats().size == 0
        del kept


def test_first_use_interrupted_anywhere_opens_the_pool_the_next_time():
    number = 0
    while True:
        number += 1
        kept = None
        pool = threaded_pool(min_size=0)
        struck = InterruptAt(number, PARTS)
        try:
            with struck, pool.connection():
                pass
        except KeyboardInterrupt as exc:
            kept = exc
        with pool.connection(timeout=10):
            stats = pool.get_stats()
            assert (stats.leased, stats.waiting) == (1, 0), f"after interrupt {number}"
            assert adds_up(stats)
        pool.close(timeout=1)
        if not struck.has_struck:
            break
        del kept
    assert number > 50, "the tracer saw too few points"


def test_hand_over_interrupted_anywhere_still_reaches_who_waits():
    number = 0
    while True:
        number += 1
        pool = threaded_pool(max_size=1)
        lease = pool.checkout()
        got = threading.Event()

        def wait(pool=pool, got=got):
            with pool.connection(timeout=30):
                got.set()

        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        until(lambda pool=pool: pool.get_stats().waiting == 1)
        struck = InterruptAt(number)
        try:
            with struck:
                lease.checkin()
        except KeyboardInterrupt as exc:
            kept = exc
            if lease.is_out:  # it had not begun
                lease.checkin()
        pool._keeper.wake()  # it looks once a second by itself
        assert got.wait(10), f"nobody was served after interrupt {number}"
        thread.join(10)
        until(lambda pool=pool: pool.get_stats().idle == 1)
        assert adds_up(pool.get_stats())
        pool.close()
        kept = None
        if not struck.has_struck:
            break
    assert kept is None
    assert number > 3, "the tracer saw too few points"  # how many there are depends on the other threads


def test_real_interrupts_lose_nothing_and_disturb_nobody_else():
    interrupted_in_a_process(count=100, seed=1)


def interrupted_in_a_process(count, seed, python=sys.executable):
    done = subprocess.run(
        [python, "-W", "error", "-m", "tests.unit.pool.interrupted_pool", str(count), str(seed)],
        capture_output=True,
        text=True,
        timeout=60 + count * 0.3,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{count} interrupts" in done.stdout
