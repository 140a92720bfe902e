"""The line before a pool: what borrowers and the pool's keeper may do, each in one turn under the lock.

First come, first served. No Pika, no threads, no I/O; how it stands any interrupt is in ``labkit.hand_off``.
"""

import logging
from collections import deque
from typing import TypeVar

from labkit.errors import LabkitError, PoolClosed, PoolTimeout, TooManyWaiting, describe
from labkit.hand_off import Entry, HandOff, Waiter
from labkit.lease import Lease
from labkit.pool_stats import Counters, PoolStats

LOGGER = logging.getLogger(__name__)
T = TypeVar("T")
LIFETIME_JITTER = 0.05  # entries made together must not all end together


class WaitingLine(HandOff[T]):
    """The places of a pool, and the line before it. Thread-safe."""

    # The borrower's side. A lease that is not granted anything by an exception must be dropped by its maker.

    def enter(self, lease: Lease[T], *, is_final: bool = True) -> Waiter[T] | None:
        """Grant *lease* an idle entry and return None, or return its place in the line.

        Args:
            lease: A new one.
            is_final: Whether a grant is the answer; False: :meth:`confirm` or :meth:`refuse` follows.

        Raises:
            PoolClosed: the pool is closed.
            TooManyWaiting: the line is full.
        """
        with self.lock:
            self.counters.entered += 1
            self.numbers += 1
            lease._number = self.numbers
            if self.is_closed:
                self.counters.closed += 1
                raise closed_error()
            if self.waiters:
                self.audit()
            entry = None if self.waiters else self.first_idle()
            if entry is not None:
                self.grant(entry, lease, is_final=is_final)
                if self.is_dozing:
                    self.wake()
                return None
            if self.max_waiting and self.count_waiting() >= self.max_waiting:
                self.counters.rejected += 1
                raise TooManyWaiting(
                    f"{self.count_waiting()} callers are in the line already (max_waiting={self.max_waiting}); "
                    f"size {len(self.entries)} of {self.max_size}",
                    waiting=self.count_waiting(),
                )
            self.counters.queued += 1
            self.is_refused = False
            waiter = Waiter(lease)
            self.waiters.append(waiter)
        self.wake()
        return waiter

    def claim(
        self, lease: Lease[T], waiter: Waiter[T], *, waited: float, timeout: float, is_final: bool = True
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
            entry = lease._entry
            if entry is not None and entry.owner is lease._me:
                entry.waiter = None
                entry.since = self.now()
                if is_final:
                    self.counters.granted += 1
                    entry.is_taken = True
                return
            error = closed_error() if self.is_closed else waiter.error
            if isinstance(error, PoolClosed):
                self.counters.closed += 1
            elif error is not None:
                self.counters.rejected += 1
            else:
                self.counters.timeouts += 1
            lease._held.clear()
            self.waiters = deque(each for each in self.waiters if each is not waiter)
            raise self._timeout(timeout) if error is None else error

    def confirm(self, lease: Lease[T]) -> None:
        """Let the borrower have what :meth:`enter` or :meth:`claim` has found: it was checked."""
        with self.lock:
            entry = lease._entry
            if entry is not None:
                self.counters.granted += 1
                entry.is_taken = True

    def refuse(self, lease: Lease[T], reason: BaseException, *, late_after: float | None = None) -> Waiter[T]:
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
            entry = lease._entry
            waiter = Waiter(lease)
            if late_after is None:
                later = (n for n, each in enumerate(self.waiters) if each.number > waiter.number)
                self.waiters.insert(next(later, len(self.waiters)), waiter)
            lease._thing = lease._entry = None
            if entry is not None:
                entry.owner = None
                self.discard(entry, is_dead=True)
                self.is_flapping = True  # what is made anew, and fails again, must not be made in haste
            if late_after is not None:
                self.counters.timeouts += 1
                raise self._timeout(late_after)
            self.serve()
            if self.is_closed:
                waiter.error = closed_error()
                waiter.flag.release()
        self.wake()
        return waiter

    def take_back(self, lease: Lease[T], *, is_broken: bool = False) -> None:
        """Put back what *lease* held, or give it to who is next. Its token is taken already."""
        if self.is_inherited:
            return
        with self.lock:
            entry = lease._entry
            if entry is None or entry.owner is not lease._me:  # the audit was quicker, or the pool is closed
                return
            held, was_reported = self.count_use(entry), entry.is_reported
            entry.owner = None
            if is_broken:
                self.discard(entry)
            else:
                self.offer(entry)
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

    def reserve(self) -> Entry[T] | None:
        """Take a place for a new entry, if there is one and somebody needs it."""
        with self.lock:
            size = len(self.entries)
            if self.is_closed or size >= self.max_size:
                return None
            connecting = sum(1 for each in self.entries if not each.is_ready)
            if size >= self.min_size and self.count_waiting() <= connecting:
                return None
            entry: Entry[T] = Entry(self.generation)
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

        Then those in the line hear of it, unless there is an entry that may come back to serve them.
        """
        with self.lock:
            self.counters.failed += 1
            self.last_error = error
            self.discard(entry, is_dead=False)
            self.is_refused = is_final
            if is_final and not any(each.is_ready for each in self.entries):
                self.dismiss(error)
            self.tell_watchers()
        self.wake()

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
                self.lend(entry, lease)
                entry.is_taken = entry.is_checked = True

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
        """Return the numbers of this moment; with *is_reset* the counters begin anew."""
        with self.lock:
            leased = self.audit()
            counted = self.counters
            waiting = self.count_waiting() + sum(1 for each in self.entries if each.owner and not each.is_taken)
            requests = counted.entered - waiting
            answered = counted.granted + counted.timeouts + counted.rejected + counted.closed
            stats = PoolStats(
                size=len(self.entries),
                idle=len(self.idle),
                leased=leased,
                waiting=waiting,
                connecting=sum(1 for each in self.entries if not each.is_ready),
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
                recovered=counted.recovered,
                peak=counted.peak,
                wait_seconds=counted.wait_seconds,
                use_seconds=counted.use_seconds,
            )
            if is_reset:
                self.counters = Counters(entered=waiting, peak=len(self.entries))  # they are not answered yet
            return stats

    def _timeout(self, timeout: float) -> PoolTimeout:
        idle, size = len(self.idle), len(self.entries)
        leased = sum(1 for each in self.entries if each.owner is not None)
        why = "" if self.last_error is None else f"; last connect error: {describe(self.last_error)}"
        error = PoolTimeout(
            f"nothing became free within {timeout:g} s: size {size} of {self.max_size}, idle {idle}, leased {leased}, "
            f"waiting {self.count_waiting()}{why}",
            timeout=timeout,
            stats=PoolStats(
                size=size, idle=idle, leased=leased, waiting=self.count_waiting(), connecting=size - idle - leased
            ),
        )
        error.__cause__ = self.last_error
        return error


def closed_error() -> LabkitError:
    """Return the error for using a pool after its end."""
    return PoolClosed("the pool is closed; make a new one")
