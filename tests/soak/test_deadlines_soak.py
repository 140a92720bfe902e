"""No public call outlives its deadline by more than half a second, whatever has happened to the line or the broker."""

import statistics
from collections import defaultdict
from contextlib import contextmanager

import pytest

from labkit import brokers
from tests.broker.connections import own_virtual_host
from tests.broker.test_connection_deadlines import FAULTS, every_call_ends
from tests.broker.test_pool_and_owner_deadlines import calls_while_the_link_is, every_call_is_late_by
from tests.broker.test_publisher_on_its_own_broker import a_paused_broker_holds_no_call_up, an_alarm_holds_publishers_up
from tests.broker.test_role_deadlines import while_the_link_is
from tests.soak.measured import write_table

pytestmark = [pytest.mark.soak, pytest.mark.broker, pytest.mark.timeout(1800)]
ROUNDS = 5
SLACK = 0.5  # seconds


@pytest.fixture(scope="module")
def table():
    rows: list[list[object]] = []
    yield rows
    columns = ["calls of, while", "calls", "latest after its deadline", "median", "over 0.5 s"]
    write_table("deadlines soak", columns, rows, beside_others=True)


@pytest.fixture(scope="module")
def own():
    with brokers.own() as broker:
        if not {"process", "alarm"} <= broker.capabilities:
            pytest.skip("needs a broker that can be paused and alarmed")
        yield broker


def record(table, fault, rounds):
    """A row for each kind of object, of all rounds; then look that none was late."""
    late = defaultdict(list)
    for name, seconds in [item for each in rounds for item in each.items()]:
        late[name.split(":")[0]].append(seconds)
    for kind, seconds in late.items():
        latest, median = max(0.0, *seconds), max(0.0, statistics.median(seconds))
        over = sum(each > SLACK for each in seconds)
        table.append([f"{kind}, {fault}", len(seconds), f"{latest:.2f} s", f"{median:.2f} s", over])
    assert {name: each for late in rounds for name, each in late.items() if each > SLACK} == {}


@pytest.mark.parametrize("fault", FAULTS)
def test_pools_and_owners_while_the_link_is(broker, table, fault):
    with own_virtual_host(broker) as settings:
        record(table, f"the link is {fault}", [calls_while_the_link_is(fault, settings) for _ in range(ROUNDS)])


def test_pools_and_owners_while_the_broker_is_paused(own, table):
    @contextmanager
    def paused():
        own.pause()
        try:
            yield
        finally:
            own.resume()

    settings = own.settings().replace(heartbeat=0)
    record(table, "the broker is paused", [every_call_is_late_by(settings, paused) for _ in range(ROUNDS)])


def test_pools_and_owners_while_the_broker_is_in_alarm(own, table):
    settings = own.settings().replace(heartbeat=0)
    record(table, "the broker is in alarm", [every_call_is_late_by(settings, own.alarm) for _ in range(ROUNDS)])


@pytest.mark.parametrize("fault", FAULTS)
def test_connections_and_roles_while_the_link_is(broker, table, fault):
    for _ in range(ROUNDS):
        with own_virtual_host(broker) as settings:
            every_call_ends(settings, fault, slack=SLACK)
            while_the_link_is(fault, settings, slack=SLACK)
    table.append([f"Connection, channels, roles and ConnectionManager, the link is {fault}", "all", "", "", 0])


def test_connections_and_roles_while_the_broker_is_paused_or_in_alarm(own, table):
    for _ in range(ROUNDS):
        a_paused_broker_holds_no_call_up(own, slack=SLACK)
        an_alarm_holds_publishers_up(own, slack=SLACK)
    table.append(
        ["Connection, channels, roles and ConnectionManager, the broker is paused or in alarm", "all", "", "", 0]
    )
