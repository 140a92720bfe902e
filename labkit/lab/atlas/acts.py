"""How each failure is brought about: plain Pika against a real broker, a line that breaks, or a server that lies.

A trigger raises what the caller would get, or returns. Texts that Pika or the broker put into it must be the same on
every machine, so names are given and never drawn.
"""

import contextlib
import secrets
import ssl
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pika
from pika import exceptions as px
from pika import spec
from pika.adapters.select_connection import IOLoop

from labkit.brokers import Broker
from labkit.lab.atlas.attacker import Attacker, Behaviour
from labkit.settings.settings import BrokerSettings
from labkit.wire import (
    Fault,
    Proxy,
    SlowClose,
)
from labkit.wire.faults import Directions

LONGEST = 20.0  # seconds for one of them
HOST = "atlas"  # the virtual host, and the name of users and queues


@dataclass(frozen=True, slots=True)
class Stand:
    """What a trigger works on.

    Attributes:
        broker: A private one: some triggers alarm, stop or kill it, and start it again.
        settings: Of a virtual host of the atlas's own there.
    """

    broker: Broker
    settings: BrokerSettings


def _parameters(settings: BrokerSettings, **changes: Any) -> Any:
    made = settings.replace(connection_attempts=1).to_pika()[0]
    for name, value in changes.items():
        setattr(made, name, value)
    return made


# -- one thread, blocking --------------------------------------------------------------------------------------------


def blocking(act: Callable[[Any, Any], object], **changes: Any) -> Callable[[Stand], None]:
    """Raise what *act* raises, which gets a connection and a channel."""

    def trigger(stand: Stand) -> None:
        connection = pika.BlockingConnection(_parameters(stand.settings, **changes))
        try:
            act(connection, connection.channel())
        finally:
            if connection.is_open:
                connection.close()

    return trigger


def refused(**changes: Any) -> Callable[[Stand], None]:
    """Open and close a connection with these parameters changed."""
    return lambda stand: pika.BlockingConnection(_parameters(stand.settings, **changes)).close()


def idle(*faults: Fault, direction: Directions = "both", **changes: Any) -> Callable[[Stand], None]:
    """Break the line of an open connection that only waits."""

    def trigger(stand: Stand) -> None:
        with Proxy(stand.settings) as proxy:
            connection = pika.BlockingConnection(_parameters(proxy.settings(), **changes))
            try:
                with proxy.fault(*faults, direction=direction):
                    connection.process_data_events(LONGEST)
            finally:
                proxy.cut()

    return trigger


def opening(*faults: Fault, at_frame: str | None = None, direction: Directions = "both") -> Callable[[Stand], None]:
    """Break the line while a connection opens, with a second for all of it."""

    def trigger(stand: Stand) -> None:
        with Proxy(stand.settings) as proxy, proxy.fault(*faults, direction=direction, at_frame=at_frame):
            workflow(stack_timeout=1)(Stand(stand.broker, proxy.settings()))

    return trigger


def opening_blocking(fault: Fault, at_frame: str | None = None) -> Callable[[Stand], None]:
    """Break the line while a BlockingConnection opens."""

    def trigger(stand: Stand) -> None:
        with Proxy(stand.settings) as proxy, proxy.fault(fault, at_frame=at_frame):
            pika.BlockingConnection(_parameters(proxy.settings())).close()

    return trigger


def cut(stand: Stand) -> None:
    """Wait on a connection whose link is cut."""
    with Proxy(stand.settings) as proxy:
        connection = pika.BlockingConnection(_parameters(proxy.settings()))
        proxy.cut()
        connection.process_data_events(LONGEST)


def used_after_a_cut(stand: Stand) -> None:
    """Wait once more after the link was lost."""
    with Proxy(stand.settings) as proxy:
        connection = pika.BlockingConnection(_parameters(proxy.settings()))
        proxy.cut()
        with contextlib.suppress(px.StreamLostError):
            connection.process_data_events(LONGEST)
        connection.process_data_events(1)


def slow_close(stand: Stand) -> None:
    """Open and close while each side learns late of the other."""
    with Proxy(stand.settings) as proxy, proxy.fault(SlowClose(1.0)):
        pika.BlockingConnection(_parameters(proxy.settings())).close()


def used_when_closed(connection: Any, _: Any) -> None:
    """Ask a closed connection for a channel."""
    connection.close()
    connection.channel()


def channel_used_when_closed(_: Any, channel: Any) -> None:
    """Publish on a closed channel."""
    channel.close()
    channel.basic_publish("", "q", b"x")


def rejected(_: Any, channel: Any) -> None:
    """Publish to a full queue that rejects."""
    arguments = {"x-max-length": 1, "x-overflow": "reject-publish"}
    channel.queue_declare(HOST, exclusive=True, arguments=arguments)
    channel.confirm_delivery()
    for _ in range(3):
        channel.basic_publish("", HOST, b"x")


def unroutable(_: Any, channel: Any) -> None:
    """Publish what no queue takes."""
    channel.confirm_delivery()
    channel.basic_publish("", "nobody made this", b"x", mandatory=True)


def tag_twice(_: Any, channel: Any) -> None:
    """Consume twice by one tag."""
    channel.queue_declare(HOST, exclusive=True)
    for _ in range(2):
        channel.basic_consume(HOST, print, consumer_tag="one")


def tag_twice_at_the_broker(_: Any, channel: Any) -> None:
    """Consume twice by one tag, and let the broker notice."""
    channel.queue_declare(HOST, exclusive=True)
    channel.basic_consume(HOST, print, consumer_tag="one")
    channel._impl._consumers.clear()  # else Pika itself would refuse the second
    channel._impl.basic_consume(HOST, print, consumer_tag="one")
    channel.connection.process_data_events(LONGEST)


def consuming_inside_consuming(_: Any, channel: Any) -> None:
    """Start consuming inside a callback."""
    channel.queue_declare(HOST, exclusive=True)
    channel.basic_consume(HOST, lambda *_: channel.start_consuming(), auto_ack=True)
    channel.basic_publish("", HOST, b"x")
    channel.start_consuming()


def settled_twice(_: Any, channel: Any) -> None:
    """Acknowledge a delivery twice."""
    channel.queue_declare(HOST, exclusive=True)
    channel.basic_publish("", HOST, b"x")
    method = None
    while method is None:
        method, _, _ = channel.basic_get(HOST)
    for _ in range(2):
        channel.basic_ack(method.delivery_tag)
    channel.basic_qos(prefetch_count=1)


def published(exchange: str = "", key: str = HOST, body: bytes = b"x", **properties: Any) -> Callable[[Stand], None]:
    """Publish something, and look what the broker says of it."""

    def act(_: Any, channel: Any) -> None:
        channel.confirm_delivery()
        channel.basic_publish(exchange, key, body, pika.BasicProperties(**properties))

    return blocking(act)


def large_headers(connection: Any, channel: Any) -> None:
    """Publish headers above the size of a frame."""
    channel.basic_publish("", HOST, b"", pika.BasicProperties(headers={"x": "x" * 200_000}))
    connection.process_data_events(LONGEST)


def declared_differently(_: Any, channel: Any) -> None:
    """Declare a queue, then again with another argument."""
    channel.queue_declare(HOST, exclusive=True)
    channel.queue_declare(HOST, exclusive=True, arguments={"x-max-length": 1})


def exclusive_elsewhere(stand: Stand) -> None:
    """Use another connection's exclusive queue."""
    with contextlib.closing(pika.BlockingConnection(_parameters(stand.settings))) as other:
        other.channel().queue_declare(HOST, exclusive=True)
        blocking(lambda _, channel: channel.queue_declare(HOST, passive=True))(stand)


def consumed_elsewhere(connection: Any, channel: Any) -> None:
    """Consume from a queue that another consumer has for itself."""
    channel.queue_declare(HOST, exclusive=True)
    channel.basic_consume(HOST, print, exclusive=True)
    connection.channel().basic_consume(HOST, print)


def confirms_and_transactions(_: Any, channel: Any) -> None:
    """Ask for confirms, then for transactions."""
    channel.confirm_delivery()
    channel.tx_select()


def get_from_a_stream(_: Any, channel: Any) -> None:
    """Get from a stream."""
    channel.queue_declare("atlas-stream", durable=True, arguments={"x-queue-type": "stream"})
    channel.basic_get("atlas-stream")


# -- users, limits, and the broker itself ------------------------------------------------------------------------------


@contextlib.contextmanager
def _somebody(stand: Stand, **rights: str) -> Any:
    """Settings of a user of the atlas's own, who may do what the patterns allow."""
    password = secrets.token_urlsafe(24)
    stand.broker.add_user(HOST, password, tag=HOST)
    try:
        if rights:
            stand.broker.grant(HOST, HOST, **rights)
        yield stand.settings.replace(username=HOST, password=password)
    finally:
        stand.broker.delete_user(HOST)


def without_permission(stand: Stand) -> None:
    """Declare without the permission."""
    with _somebody(stand, configure="", write="", read=".*") as settings:
        blocking(lambda _, channel: channel.queue_declare(HOST, exclusive=True))(Stand(stand.broker, settings))


def without_virtual_host(stand: Stand) -> None:
    """Enter a virtual host without permissions in it."""
    with _somebody(stand) as settings:
        refused()(Stand(stand.broker, settings))


def limited(what: str, act: Callable[[Stand], None]) -> Callable[[Stand], None]:
    """Do *act* as a user who may have one channel, or one connection."""

    def trigger(stand: Stand) -> None:
        with _somebody(stand, configure=".*", write=".*", read=".*") as settings:
            stand.broker.ctl("set_user_limits", HOST, f'{{"max-{what}": 1}}')
            act(Stand(stand.broker, settings))

    return trigger


def second_connection(stand: Stand) -> None:
    """Open a second connection."""
    with contextlib.closing(pika.BlockingConnection(_parameters(stand.settings))):
        pika.BlockingConnection(_parameters(stand.settings)).close()


def meanwhile(
    happens: Callable[[Stand], object], afterwards: Callable[[Stand], object], *, heartbeat: int = 0
) -> Callable[[Stand], None]:
    """An idle connection is told of what *happens* to the broker. Without heartbeats, however long that takes."""

    def trigger(stand: Stand) -> None:
        connection = pika.BlockingConnection(_parameters(stand.settings, heartbeat=heartbeat))
        try:
            happens(stand)
            connection.process_data_events(LONGEST)
        finally:
            afterwards(stand)

    return trigger


def virtual_host_again(stand: Stand) -> None:
    """Make the virtual host that was deleted."""
    stand.broker.vhost(HOST)


def blocked_for_too_long(stand: Stand) -> None:
    """Wait while the broker is in alarm."""
    connection = pika.BlockingConnection(_parameters(stand.settings, blocked_connection_timeout=1))
    channel = connection.channel()
    with stand.broker.alarm():
        channel.basic_publish("", "q", b"x")
        connection.process_data_events(LONGEST)


# -- on a loop ---------------------------------------------------------------------------------------------------------


def _let_go(loop: Any) -> None:
    """Let Pika close what it has planned to close, then end the loop."""
    loop.call_later(0.1, loop.stop)
    loop.start()
    loop.close()


def on_a_loop(act: Callable[[Any, Callable[[BaseException], None]], object]) -> Callable[[Stand], None]:
    """Raise what *act* tells: it gets a SelectConnection before its loop runs, and a function to tell by."""

    def trigger(stand: Stand) -> None:
        told: list[BaseException] = []

        def tell(error: BaseException) -> None:
            told.append(error)
            connection.ioloop.stop()

        connection = pika.SelectConnection(
            _parameters(stand.settings),
            on_open_error_callback=lambda _, error: tell(error),
            on_close_callback=lambda _, error: tell(error),
        )
        connection.ioloop.call_later(LONGEST, connection.ioloop.stop)
        act(connection, tell)
        connection.ioloop.start()
        if connection.is_open:
            connection.close()
            connection.ioloop.start()
        _let_go(connection.ioloop)
        raise told[0]

    return trigger


def with_channel(act: Callable[[Any, Callable[[BaseException], None]], object]) -> Callable[[Stand], None]:
    """As :func:`on_a_loop`, with a channel that is open."""

    def begin(connection: Any, tell: Callable[[BaseException], None]) -> None:
        connection.add_on_open_callback(
            lambda connection: connection.channel(on_open_callback=lambda channel: act(channel, tell))
        )

    return on_a_loop(begin)


def got_twice(channel: Any, tell: Callable[[BaseException], None]) -> None:
    """Get a second time before the first answer."""
    channel.basic_get("q", print)
    try:
        channel.basic_get("q", print)
    except px.DuplicateGetOkCallback as error:
        tell(error)


def closed_channel(channel: Any, tell: Callable[[BaseException], None]) -> None:
    """Close a channel, and tell what its callback is told."""
    channel.add_on_close_callback(lambda _, reason: tell(reason))
    channel.close()


def workflow(then: Callable[[Any], None] | None = None, **changes: Any) -> Callable[[Stand], None]:
    """Raise what a workflow of Pika's ends with; *then* gets it when it has begun."""

    def trigger(stand: Stand) -> None:
        loop, told = IOLoop(), []

        def done(result: Any) -> None:
            told.append(result)
            loop.stop()

        parameters = [_parameters(stand.settings, **changes)]
        begun = pika.SelectConnection.create_connection(parameters, done, custom_ioloop=loop)
        loop.call_later(LONGEST, loop.stop)
        if then is not None:
            then(begun)
        loop.start()
        try:
            if then is abort_twice:
                begun.abort()
        finally:
            _let_go(loop)
        if isinstance(told[0], BaseException):
            raise told[0]

    return trigger


def abort(begun: Any) -> None:
    """Break the opening off."""
    begun.abort()


def abort_twice(begun: Any) -> None:
    """Break it off, and later once more."""
    begun.abort()


TWISTED = """
import sys, pika
from twisted.internet import defer, protocol, reactor
from pika.adapters.twisted_connection import TwistedProtocolConnection
parameters = pika.URLParameters(sys.stdin.read())

@defer.inlineCallbacks
def main(connection):
    yield connection.ready
    channel = yield connection.channel()
    declared = yield channel.queue_declare("", exclusive=True)
    messages, _ = yield channel.basic_consume(declared.method.queue)
    yield channel.queue_delete(declared.method.queue)
    try:
        yield messages.get()
    except Exception as error:
        print(type(error).__name__)
    reactor.stop()

creator = protocol.ClientCreator(reactor, TwistedProtocolConnection, parameters)
creator.connectTCP(parameters.host, parameters.port).addCallback(main)
reactor.callLater(20, reactor.stop)
reactor.run()
"""


def cancelled_in_twisted(stand: Stand) -> None:
    """In a process of its own: Twisted's reactor runs once."""
    url = stand.settings.replace(connection_name=None).to_url(mask=False)
    told = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", TWISTED],
        input=url,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    raise getattr(px, told.stdout.strip())()


# -- a server that lies ------------------------------------------------------------------------------------------------


def _waits(connection: Any, _: Any) -> None:
    connection.process_data_events(LONGEST)


def lied_to(at: str, say: bytes, act: Callable[[Any, Any], object] = _waits) -> Callable[[Stand], None]:
    """Meet a server that says *say* at the stage *at*, then *act*."""

    def trigger(stand: Stand) -> None:
        with Attacker(Behaviour("planted", at, say, "go on")) as attacker:
            blocking(act, port=attacker.port, host="127.0.0.1")(stand)

    return trigger


RETURNED = (
    pika.frame.Method(1, spec.Basic.Return(312, "NO_ROUTE", "", "q")).marshal()
    + pika.frame.Header(1, 1, spec.BasicProperties()).marshal()
    + pika.frame.Body(1, b"two").marshal()
)


def untrusted(stand: Stand) -> None:
    """Open a connection that trusts the system's authorities only."""
    encrypted = stand.broker.settings(HOST, tls=True)
    stranger = pika.SSLOptions(ssl.create_default_context(), "localhost")
    pika.BlockingConnection(_parameters(encrypted, ssl_options=stranger)).close()


def plain_to_the_tls_port(stand: Stand) -> None:
    """Speak plain AMQP to the TLS port."""
    encrypted = stand.broker.settings(HOST, tls=True)
    port = int(encrypted.addresses[0][1])
    pika.BlockingConnection(_parameters(stand.settings, port=port)).close()
