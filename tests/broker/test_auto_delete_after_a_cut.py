"""What the broker has deleted by itself, because its last user here went, does not come back with the next link."""

import pytest

from labkit import (
    AttemptFailed,
    Binding,
    ChannelLost,
    ConnectionRecovered,
    Consumer,
    Exchange,
    Publisher,
    Queue,
)
from labkit.wire import Refuse
from tests.broker.connections import own_virtual_host, through_a_proxy
from tests.broker.test_topology_replay import cut
from tests.broker.topology import definitions
from tests.view import until

pytestmark = pytest.mark.broker
MANY = 20
PASSING = Queue("passing", auto_delete=True)


@pytest.fixture
def settings(broker):
    """A virtual host of each test's own: what is there is compared with what was there before."""
    with own_virtual_host(broker) as settings:
        yield settings


def exchanges():
    return [Exchange(f"passing {number}", type="fanout", auto_delete=True) for number in range(MANY)]


def bound(channel, destination):
    """Declare *destination* and many auto-delete exchanges, each bound to it; return the bindings."""
    channel.declare(destination)
    bindings = [Binding(each, destination) for each in exchanges()]
    for each in (*exchanges(), *bindings):
        channel.declare(each)
    return bindings


def unbind(channel, destination, bindings):
    for each in bindings:
        channel.delete(each)
    channel.delete(destination)


def delete(channel, destination, bindings):
    channel.delete(destination)


@pytest.mark.parametrize("end", [unbind, delete])
@pytest.mark.parametrize("destination", [Queue("mine", exclusive=True), Exchange("behind")], ids=["queue", "exchange"])
def test_auto_delete_exchanges_stay_away_after_their_destination_was(settings, view, end, destination):
    with through_a_proxy(settings, recovery=True) as (proxy, connection, timeline):
        before = definitions(view, settings)
        channel = connection.channel()
        bindings = bound(channel, destination)
        assert len(definitions(view, settings)) > len(before) + 2 * MANY
        end(channel, destination, bindings)
        assert definitions(view, settings) == before
        cut(proxy, timeline)
        assert definitions(view, settings) == before
        assert "DeclarationRefused" not in timeline.names()


def test_auto_delete_exchanges_whose_destination_is_still_there_come_back_whole(settings, view):
    with through_a_proxy(settings, recovery=True) as (proxy, connection, timeline):
        bound(connection.channel(), Queue("mine", exclusive=True))
        before = definitions(view, settings)
        cut(proxy, timeline)
        assert definitions(view, settings) == before


def cancel(channel, tag):
    channel.cancel(tag)


def close(channel, tag):
    del tag
    channel.close()


def fail(channel, tag):
    del tag
    with pytest.raises(ChannelLost, match="404"):
        channel.declare(Queue("not there"), passive=True)


@pytest.mark.parametrize("end", [cancel, close, fail])
def test_auto_delete_queues_stay_away_after_their_consumers_ended_by(settings, view, end):
    """Cancelled, or gone with their channel, whoever closed it: the broker then deletes the queues."""
    with through_a_proxy(settings, recovery=True) as (proxy, connection, timeline):
        before = definitions(view, settings)
        for number in range(3):
            channel = connection.channel()
            queue = channel.declare(Queue("" if number else "passing", auto_delete=True)).name
            end(channel, channel.consume(queue, print))
        until(lambda: definitions(view, settings) == before)
        cut(proxy, timeline)
        assert definitions(view, settings) == before


def test_an_auto_delete_queue_that_lost_its_consumer_with_the_link_comes_back(settings, view):
    """The channel is gone with the link, and did not end the consumer: who opens another finds the queue."""
    with through_a_proxy(settings, recovery=True) as (proxy, connection, timeline):
        channel = connection.channel()
        channel.declare(PASSING)
        before = definitions(view, settings)
        for _ in range(2):
            channel.consume("passing", print)
            cut(proxy, timeline)
            assert definitions(view, settings) == before
            channel = connection.channel()


def test_an_auto_delete_queue_lives_as_long_as_its_consumer_through_all_links(settings, view):
    handled = []
    with through_a_proxy(settings, recovery=True) as (proxy, connection, timeline):
        before = definitions(view, settings)
        channel = connection.channel()
        channel.declare(PASSING)

        def handle(delivery):
            handled.append(delivery.body)
            delivery.ack()

        with Publisher(connection) as publisher, Consumer(connection, "passing", handle):
            for number in range(3):
                cut(proxy, timeline)
                publisher.publish(str(number), routing_key="passing").result()
                until(lambda number=number: str(number).encode() in handled)
        until(lambda: definitions(view, settings) == before)
        cut(proxy, timeline)
        assert definitions(view, settings) == before


def test_a_consumer_that_is_stopped_while_the_link_is_away_takes_its_queue_along(settings, view):
    with through_a_proxy(settings, recovery=True) as (proxy, connection, timeline):
        before = definitions(view, settings)
        connection.channel().declare(PASSING)
        consumer = Consumer(connection, "passing", print).open()
        mark = timeline.mark()
        with proxy.fault(Refuse()):
            proxy.cut()
            timeline.wait_for(AttemptFailed, timeout=10, since=mark)
            consumer.close()
        timeline.wait_for(ConnectionRecovered, timeout=30, since=mark)
        assert definitions(view, settings) == before
