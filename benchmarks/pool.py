"""What a checkout and a checkin cost, beside other pools: ratios from one run.

    python benchmarks/pool.py [--quick] [--svg FILE] [--write]

``--write`` puts the table into docs/measured.md and the plot into docs/images; ``--svg`` the plot into a file.

Nobody connects to anything: each pool lends the same kind of empty object, so what is measured is the hand-off. Every
pool has four entries; each is measured in turn, several times, and the medians are compared, for a machine has moods.
A peer that is not installed is left out (kombu, oslo.messaging, psycopg_pool with psycopg, pika-pool). They promise
different things: queue.Queue is only the yardstick, neither checks nor counts nor grows.
"""

import argparse
import logging
import queue
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path

from report import bars

from labkit import BrokerSettings, ConnectionPool

ENTRIES = 4
THREADS = (1, 8, 64)
ROUNDS = 9
PAIRS = 20_000  # checkouts and checkins in one round, all threads together

Pair = Callable[[], object]


class Thing:
    """Open, until it is not."""

    is_open = True

    def channel(self) -> "Thing":
        """Return what pika-pool opens at once."""
        return self

    def close(self) -> None:
        """End it."""


class Things:
    """Makes them for labkit: a :class:`labkit.pool.keeper.Source`."""

    at_once = 1

    def make(self, begun: Callable[[Thing], bool]) -> Thing:
        thing = Thing()
        begun(thing)
        return thing

    def is_usable(self, thing: Thing) -> bool:
        return thing.is_open

    def footprint(self, _: Thing) -> object:
        return None

    def is_clean(self, _: Thing, __: object) -> bool:
        return True

    def leftovers(self, _: Thing, __: object) -> str:
        return ""

    def has_lost_link(self, _: Thing) -> bool:
        return False

    def reason(self, _: Thing) -> None:
        return None

    def begin_end(self, thing: Thing, _: float) -> None:
        thing.is_open = False

    def is_ended(self, thing: Thing) -> bool:
        return not thing.is_open


def labkit(leak_after: float | None = 60.0) -> Pair:
    pool = ConnectionPool(
        BrokerSettings(), min_size=ENTRIES, max_size=ENTRIES, timeout=60, leak_after=leak_after, _source=Things()
    )
    pool.open(wait=True)
    return lambda: pool.checkout().checkin()


def labkit_without_leak_reports() -> Pair:
    return labkit(leak_after=None)


def standard_queue() -> Pair:
    things: queue.Queue[Thing] = queue.Queue()
    for _ in range(ENTRIES):
        things.put(Thing())
    return lambda: things.put(things.get(timeout=60))


def kombu() -> Pair:
    from kombu import Connection

    pool = Connection("memory://").Pool(ENTRIES)  # what it lends connects when it is used
    return lambda: pool.acquire(block=True, timeout=60).release()


def oslo() -> Pair:
    from oslo_messaging._drivers.pool import Pool as OsloPool

    class Pool(OsloPool):
        def create(self, **_: object) -> Thing:
            return Thing()

    logging.getLogger("oslo_messaging").setLevel(logging.ERROR)  # it warns of every wait: that is no hand-off
    pool = Pool(max_size=ENTRIES)
    return lambda: pool.put(pool.get())


def psycopg_pool() -> Pair:
    from psycopg import Connection
    from psycopg.pq import ConnStatus, TransactionStatus
    from psycopg_pool import ConnectionPool as PsycopgPool

    class Wire:
        status, transaction_status = ConnStatus.OK, TransactionStatus.IDLE

    class Fake(Connection):
        def __init__(self) -> None:
            self.pgconn = Wire()
            self._pool = None

        closed = broken = False

        @classmethod
        def connect(cls, *_: object, **__: object) -> "Fake":
            return cls()

        def close(self) -> None: ...
        def __del__(self) -> None: ...

    pool = PsycopgPool("", connection_class=Fake, min_size=ENTRIES, max_size=ENTRIES, timeout=60, open=True)
    pool.wait(30)
    return lambda: pool.putconn(pool.getconn())


def pika_pool() -> Pair:
    import pika_pool as peer

    pool = peer.QueuedPool(create=Thing, max_size=ENTRIES, max_overflow=0, timeout=60, recycle=3600, stale=3600)
    return lambda: pool.acquire().release()


WAYS = {
    "queue.Queue": standard_queue,
    "labkit": labkit,
    "labkit, leak_after=None": labkit_without_leak_reports,
    "kombu": kombu,
    "oslo.messaging": oslo,
    "psycopg_pool": psycopg_pool,
    "pika-pool": pika_pool,
}


def seconds(pair: Pair, threads: int, pairs: int) -> float:
    """Return the wall-clock seconds of one checkout and checkin, with so many threads at it."""
    share = max(1, pairs // threads)
    start = threading.Barrier(threads + 1)

    def work() -> None:
        start.wait()
        for _ in range(share):
            pair()

    workers = [threading.Thread(target=work, daemon=True) for _ in range(threads)]
    for worker in workers:
        worker.start()
    start.wait()
    began = time.perf_counter()
    for worker in workers:
        worker.join()
    return (time.perf_counter() - began) / (share * threads)


def measure(rounds: int, pairs: int) -> dict[str, list[float]]:
    """Return each pool's medians, one for each number of threads."""
    pools: dict[str, Pair] = {}
    for name, make in WAYS.items():
        try:
            pools[name] = make()
            pools[name]()
        except ImportError as exc:
            print(f"{name} is left out: {exc}")
    found: dict[str, list[float]] = {name: [] for name in pools}
    for threads in THREADS:
        taken: dict[str, list[float]] = {name: [] for name in pools}
        for _ in range(rounds):
            for name, pair in pools.items():
                taken[name].append(seconds(pair, threads, pairs))
        for name, each in taken.items():
            found[name].append(statistics.median(each))
    return found


def plot(found: dict[str, list[float]]) -> str:
    """Return a bar for each pool and number of threads, as wide as its time: an SVG."""
    groups = {
        f"{threads} threads": {name: each[i] for name, each in found.items()} for i, threads in enumerate(THREADS)
    }
    return bars(groups, lambda seconds: f"{seconds * 1e6:.1f} µs")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small counts: does it run?")
    parser.add_argument("--svg", type=Path, help="where to save the plot")
    parser.add_argument("--write", action="store_true", help="keep the table and the plot in docs/")
    options = parser.parse_args()
    found = measure(1 if options.quick else ROUNDS, 640 if options.quick else PAIRS)
    rows = []
    for name, each in found.items():
        ratios = [
            f"{one * 1e6:.1f} µs ({one / base:.2f})" for one, base in zip(each, found["queue.Queue"], strict=True)
        ]
        rows.append([name, *ratios])
        print(f"{name:24} " + "  ".join(f"{ratio:>20}" for ratio in ratios))
    print("microseconds for one checkout and checkin, all threads together, and (times queue.Queue)")
    if options.svg is not None:
        options.svg.write_text(plot(found))
    if options.write:
        from tests.soak.measured import PAGE, write_table

        write_table("pool", ["pool", *(f"threads: {count}" for count in THREADS)], rows)
        (PAGE.parent / "images" / "pool-cost.svg").write_text(plot(found))


if __name__ == "__main__":
    main()
