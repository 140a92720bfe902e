"""Every private attribute of Pika that labkit reaches for: where it is, who needs it, and what would break without it.

``tests/unit/test_private_pika.py`` fails when one of them vanishes from the installed Pika, and when a module of labkit
reaches for one that is not in the table. Below it is what the I/O thread does with them.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pika
import pika.exceptions as px

JOIN_MAX = 1 << 16  # bytes; some system calls' worth, and not much to hold back


@dataclass(frozen=True, slots=True)
class Needed:
    """One private attribute.

    Attributes:
        where: ``module:Class`` of Pika that has it.
        name: The attribute.
        used_in: The modules of labkit that spell its name.
        otherwise: What would break without it, and why nothing public does.
        since: The first Pika that has it; empty: every one that labkit takes.
    """

    where: str
    name: str
    used_in: tuple[str, ...]
    otherwise: str
    since: str = ""


_BLOCKING = "pika.adapters.blocking_connection:BlockingConnection"
_CHANNEL = "pika.adapters.blocking_connection:BlockingChannel"
_BASE = "pika.adapters.base_connection:BaseConnection"
_CONNECTION = "pika.connection:Connection"
_LOOP = "pika.adapters.select_connection:IOLoop"
_POLLER = "pika.adapters.select_connection:_PollerBase"
_CONNECTOR = "pika.adapters.utils.connection_workflow:AMQPConnector"

NEEDED = (
    Needed(
        _CONNECTION,
        "_terminate_stream",
        ("private_pika", "owned", "awaited", "reactor", "walk"),
        "A dead link would keep its descriptor, and a call its caller, until Pika's own heartbeat check: up to "
        "2 x (heartbeat + 5) seconds. Pika's public close() waits for the other side's answer.",
    ),
    Needed(
        "pika.adapters.select_connection:SelectConnection",
        "_get_write_buffer_size",
        ("private_pika",),
        "Publishing to a broker that does not read would fill the memory: Pika buffers without limit, and its public "
        "bytes_sent counts what was buffered.",
    ),
    Needed(
        _BASE,
        "_transport",
        ("private_pika", "owned", "dropping", "reactor", "walk", "lab/exercises/notebook_05"),
        "The way to the socket, below; and whether there is one yet, when an attempt is to end.",
    ),
    Needed(
        "pika.adapters.utils.io_services_utils:_AsyncTransportBase",
        "_sock",
        ("private_pika", "owned", "dropping", "lab/exercises/notebook_05"),
        "In a child after a fork the parent's link would stay up after the parent dropped it; an interrupted "
        "BlockingConnection could not be closed; its owner could not wait without Pika reading.",
    ),
    Needed(
        _BLOCKING,
        "_impl",
        ("private_pika", "owned", "dropping", "factory"),
        "No time limit for a BlockingConnection's calls, no way to end it; nobody could say how long its broker's "
        "certificate holds; an alarm would be heard of only once the publish that it holds up has ended: the public "
        "callbacks run in process_data_events().",
    ),
    Needed(
        "pika.adapters.twisted_connection:TwistedProtocolConnection",
        "_impl",
        ("private_pika", "factory", "reactor", "lab/adapters"),
        "Twisted's connection would lose the error of its handshake, outlive a deadline, and tell of no alarm; the "
        "bench could not drive it as the others. Publicly it has no callbacks, and its Deferred fails with a number.",
    ),
    Needed(
        _CONNECTION,
        "_error",
        ("reactor",),
        "Whatever ended a connection on Twisted, the factory's listeners would hear of ConnectionDone. Publicly only "
        "the Deferred closed has the reason, and that is its owner's.",
    ),
    Needed(_BLOCKING, "_ready_events", ("owned",), "An interrupt while waiting would cost the link: see owned.wait()."),
    Needed(_BLOCKING, "_channels_pending_dispatch", ("owned",), "As _ready_events."),
    Needed(_BLOCKING, "_event_dispatch_suspend_depth", ("owned",), "A callback could not be told from its owner."),
    Needed(_CHANNEL, "_closing_reason", ("owned",), "Errors would say that a channel is closed, and not why."),
    Needed(_LOOP, "_get_remaining_interval", ("owned",), "As _ready_events: Pika's own timers would be missed."),
    Needed(_LOOP, "_poller", ("owned", "dropping"), "The way to the next one."),
    Needed(_POLLER, "_r_interrupt", ("owned", "dropping"), "Another thread could not wake a waiting owner."),
    Needed(_POLLER, "_w_interrupt", ("dropping",), "An interrupted loop would keep this descriptor."),
    Needed(
        _CONNECTION,
        "_on_stream_terminated",
        ("dropping", "walk"),
        "The channels of an interrupted link would not be told; an adapter would end at its first address.",
    ),
    Needed(
        _BASE,
        "_adapter_emit_data",
        ("private_pika",),
        "Each frame would be a system call, and a TLS record, of its own: three for a small message.",
    ),
    Needed(_CONNECTION, "_set_connection_state", ("walk",), "As _on_stream_terminated."),
    Needed(
        _BASE, "_adapter_connect_stream", ("walk",), "Adapters would walk the addresses Pika's way, without a deadline."
    ),
    Needed(
        _BASE,
        "_nbio",
        ("walk",),
        "Each kind of loop would need a bring-up of its own: the public ioloop is the bare loop, with its own verbs.",
    ),
    Needed(_BASE, "_on_connection_workflow_done", ("walk",), "As _adapter_connect_stream."),
    Needed(
        _BASE, "_adapter_disconnect_stream", ("reactor",), "A goodbye in Twisted would cut off what is still unsent."
    ),
    Needed(_BASE, "_connection_workflow", ("walk",), "As _adapter_connect_stream."),
    Needed(_BASE, "_start_connection_workflow", ("libev",), "LibevConnection.create_connection() could not be."),
    Needed(
        "pika.adapters.utils.connection_workflow:AMQPConnectionWorkflow",
        "_connector",
        ("dropping",),
        "An interrupt during a connect would leave a socket open.",
    ),
    Needed(
        "pika.adapters.thread_safe_connection:Connection",
        "_connection",
        ("factory",),
        "Nobody would be warned that the broker's certificate ends soon.",
        since="1.5",
    ),
    Needed(_CONNECTOR, "_task_ref", ("dropping",), "As _connector."),
)


class JoiningConnection(pika.SelectConnection):  # type: ignore[misc]
    """A ``SelectConnection`` that can hand many frames to its socket as one piece. On the loop's thread."""

    _pieces: list[bytes] | None = None  # None: nothing is held back
    _size = 0

    @contextlib.contextmanager
    def joining(self) -> Iterator[None]:
        """Hold back what is written in the block, and write it at its end, or as soon as it is JOIN_MAX bytes."""
        self._pieces = []
        try:
            yield
        finally:
            self._write_pieces()
            self._pieces = None

    def _adapter_emit_data(self, data: bytes) -> None:
        if self._pieces is None:
            super()._adapter_emit_data(data)
            return
        self._pieces.append(data)
        self._size += len(data)
        if self._size >= JOIN_MAX:
            self._write_pieces()

    def _write_pieces(self) -> None:
        pieces, self._pieces, self._size = self._pieces, [], 0
        if pieces and self._transport is not None:
            super()._adapter_emit_data(b"".join(pieces))


def drop(connection: pika.SelectConnection, reason: Exception) -> None:
    """Close the socket without asking the broker; Pika then reports *reason*. On the loop's thread.

    During the handshake Pika 1.4 takes a ConnectionOpenAborted for its own, hands on the class of an error where an
    instance is meant, and fails an assertion, which would end the loop. So it gets another error then.
    """
    if isinstance(reason, px.ConnectionOpenAborted) and not connection.is_open:
        reason = px.StreamLostError(*reason.args)
    if not connection.is_closed:
        connection._terminate_stream(reason)


def unsent_bytes(connection: pika.SelectConnection) -> int:
    """Return how many bytes wait for the socket to take them. On the loop's thread."""
    return int(connection._get_write_buffer_size()) if connection.is_open else 0


def forget_socket(connection: pika.SelectConnection) -> None:
    """Close this process's copy of the descriptor, in a child after a fork. Nothing goes over the wire."""
    with contextlib.suppress(AttributeError, OSError):
        connection._transport._sock.close()


def tls_object(connection: Any) -> Any:
    """Return Python's ``SSLSocket`` or ``SSLObject`` under one of Pika's connections; None: there is no TLS.

    On the thread that owns the connection.
    """
    wire = getattr(connection, "_impl", connection)  # BlockingConnection's and Twisted's is inside
    transport = getattr(wire, "_transport", None)
    link = getattr(transport, "_sock", None) or getattr(transport, "tls", None)  # the latter is labkit.reactor's
    return link if hasattr(link, "getpeercert") else None
