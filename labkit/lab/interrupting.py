"""End a blocking call from outside, the way a kernel interrupt does. For lessons; a service calls `stop()` instead."""

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType

from labkit.errors import LabkitError
from labkit.validation import checked_number

SETTLE = 5.0  # seconds an interrupt that was sent may take to arrive; it takes none unless the machine is very busy


class StopAfter:
    """Interrupt the main thread after *seconds*, and swallow that interrupt at the end of the block.

    ::

        with lab.stop_after(2.0):
            connection.consume("jobs", handler)      # would wait for ever

    The block ends early without harm: the timer is cancelled. Only the main thread can use it, since only there
    does Python raise KeyboardInterrupt (signal module, "Signals and threads"). An interrupt that somebody else
    sends, with Ctrl-C or the stop button, leaves the block as always. From Python 3.12 on, one that falls on the very
    end of a block that was ending by itself can escape: give a block that ends by itself more time than it needs.

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
        while frame is not None and frame.f_code not in EDGES:
            frame = frame.f_back
        # At the end of this block it has nothing to end; on the edge of another one it must be sent again.
        is_end = frame is not None and frame.f_code is LEAVING and frame.f_locals["self"] is self
        self._arrived = frame is None or is_end
        self._on_its_way = False
        if frame is None:
            raise KeyboardInterrupt

    def __enter__(self) -> "StopAfter":
        self._before = signal.signal(signal.SIGINT, self._receive)
        self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        with self._lock:
            self._over = True
        self._timer.cancel()
        _wait(lambda: not self._on_its_way)  # let it arrive here, not in the next cell
        signal.signal(signal.SIGINT, self._before)
        self.interrupted = self._arrived
        return self._arrived and kind is KeyboardInterrupt


LEAVING = StopAfter.__exit__.__code__
EDGES = (StopAfter.__enter__.__code__, LEAVING)


def _wait(question: Callable[[], bool]) -> None:
    ends = time.monotonic() + SETTLE
    while not question() and time.monotonic() < ends:
        time.sleep(0.001)
