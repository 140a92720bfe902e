"""A pool without a broker and without threads: things that are only open or not, and upkeep in the caller's thread."""

import threading

from labkit.errors import ConnectError
from labkit.pool.connections import ConnectionPool
from labkit.pool.keeper import Keeper
from labkit.retry import Backoff, FakeClock


class Thing:
    """What the pool holds here."""

    def __init__(self, number):
        self.number = number
        self.is_open = False
        self.left = []
        self.can_be_cleaned = True
        self.reason = None

    def __repr__(self):
        return f"Thing({self.number})"

    def die(self, reason=None):
        self.is_open, self.reason = False, reason


class Things:
    """Makes them, refuses to while ``error`` is set, and keeps what it made."""

    at_once = 3

    def __init__(self):
        self.made = []
        self.error = None
        self.while_opening = lambda: None
        self.cleans_later = False
        self.to_clean = []

    def make(self, begun):
        thing = Thing(len(self.made) + 1)
        self.made.append(thing)
        begun(thing)
        self.while_opening()
        if self.error is not None:
            raise self.error
        thing.is_open = True
        return thing

    def is_usable(self, thing):
        return thing.is_open

    def footprint(self, thing):
        return len(thing.left)

    def is_clean(self, thing, before):
        return len(thing.left) == before

    def leftovers(self, thing, before):
        return ", ".join(thing.left[before:])

    def begin_cleaning(self, thing, before, timeout, done):
        def end():
            del thing.left[before:]
            done(thing.is_open and thing.can_be_cleaned)

        if self.cleans_later:
            self.to_clean.append(end)
        else:
            end()

    def has_lost_link(self, thing):
        return not thing.is_open

    def reason(self, thing):
        return thing.reason

    def begin_end(self, thing, timeout):
        thing.is_open = False

    def is_ended(self, thing):
        return not thing.is_open

    @property
    def open_now(self):
        return [each for each in self.made if each.is_open]


class StillKeeper(Keeper):
    """Works when it is woken, in the thread that wakes it; nothing happens in between."""

    works = True
    _is_working = False

    def start(self):
        self.wake()

    def wake(self):
        super().wake()
        if self.works and not self._is_working and not self._is_in_a_turn():
            self._is_working = True
            try:
                for _ in range(10):  # each step makes one entry at most
                    self.step()
            finally:
                self._is_working = False

    def _is_in_a_turn(self):
        return self._line.lock._is_owned()

    def _hand_over(self, maker, task):
        # A thread of its own: the traceback of an error in there must not hold the borrower's frames.
        thread = threading.Thread(target=task)
        thread.start()
        thread.join()
        return True


class StillPool(ConnectionPool):
    _keeper_type = StillKeeper

    @property
    def keeper(self):
        return self._keeper

    def step(self):
        self._keeper.wake()


def still_pool(**options):
    """A still pool; its source is ``pool.things``, its clock ``pool.clock``."""
    things, clock = Things(), FakeClock()
    options = {"timeout": 0.0, "_backoff": Backoff(jitter="none"), **options}
    pool = StillPool(None, _source=things, _clock=clock, **options)
    pool.things, pool.clock = things, clock
    return pool


def threaded_pool(**options):
    """A pool with its own threads and the system's clock, over the same things."""
    things = Things()
    options = {"timeout": 10.0, "_backoff": Backoff(initial=0.01, maximum=0.05), **options}
    pool = ConnectionPool(None, _source=things, **options)
    pool.things = things
    return pool


def adds_up(stats):
    """Whether a snapshot's numbers do (guarantee G14)."""
    outcomes = stats.granted + stats.timeouts + stats.rejected + stats.closed + stats.interrupted
    return (
        stats.size == stats.idle + stats.leased + stats.connecting
        and stats.requests == outcomes
        and min(vars(stats).values()) >= 0
    )


def in_threads(count, function):
    """Run *function* in so many threads; return them."""
    threads = [threading.Thread(target=function, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads


class NotThereYet(ConnectError):  # noqa: N818 - as labkit's own
    """A broker that is not there yet: worth a retry."""
