"""The topology's promise in full counts."""

import statistics

import pytest

from tests.broker.test_topology_replay import whole_after_cuts
from tests.soak.measured import write_table

pytestmark = [pytest.mark.soak, pytest.mark.broker, pytest.mark.timeout(600)]
COLUMNS = ["RabbitMQ", "cuts", "not as before", "worst recovery", "median"]


def test_the_topology_is_whole_after_each_of_twenty_cuts(settings, view):
    """G16."""
    seconds = whole_after_cuts(settings, view, 20)
    version = view.get("overview")["rabbitmq_version"]
    worst, median = max(seconds), statistics.median(seconds)
    write_table("topology soak", COLUMNS, [[version, len(seconds), 0, f"{worst:.2f} s", f"{median:.2f} s"]])
