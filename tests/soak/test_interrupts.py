"""Thousands of interrupts, at other moments in every run of the seeds."""

import pytest

from tests.broker.test_sync_under_interrupts import VERBS, interrupt
from tests.soak.measured import write_table

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]
COUNT = 1000
COLUMNS = ["call of SyncConnection", "interrupts", "left half done"]


@pytest.fixture(scope="module")
def interrupts():
    """How many there were of each verb, written down at the end."""
    counted: dict[str, int] = {}
    yield counted
    write_table("sync interrupts soak", COLUMNS, [[f"`{verb}()`", count, 0] for verb, count in counted.items()])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("verb", VERBS)
def test_call_that_is_interrupted_a_thousand_times_leaves_nothing_half_done(settings, interrupts, verb, seed):
    interrupt(settings, verb, seed, count=COUNT)
    interrupts[verb] = interrupts.get(verb, 0) + COUNT
