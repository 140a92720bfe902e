"""Every public call of a publisher, a consumer and a manager ends: within its deadline and 2 s, on any line (G8)."""

import contextlib
import threading
import time
from contextlib import contextmanager

import pytest

from labkit import ConnectionManager, Consumer, LabkitError, Outcome, Publisher, Queue
from labkit.wire import Proxy, Stall
from tests.broker.connections import SLACK, connected, own_virtual_host
from tests.broker.test_connection_deadlines import ANSWERS, FAULTS
from tests.tiers import in_soak
from tests.view import until

pytestmark = pytest.mark.broker
TIMEOUT = 0.15  # seconds


@contextmanager
def roles_at_work(settings):
    """A publisher and a consumer on one connection, and a manager; the consumer's handler holds three deliveries."""
    go_on, got = threading.Event(), []

    def handle(delivery):
        got.append(delivery)
        if len(got) == len(ANSWERS):
            go_on.wait(60)

    with connected(settings, recovery=True) as (connection, _), ConnectionManager(settings) as manager:
        with connection.channel() as channel:
            for queue in ("held", "managed"):
                channel.delete(Queue(queue))
                channel.declare(Queue(queue))
        publisher, consumer = Publisher(connection).open(), Consumer(connection, "held", handle).open()
        try:
            for _ in ANSWERS:
                publisher.publish("x", routing_key="held").result()
            manager.consume("managed", lambda _: go_on.wait(60))
            manager.publish("", "managed", "x").result()
            until(lambda: len(got) == len(ANSWERS))
            manager.settings = settings.replace(connect_deadline=TIMEOUT)  # what has no deadline of its own takes this
            yield connection, publisher, consumer, got, manager
        finally:
            go_on.set()


def every_call_of_the_roles_ends(connection, publisher, consumer, deliveries, manager, *, slack):
    """Make every public call, measure each, and look that each message has been told its end."""
    confirmations = []

    def publish(deadline):
        confirmations.append(publisher.publish("x", routing_key="held", deadline=deadline))
        return confirmations[-1]

    def publish_many():
        confirmations.extend(publisher.publish_many(["x"] * 5, routing_key="held", deadline=TIMEOUT))

    def publish_by_the_manager():
        confirmations.append(manager.publish("", "managed", "x", deadline=TIMEOUT))
        confirmations[-1].result()

    calls = {
        "publish": lambda: publish(TIMEOUT).result(),
        "publish many": publish_many,
        "result": lambda: publish(TIMEOUT).result(timeout=TIMEOUT),
        "flush": lambda: publisher.flush(timeout=TIMEOUT),
        **{
            name: lambda name=name, delivery=delivery: getattr(delivery, name)(timeout=TIMEOUT)
            for name, delivery in zip(ANSWERS, deliveries, strict=True)
        },
        "open a publisher": lambda: Publisher(connection).open(deadline=TIMEOUT),
        "open a consumer": lambda: Consumer(connection, "held", print).open(deadline=TIMEOUT),
        "stop": lambda: consumer.stop(timeout=TIMEOUT),
        "close": lambda: publisher.close(timeout=TIMEOUT),
        "open again": lambda: publisher.open(deadline=TIMEOUT),
        "close again": lambda: publisher.close(timeout=TIMEOUT),
        "the manager's publish": publish_by_the_manager,
        "the manager's channel": lambda: manager.channel(timeout=TIMEOUT),
        "the manager's confirming channel": lambda: manager.channel(confirm=True, timeout=TIMEOUT),
        "the manager's consume": lambda: manager.consume("managed", print),
        "the manager's ensure_connection": lambda: manager.ensure_connection(deadline=TIMEOUT),
        "the manager's close": lambda: manager.close(timeout=TIMEOUT),
        "the manager's open": lambda: manager.open(deadline=TIMEOUT),
        "the manager's publish after it": publish_by_the_manager,
        "the manager's consume after it": lambda: manager.consume("managed", print),
        "the manager's close again": lambda: manager.close(timeout=TIMEOUT),
    }
    for name, call in calls.items():
        started = time.monotonic()
        with contextlib.suppress(LabkitError):
            call()
        assert time.monotonic() - started < TIMEOUT + slack, name
    assert all(each.wait(slack) for each in confirmations)
    return {each.outcome for each in confirmations}


def while_the_link_is(fault, settings, *, slack):
    with Proxy(settings) as proxy, roles_at_work(proxy.settings(heartbeat=0)) as (connection, *roles):
        with proxy.fault(Stall(), direction=FAULTS[fault]):
            if fault == "gone":
                proxy.cut()
            outcomes = every_call_of_the_roles_ends(connection, *roles, slack=slack)
            connection.close(timeout=TIMEOUT)
        assert Outcome.CONFIRMED not in outcomes


@pytest.mark.parametrize("tls", [False, *in_soak(True)], ids=["plain", "tls"])
@pytest.mark.parametrize("fault", FAULTS)
def test_every_call_of_the_roles_ends_in_time_while_the_link_is(broker, fault, tls):
    with own_virtual_host(broker, tls=tls) as settings:
        while_the_link_is(fault, settings, slack=SLACK)
