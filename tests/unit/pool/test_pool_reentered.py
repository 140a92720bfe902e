"""A signal handler, or a finalizer, that uses the pool amid one of the pool's own steps, at each of them.

It runs on the thread that it interrupts, which may have the pool's lock: it can neither wait for that nor be kept out.
"""

import contextlib
import signal
import subprocess
import sys

import pytest

from labkit.errors import PoolClosed, PoolTimeout
from tests.unit.pool.still_pool import adds_up, still_pool
from tests.unit.striking import files_of, struck_everywhere

PARTS = files_of("pool.connections", "pool.base", "pool.lease", "pool.line", "pool.places", "concurrency.guard")


class Used:
    """An open pool, and what was borrowed of it and not given back."""

    def __init__(self, size=3, **options):
        self.pool = still_pool(min_size=size, max_size=size, **options)
        self.pool.open()
        self.pool.keeper.works = False  # that would be another thread
        self.out = []

    def borrow(self):
        self.out.append(self.pool.checkout())

    def give_back(self):
        self.out.pop(0).checkin()

    def stand(self):
        """Nothing is shared while it is lent, and everything comes back."""
        pool = self.pool
        assert len({lease.connection for lease in self.out}) == len(self.out), "lent twice"
        assert pool.is_closed or not any(lease.connection in pool._line.ending for lease in self.out), "ended"
        stats = pool.get_stats()
        assert adds_up(stats), vars(stats)
        assert (stats.leased, stats.waiting) == (0 if pool.is_closed else len(self.out), 0), vars(stats)
        while self.out:
            self.give_back()
        pool.keeper.works = True
        for _ in range(3):  # one that died young is not replaced in haste
            pool.clock.time += 60
            pool.step()
        stats = pool.get_stats()
        assert adds_up(stats), vars(stats)
        assert stats.leased == 0
        if pool.is_closed:
            pool.close(timeout=0)
            assert pool.things.open_now == []
            return
        assert (stats.size, stats.idle) == (pool.max_size, pool.max_size), vars(stats)
        assert len(pool.things.open_now) == pool.max_size
        leases = [pool.checkout() for _ in range(pool.max_size)]
        assert len({lease.connection for lease in leases}) == pool.max_size


def borrow(used):
    used.borrow()


def use(used):
    with used.pool.connection():
        pass


def leave_something(used):
    with used.pool.connection() as thing:
        thing.left.append("a channel")


def give_back(used):
    if used.out:
        used.give_back()


def ask_in_vain(used):
    with contextlib.suppress(PoolTimeout, PoolClosed):
        for _ in range(4):
            used.borrow()


def let_one_die(used):
    used.pool.things.open_now[-1].die()
    used.pool._line.retire(1000)


def look_after(used):
    used.pool.check()
    used.pool.pop_stats()
    used.pool.drain()
    used.pool.resize(3, 3)


def ask_for_numbers(used):
    assert adds_up(used.pool.get_stats())


def close(used):
    used.pool.close(timeout=0)


def begin_with_two_out():
    used = Used()
    used.borrow()
    used.borrow()
    return used


@pytest.mark.parametrize(
    "strike", [borrow, use, give_back, ask_in_vain, ask_for_numbers, let_one_die, look_after, close]
)
@pytest.mark.parametrize("act", [borrow, use, leave_something, give_back, ask_in_vain, look_after])
def test_a_handler_that_uses_the_pool_amid_any_step_of_its_neither_loses_nor_shares_anything(act, strike):
    def acting(used):
        # The handler has taken what was left, or closed the pool; or finds that this one has taken it.
        with contextlib.suppress(PoolTimeout, PoolClosed):
            act(used)

    for used, raised in struck_everywhere(begin_with_two_out, acting, strike, PARTS, at_least=10):
        if raised is not None:
            raise raised
        used.stand()


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timer that interrupts on this system")
def test_real_signals_whose_handler_uses_the_pool_lose_share_and_hang_nothing():
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.unit.pool.reentered_pool", "300", "1"],
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "300 signals" in done.stdout
