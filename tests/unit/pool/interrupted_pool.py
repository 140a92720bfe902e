"""A program that borrows from a pool, beside six other threads, and is interrupted at random moments.

``python -m tests.unit.pool.interrupted_pool COUNT SEED``; it ends with 0 if no entry was lost or shared, no other
thread got an error, and the numbers add up. Each interrupt's traceback is kept until the next one, as Jupyter keeps it.
"""

import faulthandler
import random
import signal
import sys
import threading
import time

from tests.unit.pool.still_pool import adds_up, threaded_pool

LIMIT = 20.0  # seconds for one borrower; the machine may be busy


class Interrupter:
    """Raises KeyboardInterrupt in the main thread, some time after it was armed."""

    def __init__(self, rng):
        self.rng = rng
        self.count = 0
        self.is_armed = False
        signal.signal(signal.SIGALRM, self._strike)

    def _strike(self, number, frame):
        if self.is_armed:
            self.is_armed = False
            self.count += 1
            raise KeyboardInterrupt

    def arm(self):
        self.is_armed = True
        signal.setitimer(signal.ITIMER_REAL, self.rng.uniform(1e-6, 2e-3))

    def disarm(self):
        self.is_armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)


def main(count, seed):
    faulthandler.dump_traceback_later(60 + count * 0.25, exit=True)
    rng = random.Random(seed)
    pool = threaded_pool(max_size=4, min_size=4, timeout=LIMIT)
    pool.open(wait=True)
    users, guard, problems, over = {}, threading.Lock(), [], threading.Event()

    def use(thing, who):
        with guard:
            if users.setdefault(thing, who) != who:
                problems.append(f"{thing} is shared")
        with guard:
            users.pop(thing, None)

    def work(who):
        try:
            while not over.is_set():
                with pool.connection() as thing:
                    use(thing, who)
                time.sleep(0.0005)
        except BaseException as exc:
            problems.append(repr(exc))

    threads = [threading.Thread(target=work, args=[number], daemon=True) for number in range(6)]
    for thread in threads:
        thread.start()
    interrupter = Interrupter(rng)
    kept = lease = None
    while interrupter.count < count and not problems:
        try:
            interrupter.arm()
            for _ in range(50):
                with pool.connection():
                    pass
            lease = pool.checkout()
            lease.checkin()
            interrupter.disarm()
        except KeyboardInterrupt as exc:
            kept = exc  # with all its frames, until the next one
            if lease is not None and lease.is_out:  # checkin() had not begun: it is still this borrower's
                lease.checkin()
    interrupter.disarm()
    over.set()
    for thread in threads:
        thread.join(LIMIT)
    problems += [f"{thread.name} is stuck" for thread in threads if thread.is_alive()]
    leases = [pool.checkout(timeout=LIMIT) for _ in range(4)]
    assert len({lease.connection for lease in leases}) == 4
    for lease in leases:
        lease.checkin()
    stats = pool.get_stats()
    assert (stats.size, stats.idle, stats.leased) == (4, 4, 0), vars(stats)
    assert adds_up(stats), vars(stats)
    assert stats.timeouts == 0, vars(stats)
    assert not problems, problems
    assert kept is not None
    pool.close()
    print(f"{interrupter.count} interrupts, {stats.granted} checkouts, {stats.recovered} leases recovered")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
