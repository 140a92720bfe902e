"""A connection against its model, in ten thousand orders of events. No broker."""

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from tests.unit.connection.test_lifecycle_model import QUICK, ConnectionMachine

ORDERS = 10_000


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_ten_thousand_orders_of_events_lead_nowhere_that_the_table_does_not_allow():
    run_state_machine_as_test(ConnectionMachine, settings=settings(QUICK, max_examples=ORDERS))
