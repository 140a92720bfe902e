"""The pools' promises in full counts: nothing is left behind, idle and busy entries live on, the numbers add up."""

import time

import pytest

from labkit import ChannelPool
from tests.broker import test_channel_pool, test_connection_pool
from tests.broker.connections import nothing_left_behind, own_virtual_host
from tests.broker.test_connection_pool import pools, survives
from tests.broker.test_pool_while_blocked import blocked_spells
from tests.soak.measured import write_table
from tests.unit.pool.still_pool import in_threads

pytestmark = [pytest.mark.soak, pytest.mark.broker, pytest.mark.timeout(3600)]
__all__ = ["pools"]


@pytest.fixture
def settings(broker):
    with own_virtual_host(broker) as settings:
        yield settings


@pytest.fixture(scope="module")
def table():
    rows: list[list[object]] = []
    yield rows
    write_table("pool soak", ["what", "left behind or lost", "seconds"], rows, beside_others=True)


@pytest.fixture
def passed(table):
    """Call it with a row's text at the end of a test: nothing was lost."""
    began = time.monotonic()
    return lambda what: table.append([what, 0, f"{time.monotonic() - began:.0f}"])


def test_thousand_channel_errors_and_two_hundred_cuts_leave_nothing_behind(settings, pools, broker, passed):
    """G3."""
    with nothing_left_behind():
        test_connection_pool.leave_nothing(settings, pools, broker, errors=1000, cuts=200)
    passed("connection pool: 1,000 channel errors, 200 cuts")


def test_thousand_channel_errors_and_two_hundred_cuts_leave_no_channel_behind(settings, broker, passed):
    """G3."""
    with nothing_left_behind():
        test_channel_pool.leave_nothing(settings, ChannelPool, broker, errors=1000, cuts=200)
    passed("channel pool: 1,000 channel errors, 200 cuts")


def test_fifty_blocked_spells_leave_nothing_behind(passed):
    """G3."""
    with nothing_left_behind():
        blocked_spells(50)
    passed("both pools: 50 blocked spells")


@pytest.mark.parametrize("heartbeat", [2, 60])
def test_idle_pool_outlives_thirty_heartbeats(settings, pools, heartbeat, passed):
    """G4."""
    pool = pools(settings.replace(heartbeat=heartbeat), min_size=4)
    survives(pool, intervals=30 * heartbeat, work=lambda ends: time.sleep(max(0.0, ends - time.monotonic())))
    passed(f"idle for 30 heartbeats of {heartbeat} s")


def test_borrowers_that_all_compute_for_thirty_heartbeats_keep_their_connections(settings, pools, passed):
    """G5."""
    pool = pools(settings.replace(heartbeat=2), min_size=4)
    pool.open(wait=True)
    ends, problems = time.monotonic() + 30 * 2, []

    def compute():
        try:
            with pool.connection() as connection:
                while time.monotonic() < ends:
                    sum(range(10_000))
                assert connection.is_open
                connection.channel().close()
        except BaseException as exc:
            problems.append(exc)

    for thread in in_threads(4, compute):
        thread.join(120)
    assert problems == []
    stats = pool.get_stats()
    assert (stats.created, stats.lost, stats.granted) == (4, 0, 4)
    passed("4 borrowers compute for 30 heartbeats of 2 s")
