"""What Pika makes of each fault. Classes and times are asserted, texts are not: they differ from system to system."""

import socket
import time

import pika
import pytest
from pamqp.commands import Basic
from pamqp.frame import marshal
from pika.adapters.utils.connection_workflow import AMQPConnectorStackTimeout
from pika.exceptions import (
    AMQPConnectionError,
    AMQPHeartbeatTimeout,
    ChannelClosedByBroker,
    ConnectionClosed,
    ConnectionWrongStateError,
    IncompatibleProtocolError,
    ProbableAccessDeniedError,
    ProbableAuthenticationError,
    StreamLostError,
)

from labkit.errors import ConfigurationError
from labkit.wire import (
    Bandwidth,
    DropHeartbeats,
    Latency,
    LimitData,
    Proxy,
    Refuse,
    ResetPeer,
    Slicer,
    SlowClose,
    Stall,
)

pytestmark = pytest.mark.broker

SLACK = 2.0
# ValueError is Pika's, when the link is gone before its first look at the socket.
REFUSED = (AMQPConnectionError, ValueError)


@pytest.fixture
def proxy(settings):
    with Proxy(settings) as proxy:
        yield proxy


@pytest.fixture
def direct(settings):
    """A connection that does not go through the proxy."""
    connection = pika.BlockingConnection(settings.to_pika())
    yield connection
    connection.close()


@pytest.fixture
def connect(proxy):
    """Open a BlockingConnection through the proxy; all of them are closed at the end."""
    made = []

    def connect(**changes):
        connection = pika.BlockingConnection(proxy.settings(**changes).to_pika())
        made.append(connection)
        return connection

    yield connect
    proxy.cut()
    for connection in made:
        if connection.is_open:
            with pytest.raises((StreamLostError, ConnectionClosed)):
                connection.close()


def talk(connection, seconds=5.0):
    """Use the connection until it fails."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        connection.process_data_events(time_limit=0.1)


def test_a_cut_is_an_end_of_file_and_every_later_call_says_the_connection_is_closed(proxy, connect):
    connection = connect()
    channel = connection.channel()
    assert proxy.cut() == 1

    with pytest.raises(StreamLostError):
        channel.queue_declare("", exclusive=True)
    with pytest.raises(ConnectionWrongStateError):
        connection.channel()
    assert proxy.endings[-1][1] == "closed by the proxy (cut)"


def test_a_cut_with_reset_is_a_reset(proxy, connect):
    connection = connect()
    assert proxy.cut(reset=True) == 1
    with pytest.raises(StreamLostError) as caught:
        talk(connection)
    assert isinstance(caught.value.args[0], str)
    assert "ConnectionResetError" in caught.value.args[0] or "ConnectionAbortedError" in caught.value.args[0]


@pytest.mark.parametrize("reset", [True, False])
def test_when_cut_returns_the_very_next_call_fails(proxy, connect, reset):
    for _ in range(20):
        channel = connect().channel()
        proxy.cut(reset=reset)
        with pytest.raises(StreamLostError):
            channel.basic_publish("", "nobody", b"")


def test_a_cut_leaves_other_links_and_new_ones_alone(proxy, connect):
    first, second = connect(), connect()
    assert proxy.links == (1, 2)
    assert proxy.cut(link=1) == 1
    with pytest.raises(StreamLostError):
        talk(first)
    second.channel()
    connect().channel()
    assert proxy.links == (2, 3)
    assert proxy.cut(link=1) == 0


def test_after_a_late_cut_the_broker_believes_in_the_link_for_a_while(proxy, connect, direct):
    def code():
        with pytest.raises(ChannelClosedByBroker) as caught:
            direct.channel().queue_declare("mine", passive=True)
        return caught.value.reply_code

    connection = connect()
    connection.channel().queue_declare("mine", exclusive=True)
    started = time.monotonic()
    assert proxy.cut(late=0.5) == 1
    with pytest.raises(StreamLostError):
        talk(connection)
    assert time.monotonic() - started < 0.5
    while code() == 405:  # locked: the queue of a connection that is there
        assert time.monotonic() - started < 0.5 + SLACK
        time.sleep(0.01)
    assert code() == 404
    assert time.monotonic() - started > 0.45


@pytest.mark.parametrize("late", [-1, "1", None, float("nan")])
def test_a_cut_that_cannot_be_cuts_nothing(proxy, connect, late):
    connection = connect()
    with pytest.raises(ConfigurationError, match="late"):
        proxy.cut(late=late)
    connection.channel()


def test_reset_peer_hits_open_links_at_once_and_new_ones_as_they_come(proxy, connect):
    connection = connect()
    with proxy.fault(ResetPeer(), direction="downstream") as fault:
        with pytest.raises(StreamLostError):
            talk(connection)
        assert fault.links == 1
        with pytest.raises(REFUSED):
            connect()
        assert fault.links == 2
    connect().channel()


def test_reset_at_the_third_publish_lets_two_publishes_through(proxy, connect, direct):
    connection = connect()
    channel = connection.channel()
    queue = "reset-at-publish"
    channel.queue_declare(queue, durable=True)
    channel.confirm_delivery()  # what RabbitMQ has read and not yet confirmed may go with the connection
    confirmed = []

    def publish():
        for number in range(10):
            channel.basic_publish("", queue, b"%d" % number)
            confirmed.append(number)

    with proxy.fault(ResetPeer(), at_frame="Basic.Publish", count=3) as fault:
        with pytest.raises(StreamLostError):
            publish()
        assert fault.links == 1

    assert confirmed == [0, 1]
    assert _ready(direct, queue, 2) == 2


def test_closing_at_the_ack_loses_the_confirm_and_keeps_the_message(proxy, connect, direct):
    channel = connect().channel()
    channel.queue_declare("half-done", durable=True)
    channel.confirm_delivery()
    with (
        proxy.fault(LimitData(0), direction="downstream", at_frame="Basic.Ack"),
        pytest.raises(StreamLostError),
    ):
        channel.basic_publish("", "half-done", b"kept")

    assert _ready(direct, "half-done", 1) == 1


def test_a_reset_of_the_broker_is_an_end_of_file_for_the_client(proxy, connect):
    connection = connect()
    with proxy.fault(ResetPeer(), direction="upstream"), pytest.raises(StreamLostError) as caught:
        talk(connection)
    assert "EOF" in str(caught.value.args[0])


def test_limit_data_closes_the_link_after_so_many_bytes(proxy, connect):
    connection = connect()
    channel = connection.channel()

    def publish():
        for _ in range(200):
            channel.basic_publish("", "nowhere", b"x" * 1000)
            connection.process_data_events(0)
        talk(connection)

    with proxy.fault(LimitData(10_000), direction="upstream") as fault, pytest.raises(StreamLostError):
        publish()
    assert fault.links == 1
    assert proxy.endings[-1][1] == "closed by the proxy (LimitData)"


def test_reset_in_the_middle_of_a_frame_is_a_lost_stream(proxy, connect):
    channel = connect().channel()
    with (
        proxy.fault(ResetPeer(), direction="downstream", after_bytes=5),
        pytest.raises(StreamLostError),
    ):
        channel.queue_declare("", exclusive=True)


@pytest.mark.parametrize("fault", [LimitData(0), ResetPeer()])
@pytest.mark.parametrize(
    ("frame", "error"),
    [
        ("Connection.Start", IncompatibleProtocolError),
        ("Connection.Tune", ProbableAuthenticationError),
        ("Connection.OpenOk", ProbableAccessDeniedError),
    ],
)
def test_a_handshake_cut_short_looks_like_a_refusal(proxy, connect, fault, frame, error):
    """Pika guesses the cause from how far it came: a bad line can look like a bad password."""
    with proxy.fault(fault, direction="downstream", at_frame=frame), pytest.raises(error):
        connect()
    connect().channel()


def test_refused_links_are_refused_while_open_ones_go_on(proxy, connect):
    connection = connect()
    with proxy.fault(Refuse()):
        with pytest.raises(REFUSED):
            connect()
        connection.channel().queue_declare("", exclusive=True)
    connect().channel()


def test_two_refusals_end_when_the_second_one_ends(proxy, connect):
    with proxy.fault(Refuse()):
        with proxy.fault(Refuse()):
            pass
        with pytest.raises(REFUSED):
            connect()
    connect().channel()


def test_a_black_hole_ends_at_the_stack_timeout(proxy, connect):
    with proxy.fault(Stall()):
        started = time.monotonic()
        with pytest.raises(AMQPConnectorStackTimeout):
            connect(stack_timeout=1.0)
        assert 0.9 < time.monotonic() - started < 1 + SLACK


def test_a_stall_holds_bytes_back_and_loses_none(proxy, connect):
    connection = connect()
    channel = connection.channel()
    queue = channel.queue_declare("", exclusive=True).method.queue
    with proxy.fault(Stall(), direction="upstream"):
        mark = proxy.mark()
        for number in range(50):
            channel.basic_publish("", queue, b"%d" % number)
        connection.process_data_events(0.2)
        assert "Basic.Ack" not in proxy.conversation().since(mark).names
    assert [channel.basic_get(queue, auto_ack=True)[2] for _ in range(50)] == [b"%d" % n for n in range(50)]


def test_a_stall_from_the_third_publish_on_lets_two_through_until_it_ends(proxy, connect, direct):
    channel = connect().channel()
    channel.queue_declare("held", durable=True)
    with proxy.fault(Stall(), direction="upstream", at_frame="Basic.Publish", count=3):
        for number in range(5):
            channel.basic_publish("", "held", b"%d" % number)
        assert _ready(direct, "held", 2) == 2
    assert _ready(direct, "held", 5) == 5


def test_latency_is_paid_twice_in_a_round_trip(proxy, connect):
    channel = connect().channel()
    with proxy.fault(Latency(0.3)):
        started = time.monotonic()
        channel.queue_declare("", exclusive=True)
        assert 0.59 < time.monotonic() - started < 0.6 + SLACK
    started = time.monotonic()
    channel.queue_declare("", exclusive=True)
    assert time.monotonic() - started < 0.3


def test_what_latency_holds_back_passes_when_the_block_ends(proxy, connect):
    connection = connect()
    channel = connection.channel()
    queue = channel.queue_declare("", exclusive=True).method.queue
    with proxy.fault(Latency(60.0)):
        channel.basic_publish("", queue, b"late")
        proxy.wait_for("ContentBody", timeout=5.0)
    assert channel.basic_get(queue, auto_ack=True)[2] == b"late"


def test_jitter_keeps_the_order(proxy, connect):
    connection = connect()
    channel = connection.channel()
    queue = channel.queue_declare("", exclusive=True).method.queue
    with proxy.fault(Latency(0.02, jitter=0.02), Slicer(7, variation=6)):
        for number in range(100):
            channel.basic_publish("", queue, b"%d" % number)
        assert [channel.basic_get(queue, auto_ack=True)[2] for _ in range(20)] == [b"%d" % n for n in range(20)]


def test_bandwidth_is_what_it_says(proxy, connect):
    channel = connect().channel()
    queue = channel.queue_declare("", exclusive=True).method.queue
    with proxy.fault(Bandwidth(100_000), direction="upstream"):
        started = time.monotonic()
        channel.basic_publish("", queue, b"x" * 100_000)
        channel.queue_declare(queue, passive=True)
        assert 0.9 < time.monotonic() - started < 1.0 + SLACK


def test_frames_sliced_into_single_octets_are_the_same_frames(proxy, connect):
    with proxy.fault(Slicer(1)):
        channel = connect().channel()
        queue = channel.queue_declare("", exclusive=True).method.queue
        channel.basic_publish("", queue, b"x" * 2000)
        assert channel.basic_get(queue, auto_ack=True)[2] == b"x" * 2000


def test_slow_close_tells_the_client_later(proxy, connect):
    connection = connect()
    with proxy.fault(SlowClose(0.5), direction="downstream"):
        started = time.monotonic()
        # Pika waits for the broker's end of the socket only where it must; close() itself is answered in frames.
        connection.close()
        assert time.monotonic() - started < SLACK
        assert proxy.links == (1,)
        while proxy.links:
            assert time.monotonic() - started < 0.5 + SLACK
            time.sleep(0.01)
        assert time.monotonic() - started > 0.45


def test_faults_compose_and_end_one_by_one(proxy, connect):
    channel = connect().channel()

    def round_trip():
        started = time.monotonic()
        channel.queue_declare("", exclusive=True)
        return time.monotonic() - started

    with proxy.fault(Latency(0.2), direction="upstream"):
        with proxy.fault(Latency(0.2), direction="upstream"):
            assert 0.39 < round_trip() < 0.4 + SLACK
        assert 0.19 < round_trip() < 0.39
    assert round_trip() < 0.19


def test_reset_comes_after_what_latency_delays(settings):
    # Against a listener that keeps every byte: RabbitMQ may drop what it has read when the connection ends.
    first = marshal(Basic.Publish(routing_key="first"), 1)
    second = marshal(Basic.Publish(routing_key="second"), 1)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(SLACK + 5)
        port = listener.getsockname()[1]
        with (
            Proxy(settings.replace(host="127.0.0.1", port=port)) as proxy,
            proxy.fault(Latency(0.3), direction="upstream"),
            proxy.fault(ResetPeer(), at_frame="Basic.Publish", count=2),
            socket.create_connection((proxy.settings().host, proxy.settings().port), 5) as client,
        ):
            client.sendall(b"AMQP\x00\x00\x09\x01" + first + second)
            far_side, _ = listener.accept()
            with far_side:
                far_side.settimeout(SLACK + 5)
                received = b""
                while data := far_side.recv(4096):
                    received += data
    assert received == b"AMQP\x00\x00\x09\x01" + first


@pytest.mark.slow
def test_a_silent_broker_is_noticed_between_one_and_two_windows(proxy, connect):
    """Pika looks every heartbeat + 5 seconds and wants one whole window without a byte."""
    connection = connect(heartbeat=1)
    with proxy.fault(Stall()):
        started = time.monotonic()
        with pytest.raises(AMQPHeartbeatTimeout):
            talk(connection, seconds=20)
        assert 6 - 0.5 < time.monotonic() - started < 12 + SLACK


@pytest.mark.slow
def test_a_broker_whose_heartbeats_are_lost_looks_dead(proxy, connect):
    connection = connect(heartbeat=1)
    with proxy.fault(DropHeartbeats(), direction="downstream"):
        mark = proxy.mark()
        started = time.monotonic()
        with pytest.raises(AMQPHeartbeatTimeout):
            talk(connection, seconds=20)
        assert 6 - 0.5 < time.monotonic() - started < 12 + SLACK
        lost = [r for r in proxy.conversation().since(mark).rows() if r.what == "Heartbeat" and not r.passed]
        assert {row.direction for row in lost} == {"downstream"}


@pytest.mark.slow
def test_a_client_whose_heartbeats_are_lost_is_dropped_by_the_broker(proxy, connect):
    connection = connect(heartbeat=1)
    with proxy.fault(DropHeartbeats(), direction="upstream"):
        started = time.monotonic()
        with pytest.raises(StreamLostError):
            talk(connection, seconds=20)
        assert 1 < time.monotonic() - started < 4 + SLACK


@pytest.mark.slow
def test_a_half_open_link_is_closed_by_the_broker_that_hears_nothing(proxy, connect):
    connection = connect(heartbeat=1)
    with proxy.fault(Stall(), direction="upstream"), pytest.raises(StreamLostError):
        talk(connection, seconds=20)


@pytest.mark.slow
def test_a_stall_shorter_than_the_heartbeat_leaves_no_trace(proxy, connect):
    connection = connect(heartbeat=10)
    with proxy.fault(Stall()):
        time.sleep(2)
    connection.channel().queue_declare("", exclusive=True)


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda p: p.fault(), "at least one"),
        (lambda p: p.fault("reset"), "'reset'"),
        (lambda p: p.fault(Stall(), direction="sideways"), "'sideways'"),
        (lambda p: p.fault(Stall(), after_bytes=-1), "-1"),
        (lambda p: p.fault(Stall(), at_frame="Basic.Publsh"), "Basic.Publish"),
        (lambda p: p.fault(Stall(), count=2), "count"),
        (lambda p: p.fault(Refuse(), direction="upstream"), "Refuse"),
    ],
)
def test_a_fault_that_cannot_be_says_what_is_allowed_before_anything_happens(proxy, connect, make, names):
    connection = connect()
    with pytest.raises(ConfigurationError, match=names):
        make(proxy)
    connection.channel()


def _ready(connection, queue, expected, seconds=5.0):
    """How many messages the queue holds, once it holds *expected* or time is up."""
    channel, end = connection.channel(), time.monotonic() + seconds
    while True:
        count = channel.queue_declare(queue, passive=True).method.message_count
        if count >= expected or time.monotonic() > end:
            return count
        time.sleep(0.02)
