"""Try again, but never for ever: pauses that grow, a deadline over everything, a switch that stops it.

Does no I/O of its own. The clock and the random source are arguments, so tests and lessons need not wait.
"""

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeVar

from labkit.errors import ConfigurationError, Verdict
from labkit.errors import classify as classify_error

T = TypeVar("T")

# 2 ** 32 times any pause is beyond every ceiling; a larger exponent would only overflow.
EXPONENT_MAX = 32
# A busy broker answers "not now", so we skip the short pauses: 2 ** 4 times longer, up to the same ceiling.
BUSY_STEPS = 4


def _check(name: str, value: object, minimum: float, allowed: str) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not minimum <= float(value) < float("inf"):  # type: ignore[arg-type]
        _refuse(name, value, allowed)


def _refuse(name: str, value: object, allowed: str) -> None:
    field = name.rpartition(".")[2].rpartition(" ")[2]
    text = f"{name}: {value!r} is not allowed; allowed: {allowed}"
    raise ConfigurationError(text, field=field, value=value, allowed=allowed)


class Clock(Protocol):
    """What a retry needs of time."""

    def now(self) -> float:
        """Return seconds that only ever grow."""

    def sleep(self, seconds: float, stop: threading.Event | None = None) -> bool:
        """Wait, and return True; return False as soon as *stop* is set."""


class SystemClock:
    """The real one."""

    def now(self) -> float:
        """Return ``time.monotonic()``."""
        return time.monotonic()

    def sleep(self, seconds: float, stop: threading.Event | None = None) -> bool:
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

    def sleep(self, seconds: float, stop: threading.Event | None = None) -> bool:
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
    must not return in step. ``attempts`` stops after so many tries even if time is left; None: only time stops.

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
            _refuse("Backoff.jitter", self.jitter, "'full' or 'none'")
        if self.attempts is not None and (
            isinstance(self.attempts, bool) or not isinstance(self.attempts, int) or self.attempts < 1
        ):
            _refuse("Backoff.attempts", self.attempts, "a whole number, 1 or more; None: no limit")

    def delay(self, attempt: int, rng: random.Random | None = None) -> float:
        """Return the seconds to pause after failed attempt number *attempt*, counted from 0.

        Args:
            attempt: How many pauses there were before this one.
            rng: The random source; None: Python's shared one. Not used without jitter.
        """
        if isinstance(attempt, bool) or not isinstance(attempt, int) or attempt < 0:
            _refuse("Backoff.delay: attempt", attempt, "a whole number, 0 or more")
        ceiling = self._ceiling(attempt)
        if self.jitter == "none":
            return ceiling
        return (rng or random).uniform(0.0, ceiling)

    def _ceiling(self, attempt: int) -> float:
        try:
            return min(self.maximum, self.initial * self.factor ** min(attempt, EXPONENT_MAX))
        except OverflowError:  # a factor of 1e300, say
            return self.maximum


@dataclass(frozen=True, slots=True)
class Attempt:
    """One failed try, as ``on_attempt`` hears of it.

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
    stop: threading.Event | None = None,
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
        on_attempt: Hears of every failed call, before the pause.

    Raises:
        ConfigurationError: the deadline is not a number of seconds, 0 or more.
        Exception: what the last call raised: the error was permanent, time or attempts ran out, or *stop* was set.
    """
    _check("deadline", deadline, 0.0, "seconds, 0 or more")
    started = clock.now()
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
        if _may_retry(error, verdict, on) and number != backoff.attempts and not (stop is not None and stop.is_set()):
            step = number - 1 + (BUSY_STEPS if verdict.kind is verdict.kind.BUSY else 0)
            pause = backoff.delay(step, rng)
            if elapsed + pause >= deadline:
                pause = None
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
