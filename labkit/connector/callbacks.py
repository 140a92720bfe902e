"""Bring a connection up by the callbacks of an event loop, for Pika's callback adapters.

``labkit.connector.plan`` says what comes next; each step begins here, and a callback says how it ended.

Everything but name lookups and second looks runs on the loop's thread. What Pika's adapters are made from is used
here, public or not: their I/O services, the shim that joins a transport to a connection, the states of a connection.
"""

import contextlib
import copy
import functools
import socket
from collections.abc import Callable
from typing import Any

import pika
import pika.exceptions as px
from pika.adapters.base_connection import BaseConnection, _StreamingProtocolShim
from pika.adapters.utils import connection_workflow as workflow
from pika.tcp_socket_opts import set_sock_opts

from labkit.concurrency.threads import start_thread
from labkit.connector.blocking import addresses, look_up, no_answer
from labkit.connector.login import credentials, no_credentials
from labkit.connector.plan import AskLogin, LookUp, Open, Plan, Probe, Step
from labkit.connector.private_pika import DecodingConnection
from labkit.connector.probe import probe
from labkit.connector.tls_session import agreed
from labkit.errors import ConnectError
from labkit.events import Dispatcher
from labkit.retry import Clock
from labkit.settings.settings import BrokerSettings
from labkit.settings.urls import join_address

ErrorCallback = Callable[[Any, BaseException], Any]
SocketError = workflow.AMQPConnectorSocketConnectError
TransportError = workflow.AMQPConnectorTransportSetupError


class CallbackConnector:
    """One bring-up of one connection. Used once, on the loop's thread.

    Raises:
        ConfigurationError: a TLS file cannot be read.
    """

    def __init__(self, settings: BrokerSettings, events: Dispatcher, clock: Clock) -> None:
        self._plan = Plan(settings, events, clock=clock)
        self._clock = clock
        self.first: pika.ConnectionParameters = self._plan.hosts.first
        self.is_under_way = False
        self.error: Exception | None = None  # what ended it, in Pika's classes
        self._name = ""  # of the host whose addresses are tried
        self._opens_until = 0.0  # by the clock
        self._task: Any = None  # what Pika's I/O services do for us now
        self._timer: Any = None
        self._asked: object = None  # what a thread finds out for us now
        self._socket: socket.socket | None = None

    def begin(self, connection: Any, nbio: Any) -> None:
        """Start; the connection's callbacks are called at its end."""
        self._connection = connection
        self._nbio = nbio
        self.is_under_way = True
        self._later(0, lambda: self._take(self._plan.begin()))

    def abort(self) -> None:
        """Stop, because ``connection.close()`` was called before there was a link (Pika calls this)."""
        self.try_next_after(px.ConnectionOpenAborted("closed while connecting"))
        aborted = workflow.AMQPConnectionWorkflowAborted()
        self._nbio.call_later(0, lambda: self._connection._on_connection_workflow_done(aborted))

    def opened(self, _: Any) -> None:
        """Take note that the connection is open."""
        self._let_go()
        self.is_under_way = False
        agreed(self._connection)
        self._plan.succeeded(self._connection)

    def try_next_after(self, error: Exception) -> bool:
        """Take note that the step under way failed; return whether another one follows, by a callback."""
        return self._goes_on(lambda: self._plan.failed(error))

    # -- the steps ------------------------------------------------------------------------------------------------

    def _take(self, step: Step) -> None:
        match step:
            case AskLogin():
                self._ask_login(step)
            case LookUp():
                self._look_up(step)
            case Open(parameters):
                self._open(parameters)
            case Probe():
                self._probe(step)
            case _:
                self._later(step.seconds, functools.partial(self._succeeded, None))

    def _ask_login(self, step: AskLogin) -> None:
        self._later(step.seconds, functools.partial(self._failed, no_credentials(step.seconds)))
        step.login.ask(self._from_a_thread(lambda answer: self._take_answer(lambda: credentials(answer))))

    def _look_up(self, step: LookUp) -> None:
        self._name = step.host
        self._show(step.host, step.port)
        self._later(step.seconds, functools.partial(self._failed, no_answer(step.host, step.seconds)))
        resolved = self._from_a_thread(lambda answer: self._take_answer(lambda: addresses(step.host, answer)))
        look_up(step.host, step.port, resolved)

    def _take_answer(self, read: Callable[[], Any]) -> None:
        try:
            answer = read()
        except Exception as exc:  # noqa: BLE001 - the plan judges it
            self._failed(exc)
        else:
            self._succeeded(answer)

    def _open(self, parameters: pika.ConnectionParameters) -> None:
        patience = parameters.socket_timeout
        self._opens_until = self._clock.now() + parameters.stack_timeout
        # The connection's own copy, because a handshake writes what was agreed into it; with the name that Pika's
        # errors show.
        self._connection.params = copy.copy(parameters)
        self._show(self._name, parameters.port)
        where = join_address(parameters.host, parameters.port)
        late = TimeoutError(f"no TCP connection to {where} within {patience:.1f} s")
        self._later(patience, functools.partial(self._failed, SocketError(late)))
        try:
            (record,) = socket.getaddrinfo(
                parameters.host,
                parameters.port,
                type=socket.SOCK_STREAM,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST,
            )
            family, kind, protocol, _, address = record
            self._socket = socket.socket(family, kind, protocol)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            set_sock_opts(parameters.tcp_options, self._socket)
            self._socket.setblocking(False)
            on_done = functools.partial(self._connected, parameters)
            self._task = self._nbio.connect_socket(self._socket, address, on_done=on_done)
        except Exception as exc:  # noqa: BLE001 - an option that the kernel refuses, say; the plan judges it
            self._failed(SocketError(exc))

    def _connected(self, parameters: pika.ConnectionParameters, error: BaseException | None) -> None:
        self._task = None
        if error is not None:
            self._failed(SocketError(error))
            return
        taken, self._socket = self._socket, None  # Pika owns it from here on, also when the next step raises
        self._let_go()
        self._later(max(0.0, self._opens_until - self._clock.now()), functools.partial(self._open_is_late, parameters))
        tls = parameters.ssl_options
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
        self._task = None  # what follows, the connection says: opened() or try_next_after()
        if isinstance(result, BaseException):
            self._failed(TransportError(result))

    def _open_is_late(self, parameters: pika.ConnectionParameters) -> None:
        where = join_address(parameters.host, parameters.port)
        late = workflow.AMQPConnectorStackTimeout(f"no AMQP connection to {where} in time")
        if self._connection._transport is None:
            self._failed(TransportError(late))
        else:
            self._connection._terminate_stream(late)  # and the connection will say so

    def _probe(self, step: Probe) -> None:
        deliver = self._from_a_thread(self._succeeded)

        def look() -> None:
            deliver(probe(step.parameters, step.error, step.seconds))

        try:
            start_thread(look, "labkit-probe")
        except OSError:
            deliver(step.error)  # unclear it is, then

    # -- from one step to the next ----------------------------------------------------------------------------------

    def _succeeded(self, result: Any) -> None:
        if not self._goes_on(lambda: self._plan.succeeded(result)):
            self._connection._on_connection_workflow_done(self.error)

    def _failed(self, error: Exception) -> None:
        if not self.try_next_after(error):
            self._connection._on_connection_workflow_done(self.error)

    def _goes_on(self, advance: Callable[[], Step | None]) -> bool:
        self._let_go()
        try:
            step = advance()
        except ConnectError as exc:
            self.is_under_way = False
            self.error = in_pikas_family(exc.__cause__ or exc)
            return False
        if step is not None:
            self._later(0, functools.partial(self._take, step))
        return True

    def _from_a_thread(self, take: Callable[[Any], None]) -> Callable[[Any], None]:
        """Return a function for another thread, which has *take* called here, if the step is still the same."""
        asked = self._asked = object()

        def taken(answer: Any) -> None:
            if self._asked is asked:
                take(answer)

        def deliver(answer: Any) -> None:
            if self._asked is not asked:  # given up: whose loop it was may have closed it
                return
            with contextlib.suppress(Exception):  # closed this moment: each kind of loop says so in its own words
                self._nbio.add_callback_threadsafe(functools.partial(taken, answer))

        return deliver

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
        self._timer = self._task = self._asked = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _show(self, host: str, port: int) -> None:
        self._connection.params.host, self._connection.params.port = host, port


def in_pikas_family(error: BaseException) -> Exception:
    """Return *error* if it is an AMQPError, else one around it, as Pika's callback adapters do with a refused socket.

    Callbacks that catch ``pika.exceptions.AMQPError`` must get what they can catch: the errors of Pika's connection
    workflow are none, and neither are a resolver's or TLS's.
    """
    of_pika: Exception = error if isinstance(error, px.AMQPError) else px.AMQPConnectionError(error)
    return of_pika


class BringUpMixin(DecodingConnection, BaseConnection):  # type: ignore[misc]
    """What :func:`with_bring_up` puts in front of one of Pika's adapters: the bring-up is a CallbackConnector's.

    A handshake that fails resets the connection, as Pika does at every end, and the connector goes on with the same
    object; ``on_open_error_callback`` is called with the last failure only.
    """

    def __init__(self, connector: CallbackConnector, custom_ioloop: Any) -> None:
        self._connector = connector
        self._connection_workflow: Any
        self._heard_of_errors: list[ErrorCallback] = []
        super().__init__(connector.first, on_open_error_callback=self._on_attempt_failed, custom_ioloop=custom_ioloop)
        self.add_on_open_callback(connector.opened)

    def add_on_open_error_callback(self, callback: ErrorCallback, remove_default: bool = True) -> None:  # noqa: ARG002
        """Call ``callback(connection, error)`` if there will be no connection."""
        self._heard_of_errors.append(callback)

    def _adapter_connect_stream(self) -> None:
        self._connection_workflow = self._connector
        self._connector.begin(self, self._nbio)

    def _on_attempt_failed(self, _: Any, error: Exception) -> None:
        if self._connector.is_under_way:
            if self._connector.try_next_after(error):
                return
            error = self._connector.error or error
        if not self._heard_of_errors:
            raise error  # as Pika does: into the loop
        for callback in self._heard_of_errors:
            callback(self, error)

    def _on_stream_terminated(self, error: BaseException | None) -> None:
        super()._on_stream_terminated(error)
        if self._connector.is_under_way:  # still opening, whatever Pika has just reset
            self._set_connection_state(self.CONNECTION_INIT)
            self._connection_workflow = self._connector


@functools.cache
def with_bring_up(adapter: type[BaseConnection]) -> Any:
    """Return *adapter*, one of Pika's classes, with the bring-up of this module; its name stays."""
    return type(adapter.__name__, (BringUpMixin, adapter), {"__doc__": adapter.__doc__})
