"""On what is open, too: an argument that does not fit is refused by its name, and nothing has changed when it is."""

import inspect
import queue as queues

import pytest

from labkit import (
    Binding,
    ChannelPool,
    ConfigurationError,
    Connection,
    ConnectionManager,
    ConnectionPool,
    Consumer,
    Exchange,
    LeaseError,
    Publisher,
    Queue,
    SyncConnection,
)
from tests.broker.connections import connected, own_virtual_host
from tests.odd_values import ODD
from tests.view import until

pytestmark = pytest.mark.broker


@pytest.fixture(scope="module")
def settings(broker):
    with own_virtual_host(broker) as settings:
        yield settings


def check_every_argument(call, **least):
    """Each of its arguments in turn is an object that fits nowhere."""
    names = list(inspect.signature(call).parameters)
    assert names
    for name in names:
        with pytest.raises(ConfigurationError, match="allowed: ") as caught:
            call(**{**least, name: ODD})
        assert caught.value.field in (name, "body", "messages")


def test_a_channel_stays_open_and_does_nothing(settings):
    with connected(settings) as (connection, timeline):
        channel = connection.channel()
        channel.declare(Queue("q"))
        channel.declare(Exchange("e"))
        channel.declare(Binding("e", "q"))
        mark = timeline.mark()
        for call, least in (
            (channel.declare, {"what": Queue("new")}),
            (channel.delete, {"what": Queue("q")}),
            (channel.qos, {"prefetch": 1}),
            (channel.publish, {"message": "x", "routing_key": "q"}),
            (channel.get, {"queue": "q"}),
            (channel.consume, {"queue": "q", "handler": print}),
            (channel.cancel, {"tag": "t"}),
            (channel.close, {}),
            (connection.channel, {}),
            (connection.wait_for, {"state": connection.state, "timeout": 1}),
            (connection.open, {"deadline": 1}),
            (connection.close, {}),
        ):
            check_every_argument(call, **least)
        assert channel.declare(Queue("q"), passive=True).messages == 0
        assert channel.declare(Queue("q"), passive=True).consumers == 0
        assert timeline.events[mark:] == ()


@pytest.mark.parametrize("verb", ["ack", "nack", "reject"])
def test_a_delivery_that_was_to_be_settled_with_a_wrong_argument_can_still_be_settled(settings, verb):
    with connected(settings) as (connection, _):
        channel = connection.channel()
        channel.declare(Queue("settled"))
        channel.publish("x", routing_key="settled")
        delivery = channel.get("settled")
        check_every_argument(getattr(delivery, verb))
        for wrong in (None, "soon", -1, True, 10**400, float("nan")):
            with pytest.raises(ConfigurationError, match="timeout"):
                getattr(delivery, verb)(timeout=wrong)
        assert not delivery.is_settled
        getattr(delivery, verb)()
        assert delivery.is_settled
        with pytest.raises(LeaseError):
            delivery.ack()
        if verb == "nack":
            channel.get("settled").ack()
        channel.close()
        assert connection.channel().declare(Queue("settled"), passive=True).messages == 0


def test_a_consumer_that_its_handler_was_to_close_with_a_wrong_argument_goes_on(settings):
    outcomes = queues.SimpleQueue()

    def handler(delivery):
        try:
            consumer.close(timeout=None)
        except Exception as exc:
            outcomes.put(exc)
        delivery.ack()

    with Publisher(settings) as publisher, publisher.connection.channel() as channel:
        channel.declare(Queue("closing"))
        with Consumer(settings, "closing", handler) as consumer:
            for _ in range(2):
                publisher.publish("x", routing_key="closing").result()
                assert isinstance(outcomes.get(timeout=10), ConfigurationError)
            assert consumer.is_consuming
            until(lambda: consumer.handled == 2)


def test_pools_lend_nothing_and_lose_nothing(settings):
    with ConnectionPool(settings) as pool, ChannelPool(settings) as channels:
        pool.execute(lambda channel: channel.declare(Queue("pooled")))
        channels.execute(lambda channel: channel.publish("x", routing_key="pooled"))
        for each in (pool, channels):
            check_every_argument(each.open, timeout=1)
            check_every_argument(each.checkout, timeout=1)
            check_every_argument(each.execute, operation=print, timeout=1)
            check_every_argument(each.resize, min_size=0, max_size=1)
            check_every_argument(each.close)
            assert (each.get_stats().leased, each.get_stats().waiting) == (0, 0)
            assert each.execute(lambda channel: channel.get("pooled") is not None) in (True, False)


def test_publisher_manager_and_sync_connection_stay_open(settings):
    with Publisher(settings) as publisher, ConnectionManager(settings) as manager, SyncConnection(settings) as sync:
        check_every_argument(publisher.publish, message="x", routing_key="k")
        check_every_argument(publisher.publish_many, messages=["x"], routing_key="k")
        check_every_argument(publisher.flush, timeout=1)
        check_every_argument(publisher.close)
        check_every_argument(manager.publish, exchange="", routing_key="k", body="x", properties=None)
        check_every_argument(manager.consume, queue="q", handler=print, prefetch=1)
        check_every_argument(manager.ensure_connection, deadline=1)
        check_every_argument(manager.channel)
        check_every_argument(manager.close)
        check_every_argument(sync.publish, queue="q", message="x")
        check_every_argument(sync.consume, queue="q", callback=print, timeout=0)
        check_every_argument(sync.add_callback_threadsafe, callback=print)
        check_every_argument(sync.close)
        for each in (publisher.connection, *manager.connections):
            assert (each.is_open, each.generation) == (True, 1)
        assert publisher.in_flight == 0
        assert sync.is_open
        with Connection(settings).open() as other, other.channel() as channel:
            channel.declare(Queue("k"))
        publisher.publish("x", routing_key="k").result()
        manager.publish("", "k", "x").result()
        sync.publish("k", "x")
