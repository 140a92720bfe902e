"""A handler that takes longer than the broker's consumer timeout: its message comes again, and the cause is told."""

import asyncio
import time
from contextlib import contextmanager

import pytest

from labkit import (
    AsyncConnection,
    ChannelClosed,
    ChannelLost,
    Connection,
    Consumer,
    ConsumerCancelled,
    Queue,
    SyncConnection,
    brokers,
)
from tests.broker.connections import connected
from tests.view import until

pytestmark = [pytest.mark.broker, pytest.mark.own_broker, pytest.mark.slow, pytest.mark.timeout(300)]
TIMEOUT, SLOW = 1.0, 5.0  # seconds
QUEUE = Queue("slow work", arguments={"x-queue-type": "quorum"})
PRECONDITION_FAILED = 406


@contextmanager
def impatient_broker():
    """A broker whose consumer timeout is a second, and that looks twice a second."""
    with brokers.own("local") as broker:
        names = {"consumer_timeout": TIMEOUT, "channel_tick_interval": TIMEOUT / 2}
        for name, seconds in names.items():
            broker.ctl("eval", f"application:set_env(rabbit, {name}, {round(seconds * 1000)}).")
        yield broker


@pytest.fixture(scope="module")
def impatient():
    with impatient_broker() as broker:
        yield broker


@pytest.fixture
def settings(impatient):
    settings = impatient.settings()
    with Connection(settings) as connection, connection.channel() as channel:
        channel.delete(QUEUE)
        channel.declare(QUEUE)
        channel.publish("x", routing_key=QUEUE.name)
    return settings


def cancels(broker):
    """Whether this version ends the consumer; the older ones close the channel."""
    return tuple(int(each) for each in broker.version.split(".")[:2]) >= (4, 3)


def check_cause(broker, error):
    if cancels(broker):
        assert f"queue {QUEUE.name!r} is there" in str(error)
        assert "consumer timeout" in str(error)
    else:
        assert error.reason.reply_code == PRECONDITION_FAILED
        assert "timed out" in str(error)


def test_a_consumer_goes_on_after_a_handler_that_took_too_long(settings, impatient):
    taken = []

    def slow_at_first(delivery):
        taken.append(delivery.redelivered)
        if len(taken) == 1:
            time.sleep(SLOW)
        delivery.ack()

    with connected(settings, recovery=True) as (connection, timeline):
        with Consumer(connection, QUEUE.name, slow_at_first) as consumer:
            if cancels(impatient):
                timeline.wait_for(ConsumerCancelled, timeout=20)
            else:
                until(lambda: any(_is_timeout(each) for each in timeline.events), 20)
            until(lambda: taken == [False, True], 30)
            until(lambda: consumer.is_consuming)
        assert connection.generation == 1


def _is_timeout(event):
    return isinstance(event, ChannelClosed) and getattr(event.reason, "reply_code", None) == PRECONDITION_FAILED


def test_a_sync_connection_tells_the_cause(settings, impatient):
    with (
        SyncConnection(settings) as connection,
        pytest.raises(ChannelLost) as caught,
    ):
        connection.consume(QUEUE.name, lambda *_: time.sleep(SLOW), timeout=30)
    check_cause(impatient, caught.value)


def test_an_async_connection_tells_the_cause(settings, impatient):
    async def consume():
        async with AsyncConnection(settings) as connection:
            await asyncio.wait_for(connection.consume(QUEUE.name, lambda _: asyncio.sleep(SLOW)), 30)

    with pytest.raises(ChannelLost) as caught:
        asyncio.run(consume())
    check_cause(impatient, caught.value)
