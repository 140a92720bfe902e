"""The connection's promises in full counts: recovery time, half-open links, reconnects, many threads."""

import statistics
import time

import pytest

from labkit import AttemptFailed, ConnectionLost, ConnectionRecovered, State
from labkit.wire import Refuse, Stall
from tests.broker.connections import BRISK, EAGER, descriptors, our_threads, own_virtual_host, retired, through_a_proxy
from tests.broker.test_connection_recovery import random_faults
from tests.broker.test_io_thread_hosting import stress
from tests.broker.topology import whole_topology
from tests.soak.measured import write_table
from tests.view import until

pytestmark = [pytest.mark.soak, pytest.mark.broker, pytest.mark.timeout(1800)]
SLACK = 0.5  # seconds


@pytest.fixture(scope="module")
def settings(broker):
    with own_virtual_host(broker) as settings:
        yield settings


@pytest.fixture(scope="module")
def table():
    rows: list[list[object]] = []
    yield rows
    write_table("connection soak", ["what", "times", "promised", "worst", "median"], rows, beside_others=True)


@pytest.fixture(scope="module")
def stories():
    rows: list[list[object]] = []
    yield rows
    columns = ["seed", "faults", "events", "of these failed attempts", "missing, twice or out of order", "seconds"]
    write_table("event soak", columns, rows)


def record(table, what, promised, measured):
    worst, median = max(measured), statistics.median(measured)
    table.append([what, len(measured), f"{promised:.1f} s", f"{worst:.2f} s", f"{median:.2f} s"])


def test_fifty_recoveries_are_within_the_longest_pause_and_a_second(settings, table):
    """G2: with all that was declared and consumed."""
    seconds = []
    with through_a_proxy(settings, recovery=True) as (proxy, connection, timeline), whole_topology(connection):
        for _ in range(50):
            mark = timeline.mark()
            with proxy.fault(Refuse()):
                proxy.cut()
                timeline.wait_for(AttemptFailed, timeout=20, since=mark, count=5)
            accepts_since = time.monotonic()
            timeline.wait_for(ConnectionRecovered, timeout=20, since=mark)
            seconds.append(time.monotonic() - accepts_since)
            assert connection.is_open
    record(table, "recovery with topology after the broker accepts again", BRISK.maximum + 1, seconds)
    assert max(seconds) < BRISK.maximum + 1 + SLACK


@pytest.mark.parametrize("heartbeat", [1, 2, 5])
@pytest.mark.parametrize("direction", ["both", "downstream"])
def test_half_open_links_are_noticed_within_two_heartbeats_and_a_second(settings, table, heartbeat, direction):
    """G9."""
    seconds = []
    with through_a_proxy(settings, heartbeat=heartbeat, recovery=True, backoff=EAGER) as (proxy, _, timeline):
        for _ in range(5):
            mark = timeline.mark()
            with proxy.fault(Stall(), direction=direction):
                started = time.monotonic()
                timeline.wait_for(ConnectionLost, timeout=60, since=mark)
                seconds.append(time.monotonic() - started)
            timeline.wait_for(ConnectionRecovered, timeout=60, since=mark)
        until(lambda: retired() == 0, 60)
    record(table, f"half-open noticed, heartbeat {heartbeat}, silent {direction}", 2 * heartbeat + 1, seconds)
    assert max(seconds) < 2 * heartbeat + 1 + SLACK


def test_two_hundred_and_forty_reconnects_leave_nothing_behind(settings, table):
    """C25."""
    seconds = []
    with through_a_proxy(settings, recovery=True, backoff=EAGER) as (proxy, connection, timeline):
        connection.channel()
        before = descriptors()
        for number in range(240):
            mark = timeline.mark()
            started = time.monotonic()
            proxy.cut(reset=number % 2 == 0)
            timeline.wait_for(ConnectionRecovered, timeout=20, since=mark)
            seconds.append(time.monotonic() - started)
            connection.channel()
        until(lambda: our_threads() == ["labkit-io"], 20)
        until(lambda: descriptors() <= before, 20)
        assert retired() == 0
        assert len(proxy.links) == 1
        assert connection.generation == 241
        assert timeline.names().count("ConnectionLost") == timeline.names().count("ConnectionRecovered") == 240
        assert connection.state is State.OPEN
    record(table, "reconnect after a cut, first pauses 0.01 s to 0.05 s", 1.0, seconds)


@pytest.mark.parametrize("seed", range(4))
def test_events_are_exact_through_a_hundred_random_faults(settings, stories, seed):
    """G15."""
    began = time.monotonic()
    story = random_faults(settings, seed=seed, count=100)
    stories.append([seed, 100, len(story), story.count("F"), 0, f"{time.monotonic() - began:.0f}"])


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_thirty_two_threads_make_twenty_thousand_calls_on_one_connection(settings, seed):
    stress(settings, threads=32, calls=20_000, seed=seed)
