"""Exercises of 08: a size that cannot deadlock, a block that always gives back, a wake-up that gets lost. No broker."""

import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from labkit.lab.checks import Exercise, describe, run
from labkit.trials import NotYet

WOKEN: Final = 1.5  # seconds in which a thread that was woken has its answer, many times over
QUIET: Final = 0.25  # seconds in which a getter that must wait gets nothing
STUCK: Final = 6.0  # seconds after which a creator of 08.3 goes on, whatever the answer does

# -- 08.1: the smallest size that cannot deadlock ------------------------------------------------------------------

SIZES: Final = ((2, 2, 3), (8, 1, 1), (8, 2, 9), (3, 4, 10), (1, 5, 5), (10, 3, 21))
"""Threads, connections that each holds at once, the smallest size."""


def _size(answer: object) -> str:
    for threads, held, smallest in SIZES:
        given = run(answer, threads, held)
        case = f"{threads} threads with {held} each"
        if isinstance(given, bool) or not isinstance(given, int):
            raise NotYet(f"smallest_size should return a whole number; for {case} it returned {given!r:.40}")
        if given == smallest:
            continue
        if given < smallest:
            raise NotYet(f"{case}, size {given}: {_stuck(threads, held, given)}")
        raise NotYet(
            f"{case}, size {given}: nobody gets stuck, but {given - 1} would do as well. "
            "Ask how many can be out while nobody has finished, and what one more does"
        )
    return "all but one connection each can be out with nobody done; one more, and somebody can finish"


def _stuck(threads: int, held: int, size: int) -> str:
    if size < held:
        return f"not even one thread alone gets its {held}"
    each, more = divmod(size, threads)
    shares = sorted((each + (number < more) for number in range(threads)), reverse=True)
    shares = [min(share, held - 1) for share in shares]
    return f"they may hold {', '.join(map(str, shares))}, so each waits for one more and none is free"


# -- 08.2: a block that gives back ---------------------------------------------------------------------------------


class SoldOutError(Exception):
    """What the block raises in the check."""


class GivenBackError(Exception):
    """What a second checkin raises, as LeaseError does."""


class TrialLease:
    """A lease that counts. Has what the exercise names: ``connection``, ``is_out``, ``checkin()``."""

    def __init__(self, pool: "TrialPool") -> None:
        self._pool = pool
        self.connection = object()
        self.is_out = True

    def checkin(self) -> None:
        """Give it back, once."""
        if not self.is_out:
            raise GivenBackError("this lease was given back already")
        self.is_out = False
        self._pool.out.remove(self)


class TrialPool:
    """A pool that lends at once and knows what is out. ``connection()`` is what the learner is to write."""

    def __init__(self) -> None:
        self.out: list[TrialLease] = []
        self.made: list[TrialLease] = []

    def checkout(self, *, timeout: float | None = None) -> TrialLease:  # noqa: ARG002 - as the real one
        """Lend one."""
        lease = TrialLease(self)
        self.out.append(lease)
        self.made.append(lease)
        return lease


def _block(answer: object) -> str:
    if not isinstance(answer, type):
        raise NotYet(f"Borrow should be the class; it is {type(answer).__name__} now")
    for name in ("__enter__", "__exit__"):
        if not hasattr(answer, name):
            raise NotYet(f"Borrow has no {name}, so it cannot be used with 'with'")
    pool = TrialPool()
    run(_clean_block, answer, pool)
    _nothing_out(pool, "after a block that ended well")
    for error, words in (
        (SoldOutError("sold out"), "after a block that raised"),
        (KeyboardInterrupt(), "after a block that was interrupted"),
    ):
        if run(_raising_block, answer, pool, error) is not error:
            raise NotYet(f"{words.removeprefix('after ')}: its error did not come out. Does __exit__ return something?")
        _nothing_out(pool, words)
    given = run(_own_checkin, answer, pool, None)
    if given is not None:
        raise NotYet("the block gave the lease back itself, and __exit__ raised. Ask lease.is_out before")
    error = SoldOutError("sold out")
    if run(_own_checkin, answer, pool, error) is not error:
        raise NotYet("the block gave the lease back and then raised; another error hid the block's own")
    run(_two_blocks, answer, pool)
    _nothing_out(pool, "after two blocks at once")
    if any(lease.is_out for lease in pool.made):
        raise NotYet("a lease was never given back")
    return f"{len(pool.made)} leases, 0 leaked: after success, error, interrupt, and a checkin inside the block"


def _clean_block(borrow: Callable[..., Any], pool: TrialPool) -> None:
    with borrow(pool) as connection:
        if not pool.out:
            raise NotYet("inside the block nothing is lent: __enter__ must check out, and __exit__ comes later")
        if connection is not pool.out[-1].connection:
            raise NotYet("'as connection' should give the lease's connection: return self.lease.connection")


def _raising_block(borrow: Callable[..., Any], pool: TrialPool, error: BaseException) -> BaseException | None:
    try:
        with borrow(pool):
            _fail(error)
    except BaseException as caught:  # noqa: BLE001 - an interrupt, too, is what the exercise is about
        return caught
    return None


def _fail(error: BaseException) -> None:
    raise error


def _own_checkin(borrow: Callable[..., Any], pool: TrialPool, error: BaseException | None) -> BaseException | None:
    try:
        with borrow(pool):
            pool.out[-1].checkin()
            if error is not None:
                _fail(error)
    except (SoldOutError, GivenBackError) as caught:
        return caught
    return None


def _two_blocks(borrow: Callable[..., Any], pool: TrialPool) -> None:
    with borrow(pool) as first, borrow(pool) as second:
        if first is second:
            raise NotYet("two blocks at once got the same connection: keep the lease in self, not in the class")


def _nothing_out(pool: TrialPool, when: str) -> None:
    if pool.out:
        raise NotYet(f"{when}, {len(pool.out)} connection is still out: that is a leak")


# -- 08.3: the wake-up that gets lost ------------------------------------------------------------------------------


class _Creator:
    """Makes things; says when it was entered, waits until it may go on, and fails if told so."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.go = threading.Event()
        self.fails = 0
        self.made = 0
        self._lock = threading.Lock()

    def __call__(self) -> object:
        self.entered.release()
        self.go.wait(STUCK)
        with self._lock:
            if self.fails:
                self.fails -= 1
                raise SoldOutError("the broker is away")
            self.made += 1
        return object()


class _Getter(threading.Thread):
    """Calls ``get`` once, on a thread of its own, and keeps what came of it."""

    def __init__(self, pool: Any) -> None:
        super().__init__(daemon=True)
        self._pool = pool
        self.got: object = None
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        """Get."""
        try:
            self.got = self._pool.get()
        except BaseException as exc:  # noqa: BLE001 - the check looks at it
            self.error = exc


def _wake(answer: object) -> str:
    if not isinstance(answer, type):
        raise NotYet(f"SmallPool should be the class; it is {type(answer).__name__} now")
    _a_slow_create_holds_up_nobody(answer)
    _a_failure_is_told(answer)
    _a_waiter_is_woken(answer)
    _the_limit_holds(answer)
    return "a failed create frees its place, tells its caller, and wakes who waits; the limit holds"


def _a_waiter_is_woken(small_pool: Callable[..., Any]) -> None:
    create = _Creator()
    create.fails = 1
    pool = small_pool(create, 1)
    first = _Getter(pool)
    create.entered.acquire(timeout=STUCK)
    second = _Getter(pool)
    _until_it_waits(second)
    create.go.set()
    first.join(WOKEN)
    second.join(WOKEN)
    if second.error is not None:
        raise NotYet(f"the second caller got {describe(second.error)}; there was a place for it")
    if second.is_alive():
        raise NotYet(
            "the creator failed, its place is free, and the second caller still waits: nobody woke it. "
            "Who makes a place free must say so"
        )


def _a_failure_is_told(small_pool: Callable[..., Any]) -> None:
    create = _Creator()
    create.go.set()
    create.fails = 2
    pool = small_pool(create, 1)
    for _ in range(2):
        getter = _Getter(pool)
        getter.join(WOKEN)
        if getter.is_alive():
            raise NotYet("after a failed create the next get waits: the failure has kept its place. Lower self.size")
        if not isinstance(getter.error, SoldOutError):
            seen = "no error" if getter.error is None else describe(getter.error)
            raise NotYet(f"create failed, and get gave {seen}: its caller must hear create's own error")


def _a_slow_create_holds_up_nobody(small_pool: Callable[..., Any]) -> None:
    create = _Creator()
    pool = small_pool(create, 2)
    first = _Getter(pool)
    create.entered.acquire(timeout=STUCK)
    giver = threading.Thread(target=pool.put, args=(object(),), daemon=True)
    giver.start()
    giver.join(WOKEN)
    stuck = giver.is_alive()
    create.go.set()
    first.join(WOKEN)
    if stuck:
        raise NotYet("while one connection was being made, put() had to wait: call create outside the lock")


def _the_limit_holds(small_pool: Callable[..., Any]) -> None:
    create = _Creator()
    create.go.set()
    create.fails = 2
    pool = small_pool(create, 2)
    getters = []
    for _ in range(4):
        getters.append(_Getter(pool))
        getters[-1].join(WOKEN)
    things = [getter.got for getter in getters if getter.got is not None]
    extra = _Getter(pool)
    extra.join(QUIET)
    if extra.got is not None:
        raise NotYet(f"2 at most, and {len(things) + 1} are out: a place was given back twice, or too early")
    if len(things) != 2:
        raise NotYet(f"after two failed creates, {len(things)} of 2 places can be used")
    pool.put(things[0])
    extra.join(WOKEN)
    if extra.got is not things[0]:
        raise NotYet("who waits should get what put() brings back")


def _until_it_waits(getter: _Getter) -> None:
    """Return when the getter waits in a condition, or is over. A few milliseconds."""
    ends = time.monotonic() + WOKEN
    while getter.is_alive() and time.monotonic() < ends:
        frame = sys._current_frames().get(getter.ident or 0)
        if frame is not None and frame.f_code.co_filename == threading.__file__ and frame.f_code.co_name == "wait":
            return
        time.sleep(0.005)


EXERCISES = (
    Exercise(
        "08.1",
        _size,
        hints=(
            "Two threads need two connections each. With two in all: what if each has one?",
            "The worst case is that every thread has all but one of what it needs. How many are out then?",
            "In the worst case threads x (held - 1) are out. One more lets somebody finish and give back.",
        ),
    ),
    Exercise(
        "08.2",
        _block,
        hints=(
            "Python calls __exit__ in every case: success, error, interrupt. Do you need to know which?",
            "What does checkin() do if the block has given the lease back? lease.is_out tells you before.",
            "Two lines: if self.lease.is_out, then self.lease.checkin(). Return nothing, so that an error goes on.",
        ),
    ),
    Exercise(
        "08.3",
        _wake,
        hints=(
            "Two callers, one place. The first one's create fails. Who tells the second one?",
            "put() changes what waiters look at, and notifies. Where else does the class change that?",
            "In the except branch, below self.size -= 1 and inside the same with: self.changed.notify().",
        ),
        seconds=30.0,
    ),
)
