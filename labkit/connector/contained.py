"""Pika's I/O services as one connection sees them: what Pika's callbacks raise is that connection's trouble alone.

Pika lets an error of the operating system out of some of its callbacks while it connects: no descriptors are left, the
kernel has no IPv6, or refuses a socket option. In a loop of the connection's own that would end that loop. In one that
many connections share, it would end them all; in asyncio's it would be logged, and nobody would be told.
"""

import contextlib
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

from pika.adapters.utils.selector_ioloop_adapter import SelectorIOServicesAdapter

Callback = Callable[..., object]


class KnownAddress:
    """A mixin, to be put before one of Pika's classes of I/O services: no thread looks an address up."""

    def getaddrinfo(self, host: str, port: int, on_done: Callable[[Any], object], **_: object) -> Any:
        """Look at the address, which is known already.

        Pika asks for it on a thread. Given up at the moment when the answer is there, Pika 1.4.4 goes on to connect,
        after it has said that it has stopped, and nobody closes that socket. And an interrupt in the middle of a
        thread's start leaves one that never runs, for which Python waits at its end.
        """
        records = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        return self.call_later(0, partial(on_done, records))  # type: ignore[attr-defined]


class Contained(KnownAddress):
    """A mixin, to be put before one of Pika's classes of I/O services. On the loop's thread.

    Args:
        loop: The loop, as the class behind takes it.
        failed: Called with what a callback raised: the connection is to be abandoned, and :meth:`end` called.
    """

    def __init__(self, loop: Any, failed: Callable[[BaseException], object]) -> None:
        super().__init__(loop)  # type: ignore[call-arg]
        self._failed = failed
        self._is_over = False
        self._watched: set[int] = set()

    def end(self) -> None:
        """Run no callback of this connection any more, and watch none of its sockets."""
        self._is_over = True
        services: Any = self
        for fd in self._watched:
            for forget in (services.remove_reader, services.remove_writer):
                with contextlib.suppress(Exception):  # closed already, for example
                    forget(fd)

    def add_callback_threadsafe(self, callback: Callback) -> None:
        """Run *callback* soon; any thread may ask for that."""
        super().add_callback_threadsafe(partial(self._run, callback))  # type: ignore[misc]

    def call_later(self, delay: float, callback: Callback) -> Any:
        """Run *callback* after *delay* seconds."""
        return super().call_later(delay, partial(self._run, callback))  # type: ignore[misc]

    def set_reader(self, fd: int, on_readable: Callback) -> None:
        """Run *on_readable* whenever there is something to read."""
        self._watched.add(fd)
        super().set_reader(fd, partial(self._run, on_readable))  # type: ignore[misc]

    def set_writer(self, fd: int, on_writable: Callback) -> None:
        """Run *on_writable* whenever there is room to write."""
        self._watched.add(fd)
        super().set_writer(fd, partial(self._run, on_writable))  # type: ignore[misc]

    def _run(self, callback: Callback) -> None:
        if self._is_over:
            return
        try:
            callback()
        except BaseException as exc:  # noqa: BLE001 - the loop is not this connection's alone
            self._failed(exc)


class OwnLoopServices(KnownAddress, SelectorIOServicesAdapter):  # type: ignore[misc]
    """On Pika's ``IOLoop``, for the one connection that has it."""


class SharedLoopServices(Contained, SelectorIOServicesAdapter):  # type: ignore[misc]
    """On Pika's ``IOLoop``, for one of many connections."""
