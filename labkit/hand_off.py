"""Who holds what, and who is next: the core of a pool's hand-off. No Pika, no threads, no I/O; time is an argument.

An interrupt can come between any two steps of a borrower, under the lock too, so what the code *is about to do* is
never trusted. What counts is ``Entry.owner``, a weak reference to a lease, and the lease's token; each is changed in
one step that Python does not divide. From them :meth:`HandOff.audit` can always recompute who holds what. (That is
also why this is no ``threading.Condition``: interrupted inside one, a pool loses entries.)
"""

import logging
import random
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from labkit.guard import guard
from labkit.lease import Lease
from labkit.pool_stats import Counters

LOGGER = logging.getLogger(__name__)
T = TypeVar("T")
GIVEN_UP = -1  # no generation
YOUNG = 10.0  # seconds; an entry that dies younger than this counts as a failed attempt


class Entry(Generic[T]):
    """One place of the pool, and what is in it. Guarded by the line's lock.

    Attributes:
        thing: The connection or channel; None: it is not there yet.
        is_ready: Whether it was made; until then the place is taken, and nobody can have it.
        owner: Whose it is; None: nobody's.
        waiter: Who was granted it and has not taken it yet.
        is_taken: Whether its borrower has got it, and so may be using it.
        is_checked: Whether that is the pool itself, for :meth:`Pool.check`.
        is_reported: Whether the lease was reported for being out too long.
        generation: How many drains there were when it was begun.
        expires: When its lifetime ends.
        since: When it came to its owner; while nobody has it: when it came back.
    """

    __slots__ = (
        "born",
        "expires",
        "generation",
        "is_checked",
        "is_ready",
        "is_reported",
        "is_taken",
        "owner",
        "since",
        "thing",
        "waiter",
    )

    def __init__(self, generation: int) -> None:
        self.thing: T | None = None
        self.is_ready = False
        self.owner: weakref.ref[Lease[T]] | None = None
        self.waiter: Waiter[T] | None = None
        self.is_taken = False
        self.is_checked = False
        self.is_reported = False
        self.generation = generation
        self.born = self.expires = self.since = 0.0


class Waiter(Generic[T]):
    """A caller in the line. Its *flag* is a lock that is taken: acquiring it waits, in C, for an answer."""

    __slots__ = ("error", "flag", "number", "owner")

    def __init__(self, lease: Lease[T]) -> None:
        self.flag = threading.Lock()
        self.flag.acquire()
        self.owner = lease._me  # weak: a caller that was interrupted is gone
        self.number = lease._number
        self.error: BaseException | None = None

    def is_waiting(self) -> bool:
        """Whether the caller is there and has no answer yet."""
        lease = self.owner()
        is_there = lease is not None and lease._held and lease._entry is None
        lease = None  # a traceback may keep this frame
        return bool(is_there) and self.error is None


class HandOff(Generic[T]):
    """The places of a pool, and who waits for one. Every method is called with the lock held.

    Args:
        is_usable: Whether a thing still lives. Called under the lock: it must be cheap and do no I/O.
        is_clean: Whether another borrower may have it. Likewise.
        has_lost_link: Whether a thing that died was lost with its link: the next one may be, too. Likewise.
        now: The time, in seconds.
        rng: Where jitter comes from.

    Attributes:
        wake: Tells the pool's keeper that there is something to do; the pool sets it.
        ending: Things that were given up and whose goodbye has not ended.
        is_flapping: An entry died young since the keeper looked.
        is_refused: The broker refuses this client, and nobody has asked since.
        is_dozing: The keeper looks seldom, for nothing happens; a checkout wakes it.
        watchers: Locks to release when an entry was made, or could not be.
        last_error: Why the last attempt to make an entry failed; None: it did not.
    """

    def __init__(
        self,
        *,
        min_size: int,
        max_size: int,
        max_waiting: int,
        max_lifetime: float,
        is_usable: Callable[[T], bool],
        is_clean: Callable[[T], bool],
        has_lost_link: Callable[[T], bool],
        now: Callable[[], float],
        rng: random.Random,
    ) -> None:
        self.lock = guard()
        self.min_size, self.max_size, self.max_waiting = min_size, max_size, max_waiting
        self.max_lifetime = max_lifetime
        self.entries: dict[Entry[T], None] = {}  # a set that keeps its order
        self.idle: list[Entry[T]] = []  # the last one back is the first one out, so that what is too much grows old
        self.waiters: deque[Waiter[T]] = deque()
        self.ending: dict[T, None] = {}
        self.counters = Counters()
        self.is_closed = False
        self.is_inherited = False  # this is a child process, and the entries are the parent's
        self.is_flapping = False
        self.is_refused = False
        self.is_dozing = False
        self.watchers: list[threading.Lock] = []
        self.last_error: BaseException | None = None
        self.generation = 0
        self.numbers = 0
        self._is_usable = is_usable
        self._is_clean = is_clean
        self._has_lost_link = has_lost_link
        self.wake: Callable[[], None] = lambda: None
        self.now = now
        self.rng = rng

    def audit(self) -> int:
        """Recompute who holds what. Return how many leases are out."""
        self.idle = [each for each in self.idle if each.owner is None and each in self.entries]
        idle = set(self.idle)
        for entry in list(self.entries):
            if not entry.is_ready:
                continue
            if entry.owner is None:
                if entry not in idle:  # on its way from one place to another when an interrupt came
                    self.offer(entry)
                continue
            lease = entry.owner()
            is_out = lease is not None and lease._held
            is_forgotten = lease is None and entry.is_taken  # its borrower may still be using what it lent
            lease = None  # a traceback may keep this frame
            if is_out:
                if entry.waiter is not None and entry.waiter.flag.locked():
                    entry.waiter.flag.release()  # again: the first time may have been cut off
                continue
            if entry.is_taken and not is_forgotten:  # its borrower is giving it back at this moment
                self.count_use(entry)
            else:
                self.counters.recovered += 1
            entry.owner = None
            if is_forgotten:
                LOGGER.warning("a lease was forgotten without checkin(); what it lent is closed and replaced")
                self.discard(entry, is_dead=False)
            else:
                self.offer(entry)
        self.serve()
        return sum(1 for each in self.entries if each.owner is not None)

    def count_waiting(self) -> int:
        """Return how many are in the line."""
        return sum(1 for each in self.waiters if each.is_waiting())

    # Between two changes that belong together there is no call: an interrupt can only come at one.

    def first_idle(self) -> Entry[T] | None:
        """Return the idle entry to lend next, and give up those that cannot be lent; None: there is none."""
        if not self.idle:
            self.audit()
        while self.idle:
            entry = self.idle[-1]
            if entry.owner is None and self.may_go_out(entry):
                return entry
            if entry.owner is None:
                self.discard(entry)
            else:
                self.idle.pop()
        return None

    def may_go_out(self, entry: Entry[T]) -> bool:
        """Whether it may be lent: alive, not past its lifetime, not drained, not one too many."""
        if self.is_closed or entry.generation != self.generation or len(self.entries) > self.max_size:
            return False
        return entry.thing is not None and self.now() < entry.expires and self._is_usable(entry.thing)

    def grant(self, entry: Entry[T], lease: Lease[T], *, is_final: bool) -> None:
        """Lend an idle entry to a caller who need not wait."""
        entry.since = self.now()
        self.lend(entry, lease)
        if is_final:
            self.counters.granted += 1
            entry.is_taken = True

    def lend(self, entry: Entry[T], lease: Lease[T]) -> None:
        """Make *entry* the lease's."""
        entry.waiter = None
        entry.is_taken = entry.is_checked = entry.is_reported = False
        lease._thing = entry.thing
        lease._entry = entry
        entry.owner = lease._me
        self._forget_idle(entry)

    def count_use(self, entry: Entry[T]) -> float:
        """Count how long the entry that comes back was lent, and return it; a check is no use of it."""
        if entry.is_checked:
            return 0.0
        now = self.now()
        held, entry.since = now - entry.since, now
        self.counters.use_seconds += held
        return held

    def _forget_idle(self, entry: Entry[T]) -> None:
        if self.idle and self.idle[-1] is entry:
            self.idle.pop()
        elif entry in self.idle:
            self.idle.remove(entry)

    def offer(self, entry: Entry[T]) -> None:
        """Give an entry that nobody has to who is next; only then take that one from the line."""
        if not self.may_go_out(entry) or (entry.thing is not None and not self._is_clean(entry.thing)):
            self.discard(entry)
            return
        while self.waiters:
            waiter = self.waiters[0]
            if waiter.is_waiting():
                lease = waiter.owner()
                if lease is not None:
                    entry.is_taken = entry.is_checked = entry.is_reported = False
                    entry.waiter = waiter
                    lease._thing = entry.thing
                    lease._entry = entry
                    entry.owner = waiter.owner
                    del lease
                    waiter.flag.release()
                    self.waiters.popleft()
                    return
            self.waiters.popleft()
        if entry not in self.idle:
            self.idle.append(entry)

    def serve(self) -> None:
        """Give what is idle to those who wait."""
        while self.waiters and self.idle:
            entry = self.idle.pop()
            if entry.owner is None:
                self.offer(entry)
                if entry in self.idle:  # nobody in the line was there any more
                    return

    def discard(self, entry: Entry[T], *, is_dead: bool | None = None) -> None:
        """Give an entry up: its place is free, and what is in it will be closed by the keeper."""
        thing = entry.thing
        if is_dead is None:
            is_dead = thing is not None and not self._is_usable(thing)
        is_young = self.now() - entry.born < YOUNG
        if is_dead and thing is not None and entry.generation != GIVEN_UP:
            self.is_flapping = self.is_flapping or (is_young and self._has_lost_link(thing))
            self.counters.lost += 1
        entry.generation = GIVEN_UP
        if entry.is_ready:
            self.is_refused = False  # its place is free: who waits for it wants another try
        if thing is not None:
            self.ending[thing] = None
        self._forget_idle(entry)
        self.entries.pop(entry, None)
        self.wake()

    def dismiss(self, error: BaseException) -> None:
        """Tell everybody in the line that there will be nothing."""
        while self.waiters:
            waiter = self.waiters[0]
            if waiter.is_waiting():
                waiter.error = error
                waiter.flag.release()
            self.waiters.popleft()

    def tell_watchers(self) -> None:
        """Wake who waits for the pool to be filled."""
        for flag in self.watchers:
            flag.release()
        self.watchers = []
