"""A queue that does not answer holds up its own consumer, and nobody else on the connection."""

import time
from contextlib import contextmanager

import pytest

from labkit import ConnectionLost, ConnectionRecovered, Consumer, DeadlineExceeded, Publisher, Queue
from tests.broker.connections import own_virtual_host, through_a_proxy
from tests.view import until

pytestmark = [pytest.mark.broker, pytest.mark.timeout(120)]
STACK_TIMEOUT = 4.0  # seconds for a step of a new link


@pytest.fixture(scope="module")
def settings(broker):
    with own_virtual_host(broker) as settings:
        yield settings


@contextmanager
def hanging(broker, settings, queue):
    """The queue's process at the broker stands still: what asks it something gets no answer."""
    found = f'{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"{settings.virtual_host}">>, queue, <<"{queue}">>))'
    broker.ctl("eval", f"{found}, sys:suspend(amqqueue:get_pid(Q)).")
    try:
        yield
    finally:
        broker.ctl("eval", f"{found}, sys:resume(amqqueue:get_pid(Q)).")


def acknowledge(taken, delivery):
    taken.append(delivery.body)
    delivery.ack()


def test_a_consumer_whose_queue_gives_no_answer_holds_up_nobody_else(broker, settings):
    stuck, well = [], []
    with through_a_proxy(settings, recovery=True, heartbeat=5, stack_timeout=STACK_TIMEOUT) as (
        proxy,
        connection,
        timeline,
    ):
        with connection.channel() as channel:
            channel.declare(Queue("well"))
        with through_a_proxy(settings) as (_, other, _), other.channel() as channel:
            channel.declare(Queue("stuck"))
        with (
            Consumer(connection, "stuck", lambda delivery: acknowledge(stuck, delivery)) as first,
            Consumer(connection, "well", lambda delivery: acknowledge(well, delivery)) as second,
            Publisher(connection) as publisher,
        ):
            with hanging(broker, settings, "stuck"):
                mark = timeline.mark()
                began = time.monotonic()
                proxy.cut()
                timeline.wait_for(ConnectionRecovered, timeout=20, since=mark)
                assert time.monotonic() - began < STACK_TIMEOUT + 2.0
                until(lambda: second.is_consuming)
                publisher.publish("x", routing_key="well").result(timeout=10)
                until(lambda: well == [b"x"])
                assert not first.is_consuming
                with pytest.raises(DeadlineExceeded):
                    first.open(deadline=0.2)
                time.sleep(STACK_TIMEOUT + 1.0)  # in which nothing gives the link up
                assert sum(isinstance(each, ConnectionLost) for each in timeline.events) == 1
            until(lambda: first.is_consuming)
            publisher.publish("y", routing_key="stuck").result(timeout=10)
            until(lambda: stuck == [b"y"])
