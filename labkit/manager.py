"""One object for a whole program: it publishes, it consumes, and it keeps both going.

Put together from ``Connection``, ``Publisher``, ``Consumer`` and ``Channel``. Who holds what, and in which order it
ends, is in ``labkit.manager_parts``.
"""

import contextlib
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from labkit.concurrency.bell import Flag
from labkit.concurrency.guard import guard
from labkit.connection.channel import Channel
from labkit.connection.connection import CHANNEL_TIMEOUT, RETRY_REFUSED, SECRET_TIMEOUT, Connection
from labkit.connection.states import State
from labkit.connection.topology_record import Topology
from labkit.content.failed_deliveries import OnError
from labkit.content.sendable import check_route
from labkit.errors import ConfigurationError, DeadlineExceeded, NotConnected
from labkit.event_log import log_event
from labkit.events import ConnectionGivenUp, Dispatcher, Event, Listener
from labkit.manager_parts import LATE_TIMEOUT, ConsumingConnection, ManagedConnection, ManagerResources, SharedRecord
from labkit.messaging.base import CLOSE_TIMEOUT
from labkit.messaging.confirmations import Confirmation
from labkit.messaging.consumer import Consumer
from labkit.messaging.consumer_io import Handler
from labkit.messaging.publisher import Publisher
from labkit.monitor.monitor import ConnectionMonitor
from labkit.retry import Backoff
from labkit.settings.settings import BrokerSettings, checked_settings
from labkit.topology import Binding, Message, Queue
from labkit.values import SHORT_STRING_MAX, checked_flag, checked_number, checked_prefetch, refused
from labkit.watched import Watched

if TYPE_CHECKING:
    import pika


class ConnectionManager:
    """Publish and consume through lost links, from any thread, without a thought for connections.

    Publishing and consuming have a connection each: when the broker has an alarm it stops reading from the one that
    publishes, and messages still arrive on the other. Each is opened when it is first needed. Both recover by
    themselves; prefetch, consumers, topology and unconfirmed messages are there again when they do. There is one layer
    of retries, *backoff*; ``connection_attempts`` and ``retry_delay`` of the settings are Pika's own and not used.

    What happens is logged (``labkit.event_log``), with its cause. The constructor does no I/O. ``with`` opens the
    publishing connection, and raises what keeps it from opening; what the block raises comes out unchanged.

    Thread-safe. In a child process after a fork its connections are new, and opened when they are used.

    Args:
        settings: Where to connect. The connections are named after ``connection_name``: "... publishing",
            "... consuming".
        max_in_flight: How many messages may wait for the broker's answer.
        prefetch: Messages that the broker sends ahead to each consumer that does not say otherwise.
        backoff: The pauses between attempts to connect. With ``attempts``, opening gives up after so many in a row, and
            so does the recovery of the publishing connection, until somebody publishes or calls
            :meth:`ensure_connection`. Nobody would ask for the consuming one, so that goes on.
        retry_refused: Seconds for which recovery tries again when the login is refused; see :class:`Connection`. After
            that both connections are given up, until somebody calls :meth:`ensure_connection`.
        topology: What of that which :meth:`channel` declares is declared again; see :class:`Connection`.
        listeners: Functions that are called with every event of both connections.

    Raises:
        ConfigurationError: an invalid argument.
    """

    def __init__(
        self,
        settings: BrokerSettings,
        *,
        max_in_flight: int = 1000,
        prefetch: int = 10,
        backoff: Backoff = Backoff(),  # noqa: B008 - frozen
        retry_refused: float = RETRY_REFUSED,
        topology: Topology = "all",
        listeners: Iterable[Listener] = (),
    ) -> None:
        self.settings = checked_settings(settings)
        self._retry_refused = retry_refused
        self._topology = topology
        self._max_in_flight = max_in_flight
        self._prefetch = checked_prefetch(prefetch)
        self._backoff = backoff
        self._listeners: tuple[Listener, ...] = (log_event, *Dispatcher(listeners).listeners)
        self._monitor: ConnectionMonitor | None = None
        self._lock = guard()
        self._parts = self._new_parts()

    @classmethod
    def from_arguments(
        cls,
        host: str = "localhost",
        port: int | None = None,
        username: str = "guest",
        password: str = "guest",  # noqa: S107 - RabbitMQ's own default
        virtual_host: str = "/",
        heartbeat: int = 60,
        connection_timeout: float = 30.0,
        max_retries: int | None = 3,
        retry_delay: float = 5.0,
    ) -> Self:
        """Return a manager made from nine plain values.

        Args:
            host: A name or an address.
            port: None: 5672.
            username: Who we are.
            password: Shown nowhere.
            virtual_host: Where the queues are.
            heartbeat: Seconds.
            connection_timeout: Seconds for connecting, all attempts and pauses included (``connect_deadline``).
            max_retries: How many attempts there are in all before it gives up; None: only time limits them.
            retry_delay: Seconds that the first pause has at most; later ones are longer, up to 5 s (``Backoff``).

        Raises:
            ConfigurationError: an invalid value, under the name it has here.
        """
        if not isinstance(connection_timeout, int | float) or isinstance(connection_timeout, bool):
            raise refused("connection_timeout", connection_timeout, "seconds, above 0")
        if not 0 < connection_timeout < float("inf"):
            raise refused("connection_timeout", connection_timeout, "seconds, above 0")
        is_whole = isinstance(max_retries, int) and not isinstance(max_retries, bool)
        if max_retries is not None and not (is_whole and max_retries >= 1):
            raise refused("max_retries", max_retries, "a whole number, 1 or more; None: no limit")
        checked_number("retry_delay", retry_delay)
        settings = BrokerSettings(
            host=host,
            port=port,
            username=username,
            password=password,
            virtual_host=virtual_host,
            heartbeat=heartbeat,
            connect_deadline=connection_timeout,
        )
        maximum = max(Backoff().maximum, retry_delay)
        return cls(settings, backoff=Backoff(initial=retry_delay, maximum=maximum, attempts=max_retries))

    def __repr__(self) -> str:
        parts = self._parts
        if parts.is_closing:
            return f"ConnectionManager({'closed' if parts.is_closed else 'closing'})"
        consumers = f", consumers={len(parts.consumers)}" if parts.consumers else ""
        return f"ConnectionManager({parts.publishing.state.value}{consumers})"

    def __enter__(self) -> Self:
        try:
            return self.open()
        except BaseException:
            self.close(timeout=LATE_TIMEOUT)  # a link without a channel, for example
            raise

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, _: TracebackType | None) -> None:
        self.close()  # raises nothing for a dead link, so the body's own exception survives

    @property
    def publisher(self) -> Publisher:
        """What publishes: it has ``publish_many``, ``flush`` and ``in_flight``. Open after :meth:`open`."""
        return self._open_parts().publisher

    @property
    def monitor(self) -> ConnectionMonitor:
        """What watches both connections, the publisher and the consumers; it begins when it is first asked for."""
        with self._lock:
            monitor = self._monitor = self._monitor or ConnectionMonitor(self)
        return monitor if self._parts.is_closing else monitor.open()

    @property
    def connections(self) -> tuple[Connection, ...]:
        """The connections that have been needed so far: to publish, to consume. For a look at them."""
        parts = self._parts
        return tuple(each for each in (parts.publishing, parts.consuming) if each.state is not State.NEW)

    def open(self, *, deadline: float | None = None) -> Self:
        """Connect, and return self; after :meth:`close` too. Twice is fine.

        Args:
            deadline: Seconds; None: ``connect_deadline`` of the settings.

        Raises:
            AuthenticationFailed, AccessRefused, TlsError, ConnectError, DeadlineExceeded: as :meth:`ensure_connection`.
        """
        if deadline is not None:
            checked_number("deadline", deadline)
        self._begin_again()
        self.ensure_connection(deadline=deadline)
        return self

    def _begin_again(self) -> None:
        """Be as new if it was closed. No I/O."""
        with self._lock:
            if self._parts.is_closing:
                fresh = self._new_parts()
                if self._parts.is_closing:  # else a signal handler has opened it meanwhile
                    self._parts = fresh

    def ensure_connection(self, *, deadline: float | None = None) -> None:
        """Return when it can publish, and when every consumer consumes: connect, wait, or open a channel, as needed.

        Nobody has to call this before a publish. It is for a program that wants to know now, and it brings consumers
        back whose connection was given up. ``is_open`` is never trusted from memory: the I/O thread watches the link.

        Args:
            deadline: Seconds for everything; None: ``connect_deadline`` of the settings.

        Raises:
            AuthenticationFailed, AccessRefused, TlsError: the broker refused. Not retried.
            ConnectError: nothing worked in time; ``__cause__`` is the last error.
            DeadlineExceeded: a link that was lost is not back in time. It goes on trying.
            ChannelLost: a consumer's queue is missing.
            NotConnected: it was closed.
        """
        parts = self._open_parts()
        seconds = self.settings.connect_deadline if deadline is None else float(checked_number("deadline", deadline))
        ends = time.monotonic() + seconds
        parts.begin(parts.publisher, seconds)
        for consumer in parts.consumers:
            parts.begin(consumer, max(0.0, ends - time.monotonic()))

    def publish(
        self,
        exchange: str,
        routing_key: str,
        body: bytes | str | Message,
        properties: "Mapping[str, Any] | pika.BasicProperties | None" = None,
        *,
        mandatory: bool = True,
        deadline: float = 30.0,
    ) -> Confirmation:
        """Hand a message over and return its future: ``publish(...).result()`` returns when the broker has it.

        It connects if need be, and waits while the link is lost or the broker has an alarm. A message is persistent,
        and its content type is what the body is: text or bytes.

        Args:
            exchange: Its name; "": the default exchange, where the routing key is a queue's name.
            routing_key: Up to 255 bytes.
            body: Text, bytes, or a Message with its own properties.
            properties: Names and values, or Pika's object, for text or bytes. They are laid over the defaults.
            mandatory: Have the broker say if no queue would receive it (Unroutable). An answer by direct reply-to needs
                False, as for :meth:`Publisher.publish`.
            deadline: Seconds until its outcome is settled, connecting included.

        Raises:
            ConfigurationError: an invalid argument. Nothing was sent.
            AuthenticationFailed, AccessRefused, TlsError, ConnectError: it cannot connect. Nothing was sent.
            DeadlineExceeded: it did not get its turn within *deadline* seconds. Nothing was sent.
            NotConnected: it is closed. Nothing was sent.
        """
        message = _message(body, properties)
        check_route(exchange, routing_key, mandatory)
        seconds = float(checked_number("deadline", deadline))
        ends = time.monotonic() + seconds
        parts = self._open_parts()
        if parts.publisher.is_closed or not _is_under_way(parts.publishing):
            parts.begin(parts.publisher, min(seconds, self.settings.connect_deadline))
        return parts.publisher.publish(
            message,
            exchange=exchange,
            routing_key=routing_key,
            mandatory=mandatory,
            deadline=max(0.0, ends - time.monotonic()),
        )

    def consume(
        self,
        queue: str | Queue,
        handler: Handler,
        prefetch: int | None = None,
        *,
        bindings: Iterable[Binding] = (),
        workers: int = 1,
        on_error: OnError = "requeue-once",
    ) -> Consumer:
        """Have *handler* called with every delivery, on a thread of its own; return at once. It settles each one.

        The manager holds the consumer until one of the two is closed. What a :class:`Consumer` does about lost links,
        deleted queues and handlers that raise holds here too. There is no automatic acknowledgement: it would lose
        whatever was on its way when a link breaks or a handler raises.

        Args:
            queue: The name of a queue that is there; or a :class:`Queue`, declared on the consuming connection (so must
                be one that is exclusive, or that the broker names).
            handler: A function of one :class:`Delivery`.
            prefetch: Messages that the broker sends ahead, 1 to 65535; None: the manager's.
            bindings: What is bound to the queue, and stays so through lost links; see :class:`Consumer`. An exclusive
                queue can be bound in no other way: :meth:`channel` is on another connection.
            workers: How many messages are handled at once, each on a thread of its own, 1 to the prefetch; with more
                than one the handler must be thread-safe. See :class:`Consumer`.
            on_error: What is done with a delivery whose handler raised; see :class:`Consumer`.

        Raises:
            ConfigurationError: an invalid argument.
            ChannelLost: the broker refused (a queue that is missing, 404).
            ConnectError and others: as :meth:`ensure_connection`.
        """
        parts = self._open_parts()
        chosen = self._prefetch if prefetch is None else prefetch
        consumer = Consumer(
            parts.consuming, queue, handler, bindings=bindings, prefetch=chosen, workers=workers, on_error=on_error
        )
        parts.consume(consumer, self.settings.connect_deadline)
        return consumer

    def update_secret(self, secret: str, reason: str = "", *, timeout: float = SECRET_TIMEOUT) -> None:
        """Log both connections in with *secret* from now on; see :meth:`Connection.update_secret`.

        Args:
            secret: The new password or token. Nothing shows it.
            reason: Why, for the broker: up to 255 bytes.
            timeout: Seconds for both answers together.

        Raises:
            NotConnected, DeadlineExceeded: as there, of the first connection that failed; both keep the secret.
            ConfigurationError: an invalid argument.
        """
        ends = time.monotonic() + checked_number("timeout", timeout)
        parts, failed = self._parts, None
        for each in (parts.publishing, parts.consuming):
            try:
                each.update_secret(secret, reason, timeout=max(0.0, ends - time.monotonic()))
            except (NotConnected, DeadlineExceeded) as exc:
                failed = failed or exc
        self.settings = self.settings.replace(password=secret)
        if failed is not None:
            raise failed

    def channel(self, *, confirm: bool = False, timeout: float = CHANNEL_TIMEOUT) -> Channel:
        """Return a new channel on the publishing connection, to declare, bind, look and get. It never recovers.

        What is declared on it is declared again on every later link, of either connection: what consumers need and what
        is declared here is one topology. It answers nothing while the broker has an alarm
        and this connection has published.

        Args:
            confirm: Whether ``channel.publish()`` waits until the broker has the message.
            timeout: Seconds for everything, connecting included.
        """
        checked_flag("confirm", confirm)
        ends = time.monotonic() + float(checked_number("timeout", timeout))
        parts = self._open_parts()
        parts.begin(parts.publishing, timeout)
        return parts.publishing.channel(confirm=confirm, timeout=max(0.0, ends - time.monotonic()))

    def run_until_stopped(self, *, timeout: float = CLOSE_TIMEOUT) -> None:
        """Wait while consumers work, until Ctrl-C, SIGTERM or :meth:`close`; then end as that does, and return.

        For the main thread of a service: SIGTERM is what systemd, Docker and Kubernetes send first. Handlers for the
        two signals are set while it waits; a second one, while it ends, does what it did before. On another thread only
        :meth:`close` ends it.

        Args:
            timeout: Seconds for the end.

        Raises:
            NotConnected: it is closed already.
            ConnectError and others, as :meth:`ensure_connection`: a connection was given up; all has ended then, too.
            WrongThread: this is the I/O thread, on which nothing may wait.
        """
        checked_number("timeout", timeout)
        parts = self._open_parts()
        parts.publishing._io.may_wait()
        given_up: list[BaseException] = []

        def watch(event: Event) -> None:
            if isinstance(event, ConnectionGivenUp):
                given_up.append(event.error)
                parts.stopped.set()

        self._listen(watch)
        for each in (parts.publishing, parts.consuming):
            if each.state is State.FAILED:  # before somebody listened
                given_up.append(each._life.not_connected())
                parts.stopped.set()
        try:
            with _stopped_by_signals(parts.stopped):
                while not parts.stopped.wait(threading.TIMEOUT_MAX):
                    pass
        finally:
            self._unlisten(watch)
            self.close(timeout=timeout)
        if given_up:
            raise given_up[0]

    def close(self, *, timeout: float = CLOSE_TIMEOUT) -> None:
        """End in order within *timeout* seconds: the consumers, then what is still to be published, then the links.

        A handler that is at work may finish, and publish: those of all consumers have three fifths of the time, from
        the same moment on, and none begins anything new. What the broker has not confirmed in time is settled as
        unknown. From inside a handler, and on the I/O thread, this returns at once, and the end comes on a thread of
        its own. Twice is fine, from any thread; never raises for a dead link: each step's error is logged, and the
        next one follows.
        """
        checked_number("timeout", timeout)
        with self._lock:
            parts = self._parts
            parts.is_closing = True
        if self._monitor is not None:
            self._monitor.close(timeout=0.0)
        if parts.publishing._io.is_current or any(each.is_called_here for each in parts.consumers):
            threading.Thread(target=parts.close, args=(timeout,), name="labkit-manager-close", daemon=True).start()
        else:
            parts.close(timeout)

    # For a monitor (labkit.watched), from any thread.

    def _watched(self) -> Watched:
        parts = self._parts
        return Watched(connections=self.connections, publishers=(parts.publisher,), consumers=parts.consumers)

    def _listen(self, listener: Listener) -> None:
        with self._lock:
            self._listeners = (*self._listeners, listener)
            for each in (self._parts.publishing, self._parts.consuming):
                each.events.add(listener)

    def _unlisten(self, listener: Listener) -> None:
        with self._lock:
            self._listeners = tuple(each for each in self._listeners if each != listener)
            for each in (self._parts.publishing, self._parts.consuming):
                each.events.remove(listener)

    def _open_parts(self) -> ManagerResources:
        parts = self._parts
        parts.check()
        return parts

    def _new_parts(self) -> ManagerResources:
        record = SharedRecord()
        publishing, consuming = (
            kind(
                _named(self.settings, role),
                record,
                backoff=self._backoff,
                recovery=True,
                retry_refused=self._retry_refused,
                topology=self._topology,
                listeners=self._listeners,
            )
            for kind, role in ((ManagedConnection, "publishing"), (ConsumingConnection, "consuming"))
        )
        return ManagerResources(publishing, consuming, Publisher(publishing, max_in_flight=self._max_in_flight))


@contextlib.contextmanager
def _stopped_by_signals(stopped: Flag) -> Iterator[None]:
    """Have Ctrl-C and SIGTERM set *stopped* meanwhile; Python allows that on the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda *_: stopped.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: set by no Python code


def _message(body: bytes | str | Message, properties: "Mapping[str, Any] | pika.BasicProperties | None") -> Message:
    if not isinstance(body, Message):
        return Message.with_properties(body, properties)
    if properties is None:
        return body
    raise ConfigurationError(
        "properties: beside a Message, which has its own, they are not allowed; allowed: None",
        field="properties",
        allowed="None",
    )


def _is_under_way(connection: Connection) -> bool:
    """Whether it is open, or somebody is at it: a publish then waits for it in its own line."""
    return connection.state in (State.CONNECTING, State.OPEN, State.WAITING)


def _named(settings: BrokerSettings, role: str) -> BrokerSettings:
    name = role if settings.connection_name is None else f"{settings.connection_name} {role}"
    return settings if len(name.encode()) > SHORT_STRING_MAX else settings.replace(connection_name=name)
