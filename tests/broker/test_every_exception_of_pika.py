"""Each exception of Pika's is triggered for real, by a broker, by a line that breaks, or by a server that means harm.

Pika often wraps one in another, or in another's text; what is asserted is that it is there.
"""

import gc
import inspect
import re
import ssl
import subprocess
import sys
import time

import pika
import pytest
from pika import exceptions as px
from pika import spec
from pika.adapters.utils import connection_workflow
from pika.credentials import ExternalCredentials

from labkit import brokers
from labkit.wire import Proxy, ResetPeer, Stall
from tests.broker.attacker import GOOD, HELLO, Attacker, Behaviour, raw, start

pytestmark = pytest.mark.broker
LONGEST = 20.0  # seconds for one of them


def parameters(settings, **changes):
    made = settings.replace(connection_attempts=1).to_pika()[0]
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def everything_in(error, seen=()):
    """The error, and whatever it was made from."""
    inside = [error.__cause__, error.__context__, *error.args, getattr(error, "exception", None)]
    inside += getattr(error, "exceptions", ())
    found = [error]
    for each in inside:
        if isinstance(each, BaseException) and each not in (*seen, *found):
            found += everything_in(each, (*seen, *found))
    return found


# -- one thread, blocking --------------------------------------------------------------------------------------------


def blocking(act, **changes):
    """Raise what *act* raises, which gets a connection and a channel."""

    def trigger(settings):
        connection = pika.BlockingConnection(parameters(settings, **changes))
        try:
            act(connection, connection.channel())
        finally:
            if connection.is_open:
                connection.close()

    return trigger


def refused(**changes):
    return lambda settings: pika.BlockingConnection(parameters(settings, **changes)).close()


def cut(settings):
    with Proxy(settings) as proxy:
        connection = pika.BlockingConnection(parameters(proxy.settings()))
        proxy.cut()
        connection.process_data_events(LONGEST)


def silent(settings):
    with Proxy(settings) as proxy:
        connection = pika.BlockingConnection(parameters(proxy.settings(), heartbeat=1))
        with proxy.fault(Stall()):
            connection.process_data_events(LONGEST)


def reset_in_the_handshake(settings):
    with Proxy(settings) as proxy, proxy.fault(ResetPeer(), at_frame="Connection.Start"):
        pika.BlockingConnection(parameters(proxy.settings())).close()


def silent_in_the_handshake(settings):
    with Proxy(settings) as proxy, proxy.fault(Stall()):
        workflow(stack_timeout=1)(proxy.settings())


def used_when_closed(connection, channel):
    connection.close()
    connection.channel()


def channel_used_when_closed(connection, channel):
    channel.close()
    channel.basic_publish("", "q", b"x")


def rejected(connection, channel):
    arguments = {"x-max-length": 1, "x-overflow": "reject-publish"}
    name = channel.queue_declare("", exclusive=True, arguments=arguments).method.queue
    channel.confirm_delivery()
    for _ in range(3):
        channel.basic_publish("", name, b"x")


def unroutable(connection, channel):
    channel.confirm_delivery()
    channel.basic_publish("", "nobody made this", b"x", mandatory=True)


def tag_twice(connection, channel):
    name = channel.queue_declare("", exclusive=True).method.queue
    for _ in range(2):
        channel.basic_consume(name, print, consumer_tag="one")


def consuming_inside_consuming(connection, channel):
    name = channel.queue_declare("", exclusive=True).method.queue
    channel.basic_consume(name, lambda *_: channel.start_consuming(), auto_ack=True)
    channel.basic_publish("", name, b"x")
    channel.start_consuming()


def blocked_for_too_long(_):
    with brokers.own() as broker:
        connection = pika.BlockingConnection(parameters(broker.settings(), blocked_connection_timeout=1))
        channel = connection.channel()
        with broker.alarm():
            channel.basic_publish("", "q", b"x")
            connection.process_data_events(LONGEST)


# -- on a loop -------------------------------------------------------------------------------------------------------


def let_go(loop):
    """Let Pika close what it has planned to close, then end the loop."""
    loop.call_later(0.1, loop.stop)
    loop.start()
    loop.close()


def on_a_loop(act):
    """Raise what *act* tells: it gets a SelectConnection before its loop runs, and a function to tell by."""

    def trigger(settings):
        told = []

        def tell(error):
            told.append(error)
            connection.ioloop.stop()

        connection = pika.SelectConnection(
            parameters(settings),
            on_open_error_callback=lambda _, error: tell(error),
            on_close_callback=lambda _, error: tell(error),
        )
        connection.ioloop.call_later(LONGEST, connection.ioloop.stop)
        act(connection, tell)
        connection.ioloop.start()
        if connection.is_open:
            connection.close()
            connection.ioloop.start()
        let_go(connection.ioloop)
        raise told[0]

    return trigger


def with_channel(act):
    """As :func:`on_a_loop`, with a channel that is open."""

    def begin(connection, tell):
        connection.add_on_open_callback(
            lambda connection: connection.channel(on_open_callback=lambda channel: act(channel, tell))
        )

    return on_a_loop(begin)


def got_twice(channel, tell):
    channel.basic_get("q", print)
    try:
        channel.basic_get("q", print)
    except px.DuplicateGetOkCallback as error:
        tell(error)


def closed_channel(channel, tell):
    channel.add_on_close_callback(lambda _, reason: tell(reason))
    channel.close()


def workflow(then=None, **changes):
    """Raise what a workflow of Pika's ends with; *then* gets it when it has begun."""

    def trigger(settings):
        loop, told = pika.adapters.select_connection.IOLoop(), []

        def done(result):
            told.append(result)
            loop.stop()

        begun = pika.SelectConnection.create_connection([parameters(settings, **changes)], done, custom_ioloop=loop)
        loop.call_later(LONGEST, loop.stop)
        if then is not None:
            then(begun)
        loop.start()
        try:
            if then is abort_twice:
                begun.abort()
        finally:
            let_go(loop)
        raise told[0]

    return trigger


def abort(begun):
    begun.abort()


def abort_twice(begun):
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


def cancelled_in_twisted(settings):
    url = settings.replace(connection_name=None).to_url(mask=False)
    told = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", TWISTED],
        input=url,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    raise getattr(px, told.stdout.strip())


# -- a server that means harm ----------------------------------------------------------------------------------------


def attacked(at, say, act=lambda connection, channel: connection.process_data_events(LONGEST), then="go on"):
    def trigger(settings):
        with Attacker(Behaviour("planted", at, say, then)) as attacker:
            blocking(act, port=attacker.port, host="127.0.0.1")(settings)

    return trigger


RETURNED = (
    pika.frame.Method(1, spec.Basic.Return(312, "NO_ROUTE", "", "q")).marshal()
    + pika.frame.Header(1, 1, spec.BasicProperties()).marshal()
    + pika.frame.Body(1, b"two").marshal()
)
TRIGGERS = {
    "AMQPConnectionError": refused(port=1),
    "AMQPHeartbeatTimeout": silent,
    "AuthenticationError": refused(credentials=ExternalCredentials()),
    "BodyTooLongError": attacked("Channel.Open", GOOD["Channel.Open"] + RETURNED),
    "ChannelClosedByBroker": blocking(lambda _, channel: channel.queue_declare("nobody made this", passive=True)),
    "ChannelClosedByClient": with_channel(closed_channel),
    "ChannelWrongStateError": blocking(channel_used_when_closed),
    "ConnectionBlockedTimeout": blocked_for_too_long,
    "ConnectionClosedByBroker": blocking(lambda _, channel: channel.basic_recover(requeue=False)),
    "ConnectionClosedByClient": with_channel(lambda channel, tell: channel.connection.close()),
    "ConnectionOpenAborted": on_a_loop(lambda connection, tell: connection.close()),
    "ConnectionWrongStateError": blocking(used_when_closed),
    "ConsumerCancelled": cancelled_in_twisted,
    "DuplicateConsumerTag": blocking(tag_twice),
    "DuplicateGetOkCallback": with_channel(got_twice),
    "IncompatibleProtocolError": reset_in_the_handshake,
    "InvalidChannelNumber": blocking(lambda connection, _: connection.channel(channel_number="one")),
    "InvalidFieldTypeException": attacked(HELLO, start(b"\x01k\x00")),
    "InvalidFrameError": attacked("Channel.Open", raw(b"", kind=8, end=b"\x00")),
    "MethodNotImplemented": attacked(HELLO, start(), lambda _, channel: channel.confirm_delivery()),
    "NackError": blocking(rejected),
    "NoFreeChannels": blocking(lambda connection, _: connection.channel(), channel_max=1),
    "ProbableAccessDeniedError": refused(virtual_host="nobody made this"),
    "ProbableAuthenticationError": refused(credentials=pika.PlainCredentials("nobody", "at all")),
    "ProtocolVersionMismatch": attacked(HELLO, start(version=(8, 0))),
    "ReentrancyError": blocking(consuming_inside_consuming),
    "ShortStringTooLong": blocking(lambda _, channel: channel.basic_publish("", "q" * 256, b"x")),
    "StreamLostError": cut,
    "UnroutableError": blocking(unroutable),
    "UnsupportedAMQPFieldException": blocking(
        lambda _, channel: channel.basic_publish("", "q", b"x", pika.BasicProperties(headers={"x": object()}))
    ),
    "AMQPConnectionWorkflowAborted": workflow(abort),
    "AMQPConnectionWorkflowFailed": workflow(port=1),
    "AMQPConnectorAMQPHandshakeError": workflow(virtual_host="nobody made this"),
    "AMQPConnectorSocketConnectError": workflow(port=1),
    "AMQPConnectorStackTimeout": silent_in_the_handshake,
    "AMQPConnectorTransportSetupError": workflow(ssl_options=pika.SSLOptions(ssl.create_default_context())),
    "AMQPConnectorWrongState": workflow(abort_twice),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _collected():
    yield
    gc.collect()


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", TRIGGERS)
def test_each_is_triggered_for_real(name, settings):
    began = time.monotonic()
    try:
        TRIGGERS[name](settings)
    except Exception as error:
        found = everything_in(error)
    else:
        pytest.fail("nothing was raised")
    assert any(type(each).__name__ == name or re.search(rf"\b{name}: ", str(each)) for each in found), found
    assert time.monotonic() - began < 90


def test_no_exception_of_pika_is_left_out():
    """But for those that only group others, and those that its callers cannot meet.

    Its workflow keeps the first to itself, raises the second nowhere, and no frame reaches the line of the third.
    """
    inner = {"AMQPConnectorAborted", "AMQPConnectionWorkflowWrongState", "UnexpectedFrameError"}
    there = [
        each
        for module in (px, connection_workflow)
        for each in vars(module).values()
        if inspect.isclass(each) and issubclass(each, Exception) and each.__module__ == module.__name__
    ]
    parents = {parent.__name__ for each in there for parent in each.__mro__[1:]} - {"AMQPConnectionError"}
    assert {each.__name__ for each in there} - parents - inner == set(TRIGGERS)
