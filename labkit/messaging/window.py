"""Flow control: a bounded window of messages and bytes in flight, and a line of threads before it. No Pika, no I/O.

First come, first served where room is short, so that a large message is not starved by small ones.

No lock: the I/O thread makes room here, and must never wait for a thread of the user's, which may be in the middle of
a signal handler; and that handler may publish. What belongs together is read and changed with no call in between.
CPython lets other threads go on, signal handlers run and interrupts strike after calls and at jumps backwards only.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable

from labkit.concurrency.bell import Bell
from labkit.errors import DeadlineExceeded, LabkitError
from labkit.messaging.confirmations import Pending

LOOK = 1.0  # seconds between two looks of a thread in the line, in case nobody woke it


class _LineTicket:
    """A thread's place in the line. A thread has several if a signal handler publishes while it waits."""

    __slots__ = ("bell", "ends", "size", "thread")

    def __init__(self, ends: float, size: int) -> None:
        self.ends = ends
        self.size = size
        self.thread = threading.get_ident()
        self.bell = Bell()


class Window:
    """Let publishes in while there is room and the gate is open. Thread-safe.

    Args:
        max_messages: How many may be inside.
        max_bytes: How many bytes their bodies may have together; one message that is larger goes in alone.
        admit: Called with each as it goes in: in this order they are to be sent. Written in C, so that nothing comes
            between a message's entry and this.
        obstacle: Says what closes the gate now; None: it is open.
        may_wait: Raises on a thread that must not wait here.
    """

    def __init__(
        self,
        max_messages: int,
        max_bytes: int,
        *,
        admit: Callable[[Pending], object],
        obstacle: Callable[[], str | None],
        may_wait: Callable[[], None],
    ) -> None:
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._admit = admit
        self._obstacle = obstacle
        self._may_wait = may_wait
        self._inside: dict[int, Pending] = {}
        self._count = 0  # of what is inside: to ask for its length would be a call
        self._bytes = 0
        self._line: deque[_LineTicket] = deque()
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
        return list(self._inside.values())

    def enter(self, pending: Pending, deadline: float) -> None:
        """Wait for room, and let *pending* in.

        Raises:
            DeadlineExceeded: it could not go in within *deadline* seconds, or by the end of its confirmation.
            LabkitError: what :meth:`refuse` was told, or *may_wait* raised.
        """
        ends = pending.confirmation.ends
        if self.enter_now(pending):
            return
        self._may_wait()
        place = _LineTicket(ends, pending.size)
        try:
            self._line.append(place)  # before the look: who makes room after that wakes whoever stands here
            while not (self._is_next(place) and self._goes_in(pending)):
                self._raise_refusal()
                left = ends - time.monotonic()
                if left <= 0:
                    raise DeadlineExceeded(
                        f"not sent within {deadline:g} s: {self._obstacle() or self._full()}", deadline=deadline
                    )
                if not place.bell.wait(min(left, LOOK)):
                    self._clear_head()
        finally:
            self._step_out(place)

    def enter_now(self, pending: Pending) -> bool:
        """Let *pending* in if it need not wait; say whether it is in.

        Raises:
            LabkitError: what :meth:`refuse` was told.
        """
        return self._has_room_for_all(pending) and self._goes_in(pending)

    def leave(self, settled: Iterable[Pending]) -> None:
        """Make room: these are settled. On the I/O thread."""
        for each in settled:
            if self._inside.pop(each.number, None) is not None:
                self._count -= 1
                self._bytes -= each.size
        self._wake_next()

    def wake(self) -> None:
        """Have the line look again: the gate may be open."""
        self._wake_next()

    def refuse(self, error: Callable[[], LabkitError] | None) -> None:
        """Let nobody in any more; who waits, and who comes, gets what *error* makes. None: let them in again."""
        self._refusal = error
        for place in list(self._line):
            place.bell.ring()

    def _raise_refusal(self) -> None:
        refusal = self._refusal
        if refusal is not None:
            raise refusal()

    def _has_room_for_all(self, pending: Pending) -> bool:
        """Whether *pending* may go ahead of the line: nobody in it would have to wait because of that.

        Threads that publish a lot would else take turns at each message, and a turn costs more than a message.
        """
        if not self._line:
            return True
        line = list(self._line)
        if self._count + len(line) >= self._max_messages:
            return False
        return self._bytes + pending.size + sum(each.size for each in line) <= self._max_bytes

    def _goes_in(self, pending: Pending) -> bool:
        """Let it in if it may go."""
        self._raise_refusal()
        if self._obstacle() is not None:
            return False
        size = pending.size
        # From here on there is no call until it is in, and admitted.
        if self._refusal is not None or self._count >= self._max_messages:
            return False
        if self._count and self._bytes + size > self._max_bytes:
            return False
        self._count += 1
        self._bytes += size
        self._inside[pending.number] = pending
        self._admit(pending)
        return True

    def _is_next(self, place: _LineTicket) -> bool:
        """Whether only places of its own thread are before it: those wait until this one's signal handler ends."""
        for each in list(self._line):
            if each is place:
                return True
            if each.thread != place.thread:
                return False
        return False

    def _wake_next(self) -> None:
        if self._line:
            line = list(self._line)
            for each in line:
                if each.thread != line[0].thread:
                    return
                each.bell.ring()

    def _step_out(self, place: _LineTicket) -> None:
        try:  # noqa: SIM105 - no suppress(): that is a call in Python, so an interrupt could come first
            self._line.remove(place)
        except ValueError:  # an interrupt came before it stood there, or it was cleared away
            pass
        self._wake_next()

    def _clear_head(self) -> None:
        """Remove a thread that was interrupted before it could step out."""
        for each in list(self._line):
            if each.ends + LOOK >= time.monotonic():
                break
            self._step_out(each)
        self._wake_next()

    def _full(self) -> str:
        return f"{len(self._inside)} messages ({self._bytes} bytes) wait for the broker's answer"
