"""What was handed over on one channel and is not written yet: one line for messages, answers and calls.

Any thread puts something at its end, without a lock; the I/O thread takes from its head. So the order of a thread's
calls is the order on the wire, and no answer overtakes a message that was published before it.
"""

import contextlib
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from labkit.concurrency.bell import Bell
from labkit.connection.link import UNSENT_MAX, Link
from labkit.connection.loop import contain
from labkit.errors import DeadlineExceeded

LINE_MAX = 1000  # messages and answers that may wait before whoever hands one over waits, too
SLICE = 100  # of them that are sent before the loop looks at its other sockets
MESSAGE, ANSWER, CALL = "message", "answer", "call"


@dataclass(slots=True, eq=False)
class HandedOver:
    """One thing to be done when it is its turn.

    Attributes:
        send: Does it, on the I/O thread. A call's tells who waits for it if the channel is gone.
        kind: MESSAGE, ANSWER (of a delivery) or CALL.
        size: Bytes of a message, its properties included.
    """

    send: Callable[[], object]
    kind: str
    size: int = 0


class Outbox:
    """The line of one channel. Holds up to LINE_MAX entries or UNSENT_MAX bytes, those that Pika has not sent included.

    Threads that find room at the same moment all use it, so there may be one more for each of them.

    Attributes:
        is_shut: Whether the channel has ended; set on the I/O thread.
    """

    def __init__(self, link: Link) -> None:
        self.is_shut = False
        self._link = link
        self._line: deque[HandedOver] = deque()
        self._waiting: list[Bell] = []  # of threads that wait for room
        self._largest = 0  # bytes; no message that waits has more
        self._due: object = None  # what the I/O thread is asked to look with; None: it is not asked

    def __len__(self) -> int:
        return len(self._line)

    def put(self, entry: HandedOver, *, timeout: float) -> bool:
        """Put *entry* at the end; False: it is not handed over, since the channel has ended. From any thread.

        A call does not wait for room: it waits for its answer.

        Raises:
            DeadlineExceeded: there was no room, or the broker blocked the connection, for *timeout* seconds; the entry
                is not handed over.
            WrongThread: the same, at once, on the I/O thread.
            NotConnected: no thread can be started (the interpreter is ending).
        """
        if entry.kind != CALL and self._why_full(entry.kind):
            self._wait(entry.kind, timeout)
        self._largest = max(self._largest, entry.size)
        self._line.append(entry)
        if self.is_shut:
            return not self._remove(entry)  # else it was counted with the rest, as one that was handed over
        try:
            self._look_soon()
        except Exception:
            self._remove(entry)
            raise
        return True

    def drain(self, most: int = SLICE) -> None:
        """Send what may go, up to so many, and make room. On the I/O thread."""
        line = self._line
        for _ in range(min(most, len(line))):
            if not (line and self._may_go(line[0])):
                break
            contain(line.popleft().send)
        # Not as soon as there is room for one: while publishers run, this thread gets Python's lock every 5 ms only.
        if self._waiting and len(line) <= LINE_MAX // 2 and not self._why_full(MESSAGE):
            self.wake()
        if line and self._may_go(line[0]):
            self._look_soon()  # the others' turn first
        elif (line or self._waiting) and not self.is_shut:
            self._link.look_again(self.drain)

    def tick(self) -> None:
        """Look, and be asked again: a thread may have been cut off as it asked. On the I/O thread."""
        self._due = None
        if self._line:
            self.drain()

    def shut(self) -> list[HandedOver]:
        """Take nothing any more, and return what was not sent. On the I/O thread."""
        self.is_shut = True
        left: list[HandedOver] = []
        while self._line:
            left.append(self._line.popleft())
        return left

    def wake(self) -> None:
        """Wake who waits for room."""
        with contextlib.suppress(IndexError):
            while True:
                self._waiting.pop().ring()

    def _wait(self, kind: str, timeout: float) -> None:
        self._link.io.may_wait()
        bell, ends = Bell(), time.monotonic() + timeout
        try:
            while True:
                self._waiting.append(bell)  # before the look: who makes room after that finds it
                why = self._why_full(kind)
                if not why or self.is_shut:
                    return
                self._look_soon()
                if not bell.wait(ends - time.monotonic()):
                    raise DeadlineExceeded(f"not handed over within {timeout:g} s: {why}", deadline=timeout)
        finally:
            with contextlib.suppress(ValueError):
                self._waiting.remove(bell)

    def _why_full(self, kind: str) -> str:
        """Return why there is no room; "": there is."""
        link, count = self._link, len(self._line)
        if kind == MESSAGE and link.is_blocked:
            return f"the broker blocks the connection ({link.blocked_for})"
        if count >= LINE_MAX:
            return f"{count} messages and answers wait to be sent; the I/O thread is {link.io.lag:.1f} s behind"
        if count * self._largest + link.unsent >= UNSENT_MAX:
            sizes = [each.size for each in list(self._line)]
            self._largest = max(sizes, default=0)
            if sum(sizes) + link.unsent >= UNSENT_MAX:
                return f"{UNSENT_MAX} bytes wait for the socket"
        return ""

    def _may_go(self, entry: HandedOver) -> bool:
        return entry.kind != MESSAGE or self._link.may_publish

    def _remove(self, entry: HandedOver) -> bool:
        try:
            self._line.remove(entry)
        except ValueError:
            return False
        return True

    def _look_soon(self) -> None:
        """Have the I/O thread look: once for all that is put before it does."""
        if self._due is None:
            due = self._due = object()  # if an interrupt comes now, the channel's next tick looks
            self._link.io.post(partial(self._look, due))

    def _look(self, due: object) -> None:
        if due is self._due:  # else somebody asked later; each look that went on asking would be one more in every turn
            self._due = None  # first, as in WakeUp
            self.drain()
