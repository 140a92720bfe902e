"""What a publisher goes through leaves nothing behind: as the broker counts channels, as the system counts the rest."""

import threading

import pytest

from labkit import ChannelClosed, ConnectionBlocked, ConnectionUnblocked, Outcome, Publisher, Queue, Unroutable
from tests.broker.connections import connected, descriptors, our_threads, retired
from tests.broker.publishing import check_nothing_is_lost, drained, publishing
from tests.view import until

pytestmark = pytest.mark.broker


def count(broker, settings):
    """What the broker says: the connections there, and their channels."""
    there = broker.connections(settings.virtual_host)
    return len(there), sum(each.channels for each in there)


def nothing_is_left(broker, settings, *, counted, files):
    until(lambda: our_threads() == ["labkit-io"], 20)
    until(lambda: count(broker, settings) == counted, 20)
    until(lambda: descriptors() <= files, 20)
    assert retired() == 0


def test_channel_errors_lose_no_message_and_leave_no_channel(broker, settings):
    """G3, class size."""
    after_channel_errors(broker, settings, errors=30)


def at_work(broker, settings, publisher):
    """Publish a first message; return it in a list, and what is open now: at the broker, and here."""
    sent = [publisher.publish("first", routing_key="work")]
    sent[0].result()
    until(lambda: our_threads() == ["labkit-io"], 20)
    counted = count(broker, settings)
    assert counted == (1, 1)
    return sent, counted, descriptors()


def after_channel_errors(broker, settings, *, errors):
    """Have the broker close the channel so often, among others' messages; return (messages, sent again, duplicates)."""
    closed = []
    with publishing(settings, max_in_flight=20) as (publisher, _, _):
        connection = publisher.connection
        connection.events.add(lambda event: isinstance(event, ChannelClosed) and closed.append(event))
        sent, counted, files = at_work(broker, settings, publisher)
        for number in range(errors):
            bodies = [f"{number}.{each}" for each in range(8)]
            sent += publisher.publish_many(bodies[:4], routing_key="work", deadline=60)
            refused = publisher.publish("x", exchange="missing", routing_key="work", deadline=60)
            sent += publisher.publish_many(bodies[4:], routing_key="work", deadline=60)
            with pytest.raises(Unroutable, match="no exchange 'missing'"):
                refused.result()
        publisher.flush(timeout=60)
        nothing_is_left(broker, settings, counted=counted, files=files)
        assert {each.outcome for each in sent} == {Outcome.CONFIRMED}
        assert (connection.generation, publisher.in_flight) == (1, 0)
        assert len(closed) >= errors
        replayed = publisher.replayed
    duplicates = check_nothing_is_lost(sent, drained(settings), replayed)
    return len(sent), replayed, duplicates


def after_blocked_spells(broker, *, spells):
    """Publish past the window in so many alarms, one after another; return how many messages. G3."""
    settings = broker.vhost("spells").replace(heartbeat=5)
    with (
        connected(settings, recovery=True) as (connection, timeline),
        Publisher(connection, max_in_flight=20) as publisher,
    ):
        with connection.channel() as channel:
            channel.declare(Queue("work"))
        sent, counted, files = at_work(broker, settings, publisher)
        for number in range(spells):
            mark = timeline.mark()
            bodies = [f"{number}.{each}" for each in range(40)]  # twice the window
            with broker.alarm():
                sender = threading.Thread(
                    target=lambda bodies=bodies: sent.extend(
                        publisher.publish_many(bodies, routing_key="work", deadline=60)
                    )
                )
                sender.start()
                timeline.wait_for(ConnectionBlocked, timeout=20, since=mark)
                assert sender.is_alive()
                assert 0 < publisher.in_flight <= 20
            timeline.wait_for(ConnectionUnblocked, timeout=20, since=mark)
            sender.join(60)
        publisher.flush(timeout=60)
        nothing_is_left(broker, settings, counted=counted, files=files)
        assert {each.outcome for each in sent} == {Outcome.CONFIRMED}
        assert (connection.generation, publisher.replayed) == (1, 0)
    taken = drained(settings)
    check_nothing_is_lost(sent, taken, 0)
    assert len(taken) == len(sent) == 1 + 40 * spells
    return len(sent)
