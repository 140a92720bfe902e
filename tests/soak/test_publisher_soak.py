"""The publisher's promises in full counts: nothing confirmed is lost over deaths of the broker and cuts of the link."""

import pytest

from labkit import Outcome
from labkit.lab import brokers
from tests.broker.connections import descriptors, our_threads, own_virtual_host, retired
from tests.broker.publishing import check_nothing_is_lost, drained, publishing
from tests.broker.test_publisher import cut_at_random_bytes
from tests.broker.test_publisher_on_its_own_broker import through_the_death_of_the_broker
from tests.soak.measured import write_table
from tests.view import until

pytestmark = [pytest.mark.soak, pytest.mark.broker, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def table():
    rows: list[list[object]] = []
    yield rows
    write_table("publisher soak", ["what", "confirmed", "lost", "sent again", "arrived twice"], rows)


def test_nothing_confirmed_is_lost_over_five_kills_and_five_restarts(table):
    """G1."""
    with brokers.own("local") as broker:
        deaths = [broker.kill, broker.stop] * 5
        sent, replayed, duplicates = through_the_death_of_the_broker(broker, deaths, messages=20_000)
    table.append(["5 kill -9 and 5 restarts", sent, 0, replayed, duplicates])


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_nothing_confirmed_is_lost_over_two_hundred_cuts(broker, table, seed):
    """G1 and G3, at the link."""
    with own_virtual_host(broker) as settings, publishing(settings, max_in_flight=100) as (publisher, proxy, timeline):
        before = descriptors()
        sent = cut_at_random_bytes(publisher, proxy, timeline, messages=20_000, cuts=200, seed=seed)
        assert {each.outcome for each in sent} == {Outcome.CONFIRMED}
        replayed = publisher.replayed
        until(lambda: our_threads() == ["labkit-io"], 20)
        until(lambda: descriptors() <= before, 20)
        assert retired() == 0
        assert publisher.connection.status().channels == 1
        duplicates = check_nothing_is_lost(sent, drained(settings, silence=3.0), replayed)
    table.append([f"200 cuts at random bytes, seed {seed}", len(sent), 0, replayed, duplicates])
