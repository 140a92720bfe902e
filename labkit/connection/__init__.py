"""``Connection`` and ``Channel`` for any thread, on one I/O thread."""

from labkit.connection.channel import Channel, QueueState
from labkit.connection.connection import Connection, ConnectionStatus
from labkit.connection.states import State

__all__ = ["Channel", "Connection", "ConnectionStatus", "QueueState", "State"]
