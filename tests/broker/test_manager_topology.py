"""What a manager's consumers need, and what its channels declare, is one topology, on two connections."""

import threading

import pytest

from labkit import (
    Binding,
    ChannelLost,
    ConnectionManager,
    ConnectionRecovered,
    Exchange,
    Queue,
    Timeline,
    Unroutable,
)
from labkit.wire import Proxy
from tests.broker.connections import EAGER, own_virtual_host
from tests.view import until

pytestmark = pytest.mark.broker
EXCHANGE = Exchange("news", "topic", durable=False, auto_delete=True)
CUTS = 20


@pytest.fixture(scope="module")
def settings(broker):
    with own_virtual_host(broker) as settings:
        yield settings


class Taken:
    """Acknowledges and remembers the bodies."""

    def __init__(self):
        self.bodies = set()

    def __call__(self, delivery):
        self.bodies.add(delivery.body.decode())
        delivery.ack()


def cut_and_recover(proxy, timeline, connections=2):
    mark = timeline.mark()
    proxy.cut()
    timeline.wait_for(ConnectionRecovered, timeout=30, since=mark, count=connections)


def arrives(manager, taken, *keys, exchange=EXCHANGE.name):
    """Publish once with each key, and wait for it; what has no queue raises Unroutable."""
    for key in keys:
        body = f"{key} {len(taken.bodies)}"
        manager.publish(exchange, key, body).result(timeout=20)
        until(lambda body=body: body in taken.bodies)


def is_routed(manager, exchange, key):
    try:
        manager.publish(exchange.name, key, "x").result(timeout=20)
    except Unroutable:
        return False
    return True


def managed(settings, proxy):
    timeline = Timeline()
    return timeline, ConnectionManager(proxy.settings(heartbeat=5), backoff=EAGER, listeners=[timeline])


@pytest.mark.parametrize(
    "queue",
    [Queue(""), Queue("", exclusive=True), Queue("mine alone", exclusive=True), Queue("passing", auto_delete=True)],
    ids=["named by the broker", "named by the broker, exclusive", "exclusive", "auto-delete"],
)
def test_the_bindings_of_a_consumer_s_queue_are_there_after_every_cut(settings, queue):
    """The exchange is declared on the other connection, and goes with its last binding."""
    taken = Taken()
    with Proxy(settings) as proxy:
        timeline, manager = managed(settings, proxy)
        with manager:
            manager.channel().declare(EXCHANGE)
            bindings = [Binding(EXCHANGE, routing_key=key) for key in ("a.*", "b.#")]
            consumer = manager.consume(queue, taken, bindings=bindings, prefetch=5)
            arrives(manager, taken, "a.1", "b.1.2")
            for _ in range(CUTS):
                cut_and_recover(proxy, timeline)
                until(lambda: consumer.is_consuming)
                arrives(manager, taken, "a.1", "b.1.2")
            consumer.close()
            manager.channel().delete(EXCHANGE)


def test_what_a_channel_binds_to_a_consumer_s_queue_is_bound_to_its_next_name_too(settings):
    taken = Taken()
    with Proxy(settings) as proxy:
        timeline, manager = managed(settings, proxy)
        with manager:
            consumer = manager.consume(Queue(""), taken)
            with manager.channel() as channel:
                channel.declare(EXCHANGE)
                channel.declare(Binding(EXCHANGE, consumer.queue, "late"))
            arrives(manager, taken, "late")
            for _ in range(CUTS):
                cut_and_recover(proxy, timeline)
                until(lambda: consumer.is_consuming)
                arrives(manager, taken, "late")
            consumer.close()


def test_an_exchange_that_was_deleted_and_is_declared_again_has_its_bindings_to_a_consumer_s_own_queue(settings):
    taken = Taken()
    with ConnectionManager(settings) as manager, manager.channel() as channel:
        exchange = Exchange("comes and goes")
        channel.declare(exchange)
        manager.consume(Queue("", exclusive=True), taken, bindings=[Binding(exchange, routing_key="x")])
        arrives(manager, taken, "x", exchange=exchange.name)
        with ConnectionManager(settings) as other, other.channel() as others:
            others.delete(exchange)
        channel.declare(exchange)
        until(lambda: is_routed(manager, exchange, "x"))  # by the consuming connection, a little later
        arrives(manager, taken, "x", exchange=exchange.name)


def test_a_consumer_s_queue_and_its_bindings_end_with_it(settings):
    with Proxy(settings) as proxy:
        timeline, manager = managed(settings, proxy)
        with manager, manager.channel() as channel:
            channel.declare(EXCHANGE)
            consumer = manager.consume(Queue("leaves"), Taken(), bindings=[Binding(EXCHANGE, routing_key="x")])
            consumer.close()
            channel.delete(Queue("leaves"))
            cut_and_recover(proxy, timeline)
            assert not _is_there(manager, Queue("leaves"))
            with pytest.raises(Unroutable):
                manager.publish("", "leaves", "x").result(timeout=20)


def test_deleting_wins_over_a_replay_on_the_other_connection(settings):
    """What a channel deletes while the consuming connection declares its topology again stays away."""
    queues = [Queue(f"q{number}") for number in range(30)]
    with Proxy(settings) as proxy:
        timeline, manager = managed(settings, proxy)
        with manager:
            manager.consume(Queue("q"), Taken())
            with manager.channel() as channel:
                for each in queues:
                    channel.declare(each)
            for _ in range(5):
                mark = timeline.mark()
                proxy.cut()
                timeline.wait_for(ConnectionRecovered, timeout=30, since=mark)
                with manager.channel() as channel:
                    threads = [threading.Thread(target=channel.delete, args=(each,)) for each in queues]
                    for each in threads:
                        each.start()
                    for each in threads:
                        each.join(20)
                timeline.wait_for(ConnectionRecovered, timeout=30, since=mark, count=2)
                with manager.channel() as channel:
                    assert [each for each in queues if _is_there(manager, each)] == []
                    for each in queues:
                        channel.declare(each)


def _is_there(manager, queue):
    try:
        with manager.channel() as channel:
            channel.declare(queue, passive=True)
    except ChannelLost:
        return False
    return True
