"""A program that borrows from a pool while a signal handler does so too, at random moments, on the same thread.

``python -m tests.unit.pool.reentered_pool COUNT SEED``; it ends with 0 if nothing was shared, lost or stuck, and the
numbers add up.
"""

import contextlib
import faulthandler
import random
import signal
import sys
import threading
import time

from labkit.errors import PoolTimeout
from tests.unit.pool.still_pool import adds_up, threaded_pool

LIMIT = 20.0  # seconds for one borrower; the machine may be busy


def main(count, seed):
    faulthandler.dump_traceback_later(60 + count * 0.25, exit=True)
    rng, users, problems, over, seen = random.Random(seed), {}, [], threading.Event(), [0]
    pool = threaded_pool(max_size=4, min_size=4, timeout=LIMIT)
    pool.open(wait=True)

    def use(thing, who):
        if users.setdefault(thing, who) is not who:
            problems.append(f"{thing} is shared")
        if rng.random() < 0.05:
            thing.left.append("a channel")
        users.pop(thing, None)

    def arm():
        signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, 1e-3))

    def strike(*_):
        seen[0] += 1
        what = rng.randrange(6)
        with contextlib.suppress(PoolTimeout):
            if what == 0:
                pool.drain()
            elif what == 1:
                pool.check()
            elif what == 2 and not adds_up(pool.get_stats()):
                problems.append("the numbers do not add up")
            else:
                with pool.connection(timeout=0) as thing:
                    use(thing, object())
        if seen[0] < count:
            arm()

    def work():
        try:
            while not over.is_set():
                with pool.connection() as thing:
                    use(thing, object())
                time.sleep(0.0005)
        except BaseException as exc:
            problems.append(repr(exc))

    threads = [threading.Thread(target=work, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    signal.signal(signal.SIGALRM, strike)
    arm()
    while seen[0] < count and not problems:
        with pool.connection() as thing:
            use(thing, object())
        lease = pool.checkout()
        lease.checkin()
    signal.setitimer(signal.ITIMER_REAL, 0)
    over.set()
    for thread in threads:
        thread.join(LIMIT)
    problems += [f"{thread.name} is stuck" for thread in threads if thread.is_alive()]
    leases = [pool.checkout(timeout=LIMIT) for _ in range(4)]
    assert len({lease.connection for lease in leases}) == 4
    for lease in leases:
        lease.checkin()
    ends = time.monotonic() + LIMIT
    while pool.get_stats().idle < 4 and time.monotonic() < ends:
        time.sleep(0.01)
    stats = pool.get_stats()
    assert (stats.size, stats.idle, stats.leased, stats.waiting) == (4, 4, 0, 0), vars(stats)
    assert (stats.recovered, stats.interrupted) == (0, 0), vars(stats)
    assert adds_up(stats), vars(stats)
    assert not problems, problems
    pool.close()
    print(f"{seen[0]} signals, {stats.granted} checkouts")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
