"""Try again, but never forever: pauses that grow, a deadline over everything, a switch that stops it.

Does no I/O of its own. The clock and the random source are arguments, so tests and lessons need not wait.
"""

import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, TypeVar

from labkit.errors import Kind, Verdict
from labkit.errors import classify as classify_error
from labkit.values import check_type, checked_callable, refused

T = TypeVar("T")

# 2 ** 32 times any pause is beyond every ceiling; a larger exponent would only overflow.
EXPONENT_MAX = 32
# A busy broker answers "not now", so we skip the short pauses: 2 ** 4 times longer, up to the same ceiling.
BUSY_STEPS = 4
# Where nothing listens a try costs no broker anything, so pauses stay short: whoever returns is found about as soon as
# by clients that try each second. Drawn by each client for itself, they keep many from coming in step.
NOTHING_LISTENS_MAX = 1.0  # seconds
# Seconds that a link must live before the pauses begin again: longer than a broker needs to accept us and fail again.
STABLE_AFTER = 10.0


def _check(name: str, value: object, minimum: float, allowed: str) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not minimum <= value <= sys.float_info.max:  # type: ignore[operator]
        raise refused(name, value, allowed)


class Stop(Protocol):
    """A switch that another thread can set: a ``threading.Event``, or labkit's own flag."""

    def is_set(self) -> bool:
        """Whether it is set."""

    def wait(self, timeout: float, /) -> bool:
        """Wait until it is set; False if it is not within *timeout* seconds."""


class Clock(Protocol):
    """What a retry needs of time."""

    def now(self) -> float:
        """Return seconds that only ever grow."""

    def sleep(self, seconds: float, stop: Stop | None = None) -> bool:
        """Wait, and return True; return False as soon as *stop* is set."""


class SystemClock:
    """The real one."""

    now = staticmethod(time.monotonic)  # no function around it: a pool asks four times a checkout

    def sleep(self, seconds: float, stop: Stop | None = None) -> bool:
        """Wait *seconds*; False as soon as *stop* is set."""
        if stop is not None:
            return not stop.wait(seconds)
        time.sleep(seconds)
        return True


@dataclass
class FakeClock:
    """A clock that moves only when someone sleeps on it. ``slept`` lists the pauses, in seconds."""

    time: float = 0.0
    slept: list[float] = field(default_factory=list)

    def now(self) -> float:
        """Return the seconds slept so far."""
        return self.time

    def sleep(self, seconds: float, stop: Stop | None = None) -> bool:
        """Move the time forward at once; False, and no move, when *stop* is set."""
        if stop is not None and stop.is_set():
            return False
        self.slept.append(seconds)
        self.time += seconds
        return True


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to pause before a retry: ``initial * factor ** attempt``, at most ``maximum`` seconds.

    With ``jitter="full"`` the pause is drawn between 0 and that value: when a broker comes back, thirty clients
    must not return in step. ``attempts`` stops after so many tries even if time is left; None: only time stops, and
    while nothing listens at any host, which costs no broker anything, a connection that connects or recovers pauses for
    one second at most (``initial``, if that is more).

    Raises:
        ConfigurationError: a value that would never wait, never end, or shrink.
    """

    initial: float = 0.05
    factor: float = 2.0
    maximum: float = 5.0
    jitter: Literal["full", "none"] = "full"
    attempts: int | None = None

    def __post_init__(self) -> None:
        _check("Backoff.initial", self.initial, 0.0, "seconds, 0 or more")
        _check("Backoff.factor", self.factor, 1.0, "a number, 1 or more")
        _check("Backoff.maximum", self.maximum, self.initial, "seconds, not below initial")
        if self.jitter not in ("full", "none"):
            raise refused("Backoff.jitter", self.jitter, "'full' or 'none'")
        if self.attempts is not None and (
            isinstance(self.attempts, bool) or not isinstance(self.attempts, int) or self.attempts < 1
        ):
            raise refused("Backoff.attempts", self.attempts, "a whole number, 1 or more; None: no limit")

    def delay(self, attempt: int, rng: random.Random | None = None) -> float:
        """Return the seconds to pause after failed attempt number *attempt*, counted from 0.

        Args:
            attempt: How many pauses there were before this one.
            rng: The random source; None: Python's shared one. Not used without jitter.
        """
        if isinstance(attempt, bool) or not isinstance(attempt, int) or attempt < 0:
            raise refused("Backoff.delay.attempt", attempt, "a whole number, 0 or more")
        ceiling = self._ceiling(attempt)
        if self.jitter == "none":
            return ceiling
        return (rng or random).uniform(0.0, ceiling)

    def _ceiling(self, attempt: int) -> float:
        try:
            return min(self.maximum, self.initial * self.factor ** min(attempt, EXPONENT_MAX))
        except OverflowError:  # a factor of 1e300, say
            return self.maximum


class Pauses:
    """The pauses of a link that is kept up for hours: they grow from failure to failure, and over losses too.

    A connection that opens and dies at once is no success: whoever begins with the shortest pause after each of those
    hammers a broker that restarts in a loop. So the count begins afresh only after a *stable spell*, *stable_after*
    seconds during which the link stayed open.

    Not thread-safe: the one who keeps the link up owns it.

    Args:
        backoff: Its ``attempts`` are failures in a row here, stable spells apart.
        stable_after: Seconds.
        clock: Where time comes from.
        rng: Where jitter comes from; None: Python's shared source.

    Raises:
        ConfigurationError: *stable_after* is not a number of seconds, 0 or more.
    """

    def __init__(
        self,
        backoff: Backoff = Backoff(),
        *,
        stable_after: float = STABLE_AFTER,
        clock: Clock = SystemClock(),  # noqa: B008 - holds nothing
        rng: random.Random | None = None,
    ) -> None:
        _check("Pauses.stable_after", stable_after, 0.0, "seconds, 0 or more")
        self.backoff = backoff
        self.stable_after = stable_after
        self._clock, self._rng = clock, rng
        self._failures = 0
        self._attempts = 0  # those of them that count
        self._opened_at: float | None = None

    def __repr__(self) -> str:
        return f"Pauses({self.backoff!r}, stable_after={self.stable_after:g})"

    @property
    def failures(self) -> int:
        """How many attempts failed, or links were lost, since the last stable spell."""
        return self._failures

    def opened(self) -> None:
        """The link is open now; how long it stays so decides about the next pause."""
        self._opened_at = self._clock.now()

    def next(self, *, busy: bool = False, is_free: bool = False, nothing_listens: bool = False) -> float | None:
        """Return the seconds to wait after a failed attempt or a loss; None: the attempts are used up.

        Args:
            busy: The broker said "not now", so short pauses are skipped.
            is_free: The pauses grow, and the attempts that are left do not become fewer.
            nothing_listens: Nothing listens there. Without a limit of attempts the pause is at most one second, or
                ``backoff.initial`` if that is more; with one, each try is one of few, and the pauses grow as ever.
        """
        opened_at, self._opened_at = self._opened_at, None
        if opened_at is not None and self._clock.now() - opened_at >= self.stable_after:
            self._failures = self._attempts = 0
        self._failures += 1
        self._attempts += not is_free
        if self.backoff.attempts is not None and not is_free and self._attempts >= self.backoff.attempts:
            return None
        backoff = self.backoff
        if nothing_listens and backoff.attempts is None:
            backoff = replace(backoff, maximum=max(backoff.initial, min(backoff.maximum, NOTHING_LISTENS_MAX)))
        return backoff.delay(self._failures - 1 + (BUSY_STEPS if busy else 0), self._rng)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One failed try, as ``on_attempt`` is called with it.

    Attributes:
        number: 1 for the first.
        error: What it raised.
        verdict: What that means for a retry.
        elapsed: Seconds since the first try began.
        pause: Seconds until the next try; None: there will be none.
    """

    number: int
    error: Exception
    verdict: Verdict
    elapsed: float
    pause: float | None


def call_with_retry(
    function: Callable[[], T],
    *,
    deadline: float,
    on: tuple[type[BaseException], ...] | None = None,
    classify: Callable[[BaseException], Verdict] = classify_error,
    backoff: Backoff = Backoff(),
    clock: Clock = SystemClock(),  # noqa: B008 - holds nothing
    rng: random.Random | None = None,
    stop: Stop | None = None,
    on_attempt: Callable[[Attempt], None] | None = None,
) -> T:
    """Return what *function* returns, calling it again after errors that a retry can heal.

    Args:
        function: Called without arguments, on this thread. It must end by itself: the deadline does not
            interrupt a call, it decides whether there is another.
        deadline: Seconds for the whole, pauses included. A pause that would not leave time for another call
            is not begun.
        on: Retry exactly these error types. None: ask *classify*.
        classify: Says what an error means; a busy broker gets a longer pause at once.
        backoff: The pauses.
        clock: Where time comes from.
        rng: Where jitter comes from.
        stop: Set by another thread, it ends the pause and the retrying.
        on_attempt: Called with every failed call, before the pause.

    Raises:
        ConfigurationError: the deadline is not a number of seconds, 0 or more.
        Exception: what the last call raised: the error was permanent, time or attempts ran out, or *stop* was set.
    """
    _check("deadline", deadline, 0.0, "seconds, 0 or more")
    checked_callable("function", function)
    checked_callable("classify", classify)
    check_type("backoff", backoff, Backoff)
    if on_attempt is not None:
        checked_callable("on_attempt", on_attempt)
    kinds = on if isinstance(on, tuple) else (on,)
    if on is not None and not all(isinstance(each, type) and issubclass(each, BaseException) for each in kinds):
        raise refused("on", on, "classes of errors, in a tuple; None: ask classify")
    started = clock.now()
    pauses = Pauses(backoff, clock=clock, rng=rng)
    number = 0
    while True:
        number += 1
        try:
            return function()
        except Exception as exc:  # noqa: BLE001 - judged, and raised again below
            error = exc
        verdict = classify(error)
        elapsed = clock.now() - started
        pause: float | None = None
        if _may_retry(error, verdict, on) and not (stop is not None and stop.is_set()):
            pause = pauses.next(busy=verdict.kind is Kind.BUSY, is_free=verdict.is_free)
            if pause is not None:
                pause = max(pause, verdict.least_pause)
                pause = None if elapsed + pause >= deadline else pause
        if on_attempt is not None:
            on_attempt(Attempt(number, error, verdict, elapsed, pause))
        if pause is None or not clock.sleep(pause, stop):
            try:
                raise error
            finally:
                del error  # an error whose traceback holds this frame would keep both alive
        del error


def _may_retry(error: Exception, verdict: Verdict, on: tuple[type[BaseException], ...] | None) -> bool:
    return verdict.is_retryable if on is None else isinstance(error, on)
