"""A consumer on a stream goes on where its handler was: a message may come twice, and none is left out."""

import threading
import time

import pytest

from labkit import (
    ConfigurationError,
    Connection,
    ConnectionLost,
    ConnectionManager,
    ConnectionRecovered,
    Consumer,
    LeaseError,
    Message,
    Queue,
    RetryTimes,
    Unroutable,
    brokers,
)
from labkit.wire import Refuse
from tests.broker.connections import connected, own_virtual_host, through_a_proxy
from tests.broker.test_consumer import fill
from tests.view import until

pytestmark = pytest.mark.broker
STREAM = {"x-queue-type": "stream"}
OFFSETS = [None, "first", "next", 0]


@pytest.fixture(scope="module")
def settings(broker):
    with own_virtual_host(broker) as settings:
        yield settings


@pytest.fixture
def stream(settings, request):
    """The name of a new stream."""
    queue = Queue(f"stream {abs(hash(request.node.name))}", arguments=STREAM)
    with Connection(settings) as connection, connection.channel() as channel:
        channel.declare(queue)
    yield queue.name
    with Connection(settings) as connection, connection.channel() as channel:
        channel.delete(queue)


class Reader:
    """Remembers what comes, in order, and acknowledges it."""

    def __init__(self):
        self.bodies = []
        self.begun = threading.Event()
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def __call__(self, delivery):
        self.begun.set()
        self.may_go_on.wait(30)
        self.bodies.append(int(delivery.body))
        delivery.ack()

    def has_all(self, *numbers):
        return set(numbers) <= set(self.bodies)


def options(offset):
    return {} if offset is None else {"arguments": {"x-stream-offset": offset}}


def during_an_outage(settings, proxy, timeline, *bodies, queue):
    """Cut the line, publish, and let it come back."""
    mark = timeline.mark()
    with proxy.fault(Refuse()):
        proxy.cut()
        timeline.wait_for(ConnectionLost, timeout=20, since=mark)
        fill(settings, *bodies, queue=queue)
    timeline.wait_for(ConnectionRecovered, timeout=20, since=mark)


@pytest.mark.parametrize("offset", OFFSETS)
def test_what_was_published_while_the_link_was_lost_is_read(settings, stream, offset):
    reader = Reader()
    with (
        through_a_proxy(settings, recovery=True) as (proxy, connection, timeline),
        Consumer(connection, stream, reader, **options(offset)),
    ):
        fill(settings, *"123", queue=stream)
        until(lambda: reader.has_all(1, 2, 3))
        for outage in ("45", "67"):
            during_an_outage(settings, proxy, timeline, *outage, queue=stream)
        fill(settings, "8", queue=stream)
        until(lambda: reader.has_all(8))
    assert sorted(set(reader.bodies)) == [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("offset", OFFSETS)
def test_what_was_published_while_the_link_was_lost_before_the_first_message_is_read(settings, stream, offset):
    reader = Reader()
    with (
        through_a_proxy(settings, recovery=True) as (proxy, connection, timeline),
        Consumer(connection, stream, reader, **options(offset)),
    ):
        during_an_outage(settings, proxy, timeline, "1", "2", queue=stream)
        fill(settings, "3", queue=stream)
        until(lambda: reader.has_all(1, 2, 3))
    assert sorted(set(reader.bodies)) == [1, 2, 3]


def test_a_consumer_that_is_opened_again_goes_on_where_it_was(settings, stream):
    reader = Reader()
    consumer = Consumer(settings, stream, reader, arguments={"x-stream-offset": "first"})
    for bodies in ("123", "456", "789"):
        fill(settings, *bodies, queue=stream)
        with consumer:
            until(lambda bodies=bodies: reader.has_all(*map(int, bodies)))
    assert sorted(set(reader.bodies)) == list(range(1, 10))


def test_what_the_handler_was_at_comes_again_and_what_waited_too(settings, stream):
    reader = Reader()
    reader.may_go_on.clear()
    fill(settings, *"12345", queue=stream)
    with (
        through_a_proxy(settings, recovery=True) as (proxy, connection, timeline),
        Consumer(connection, stream, reader, arguments={"x-stream-offset": "first"}) as consumer,
    ):
        assert reader.begun.wait(10)
        during_an_outage(settings, proxy, timeline, "6", queue=stream)
        reader.may_go_on.set()
        until(lambda: reader.has_all(*range(1, 7)))
        assert reader.bodies == [1, 1, 2, 3, 4, 5, 6]
        assert consumer.dropped_acks == 1


def test_the_first_message_that_is_not_settled_is_where_it_goes_on(settings, stream):
    bodies, kept = [], []

    def keep_3(delivery):
        bodies.append(int(delivery.body))
        if delivery.body == b"3" and not kept:
            kept.append(delivery)
        else:
            delivery.ack()

    fill(settings, *"12345", queue=stream)
    with (
        through_a_proxy(settings, recovery=True) as (proxy, connection, timeline),
        Consumer(connection, stream, keep_3, arguments={"x-stream-offset": "first"}),
    ):
        until(lambda: bodies == [1, 2, 3, 4, 5])
        during_an_outage(settings, proxy, timeline, "6", queue=stream)
        until(lambda: bodies[5:] == [3, 4, 5, 6])


def is_taken(settings, queue, number):
    try:
        fill(settings, number, queue=queue.name)
    except Unroutable:
        return False
    return True


@pytest.mark.own_broker
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_stream_is_read_on_after_a_restart_of_the_broker():
    reader, queue = Reader(), Queue("stream of its own broker", arguments=STREAM)
    with brokers.own("local") as broker:
        if "process" not in broker.capabilities:
            pytest.skip("needs a broker that can be restarted")
        settings = broker.settings().replace(heartbeat=5)
        with Connection(settings) as connection, connection.channel() as channel:
            channel.declare(queue)
        with connected(settings, recovery=True) as (connection, timeline), Consumer(connection, queue.name, reader):
            fill(settings, *"123", queue=queue.name)
            until(lambda: reader.has_all(1, 2, 3))
            mark = timeline.mark()
            broker.restart()
            for number in "456":  # RabbitMQ 3.10 routes nothing to a stream until its leader is back
                until(lambda number=number: is_taken(settings, queue, number), 60)
            timeline.wait_for(ConnectionRecovered, timeout=60, since=mark)
            until(lambda: reader.has_all(4, 5, 6), 60)


def test_stopping_in_mid_stream_skips_nothing(settings, stream):
    reader = Reader()
    reader.may_go_on.clear()
    fill(settings, *"12345", queue=stream)
    with Connection(settings, recovery=True) as connection:
        consumer = Consumer(connection, stream, reader, arguments={"x-stream-offset": "first"}).open()
        assert reader.begun.wait(10)
        closing = threading.Thread(target=consumer.close)
        closing.start()
        reader.may_go_on.set()
        closing.join(20)
        with consumer:
            until(lambda: reader.has_all(*range(1, 6)))
        assert connection.generation == 1  # a nack would have ended the link, on RabbitMQ 3.10


def test_a_stream_that_went_and_was_declared_again_is_read_from_its_first_message(settings):
    reader, queue = Reader(), Queue("comes and goes", arguments=STREAM)
    with Connection(settings, recovery=True) as connection, Consumer(connection, queue, reader) as consumer:
        fill(settings, *"123", queue=queue.name)
        until(lambda: reader.has_all(1, 2, 3))
        with connection.channel() as channel:
            channel.delete(queue)
        until(lambda: not consumer.is_consuming)
        until(lambda: consumer.is_consuming, 20)
        fill(settings, "4", "5", queue=queue.name)
        until(lambda: reader.has_all(4, 5))


def test_a_manager_reads_what_was_published_while_its_link_was_closed(settings, stream, broker):
    reader = Reader()
    with ConnectionManager(settings) as manager:
        consumer = manager.consume(stream, reader)
        fill(settings, *"123", queue=stream)
        until(lambda: reader.has_all(1, 2, 3))
        assert broker.close_connections("of the test", settings.virtual_host)
        fill(settings, *"456", queue=stream)
        until(lambda: consumer.connection.generation == 2)
        until(lambda: reader.has_all(4, 5, 6))


def test_a_failed_message_of_a_stream_is_tried_again_at_once_and_then_passed(settings, stream):
    tries = []

    def fail_at_2(delivery):
        tries.append(int(delivery.body))
        if delivery.body == b"2":
            raise RuntimeError("of the test")
        delivery.ack()

    fill(settings, *"123", queue=stream)
    with Connection(settings, recovery=True) as connection:
        arguments = {"x-stream-offset": "first"}
        with Consumer(connection, stream, fail_at_2, arguments=arguments, on_error=RetryTimes(2)) as consumer:
            until(lambda: tries[-1:] == [3])
            until(lambda: (consumer.handled, consumer.failures) == (2, 3))
        assert connection.generation == 1
    assert tries == [1, 2, 2, 2, 3]


@pytest.mark.parametrize("by", ["channel", "consumer"])
def test_a_stream_takes_nothing_back(settings, stream, by):
    refusals = []

    def give_back(delivery):
        for answer in (delivery.nack, delivery.reject):
            with pytest.raises(LeaseError, match="stream") as caught:
                answer()
            refusals.append(str(caught.value))
        delivery.ack()

    fill(settings, *"123", queue=stream)
    arguments = {"x-stream-offset": "first"}
    with Connection(settings, recovery=True) as connection:
        if by == "channel":
            channel = connection.channel()
            channel.consume(stream, give_back, arguments=arguments)
            until(lambda: len(refusals) == 6)
            channel.close()
        else:
            with Consumer(connection, stream, give_back, arguments=arguments):
                until(lambda: len(refusals) == 6)
        time.sleep(0.2)
        assert connection.generation == 1


def test_a_channel_with_unsettled_messages_of_a_stream_is_closed_and_its_consumer_cancelled_without_harm(
    settings, stream
):
    fill(settings, *"12345", queue=stream)
    kept = []
    with Connection(settings) as connection:
        for end in ("close", "cancel"):
            channel = connection.channel()
            tag = channel.consume(stream, kept.append, arguments={"x-stream-offset": "first"})
            until(lambda: len(kept) >= 5)
            if end == "cancel":
                channel.cancel(tag)
            channel.close()
            kept.clear()
        connection.channel().close()
        assert connection.is_open


def test_a_queue_that_only_carries_what_a_stream_had_marked_is_no_stream(settings):
    """A shovel copies headers along. Every message is settled as in any queue."""
    seen, queue = [], Queue("shovelled")
    with through_a_proxy(settings, recovery=True) as (proxy, connection, timeline), connection.channel() as channel:
        channel.declare(queue)

        def once_more(delivery):
            seen.append((int(delivery.body), delivery.redelivered))
            if len(seen) == 1:
                raise RuntimeError("of the test")
            delivery.ack()

        send(channel, "1", queue, offset=17)
        with Consumer(connection, queue.name, once_more) as consumer:
            until(lambda: consumer.handled == 1)
            mark = timeline.mark()
            proxy.cut()
            timeline.wait_for(ConnectionRecovered, timeout=20, since=mark)
            with connection.channel() as again:
                send(again, "2", queue, offset=18)
            until(lambda: consumer.handled == 2)
    assert [number for number, _ in seen] == [1, 1, 2]


def send(channel, body, queue, *, offset):
    channel.publish(Message(body, headers={"x-stream-offset": offset}), routing_key=queue.name)


def test_a_stream_without_acknowledgements_is_refused_before_any_io(settings):
    with pytest.raises(ConfigurationError, match="auto_ack") as caught:
        Consumer(settings, "s", print, auto_ack=True, arguments={"x-stream-offset": "first"})
    assert caught.value.field == "auto_ack"
