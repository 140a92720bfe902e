"""End a blocking call from outside, the way a kernel interrupt does. For lessons; a service calls `stop()` instead."""

import signal
import threading
from types import TracebackType

SETTLE = 1.0  # seconds an interrupt that was sent may take to arrive


class StopAfter:
    """Interrupt the main thread after *seconds*, and swallow that interrupt at the end of the block.

    ::

        with lab.stop_after(2.0):
            connection.consume("jobs", handler)      # would wait for ever

    The block ends early without harm: the timer is cancelled. Only the main thread can use it, since only there
    does Python raise KeyboardInterrupt (signal module, "Signals and threads").
    """

    def __init__(self, seconds: float) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("stop_after works in the main thread only: no other thread can be interrupted")
        self._lock = threading.Lock()
        self._sent = False
        self._over = False
        self._timer = threading.Timer(seconds, self._send)
        self._timer.daemon = True
        self.interrupted = False

    def _send(self) -> None:
        with self._lock:
            if self._over:
                return
            self._sent = True
        signal.raise_signal(signal.SIGINT) if not hasattr(signal, "pthread_kill") else signal.pthread_kill(
            threading.main_thread().ident or 0, signal.SIGINT
        )

    def __enter__(self) -> "StopAfter":
        self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        try:
            with self._lock:
                self._over = True
            self._timer.cancel()
            if self._sent and kind is not KeyboardInterrupt:
                # The block ended while the interrupt was on its way: let it arrive here, not in the next cell.
                threading.Event().wait(SETTLE)
        except KeyboardInterrupt:
            pass
        self.interrupted = self._sent
        return self._sent and kind is KeyboardInterrupt
