"""A recorded queue that gives no answer on a new link is left behind, and follows when it answers."""

import time
from contextlib import ExitStack

import pytest

from labkit import Binding, ConnectionLost, ConnectionRecovered, Exchange, Publisher, Queue
from tests.broker.connections import channels, own_virtual_host, through_a_proxy
from tests.broker.test_consumer_without_an_answer import STACK_TIMEOUT, hanging
from tests.view import until

pytestmark = [pytest.mark.broker, pytest.mark.timeout(180)]


@pytest.fixture
def settings(broker):
    with own_virtual_host(broker) as settings:
        yield settings


def declared(channel, name):
    channel.declare(Queue(name))
    channel.declare(Binding(source="orders", destination=name, routing_key=name))
    return name


@pytest.mark.parametrize("how_many", [1, 3])
def test_queues_that_give_no_answer_do_not_cost_the_new_link(broker, settings, how_many):
    with (
        through_a_proxy(settings, recovery=True, heartbeat=5, stack_timeout=STACK_TIMEOUT) as (
            proxy,
            connection,
            timeline,
        ),
        Publisher(connection) as publisher,
        ExitStack() as stuck,
    ):
        with connection.channel() as channel:
            channel.declare(Exchange("orders", type="direct"))
            hang = [declared(channel, f"stuck-{n}") for n in range(how_many)]
            declared(channel, "well")
        for name in hang:
            stuck.enter_context(hanging(broker, settings, name))
        mark, began = timeline.mark(), time.monotonic()
        proxy.cut()
        timeline.wait_for(ConnectionRecovered, timeout=20, since=mark)
        assert time.monotonic() - began < STACK_TIMEOUT + 2.0
        publisher.publish("x", exchange="orders", routing_key="well").result(timeout=10)
        time.sleep(STACK_TIMEOUT + 1.0)  # in which nothing gives the link up
        assert sum(isinstance(each, ConnectionLost) for each in timeline.events) == 1
        stuck.close()
        with connection.channel() as channel:
            for name in hang:
                publisher.publish("y", exchange="orders", routing_key=name).result(timeout=10)
                until(lambda name=name: channel.declare(Queue(name), passive=True).messages == 1)
        until(lambda: channels(broker, settings.virtual_host) <= 1)  # the publisher's
