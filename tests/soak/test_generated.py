"""The generated tests in full counts: what may be sent, given or written, and nobody would think of."""

import time

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from tests.broker.connections import own_virtual_host
from tests.broker.exits import every_exit
from tests.broker.test_what_can_be_sent import FRAME_MAX, check_answers
from tests.odd_values import odd_values
from tests.soak.measured import write_table
from tests.tables import messages
from tests.unit.settings.test_any_url import check_url, urls
from tests.unit.test_arguments import EVERY_ARGUMENT, check_argument, check_arguments, models

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]

MANY, MESSAGES = 20_000, 5_000


@pytest.fixture(scope="module")
def table():
    rows: list[list[object]] = []
    yield rows
    write_table("generated", ["what", "tried", "wrong", "seconds"], rows)


def hold(table, what, check, values, count=MANY):
    """Check so many generated values, and write down that all was well."""
    tried, began = [], time.monotonic()

    @given(values)
    @examples(max_examples=count, suppress_health_check=list(HealthCheck), deadline=None, database=None)
    def checked(value):
        tried.append(1)
        check(value)

    checked()
    assert tried
    table.append([what, len(tried), 0, f"{time.monotonic() - began:.0f}"])


def test_values_for_every_argument_of_the_constructors(table):
    values = st.tuples(st.sampled_from(EVERY_ARGUMENT), odd_values())
    hold(table, "odd values for constructors", lambda each: check_argument(*each[0], each[1]), values)


def test_settings_messages_and_topology_of_several_odd_values(table):
    hold(table, "several odd values at once", lambda model: check_arguments(*model), models())


def test_urls(table):
    hold(table, "URLs", check_url, urls())


@pytest.mark.broker
def test_messages_by_every_exit(broker, table):
    with own_virtual_host(broker) as settings, every_exit(settings.replace(frame_max=FRAME_MAX)) as exits:
        ways = f"messages by {len(exits.ways)} ways"
        hold(table, ways, lambda message: check_answers(exits, message), messages(FRAME_MAX), count=MESSAGES)
