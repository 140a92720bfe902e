"""A ready-made ``check=`` for a pool."""

from labkit.connection.connection import Connection
from labkit.errors import NotConnected
from labkit.values import check_type

CHECK_TIMEOUT = 2.0  # seconds for each of two answers


def ask_broker(connection: Connection) -> None:
    """Ask the broker for a channel, and close it: ``ConnectionPool(settings, check=ask_broker)``.

    A pool lends no connection of which it knows that it is lost, but a link that went silent a moment ago looks well
    until 2 x heartbeat are over. This finds it before it is lent, and costs each checkout two round trips.

    Raises:
        DeadlineExceeded: no answer within 2 s.
        NotConnected, ChannelLost: the link has ended.
        ConfigurationError: it is no connection; a :class:`labkit.ChannelPool` has channels.
    """
    check_type("connection", connection, Connection)
    connection.channel(timeout=CHECK_TIMEOUT).close(timeout=CHECK_TIMEOUT)
    if not connection.is_open:
        raise NotConnected("the link ended while it was checked")
