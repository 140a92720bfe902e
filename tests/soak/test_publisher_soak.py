"""The publisher's promises in full counts: nothing confirmed is lost over deaths of the broker and cuts of the link."""

from collections import Counter, deque

import psutil
import pytest

from labkit import Outcome, brokers
from tests.broker.connections import descriptors, our_threads, own_virtual_host, retired
from tests.broker.publishing import check_nothing_is_lost, drained, publishing
from tests.broker.test_publisher import cut_at_random_bytes
from tests.broker.test_publisher_leaves_nothing import after_blocked_spells, after_channel_errors
from tests.broker.test_publisher_on_its_own_broker import through_the_death_of_the_broker
from tests.soak.measured import write_table
from tests.view import until

pytestmark = [pytest.mark.soak, pytest.mark.broker, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def table():
    rows: list[list[object]] = []
    yield rows
    write_table(
        "publisher soak",
        ["what", "queue", "confirmed", "lost", "sent again", "arrived twice"],
        rows,
        beside_others=True,
    )


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_nothing_confirmed_is_lost_over_five_kills_and_five_restarts(table, kind):
    """G1."""
    with brokers.own("local") as broker:
        deaths = [broker.kill, broker.stop] * 5
        sent, replayed, duplicates = through_the_death_of_the_broker(broker, deaths, messages=20_000, kind=kind)
    table.append(["5 kill -9 and 5 restarts", kind, sent, 0, replayed, duplicates])


@pytest.mark.parametrize(("seed", "kind"), [(1, "classic"), (2, "quorum"), (3, "classic"), (4, "quorum")])
def test_nothing_confirmed_is_lost_over_two_hundred_cuts(broker, table, seed, kind):
    """G1 and G3, at the link."""
    arguments = {"x-queue-type": kind}
    with (
        own_virtual_host(broker) as settings,
        publishing(settings, max_in_flight=100, arguments=arguments) as (publisher, proxy, timeline),
    ):
        before = descriptors()
        sent = cut_at_random_bytes(publisher, proxy, timeline, messages=20_000, cuts=200, seed=seed)
        assert {each.outcome for each in sent} == {Outcome.CONFIRMED}
        replayed = publisher.replayed
        until(lambda: our_threads() == ["labkit-io"], 20)
        until(lambda: descriptors() <= before, 20)
        assert retired() == 0
        assert publisher.connection.status().channels == 1
        duplicates = check_nothing_is_lost(sent, drained(settings, silence=3.0), replayed)
    table.append([f"200 cuts at random bytes, seed {seed}", kind, len(sent), 0, replayed, duplicates])


def test_thousand_channel_errors_lose_no_message_and_leave_no_channel(broker, table):
    """G3."""
    with own_virtual_host(broker) as settings:
        sent, replayed, duplicates = after_channel_errors(broker, settings, errors=1000)
    table.append(["1,000 channel errors", "classic", sent, 0, replayed, duplicates])


def test_fifty_blocked_spells_lose_no_message_and_leave_no_channel(table):
    """G3."""
    with brokers.own("local") as private:
        sent = after_blocked_spells(private, spells=50)
    table.append(["50 blocked spells", "classic", sent, 0, 0, 0])


def test_memory_is_flat_at_the_window(broker, table):
    """G10: ten times as many messages through the same window need no more memory."""
    process, tally = psutil.Process(), Counter()
    with own_virtual_host(broker) as settings, publishing(settings, max_in_flight=1000) as (publisher, _, _):
        used = []
        for messages in (20_000, 200_000):
            waiting = deque()  # at most about a window: those that are settled are counted and forgotten
            for number in range(messages):
                waiting.append(publisher.publish(b"x" * 1024, routing_key="nowhere", mandatory=False))
                while waiting and waiting[0].done:
                    tally[waiting.popleft().outcome] += 1
                if number % 10_000 == 0:
                    assert publisher.in_flight <= 1000
            publisher.flush(timeout=120)
            tally.update(each.outcome for each in waiting)
            used.append(process.memory_info().rss)
        assert publisher.in_flight == 0
    assert tally == {Outcome.CONFIRMED: 220_000}
    grown = used[1] - used[0]
    what = f"200,000 more at a window of 1,000: memory {grown / 2**20:+.1f} MiB"
    table.append([what, "none", tally[Outcome.CONFIRMED], 0, 0, 0])
    assert grown < 8 * 2**20
