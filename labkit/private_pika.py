"""Every private attribute of Pika that labkit reaches for: which, why, and what would break without it.

``tests/unit/test_private_pika.py`` fails when one of them vanishes from the installed Pika. Each function here is
the only place that spells its name.
"""

import contextlib
from typing import Any

import pika

# Class, attribute, why. What exists only on instances is looked for in the class's source.
NEEDED: tuple[tuple[str, str, str], ...] = (
    ("pika.connection:Connection", "_terminate_stream", "drop(): close a socket without asking the broker"),
    ("pika.adapters.base_connection:BaseConnection", "_transport", "forget_socket(), unsent_bytes()"),
    ("pika.adapters.utils.io_services_utils:_AsyncTransportBase", "_sock", "forget_socket()"),
    ("pika.adapters.select_connection:SelectConnection", "_get_write_buffer_size", "unsent_bytes()"),
    ("pika.adapters.blocking_connection:BlockingConnection", "_impl", "inside(): alarms and time limits"),
    ("pika.adapters.blocking_connection:BlockingConnection", "_flush_output", "drop_blocking()"),
    ("pika.adapters.blocking_connection:BlockingChannel", "_closing_reason", "closing_reason()"),
)


def drop(connection: pika.SelectConnection, reason: Exception) -> None:
    """Close the socket without asking the broker; Pika then reports *reason*. On the loop's thread.

    ``Connection._terminate_stream`` is what Pika's own heartbeat checker calls when the other side is gone. Pika has
    no public way to abandon an open connection; without this one, a dead link would keep its descriptor until
    Pika's heartbeat check, up to 2 x (heartbeat + 5) seconds.
    """
    if connection.is_closed:
        return
    connection._terminate_stream(reason)


def unsent_bytes(connection: pika.SelectConnection) -> int:
    """Return how many bytes wait for the socket to take them.

    ``SelectConnection._get_write_buffer_size``: Pika buffers without limit, and its public ``bytes_sent`` counts what
    was buffered. Without this one, publishing into a link that the other side does not read would fill the memory.
    """
    if not connection.is_open:
        return 0
    return int(connection._get_write_buffer_size())


def forget_socket(connection: pika.SelectConnection) -> None:
    """Close this process's copy of the descriptor, in a child after a fork. Nothing goes over the wire.

    ``BaseConnection._transport._sock``: while the child holds a copy, the broker does not see that the parent has
    dropped its link. Without it, it finds out by its heartbeat.
    """
    with contextlib.suppress(AttributeError, OSError):
        connection._transport._sock.close()


def inside(connection: pika.BlockingConnection) -> Any:
    """Return the ``SelectConnection`` inside a blocking one (``_impl``).

    For its notices of an alarm, which BlockingConnection keeps back until ``process_data_events()``, for a timer that
    runs while a call waits, and to end that wait. Without it a call could wait for ever.
    """
    return connection._impl


def drop_blocking(connection: pika.BlockingConnection, reason: Exception) -> None:
    """Close a blocking connection's socket without asking the broker, and run its loop until that is done.

    ``_flush_output`` is what its own ``close()`` waits with; without it the descriptor would stay open.
    """
    inside(connection)._terminate_stream(reason)
    connection._flush_output(lambda: False)


def closing_reason(channel: Any) -> BaseException | None:
    """Return what closed a ``BlockingChannel``: ``_closing_reason``. Pika's errors say only that it is closed."""
    reason: BaseException | None = getattr(channel, "_closing_reason", None)
    return reason
