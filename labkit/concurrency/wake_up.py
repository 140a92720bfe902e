"""Wake a thread that waits for sockets, from anywhere and without a lock. No Pika.

Pika's own way holds a plain lock while it writes, on the caller's thread. An interrupt that leaves it taken, which
Python 3.14 lets in, makes every later call hang; so does a signal handler that comes while its own thread holds it.
"""

import contextlib
import socket


class WakeUp:
    """Two sockets: one is written to, the other is watched by the thread that waits.

    They are closed when nobody has this object any more. A thread may be about to write while the one that waited
    ends: with the socket closed by then, its number could be another's.

    Raises:
        OSError: no descriptors are left.
    """

    def __init__(self) -> None:
        self._is_rung = False
        self._sockets = self.reading, self._writing = socket.socketpair()
        for each in self._sockets:
            each.setblocking(False)

    def __del__(self) -> None:
        for each in getattr(self, "_sockets", ()):
            each.close()

    def ring(self) -> None:
        """Wake the thread that waits; many before it looks cost one write."""
        if not self._is_rung:
            self._is_rung = True
            with contextlib.suppress(OSError):  # full: then it is awake already
                self._writing.send(b"!")

    def silence(self) -> None:
        """Take what was rung. Call it first, then look for what there is to do."""
        with contextlib.suppress(OSError):
            self.reading.recv(4096)
        self._is_rung = False
