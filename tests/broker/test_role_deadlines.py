"""Every public call of a Publisher and a Consumer ends: within its deadline and 2 s, whatever the line does (G8)."""

import contextlib
import threading
import time
from contextlib import contextmanager

import pytest

from labkit import Consumer, LabkitError, Outcome, Publisher, Queue
from labkit.lab.wire import Proxy, Stall
from tests.broker.connections import SLACK, connected, own_virtual_host
from tests.broker.test_connection_deadlines import FAULTS

pytestmark = pytest.mark.broker
TIMEOUT = 0.15  # seconds


@contextmanager
def roles_at_work(settings):
    """A publisher, and a consumer whose handler holds a delivery, on one connection."""
    go_on, got = threading.Event(), []

    def handle(delivery):
        got.append(delivery)
        go_on.wait(60)

    with connected(settings, recovery=True) as (connection, _):
        with connection.channel() as channel:
            channel.delete(Queue("held"))
            channel.declare(Queue("held"))
        publisher, consumer = Publisher(connection).open(), Consumer(connection, "held", handle).open()
        try:
            publisher.publish("x", routing_key="held").result()
            while not got:
                time.sleep(0.01)
            yield connection, publisher, consumer, got[0]
        finally:
            go_on.set()


def every_call_of_the_roles_ends(connection, publisher, consumer, delivery, *, slack):
    """Make every public call, measure each, and look that each message has been told its end."""
    confirmations = []

    def publish(deadline):
        confirmations.append(publisher.publish("x", routing_key="held", deadline=deadline))
        return confirmations[-1]

    def publish_many():
        confirmations.extend(publisher.publish_many(["x"] * 5, routing_key="held", deadline=TIMEOUT))

    calls = {
        "publish": lambda: publish(TIMEOUT).result(),
        "publish many": publish_many,
        "result": lambda: publish(TIMEOUT).result(timeout=TIMEOUT),
        "flush": lambda: publisher.flush(timeout=TIMEOUT),
        "ack": lambda: delivery.ack(timeout=TIMEOUT),
        "open a publisher": lambda: Publisher(connection).open(deadline=TIMEOUT),
        "open a consumer": lambda: Consumer(connection, "held", print).open(deadline=TIMEOUT),
        "stop": lambda: consumer.stop(timeout=TIMEOUT),
        "close": lambda: publisher.close(timeout=TIMEOUT),
        "open again": lambda: publisher.open(deadline=TIMEOUT),
        "close again": lambda: publisher.close(timeout=TIMEOUT),
    }
    for name, call in calls.items():
        started = time.monotonic()
        with contextlib.suppress(LabkitError):
            call()
        assert time.monotonic() - started < TIMEOUT + slack, name
    assert all(each.wait(slack) for each in confirmations)
    return {each.outcome for each in confirmations}


def while_the_line_is(fault, settings, *, slack):
    with Proxy(settings) as proxy, roles_at_work(proxy.settings(heartbeat=0)) as (connection, *roles):
        with proxy.fault(Stall(), direction=FAULTS[fault]):
            if fault == "gone":
                proxy.cut()
            outcomes = every_call_of_the_roles_ends(connection, *roles, slack=slack)
            connection.close(timeout=TIMEOUT)
        assert Outcome.CONFIRMED not in outcomes


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("fault", FAULTS)
def test_every_call_of_the_roles_ends_in_time_while_the_line_is(broker, fault, tls):
    with own_virtual_host(broker, tls=tls) as settings:
        while_the_line_is(fault, settings, slack=SLACK)
