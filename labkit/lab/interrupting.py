"""End a blocking call from outside, the way a kernel interrupt does. For lessons; a service calls `stop()` instead."""

import dis
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from labkit.errors import LabkitError
from labkit.values import checked_number

SETTLE = 5.0  # seconds an interrupt that was sent may take to arrive; it takes none unless the machine is very busy


class StopAfter:
    """Interrupt the main thread after *seconds*, and swallow that interrupt at the end of the block.

    ::

        with lab.stop_after(2.0):
            connection.consume("jobs", handler)      # would wait forever

    The block ends early without harm: the timer is cancelled. Only the main thread can use it, since only there
    does Python raise KeyboardInterrupt (signal module, "Signals and threads"). An interrupt that somebody else
    sends, with Ctrl-C or the stop button, leaves the block as always.

    Attributes:
        interrupted: Whether the block was still running after *seconds*.

    Raises:
        ConfigurationError: *seconds* is no number of seconds, 0 or more.
        LabkitError: this is not the main thread.
    """

    def __init__(self, seconds: float) -> None:
        checked_number("stop_after", seconds)
        if threading.current_thread() is not threading.main_thread():
            raise LabkitError("stop_after works in the main thread only: no other thread can be interrupted")
        self._lock = threading.Lock()
        # Plain flags: an Event that the main thread waits for must not be set by a signal handler of that thread,
        # which may run while the wait holds the Event's own lock.
        self._on_its_way = False
        self._arrived = False
        self._over = False
        self._block: Block | None = None
        self._timer = threading.Timer(seconds, self._send)
        self._timer.daemon = True
        self.interrupted = False

    def _send(self) -> None:
        while True:
            with self._lock:
                if self._over or self._arrived:
                    return
                self._on_its_way = True
            if hasattr(signal, "pthread_kill"):  # also ends a system call of the main thread
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            else:
                signal.raise_signal(signal.SIGINT)
            _wait(lambda: not self._on_its_way)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        """Python calls this in the main thread, between any two steps of it: in __exit__ too, before its first line."""
        if not self._on_its_way:  # not ours
            if callable(self._before):
                self._before(number, frame)
            return
        home = self._block.frame if self._block else None
        while frame is not None and frame.f_code not in EDGES and frame is not home:
            frame = frame.f_back
        if frame is not None and frame is home and self._block:
            if self._block.would_catch_here():
                frame = None
            elif self._block.is_entered:
                self._arrived = True  # between the body's last step and __exit__: there is nothing left to end
                self._on_its_way = False
                return
        # At the end of this block it has nothing to end; on the edge of another one it must be sent again.
        is_end = frame is not None and frame.f_code is LEAVING and frame.f_locals["self"] is self
        self._arrived = frame is None or is_end
        self._on_its_way = False
        if frame is None:
            raise KeyboardInterrupt

    def __enter__(self) -> "StopAfter":
        self._block = Block(sys._getframe(1))
        self._before = signal.signal(signal.SIGINT, self._receive)
        try:
            self._timer.start()
        except BaseException:  # entered twice, or there is no thread to be had
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        with self._lock:
            self._over = True
        self._timer.cancel()
        _wait(lambda: not self._on_its_way)  # let it arrive here, not in the next cell
        signal.signal(signal.SIGINT, self._before)
        self._block = None  # it holds a frame
        self.interrupted = self._arrived
        return self._arrived and kind is KeyboardInterrupt


class Block:
    """The ``with`` block that a frame is about to enter.

    Python may call a signal handler when the block's last step is done and ``__exit__`` not begun (from 3.12 on it
    does: the first step of a called function shows the caller's frame). What is raised there, nobody catches. The
    function's exception table tells where that is.
    """

    def __init__(self, frame: FrameType) -> None:
        self.frame = frame
        self._entered = frame.f_lasti
        self._table: list[Any] = dis.Bytecode(frame.f_code).exception_entries  # type: ignore[attr-defined]
        later = [entry for entry in self._table if entry.start > self._entered]
        target = min(later, key=lambda entry: entry.start).target if later else None
        code = frame.f_code.co_code
        is_with = target is not None and dis.opname[code[target + 2]] == "WITH_EXCEPT_START"
        self._cleanup = target if is_with else None  # None: entered by a call, as an ExitStack does

    @property
    def is_entered(self) -> bool:
        """Whether the frame has gone on since ``__enter__``."""
        return self.frame.f_lasti != self._entered

    def would_catch_here(self) -> bool:
        """Whether the ``with`` statement catches what is raised where its frame is now."""
        place: int | None = self.frame.f_lasti
        if self._cleanup is None:
            return True
        while place is not None and place != self._cleanup:
            # From a try inside the block to its own handler, and from there outwards.
            place = next((entry.target for entry in self._table if entry.start <= place < entry.end), None)
        return place is not None


LEAVING = StopAfter.__exit__.__code__
EDGES = (StopAfter.__enter__.__code__, LEAVING)


def _wait(question: Callable[[], bool]) -> None:
    ends = time.monotonic() + SETTLE
    while not question() and time.monotonic() < ends:
        time.sleep(0.001)
