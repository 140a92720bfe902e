"""What all pools do, whatever they hold: open, lend, take back, check, drain, resize, count, close."""

import atexit
import copy
import os
import random
import threading
import time
import weakref
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from labkit.concurrency.bell import Bell
from labkit.connection.io_thread import SHARED
from labkit.errors import LabkitError, LeaseError, PoolTimeout, describe
from labkit.pool.keeper import Keeper, Source
from labkit.pool.lease import Borrowed, Lease, call_site
from labkit.pool.line import WaitingLine, closed_error
from labkit.pool.options import PoolOptions, check_sizes
from labkit.pool.stats import PoolStats
from labkit.printable import a_type
from labkit.retry import Backoff, Clock, Pauses, SystemClock
from labkit.values import checked_flag, checked_number

T = TypeVar("T")
CLOSE_TIMEOUT = 5.0  # seconds
CLOSE_SHARE = 0.2  # part of a close's time that is kept for the broker's answers
LOOK = 0.02  # seconds between two looks while a close waits


class Pool(Generic[T]):
    """The verbs of a pool, without what it lends. Thread-safe."""

    _keeper_type: type[Keeper[Any]] = Keeper

    def __init__(
        self,
        source: Source[T],
        options: PoolOptions[T],
        *,
        backoff: Backoff = Backoff(),  # noqa: B008 - frozen
        clock: Clock = SystemClock(),  # noqa: B008 - holds nothing
    ) -> None:
        self.timeout = float(options.timeout)
        self._source = source
        self._options = options
        self._sizes = (options.min_size, options.max_size)
        self._backoff, self._clock = backoff, clock
        self._rng = random.Random()
        self._in_child: Callable[[], None] = lambda: None  # what else is the parent's
        self._begin()
        _ALL.add(self)

    def _begin(self) -> None:
        """Be new: nothing is held, and nobody waits."""
        self._is_open = False
        source, options, (min_size, max_size) = self._source, self._options, self._sizes
        self._line: WaitingLine[T] = WaitingLine(
            min_size=min_size,
            max_size=max_size,
            max_waiting=options.max_waiting,
            max_lifetime=options.max_lifetime,
            is_usable=source.is_usable,
            footprint=source.footprint,
            is_clean=source.is_clean,
            leftovers=source.leftovers,
            has_reset=options.reset is not None,
            has_lost_link=source.has_lost_link,
            now=self._clock.now,
            rng=self._rng,
        )
        self._keeper: Keeper[T] = self._keeper_type(
            self._line,
            source,
            self,
            pauses=Pauses(self._backoff, clock=self._clock, rng=self._rng),
            clock=self._clock,
            options=options,
        )
        self._line.wake = self._keeper.wake

    def __repr__(self) -> str:
        line = self._line
        state = "closed" if line.is_closed else "open" if self._is_open else "new"
        now = self.get_stats()
        return (
            f"{type(self).__name__}({state}, size {now.size} of {line.max_size}, idle {now.idle}, "
            f"leased {now.leased}, waiting {now.waiting})"
        )

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    @property
    def min_size(self) -> int:
        """Entries that are kept even if nobody needs them."""
        return self._line.min_size

    @property
    def max_size(self) -> int:
        """Entries that there are at most."""
        return self._line.max_size

    @property
    def is_closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._line.is_closed

    def open(self, *, wait: bool = False, timeout: float = 30.0) -> None:
        """Begin to make ``min_size`` entries in the background. The first use of the pool does this, too.

        Args:
            wait: Return when they are there.
            timeout: Seconds to wait for that.

        Raises:
            PoolTimeout: they are not there in time; ``__cause__`` is why the last attempt failed.
            AuthenticationFailed, AccessRefused, TlsError: the broker refuses this client, so it is no use to wait.
            PoolClosed: it was closed; make a new one.
        """
        checked_flag("wait", wait)
        checked_number("timeout", timeout)
        if self._line.is_closed:
            raise closed_error()
        if not self._is_open:
            self._keeper.start()
            self._is_open = True  # only then: the start may be interrupted
        elif wait:
            self._line.is_refused = False  # somebody asks again
            self._keeper.wake()
        if wait:
            self._keeper.may_wait()
            self._wait_until_filled(timeout)

    def checkout(self, *, timeout: float | None = None) -> Lease[T]:
        """Borrow one, first come, first served; give it back with ``lease.checkin()``.

        Args:
            timeout: Seconds for everything, checks included; None: the pool's ``timeout``.

        Raises:
            PoolTimeout: nothing became free in time. Its text and ``stats`` say how the pool stood, and ``__cause__``
                is why the last attempt to connect failed, if it did.
            TooManyWaiting: ``max_waiting`` callers are in the line already.
            AuthenticationFailed, AccessRefused, TlsError: the broker refuses this client, so it is no use to wait.
            PoolClosed: the pool is closed.
        """
        seconds = self.timeout if timeout is None else float(checked_number("timeout", timeout))
        if not self._is_open:
            self.open()
        line = self._line
        lease: Lease[T] = Lease(self, line, call_site())
        try:
            self._take(line, lease, seconds)
        except BaseException:
            lease._held.clear()  # first of all: a traceback may keep this frame, and with it the lease
            line.drop(lease)
            raise
        return lease

    def checkin(self, lease: Lease[T]) -> None:
        """Give *lease* back; ``lease.checkin()`` is the same.

        Raises:
            LeaseError: it was given back already, or is no lease of this pool.
        """
        if not isinstance(lease, Lease):
            raise LeaseError(f"{a_type(lease)} is no lease; give back what checkout() returned")
        if lease._pool is not self:
            raise LeaseError("this lease belongs to another pool")
        lease.checkin()

    def check(self) -> None:
        """Check what is idle now, and replace what does not pass. For a timer of yours, or after an incident."""
        line = self._line
        leases: list[Lease[T]] = []
        try:
            line.take_idle(leases)
            for lease in leases:
                self._check_one(line, lease)
        finally:
            for lease in leases:
                lease._held.clear()
            line.tidy()

    def drain(self) -> None:
        """Replace every present entry: idle ones now, the others when they come back."""
        self._line.drain()

    def resize(self, min_size: int, max_size: int) -> None:
        """Change the limits while running: what is too much goes now if it is idle, else when it comes back.

        Raises:
            ConfigurationError: invalid sizes; nothing has changed.
        """
        check_sizes(min_size, max_size)
        self._sizes = (min_size, max_size)
        self._line.resize(min_size, max_size)

    def get_stats(self) -> PoolStats:
        """Return the numbers of this moment, all taken at once."""
        return self._line.stats(retired=self._keeper.retired())

    def pop_stats(self) -> PoolStats:
        """Return them, and count from 0 again; the gauges stay."""
        return self._line.stats(retired=self._keeper.retired(), is_reset=True)

    def close(self, *, timeout: float = CLOSE_TIMEOUT) -> None:
        """Hand out nothing any more, wake who waits with PoolClosed, and end every entry. Twice is fine.

        Borrowers have most of *timeout* seconds to give back what they hold. Then that is closed, too, and what they
        try next raises. On the I/O thread nothing is waited for: what is lent is closed as it comes back.
        """
        checked_number("timeout", timeout)
        line, keeper = self._line, self._keeper
        ends = time.monotonic() + timeout
        line.close()
        keeper.end_given_up(timeout)
        if SHARED.is_current:  # nothing would end while it waits
            keeper.wake()
            return
        while line.entries and time.monotonic() < ends - timeout * CLOSE_SHARE:
            time.sleep(LOOK)
            keeper.end_given_up(timeout)
        line.seize()
        keeper.end_given_up(max(LOOK, ends - time.monotonic()))
        while not keeper.end_given_up() and time.monotonic() < ends:
            time.sleep(LOOK)
        keeper.wake()

    # Inside.

    def _borrow(self, timeout: float | None) -> Borrowed[T]:
        if timeout is not None:
            checked_number("timeout", timeout)
        return Borrowed(partial(self.checkout, timeout=timeout))

    def _take(self, line: WaitingLine[T], lease: Lease[T], seconds: float) -> None:
        check = self._options.check
        if check is None:
            waiter = line.enter(lease)
            if waiter is None:
                return
        else:
            waiter = line.enter(lease, is_final=False)
        ends = self._clock.now() + seconds
        while True:
            if waiter is not None:
                self._keeper.may_wait()
                began = self._clock.now()
                waiter.flag.acquire(timeout=_wait_at_most(ends - began))  # in C, and an interrupt ends it
                waited = self._clock.now() - began
                self._claim(line, lease, waiter, waited=waited, timeout=seconds, is_final=check is None)
            if check is None:
                return
            try:
                check(lease._lent())
            except Exception as exc:  # noqa: BLE001 - whatever it is, it says: not this one
                is_late = self._clock.now() > ends
                waiter = line.refuse(lease, exc, late_after=seconds if is_late else None)
            else:
                line.confirm(lease)
                return

    def _claim(self, line: WaitingLine[T], lease: Lease[T], *arguments: Any, **options: Any) -> None:
        try:
            line.claim(lease, *arguments, **options)
        except PoolTimeout:
            raise
        except LabkitError as exc:  # one error for all in the line, and each raises its own
            error = copy.copy(exc)
            raise error from exc.__cause__

    def _check_one(self, line: WaitingLine[T], lease: Lease[T]) -> None:
        is_broken = False
        try:
            if (check := self._options.check) is not None:
                check(lease._lent())
        except Exception as exc:  # noqa: BLE001 - as above
            line.last_error = exc
            is_broken = True
        line.take_back(lease, is_broken=is_broken)

    def _wait_until_filled(self, timeout: float) -> None:
        line = self._line
        ends = time.monotonic() + timeout
        while True:
            bell = Bell()
            with line.lock:
                ready = sum(1 for each in list(line.entries) if each.is_ready)
                error = line.last_error
                if line.is_closed:
                    raise closed_error()
                if ready >= line.min_size:
                    return
                is_refused = line.is_refused
                line.watchers.append(bell)
            if is_refused and isinstance(error, LabkitError):
                raise copy.copy(error) from error.__cause__
            if not bell.wait(ends - time.monotonic()):
                why = "" if error is None else f"; last connect error: {describe(error)}"
                text = f"{ready} of {line.min_size} entries were made within {timeout:g} s{why}"
                raise PoolTimeout(text, timeout=timeout, stats=self.get_stats()) from error

    def _start_afresh(self) -> None:
        """Be new, in a child process after a fork: what is here belongs to the parent."""
        line = self._line
        line.is_inherited = True
        _INHERITED.append((line, self._keeper))
        self._in_child()
        self._begin()
        self._line.is_closed = line.is_closed


def _wait_at_most(seconds: float) -> float:
    """Return a time that a lock accepts: on Windows, some weeks at most."""
    return min(max(0.0, seconds), threading.TIMEOUT_MAX)


_ALL: weakref.WeakSet[Pool[Any]] = weakref.WeakSet()
_INHERITED: list[object] = []  # what a child process must not collect: it belongs to the parent


def _at_exit() -> None:
    """Replace nothing while the connections are being closed."""
    for each in list(_ALL):
        each._line.is_closed = True


def _in_child() -> None:
    for each in list(_ALL):
        each._start_afresh()


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_in_child)
