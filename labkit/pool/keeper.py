"""What a pool does by itself, on daemon threads: grow, retire, replace, report leaks, take back what was forgotten.

The keeper never waits for a broker: entries are made on threads of their own, and closed on the I/O thread. It holds
the pool weakly: a pool that nobody has any more is closed.

One entry is made at a time for those who wait: meanwhile one may come back and serve them. Those that are kept anyway,
up to ``min_size``, are made several at once, but only after one has gone ahead and opened: a broker that is away, or
refuses the login, meets one attempt, and then a pause.
"""

import logging
import math
import weakref
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Generic, Protocol, TypeVar

from labkit.concurrency.bell import Bell
from labkit.concurrency.threads import ThreadOnDemand
from labkit.connection.io_thread import SHARED
from labkit.connection.mailbox import Mailbox
from labkit.errors import (
    ConfigurationError,
    ConnectError,
    Kind,
    LabkitError,
    NotConnected,
    WrongThread,
    classify,
    describe,
)
from labkit.pool.lease import Frames, shown
from labkit.pool.line import WaitingLine
from labkit.pool.options import PoolOptions
from labkit.pool.places import Entry
from labkit.retry import Clock, Pauses

LOGGER = logging.getLogger(__name__)
T = TypeVar("T")
TICK = 1.0  # seconds between two looks while something is lent or somebody waits
DOZE = 30.0  # seconds between two looks while nothing happens
QUIET_TICKS = 3  # ticks without a checkout after which the keeper dozes
CLOSE_TIMEOUT = 5.0  # seconds for the close handshake of an entry that is given up
CLEAN_TIMEOUT = 5.0  # seconds for the broker to close what a borrower left open
SETTLING = 0.1  # seconds between two looks at close handshakes that have not ended


class Source(Protocol[T]):
    """Makes what a pool holds. Thread-safe.

    Attributes:
        at_once: How many it may be asked for at once.
    """

    at_once: int

    def make(self, begun: Callable[[T], bool]) -> T:
        """Return a new thing, ready for use, or raise. It has its own deadline.

        If there is something to be ended before it is ready, say so: ``begun(thing)``; False: it is not wanted.
        """

    def is_usable(self, thing: T) -> bool:
        """Whether it lives. Cheap, no I/O, no lock."""

    def footprint(self, thing: T) -> object:
        """Return what there is of it now: what is added while it is lent is a leftover. Cheap, no I/O, no lock."""

    def is_clean(self, thing: T, before: object) -> bool:
        """Whether another borrower would meet no more than the footprint *before*. Cheap, no I/O, no lock."""

    def leftovers(self, thing: T, before: object) -> str:
        """Return what its borrower left open beyond that, in words; "": it has ended everything itself. Likewise."""

    def begin_cleaning(self, thing: T, before: object, timeout: float, done: Callable[[bool], None]) -> None:
        """Begin to end what is beyond the footprint *before*, and return at once.

        *done* is called once, on any thread, within *timeout* seconds, with whether another borrower may have it. It
        must not block.
        """

    def has_lost_link(self, thing: T) -> bool:
        """Whether what died was lost with its link, and not closed by a borrower or for a borrower's mistake."""

    def reason(self, thing: T) -> BaseException | None:
        """Return what ended it; None: nothing did, or this side."""

    def begin_end(self, thing: T, timeout: float) -> None:
        """Begin to close it, also one that is being opened, and return at once. Twice is fine."""

    def is_ended(self, thing: T) -> bool:
        """Whether its end is complete."""


class Keeper(Generic[T]):
    """Looks after one line. :meth:`step` does what is due; the thread calls it again and again.

    Args:
        line: What to look after.
        source: Makes entries.
        pool: Whose they are; held weakly.
        pauses: Between attempts to make one.
        clock: Where time comes from.
        options: The pool's.
    """

    def __init__(
        self,
        line: WaitingLine[T],
        source: Source[T],
        pool: object,
        *,
        pauses: Pauses,
        clock: Clock,
        options: PoolOptions[T],
    ) -> None:
        self._line = line
        self._source = source
        self._pool = weakref.ref(pool)
        self._pauses = pauses
        self._clock = clock
        self._options = options
        self._makers = [Mailbox("labkit-pool-maker", limit=1) for _ in range(source.at_once)]
        self._cleaned: deque[tuple[Entry[T], bool, bool]] = deque()  # clean, and reset
        self._making: set[Mailbox] = set()  # those makers that are at work
        self._at_once = 1  # how many may be: more once one has opened
        self._grow_at = 0.0
        self._ending: set[T] = set()  # whose close handshake was begun
        self._alarm = Bell()
        self._thread = ThreadOnDemand("labkit-pool-keeper", self._run)
        self._seen = -1
        self._quiet = 0

    # From any thread.

    def start(self) -> None:
        """Start the thread, unless it runs.

        Raises:
            NotConnected: no thread can be started (the interpreter is ending).
        """
        try:
            self._thread.need()
        except RuntimeError as exc:
            raise NotConnected(f"no upkeep of a pool can be started: {exc}", reason=exc) from exc

    def may_wait(self) -> None:
        """Refuse to wait for an entry on the threads that make them; a log handler may be called there.

        Raises:
            WrongThread: the calling thread is one of those, or the I/O thread.
        """
        SHARED.may_wait()
        if self._thread.is_current or any(each.is_current for each in self._makers):
            raise WrongThread("this thread of the pool's makes what it would wait for: ask from another")

    def wake(self) -> None:
        """Have the thread look now. No lock, no wait: safe anywhere."""
        self._line.is_dozing = False
        self._alarm.ring()

    def retired(self) -> int:
        """Return how many were given up and have not ended."""
        return sum(1 for each in list(self._line.ending) if not self._source.is_ended(each))

    def end_given_up(self, timeout: float = CLOSE_TIMEOUT) -> bool:
        """Begin the close handshake of what was given up; return whether all have ended."""
        for each in list(self._line.ending):
            if each not in self._ending:
                self._ending.add(each)
                self._log_reason(each)
                self._source.begin_end(each, timeout)
            if self._source.is_ended(each):
                self._line.ending.pop(each, None)
                self._ending.discard(each)
        return not self._line.ending

    def _log_reason(self, thing: T) -> None:
        """Write down why *thing* is replaced, if something has ended it: given back dead, or dead while it was idle."""
        reason = self._source.reason(thing)
        if reason is not None:
            level = logging.WARNING if self._source.has_lost_link(thing) else logging.INFO  # else a borrower's mistake
            LOGGER.log(level, "%r of a pool is dead and is replaced: %s", thing, describe(reason))

    # On the keeper's thread.

    def step(self) -> float:
        """Do what is due, and return the seconds until something is."""
        line = self._line
        now = self._clock.now()
        self._clean()
        line.retire(self._options.max_idle)
        out = self._report_leaks(now)
        has_ended = self.end_given_up()
        pause = self._grow(now)
        with line.lock:
            is_busy = bool(out or line.waiters or line.counters.entered != self._seen)
            self._seen = line.counters.entered
            self._quiet = 0 if is_busy else self._quiet + 1
            is_dozing = line.is_dozing = has_ended and self._quiet > QUIET_TICKS  # a checkout after this wakes it
        if not has_ended:
            return min(pause, SETTLING)
        return min(pause, max(0.01, min(DOZE, self._options.max_idle / 4)) if is_dozing else self._tick())

    def _tick(self) -> float:
        return TICK if self._options.leak_after is None else min(TICK, max(0.01, self._options.leak_after / 4))

    def _run(self) -> None:
        while True:
            try:
                pause = self.step()
            except Exception:  # a source or a log handler that fails must not end the upkeep
                LOGGER.exception("the upkeep of a pool failed; it goes on")
                pause = TICK
            if self._line.is_closed:
                if not self._line.entries and not self._line.ending and not self._making:
                    return
            elif self._pool() is None:
                LOGGER.warning("a pool was forgotten without close(); it is closed now")
                self._line.close()
                continue
            self._alarm.wait(pause)

    def _report_leaks(self, now: float) -> int:
        """Report who holds a lease for too long; return how many are out."""
        late: list[tuple[float, Frames]] = []
        with self._line.lock:
            out = self._line.audit()
            for entry in list(self._line.entries):
                held = now - entry.since
                if (
                    self._options.leak_after is None
                    or entry.owner is None
                    or entry.is_reported
                    or held < self._options.leak_after
                ):
                    continue
                lease = entry.owner()
                if lease is not None and entry.is_taken and not entry.is_checked:
                    entry.is_reported = True
                    self._line.counters.leaks += 1
                    late.append((held, lease._frames))
                del lease
            forgotten, self._line.forgotten = self._line.forgotten, 0
        for _ in range(forgotten):
            LOGGER.warning("a lease was forgotten without checkin(); what it lent is closed and replaced")
        for held, frames in late:
            LOGGER.warning("a lease is out for %.1f s; it was checked out here:\n%s", held, shown(frames))
        return out

    def _clean(self) -> None:
        """See to what came back with something left behind, or is to be reset; nobody waits for the broker here."""
        soiled = self._line.take_soiled()
        for entry in soiled:
            if entry.thing is not None:
                self._source.begin_cleaning(entry.thing, entry.before, CLEAN_TIMEOUT, partial(self._ended, entry))
        while self._cleaned:
            entry, is_clean, is_reset = self._cleaned.popleft()
            self._line.cleaned(entry, is_clean=is_clean, is_reset=is_reset)
        for entry in soiled:
            if entry.left:
                text = "a lease left behind, and the pool ends: %s; it was checked out here:\n%s"
                LOGGER.warning(text, entry.left, shown(entry.frames))

    def _ended(self, entry: Entry[T], is_clean: bool) -> None:
        """Go on with the reset, if all that was left has ended; on any thread, which is not to wait."""
        if is_clean and self._options.reset is not None and not entry.is_checked:
            if entry.resetter is None:
                entry.resetter = Mailbox("labkit-pool-reset", limit=math.inf)
            if entry.resetter.put(partial(self._run_reset, self._options.reset, entry)):
                return
        self._go_on_with(entry, is_clean=is_clean)

    def _run_reset(self, reset: Callable[[T], object], entry: Entry[T]) -> None:
        is_reset = False
        try:
            if entry.thing is not None:
                reset(entry.thing)
            is_reset = True
        except BaseException as exc:  # SystemExit too: it costs what it was called with, and nothing else
            LOGGER.warning("%r of a pool is replaced: reset failed: %s", entry.thing, describe(exc), exc_info=exc)
        finally:
            self._go_on_with(entry, is_reset=is_reset)

    def _go_on_with(self, entry: Entry[T], *, is_clean: bool = True, is_reset: bool = True) -> None:
        self._cleaned.append((entry, is_clean, is_reset))
        self.wake()

    def _grow(self, now: float) -> float:
        """Have an entry made if somebody needs it; return the seconds until the next may be."""
        if len(self._making) >= self._at_once:
            return DOZE
        if self._line.is_flapping:  # what opens and dies at once is no success
            self._line.is_flapping = False
            self._pause()
        if self._line.is_refused:  # the next try would get the same answer, so somebody has to ask for it
            return DOZE
        if now < self._grow_at:
            return self._grow_at - now
        entry = self._line.reserve(is_extra=bool(self._making))
        if entry is None:
            if not self._making:
                self._at_once = 1  # the next ones begin with one again
            return DOZE
        maker = next(each for each in self._makers if each not in self._making)
        self._making.add(maker)
        if not self._hand_over(maker, lambda: self._make(entry, maker)):
            self._making.discard(maker)
            self._line.fail(entry, NotConnected("no thread can be started"), is_final=True)
        return 0.0 if self._at_once > 1 else DOZE

    def _pause(self, *, is_busy: bool = False) -> None:
        """Make nothing for a while. Attempts that fail together are one failure."""
        with self._line.lock:
            now = self._clock.now()
            if self._grow_at <= now:
                self._grow_at = now + (self._pauses.next(busy=is_busy) or 0.0)

    def _hand_over(self, maker: Mailbox, task: Callable[[], None]) -> bool:
        return maker.put(task)

    def _make(self, entry: Entry[T], maker: Mailbox) -> None:
        """Fill *entry*; on the thread of *maker*."""
        try:
            thing = self._source.make(lambda begun: self._line.attach(entry, begun))
            if self._line.attach(entry, thing) and self._options.configure is not None:
                self._run_configure(self._options.configure, thing)
        except BaseException as exc:  # noqa: BLE001 - SystemExit too: the place must be free again
            kind = classify(exc).kind
            is_final = kind in (Kind.REFUSED, Kind.OUR_BUG)
            LOGGER.info("no new pool entry: %s", describe(exc))
            self._at_once = 1
            if not is_final:
                self._pause(is_busy=kind is Kind.BUSY)
            self._line.fail(entry, _as_ours(exc) if is_final else exc, is_final=is_final)
        else:
            self._at_once = len(self._makers)
            with self._line.lock:
                self._pauses.opened()
            if not self._line.fill(entry):
                self._line.ending[thing] = None  # again: the first time it may not have been there to be closed
                self._ending.discard(thing)
        finally:
            self._making.discard(maker)
            self.wake()

    def _run_configure(self, configure: Callable[[T], object], thing: T) -> None:
        try:
            configure(thing)
        except LabkitError:
            raise
        except BaseException as exc:  # SystemExit too: it must not end the borrower who is told
            raise ConfigurationError(f"configure failed: {describe(exc)}", field="configure") from exc


def _as_ours(error: BaseException) -> LabkitError:
    """Return what borrowers are told: an error of labkit's, with *error* as its cause if it is none."""
    if isinstance(error, LabkitError):
        return error
    ours = ConnectError(f"no pool entry can be made: {describe(error)}")
    ours.__cause__ = error
    return ours
