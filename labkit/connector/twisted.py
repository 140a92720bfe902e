"""Pika on Twisted's reactor. Needs the extra ``twisted``; ``labkit.factory`` imports this on first use.

Pika leaves connecting to Twisted: its protocol knows no host, no TLS, no limit, and loses the error of a failed
handshake. Here the bring-up is the one of ``labkit.connector.blocking``, on a thread that waits while the reactor
works, and TLS is Python's own ``ssl`` with the context of the settings, so that it means the same as everywhere else.

Importing Pika's part installs Twisted's default reactor: install another one before.
"""

import contextlib
import queue
import ssl
import threading
from collections.abc import Callable
from typing import Any

import pika
import pika.exceptions as px
from pika.adapters.twisted_connection import TwistedProtocolConnection
from pika.adapters.utils import connection_workflow as workflow
from pika.tcp_socket_opts import set_sock_opts
from twisted.internet import defer, endpoints
from twisted.internet import error as twisted_error
from twisted.internet.protocol import Factory, Protocol
from twisted.python import failure

from labkit.concurrency.bell import Flag
from labkit.connector.blocking import Bringup
from labkit.connector.private_pika import FrameDecoder
from labkit.events import Dispatcher
from labkit.retry import Clock
from labkit.settings.settings import BrokerSettings

EndCallback = Callable[[Any, BaseException], None]
CHUNK = 65536  # bytes taken out of TLS at once
Failure: Any = failure.Failure  # its constructor has no types
GRACE = 5.0  # seconds: for the reactor to answer our thread, and for the last bytes to leave


def connect(
    settings: BrokerSettings, events: Dispatcher, clock: Clock, on_end: EndCallback, reactor: Any
) -> defer.Deferred[Any]:
    """Return a Deferred of an open connection; it fails with ConnectError. Call it on the reactor's thread.

    ``on_end(connection, reason)`` is called first of all when the connection, once open, has ended. Cancelled, the
    Deferred fails with Twisted's CancelledError: the running attempt is the last, and what it opens is closed.
    """
    unwanted = Flag()
    opened: defer.Deferred[Any] = defer.Deferred(lambda _: unwanted.set())
    bringup = Bringup(
        settings, events, clock, lambda parameters: _from_thread(reactor, parameters, on_end), stop=unwanted
    )

    def run() -> None:
        try:
            result: Any = bringup.run()
        except Exception:  # noqa: BLE001 - handed on
            result = Failure()
        reactor.callFromThread(deliver, result)

    def deliver(result: Any) -> None:
        if not unwanted.is_set():
            opened.callback(result)  # with a Failure, this is errback()
        elif not isinstance(result, Failure) and result.is_open:
            result.close()

    # Not on the reactor's own threads: it waits for those when it stops, and this one may wait for the reactor.
    threading.Thread(target=run, name="labkit-twisted", daemon=True).start()
    return opened


def _from_thread(reactor: Any, parameters: pika.ConnectionParameters, on_end: EndCallback) -> Any:
    """Open one connection on the reactor; wait for it here."""
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
    is_over = False  # nobody waits here any more

    def begin() -> defer.Deferred[Any]:
        return _open(ReactorConnection(parameters, reactor, on_end), reactor, parameters)

    def done(answer: Any) -> None:
        answers.put(answer)
        if is_over:
            with contextlib.suppress(queue.Empty):  # taken after all
                late = answers.get_nowait()
                if not isinstance(late, Failure) and late.is_open:
                    late.close()

    reactor.callFromThread(lambda: None if is_over else defer.maybeDeferred(begin).addBoth(done))
    try:
        answer = answers.get(timeout=parameters.stack_timeout + GRACE)
    except queue.Empty:
        is_over = True  # first, then another look, so that it is taken here or closed there
        try:
            answer = answers.get_nowait()
        except queue.Empty:
            raise workflow.AMQPConnectorStackTimeout("Twisted's reactor did not answer: does it run?") from None
    if isinstance(answer, Failure):
        raise _in_pikas_words(answer.value)
    return answer


def _open(connection: "ReactorConnection", reactor: Any, parameters: pika.ConnectionParameters) -> defer.Deferred[Any]:
    """Link *connection* to one address, with TLS if need be; return a Deferred of it, open."""
    tls = parameters.ssl_options
    protocol = connection if tls is None else TlsProtocol(connection, tls.context, tls.server_hostname)
    kind = endpoints.TCP6ClientEndpoint if ":" in parameters.host else endpoints.TCP4ClientEndpoint
    endpoint = kind(reactor, parameters.host, parameters.port, timeout=parameters.socket_timeout)
    factory: Any = Factory.forProtocol(lambda: protocol)
    linking = endpoint.connect(factory)

    def on_link(linked: Any) -> None:
        try:
            linked.transport.setTcpNoDelay(True)
            set_sock_opts(parameters.tcp_options, linked.transport.getHandle())
        except Exception as exc:  # noqa: BLE001 - an option that the kernel refuses, say
            connection.give_up(workflow.AMQPConnectorSocketConnectError(exc))

    def on_no_link(failure: Any) -> None:
        connection.give_up(failure.value)

    def on_late() -> None:
        linking.cancel()
        connection.give_up(workflow.AMQPConnectorStackTimeout("no AMQP connection in time"))

    timer = reactor.callLater(parameters.stack_timeout, on_late)

    def on_end(result: Any) -> Any:
        if timer.active():
            timer.cancel()
        return result

    linking.addCallbacks(on_link, on_no_link)
    return connection.opened.addBoth(on_end)


class ReactorConnection(TwistedProtocolConnection):  # type: ignore[misc] # labkit: ignore[deprecated-adapter]
    """Pika's protocol for Twisted, whose errors are those of Pika's other adapters.

    Attributes:
        opened: A Deferred of this connection, once it is open; fails with the reason.
    """

    def __init__(self, parameters: pika.ConnectionParameters, reactor: Any, on_end: EndCallback) -> None:
        super().__init__(parameters, custom_reactor=reactor)
        self.opened: defer.Deferred[Any] = defer.Deferred()
        self._reactor = reactor
        self._decoder = FrameDecoder()
        self._on_end = on_end
        self._abort_later: Any = None
        self.ready.addErrback(lambda _: None)  # it holds the number of attempts only
        self._impl.add_on_open_callback(lambda _: self.opened.callback(self))
        self._impl.add_on_open_error_callback(lambda _, error: self.opened.errback(Failure(error)))
        self._impl._adapter_disconnect_stream = self._disconnect

    def give_up(self, error: BaseException) -> None:
        """End the bring-up with *error*, at whatever stage it is."""
        if self.opened.called:
            return
        if self._impl._transport is None:
            self.opened.errback(Failure(error))
            if self.transport is not None:
                self.transport.abortConnection()
        else:
            self._impl._terminate_stream(error)

    def dataReceived(self, data: bytes) -> None:  # noqa: N802 - Twisted's name
        """Take what came from the broker."""
        self._decoder.feed(self._impl, data)

    def connectionLost(self, reason: Any) -> None:  # noqa: N802 - Twisted's name
        """Hear from Twisted that the link is gone."""
        if self._abort_later is not None and self._abort_later.active():
            self._abort_later.cancel()
        # What ended it is what Pika noted, if it did; else the link was lost. Pika would say "ConnectionDone".
        cause = self._impl._error or px.StreamLostError(f"Stream connection lost: {reason.value!r}")
        if self.closed is not None:
            self._on_end(self, cause)
        super().connectionLost(Failure(cause))

    def _disconnect(self) -> None:
        self.transport.loseConnection()
        # Twisted writes what is left first; a peer that reads no more would keep the link forever.
        self._abort_later = self._reactor.callLater(GRACE, self.transport.abortConnection)


class TlsProtocol(Protocol):
    """TLS between Twisted's TCP and a protocol, by Python's ``ssl``. To that protocol it is the transport.

    Attributes:
        tls: The link as ``ssl`` sees it.
    """

    def __init__(self, inner: ReactorConnection, context: ssl.SSLContext, server_name: str) -> None:
        self._inner = inner
        self._arrived, self._leaving = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._arrived, self._leaving, server_hostname=server_name)
        self._is_up = False
        self._error: ssl.SSLError | None = None

    def connectionMade(self) -> None:  # noqa: N802 - Twisted's name
        """Begin the handshake."""
        self._shake_hands()

    def dataReceived(self, data: bytes) -> None:  # noqa: N802 - Twisted's name
        """Take what came over TCP."""
        self._arrived.write(data)
        if not self._is_up:
            self._shake_hands()
        if self._is_up:
            self._read()

    def connectionLost(self, reason: Any = None) -> None:  # noqa: N802 - Twisted's name
        """Hear that TCP is gone."""
        cause = Failure(self._error) if self._error is not None else reason
        if self._is_up:
            self._inner.connectionLost(cause)
        else:
            self._inner.give_up(cause.value)

    def write(self, data: bytes) -> None:
        """Encrypt and send *data*."""
        rest = memoryview(data)
        while rest:
            rest = rest[self.tls.write(rest) :]
        self._flush()

    def loseConnection(self) -> None:  # noqa: N802 - Twisted's name
        """End TLS, then TCP."""
        with contextlib.suppress(ssl.SSLError):  # the peer's close_notify is not waited for (RFC 8446, 6.1)
            self.tls.unwrap()
        self._flush()
        self._tcp.loseConnection()

    def abortConnection(self) -> None:  # noqa: N802 - Twisted's name
        """Drop the socket."""
        self._tcp.abortConnection()

    @property
    def _tcp(self) -> Any:
        return self.transport

    def _shake_hands(self) -> None:
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return
        except ssl.SSLError as exc:
            self._fail(exc)
            return
        self._flush()
        self._is_up = True
        self._inner.makeConnection(self)

    def _read(self) -> None:
        try:
            while data := self.tls.read(CHUNK):
                self._inner.dataReceived(data)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as exc:
            self._fail(exc)
            return
        else:
            self._tcp.loseConnection()  # the peer closed
        self._flush()

    def _flush(self) -> None:
        if self._leaving.pending:
            self._tcp.write(self._leaving.read())

    def _fail(self, error: ssl.SSLError) -> None:
        self._error = error
        self._flush()  # our alert
        self._tcp.loseConnection()


def _in_pikas_words(error: Any) -> Any:
    """Return what Pika's other adapters would say; Twisted's errors are no OSErrors."""
    if isinstance(error, ssl.SSLError):
        return workflow.AMQPConnectorTransportSetupError(error)
    if isinstance(error, twisted_error.ConnectError):
        number = getattr(error.osError, "errno", error.osError)  # an OSError, a number, or None
        cause = TimeoutError(str(error)) if number is None else OSError(number, str(error))
        return workflow.AMQPConnectorSocketConnectError(cause)
    if isinstance(error, twisted_error.ConnectionDone | twisted_error.ConnectionLost):
        return px.StreamLostError(f"Stream connection lost: {error!r}")
    return error
