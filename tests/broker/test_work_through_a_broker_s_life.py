"""Publishing and consuming, on a Connection and by a ConnectionManager, while their broker goes and comes back."""

import asyncio
import contextlib
import threading
import time
from collections import Counter
from contextlib import ExitStack, contextmanager

import pika.exceptions as px
import pytest

from labkit import (
    AsyncConnection,
    ConnectionBlocked,
    ConnectionLost,
    ConnectionManager,
    ConnectionRecovered,
    Consumer,
    DeadlineExceeded,
    LabkitError,
    NotConnected,
    Outcome,
    OutcomeUnknown,
    Publisher,
    Queue,
    SyncConnection,
    Timeline,
    brokers,
)
from labkit.verdicts import root_cause
from tests.broker.connections import BRISK, SLACK, connected
from tests.broker.publishing import publishing_steadily
from tests.broker.test_publisher_on_its_own_broker import declare
from tests.view import until

pytestmark = [pytest.mark.broker, pytest.mark.own_broker, pytest.mark.slow, pytest.mark.timeout(300)]
HEARTBEAT = 2
LIFE = ("stop", "kill", "restart", "pause")
RATE = 0.002  # seconds between two messages of one publisher


@pytest.fixture(scope="module")
def own():
    with brokers.own() as broker:
        if not {"process", "alarm"} <= broker.capabilities:
            pytest.skip("needs a broker that can be stopped, killed and alarmed")
        yield broker


class Work:
    """A publisher and a consumer of one queue; and of each timeline, how many connections it is of."""

    def __init__(self, name, publisher, timelines):
        self.name, self.publisher, self.timelines = name, publisher, timelines
        self.handled = Counter()
        self.sent = []

    def handle(self, delivery):
        self.handled[delivery.message.message_id] += 1
        delivery.ack()


@contextmanager
def at_work(broker):
    """Two Works, publishing and consuming steadily; at the end nothing is lost: what was sent was handled."""
    settings = broker.settings().replace(heartbeat=HEARTBEAT)
    with ExitStack() as stack:
        publishing, on_publishing = stack.enter_context(connected(settings, recovery=True))
        consuming, on_consuming = stack.enter_context(connected(settings, recovery=True))
        for queue in ("connection", "manager"):
            declare(publishing, broker, queue)
        publisher = stack.enter_context(Publisher(publishing, max_in_flight=200))
        by_connection = Work("connection", publisher, {on_publishing: 1, on_consuming: 1})
        stack.enter_context(Consumer(consuming, "connection", by_connection.handle))
        of_manager = Timeline()
        manager = stack.enter_context(ConnectionManager(settings, backoff=BRISK, listeners=[of_manager]))
        by_manager = Work("manager", manager.publisher, {of_manager: 2})
        manager.consume("manager", by_manager.handle)
        works = [by_connection, by_manager]
        with ExitStack() as publishing_now:
            for work in works:
                steadily = publishing_steadily(Slow(work.publisher), work.name, messages=100)
                work.sent = publishing_now.enter_context(steadily)
            yield works
        for work in works:
            assert {each.outcome for each in work.sent} == {Outcome.CONFIRMED}, work.name
            until(lambda work=work: {each.message_id for each in work.sent} <= set(work.handled), 60)


class Slow:
    """A publisher that does not fill the broker: what matters here is what happens at the moment of a fault."""

    def __init__(self, publisher):
        self.publish, self.flush = self._publish, publisher.flush
        self._publisher = publisher

    def _publish(self, *arguments, **options):
        time.sleep(RATE)
        return self._publisher.publish(*arguments, **options)


def through(broker, works, fault):
    """Have *broker* suffer *fault* and come back; return the seconds until all of *works* have handled what is new."""
    marks = [(timeline, count, timeline.mark()) for work in works for timeline, count in work.timelines.items()]
    if fault == "restart":
        broker.restart()
    else:
        getattr(broker, fault)()
    lost = [timeline.wait_for(ConnectionLost, timeout=30, since=mark, count=count) for timeline, count, mark in marks]
    if fault == "pause":
        broker.resume()
    elif fault != "restart":
        broker.start()
    back = time.monotonic()
    for timeline, count, mark in marks:
        timeline.wait_for(ConnectionRecovered, timeout=60, since=mark, count=count)
    for work in works:
        seen, sent = len(work.handled), len(work.sent)
        until(lambda work=work, seen=seen, sent=sent: len(work.handled) > seen and len(work.sent) > sent + 10, 60)
    kinds = {type(each.reason) for each in lost}
    expected = {
        "stop": {px.ConnectionClosedByBroker, px.StreamLostError},
        "restart": {px.ConnectionClosedByBroker, px.StreamLostError},
        "kill": {px.StreamLostError},
        "pause": {px.AMQPHeartbeatTimeout},
    }[fault]
    assert kinds <= expected
    return time.monotonic() - back


def test_publishing_and_consuming_go_on_through_a_stop_a_kill_a_restart_and_a_pause(own):
    with at_work(own) as works:
        for fault in LIFE:
            through(own, works, fault)
        until(lambda: len(own.connections()) == 4, 60)  # two of each: none twice, none of before


def test_a_connection_that_is_blocked_for_too_long_is_lost_within_its_limit(own):
    for limit in (1.0, 2.0):
        with connected(own.settings().replace(blocked_connection_timeout=limit)) as (connection, timeline):
            channel = connection.channel()
            with own.alarm():
                channel.publish("x", routing_key="nowhere")
                blocked = timeline.wait_for(ConnectionBlocked, timeout=10)
                lost = timeline.wait_for(ConnectionLost, timeout=10)
        assert isinstance(lost.reason, px.ConnectionBlockedTimeout)
        assert limit - 0.1 <= lost.at - blocked.at <= limit + SLACK


def test_a_sync_connection_keeps_its_deadlines_under_an_alarm_and_goes_on_after_it(own):
    with SyncConnection(own.settings().replace(heartbeat=HEARTBEAT)) as connection:
        connection.publish("sync", "before")
        with own.alarm():
            for _ in range(2):
                began = time.monotonic()
                with pytest.raises((OutcomeUnknown, DeadlineExceeded, NotConnected)):
                    connection.publish("sync", "during", deadline=0.5)
                assert time.monotonic() - began < 0.5 + SLACK
                connection.open()  # what was not answered in time has ended the link
        until(lambda: publishes(connection), 20)


def publishes(connection):
    try:
        connection.publish("sync", "after", deadline=1)
    except LabkitError:
        connection.open()
        return False
    return True


def test_a_sync_connection_that_is_blocked_for_too_long_is_lost_within_its_limit(own):
    with SyncConnection(own.settings().replace(blocked_connection_timeout=1.0)) as connection:
        connection.publish("sync", "before")
        with own.alarm():
            began = time.monotonic()
            with pytest.raises(OutcomeUnknown) as caught:
                connection.publish("sync", "during", deadline=20)
            assert 0.9 <= time.monotonic() - began <= 1.0 + SLACK
        assert isinstance(root_cause(caught.value), px.ConnectionBlockedTimeout)
        assert not connection.is_open


def test_an_async_connection_keeps_its_deadlines_under_an_alarm_and_goes_on_after_it(own):
    async def main():
        async with AsyncConnection(own.settings().replace(heartbeat=HEARTBEAT)) as connection:
            await connection.publish("async", "before")
            with contextlib.ExitStack() as alarmed:
                # Not on the loop: heartbeats are due while the broker is asked, which takes seconds on a busy machine.
                await asyncio.to_thread(alarmed.enter_context, own.alarm())
                for _ in range(2):
                    began = time.monotonic()
                    with pytest.raises((OutcomeUnknown, DeadlineExceeded)):
                        await connection.publish("async", "during", deadline=0.5)
                    assert time.monotonic() - began < 0.5 + SLACK
                await asyncio.sleep(2 * HEARTBEAT + 1)  # an alarm is no silence
                assert connection.is_open
                await asyncio.to_thread(alarmed.close)
            await connection.publish("async", "after", deadline=20)

    asyncio.run(main())


def test_an_async_connection_that_is_blocked_for_too_long_is_lost_within_its_limit(own):
    async def main():
        async with AsyncConnection(own.settings().replace(blocked_connection_timeout=1.0)) as connection:
            await connection.publish("async", "before")
            with own.alarm():
                began = time.monotonic()
                with pytest.raises(OutcomeUnknown) as caught:
                    await connection.publish("async", "during", deadline=20)
                assert 0.9 <= time.monotonic() - began <= 1.0 + SLACK
            assert isinstance(root_cause(caught.value), px.ConnectionBlockedTimeout)
            assert not connection.is_open

    asyncio.run(main())


def test_thirty_two_threads_are_one_connection_and_thirty_two_channels_to_the_broker(own):
    threads, each_sends = 32, 20
    settings = own.vhost("threads")
    all_open, counted = threading.Barrier(threads + 1), threading.Event()

    def work(connection):
        with connection.channel(confirm=True, timeout=30) as channel:
            all_open.wait(60)
            for number in range(each_sends):
                channel.publish(str(number), routing_key="threads", timeout=30)
            counted.wait(60)

    with connected(settings) as (connection, _):
        own_channel = connection.channel()
        own_channel.declare(Queue("threads"))
        workers = [threading.Thread(target=work, args=(connection,)) for _ in range(threads)]
        for worker in workers:
            worker.start()
        all_open.wait(60)
        shown = until(lambda: [each for each in own.connections("threads") if each.channels == threads + 1])
        assert len(shown) == len(own.connections("threads")) == 1
        counted.set()
        for worker in workers:
            worker.join(60)
        assert own_channel.declare(Queue("threads"), passive=True).messages == threads * each_sends
        until(lambda: own.connections("threads")[0].channels == 1)
