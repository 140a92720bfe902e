"""A new certificate for a running broker, while messages flow: nothing is lost, nobody is thrown out."""

import pytest

from labkit import ConnectionClosed, ConnectionLost, ConnectionRecovered, Outcome, Publisher, Queue
from labkit.brokers import Broker
from labkit.settings.settings import BrokerSettings
from tests.broker.connections import connected
from tests.broker.publishing import check_nothing_is_lost, drained, publishing_steadily
from tests.broker.tls import serial_shown, serials_in_use
from tests.view import until

pytestmark = [pytest.mark.broker, pytest.mark.timeout(300)]


def rotate_under_traffic(broker: Broker, settings: BrokerSettings, *, messages: int, rotations: int) -> dict[str, int]:
    """Publish *messages* or more while the certificate is changed; return what was counted.

    Each time: the links that are open stay as they were, new ones are shown the new certificate, and when the broker
    then closes the old ones the publisher goes on by a new one.
    """
    port = settings.port or 0
    with connected(settings, recovery=True) as (connection, timeline):
        with connection.channel() as channel:
            channel.declare(Queue("rotated"))
        with Publisher(connection, max_in_flight=50) as publisher:
            with publishing_steadily(publisher, "rotated", messages=messages) as sent:
                for number in range(1, rotations + 1):
                    until(lambda number=number: len(sent) > number * messages // (rotations + 2), 60)
                    with connected(settings) as (bystander, seen):
                        before = serial_shown(settings)
                        assert serials_in_use(port) == {before}
                        broker.rotate_certificate()
                        after = serial_shown(settings)
                        assert after != before
                        assert serials_in_use(port) == {before}  # nobody was thrown out
                        assert bystander.is_open
                    assert ConnectionLost not in map(type, seen.events)  # it ended as its owner asked
                    assert isinstance(seen.events[-1], ConnectionClosed)
                    mark = timeline.mark()
                    broker.close_connections("the certificate was renewed", settings.virtual_host)
                    timeline.wait_for(ConnectionRecovered, timeout=20, since=mark)
                    until(lambda after=after: serials_in_use(port) == {after})  # the old link may be closing still
            assert {each.outcome for each in sent} == {Outcome.CONFIRMED}
            replayed = publisher.replayed
    taken = drained(settings, "rotated", silence=2.0)
    duplicates = check_nothing_is_lost(sent, taken, replayed)
    assert len(sent) >= messages
    return {"confirmed": len(sent), "rotations": rotations, "lost": 0, "again": replayed, "twice": duplicates}


def test_the_certificate_is_renewed_while_a_thousand_messages_flow_and_none_is_lost(
    broker: Broker, encrypted: BrokerSettings
) -> None:
    rotate_under_traffic(broker, encrypted, messages=1000, rotations=1)
