"""A pool in numbers: what it holds at one moment, and what it has done so far. No locks, no threads."""

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Self


@dataclass(slots=True)
class Counters:
    """What a pool counts. Written under the pool's lock, and only ever upwards; ``pop_stats()`` starts new ones."""

    peak: int = 0
    entered: int = 0  # checkouts that were begun
    granted: int = 0
    timeouts: int = 0
    rejected: int = 0
    closed: int = 0
    queued: int = 0
    created: int = 0
    failed: int = 0
    lost: int = 0
    leaks: int = 0
    recovered: int = 0
    leftovers: int = 0
    reset_failures: int = 0
    wait_seconds: float = 0.0
    use_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class PoolStats:
    """A pool at one moment. ``repr`` shows the gauges; the counters are attributes.

    In every snapshot ``size == idle + leased + connecting``, and
    ``requests == granted + timeouts + rejected + closed + interrupted``.

    Attributes:
        size: Places taken; never more than ``max_size``, except while a smaller ``resize()`` waits for leases.
        idle: Ready to be handed out.
        leased: Handed out.
        waiting: Callers in the line.
        connecting: Being made, or being made clean after a lease.
        retired: Given up, and its close handshake not ended yet: the broker may still count it.
        requests: Checkouts that have got their answer.
        granted: They got what they wanted.
        timeouts: They got PoolTimeout.
        rejected: They were refused at once: TooManyWaiting, or the broker refuses this client for good.
        closed: They got PoolClosed.
        interrupted: They were ended by an interrupt, or by another error that came from outside.
        queued: Requests that had to wait in the line.
        created: Entries made.
        failed: Attempts to make one that failed.
        lost: Entries that died while they were in the pool or lent.
        leaks: Leases that were reported for being out too long.
        recovered: Leases taken back by the pool itself: forgotten without ``checkin()``, or interrupted on their way.
        leftovers: Leases that came back with something left behind, which the pool has ended: an open channel, for
            example. Each is logged, with the place of its checkout.
        reset_failures: How often ``reset`` raised, so that what came back was replaced.
        overdue: Leases that were reported and are out still.
        peak: The most places that were taken at once: the high-water mark.
        wait_seconds: What the answered requests waited, together.
        use_seconds: What the leases given back had lasted, together.
    """

    size: int
    idle: int
    leased: int
    waiting: int
    connecting: int
    retired: int = 0
    requests: int = field(default=0, repr=False)
    granted: int = field(default=0, repr=False)
    timeouts: int = field(default=0, repr=False)
    rejected: int = field(default=0, repr=False)
    closed: int = field(default=0, repr=False)
    interrupted: int = field(default=0, repr=False)
    queued: int = field(default=0, repr=False)
    created: int = field(default=0, repr=False)
    failed: int = field(default=0, repr=False)
    lost: int = field(default=0, repr=False)
    leaks: int = field(default=0, repr=False)
    recovered: int = field(default=0, repr=False)
    leftovers: int = field(default=0, repr=False)
    reset_failures: int = field(default=0, repr=False)
    overdue: int = field(default=0, repr=False)
    peak: int = field(default=0, repr=False)
    wait_seconds: float = field(default=0.0, repr=False)
    use_seconds: float = field(default=0.0, repr=False)

    @classmethod
    def total(cls, parts: Iterable[Self]) -> "PoolStats":
        """Return the sum of several pools' numbers."""
        all_parts = list(parts)
        return cls(**{each.name: sum(getattr(part, each.name) for part in all_parts) for each in fields(cls)})
