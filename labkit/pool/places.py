"""Bookkeeping: which lease holds which entry, and which waiter is next. No Pika, threads or I/O; time is an argument.

An interrupt can come between any two steps of a borrower, under the lock too, so what the code *is about to do* is
never trusted. What counts is ``Entry.owner``, a weak reference to a lease, and the lease's token; each is changed in
one step that Python does not divide. From them :meth:`HandOff.audit` can always recompute who holds what. (That is
also why this is no ``threading.Condition``: interrupted inside one, a pool loses entries.)

Nor is what the code *has found out* trusted after a call: a signal handler or a finalizer can come there, take the lock
that its own thread has, and lend, take back or give up any entry. So who changes an entry's owner looks at it once
more, with no call in between; and what is gone through is gone through as a copy.
"""

import contextlib
import logging
import random
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from labkit.concurrency.bell import Bell
from labkit.concurrency.guard import guard
from labkit.connection.mailbox import Mailbox
from labkit.pool.lease import Frames, Lease
from labkit.pool.stats import Counters

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
        is_soiled: Whether the keeper is to make it clean, and nobody can have it until then.
        is_cleaning: Whether the keeper has begun to.
        before: What there was of it when it was lent, as its source says.
        frames: Where it was checked out.
        left: What its last borrower left, in words; "": nothing.
        resetter: Where its ``reset`` runs: one that hangs holds up no other.
        generation: How many drains there were when it was begun.
        expires: When its lifetime ends.
        since: When it came to its owner; while nobody has it: when it came back.
    """

    __slots__ = (
        "before",
        "born",
        "expires",
        "frames",
        "generation",
        "is_checked",
        "is_cleaning",
        "is_ready",
        "is_reported",
        "is_soiled",
        "is_taken",
        "left",
        "owner",
        "resetter",
        "since",
        "thing",
        "waiter",
    )

    def __init__(self, generation: int) -> None:
        self.thing: T | None = None
        self.is_ready = False
        self.owner: weakref.ref[Lease[T]] | None = None
        self.waiter: PoolWaiter[T] | None = None
        self.is_taken = False
        self.is_checked = False
        self.is_reported = False
        self.is_soiled = False
        self.is_cleaning = False
        self.before: object = None
        self.frames: Frames = ()
        self.left = ""
        self.resetter: Mailbox | None = None
        self.generation = generation
        self.born = self.expires = self.since = 0.0


class PoolWaiter(Generic[T]):
    """A caller in the line. Its *flag* is a lock that is taken: acquiring it waits, in C, for an answer."""

    __slots__ = ("error", "flag", "number", "owner")

    def __init__(self, lease: Lease[T]) -> None:
        self.flag = threading.Lock()
        self.flag.acquire()
        self.owner = lease._me  # weak: a caller that was interrupted is gone
        self.number = lease._number
        self.error: BaseException | None = None

    def tell(self) -> None:
        """Wake the caller. Twice is fine."""
        try:  # noqa: SIM105 - as in Bell
            self.flag.release()
        except RuntimeError:  # it was told already
            pass

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
        footprint: What there is of a thing; what is added to that while it is lent is a leftover. Likewise.
        is_clean: Whether another borrower may have it, who would meet no more than that footprint. Likewise.
        leftovers: What its borrower has left beyond that, in words. Likewise.
        has_reset: Whether there is a function to be called after each lease.
        has_lost_link: Whether a thing that died was lost with its link: the next one may be, too. Likewise.
        now: The time, in seconds.
        rng: Where jitter comes from.

    Attributes:
        wake: Tells the pool's keeper that there is something to do; the pool sets it.
        ending: Things that were given up and whose close handshake has not ended.
        is_flapping: An entry died young since the keeper looked.
        is_refused: The broker refuses this client, and nobody has asked since.
        is_dozing: The keeper looks seldom, for nothing happens; a checkout wakes it.
        forgotten: How many leases were found forgotten and not yet reported: nothing is logged under the lock.
        turns: How often something has changed.
        watchers: Rung when an entry was made, or could not be.
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
        footprint: Callable[[T], object],
        is_clean: Callable[[T, object], bool],
        leftovers: Callable[[T, object], str],
        has_reset: bool,
        has_lost_link: Callable[[T], bool],
        now: Callable[[], float],
        rng: random.Random,
    ) -> None:
        self.lock = guard()
        self.min_size, self.max_size, self.max_waiting = min_size, max_size, max_waiting
        self.max_lifetime = max_lifetime
        self.entries: dict[Entry[T], None] = {}  # a set that keeps its order
        self.idle: list[Entry[T]] = []  # the last one back is the first one out, so that what is too much grows old
        self.waiters: deque[PoolWaiter[T]] = deque()
        self.ending: dict[T, None] = {}
        self.counters = Counters()
        self.is_closed = False
        self.is_inherited = False  # this is a child process, and the entries are the parent's
        self.is_flapping = False
        self.is_refused = False
        self.is_dozing = False
        self.forgotten = 0
        self.turns = 0
        self.watchers: list[Bell] = []
        self.last_error: BaseException | None = None
        self.generation = 0
        self.numbers = 0
        self._is_usable = is_usable
        self._footprint = footprint
        self._is_clean = is_clean
        self._leftovers = leftovers
        self._has_reset = has_reset
        self._has_lost_link = has_lost_link
        self.wake: Callable[[], None] = lambda: None
        self.now = now
        self.rng = rng

    def audit(self) -> int:
        """Recompute who holds what. Return how many leases are out."""
        self.idle = [each for each in list(self.idle) if each.owner is None and each in self.entries]
        idle = set(self.idle)
        for entry in list(self.entries):
            if not entry.is_ready:
                continue
            owner = entry.owner
            if owner is None:
                if entry not in idle and not entry.is_soiled:  # on its way to another place when an interrupt came
                    self.offer(entry)
                continue
            lease = owner()
            is_out = lease is not None and lease._held
            is_forgotten = lease is None and entry.is_taken  # its borrower may still be using what it lent
            lease = None  # a traceback may keep this frame
            if is_out:
                waiter = entry.waiter
                if waiter is not None:
                    waiter.tell()  # again: the first time may have been cut off
                continue
            is_recovered = is_forgotten or not entry.is_taken  # else its borrower is giving it back at this moment
            if not self.release(entry, owner, self.now(), is_used=not is_recovered):
                continue
            if is_recovered:
                self.counters.recovered += 1
            if is_forgotten:
                self.forgotten += 1
                self.discard(entry, is_dead=False)
            else:
                self.offer(entry)
        self.serve()
        return self.count_lent()

    def count_lent(self) -> int:
        """Return how many entries have an owner."""
        return sum(1 for each in list(self.entries) if each.owner is not None)

    def count_waiting(self) -> int:
        """Return how many are in the line."""
        return sum(1 for each in list(self.waiters) if each.is_waiting())

    def count_connecting(self) -> int:
        """Return how many are being made, or made clean: they will serve somebody soon."""
        return sum(1 for each in list(self.entries) if not each.is_ready or each.is_soiled)

    # Between two changes that belong together, and between them and the look that allows them, there is no call.

    def first_idle(self) -> Entry[T] | None:
        """Return the idle entry to lend next, and give up those that cannot be lent; None: there is none."""
        if not self.idle:
            self.audit()
        while self.idle:
            entry = self.idle[-1]
            if entry.owner is None and not entry.is_soiled:
                if self.may_go_out(entry):
                    return entry
                self.discard(entry)
            self._forget_idle(entry)
        return None

    def may_go_out(self, entry: Entry[T]) -> bool:
        """Whether it may be lent: alive, not past its lifetime, not drained, not one too many."""
        if self.is_closed or entry.generation != self.generation or len(self.entries) > self.max_size:
            return False
        return entry.thing is not None and self.now() < entry.expires and self._is_usable(entry.thing)

    def lend(self, entry: Entry[T], lease: Lease[T], *, is_final: bool = False, is_check: bool = False) -> bool:
        """Make *entry* the lease's; False: it is not to be had any more.

        Args:
            entry: An idle one.
            lease: A new one, of a caller who has not been counted yet.
            is_final: Whether that is the answer to the caller; else :meth:`WaitingLine.confirm` follows.
            is_check: Whether it is the pool itself that looks at what is idle.
        """
        now = self.now()
        before = None if entry.thing is None else self._footprint(entry.thing)
        if entry.owner is not None or entry.is_soiled or entry.generation != self.generation or self.is_closed:
            return False
        entry.waiter = None
        entry.is_checked = is_check
        entry.is_taken = is_check or is_final
        entry.is_reported = False
        entry.before, entry.frames, entry.since = before, lease._frames, entry.since if is_check else now
        lease._thing = entry.thing
        lease._entry = entry
        entry.owner = lease._me
        if not is_check:
            self.counters.entered += 1
            self.counters.granted += is_final
        self.turns += 1
        self._forget_idle(entry)
        return True

    def release(self, entry: Entry[T], owner: weakref.ref[Lease[T]], now: float, *, is_used: bool) -> bool:
        """Take *entry* from *owner*, and count how long that had it; False: it has not got it any more."""
        if entry.owner is not owner:
            return False
        if is_used and not entry.is_checked:  # a check does not count as use
            self.counters.use_seconds += now - entry.since
            entry.since = now
        entry.owner = None
        self.turns += 1
        return True

    def _forget_idle(self, entry: Entry[T]) -> None:
        if self.idle and self.idle[-1] is entry:
            self.idle.pop()
        elif entry in self.idle:
            self.idle.remove(entry)

    def offer(self, entry: Entry[T]) -> None:
        """Give an entry that nobody has to who is next; only then take that one from the line."""
        if not self.may_go_out(entry):
            self.discard(entry)
            return
        if entry.is_taken and self.is_left_soiled(entry):
            return
        while self.waiters:
            waiter = self.waiters[0]
            before = None if entry.thing is None else self._footprint(entry.thing)
            lease = waiter.owner()
            if entry.owner is not None or entry.is_soiled or entry.generation != self.generation:
                return
            if lease is not None and lease._held and lease._entry is None and waiter.error is None:
                entry.is_taken = entry.is_checked = entry.is_reported = False
                entry.waiter = waiter
                entry.before, entry.frames = before, lease._frames
                lease._thing = entry.thing
                lease._entry = entry
                entry.owner = waiter.owner
                self.turns += 1
                del lease
                self._forget_idle(entry)
                waiter.tell()
                self.leave(waiter)
                return
            lease = None
            self.leave(waiter)
        if entry.owner is None and not entry.is_soiled and entry in self.entries and entry not in self.idle:
            entry.is_taken = False
            self.idle.append(entry)

    def is_left_soiled(self, entry: Entry[T]) -> bool:
        """Whether what comes back from a borrower has to be made clean first; if so, the keeper is told."""
        thing = entry.thing
        if thing is None or (
            self._is_clean(thing, entry.before)
            and (entry.is_checked or not self._has_reset)  # a check does not count as use
        ):
            return False
        left = self._leftovers(thing, entry.before)
        if entry.owner is not None or entry.is_soiled:
            return True
        entry.left, entry.is_soiled = left, True
        if left:
            self.counters.leftovers += 1
        self.wake()
        return True

    def leave(self, waiter: PoolWaiter[T]) -> None:
        """Take *waiter* from the line."""
        with contextlib.suppress(ValueError):  # it has left
            self.waiters.remove(waiter)

    def serve(self) -> None:
        """Give what is idle to those who wait."""
        while self.waiters and self.idle:
            entry = self.idle.pop()
            if entry.owner is None:
                self.offer(entry)
                if entry in self.idle:  # nobody in the line was there any more
                    return

    def discard(self, entry: Entry[T], *, is_dead: bool | None = None) -> None:
        """Give up an entry that nobody has: its place is free, and what is in it will be closed by the keeper."""
        thing = entry.thing
        if is_dead is None:
            is_dead = thing is not None and not self._is_usable(thing)
        is_loss = is_dead and thing is not None
        is_young = self.now() - entry.born < YOUNG
        is_flapping = is_loss and is_young and thing is not None and self._has_lost_link(thing)
        if entry.owner is not None:
            return
        if entry.generation != GIVEN_UP and is_loss:
            self.is_flapping = self.is_flapping or is_flapping
            self.counters.lost += 1
        entry.generation = GIVEN_UP
        if entry.is_ready:
            self.is_refused = False  # its place is free: who waits for it wants another try
        if thing is not None:
            self.ending[thing] = None
        self.turns += 1
        self.entries.pop(entry, None)
        self._forget_idle(entry)
        self.wake()

    def dismiss(self, error: BaseException) -> None:
        """Tell everybody in the line that there will be nothing."""
        while self.waiters:
            waiter = self.waiters[0]
            if waiter.is_waiting():
                waiter.error = error
                waiter.tell()
            self.leave(waiter)

    def tell_watchers(self) -> None:
        """Wake who waits for the pool to be filled."""
        watchers, self.watchers = self.watchers, []
        for bell in watchers:
            bell.ring()
