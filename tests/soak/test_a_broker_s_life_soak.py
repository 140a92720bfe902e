"""Publishing and consuming through many stops, kills, restarts and pauses of the broker, in a random order."""

import random
import statistics

import pytest

from labkit import brokers
from tests.broker.test_work_through_a_broker_s_life import LIFE, at_work, through
from tests.soak.measured import write_table

pytestmark = [pytest.mark.soak, pytest.mark.broker, pytest.mark.own_broker, pytest.mark.timeout(1800)]
EACH = 10


def test_nothing_is_lost_over_ten_of_each():
    order = [*LIFE] * EACH
    random.Random(1).shuffle(order)
    seconds = {fault: [] for fault in LIFE}
    with brokers.own() as broker:
        if "process" not in broker.capabilities:
            pytest.skip("needs a broker that can be stopped and killed")
        with at_work(broker) as works:
            for fault in order:
                seconds[fault].append(through(broker, works, fault))
    rows = [
        [fault, len(times), f"{max(times):.2f} s", f"{statistics.median(times):.2f} s"]
        for fault, times in seconds.items()
    ]
    rows.append([f"all: {sum(len(work.sent) for work in works)} confirmed, 0 lost", len(order), "", ""])
    write_table("broker's life soak", ["the broker suffers", "times", "at work again, worst", "median"], rows)
    assert all(work.sent for work in works)
