"""Thirty storms, each with another seed: what one caller does wrong costs nobody else anything."""

import pytest

from tests.broker.test_a_storm import storm
from tests.soak.measured import write_table

SEEDS = 30

pytestmark = [pytest.mark.soak, pytest.mark.broker, pytest.mark.timeout(SEEDS * 600)]


def test_thirty_storms_cost_nobody_but_who_caused_them_anything(broker):
    counted = [storm(broker, seed) for seed in range(100, 100 + SEEDS)]
    columns = list(counted[0])
    write_table("storms", columns, [[each[name] for name in columns] for each in counted])
    assert {each["lost"] for each in counted} == {0}
