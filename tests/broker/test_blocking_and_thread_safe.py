"""The two connections that need no loop of ours, through what ``test_adapters.py`` asks of the others."""

import contextlib
import time

import pika
import pytest

from labkit import AuthenticationFailed, ConnectError, ConnectionFactory, ConnectionLost, Timeline, brokers, classify
from tests.broker.test_factory import refused_port
from tests.view import until

THREAD_SAFE = getattr(pika, "Connection", object)

pytestmark = [
    pytest.mark.broker,
    pytest.mark.parametrize(
        "kind",
        [
            "blocking",
            pytest.param(
                "thread_safe",
                marks=pytest.mark.skipif(
                    THREAD_SAFE is object, reason=f"Pika {pika.__version__} has none; it came with 1.5"
                ),
            ),
        ],
    ),
]


@pytest.fixture(autouse=True)
def no_loop_stays_open(monkeypatch):
    """Pika 1.5.0rc1 leaves the sockets of its loop to the garbage collector, whether it connected or not."""
    made = []

    class Connection(THREAD_SAFE):
        def __init__(self, *args, **kwargs):
            made.append(self)
            super().__init__(*args, **kwargs)

    if THREAD_SAFE is not object:
        monkeypatch.setattr(pika, "Connection", Connection)
    yield
    for each in made:
        each._ioloop_thread.join(10)
        each._connection.ioloop.close()


@contextlib.contextmanager
def opened(kind, settings):
    """An open connection and its timeline."""
    timeline = Timeline()
    connection = getattr(ConnectionFactory(settings, listeners=[timeline]), kind)()
    try:
        yield connection, timeline
    finally:
        if connection.is_open:
            connection.close()


def echo(connection):
    """Publish one message, and return what comes back."""
    channel = connection.channel()
    queue = channel.queue_declare("", exclusive=True).method.queue
    channel.basic_publish("", queue, b"hello")
    body = until(lambda: channel.basic_get(queue, auto_ack=True)[2])
    channel.close()
    return body


def end_of(kind, connection, timeline):
    """The class of what ended it, its AMQP code, and what ``classify`` says of it."""
    if kind == "thread_safe":
        error = timeline.wait_for(ConnectionLost, timeout=30).reason
    else:  # it hears of its end inside a call
        with pytest.raises(pika.exceptions.AMQPError) as caught:
            until(lambda: connection.process_data_events(0.5), timeout=30)
        error = caught.value
    return type(error).__name__, getattr(error, "reply_code", None), classify(error).kind.name


def failed(kind, settings):
    """The error, and the names of the events."""
    timeline = Timeline()
    with pytest.raises(ConnectError) as caught:
        getattr(ConnectionFactory(settings, listeners=[timeline]), kind)()
    return caught.value, timeline.names()


def test_a_message_comes_back(kind, settings):
    with opened(kind, settings) as (connection, timeline):
        assert echo(connection) == b"hello"
    assert timeline.names()[:2] == ["ConnectAttempted", "ConnectionOpened"]


def test_it_serves_its_heartbeats_while_it_is_idle(kind, settings):
    with opened(kind, settings.replace(heartbeat=1)) as (connection, _):
        # Not for a condition: the broker ends a link after two intervals of silence.
        (connection.sleep if kind == "blocking" else time.sleep)(3.5)
        assert echo(connection) == b"hello"


def test_a_refused_port_is_tried_as_often_as_the_settings_say(kind, settings):
    with refused_port() as port:
        error, names = failed(
            kind, settings.replace(host="127.0.0.1", port=port, connection_attempts=2, retry_delay=0.05)
        )
    assert classify(error).kind.name == "TRANSIENT"
    assert names == ["ConnectAttempted", "AttemptFailed"] * 2 + ["ConnectionGivenUp"]


def test_a_wrong_password_is_tried_once(kind, settings):
    error, names = failed(kind, settings.replace(password="wrong", connection_attempts=5))
    assert type(error) is AuthenticationFailed
    assert names == ["ConnectAttempted", "AttemptFailed", "ConnectionGivenUp"]


def test_the_broker_closes_it_with_a_code(kind, settings, view):
    with opened(kind, settings) as (connection, timeline):
        until(lambda: view.connections(settings.virtual_host))
        view.close_connections(settings.virtual_host)
        assert end_of(kind, connection, timeline) == ("ConnectionClosedByBroker", 320, "TRANSIENT")
        assert not connection.is_open


@pytest.mark.own_broker
@pytest.mark.slow
def test_a_killed_broker_is_noticed_and_a_new_one_used(kind):
    with brokers.own() as broker:
        if "process" not in broker.capabilities:
            pytest.skip("this broker cannot be killed")
        with opened(kind, broker.settings()) as (connection, timeline):
            assert echo(connection) == b"hello"
            broker.kill()
            assert end_of(kind, connection, timeline) == ("StreamLostError", None, "TRANSIENT")
        broker.start()
        with opened(kind, broker.settings()) as (connection, _):
            assert echo(connection) == b"hello"
