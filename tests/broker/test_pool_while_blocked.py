"""Pools while the broker takes no publishes (a memory alarm): nothing hangs, and nothing is left behind."""

import time

import pytest

from labkit import ChannelPool, ConnectionPool, DeadlineExceeded, OutcomeUnknown, PoolTimeout, Queue, brokers
from tests.broker.connections import SLACK, nothing_left_behind
from tests.broker.connections import channels as channel_count
from tests.unit.pool.still_pool import adds_up
from tests.view import until

pytestmark = [pytest.mark.broker, pytest.mark.own_broker, pytest.mark.slow, pytest.mark.timeout(300)]


def test_blocked_spells_cost_no_place_and_end_in_time():
    with nothing_left_behind():
        blocked_spells(3)


def blocked_spells(count):
    with brokers.own() as broker:
        if "alarm" not in broker.capabilities:
            pytest.skip("this broker cannot be alarmed")
        settings = broker.vhost("blocked").replace(heartbeat=2)
        with ConnectionPool(settings, max_size=2) as pool, ChannelPool(settings, max_size=2) as channels:
            pool.execute(lambda channel: channel.declare(Queue("work")))
            channels.execute(lambda channel: None, confirm=True)
            for _ in range(count):
                with broker.alarm():
                    blocks(pool)
                    began = time.monotonic()
                    with pytest.raises(DeadlineExceeded):  # a blocked connection opens no channel
                        pool.execute(lambda channel: channel.publish("x", routing_key="work", timeout=0.3), timeout=0.5)
                    # Unknown the first time: the broker says that it blocks when it sees a publish.
                    with pytest.raises((DeadlineExceeded, OutcomeUnknown, PoolTimeout)):
                        channels.execute(
                            lambda channel: channel.publish("x", routing_key="work", timeout=0.3),
                            confirm=True,
                            timeout=0.5,
                        )
                    assert time.monotonic() - began < 1.6 + SLACK
                until(lambda: pool.execute(lambda channel: publishes(channel)))
                channels.execute(lambda channel: channel.publish("x", routing_key="work"), confirm=True)
            for each in (pool, channels):
                stats = each.get_stats()
                assert adds_up(stats)
                assert stats.leased == 0
                until(lambda each=each: each.get_stats().retired == 0)
            expected = pool.get_stats().size + 1
            until(lambda: len(broker.connections("blocked")) == expected)
            until(lambda: channel_count(broker, "blocked") == channels.get_stats().size)
        until(lambda: broker.connections("blocked") == [])


def blocks(pool):
    """Have every connection publish, so that the broker blocks it."""
    with pool.connection() as connection:
        connection.channel().publish("x", routing_key="work", timeout=1)
        until(lambda: connection.is_blocked)


def publishes(channel):
    try:
        channel.publish("x", routing_key="work", timeout=1)
    except DeadlineExceeded:
        return False
    return True
