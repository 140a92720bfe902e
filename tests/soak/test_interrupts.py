"""Thousands of interrupts, at other moments in every run of the seeds."""

import pytest

from tests.broker.test_sync_under_interrupts import VERBS, interrupt

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("verb", VERBS)
def test_call_that_is_interrupted_a_thousand_times_leaves_nothing_half_done(settings, verb, seed):
    interrupt(settings, verb, seed, count=1000)
