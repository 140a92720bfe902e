"""A publisher through what only a broker of its own can suffer: kill -9, a restart, an alarm."""

import threading
import time

import pytest

from labkit import (
    ConnectionBlocked,
    ConnectionLost,
    ConnectionManager,
    ConnectionRecovered,
    ConnectionUnblocked,
    Consumer,
    DeadlineExceeded,
    Outcome,
    Publisher,
    Queue,
    Timeline,
    brokers,
)
from tests.broker.connections import SLACK, connected
from tests.broker.publishing import check_nothing_is_lost, drained, publishing_steadily
from tests.broker.test_connection_deadlines import connection_at_work, every_call_of_the_connection_ends
from tests.broker.test_publisher_leaves_nothing import after_blocked_spells
from tests.broker.test_role_deadlines import every_call_of_the_roles_ends, roles_at_work
from tests.view import until

pytestmark = [pytest.mark.broker, pytest.mark.own_broker, pytest.mark.slow, pytest.mark.timeout(300)]

OWN = Queue("of this connection", exclusive=True)


def declare(connection, broker, queue, **arguments):
    with connection.channel() as channel:
        channel.declare(Queue(queue, arguments=arguments))
    # What was declared a moment before a kill -9 may be forgotten otherwise: by Mnesia, where there is one, and by the
    # table that says which log on disk is which quorum queue's.
    broker.ctl("eval", "catch mnesia:sync_log(), [dets:sync(Table) || Table <- dets:all()].")


def through_the_death_of_the_broker(broker, deaths, *, messages, kind="classic"):
    """Publish without a pause while *broker* suffers each of *deaths*; return (messages, replayed, duplicates).

    Args:
        broker: A throw-away one.
        deaths: Its verbs, such as ``broker.kill``.
        messages: How many at least.
        kind: The queue's type.
    """
    settings = broker.settings().replace(heartbeat=5)
    queue = f"numbered, {kind}"
    with connected(settings, recovery=True) as (connection, timeline):
        declare(connection, broker, queue, **{"x-queue-type": kind})
        connection.channel().declare(OWN)
        with Publisher(connection, max_in_flight=200) as publisher:
            with publishing_steadily(publisher, queue, messages=messages) as sent:
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
        assert connection.channel().declare(OWN, passive=True).consumers == 0  # it went with each link, and is back
    taken = drained(settings, queue, silence=3.0)
    duplicates = check_nothing_is_lost(sent, taken, replayed)
    assert len(sent) >= messages
    assert replayed <= 200 * len(deaths)
    return len(sent), replayed, duplicates


def test_nothing_confirmed_is_lost_over_kill_9_and_a_stop_and_a_blocked_publisher_waits():
    """G1, class size; and the alarm, on the same broker."""
    with brokers.own("local") as broker:
        if not {"process", "alarm"} <= broker.capabilities:
            pytest.skip("needs a broker that can be killed and alarmed")
        through_the_death_of_the_broker(broker, [broker.kill, broker.stop], messages=2000)
        through_the_death_of_the_broker(broker, [broker.kill], messages=1000, kind="quorum")
        an_alarm_holds_publishers_up(broker)
        an_alarm_holds_a_managers_publisher_up_and_not_its_consumer(broker)
        an_alarm_stops_no_consumer_and_loses_nothing(broker)
        after_blocked_spells(broker, spells=2)
        a_paused_broker_holds_no_call_up(broker)


def an_alarm_holds_publishers_up(broker, *, slack=SLACK):
    """And no call any longer than its deadline: G8."""
    with (
        connected(broker.settings().replace(heartbeat=2), recovery=True) as (connection, timeline),
        roles_at_work(broker.settings()) as others,
        connection_at_work(broker.vhost("calls")) as another,
    ):
        connection.channel().declare(Queue("told"))
        with Publisher(connection) as publisher:
            with broker.alarm():
                held = publisher.publish("the one that is told", routing_key="told")
                timeline.wait_for(ConnectionBlocked, timeout=10)
                started = time.monotonic()
                with pytest.raises(DeadlineExceeded, match="an alarm"):
                    publisher.publish("never sent", routing_key="told", deadline=0.3)
                assert time.monotonic() - started < 0.3 + slack
                every_call_of_the_roles_ends(*others, slack=slack)
                every_call_of_the_connection_ends(*another, slack=slack)
                sent = []
                waiting = threading.Thread(target=lambda: sent.append(publisher.publish("later", routing_key="told")))
                waiting.start()
                assert not held.wait(0.5)
                assert waiting.is_alive()
            timeline.wait_for(ConnectionUnblocked, timeout=15)
            waiting.join(20)
            held.result()
            sent[0].result()
            assert publisher.connection.generation == 1
    assert [body for _, body in drained(broker.settings(), "told")] == [b"the one that is told", b"later"]


def an_alarm_holds_a_managers_publisher_up_and_not_its_consumer(broker):
    timeline, may_go_on, taken = Timeline(), threading.Event(), []

    def handler(delivery):
        may_go_on.wait(30)
        taken.append(delivery.body)
        delivery.ack()

    with ConnectionManager(broker.settings(), listeners=[timeline]) as manager:
        with manager.channel() as channel:
            channel.declare(Queue("work"))
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


def a_paused_broker_holds_no_call_up(broker, *, slack=SLACK):
    """G8; a silent line is in ``test_role_deadlines`` and ``test_connection_deadlines``."""
    settings = broker.settings().replace(heartbeat=0)
    with roles_at_work(settings) as (connection, *roles), connection_at_work(settings) as another:
        broker.pause()
        try:
            every_call_of_the_roles_ends(connection, *roles, slack=slack)
            every_call_of_the_connection_ends(*another, slack=slack)
            connection.close(timeout=0.2)
        finally:
            broker.resume()


def an_alarm_stops_no_consumer_and_loses_nothing(broker, *, threads=4, messages=400):
    """Publishers wait at the window; consumers, on a connection of their own, go on; so it is on the next link, too."""
    handled, sent, most = [], [], [0]
    settings = broker.settings().replace(heartbeat=5)

    def handle(delivery):
        handled.append(delivery.body)
        delivery.ack()

    def publish(name):
        for number in range(messages // threads):
            sent.append(publisher.publish(f"{name} {number}", routing_key="work", deadline=90))
            most[0] = max(most[0], publisher.in_flight)

    with (
        connected(settings.replace(connection_name="publisher"), recovery=True) as (connection, timeline),
        connected(settings.replace(connection_name="consumer"), recovery=True) as (consuming, _),
        Publisher(connection, max_in_flight=20) as publisher,
    ):
        for queue in ("work", "waiting"):
            connection.channel().declare(Queue(queue))
        for each in publisher.publish_many([str(number) for number in range(100)], routing_key="waiting"):
            each.result()
        with broker.alarm():
            workers = [threading.Thread(target=publish, args=(name,)) for name in range(threads)]
            for each in workers:
                each.start()
            timeline.wait_for(ConnectionBlocked, timeout=10)
            with Consumer(consuming, "waiting", handle):
                until(lambda: len(handled) == 100, 20)
            mark = timeline.mark()
            broker.close_connections("while it is blocked")
            timeline.wait_for(ConnectionBlocked, timeout=30, since=mark)  # the new link, as soon as it publishes
            assert all(each.is_alive() for each in workers)
            assert not any(each.done for each in sent)
        for each in workers:
            each.join(60)
        publisher.flush(timeout=60)
        assert {each.outcome for each in sent} == {Outcome.CONFIRMED}
        assert (len(sent), most[0] <= 20) == (messages, True)
        replayed = publisher.replayed
    check_nothing_is_lost(sent, drained(settings, "work"), replayed)
