"""One settings object in, Pika connections of every kind out. The place where they are made."""

from collections.abc import Callable, Iterable
from typing import Any, TypedDict, Unpack

import pika
import pika.exceptions
from pika.adapters.asyncio_connection import AsyncioConnection

from labkit.connection.connection import Connection
from labkit.connector.abandon import HalfOpenConnection
from labkit.connector.blocking import Bringup
from labkit.connector.callbacks import CallbackConnector, with_bring_up
from labkit.connector.libev import LibevConnection
from labkit.connector.tls_session import agreed
from labkit.errors import ConfigurationError
from labkit.events import (
    ConnectionBlocked,
    ConnectionClosed,
    ConnectionLost,
    ConnectionUnblocked,
    Dispatcher,
    Listener,
)
from labkit.extras import extra
from labkit.retry import Backoff, Clock, SystemClock
from labkit.settings.settings import BrokerSettings, checked_settings
from labkit.values import check_type, checked_callable

FIRST_THREAD_SAFE = "1.5.0rc1"
GRACE = 1.0  # seconds for Pika's thread to say what went wrong, after its own limit


class Callbacks(TypedDict, total=False):
    """What Pika's callback adapters take, all of it optional."""

    on_open_callback: Callable[[Any], Any]
    on_open_error_callback: Callable[[Any, BaseException], Any]
    on_close_callback: Callable[[Any, BaseException], Any]
    custom_ioloop: Any


class ConnectionFactory:
    """Open connections that all look alike, and say what happens to each attempt.

    Thread-safe. What :meth:`blocking` returns is not: one thread owns it, and the others may only call its
    ``add_callback_threadsafe`` (Pika FAQ, "Is Pika thread safe?").

    One *attempt* tries all addresses of one host. With several hosts they are tried in order; a host that refuses
    TLS is not asked again, and a refused login ends everything at once, so that no account is locked by retries.

    On all of them but :meth:`thread_safe`, a message is delivered whatever its properties are, as Pika's object with an
    attribute ``undecodable`` of what could not be read; :class:`labkit.Message` says what that is.

    Args:
        settings: Where to connect, and how patiently.
        backoff: The pauses of the connections that labkit itself retries (:meth:`blocking` takes
            ``settings.connection_attempts`` and ``settings.retry_delay``, as Pika does).
        listeners: Functions that are called with every event.
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
        self.settings = checked_settings(settings)
        check_type("backoff", backoff, Backoff)
        self.backoff = backoff
        self.events = Dispatcher(listeners)
        self._clock = clock

    def __repr__(self) -> str:
        return f"ConnectionFactory({self.settings!r})"

    def blocking(self, opening: HalfOpenConnection | None = None) -> pika.BlockingConnection:
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
        opening = opening if opening is not None else HalfOpenConnection()
        try:
            connection: pika.BlockingConnection = Bringup(
                self.settings, self.events, self._clock, opening.open_one
            ).run()
            # On the connection inside: BlockingConnection hands notices out in process_data_events() only, so that
            # a publish which waits for the end of an alarm would not say why it waits.
            self._report_alarms(connection._impl)
            agreed(connection)
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

    def select(self, **callbacks: Unpack[Callbacks]) -> pika.SelectConnection:
        """Return a ``SelectConnection`` that opens as soon as ``connection.ioloop.start()`` runs its loop.

        This, :meth:`asyncio`, :meth:`tornado`, :meth:`gevent` and :meth:`libev` return before anything is
        connected; the loop's thread owns the connection, and the others may only call the loop's own thread-safe
        method. The bring-up on the loop keeps the promises of :meth:`blocking`: every host, every address, and
        ``connection_attempts``, all within ``connect_deadline``, and no login is tried twice. (A name lookup that
        is given up may live on in a thread; it holds no connection.)

        Args:
            callbacks: Pika's own: ``on_open_callback(connection)``, ``on_open_error_callback(connection, error)``,
                ``on_close_callback(connection, reason)``; and ``custom_ioloop``, a loop of the adapter's kind.
                Each error is a ``pika.exceptions.AMQPError``; what Pika has no such class for (an unknown name, a TLS
                failure, silence) is the argument of an ``AMQPConnectionError``. ``labkit.classify(error)`` looks inside
                and says what it means. Without ``on_open_error_callback`` it is raised into the loop.

        Raises:
            ConfigurationError: a TLS file cannot be read.

        Emits what :meth:`blocking` does, then ConnectionLost or ConnectionClosed.
        """
        return self._on_a_loop(pika.SelectConnection, **callbacks)

    def asyncio(self, **callbacks: Unpack[Callbacks]) -> Any:
        """Return Pika's ``AsyncioConnection`` on the running event loop; see :meth:`select`.

        On Windows the loop must be a ``SelectorEventLoop``: Pika needs ``add_reader``.
        """
        return self._on_a_loop(AsyncioConnection, **callbacks)

    def tornado(self, **callbacks: Unpack[Callbacks]) -> Any:
        """Return Pika's ``TornadoConnection`` on this thread's ``tornado.ioloop.IOLoop``; see :meth:`select`.

        Raises:
            MissingExtra: Tornado is not installed.
        """
        return self._on_a_loop(extra("tornado", "pika.adapters.tornado_connection").TornadoConnection, **callbacks)

    def gevent(self, **callbacks: Unpack[Callbacks]) -> Any:
        """Return Pika's ``GeventConnection`` on this thread's gevent hub; see :meth:`select`.

        It works while any greenlet waits. Not on Windows. ``labkit.connector.libev.pin_gevent()`` puts the hub on
        libev.

        Raises:
            MissingExtra: gevent is not installed.
        """
        return self._on_a_loop(extra("gevent", "pika.adapters.gevent_connection").GeventConnection, **callbacks)

    def libev(self, **callbacks: Unpack[Callbacks]) -> Any:
        """Return a :class:`labkit.connector.libev.LibevConnection`, which runs on libev itself; see :meth:`select`.

        Raises:
            MissingExtra: gevent, which ships the binding of libev, is not installed.
            ConfigurationError: this gevent has no libev (Windows).
        """
        return self._on_a_loop(LibevConnection, **callbacks)

    def twisted(self, reactor: Any = None) -> Any:
        """Return a Deferred of an open ``TwistedProtocolConnection``, on *reactor* (None: Twisted's own).

        Call it on the reactor's thread. Twisted makes the connection; deadlines, hosts, TLS and events are those
        of :meth:`blocking`. The Deferred fails with ConnectError, Pika's error being its ``__cause__``; the
        connection's ``closed`` Deferred fires with what ended it. Cancelled (``addTimeout``, say), it makes no new
        attempt, and closes what the running one still opens.

        Raises:
            MissingExtra: Twisted is not installed.
            ConfigurationError: a TLS file cannot be read (by way of the Deferred).
        """
        ours = extra("twisted", "labkit.connector.twisted")
        if reactor is None:
            reactor = extra("twisted", "twisted.internet.reactor")
        opened = ours.connect(self.settings, self.events, self._clock, self._report_end, reactor)

        def report(connection: Any) -> Any:
            agreed(connection)
            self._report_alarms(connection._impl)
            return connection

        return opened.addCallback(report)

    def thread_safe(self) -> Any:
        """Return an open ``pika.Connection``, which any thread may use; Pika runs its loop in a thread of its own.

        What that loop reads is out of labkit's reach: a message with headers that Pika cannot read, such as tables
        nested some hundred deep, ends this connection, and whichever is given that message next.

        Raises:
            ConfigurationError: the installed Pika has no such class. It came with 1.5.
            ConnectError: as :meth:`blocking`.

        Emits what :meth:`blocking` does.
        """
        connection_class = getattr(pika, "Connection", None)
        if connection_class is None:
            raise ConfigurationError(
                f"Pika {pika.__version__} is installed, and has no thread-safe pika.Connection; Pika 1.5 has it: "
                f"pip install --pre 'pika>={FIRST_THREAD_SAFE},<1.6', or use connect()"
            )

        def open_one(parameters: Any) -> Any:
            return connection_class(
                parameters, timeout=parameters.stack_timeout + GRACE, on_close_callback=self._report_end
            )

        connection = Bringup(self.settings, self.events, self._clock, open_one).run()
        self._report_alarms(connection)
        connection.add_callback_threadsafe(lambda: agreed(connection._connection))  # its loop's thread owns the link
        return connection

    def _on_a_loop(
        self,
        adapter: Any,
        *,
        on_open_callback: Callable[[Any], Any] | None = None,
        on_open_error_callback: Callable[[Any, BaseException], Any] | None = None,
        on_close_callback: Callable[[Any, BaseException], Any] | None = None,
        custom_ioloop: Any = None,
    ) -> Any:
        for name, callback in (
            ("on_open_callback", on_open_callback),
            ("on_open_error_callback", on_open_error_callback),
            ("on_close_callback", on_close_callback),
        ):
            if callback is not None:
                checked_callable(name, callback)
        connection = with_bring_up(adapter)(CallbackConnector(self.settings, self.events, self._clock), custom_ioloop)
        # Ours first: a callback that raises, or that leaves the greenlet, keeps Pika from calling the next one.
        self._report_alarms(connection)
        connection.add_on_close_callback(self._report_end)
        if on_open_callback is not None:
            connection.add_on_open_callback(on_open_callback)
        if on_open_error_callback is not None:
            connection.add_on_open_error_callback(on_open_error_callback)
        if on_close_callback is not None:
            connection.add_on_close_callback(on_close_callback)
        return connection

    def _report_alarms(self, connection: Any) -> None:
        name = self.settings.connection_name
        blocked_at = 0.0

        def on_blocked(_: Any, frame: Any) -> None:
            nonlocal blocked_at
            blocked_at = self._clock.now()
            self.events.emit(ConnectionBlocked(reason=frame.method.reason, connection=name))

        def on_unblocked(_: Any, __: Any) -> None:
            self.events.emit(ConnectionUnblocked(seconds=self._clock.now() - blocked_at, connection=name))

        connection.add_on_connection_blocked_callback(on_blocked)
        connection.add_on_connection_unblocked_callback(on_unblocked)

    def _report_end(self, _: Any, reason: BaseException) -> None:
        name = self.settings.connection_name
        if isinstance(reason, pika.exceptions.ConnectionClosedByClient):
            self.events.emit(ConnectionClosed(connection=name))
        else:
            self.events.emit(ConnectionLost(reason=reason, connection=name))
