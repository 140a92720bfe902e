"""Pools in full counts: G3 (nothing leaks), G4 and G5 (idle and busy entries live on)."""

import time

import pytest

from tests.broker.connections import descriptors, our_threads, own_virtual_host, retired, settle
from tests.broker.test_connection_pool import leave_nothing, pools, survives
from tests.broker.test_pool_while_blocked import blocked_spells

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]
__all__ = ["pools"]


@pytest.fixture
def settings(broker):
    with own_virtual_host(broker) as settings:
        yield settings


def test_thousand_channel_errors_and_two_hundred_cuts_leave_nothing_behind(settings, pools, broker):
    settle()
    files = descriptors()
    leave_nothing(settings, pools, broker, errors=1000, cuts=200)
    settle()
    assert our_threads() == []
    assert retired() == 0
    assert descriptors() <= files


def test_fifty_blocked_spells_leave_nothing_behind():
    blocked_spells(50)


@pytest.mark.parametrize("heartbeat", [2, 60])
def test_idle_pool_outlives_thirty_heartbeats(settings, pools, heartbeat):
    pool = pools(settings.replace(heartbeat=heartbeat), min_size=4)
    survives(pool, intervals=30 * heartbeat, work=lambda ends: time.sleep(max(0.0, ends - time.monotonic())))


def test_borrower_that_computes_for_ten_heartbeats_keeps_its_connection(settings, pools):
    def compute(ends):
        while time.monotonic() < ends:
            sum(range(10_000))

    pool = pools(settings.replace(heartbeat=2), min_size=4)
    with pool.connection() as connection:
        survives_beside(pool, connection, compute)


def survives_beside(pool, connection, compute):
    compute(time.monotonic() + 20)
    assert connection.is_open
    connection.channel().close()
    assert (pool.get_stats().created, pool.get_stats().lost) == (pool.get_stats().size, 0)
