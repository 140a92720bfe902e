"""After a lost link everything that was declared is there again, and nothing that was deleted."""

import time

import pika
import pytest

import labkit.connection.channel
import labkit.connection.lifecycle
from labkit import (
    Binding,
    ChannelLost,
    Connection,
    ConnectionRecovered,
    Consumer,
    DeclarationRefused,
    Exchange,
    Outcome,
    Publisher,
    Queue,
    QueueRenamed,
)
from tests.broker.connections import own_virtual_host, through_a_proxy
from tests.broker.topology import consumers, definitions, whole_topology
from tests.lockstep import in_lockstep
from tests.view import until

pytestmark = pytest.mark.broker


@pytest.fixture(scope="module")
def settings(broker):
    """One virtual host for all tests here."""
    with own_virtual_host(broker) as settings:
        yield settings


def exists(settings, what):
    with Connection(settings) as connection:
        try:
            connection.channel().declare(what, passive=True)
        except ChannelLost as exc:
            return exc.reason.reply_code == 405  # locked: it is there, another connection's; 404: it is not
        return True


def cut(proxy, timeline):
    mark = timeline.mark()
    proxy.cut()
    timeline.wait_for(ConnectionRecovered, timeout=30, since=mark)


def test_the_topology_is_whole_after_each_of_five_cuts(settings, view):
    """G16, class size: what vanishes with a link is back, header arguments and prefetch too; the deleted is not."""
    whole_after_cuts(settings, view, 5)


def whole_after_cuts(settings, view, cuts):
    """Cut so often, and return the seconds from each cut until all was there again."""
    seconds = []
    with through_a_proxy(settings, recovery=True) as (proxy, connection, timeline), whole_topology(connection):
        before = definitions(view, settings)
        assert len(before) > 10
        until(lambda: len(consumers(view, settings)) == 4)
        consumed = consumers(view, settings)
        for _ in range(cuts):
            started = time.monotonic()
            cut(proxy, timeline)
            seconds.append(time.monotonic() - started)
            assert definitions(view, settings) == before
            until(lambda: consumers(view, settings) == consumed)
        assert "DeclarationRefused" not in timeline.names()
    return seconds


@pytest.mark.parametrize(
    ("topology", "comes_back"),
    [("all", {"work", "scratch"}), ("none", set()), (lambda what: getattr(what, "name", "") != "scratch", {"work"})],
)
def test_what_comes_back_is_what_the_connection_was_asked_to_keep(settings, topology, comes_back):
    names = {"work", "scratch"}
    with through_a_proxy(settings, recovery=True, topology=topology) as (proxy, connection, timeline):
        channel = connection.channel()
        for name in names:
            channel.declare(Queue(name, exclusive=True))
        cut(proxy, timeline)
        assert {name for name in names if exists(settings, Queue(name, exclusive=True))} == comes_back


def test_a_binding_is_kept_or_not_like_any_other(settings):
    with through_a_proxy(settings, recovery=True, topology=lambda what: not isinstance(what, Binding)) as (
        proxy,
        connection,
        timeline,
    ):
        channel = connection.channel()
        queue = Queue("bound-once", exclusive=True)
        for each in (queue, Binding("amq.fanout", "bound-once")):
            channel.declare(each)
        cut(proxy, timeline)
        channel = connection.channel(confirm=True)
        channel.publish("x", exchange="amq.fanout", routing_key="")
        channel.publish("y", routing_key="bound-once")
        assert channel.get("bound-once", auto_ack=True).body == b"y"


def test_what_the_filter_raises_leaves_declare_and_nothing_is_declared(settings):
    def filtered(_):
        raise RuntimeError("not today")

    with (
        through_a_proxy(settings, recovery=True, topology=filtered) as (_, connection, _),
        pytest.raises(RuntimeError, match="not today"),
    ):
        connection.channel().declare(Queue("never"))
    assert not exists(settings, Queue("never"))


def test_a_consumer_has_its_queue_again_on_a_connection_that_keeps_nothing(settings):
    got = []

    def handle(delivery):
        got.append(delivery.body)
        delivery.ack()

    with (
        through_a_proxy(settings, recovery=True, topology="none") as (proxy, connection, timeline),
        Consumer(connection, Queue("own", exclusive=True), handle),
        Publisher(connection) as publisher,
    ):
        cut(proxy, timeline)
        publisher.publish("x", routing_key="own").result(20)
        until(lambda: got == [b"x"])


def test_one_that_is_refused_is_told_and_the_others_come_back(settings):
    with through_a_proxy(settings, recovery=True) as (proxy, connection, timeline):
        channel = connection.channel()
        for each in (Queue("first", exclusive=True), Queue("changed"), Queue("last", exclusive=True)):
            channel.declare(each)
        with Connection(settings) as other, other.channel() as theirs:
            theirs.delete(Queue("changed"))
            theirs.declare(Queue("changed", arguments={"x-max-length": 1}))
        cut(proxy, timeline)
        refused = timeline.wait_for(DeclarationRefused, timeout=10)
        assert (refused.what, refused.reason.reply_code) == ("queue 'changed'", 406)
        assert exists(settings, Queue("first", exclusive=True))
        assert exists(settings, Queue("last", exclusive=True))
        connection.channel().delete(Queue("changed"))


def test_a_queue_that_is_locked_for_a_while_comes_back(settings):
    """405: another link, which the broker still believes alive, holds the exclusive queue."""
    with through_a_proxy(settings, recovery=True) as (proxy, connection, timeline):
        channel = connection.channel()
        channel.declare(Exchange("orders"))
        channel.declare(Queue("mine", exclusive=True))
        channel.declare(Binding("orders", "mine", "a"))
        channel.delete(Queue("mine"))
        holder = pika.BlockingConnection(settings.to_pika()[0])
        holder.channel().queue_declare("mine", exclusive=True)
        connection._life.topology.declared(Queue("mine", exclusive=True), "mine")  # as it is after a half-open loss
        connection._life.topology.declared(Binding("orders", "mine", "a"))
        cut(proxy, timeline)
        assert connection.is_open
        assert "DeclarationRefused" not in timeline.names()
        holder.close()
        channel = connection.channel()
        until(lambda: can_declare(connection, Queue("mine", exclusive=True)), 10)
        with Publisher(connection) as publisher:  # its binding comes back a moment after the queue
            until(lambda: is_routed(publisher.publish("x", exchange="orders", routing_key="a")), 10)
        until(lambda: connection.channel().declare(Queue("mine"), passive=True).messages >= 1, 10)
        channel.delete(Exchange("orders"))


def test_an_exchange_that_the_late_end_of_the_old_link_deletes_comes_back_whole(settings, view):
    """With the old link its queue goes, with that the last binding, with that the exchange: all of it declared anew."""
    passing, mine = Exchange("passing", auto_delete=True), Queue("mine", exclusive=True)
    with through_a_proxy(settings, recovery=True) as (proxy, connection, timeline):
        channel = connection.channel()
        for each in (Exchange("first"), passing, mine, Binding(passing, mine, "a"), Binding("first", passing, "b")):
            channel.declare(each)
        before = definitions(view, settings)
        channel.delete(mine)
        with pika.BlockingConnection(settings.to_pika()[0]) as old:  # as the old link is to a broker that is late
            theirs = old.channel()
            theirs.exchange_declare("passing", durable=True, auto_delete=True)
            theirs.queue_declare("mine", durable=True, exclusive=True)
            theirs.queue_bind("mine", "passing", "a")
            for each in (passing, mine, Binding(passing, mine, "a"), Binding("first", passing, "b")):
                connection._life.topology.declared(each)
            cut(proxy, timeline)
        until(lambda: definitions(view, settings) == before, 10)
        assert "DeclarationRefused" not in timeline.names()
        connection.channel().delete(Exchange("first"))


def is_routed(confirmation):
    assert confirmation.wait(5)
    return confirmation.outcome is Outcome.CONFIRMED


def can_declare(connection, queue):
    try:
        connection.channel().declare(queue, passive=True)
    except ChannelLost:
        return False
    return True


def test_a_consumer_of_a_queue_that_the_broker_named_follows_its_new_name(settings):
    handled = []
    with through_a_proxy(settings, recovery=True) as (proxy, connection, timeline):
        channel = connection.channel()
        channel.declare(Exchange("news", type="fanout"))
        name = channel.declare(Queue(exclusive=True)).name
        channel.declare(Binding("news", name))

        def handle(delivery):
            handled.append(delivery.body)
            delivery.ack()

        with Consumer(connection, name, handle) as consumer, Publisher(connection) as publisher:
            publisher.publish("1", exchange="news", routing_key="").result()
            until(lambda: handled == [b"1"])
            cut(proxy, timeline)
            assert consumer.queue != name
            publisher.publish("2", exchange="news", routing_key="").result()
            until(lambda: handled == [b"1", b"2"])
        connection.channel().delete(Exchange("news"))


def test_a_replaced_name_means_the_queue_that_has_another_now(settings, view):
    """The user knows the name from before the cut: with it they bind, look, get, consume, unbind and delete."""
    handled = []
    with through_a_proxy(settings, recovery=True) as (proxy, connection, timeline):
        before = definitions(view, settings)
        channel = connection.channel()
        channel.declare(Exchange("replaced", type="topic"))
        old = channel.declare(Queue(exclusive=True)).name
        channel.declare(Binding("replaced", old, "a"))
        for _ in range(2):
            cut(proxy, timeline)
        channel = connection.channel()
        channel.declare(Binding("replaced", old, "b"))
        channel.publish("x", exchange="replaced", routing_key="b")
        present = channel.declare(Queue(old), passive=True).name
        until(lambda: channel.get(old)).ack()
        tag = channel.consume(old, handled.append)
        channel.publish("x", exchange="replaced", routing_key="a")
        until(lambda: [each.queue for each in handled] == [present])
        channel.cancel(tag)
        channel.delete(Binding("replaced", old, "a"))
        cut(proxy, timeline)
        keys = [each["routing_key"] for each in view.get(f"bindings/{settings.virtual_host}") if each["source"]]
        assert keys == ["b"]
        channel = connection.channel()
        channel.delete(Queue(old))
        channel.delete(Exchange("replaced"))
        assert definitions(view, settings) == before
        cut(proxy, timeline)
        assert definitions(view, settings) == before


def test_the_new_name_of_a_queue_is_told_before_the_connection_is_open_again(settings):
    with through_a_proxy(settings, recovery=True) as (proxy, connection, timeline):
        channel = connection.channel()
        name = channel.declare(Queue(exclusive=True)).name
        channel.declare(Queue("mine", exclusive=True))
        cut(proxy, timeline)
        names = timeline.names()
        assert names.count("QueueRenamed") == 1
        assert names.index("QueueRenamed") < names.index("ConnectionRecovered")
        told = timeline.wait_for(QueueRenamed, timeout=0)
        assert told.old == name
        assert connection.channel().declare(Queue(told.new), passive=True).name == told.new != name


def test_a_message_that_goes_again_finds_its_queue_there(settings):
    """The topology is replayed before the messages: a mandatory one would be returned otherwise."""
    with (
        through_a_proxy(settings, recovery=True, heartbeat=60) as (proxy, connection, timeline),
        Publisher(connection) as publisher,  # the role was added before the topology's
    ):
        connection.channel().declare(Queue("mine", exclusive=True))
        for number in range(5):
            sent = publisher.publish_many([str(number)] * 10, routing_key="mine")
            cut(proxy, timeline)
            publisher.flush(timeout=20)
            assert {each.error for each in sent} == {None}


def test_what_two_threads_declare_first_at_the_same_moment_comes_back_once(settings, view):
    with through_a_proxy(settings, recovery=True) as (proxy, connection, timeline):
        channels = [connection.channel() for _ in range(2)]
        before = definitions(view, settings)
        in_lockstep(
            lambda: channels.pop().declare(Queue(exclusive=True)),
            labkit.connection.channel,
            labkit.connection.lifecycle,
        )
        for _ in range(2):
            cut(proxy, timeline)
            assert len(definitions(view, settings)) == len(before) + 2 * 2  # a queue and its binding to the default


def test_a_plain_connection_declares_nothing_by_itself(settings):
    with through_a_proxy(settings) as (proxy, connection, _):
        connection.channel().declare(Queue("mine", exclusive=True))
        proxy.cut()
        until(lambda: not connection.is_open)
        connection.open()
        until(lambda: not exists(settings, Queue("mine", exclusive=True)))
