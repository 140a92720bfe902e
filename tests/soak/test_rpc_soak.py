"""100 callers, 100 calls each, while the broker is restarted, and while their reply queue is deleted."""

import pytest

from labkit import brokers
from labkit.rpc import RabbitOptions
from tests.broker.rpc import DURABLE
from tests.broker.test_rpc_through_faults import calls_over_a_restart, calls_over_deleted_reply_queues
from tests.soak.measured import write_table

pytestmark = [pytest.mark.soak, pytest.mark.broker, pytest.mark.own_broker, pytest.mark.timeout(1800)]

CALLERS = CALLS = 100
TIMEOUT, SLACK = 20, 0.5  # seconds
BRISK = {"rabbit_retry_interval": 0, "rabbit_interval_max": 1}


@pytest.fixture(scope="module")
def table():
    rows = []
    yield rows
    columns = ["100 callers x 100 calls of 20 s, while", "answered", "RpcTimeout", "longest call", "waiters left"]
    write_table("rpc soak", columns, rows)


def row(what, counted, longest):
    return [what, counted["answered"], counted["RpcTimeout"], f"{longest:.1f} s", 0]


@pytest.mark.parametrize(("kind", "values"), [("transient", {}), ("quorum", DURABLE)])
def test_over_a_restart_of_the_broker(table, kind, values):
    with brokers.own("local") as broker:
        options = RabbitOptions(**BRISK, **values)
        counted, longest = calls_over_a_restart(
            broker, callers=CALLERS, calls=CALLS, timeout=TIMEOUT, slack=SLACK, options=options
        )
        table.append(row(f"the broker is restarted, {kind} queues", counted, longest))


def test_over_a_reply_queue_that_is_deleted_ten_times(table, settings, view):
    counted, longest = calls_over_deleted_reply_queues(
        settings, view, callers=CALLERS, calls=CALLS, timeout=TIMEOUT, slack=SLACK, times=10
    )
    table.append(row("its reply queue is deleted ten times", counted, longest))
