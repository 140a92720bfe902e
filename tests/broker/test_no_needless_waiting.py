"""Nothing waits for a turn, a tick or a round trip that it does not need. By mechanism: a rate is the machine's."""

import statistics
import threading
import time

import pytest

from labkit import ConnectionPool, Message, Outcome, Publisher, Queue
from labkit.connection.io_thread import TICK
from labkit.wire import Latency
from tests.broker.connections import connected, own_virtual_host, through_a_proxy
from tests.view import until

pytestmark = pytest.mark.broker

ROUND_TRIP = 0.2  # seconds on the slow line
REPLY_TO = "amq.rabbitmq.reply-to"


@pytest.fixture(scope="module")
def settings(broker):
    with own_virtual_host(broker) as settings:
        yield settings


def test_a_window_of_messages_takes_the_round_trips_of_a_few(settings):
    """G10: who waits for each confirm needs a round trip for each message, 100 s here."""
    with through_a_proxy(settings, heartbeat=10, recovery=True) as (proxy, connection, _):
        connection.channel().declare(Queue("work"))
        with Publisher(connection, max_in_flight=500) as publisher, proxy.fault(Latency(ROUND_TRIP / 2)):
            started = time.monotonic()
            sent = publisher.publish_many(["x"] * 500, routing_key="work")
            publisher.flush(timeout=30)
            taken = time.monotonic() - started
        assert {each.outcome for each in sent} == {Outcome.CONFIRMED}
        assert taken >= ROUND_TRIP * 0.9  # the line was slow
        assert taken < 500 * ROUND_TRIP / 10  # at least ten times as fast


def test_an_answer_wakes_its_caller_as_it_arrives(settings):
    """G11: a caller that looked for its answer now and then would wait for half of the time between two looks."""
    with connected(settings) as (client_side, _), connected(settings) as (server_side, _):
        server, client = server_side.channel(), client_side.channel()
        server.declare(Queue("calls"))

        def serve(delivery):
            answer = Message(delivery.body, correlation_id=delivery.message.correlation_id)
            server.publish(answer, routing_key=delivery.message.reply_to)
            delivery.ack()

        waiting: dict[str, threading.Event] = {}
        server.consume("calls", serve)
        client.consume(REPLY_TO, lambda reply: waiting[reply.message.correlation_id].set(), auto_ack=True)
        taken = []
        for number in range(100):
            waiting[str(number)] = arrived = threading.Event()
            started = time.monotonic()
            client.publish(Message("x", reply_to=REPLY_TO, correlation_id=str(number)), routing_key="calls")
            assert arrived.wait(10)
            taken.append(time.monotonic() - started)
        assert statistics.median(taken) < TICK / 4
        server.delete(Queue("calls"))


def test_a_call_does_not_wait_for_the_io_threads_next_tick(settings):
    """G17, the hop: from a caller to the I/O thread and back."""
    with connected(settings) as (connection, _):
        taken = []
        for _ in range(200):
            started = time.monotonic()
            connection._io.call(lambda: None, timeout=10)
            taken.append(time.monotonic() - started)
    assert statistics.median(taken) < TICK / 10


def test_checkout_and_checkin_need_no_turn_of_the_io_thread(settings):
    """G17: a pool that asked the I/O thread, or the broker, could lend nothing while that is held up."""
    with ConnectionPool(settings.replace(heartbeat=30), max_size=1) as pool:
        with pool.connection() as connection:
            io = connection._io
        held, may_go_on = threading.Event(), threading.Event()
        io.post(lambda: (held.set(), may_go_on.wait(20)))
        held.wait(10)
        try:
            for _ in range(1000):
                pool.checkout(timeout=0).checkin()
            assert not may_go_on.is_set()
        finally:
            may_go_on.set()
        until(lambda: io.lag < TICK)
