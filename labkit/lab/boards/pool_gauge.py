"""A pool in use, idle and waiting, look by look: the state behind the live gauge. It knows no widget."""

from __future__ import annotations

import logging
import threading
import weakref
from collections import deque
from typing import Final, Protocol

import traitlets

from labkit.lab.boards.pool_gauge_picture import Look, PoolHistory
from labkit.pool.stats import PoolStats

LOGGER = logging.getLogger(__name__)
PAUSE: Final = 0.2  # seconds between two measurements of a gauge that follows: looks live, and costs next to nothing
STOPS_WITHIN: Final = 2.0  # seconds; a measurement takes milliseconds
LOOKS_MAX: Final = 200
NOW: Final = "now"


class Measured(Protocol):
    """What a gauge measures: a pool of labkit, or whatever else has its numbers. ``max_size`` may be missing."""

    def get_stats(self) -> PoolStats:
        """Return the numbers of this moment."""


class PoolGauge(traitlets.HasTraits):
    """The looks that somebody took at a pool, and the pool as it is now. Thread-safe.

    A look is a row of the history, taken on purpose: what is between two looks is not recorded, so a history says the
    same in every run that looks at the same points. The attributes are of now; they change together.

    It does not keep the pool alive: one that was forgotten stays as it was seen last.

    Args:
        pool: What to measure.

    Attributes:
        in_use: entries lent now.
        idle: entries ready now.
        opening: entries being made now.
        waiting: callers in the line now.
        picture: the looks and, below them, now: :meth:`PoolHistory.svg`.
        said: one line: now in words.
    """

    in_use = traitlets.Int(0)
    idle = traitlets.Int(0)
    opening = traitlets.Int(0)
    waiting = traitlets.Int(0)
    picture = traitlets.Unicode("")
    said = traitlets.Unicode("")

    def __init__(self, pool: Measured) -> None:
        super().__init__()
        self._pool = weakref.ref(pool)
        # Re-entrant: an observer may read the gauge.
        self._lock = threading.RLock()
        self._looks: deque[Look] = deque(maxlen=LOOKS_MAX)
        self._last = Look(NOW)
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self.refresh()

    def look(self, label: str) -> PoolHistory:
        """Add a row, *label* saying what had happened, and return the history up to it."""
        with self._lock:
            self._looks.append(self._measure(label))
            self.refresh()
            return PoolHistory(self._looks)

    def now(self) -> PoolHistory:
        """Return the looks and, as the last row, the pool as it is at this moment."""
        with self._lock:
            return PoolHistory([*self._looks, self._measure(NOW)])

    def refresh(self) -> None:
        """Measure now. A gauge that follows does this by itself."""
        with self._lock:
            shown = self.now()
            now = shown.looks[-1]
            with self.hold_trait_notifications():
                self.in_use, self.idle, self.opening, self.waiting = now.in_use, now.idle, now.opening, now.waiting
                self.picture, self.said = shown.svg(), f"Now: {now.said}."

    def start_afresh(self) -> None:
        """Forget the looks; the next one is the first row."""
        with self._lock:
            self._looks.clear()
            self.refresh()

    def follow(self) -> None:
        """Measure a few times a second, on a daemon thread, until :meth:`stop` or until the pool is gone."""
        with self._lock:
            if self._thread is None and not self._stopped.is_set():
                self._thread = threading.Thread(target=self._run, name="labkit-pool-gauge", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """Follow no more; what is shown stays. Ends in bounded time; twice is fine."""
        self._stopped.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(STOPS_WITHIN)

    def __repr__(self) -> str:
        return f"PoolGauge({self.now().looks[-1].said})"

    def _measure(self, label: str) -> Look:
        pool = self._pool()
        if pool is not None:
            stats = pool.get_stats()
            self._last = Look(
                label, stats.leased, stats.idle, stats.connecting, stats.waiting, getattr(pool, "max_size", None)
            )
        last = self._last
        return Look(label, last.in_use, last.idle, last.opening, last.waiting, last.places)

    def _run(self) -> None:
        while not self._stopped.wait(PAUSE) and self._pool() is not None:
            try:
                self.refresh()
            except Exception:
                LOGGER.exception("the gauge of a pool could not be refreshed; what it shows is old")
