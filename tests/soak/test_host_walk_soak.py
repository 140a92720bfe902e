"""The plan of a bring-up in ten thousand worlds: any hosts, answers, errors, clock and deadlines."""

import time
from collections import Counter

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples

from tests.soak.measured import write_table
from tests.unit.connector.plan_worlds import check_walk, worlds

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]

MANY = 10_000


def test_every_walk_keeps_order_time_and_events():
    counted, began = Counter(), time.monotonic()

    @given(worlds())
    @examples(max_examples=MANY, suppress_health_check=list(HealthCheck), deadline=None, database=None)
    def walk_through(world):
        walk = check_walk(world)
        counted["walks"] += 1
        counted["steps"] += len(walk.steps)
        counted["opened" if walk.error is None else "given up"] += 1

    walk_through()
    assert counted["walks"] >= MANY
    assert counted["opened"] > MANY // 100
    row = [counted["walks"], counted["steps"], counted["opened"], counted["given up"], 0]
    columns = ["walks", "steps", "opened", "given up", "wrong", "seconds"]
    write_table("host walks", columns, [[*row, f"{time.monotonic() - began:.0f}"]])
