"""Many lost links and cancelled consumers, and afterwards nothing has grown: not here, and not at the broker."""

import gc
import threading
from collections import Counter

import pytest

from labkit import (
    Binding,
    Connection,
    ConnectionRecovered,
    Consumer,
    ConsumerCancelled,
    Exchange,
    Publisher,
    Queue,
)
from labkit.connection.topology_record import FORMER_MAX
from labkit.events import Event
from labkit.messaging import consumer_io
from tests.broker.connections import EAGER, connected, descriptors, own_virtual_host, through_a_proxy
from tests.broker.test_consumer import fill
from tests.tiers import in_soak
from tests.view import until

pytestmark = [pytest.mark.broker, pytest.mark.timeout(300)]
WARM_UP = FORMER_MAX + 10  # a queue that the broker names is known by so many of its former names
LOSSES = 60


@pytest.fixture(scope="module")
def settings(broker):
    with own_virtual_host(broker) as settings:
        yield settings


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    """It is the number of times that counts here."""
    monkeypatch.setattr(consumer_io, "PAUSES", EAGER)


def channels_at_the_broker(broker, settings):
    """How many there are in the virtual host."""
    return sum(each.channels for each in broker.connections(settings.virtual_host))


def objects():
    """How many there are here of each class of labkit's and Pika's, but for what a timeline and a proxy remember."""
    gc.collect()
    kinds = [type(each) for each in gc.get_objects()]
    return Counter(
        each.__qualname__
        for each in kinds
        if str(each.__module__).startswith(("labkit", "pika"))
        and not str(each.__module__).startswith("labkit.wire")
        and not issubclass(each, Event | Exception)
    )


def grown(before, after):
    """What there is more of; a few may be on their way."""
    return {kind: (before[kind], count) for kind, count in after.items() if count > before[kind] + 10}


def sizes(life):
    """The lengths of all that a connection keeps in mind."""
    record = life.topology
    return {
        "record": len(record),
        "names": len(record._by_name),
        "consumers": sum(record._consumers.values()),
        "roles": len(life.roles),
        "channels": len(life.link.channels),
        "strikes": len(life.blame.aside) + len(life.blame._strikes),
        "watchers": len(life._watchers),
    }


def nothing_grows(lose, warm_up, connection, channels):
    """*lose* so often that a leak of one object a time would show; what is on its way may arrive."""

    def lengths():
        return sizes(connection._life), channels()

    lose(warm_up)
    before, objects_before = lengths(), objects()
    threads_before, descriptors_before = threading.active_count(), descriptors()
    lose(LOSSES)
    until(lambda: lengths() == before)
    until(lambda: threading.active_count() <= threads_before)
    until(lambda: descriptors() <= descriptors_before + 2)
    until(lambda: not grown(objects_before, objects()))


def delete(channel, queue, timeline):
    mark = timeline.mark()
    channel.delete(queue)
    timeline.wait_for(ConsumerCancelled, timeout=10, since=mark)


@pytest.mark.slow
def test_lost_links_leave_nothing_behind(settings, broker):
    exchange = Exchange("news", auto_delete=True)
    with through_a_proxy(settings, recovery=True, backoff=EAGER) as (proxy, connection, timeline):
        with connection.channel() as channel:
            channel.declare(exchange)
            channel.declare(Binding(exchange, channel.declare(Queue("")).name, "x"))
        bindings = [Binding(exchange, routing_key="y")]
        with (
            Consumer(connection, Queue(""), print, bindings=bindings) as named,
            Consumer(connection, Queue("mine", exclusive=True), lambda delivery: None, bindings=bindings) as own,
            Publisher(connection) as publisher,
        ):

            def lose(times):
                for _ in range(times):
                    mark = timeline.mark()
                    proxy.cut()
                    timeline.wait_for(ConnectionRecovered, timeout=30, since=mark)
                    publisher.publish("for nobody to settle", exchange="news", routing_key="y").result(timeout=20)
                until(lambda: named.is_consuming and own.is_consuming)

            nothing_grows(lose, WARM_UP, connection, lambda: channels_at_the_broker(broker, settings))


@pytest.mark.parametrize("settles", [True, *in_soak(False)], ids=["settled", "forgotten"])
def test_cancels_of_the_broker_leave_nothing_behind(settings, broker, settles):
    """The queue is deleted with messages in the handler's hands, and comes back."""
    queue = Queue("deleted again and again")
    taken = threading.Semaphore(0)

    def handle(delivery):
        if settles:
            delivery.ack()
        taken.release()

    with (
        connected(settings, recovery=True, backoff=EAGER) as (connection, timeline),
        Connection(settings) as other,
        Consumer(connection, queue, handle, prefetch=3) as consumer,
    ):

        def lose(times):
            with other.channel() as channel:
                for _ in range(times):
                    until(lambda: consumer.is_consuming)
                    channel.publish("x", routing_key=queue.name)
                    assert taken.acquire(timeout=10)
                    delete(channel, queue, timeline)
            until(lambda: consumer.is_consuming)

        nothing_grows(lose, 5, connection, lambda: channels_at_the_broker(broker, settings))


def test_cancels_of_the_broker_while_a_handler_is_busy_keep_one_channel_for_it(settings, broker):
    queue, begun, may_go_on = Queue("deleted meanwhile"), threading.Event(), threading.Event()

    def handle(delivery):
        begun.set()
        may_go_on.wait(60)
        delivery.ack()

    with (
        connected(settings, recovery=True, backoff=EAGER) as (connection, timeline),
        Connection(settings) as other,
        Consumer(connection, queue, handle) as consumer,
        other.channel() as channel,
    ):
        try:
            channel.publish("x", routing_key=queue.name)
            assert begun.wait(10)
            for _ in range(20):
                until(lambda: consumer.is_consuming)
                delete(channel, queue, timeline)
            until(lambda: consumer.is_consuming)
            assert len(connection._life.link.channels) == 2  # the handler's, and the present one
        finally:
            may_go_on.set()
        until(lambda: len(connection._life.link.channels) == 1)


def test_a_forgotten_channel_is_closed_whose_consumers_the_broker_has_cancelled(settings, broker):
    queue, taken = Queue("deleted under a channel"), threading.Semaphore(0)
    with Connection(settings) as connection, Connection(settings) as other, other.channel() as channel:

        def lose(times):
            forgotten = connection.channel()
            for _ in range(times):
                channel.declare(queue)
                forgotten.consume(queue.name, lambda _: taken.release())  # it forgets to settle
                fill(settings, *"12345", queue=queue.name)
                for _ in "12345":
                    assert taken.acquire(timeout=10)
                channel.delete(queue)
                until(lambda: not forgotten._core.deliveries.consumers)

        lose(30)
        until(lambda: (gc.collect(), len(connection._life.link.channels))[1] == 0)
        until(lambda: channels_at_the_broker(broker, settings) == 1)
