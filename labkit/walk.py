"""The way to one open connection for Pika's callback adapters: hosts, addresses, attempts, under one deadline.

``labkit.bringup`` waits, so it cannot be used on an event loop. Here the same rules are a chain of callbacks.
Pika's own chain has no limit on the name lookup and none on the whole, ends at the first name that does not
resolve, knows one host, and takes whatever the first peer that accepts says, or never says, for the last word.

Everything runs on the loop's thread. What Pika's adapters are made from is used here, public or not: their
I/O services, the shim that joins a transport to a connection, the states of a connection.
"""

import contextlib
import functools
import logging
import socket
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import pika
from pika.adapters.base_connection import BaseConnection, _StreamingProtocolShim
from pika.adapters.utils import connection_workflow as workflow
from pika.tcp_socket_opts import set_sock_opts

from labkit.bringup import SHORTEST_LIMIT, for_address
from labkit.connect_errors import connect_error
from labkit.errors import ConfigurationError, Kind, classify, describe
from labkit.events import (
    AttemptFailed,
    ConnectAttempted,
    ConnectionGivenUp,
    ConnectionOpened,
    Dispatcher,
)
from labkit.retry import Clock
from labkit.second_look import Looked, is_unclear, second_look
from labkit.settings import BrokerSettings
from labkit.tls_session import agreed
from labkit.urls import join_address
from labkit.verdicts import is_tls_failure

LOGGER = logging.getLogger(__name__)

ErrorCallback = Callable[[Any, BaseException], Any]
SocketError = workflow.AMQPConnectorSocketConnectError
TransportError = workflow.AMQPConnectorTransportSetupError


class HostWalk:
    """One bring-up of one connection. Used once, on the loop's thread."""

    def __init__(self, settings: BrokerSettings, events: Dispatcher, clock: Clock) -> None:
        self._settings = settings
        self._events = events
        self._clock = clock
        self.hosts: list[pika.ConnectionParameters] = settings.to_pika()  # reads the TLS files
        self.is_under_way = False
        self._ends = 0.0
        self._started = 0.0
        self._rounds = settings.connection_attempts
        self._attempts = 0
        self._tried: list[str] = []
        self._errors: list[BaseException] = []  # of this round
        self._error: BaseException | None = None  # of this host: the last address's
        self._queue: deque[pika.ConnectionParameters] = deque()  # hosts of this round
        self._addresses: deque[Any] = deque()  # of this host, as getaddrinfo gives them
        self._host_ends = 0.0
        self._looked = Looked()
        self._task: Any = None  # what Pika's I/O services do for us now
        self._timer: Any = None
        self._socket: socket.socket | None = None

    def begin(self, connection: Any, nbio: Any) -> None:
        """Start; the connection's callbacks hear how it ended."""
        self._connection = connection
        self._nbio = nbio
        self._started = self._clock.now()
        self._ends = self._started + self._settings.connect_deadline
        self.is_under_way = True
        self._later(0, self._next_round)

    def abort(self) -> None:
        """Stop, because ``connection.close()`` was called before there was a link (Pika calls this)."""
        self._let_go()
        self.is_under_way = False
        aborted = workflow.AMQPConnectionWorkflowAborted()
        self._nbio.call_later(0, lambda: self._connection._on_connection_workflow_done(aborted))

    def opened(self, _: Any) -> None:
        """Hear from the connection that it is open."""
        self._let_go()
        self.is_under_way = False
        agreed(self._connection)
        seconds = self._clock.now() - self._started
        self._events.emit(ConnectionOpened(attempts=self._attempts, seconds=seconds, **self._place()))

    def goes_on_after(self, error: BaseException) -> bool:
        """Take note that the address that was tried failed; return whether there is something left to try.

        If so it will be tried, by a callback; if not, the walk is over.
        """
        self._let_go()
        if self._looks_again_after(error):
            return True
        refused = classify(error).kind is Kind.REFUSED
        self._error = error
        if refused or self._left() <= 0:
            self._addresses.clear()
        if classify(error).kind is Kind.ASKED_FOR:
            self.is_under_way = False
            return False
        if self._addresses:
            self._later(0, self._next_address)
            return True
        self._errors.append(error)
        if refused and not is_tls_failure(error):
            return self._give_up()  # the same login gets the same answer from the other hosts
        if refused:
            self.hosts = [each for each in self.hosts if each is not self._parameters]
        if self._queue and self._left() > 0:
            self._report(next_delay=0.0)
            self._later(0, self._next_host)
            return True
        pause = self._settings.retry_delay
        if self._rounds <= 0 or not classify(self.error()).is_retryable or pause >= self._left():
            return self._give_up()
        self._report(next_delay=pause)
        self._later(pause, self._next_round)
        return True

    def _looks_again_after(self, error: Any) -> bool:
        """Find out, on a thread, what the other side did not like, if that is unclear; then go on."""
        if not is_unclear(error):  # perhaps there is not even an address yet
            return False
        one = for_address(self._parameters, self._address, SHORTEST_LIMIT)
        if not self._looked.wants(one, error):
            return False
        left = self._host_ends - self._clock.now()

        def look() -> None:
            clearer = second_look(one, error, left)
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                self._nbio.add_callback_threadsafe(lambda: self._judge(clearer))

        threading.Thread(target=look, name="labkit-second-look", daemon=True).start()
        return True

    def _judge(self, error: BaseException) -> None:
        if self.is_under_way:  # not aborted meanwhile
            self._connection.hear_of_the_look(error)

    def error(self) -> Any:
        """Return what ended the walk, in Pika's classes."""
        if not self._errors:
            return self._error or workflow.AMQPConnectionWorkflowAborted()
        # A host that may come back counts for more than one that refused TLS.
        hopeful = [each for each in self._errors if classify(each).is_retryable]
        return workflow.AMQPConnectionWorkflowFailed(hopeful or self._errors)

    # -- the steps ------------------------------------------------------------------------------------------------

    def _next_round(self) -> None:
        self._rounds -= 1
        self._errors.clear()
        if self._attempts:
            self._read_again()
        self._queue = deque(self.hosts)
        self._next_host()

    def _read_again(self) -> None:
        """Use what the TLS files hold now; what the last round used, while somebody is writing them."""
        left = {(each.host, each.port) for each in self.hosts}
        with contextlib.suppress(ConfigurationError):
            self.hosts = [each for each in self._settings.to_pika() if (each.host, each.port) in left]

    def _next_host(self) -> None:
        self._host_ends = self._clock.now() + max(SHORTEST_LIMIT, self._left() / len(self._queue))
        self._parameters = self._queue.popleft()
        # The connection's own copy, which its repr and Pika's errors show; all else is the same for every host.
        self._connection.params.host, self._connection.params.port = self._parameters.host, self._parameters.port
        self._attempts += 1
        self._events.emit(ConnectAttempted(attempt=self._attempts, **self._place()))
        address = join_address(self._parameters.host, self._parameters.port)
        if address not in self._tried:
            self._tried.append(address)
        left = self._host_ends - self._clock.now()
        limit = min(left, self._parameters.socket_timeout or left)
        self._later(limit, functools.partial(self._lookup_is_late, limit))
        self._task = self._nbio.getaddrinfo(
            self._parameters.host,
            self._parameters.port,
            self._resolved,
            socktype=socket.SOCK_STREAM,
            proto=socket.IPPROTO_TCP,
        )

    def _lookup_is_late(self, limit: float) -> None:
        self._failed(TimeoutError(f"no answer about the name {self._parameters.host!r} within {limit:.1f} s"))

    def _resolved(self, answer: Any) -> None:
        self._task = None
        self._let_go()
        host, port = self._parameters.host, self._parameters.port
        if isinstance(answer, UnicodeError):  # a label that IDNA cannot encode: empty, or too long
            answer = socket.gaierror(socket.EAI_NONAME, f"{host!r} is no host name: {answer}")
        if isinstance(answer, BaseException) and host == "localhost":  # as in labkit.bringup.resolve
            answer = [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("127.0.0.1", port))]
        if isinstance(answer, BaseException):
            self._failed(answer)
            return
        self._addresses = deque(answer)
        self._next_address()

    def _next_address(self) -> None:
        family, kind, protocol, _, address = self._addresses.popleft()
        self._address = str(address[0])
        left = (self._host_ends - self._clock.now()) / (len(self._addresses) + 1)
        limit = max(SHORTEST_LIMIT, min(left, self._parameters.stack_timeout or left))
        patience = min(limit, self._parameters.socket_timeout or limit)
        late = TimeoutError(f"no TCP connection to {address[0]}:{address[1]} within {patience:.1f} s")
        self._stack_ends = self._clock.now() + limit
        self._later(patience, functools.partial(self._failed, SocketError(late)))
        try:
            self._socket = socket.socket(family, kind, protocol)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            set_sock_opts(self._parameters.tcp_options, self._socket)
            self._socket.setblocking(False)
            self._task = self._nbio.connect_socket(self._socket, address, on_done=self._connected)
        except OSError as exc:
            self._failed(SocketError(exc))

    def _connected(self, error: BaseException | None) -> None:
        self._task = None
        if error is not None:
            self._failed(SocketError(error))
            return
        taken, self._socket = self._socket, None  # Pika owns it from here on, also when the next step raises
        self._let_go()
        self._later(max(0.0, self._stack_ends - self._clock.now()), self._stack_is_late)
        tls = self._parameters.ssl_options
        try:
            self._task = self._nbio.create_streaming_connection(
                protocol_factory=functools.partial(_StreamingProtocolShim, self._connection),
                sock=taken,
                ssl_context=tls and tls.context,
                server_hostname=tls and tls.server_hostname,
                on_done=self._linked,
            )
        except Exception as exc:  # noqa: BLE001 - judged like one that comes later
            self._failed(TransportError(exc))

    def _linked(self, result: Any) -> None:
        self._task = None  # what follows, the connection hears itself: opened() or goes_on_after()
        if isinstance(result, BaseException):
            self._failed(TransportError(result))

    def _stack_is_late(self) -> None:
        where = join_address(self._parameters.host, self._parameters.port)
        late = workflow.AMQPConnectorStackTimeout(f"no AMQP connection to {where} in time")
        if self._connection._transport is None:
            self._failed(TransportError(late))
        else:
            self._connection._terminate_stream(late)  # and the connection will say so

    def _failed(self, error: BaseException) -> None:
        """Go on, or tell the connection that there will be no link."""
        if not self.goes_on_after(error):
            self._connection._on_connection_workflow_done(self.error())

    # -- small things -----------------------------------------------------------------------------------------------

    def _later(self, seconds: float, step: Callable[[], None]) -> None:
        """Take *step* in so many seconds. There is one timer at a time."""

        def run() -> None:
            self._timer = None
            step()

        self._timer = self._nbio.call_later(seconds, run)

    def _let_go(self) -> None:
        """Cancel what is under way; the socket is ours only until TCP is connected."""
        for each in (self._timer, self._task):
            if each is not None:
                each.cancel()
        self._timer = self._task = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _left(self) -> float:
        return self._ends - self._clock.now()

    def _place(self) -> dict[str, Any]:
        name = self._settings.connection_name
        return {"host": self._parameters.host, "port": self._parameters.port, "connection": name}

    def _report(self, *, next_delay: float | None) -> None:
        if self._error is None:
            return
        failed = AttemptFailed(attempt=self._attempts, error=self._error, next_delay=next_delay, **self._place())
        LOGGER.warning("attempt %d at %s failed: %s", self._attempts, self._tried[-1], describe(self._error))
        self._events.emit(failed)

    def _give_up(self) -> bool:
        self.is_under_way = False
        self._report(next_delay=None)
        elapsed = self._clock.now() - self._started
        error = connect_error(
            self.error(),
            hosts=self._tried,
            attempts=self._attempts,
            elapsed=elapsed,
            shows_certificate=self._settings.shows_certificate,
        )
        self._events.emit(
            ConnectionGivenUp(
                attempts=self._attempts, error=error, seconds=elapsed, connection=self._settings.connection_name
            )
        )
        return False


class WalkingConnection(BaseConnection):  # type: ignore[misc]
    """What :func:`walking` puts in front of one of Pika's adapters: a connection whose bring-up is a HostWalk.

    A handshake that fails resets the connection, as Pika does at every end, and the walk goes on with the same
    object; ``on_open_error_callback`` hears of the last failure only.
    """

    def __init__(self, walk: HostWalk, custom_ioloop: Any) -> None:
        self._walk = walk
        self._connection_workflow: Any
        self._heard_of_errors: list[ErrorCallback] = []
        super().__init__(walk.hosts[0], on_open_error_callback=self._on_attempt_failed, custom_ioloop=custom_ioloop)
        self.add_on_open_callback(walk.opened)

    def add_on_open_error_callback(self, callback: ErrorCallback, remove_default: bool = True) -> None:  # noqa: ARG002
        """Call ``callback(connection, error)`` if there will be no connection."""
        self._heard_of_errors.append(callback)

    def _adapter_connect_stream(self) -> None:
        self._connection_workflow = self._walk
        self._walk.begin(self, self._nbio)

    def _on_attempt_failed(self, _: Any, error: BaseException) -> None:
        if self._walk.is_under_way and self._walk.goes_on_after(error):
            return
        if not self._heard_of_errors:
            raise error  # as Pika does: into the loop
        for callback in self._heard_of_errors:
            callback(self, error)

    def hear_of_the_look(self, error: BaseException) -> None:
        """Hear how an attempt ended whose own error left that open."""
        self._set_connection_state(self.CONNECTION_CLOSED)
        self._connection_workflow = None
        self._on_attempt_failed(self, error)
        self._go_on_opening()

    def _on_stream_terminated(self, error: BaseException | None) -> None:
        super()._on_stream_terminated(error)
        self._go_on_opening()

    def _go_on_opening(self) -> None:
        if self._walk.is_under_way:  # still opening, whatever Pika has just reset
            self._set_connection_state(self.CONNECTION_INIT)
            self._connection_workflow = self._walk


@functools.cache
def walking(adapter: type[BaseConnection]) -> Any:
    """Return *adapter*, one of Pika's classes, with the bring-up of this module; its name stays."""
    return type(adapter.__name__, (WalkingConnection, adapter), {"__doc__": adapter.__doc__})
