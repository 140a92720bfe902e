"""Who has a connection, and for what: out of the pool to send, or one of its own to listen."""

from collections.abc import Callable
from typing import Any

from labkit.connection.connection import Connection
from labkit.errors import LabkitError
from labkit.pool.connections import ConnectionPool
from labkit.pool.lease import Lease
from labkit.rpc.driver import PURPOSE_LISTEN, PURPOSE_SEND, ConnectionBase
from labkit.rpc.failures import InvalidRPCConnectionReuse


class ConnectionContext(ConnectionBase):
    """Stands for a connection until the end of its block: ``with ConnectionContext(pool) as connection:``.

    What is asked of it is asked of the connection. One to send comes from the pool, and goes back there, reset; one to
    listen is new, and is closed. After that every use raises InvalidRPCConnectionReuse. One that is forgotten goes
    back, too: the pool finds out. Not thread-safe.

    Args:
        pool: Of connections that send.
        purpose: "send" or "listen".
        timeout: Seconds to wait for one to send; None: the pool's.
        make_listening: Returns a new one to listen; not open yet.

    Raises:
        PoolTimeout, PoolClosed, ConnectError: there is none to send in time.
    """

    def __init__(
        self,
        pool: ConnectionPool,
        purpose: str = PURPOSE_SEND,
        *,
        timeout: float | None = None,
        make_listening: Callable[[], Connection] | None = None,
    ) -> None:
        self.connection: Any = None
        self._lease: Lease[Connection] | None = None
        if purpose == PURPOSE_LISTEN and make_listening is not None:
            self.connection = make_listening()
        else:
            self._lease = pool.checkout(timeout=timeout)
            self.connection = self._lease.connection

    def __getattr__(self, name: str) -> Any:
        connection = self.__dict__.get("connection")
        if connection is None:
            raise InvalidRPCConnectionReuse(f"{name}: this connection was given back; ask the driver for another")
        return getattr(connection, name)

    def __repr__(self) -> str:
        held = "given back" if self.connection is None else repr(self.connection)
        return f"ConnectionContext({held})"

    def close(self) -> None:
        """Give it back, or close it. Twice is fine; never raises for a dead link."""
        self._done()

    def _done(self) -> None:
        connection, self.connection = self.connection, None
        if connection is None:
            return
        if self._lease is None:
            connection.close()
            return
        try:
            connection.reset()
        except LabkitError:
            connection.abort()  # so that the pool replaces it
        if self._lease.is_out:
            self._lease.checkin()
