"""A queue comes back with its bindings, whoever declares it again, also when the broker notices a lost link late."""

import random
import threading
import time

import pytest

from labkit import (
    Binding,
    ChannelLost,
    ConfigurationError,
    Connection,
    ConnectionRecovered,
    Consumer,
    ConsumerCancelled,
    DeclarationRefused,
    Exchange,
    Publisher,
    Queue,
    Unroutable,
)
from tests.broker.connections import EAGER, own_virtual_host, roles, through_a_proxy
from tests.broker.test_topology_replay import cut
from tests.broker.topology import definitions
from tests.view import until

pytestmark = pytest.mark.broker
LATE = 0.05  # seconds at most, by which the broker notices the old link's end later than the client
NEWS = Exchange("news", type="topic")
PASSING = Exchange("passing", type="topic", auto_delete=True)
KINDS = {
    "auto-delete": Queue("mine", auto_delete=True),
    "exclusive": Queue("mine", exclusive=True),
    "named by the broker": Queue(exclusive=True),
    "auto-delete, named by the broker": Queue(auto_delete=True),
    "durable, classic": Queue("mine"),
    "durable, quorum": Queue("mine", arguments={"x-queue-type": "quorum"}),
}
TYPES = ["classic", "quorum"]


@pytest.fixture
def settings(broker):
    """A virtual host of each test's own: what is there is compared with what was there before."""
    with own_virtual_host(broker) as settings:
        yield settings


class Handler:
    """Acknowledges, and remembers."""

    def __init__(self):
        self.bodies = []

    def __call__(self, delivery):
        self.bodies.append(delivery.message.text)
        delivery.ack()

    def gets(self, publisher, body, key):
        # A busy broker can take the lost link's binding away after the new link has made it: it is made again soon.
        until(lambda: is_routed(publisher, body, key), 30)
        until(lambda: body in self.bodies)


def is_routed(publisher, body, key):
    try:
        publisher.publish(body, exchange="news", routing_key=key).result()
    except Unroutable:
        return False
    return True


def bind(channel, name, keys):
    """Bind queue *name* to two exchanges, one of which goes with it."""
    for each in (NEWS, PASSING, Binding(NEWS, PASSING, "#"), Binding(PASSING, name, "passing")):
        channel.declare(each)
    for number in range(keys):
        channel.declare(Binding(NEWS, name, f"key {number}"))


# The broker notices late


@pytest.mark.parametrize("is_by_name", [False, True], ids=["the consumer's own", "by name"])
@pytest.mark.parametrize("kind", KINDS)
def test_consumers_and_bindings_are_there_when_the_old_link_ends_late(settings, view, kind, is_by_name):
    late_ends(settings, view, kind, is_by_name=is_by_name, cuts=6)


@pytest.mark.parametrize("kind", ["auto-delete", "exclusive"])
def test_five_hundred_bindings_are_there_when_the_old_link_ends_late(settings, view, kind):
    late_ends(settings, view, kind, cuts=2, keys=500, longest=0.3)  # in the middle of them


def late_ends(settings, view, kind, *, cuts, is_by_name=False, keys=3, longest=LATE, seed=1, within=5, broken=None):
    """Cut so often, have the broker notice late, and return the seconds from each cut until all was there again.

    A list *broken* takes the cuts after which the broker lists the auto-delete exchange and its bindings, and does not
    route by them.
    """
    chance, handler, seconds, queue = random.Random(seed), Handler(), [], KINDS[kind]
    with through_a_proxy(settings, recovery=True, heartbeat=5, backoff=EAGER) as (proxy, connection, timeline):
        channel = connection.channel()
        given = channel.declare(queue).name if is_by_name else queue
        with Consumer(connection, given, handler) as consumer, Publisher(connection) as publisher:
            bind(channel, consumer.queue, keys)
            before = definitions(view, settings)
            for number in range(cuts):
                started, late, mark = time.monotonic(), chance.uniform(0, longest), timeline.mark()
                proxy.cut(late=late)
                timeline.wait_for(ConnectionRecovered, timeout=30, since=mark)
                time.sleep(max(0.0, started + late - time.monotonic()))
                until(lambda: len(proxy._engine.links) == 1)  # the broker has closed the old one
                until(lambda: definitions(view, settings) == before and consumer.is_consuming, within)
                seconds.append(time.monotonic() - started)
                if broken is not None and not is_routed_soon(publisher, "passing"):
                    broken.append(number)
                    make_again(connection, consumer.queue)
                for key in ("passing", "key 0"):
                    handler.gets(publisher, f"{number} {key}", key)
        assert "DeclarationRefused" not in timeline.names()
    return seconds


def is_routed_soon(publisher, key):
    try:
        until(lambda: is_routed(publisher, "a look", key), 30)
    except AssertionError:
        return False
    return True


def make_again(connection, queue):
    """Delete the exchange that goes with its queue, and make it again: a bind of what is listed changes nothing."""
    with connection.channel() as channel:
        channel.delete(PASSING)
        for each in (PASSING, Binding(NEWS, PASSING, "#"), Binding(PASSING, queue, "passing")):
            channel.declare(each)


def test_a_queue_that_nobody_consumes_from_yet_is_there_when_the_old_link_ends_late(settings, view):
    """Its last consumer is the old link's, so that the broker deletes it after it was declared on the new one."""
    chance = random.Random(2)
    with through_a_proxy(settings, recovery=True, heartbeat=5, backoff=EAGER) as (proxy, connection, timeline):
        channel = connection.channel()
        channel.declare(KINDS["auto-delete"])
        bind(channel, "mine", 3)
        before = definitions(view, settings)
        for _ in range(6):
            until(lambda: can_consume(connection, "mine"))
            mark = timeline.mark()
            proxy.cut(late=chance.uniform(0, LATE))
            timeline.wait_for(ConnectionRecovered, timeout=30, since=mark)
            until(lambda: len(proxy._engine.links) == 1)
            until(lambda: definitions(view, settings) == before, 5)
        assert "DeclarationRefused" not in timeline.names()


def can_consume(connection, name):
    try:
        connection.channel().consume(name, print)
    except ChannelLost:  # it is going, and comes back at the next look
        return False
    return True


def test_looks_for_what_has_gone_end_with_their_link_and_leave_the_deleted_alone(settings, view):
    with through_a_proxy(settings, recovery=True, heartbeat=5, backoff=EAGER) as (proxy, connection, timeline):
        before = definitions(view, settings)
        channel = connection.channel()
        channel.declare(KINDS["auto-delete"])
        bind(channel, "mine", 3)
        cut(proxy, timeline)
        channel = connection.channel()
        for each in (KINDS["auto-delete"], PASSING, NEWS):
            channel.delete(each)
        time.sleep(1)  # three looks
        assert definitions(view, settings) == before
        connection.close()
        assert connection._life.replay._look is None


@pytest.mark.parametrize("end", ["delete", "cancel", "stop"])
def test_what_is_ended_while_it_is_declared_again_stays_away(settings, view, end):
    """A step that the broker takes up just after the delete must not bring the deleted back."""
    chance, queue = random.Random(3), Queue("mine", auto_delete=True)
    with through_a_proxy(settings, recovery=True) as (_, connection, _):
        channel, life = connection.channel(), connection._life
        channel.declare(NEWS)
        before = definitions(view, settings)
        for _ in range(20):
            channel.declare(queue)
            tag = channel.consume("mine", print) if end == "cancel" else ""
            consumer = Consumer(connection, "mine", print).open() if end == "stop" else None
            for number in range(10):
                channel.declare(Binding(NEWS, "mine", f"key {number}"))
            mended = threading.Event()
            life.io.post(lambda over=mended: life.replay.mend(life.link, ("queue", "mine"), over.set))
            time.sleep(chance.uniform(0, 0.005))
            if consumer is not None:
                consumer.stop()
            elif end == "cancel":
                channel.cancel(tag)
            else:
                channel.delete(queue)
            assert mended.wait(10)
            until(lambda: definitions(view, settings) == before, 3)  # the broker's own deletes take a moment


# Whoever deletes it, whoever declares it again


def deleted_by_another(settings, connection, what):
    with Connection(settings) as other, other.channel() as channel:
        channel.delete(what)


def deleted_here(settings, connection, what):
    with connection.channel() as channel:
        channel.delete(what)


@pytest.mark.parametrize("delete", [deleted_here, deleted_by_another])
@pytest.mark.parametrize("kind", TYPES)
def test_a_queue_that_a_consumer_declares_again_has_its_bindings(settings, view, kind, delete):
    handler, queue = Handler(), Queue("work", arguments={"x-queue-type": kind})
    with (
        through_a_proxy(settings, recovery=True) as (_, connection, timeline),
        Consumer(connection, queue, handler) as consumer,
        Publisher(connection) as publisher,
    ):
        bind(connection.channel(), "work", 3)
        before = definitions(view, settings)
        for number in range(2):
            mark = timeline.mark()
            delete(settings, connection, queue)
            timeline.wait_for(ConsumerCancelled, timeout=10, since=mark)
            until(lambda: consumer.is_consuming, 20)
            assert definitions(view, settings) == before
            handler.gets(publisher, str(number), "passing")
        assert "DeclarationRefused" not in timeline.names()


@pytest.mark.parametrize("kind", TYPES)
def test_a_queue_that_was_declared_here_comes_back_for_a_consumer_of_its_name(settings, view, kind):
    handler, queue = Handler(), Queue("work", arguments={"x-queue-type": kind})
    with through_a_proxy(settings, recovery=True) as (_, connection, timeline):
        channel = connection.channel()
        channel.declare(queue)
        bind(channel, "work", 3)
        before = definitions(view, settings)
        with Consumer(connection, "work", handler) as consumer:
            deleted_by_another(settings, connection, queue)
            timeline.wait_for(ConsumerCancelled, timeout=10)
            until(lambda: consumer.is_consuming, 20)
            assert definitions(view, settings) == before
        deleted_by_another(settings, connection, queue)
        with Consumer(connection, "work", handler):  # it is missing already
            assert definitions(view, settings) == before


def test_what_is_bound_here_to_a_queue_of_others_is_there_when_they_declare_it_again(settings, view):
    handler = Handler()
    with (
        Connection(settings) as others,
        through_a_proxy(settings, recovery=True) as (_, connection, timeline),
    ):
        theirs = others.channel()
        theirs.declare(Queue("theirs"))
        channel = connection.channel()
        bind(channel, "theirs", 3)
        before = definitions(view, settings)
        with Consumer(connection, "theirs", handler) as consumer:
            theirs.delete(Queue("theirs"))
            until(lambda: not consumer.is_consuming)
            time.sleep(0.5)
            theirs.declare(Queue("theirs"))
            until(lambda: consumer.is_consuming, 20)
            until(lambda: definitions(view, settings) == before)
        assert "DeclarationRefused" not in timeline.names()


def test_a_consumer_that_waits_for_a_queue_looks_often_again_on_a_new_link(settings):
    with (
        Connection(settings) as others,
        through_a_proxy(settings, recovery=True, backoff=EAGER) as (proxy, connection, timeline),
    ):
        theirs = others.channel()
        theirs.declare(Queue("theirs"))
        with Consumer(connection, "theirs", print) as consumer:
            theirs.delete(Queue("theirs"))
            until(lambda: roles(connection)[0]._tries > 5)  # the next pause is of 5 s
            cut(proxy, timeline)
            theirs.declare(Queue("theirs"))
            until(lambda: consumer.is_consuming, 2)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("lost", ["queue", "exchange"])
def test_what_the_user_declares_again_has_its_bindings(settings, view, kind, lost):
    queue = Queue("work", arguments={"x-queue-type": kind})
    what = queue if lost == "queue" else NEWS
    with through_a_proxy(settings, recovery=True) as (_, connection, timeline):
        channel = connection.channel()
        channel.declare(queue)
        bind(channel, "work", 3)
        before = definitions(view, settings)
        for _ in range(2):
            deleted_by_another(settings, connection, what)
            assert definitions(view, settings) != before
            channel.declare(what)
            assert definitions(view, settings) == before
        assert "DeclarationRefused" not in timeline.names()


def test_declaring_what_is_there_binds_nothing_again(settings):
    with through_a_proxy(settings, recovery=True) as (proxy, connection, _):
        channel = connection.channel()
        for each in (Queue("work"), NEWS, Binding(NEWS, "work", "a")):
            channel.declare(each)
        mark = proxy.mark()
        for each in (Queue("work"), NEWS):
            channel.declare(each)
        assert "Queue.Bind" not in [each.name for each in proxy.conversation().since(mark).frames]


def test_what_a_plain_connection_declares_again_is_as_it_says(settings, view):
    with Connection(settings) as connection, connection.channel() as channel:
        for each in (Queue("work"), NEWS, Binding(NEWS, "work", "a")):
            channel.declare(each)
        deleted_by_another(settings, connection, Queue("work"))
        channel.declare(Queue("work"))
        assert not [each for each in view.get(f"bindings/{settings.virtual_host}") if each["source"]]
        assert len(connection._life.topology) == 0


def test_a_queue_of_two_consumers_is_whole_after_one_has_ended(settings, view):
    queue = Queue("shared", auto_delete=True)
    with through_a_proxy(settings, recovery=True) as (proxy, connection, timeline):
        first, second = (Consumer(connection, queue, print).open() for _ in range(2))
        bind(connection.channel(), "shared", 3)
        before = definitions(view, settings)
        first.close()
        cut(proxy, timeline)
        assert definitions(view, settings) == before
        assert second.is_consuming
        second.close()
        until(lambda: not view.get(f"queues/{settings.virtual_host}"))


def test_a_queue_that_others_have_changed_is_said_and_not_consumed_from(settings):
    with through_a_proxy(settings, recovery=True) as (proxy, connection, timeline):
        consumer = Consumer(connection, Queue("work"), print).open()
        by_name = Consumer(connection, "work", print).open()
        with Connection(settings) as other, other.channel() as theirs:
            theirs.delete(Queue("work"))
            theirs.declare(Queue("work", arguments={"x-max-length": 1}))
        timeline.wait_for(ConsumerCancelled, timeout=10, count=2)
        until(lambda: by_name.is_consuming, 20)
        for _ in range(2):
            with pytest.raises(ChannelLost, match="406"):
                consumer.open()
            assert not consumer.is_consuming
            cut(proxy, timeline)
        assert {each.what for each in timeline.events if isinstance(each, DeclarationRefused)} == {"queue 'work'"}
        consumer.close()
        by_name.close()


# No queue twice


def test_a_queue_that_the_broker_named_and_that_outlives_its_link_keeps_its_name(settings, view):
    with through_a_proxy(settings, recovery=True) as (proxy, connection, timeline):
        channel = connection.channel()
        name = channel.declare(Queue()).name
        bind(channel, name, 3)
        with Publisher(connection) as publisher:
            publisher.publish("x", routing_key=name).result()
        before = definitions(view, settings)
        for _ in range(2):
            cut(proxy, timeline)
            assert definitions(view, settings) == before
        assert connection.channel().get(name).body == b"x"
        assert "QueueRenamed" not in timeline.names()
        deleted_by_another(settings, connection, Queue(name))
        cut(proxy, timeline)
        assert definitions(view, settings) == before
        assert timeline.names().count("QueueRenamed") == 1


def test_a_queue_that_the_broker_named_is_not_made_twice_when_it_is_there_still(settings, view):
    """As after a cancel for another reason than a deleted queue: a consumer timeout, a node that went."""
    with (
        through_a_proxy(settings, recovery=True) as (_, connection, _),
        Consumer(connection, Queue(exclusive=True), print),
    ):
        before, life, mended = definitions(view, settings), connection._life, threading.Event()
        name = life.topology.steps(life)[0][1]
        life.io.post(lambda: life.replay.mend(life.link, ("queue", name), mended.set))
        assert mended.wait(10)
        assert definitions(view, settings) == before


# Bindings that a consumer is given


@pytest.mark.parametrize("queue", [*KINDS.values(), "theirs"], ids=[*KINDS, "of others"])
def test_a_consumer_binds_its_queue_and_it_is_bound_after_a_cut(settings, view, queue):
    handler, bindings = Handler(), [Binding(NEWS, routing_key="a"), Binding("news", queue, "b")]
    with through_a_proxy(settings, recovery=True) as (proxy, connection, timeline):
        channel = connection.channel()
        channel.declare(NEWS)
        channel.declare(Queue("theirs"))
        with Consumer(connection, queue, handler, bindings=bindings) as consumer, Publisher(connection) as publisher:
            before = definitions(view, settings)
            for number in range(2):
                for key in "ab":
                    handler.gets(publisher, f"{number} {key}", key)
                cut(proxy, timeline)
                assert definitions(view, settings) == before
            channel = connection.channel()
            channel.delete(Binding(NEWS, consumer.queue, "a"))  # the consumer's own, as long as it is open
            cut(proxy, timeline)
            assert definitions(view, settings) == before
        assert "DeclarationRefused" not in timeline.names()


def test_a_consumer_whose_binding_is_refused_says_so_and_leaves_nothing(settings):
    with Connection(settings, recovery=True) as connection:
        with pytest.raises(ChannelLost, match="no exchange 'missing'"):
            Consumer(connection, Queue("work"), print, bindings=[Binding("missing")]).open()
        assert roles(connection) == []
        assert len(connection._life.topology) == 0


@pytest.mark.parametrize(
    "bindings",
    [
        "news",
        None,
        ["news"],
        [Binding("news", "another")],
        [Binding("news", Exchange("work"))],
        [Binding("news", kind="queue", destination="amq.gen-1")],
    ],
)
@pytest.mark.parametrize("queue", ["work", Queue("work"), Queue()])
def test_bindings_to_anything_but_the_consumers_queue_are_refused(settings, queue, bindings):
    with pytest.raises(ConfigurationError, match=r"^bindings: .* allowed: Bindings without a destination"):
        Consumer(settings, queue, print, bindings=bindings)


@pytest.mark.parametrize("verb", ["declare", "delete"])
def test_a_binding_without_a_destination_is_a_consumers(settings, verb):
    with Connection(settings) as connection, connection.channel() as channel:
        with pytest.raises(ConfigurationError, match="without a destination"):
            getattr(channel, verb)(Binding("news"))
        assert channel.is_open
