"""The topology's promise in full counts."""

import statistics
from contextlib import closing

import pytest

from labkit import brokers
from tests.broker.connections import own_virtual_host
from tests.broker.test_topology_replay import whole_after_cuts
from tests.broker.test_topology_stays_whole import KINDS, LATE, late_ends
from tests.soak.measured import write_table
from tests.soak.versions import VERSIONS, why_not
from tests.view import View

pytestmark = [pytest.mark.soak, pytest.mark.broker, pytest.mark.timeout(1800)]
LATE_COLUMNS = [
    "RabbitMQ",
    "queue",
    "bindings",
    "cuts",
    "late at most",
    "not whole",
    "exchange broken",
    "whole again, worst",
    "median",
]
COLUMNS = ["RabbitMQ", "cuts", "not as before", "worst recovery", "median"]


def test_the_topology_is_whole_after_each_of_twenty_cuts(settings, view):
    """G16."""
    seconds = whole_after_cuts(settings, view, 20)
    version = view.get("overview")["rabbitmq_version"]
    worst, median = max(seconds), statistics.median(seconds)
    row = [version, len(seconds), 0, f"{worst:.2f} s", f"{median:.2f} s"]
    write_table("topology soak", COLUMNS, [row], beside_others=True)


@pytest.fixture(scope="module", params=VERSIONS, ids=lambda version: version.number)
def own(request):
    """A broker of each version."""
    if why_not():
        pytest.skip(why_not())
    with brokers.own("local", rootfs=request.param.unpack()) as broker:
        yield broker


@pytest.fixture(scope="module")
def late_table(own):
    rows: list[list[object]] = []
    yield rows
    write_table("late ends soak", LATE_COLUMNS, rows, beside_others=True)


@pytest.mark.parametrize(("keys", "cuts", "longest"), [(3, 200, LATE), (500, 20, LATE), (500, 20, 0.3)])
@pytest.mark.parametrize("kind", KINDS)
def test_the_topology_is_whole_when_the_broker_notices_each_cut_late(own, late_table, kind, keys, cuts, longest):
    """Half of the cuts with the consumer's own queue, half with a queue that its connection has declared."""
    seconds, broken = [], []
    with closing(View(own)) as view:
        for is_by_name in (False, True):
            with own_virtual_host(own) as settings:
                options = {
                    "is_by_name": is_by_name,
                    "cuts": cuts // 2,
                    "keys": keys,
                    "longest": longest,
                    "seed": cuts,
                    "within": 30,
                    "broken": broken,
                }
                seconds += late_ends(settings, view, kind, **options)
        version = view.get("overview")["rabbitmq_version"]
    worst, median = f"{max(seconds):.2f} s", f"{statistics.median(seconds):.2f} s"
    late_table.append([version, kind, keys + 2, len(seconds), f"{longest:g} s", 0, len(broken), worst, median])
    assert not broken or version.startswith("4.0."), broken
