"""How much a publisher may have on its way: a window of messages and bytes, and a line before it. No Pika, no I/O.

First come, first served where room is short, so that a large message is not starved by small ones. A thread in the
line waits on a queue's own lock, in C: an interrupt (Ctrl-C) ends the wait, and what it leaves behind is cleared by
whoever looks next.
"""

import queue
import time
from collections import deque
from collections.abc import Callable, Iterable

from labkit.confirms import Pending
from labkit.errors import DeadlineExceeded, LabkitError
from labkit.guard import guard

LOOK = 1.0  # seconds between two looks of a thread in the line, in case nobody woke it


class _Place:
    """A thread's place in the line."""

    __slots__ = ("ends", "signal", "size")

    def __init__(self, ends: float, size: int) -> None:
        self.ends = ends
        self.size = size
        self.signal: queue.SimpleQueue[None] = queue.SimpleQueue()


class Window:
    """Let publishes in while there is room and the gate is open. Thread-safe.

    Args:
        max_messages: How many may be inside.
        max_bytes: How many bytes their bodies may have together; one message that is larger goes in alone.
        admit: Called with each as it goes in, under the lock: in this order they are to be sent.
        obstacle: Says what closes the gate now; None: it is open.
    """

    def __init__(
        self,
        max_messages: int,
        max_bytes: int,
        *,
        admit: Callable[[Pending], object],
        obstacle: Callable[[], str | None],
    ) -> None:
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._admit = admit
        self._obstacle = obstacle
        self._lock = guard()
        self._inside: dict[int, Pending] = {}
        self._bytes = 0
        self._line: deque[_Place] = deque()
        self._refusal: Callable[[], LabkitError] | None = None

    def __len__(self) -> int:
        return len(self._inside)

    def __repr__(self) -> str:
        return f"Window({len(self._inside)} of {self._max_messages})"

    @property
    def bytes(self) -> int:
        """How many bytes the bodies inside have."""
        return self._bytes

    def inside(self) -> list[Pending]:
        """Return what has gone in and is not settled, oldest first."""
        with self._lock:
            return list(self._inside.values())

    def enter(self, pending: Pending, deadline: float) -> None:
        """Wait for room, and let *pending* in.

        Raises:
            DeadlineExceeded: it could not go in within *deadline* seconds, or by the end of its confirmation.
            LabkitError: what :meth:`refuse` was told.
        """
        ends = pending.confirmation.ends
        with self._lock:
            if self._has_room_for_all(pending) and self._goes_in(pending):
                return
            place = _Place(ends, pending.size)
            self._line.append(place)
        try:
            while True:
                left = ends - time.monotonic()
                if left <= 0:
                    raise DeadlineExceeded(
                        f"not sent within {deadline:g} s: {self._obstacle() or self._full()}", deadline=deadline
                    )
                try:
                    place.signal.get(timeout=min(left, LOOK))
                except queue.Empty:
                    self._clear_head()
                with self._lock:
                    if self._line and self._line[0] is place and self._goes_in(pending):
                        return
                    if self._refusal is not None:
                        raise self._refusal()
        finally:
            self._step_out(place)

    def leave(self, settled: Iterable[Pending]) -> None:
        """Make room: these are settled."""
        with self._lock:
            for each in settled:
                if self._inside.pop(each.number, None) is not None:
                    self._bytes -= each.size
            if not self._inside:
                self._bytes = 0  # an interrupt between two steps of _goes_in may have cost it its sum
            self._wake_head()

    def wake(self) -> None:
        """Have the line look again: the gate may be open."""
        with self._lock:
            self._wake_head()

    def refuse(self, error: Callable[[], LabkitError] | None) -> None:
        """Let nobody in any more; who waits, and who comes, gets what *error* makes. None: let them in again."""
        with self._lock:
            self._refusal = error
            for place in self._line:
                place.signal.put(None)

    def _has_room_for_all(self, pending: Pending) -> bool:
        """Whether *pending* may go ahead of the line: nobody in it would have to wait because of that.

        Threads that publish a lot would else take turns at each message, and a turn costs more than a message.
        """
        line = self._line
        if not line:
            return True
        if len(self._inside) + len(line) >= self._max_messages:
            return False
        return self._bytes + pending.size + sum(each.size for each in line) <= self._max_bytes

    def _goes_in(self, pending: Pending) -> bool:
        """Let it in if it may go; the lock is held."""
        if self._refusal is not None:
            raise self._refusal()
        inside = len(self._inside)
        if inside >= self._max_messages or (inside and self._bytes + pending.size > self._max_bytes):
            return False
        if self._obstacle() is not None:
            return False
        self._inside[pending.number] = pending
        self._bytes += pending.size
        self._admit(pending)
        return True

    def _step_out(self, place: _Place) -> None:
        with self._lock:
            if place in self._line:
                self._line.remove(place)
            self._wake_head()

    def _clear_head(self) -> None:
        """Remove a thread that was interrupted before it could step out."""
        with self._lock:
            while self._line and self._line[0].ends + LOOK < time.monotonic():
                self._line.popleft()
            self._wake_head()

    def _wake_head(self) -> None:
        if self._line:
            self._line[0].signal.put(None)

    def _full(self) -> str:
        return f"{len(self._inside)} messages ({self._bytes} bytes) wait for the broker's answer"
