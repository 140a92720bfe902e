"""A failure is counted when a handler raises, and only then: lost links reject nothing that was never tried."""

import asyncio
import threading

import pytest

from labkit import (
    AsyncConnection,
    Connection,
    ConnectionManager,
    ConnectionRecovered,
    Consumer,
    Queue,
    RetryTimes,
    SyncConnection,
    brokers,
)
from tests.asynchronous import asynchronous
from tests.broker.connections import connected, own_virtual_host, through_a_proxy
from tests.broker.publishing import drained
from tests.broker.test_consumer import fill, state
from tests.broker.test_publisher_on_its_own_broker import declare
from tests.view import until

pytestmark = pytest.mark.broker
TEN = [str(number).encode() for number in range(10)]


@pytest.fixture(scope="module")
def settings(broker):
    with own_virtual_host(broker) as settings:
        yield settings


class Fails:
    """Raises for every body so many times, then acknowledges it. Holds everything up until it may go on."""

    def __init__(self, times=1):
        self.times = times
        self.tries = {}
        self.handled = []
        self.begun = threading.Event()
        self.may_go_on = threading.Event()

    def __call__(self, delivery):
        self.begun.set()
        self.may_go_on.wait(60)
        tries = self.tries[delivery.body] = self.tries.get(delivery.body, 0) + 1
        if tries <= self.times:
            raise RuntimeError("of the test")
        self.handled.append(delivery.body)
        delivery.ack()


@pytest.mark.parametrize("kind", ["classic", "quorum"])
@pytest.mark.parametrize("times", [1, 3])
def test_messages_whose_handlers_fail_after_a_cut_are_all_handled(settings, kind, times):
    handler, queue = Fails(times), Queue(f"cut, {kind}", arguments={"x-queue-type": kind})
    with (
        through_a_proxy(settings, recovery=True) as (proxy, connection, timeline),
        Consumer(connection, queue, handler, on_error=RetryTimes(times)),
    ):
        fill(settings, *TEN, queue=queue.name)
        assert handler.begun.wait(10)
        proxy.cut()
        timeline.wait_for(ConnectionRecovered, timeout=20)
        handler.may_go_on.set()
        until(lambda: set(handler.handled) == set(TEN))
    assert drained(settings, queue.name, silence=0.3) == []


def test_messages_whose_handlers_fail_after_a_managers_link_was_closed_are_all_handled(settings, broker):
    handler = Fails()
    with ConnectionManager(settings) as manager:
        consumer = manager.consume(Queue("managed"), handler)
        fill(settings, *TEN, queue="managed")
        assert handler.begun.wait(10)
        assert broker.close_connections("of the test", settings.virtual_host)
        until(lambda: consumer.connection.generation == 2)
        handler.may_go_on.set()
        until(lambda: set(handler.handled) == set(TEN))


@pytest.mark.own_broker
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_messages_whose_handlers_fail_after_a_kill_9_of_the_broker_are_all_handled():
    with brokers.own("local") as broker:
        if "process" not in broker.capabilities:
            pytest.skip("needs a broker that can be killed")
        settings = broker.settings().replace(heartbeat=5)
        for kind in ("classic", "quorum"):
            handler, name = Fails(), f"killed, {kind}"
            with connected(settings, recovery=True) as (connection, timeline):
                declare(connection, broker, name, **{"x-queue-type": kind})
                with Consumer(connection, name, handler):
                    fill(settings, *TEN, queue=name)
                    assert handler.begun.wait(10)
                    mark = timeline.mark()
                    broker.kill()
                    broker.start()
                    timeline.wait_for(ConnectionRecovered, timeout=60, since=mark)
                    handler.may_go_on.set()
                    until(lambda handler=handler: set(handler.handled) == set(TEN), 60)
            assert drained(settings, name, silence=1.0) == []


def fill_redelivered(settings, name):
    """Put one message into a new queue, where it has been delivered before, to somebody who did not try it."""
    with Connection(settings) as connection, connection.channel() as channel:
        channel.delete(Queue(name))
        channel.declare(Queue(name))
        fill(settings, "x", queue=name)
        channel.get(name).nack()


def test_a_channels_consumer_tries_a_redelivered_message_that_it_has_not_tried_once_more(settings):
    fill_redelivered(settings, "of a channel")
    seen = []

    def fail(delivery):
        seen.append(delivery.redelivered)
        raise RuntimeError("of the test")

    with Connection(settings) as connection, connection.channel() as channel:
        channel.consume("of a channel", fail)
        until(lambda: len(seen) == 2)
        until(lambda: state(settings, "of a channel").messages == 0)
    assert seen == [True, True]


@pytest.mark.parametrize(("on_error", "left"), [(RetryTimes(2), [1, 1, 0]), ("reject", [0]), (None, [1] * 5)])
def test_a_sync_consume_gives_a_failed_message_back_so_many_times(settings, on_error, left):
    fill_redelivered(settings, "synchronous")
    with SyncConnection(settings) as connection:
        for expected in left:
            with pytest.raises(ZeroDivisionError):
                connection.consume("synchronous", lambda *_: 1 / 0, on_error=on_error, timeout=20)
            until(lambda expected=expected: state(settings, "synchronous").messages == expected)


def test_a_sync_consume_that_was_interrupted_has_not_failed(settings):
    fill_redelivered(settings, "interrupted")

    def interrupt(*_):
        raise KeyboardInterrupt

    with SyncConnection(settings) as connection:
        for _ in range(3):
            with pytest.raises(KeyboardInterrupt):
                connection.consume("interrupted", interrupt, on_error="reject", timeout=20)
        until(lambda: state(settings, "interrupted").messages == 1)


@pytest.mark.parametrize(("on_error", "left"), [(RetryTimes(2), [1, 1, 0]), ("reject", [0]), (None, [1] * 5)])
def test_an_async_consume_gives_a_failed_message_back_so_many_times(settings, on_error, left):
    fill_redelivered(settings, "asynchronous")

    @asynchronous
    async def check():
        async with AsyncConnection(settings) as connection:
            for expected in left:
                with pytest.raises(ZeroDivisionError):
                    await connection.consume("asynchronous", lambda _: 1 / 0, on_error=on_error)
                until(lambda expected=expected: state(settings, "asynchronous").messages == expected)

    check()


def test_an_async_consume_that_was_cancelled_has_not_failed(settings):
    fill_redelivered(settings, "cancelled")

    @asynchronous
    async def check():
        async with AsyncConnection(settings) as connection:
            for _ in range(3):
                begun = asyncio.Event()

                async def wait(_, begun=begun):
                    begun.set()
                    await asyncio.Event().wait()

                task = asyncio.create_task(connection.consume("cancelled", wait, on_error="reject"))
                await begun.wait()
                task.cancel()
                await asyncio.wait({task})

    check()
    until(lambda: state(settings, "cancelled").messages == 1)


def test_a_failure_counts_towards_a_quorum_queues_delivery_limit(settings):
    """Which stops a message that no count here can: one that ends the process."""
    tries = []
    limited = Queue("limited", arguments={"x-queue-type": "quorum", "x-delivery-limit": 2})

    def fail(delivery):
        tries.append(delivery.redelivered)
        raise RuntimeError("of the test")

    with Consumer(settings, limited, fail, on_error=RetryTimes(20)):
        fill(settings, "x", queue="limited")
        until(lambda: len(tries) == 3)
        until(lambda: state(settings, "limited").messages == 0)
    assert len(tries) == 3


def close_a_channel(settings):
    """With one message at its handler, and the others waiting for it."""
    begun, go = threading.Event(), threading.Event()
    with Connection(settings) as connection:
        channel = connection.channel()
        channel.consume("limited", lambda _: (begun.set(), go.wait(20)))
        assert begun.wait(10)
        channel.close()
        go.set()


def close_a_channel_with_a_message_from_get(settings):
    with Connection(settings) as connection:
        channel = connection.channel()
        until(lambda: channel.get("limited"))
        channel.close()


def close_a_consumer(settings):
    """Whose handler forgets what it got."""
    with Consumer(settings, "limited", lambda _: None) as consumer:
        until(lambda: consumer.handled >= 3)


def consume_synchronously(settings):
    with SyncConnection(settings) as connection:
        connection.consume("limited", lambda *_: connection.stop(), timeout=20)


def interrupt_a_sync_consume(settings):
    def interrupt(*_):
        raise KeyboardInterrupt

    with SyncConnection(settings) as connection, pytest.raises(KeyboardInterrupt):
        connection.consume("limited", interrupt, timeout=20)


def cancel_an_async_consume(settings):
    async def check():
        begun = asyncio.Event()

        async def wait(_):
            begun.set()
            await asyncio.Event().wait()

        async with AsyncConnection(settings) as connection:
            task = asyncio.create_task(connection.consume("limited", wait))
            await begun.wait()
            task.cancel()
            await asyncio.wait({task})

    asyncio.run(check())


@pytest.mark.parametrize(
    "end",
    [
        close_a_channel,
        close_a_channel_with_a_message_from_get,
        close_a_consumer,
        consume_synchronously,
        interrupt_a_sync_consume,
        cancel_an_async_consume,
    ],
    ids=lambda end: end.__name__,
)
def test_what_an_orderly_end_gives_back_does_not_count_towards_the_delivery_limit(settings, broker, end):
    if tuple(int(part) for part in broker.version.split(".")[:2]) < (4, 3):
        pytest.skip("before RabbitMQ 4.3 every return counts")
    name, rounds = "limited", 4
    with Connection(settings) as connection, connection.channel() as channel:
        channel.delete(Queue(name))
        channel.declare(Queue(name, arguments={"x-queue-type": "quorum", "x-delivery-limit": 2}))
    bodies = [str(number) for number in range(3 + rounds)]
    fill(settings, *bodies, queue=name)
    for _ in range(rounds):
        end(settings)
    handled = rounds if end is consume_synchronously else 0
    until(lambda: state(settings, name).messages == len(bodies) - handled)
