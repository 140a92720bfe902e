"""A publisher through what only a broker of its own can suffer: kill -9, a restart, an alarm."""

import contextlib
import threading
import time

import pytest

from labkit import (
    ConnectionBlocked,
    ConnectionLost,
    ConnectionManager,
    ConnectionRecovered,
    ConnectionUnblocked,
    DeadlineExceeded,
    Outcome,
    Publisher,
    Queue,
    Timeline,
)
from labkit.errors import BrokerError
from labkit.lab import brokers
from tests.broker.connections import SLACK, connected
from tests.broker.publishing import check_nothing_is_lost, drained, publishing_steadily
from tests.view import until

pytestmark = [pytest.mark.broker, pytest.mark.own_broker, pytest.mark.slow, pytest.mark.timeout(300)]


def declare(connection, broker, queue):
    with connection.channel() as channel:
        channel.declare(Queue(queue))
    with contextlib.suppress(BrokerError):  # newer brokers may have no Mnesia
        # What was declared a moment before a kill -9 may be forgotten otherwise.
        broker.ctl("eval", "mnesia:sync_log().")


def through_the_death_of_the_broker(broker, deaths, *, messages):
    """Publish without a pause while *broker* suffers each of *deaths*; return (messages, replayed, duplicates)."""
    settings = broker.settings().replace(heartbeat=5)
    with connected(settings, recovery=True) as (connection, timeline):
        declare(connection, broker, "numbered")
        with Publisher(connection, max_in_flight=200) as publisher:
            with publishing_steadily(publisher, "numbered", messages=messages) as sent:
                for number, die in enumerate(deaths, 1):
                    until(lambda number=number: len(sent) > number * messages // (len(deaths) + 1), 60)
                    mark = timeline.mark()
                    die()
                    timeline.wait_for(ConnectionLost, timeout=20, since=mark)
                    if not broker.is_running:
                        broker.start()
                    timeline.wait_for(ConnectionRecovered, timeout=60, since=mark)
            assert {each.outcome for each in sent} == {Outcome.CONFIRMED}
            replayed = publisher.replayed
    taken = drained(settings, "numbered", silence=3.0)
    duplicates = check_nothing_is_lost(sent, taken, replayed)
    assert len(sent) >= messages
    assert replayed <= 200 * len(deaths)
    return len(sent), replayed, duplicates


def test_nothing_confirmed_is_lost_over_kill_9_and_a_blocked_publisher_waits():
    """G1, class size; and the alarm, on the same broker."""
    with brokers.own("local") as broker:
        if not {"process", "alarm"} <= broker.capabilities:
            pytest.skip("needs a broker that can be killed and alarmed")
        through_the_death_of_the_broker(broker, [broker.kill, broker.kill], messages=2000)
        an_alarm_holds_publishers_up(broker)
        an_alarm_holds_a_managers_publisher_up_and_not_its_consumer(broker)


def an_alarm_holds_publishers_up(broker):
    with connected(broker.settings().replace(heartbeat=2), recovery=True) as (connection, timeline):
        declare(connection, broker, "work")
        with Publisher(connection) as publisher:
            with broker.alarm():
                held = publisher.publish("the one that is told", routing_key="work")
                timeline.wait_for(ConnectionBlocked, timeout=10)
                started = time.monotonic()
                with pytest.raises(DeadlineExceeded, match="an alarm"):
                    publisher.publish("never sent", routing_key="work", deadline=0.3)
                assert time.monotonic() - started < 0.3 + SLACK
                sent = []
                waiting = threading.Thread(target=lambda: sent.append(publisher.publish("later", routing_key="work")))
                waiting.start()
                assert not held.wait(0.5)
                assert waiting.is_alive()
            timeline.wait_for(ConnectionUnblocked, timeout=15)
            waiting.join(20)
            held.result()
            sent[0].result()
            assert publisher.connection.generation == 1
    assert [body for _, body in drained(broker.settings(), "work")] == [b"the one that is told", b"later"]


def an_alarm_holds_a_managers_publisher_up_and_not_its_consumer(broker):
    timeline, may_go_on, taken = Timeline(), threading.Event(), []

    def handler(delivery):
        may_go_on.wait(30)
        taken.append(delivery.body)
        delivery.ack()

    with ConnectionManager(broker.settings(), listeners=[timeline]) as manager:
        for each in manager.publisher.publish_many(["before"] * 30, routing_key="work"):
            each.result()
        manager.consume("work", handler)
        with broker.alarm():
            held = manager.publish("", "work", "during")
            timeline.wait_for(ConnectionBlocked, timeout=10)
            may_go_on.set()
            until(lambda: len(taken) == 30)  # three times its prefetch: its acknowledgements are read
            assert not held.done
        held.result()
        until(lambda: len(taken) == 31)
