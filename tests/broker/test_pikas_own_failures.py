"""What Pika makes of failures that need no broken line: its own thread asleep, a limit reached, a call after the end.

Classes are asserted; of texts only what Pika or RabbitMQ itself writes, the same on every system.
"""

import time

import pika
import pytest
from pika.exceptions import (
    AMQPHeartbeatTimeout,
    ChannelClosedByBroker,
    ConnectionClosedByBroker,
    ConnectionWrongStateError,
    NoFreeChannels,
    ProbableAccessDeniedError,
    StreamLostError,
)

from labkit.wire import Proxy
from tests.view import until

pytestmark = pytest.mark.broker


@pytest.fixture
def connect(settings):
    """Open a BlockingConnection; all of them are closed at the end."""
    made = []

    def connect(**changes):
        made.append(pika.BlockingConnection(settings.replace(**changes).to_pika()))
        return made[-1]

    yield connect
    for connection in made:
        if connection.is_open:
            connection.close()


def test_a_missing_queue_closes_its_channel_and_not_the_connection(connect):
    connection = connect()
    channel = connection.channel()
    with pytest.raises(ChannelClosedByBroker) as caught:
        channel.queue_declare("nobody-made-it", passive=True)
    assert caught.value.reply_code == 404
    assert (channel.is_open, connection.is_open) == (False, True)


def test_what_nobody_closed_stays_at_the_broker_and_with_leaves_nothing_there(settings, view):
    def fails(connection):
        connection.channel().queue_declare("nobody-made-it", passive=True)

    def count():
        return len(view.connections(settings.virtual_host))

    leaked = []
    for number in range(1, 4):
        leaked.append(pika.BlockingConnection(settings.to_pika()))
        with pytest.raises(ChannelClosedByBroker):
            fails(leaked[-1])  # so the close() that would have followed is not reached
        until(lambda number=number: count() == number)
    for _ in range(3):
        with pytest.raises(ChannelClosedByBroker), pika.BlockingConnection(settings.to_pika()) as connection:
            fails(connection)
    until(lambda: count() == 3)
    for each in leaked:
        each.close()
    until(lambda: count() == 0)


def test_one_channel_more_than_agreed_has_an_error_without_a_text(connect):
    connection = connect(channel_max=2)
    for _ in range(2):
        connection.channel()
    with pytest.raises(NoFreeChannels) as caught:
        connection.channel()
    assert str(caught.value) == ""
    assert connection.is_open


def test_a_full_virtual_host_looks_like_a_refusal_and_names_the_limit(connect, settings, view):
    view.put(f"vhost-limits/{settings.virtual_host}/max-connections", value=1)
    connect()
    with pytest.raises(ProbableAccessDeniedError, match=r"connection limit \(1\) is reached"):
        connect()


def test_one_channel_more_than_a_user_may_have_closes_the_whole_connection(connect, settings, view):
    view.put("users/crowded", password="crowded", tags="")
    try:
        view.put(f"permissions/{settings.virtual_host}/crowded", configure=".*", write=".*", read=".*")
        view.put("user-limits/crowded/max-channels", value=1)
        connection = connect(username="crowded", password="crowded")
        first = connection.channel()
        with pytest.raises(ConnectionClosedByBroker) as caught:
            connection.channel()
        assert caught.value.reply_code == 530
        assert "maximum allowed user limit of" in caught.value.reply_text
        assert (first.is_open, connection.is_open) == (False, False)
    finally:
        view.delete("users/crowded")


def test_calls_on_a_lost_connection_say_so_except_the_two_that_only_wait(settings):
    """A misleading ValueError about a timeout; the connection is what is closed."""
    with Proxy(settings) as proxy:
        connection = pika.BlockingConnection(proxy.settings().to_pika())
        proxy.cut()
        with pytest.raises(StreamLostError):
            connection.process_data_events(time_limit=5)
        for call in (connection.channel, connection.close):
            with pytest.raises(ConnectionWrongStateError):
                call()
        for wait in (connection.process_data_events, connection.sleep):
            with pytest.raises(ValueError, match="Timeout closed before call"):
                wait(1)


@pytest.mark.slow
def test_a_thread_that_slept_through_its_heartbeats_is_told_at_its_next_call(connect):
    """Who notices first decides the name: Pika, whose window is over, or the broker, which closes after two beats."""
    sleeper, publisher = connect(heartbeat=2), connect(heartbeat=1)
    channel = publisher.channel()
    time.sleep(4)
    with pytest.raises(StreamLostError):
        channel.basic_publish("", "nobody", b"too late")
    time.sleep(4)
    with pytest.raises((AMQPHeartbeatTimeout, StreamLostError)):
        sleeper.process_data_events(time_limit=1)
