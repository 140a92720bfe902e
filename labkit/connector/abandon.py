"""End a Pika connection at once: no close handshake, nothing waited for. For connections that must not be used again.

An interrupt (Ctrl-C) can come between any two steps of Pika: when it has taken bytes from the socket and not looked
at them yet, or has sent half a frame. What such a connection says next is not to be trusted, and neither is its
own way of closing, which waits for its loop. So the socket is closed under it, which lets the broker give back
to its queues what was unacknowledged; then Pika is told.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pika
import pika.exceptions as px
from pika.adapters.select_connection import SelectConnection

from labkit.connector.contained import OwnLoopServices
from labkit.connector.private_pika import DecodingConnection, close_sockets


def abort(impl: Any, reason: Exception) -> None:
    """Close the socket and the loop of *impl*, and tell its channels *reason*. Twice is fine; never raises.

    Args:
        impl: Pika's ``SelectConnection``, in any state; a ``BlockingConnection`` has one in ``_impl``.
        reason: What later calls of Pika will raise.
    """
    with _whatever_state():
        impl._transport._sock.close()
    with _whatever_state():
        if not impl.is_closed:
            impl._on_stream_terminated(reason)
    with _whatever_state():  # its constructor may have been interrupted at its first line
        close_loop(impl.ioloop)


def close_loop(loop: Any) -> None:
    """Close Pika's loop and its descriptors, also if an interrupt came while Pika was doing that. Never raises."""
    with _whatever_state():
        loop.close()
    forget_loop(loop)  # Pika gives up at the first descriptor that is gone


def forget_loop(loop: Any) -> None:
    """Close the descriptors of Pika's loop, and no more. Never raises.

    In a child process after a fork these are copies, and what the loop waits with is still the parent's: to take
    something out of it there, as Pika does at the end, would take it out of the parent's loop.
    """
    for name in ("_poll", "_kqueue", "_r_interrupt", "_w_interrupt"):  # first what the others could be taken out of
        with _whatever_state():
            getattr(loop._poller, name).close()


class HalfOpenConnection:
    """What there is of a ``BlockingConnection`` while it is being made, so that an interrupt leaves nothing behind.

    Pika's constructor tidies up after an ``Exception`` only. For the thread that opens. What it cannot hold: a
    descriptor that is a bare number inside Python's own ``socket.accept()``, at the moment of the interrupt.
    """

    def __init__(self) -> None:
        self._ioloop: Any = None
        self._workflow: Any = None
        self._impl: Any = None

    def open_one(self, parameters: pika.ConnectionParameters) -> pika.BlockingConnection:
        """Return an open connection; raise what Pika raises.

        Whatever fails leaves nothing open. Pika forgets a socket that is reset in the middle of its connect, and it
        returns a link that ends in the very turn of the loop in which it opens, closed, and nobody closes the loop.
        """
        try:
            # It only calls the next method.
            connection = pika.BlockingConnection(parameters, _impl_class=self)  # labkit: ignore[deprecated-adapter]
        except Exception:
            self.drop()
            raise
        if not connection.is_open:
            self.drop()
            raise px.StreamLostError("the link ended in the moment it opened")
        return connection

    def create_connection(self, configs: Any, *, on_done: Callable[[Any], None], custom_ioloop: Any) -> None:
        """Do what Pika's ``SelectConnection.create_connection`` does, without its thread, and keep hold of all."""
        opening = self
        self._ioloop, self._impl, self._workflow = custom_ioloop, None, None

        class Held(DecodingConnection, SelectConnection):  # type: ignore[misc]
            def __init__(self, *arguments: Any, **options: Any) -> None:
                opening._impl = self
                super().__init__(*arguments, **options)

        services = OwnLoopServices(custom_ioloop)
        self._workflow = Held._start_connection_workflow(
            connection_configs=configs,
            connection_factory=lambda parameters: Held(
                parameters, custom_ioloop=services, internal_connection_workflow=False
            ),
            nbio=services,
            workflow=None,
            on_done=on_done,
        )

    def forget(self) -> None:
        """Close this process's copies of the descriptors, in a child after a fork; never raises."""
        close_sockets(self._impl, self._workflow)
        forget_loop(self._ioloop)

    def drop(self) -> None:
        """Close all that is there. Twice is fine; never raises."""
        if self._impl is not None:
            abort(self._impl, px.ConnectionOpenAborted("interrupted while opening"))
        connector = getattr(self._workflow, "_connector", None)
        if connector is not None:
            with _whatever_state():
                connector._task_ref.cancel()  # closes the socket of a TLS handshake
            with _whatever_state():
                connector._sock.close()
        if self._ioloop is not None:
            close_loop(self._ioloop)


@contextlib.contextmanager
def _whatever_state() -> Iterator[None]:
    """Go on: the interrupt may have come between any two steps, so any of these may be missing or half done."""
    with contextlib.suppress(Exception):
        yield
