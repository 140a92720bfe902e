"""The line before a pool: what borrowers and the pool's keeper may do, each in one turn under the lock.

First come, first served. No Pika, no threads, no I/O; how it survives interrupts: see ``labkit.pool.places``.
"""

import logging
from typing import TypeVar

from labkit.errors import LabkitError, PoolClosed, PoolTimeout, TooManyWaiting, describe
from labkit.pool.lease import Lease
from labkit.pool.places import Entry, HandOff, PoolWaiter
from labkit.pool.stats import Counters, PoolStats

LOGGER = logging.getLogger(__name__)
T = TypeVar("T")
NEVER = float("-inf")  # a time that is over
LOOKS = 100  # at numbers that a signal handler changes meanwhile
LIFETIME_JITTER = 0.05  # entries made together must not all end together


class WaitingLine(HandOff[T]):
    """The places of a pool, and the line before it. Thread-safe."""

    # The borrower's side. A lease that is not granted anything by an exception must be dropped by its maker.

    def enter(self, lease: Lease[T], *, is_final: bool = True) -> PoolWaiter[T] | None:
        """Grant *lease* an idle entry and return None, or return its place in the line.

        Args:
            lease: A new one.
            is_final: Whether a grant is the answer; False: :meth:`confirm` or :meth:`refuse` follows.

        Raises:
            PoolClosed: the pool is closed.
            TooManyWaiting: the line is full.
        """
        with self.lock:
            self.numbers += 1
            lease._number = self.numbers
            if self.waiters:
                self.audit()
            while not self.waiters and (entry := self.first_idle()) is not None:
                if self.lend(entry, lease, is_final=is_final):
                    if self.is_dozing:
                        self.wake()
                    return None
            waiter = PoolWaiter(lease)
            waiting = self.count_waiting() if self.max_waiting else 0
            self.turns += 1
            self.counters.entered += 1
            if self.is_closed:
                self.counters.closed += 1
                raise closed_error()
            if self.max_waiting and waiting >= self.max_waiting:
                self.counters.rejected += 1
                raise TooManyWaiting(
                    f"{waiting} callers are in the line already (max_waiting={self.max_waiting}); "
                    f"size {len(self.entries)} of {self.max_size}",
                    waiting=waiting,
                )
            self.counters.queued += 1
            self.is_refused = False
            self.waiters.append(waiter)
            self.serve()  # something may have come back meanwhile
            may_grow = self.is_dozing or len(self.entries) < self.max_size
        if may_grow:  # else the keeper has nothing to make, and who holds what it looks at by itself
            self.wake()
        return waiter

    def claim(
        self, lease: Lease[T], waiter: PoolWaiter[T], *, waited: float, timeout: float, is_final: bool = True
    ) -> None:
        """Take what was granted while *lease* was in the line, after its flag or its time is up.

        Args:
            lease: Whose turn it is.
            waiter: Its place in the line.
            waited: Seconds it was there.
            timeout: Seconds the caller had.
            is_final: As in :meth:`enter`.

        Raises:
            PoolTimeout: nothing was.
            PoolClosed: the pool was closed meanwhile.
            LabkitError: the broker refuses this client for good.
        """
        with self.lock:
            self.counters.wait_seconds += waited
            errors: tuple[LabkitError, LabkitError] | None = None
            now = self.now()
            while True:
                entry = lease._entry
                self.turns += 1
                if entry is not None and entry.owner is lease._me:
                    entry.waiter = None
                    entry.since = now
                    if is_final:
                        self.counters.granted += 1
                        entry.is_taken = True
                    return
                if errors is not None:
                    break
                errors = closed_error(), self._timeout(timeout, but=waiter)  # then it looks once more
            closed, late = errors
            error = closed if self.is_closed else waiter.error or late
            if error is late:
                self.counters.timeouts += 1
            elif error is closed or type(error) is PoolClosed:
                self.counters.closed += 1
            else:
                self.counters.rejected += 1
            lease._held.clear()  # nothing is granted to it from here on
            self.leave(waiter)
            raise error

    def confirm(self, lease: Lease[T]) -> None:
        """Let the borrower have what :meth:`enter` or :meth:`claim` has found: it was checked."""
        with self.lock:
            entry = lease._entry
            if entry is not None:
                self.turns += 1
                self.counters.granted += 1
                entry.is_taken = True

    def refuse(self, lease: Lease[T], reason: BaseException, *, late_after: float | None = None) -> PoolWaiter[T]:
        """Give up the entry that did not pass its check; return the place in the line that *lease* had.

        Args:
            lease: Whose it was.
            reason: What the check said.
            late_after: The caller's time is up, which were so many seconds: there will be no other check.

        Raises:
            PoolTimeout: so it is.
        """
        with self.lock:
            self.last_error = reason
            waiter = PoolWaiter(lease)
            entry = lease._entry
            self.turns += 1
            lease._thing = lease._entry = None
            if entry is not None:
                entry.expires = NEVER  # whoever finds it before it is discarded does not lend it
                entry.owner = None
                self.discard(entry, is_dead=True)
                self.is_flapping = True  # what is made again, and fails again, must not be made in haste
            if late_after is not None:
                late = self._timeout(late_after)
                self.counters.timeouts += 1
                lease._held.clear()
                raise late
            later = [n for n, each in enumerate(list(self.waiters)) if each.number > waiter.number]
            self.waiters.insert(later[0] if later else len(self.waiters), waiter)
            self.serve()
            if self.is_closed:
                waiter.error = closed_error()
                waiter.tell()
        self.wake()
        return waiter

    def take_back(self, lease: Lease[T], *, is_broken: bool = False) -> None:
        """Put back what *lease* held, or give it to who is next. Its token is taken already."""
        if self.is_inherited:
            return
        with self.lock:
            entry, now = lease._entry, self.now()
            if entry is None:
                return
            held, was_reported = now - entry.since, entry.is_reported
            if not self.release(entry, lease._me, now, is_used=True):  # the audit was quicker, or the pool is closed
                return
            if is_broken:
                self.discard(entry)
            else:
                self.offer(entry)
            is_soiled = entry.is_soiled
        if is_soiled:
            self.wake()
        if was_reported:
            LOGGER.warning("a lease that was out for too long came back after %.1f s", held)

    def drop(self, lease: Lease[T]) -> None:
        """Take back what an interrupted caller may have been granted; what it was given nobody has seen."""
        lease._held.clear()
        self.tidy()

    def tidy(self) -> None:
        """Recompute who holds what, now."""
        with self.lock:
            self.audit()
        self.wake()

    # The keeper's side.

    def reserve(self, *, is_extra: bool = False) -> Entry[T] | None:
        """Take a place for a new entry, if there is one and somebody needs it.

        Args:
            is_extra: Whether others are being made: then only for what is kept anyway, up to ``min_size``.
        """
        with self.lock:
            size = len(self.entries)
            connecting = self.count_connecting()
            if size >= self.min_size and (is_extra or self.count_waiting() <= connecting):
                return None
            entry: Entry[T] = Entry(self.generation)
            if self.is_closed or len(self.entries) >= self.max_size:
                return None
            self.turns += 1
            self.entries[entry] = None
            self.counters.peak = max(self.counters.peak, size + 1)
            return entry

    def attach(self, entry: Entry[T], thing: T) -> bool:
        """Say what is being made, so that :meth:`close` can end it; False if it is not wanted any more."""
        with self.lock:
            entry.thing = thing
            return entry in self.entries

    def fill(self, entry: Entry[T]) -> bool:
        """The entry was made: give it to who is next; False: the pool was closed meanwhile."""
        with self.lock:
            self.counters.created += 1
            self.last_error = None
            self.is_refused = False
            entry.born = entry.since = self.now()
            entry.expires = entry.born + self.max_lifetime * self.rng.uniform(1 - LIFETIME_JITTER, 1.0)
            entry.is_ready = True
            is_wanted = entry in self.entries
            if is_wanted:
                self.offer(entry)
            self.tell_watchers()
            return is_wanted

    def fail(self, entry: Entry[T], error: BaseException, *, is_final: bool) -> None:
        """The entry could not be made, so its place is free; *is_final*: nor could another.

        Then those in the line are told, unless there is an entry, or one is being made, that may come to serve them.
        """
        with self.lock:
            self.counters.failed += 1
            self.last_error = error
            self.discard(entry, is_dead=False)
            self.is_refused = is_final
            if is_final and not self.entries:
                self.dismiss(error)
            self.tell_watchers()
        self.wake()

    def take_soiled(self) -> list[Entry[T]]:
        """Return what came back and is to be made clean; :meth:`cleaned` follows for each."""
        with self.lock:
            soiled = [each for each in list(self.entries) if each.is_soiled and not each.is_cleaning]
            for entry in soiled:
                entry.is_cleaning = True
            return soiled

    def cleaned(self, entry: Entry[T], *, is_clean: bool, is_reset: bool = True) -> None:
        """The next borrower may have it, or it is given up: it could not be made clean, or not be reset."""
        with self.lock:
            entry.is_taken = entry.is_cleaning = entry.is_soiled = False
            if not is_reset:
                self.counters.reset_failures += 1
            if entry not in self.entries:  # the pool was closed meanwhile
                return
            if is_clean and is_reset:
                self.offer(entry)
            else:  # what was closed for its leftovers is not lost
                self.discard(entry, is_dead=entry.thing is not None and self._has_lost_link(entry.thing))

    def retire(self, max_idle: float) -> None:
        """Give up what is idle and dead, or past its lifetime; and the oldest that was idle too long."""
        with self.lock:
            self.audit()
            now = self.now()
            for entry in list(self.idle):
                spare = len(self.entries) > self.min_size and now - entry.since >= max_idle
                if entry.owner is None and (spare or not self.may_go_out(entry)):
                    self.discard(entry)

    def drain(self) -> None:
        """Have every present entry replaced: at once, or when it comes back."""
        with self.lock:
            self.generation += 1
        self.retire(float("inf"))
        self.wake()

    def resize(self, min_size: int, max_size: int) -> None:
        """Change the limits: what is too much goes at once, or when it comes back."""
        with self.lock:
            self.min_size, self.max_size = min_size, max_size
            self.tell_watchers()
        self.retire(float("inf"))
        self.wake()

    def take_idle(self, leases: list[Lease[T]]) -> None:
        """Lend out all that is idle, to be checked; each lease is in *leases* before it holds anything."""
        with self.lock:
            for entry in list(self.idle):
                lease: Lease[T] = Lease(None, self)
                leases.append(lease)
                if not self.lend(entry, lease, is_check=True):
                    leases.remove(lease)

    def close(self) -> None:
        """Hand out nothing any more, and give up what is not lent."""
        with self.lock:
            self.is_closed = True
            self.dismiss(closed_error())
            self.tell_watchers()
            for entry in list(self.entries):
                if entry.owner is None:
                    self.discard(entry, is_dead=False)
        self.wake()

    def seize(self) -> None:
        """Give up what is lent, too."""
        with self.lock:
            self.audit()
            for entry in list(self.entries):
                entry.owner = None
                self.discard(entry, is_dead=False)

    def stats(self, *, retired: int, is_reset: bool = False) -> PoolStats:
        """Return the numbers of this moment; with *is_reset* the counters begin again."""
        with self.lock:
            self.audit()
            for _ in range(LOOKS):  # until no signal handler has changed anything meanwhile
                turns, counted = self.turns, self.counters
                stats, waiting = self._numbers(retired, counted)
                fresh = Counters(entered=waiting, peak=stats.size)  # they are not answered yet
                if self.turns == turns:
                    if is_reset:
                        self.counters = fresh
                    break
            return stats

    def _numbers(self, retired: int, counted: Counters) -> tuple[PoolStats, int]:
        """Return the numbers, and how many requests have no answer yet."""
        entries = list(self.entries)
        leased = sum(1 for each in entries if each.owner is not None)
        connecting = sum(1 for each in entries if not each.is_ready or each.is_soiled)
        waiting = self.count_waiting() + sum(1 for each in entries if each.owner and not each.is_taken)
        requests = counted.entered - waiting
        answered = counted.granted + counted.timeouts + counted.rejected + counted.closed
        stats = PoolStats(
            size=len(entries),
            idle=len(entries) - leased - connecting,
            leased=leased,
            waiting=waiting,
            connecting=connecting,
            retired=retired,
            requests=requests,
            granted=counted.granted,
            timeouts=counted.timeouts,
            rejected=counted.rejected,
            closed=counted.closed,
            interrupted=requests - answered,
            queued=counted.queued,
            created=counted.created,
            failed=counted.failed,
            lost=counted.lost,
            leaks=counted.leaks,
            overdue=sum(1 for each in entries if each.owner is not None and each.is_reported),
            recovered=counted.recovered,
            leftovers=counted.leftovers,
            reset_failures=counted.reset_failures,
            peak=counted.peak,
            wait_seconds=counted.wait_seconds,
            use_seconds=counted.use_seconds,
        )
        return stats, waiting

    def _timeout(self, timeout: float, *, but: PoolWaiter[T] | None = None) -> PoolTimeout:
        idle, size = len(self.idle), len(self.entries)
        waiting = sum(1 for each in list(self.waiters) if each is not but and each.is_waiting())
        leased = self.count_lent()
        why = "" if self.last_error is None else f"; last connect error: {describe(self.last_error)}"
        error = PoolTimeout(
            f"nothing became free within {timeout:g} s: size {size} of {self.max_size}, idle {idle}, leased {leased}, "
            f"waiting {waiting}{why}",
            timeout=timeout,
            stats=PoolStats(size=size, idle=idle, leased=leased, waiting=waiting, connecting=size - idle - leased),
        )
        error.__cause__ = self.last_error
        return error


def closed_error() -> LabkitError:
    """Return the error for using a pool after its end."""
    return PoolClosed("the pool is closed; make a new one")
