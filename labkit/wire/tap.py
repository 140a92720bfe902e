"""Who said what, and when: the record of the frames that crossed a proxy. Bounded; passwords are masked."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from labkit.errors import DeadlineExceeded
from labkit.values import check_type, checked_number, refused
from labkit.wire.faults import Direction, check_whole
from labkit.wire.frames import FRAME_NAMES, Frame, masked

MOST_ENTRIES: Final = 20_000
MOST_BYTES: Final = 8 << 20  # of frame insides; a message's body is never kept
POLL: Final = 0.01  # seconds between two looks while waiting for a frame

SECRET_FRAMES: Final = frozenset({"Connection.StartOk", "Connection.SecureOk", "Connection.UpdateSecret"})


class Entry(NamedTuple):
    """One frame, or one thing the proxy did (then ``frame`` is None and ``note`` says what)."""

    number: int
    at: float
    """Seconds, on ``time.monotonic``'s clock."""
    link: int
    direction: Direction | None
    frame: Frame | None
    note: str
    passed: bool
    """False when a fault kept the frame from the other side."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in the record; entries made later have a higher number."""

    number: int
    seen: Mapping[str, int] = field(default_factory=dict, compare=False)
    """How many frames of each name had been seen."""

    def __repr__(self) -> str:
        return "<Mark>"


class Tap:
    """The record of one proxy. Thread-safe; the proxy writes, anybody reads.

    It keeps the newest ``MOST_ENTRIES`` entries and ``MOST_BYTES`` of their insides, and counts what it dropped.
    """

    def __init__(self, *, most_entries: int = MOST_ENTRIES, most_bytes: int = MOST_BYTES) -> None:
        self._lock = threading.Lock()
        self._entries: deque[Entry] = deque()
        check_whole("most_entries", most_entries, at_least=1)
        check_whole("most_bytes", most_bytes, at_least=1)
        self._most_entries, self._most_bytes = most_entries, most_bytes
        self._bytes = 0
        self._next = 0
        self._dropped = 0
        self._seen: Counter[str] = Counter()  # also what is no longer kept
        self._forgotten: Mapping[str, int] = {}  # of these, what was seen before clear()
        self.reveal = False
        """Keep passwords of connections opened from now on."""

    @property
    def dropped(self) -> int:
        """How many of the oldest entries are no longer kept."""
        return self._dropped

    def entries(self, since: Mark | None = None) -> list[Entry]:
        """Return what is kept, oldest first; only what came after *since* if given."""
        if since is not None:
            check_type("since", since, Mark)
        with self._lock:
            kept = list(self._entries)
        return kept if since is None else [entry for entry in kept if entry.number >= since.number]

    def mark(self) -> Mark:
        """Remember this moment, for :meth:`entries` and :meth:`wait_for`."""
        with self._lock:
            return Mark(self._next, self._seen.copy())

    def clear(self) -> None:
        """Forget everything; numbers go on, so older marks stay good."""
        with self._lock:
            self._entries.clear()
            self._bytes = self._dropped = 0
            self._forgotten = self._seen.copy()

    def record(
        self, link: int, direction: Direction, frames: Iterable[Frame], passes: Callable[[Frame], bool] | None = None
    ) -> None:
        """Add *frames* that were just seen; *passes* says which of them go on to the other side (None: all)."""
        at = time.monotonic()
        with self._lock:
            for frame in frames:
                kept = masked(frame) if frame.name in SECRET_FRAMES and not self.reveal else frame
                self._entries.append(
                    Entry(self._next, at, link, direction, kept, "", True if passes is None else passes(frame))
                )
                self._next += 1
                self._bytes += len(kept.payload)
                self._seen[frame.name] += 1
            self._trim()

    def note(self, link: int, text: str) -> None:
        """Add something the proxy itself did or found."""
        with self._lock:
            self._entries.append(Entry(self._next, time.monotonic(), link, None, None, text, True))
            self._next += 1
            self._trim()

    def wait_for(self, name: str, *, timeout: float, since: Mark | None = None, count: int = 1) -> None:
        """Wait until *count* frames called *name* were seen (after *since*, if given), whether they are kept or not.

        Raises:
            DeadlineExceeded: it did not happen within *timeout* seconds.
            ConfigurationError: no frame has that name.
        """
        if name not in FRAME_NAMES:
            raise refused("frame", name, "the name of a frame such as 'Basic.Publish'")
        check_whole("count", count, at_least=1)
        if since is not None:
            check_type("since", since, Mark)
        end = time.monotonic() + checked_number("timeout", timeout)
        while True:
            seen = self._seen_since(name, since)
            if seen >= count:
                return
            if time.monotonic() >= end:
                raise DeadlineExceeded(f"saw {seen} of {count} {name} frames within {timeout:g} s")
            # Looking again and again, not a Condition: an interrupted cell then leaves nothing behind.
            time.sleep(POLL)

    def _seen_since(self, name: str, since: Mark | None) -> int:
        with self._lock:
            before = self._forgotten.get(name, 0)
            return self._seen[name] - (before if since is None else max(before, since.seen.get(name, 0)))

    def _trim(self) -> None:
        while len(self._entries) > self._most_entries or (self._bytes > self._most_bytes and len(self._entries) > 1):
            oldest = self._entries.popleft()
            self._bytes -= len(oldest.frame.payload) if oldest.frame else 0
            self._dropped += 1

    def __repr__(self) -> str:
        return "<Tap>"
