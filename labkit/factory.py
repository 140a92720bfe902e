"""One settings object in, open Pika connections out. The place where ``pika.BlockingConnection`` is made."""

from collections.abc import Iterable
from typing import Any

import pika

from labkit.bringup import Bringup
from labkit.connection import Connection
from labkit.dropping import Opening
from labkit.events import ConnectionBlocked, ConnectionUnblocked, Dispatcher, Listener
from labkit.retry import Backoff, Clock, SystemClock
from labkit.settings import BrokerSettings


class ConnectionFactory:
    """Open connections that all look alike, and say what happens to each attempt.

    Thread-safe. What :meth:`blocking` returns is not: one thread owns it, and the others may only call its
    ``add_callback_threadsafe`` (Pika FAQ, "Is Pika thread safe?").

    One *attempt* tries all addresses of one host. With several hosts they are tried in order; a host that refuses
    TLS is not asked again, and a refused login ends everything at once, so that no account is locked by retries.

    Args:
        settings: Where to connect, and how patiently.
        backoff: The pauses of the connections that labkit itself retries (:meth:`blocking` takes
            ``settings.connection_attempts`` and ``settings.retry_delay``, as Pika does).
        listeners: Functions that hear of every event.
        clock: Where time comes from.
    """

    def __init__(
        self,
        settings: BrokerSettings,
        *,
        backoff: Backoff = Backoff(),  # noqa: B008 - frozen
        listeners: Iterable[Listener] = (),
        clock: Clock = SystemClock(),  # noqa: B008 - holds nothing
    ) -> None:
        self.settings = settings
        self.backoff = backoff
        self.events = Dispatcher(listeners)
        self._clock = clock

    def __repr__(self) -> str:
        return f"ConnectionFactory({self.settings!r})"

    def blocking(self, opening: Opening | None = None) -> pika.BlockingConnection:
        """Return an open ``BlockingConnection``, owned by the calling thread.

        It works only while one of its methods runs: heartbeats and notices wait for
        ``connection.process_data_events()``. Ctrl-C leaves nothing behind.

        Args:
            opening: Holds what is being made, for a caller that may be interrupted before it has the connection.

        Raises:
            AuthenticationFailed: user, password or mechanism refused. Not retried.
            AccessRefused: no such virtual host, or no permission on it. Not retried.
            TlsError: the TLS handshake failed for good on the hosts that could be reached.
            ConnectError: nothing worked in ``connection_attempts`` tries or ``connect_deadline`` seconds.
            ConfigurationError: a TLS file cannot be read.

        Emits ConnectAttempted, then AttemptFailed or ConnectionOpened; ConnectionGivenUp before it raises; later
        ConnectionBlocked and ConnectionUnblocked.

        Reference: AMQP 0-9-1, section 2.2.4 (The Connection Class).
        """
        opening = opening if opening is not None else Opening()
        try:
            connection: pika.BlockingConnection = Bringup(
                self.settings, self.events, self._clock, opening.open_one
            ).run()
            self._report_alarms(connection)
        except BaseException:
            opening.drop()
            raise
        return connection

    def connect(self, *, deadline: float | None = None) -> Connection:
        """Return an open connection that any thread may use; it does not recover from a loss.

        Args:
            deadline: Seconds for everything; None: ``settings.connect_deadline``.

        Raises:
            ConnectError: as :meth:`Connection.open` does.

        Emits what :class:`Connection` does, to the factory's listeners.
        """
        connection = Connection(self.settings, backoff=self.backoff, listeners=[self.events.emit])
        return connection.open(deadline=deadline)

    def _report_alarms(self, connection: pika.BlockingConnection) -> None:
        name = self.settings.connection_name
        blocked_at = 0.0

        def on_blocked(_: Any, frame: Any) -> None:
            nonlocal blocked_at
            blocked_at = self._clock.now()
            self.events.emit(ConnectionBlocked(reason=frame.method.reason, connection=name))

        def on_unblocked(_: Any, __: Any) -> None:
            self.events.emit(ConnectionUnblocked(seconds=self._clock.now() - blocked_at, connection=name))

        # On the connection inside: BlockingConnection hands notices out in process_data_events() only, so that a
        # publish which waits for the end of an alarm would not say why it waits.
        connection._impl.add_on_connection_blocked_callback(on_blocked)
        connection._impl.add_on_connection_unblocked_callback(on_unblocked)
