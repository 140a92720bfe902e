"""What a program finds after a lost link: its consumers once each, its name, its returns; and nothing it had ended."""

import threading
import time

import pytest

from labkit import (
    AttemptFailed,
    Binding,
    ChannelLost,
    ConnectError,
    Connection,
    ConnectionLost,
    ConnectionRecovered,
    Consumer,
    Exchange,
    Outcome,
    Publisher,
    Queue,
    State,
    Unroutable,
)
from labkit.wire import Latency, LimitData, Proxy, Refuse, Stall
from tests.broker.connections import EAGER, SLACK, connected, own_virtual_host, through_a_proxy
from tests.broker.publishing import check_nothing_is_lost, drained, publishing
from tests.broker.test_topology_replay import cut, exists
from tests.broker.topology import definitions
from tests.view import until

pytestmark = pytest.mark.broker


@pytest.fixture(scope="module")
def settings(broker):
    """One virtual host for all tests here."""
    with own_virtual_host(broker) as settings:
        yield settings


def consumers(settings, queue):
    with Connection(settings) as connection, connection.channel() as channel:
        return channel.declare(Queue(queue), passive=True).consumers


# What was in use is there again


def test_every_consumer_is_there_once_after_each_cut(settings):
    """As the broker counts them: a recovery may neither forget one nor start it twice."""
    names, handled = [f"many {number}" for number in range(10)], []

    def handle(delivery):
        handled.append((delivery.queue, delivery.body))
        delivery.ack()

    with through_a_proxy(settings, recovery=True) as (proxy, connection, timeline):
        with connection.channel() as channel:
            for name in names:
                channel.declare(Queue(name))
        started = [Consumer(connection, name, handle).open() for name in names]
        for number in range(3):
            cut(proxy, timeline)
            assert [consumers(settings, name) for name in names] == [1] * len(names)
            with Publisher(settings) as publisher:
                for name in names:
                    publisher.publish(str(number), routing_key=name).result()
            until(lambda number=number: {(name, str(number).encode()) for name in names} <= set(handled))
        for each in started:
            each.close()
        assert [consumers(settings, name) for name in names] == [0] * len(names)


@pytest.mark.parametrize(
    "queue",
    [Queue("own", exclusive=True), Queue("passing", auto_delete=True), Queue(exclusive=True)],
    ids=["exclusive", "auto-delete", "named by the broker"],
)
def test_a_consumers_own_queue_comes_back_with_what_is_bound_to_it(settings, view, queue):
    handled = []

    def handle(delivery):
        handled.append(delivery.body)
        delivery.ack()

    with through_a_proxy(settings, recovery=True) as (proxy, connection, timeline):
        without = definitions(view, settings)
        with Consumer(connection, queue, handle) as consumer, Publisher(connection) as publisher:
            channel = connection.channel()
            channel.declare(Exchange("news", type="fanout"))
            channel.declare(Binding("news", consumer.queue))
            before = definitions(view, settings)
            for number in range(3):
                cut(proxy, timeline)
                assert definitions(view, settings) == before
                publisher.publish(str(number), exchange="news", routing_key="").result()
                until(lambda number=number: handled.count(str(number).encode()) == 1)
        connection.channel().delete(Exchange("news"))
        cut(proxy, timeline)
        until(lambda: definitions(view, settings) == without)
        assert "DeclarationRefused" not in timeline.names()


def test_the_broker_knows_the_new_link_by_the_same_name(settings, broker):
    with through_a_proxy(settings, recovery=True, connection_name="till 3") as (proxy, _, timeline):
        cut(proxy, timeline)
        assert [each.client_name for each in broker.wait_for_connections(1, settings.virtual_host)] == ["till 3"]


def test_a_return_still_finds_its_publish_after_a_cut(settings):
    with publishing(settings) as (publisher, proxy, timeline):
        cut(proxy, timeline)
        sent = [publisher.publish("x", routing_key=key) for key in ("work", "nowhere", "work")]
        publisher.flush(timeout=20)
        assert [each.outcome for each in sent] == [Outcome.CONFIRMED, Outcome.RETURNED, Outcome.CONFIRMED]
        with pytest.raises(Unroutable):
            sent[1].result()
    drained(settings)


def test_the_next_host_is_found_when_the_first_does_not_come_back(settings):
    with Proxy(settings) as first, Proxy(settings) as second:
        hosts = [f"{each.settings().host}:{each.settings().port}" for each in (first, second)]
        with connected(settings.replace(hosts=tuple(hosts)), recovery=True) as (connection, timeline):
            with connection.channel() as channel:
                channel.declare(Queue("mine", exclusive=True))
            assert (len(first.links), len(second.links)) == (1, 0)
            with first.fault(Refuse()):
                cut(first, timeline)
                assert (len(first.links), len(second.links)) == (0, 1)
                assert exists(settings, Queue("mine", exclusive=True))


def test_links_that_die_in_the_middle_of_the_replay_cost_time_and_nothing_else(settings, view):
    """Each new link lives a little longer than the one before: through the handshake, then a part of the replay."""
    ends = [("Connection.Tune", 1), ("Channel.OpenOk", 1)]
    ends += [(frame, count) for frame in ("Exchange.DeclareOk", "Queue.DeclareOk", "Queue.BindOk") for count in (1, 5)]
    with through_a_proxy(settings, recovery=True, backoff=EAGER) as (proxy, connection, timeline):
        channel = connection.channel()
        for number in range(5):
            channel.declare(Queue(f"step {number}", exclusive=True))
            channel.declare(Exchange(f"step {number}", auto_delete=True))
            channel.declare(Binding(f"step {number}", f"step {number}", "a"))
        before = definitions(view, settings)
        for frame, count in ends:
            mark = timeline.mark()
            with proxy.fault(LimitData(0), direction="downstream", at_frame=frame, count=count):
                proxy.cut()
                timeline.wait_for(AttemptFailed, timeout=20, since=mark)
            timeline.wait_for(ConnectionRecovered, timeout=20, since=mark)
            assert definitions(view, settings) == before
        assert "DeclarationRefused" not in timeline.names()


MANY = 60
SLOW = Latency(0.02)  # so that the queues take a few seconds, and each of them little
IMPATIENT = {"stack_timeout": 1.0, "heartbeat": 60}


def declare_many(connection, name):
    """Declare many queues; return the last one."""
    queues = [Queue(f"{name} {number}", exclusive=True) for number in range(MANY)]
    with connection.channel() as channel:
        for each in queues:
            channel.declare(each)
    return queues[-1]


def test_a_topology_that_takes_longer_than_the_stack_timeout_comes_back(settings):
    """The limit is for a step, not for all of them: a slow line would otherwise never be open again."""
    with through_a_proxy(settings, recovery=True, **IMPATIENT) as (proxy, connection, timeline):
        last = declare_many(connection, "slow")
        with proxy.fault(SLOW):
            proxy.cut()
            recovered = timeline.wait_for(ConnectionRecovered, timeout=15)
        assert recovered.seconds > IMPATIENT["stack_timeout"]
        assert exists(settings, last)


def test_a_replay_that_stalls_ends_at_the_stack_timeout(settings):
    with through_a_proxy(settings, recovery=True, **IMPATIENT) as (proxy, connection, timeline):
        declare_many(connection, "stalled")
        with proxy.fault(Stall(), direction="downstream", at_frame="Queue.DeclareOk", count=MANY // 2):
            proxy.cut()
            failed = timeline.wait_for(AttemptFailed, timeout=IMPATIENT["stack_timeout"] + SLACK)
        assert isinstance(failed.error, TimeoutError)
        assert "restoring" in str(failed.error)
        timeline.wait_for(ConnectionRecovered, timeout=15)


def test_an_open_ends_at_its_deadline_however_the_replay_goes_on(settings):
    with through_a_proxy(settings, recovery=True, heartbeat=60) as (proxy, connection, _):
        declare_many(connection, "late")
        connection.close()
        with proxy.fault(SLOW):
            began = time.monotonic()
            with pytest.raises(ConnectError, match="not restored before the deadline"):
                connection.open(deadline=0.8)
            assert time.monotonic() - began < 0.8 + SLACK / 2  # all of it takes twice that


# What was ended, or never wanted, is not


def test_a_consumer_that_was_stopped_stays_away(settings):
    with through_a_proxy(settings, recovery=True) as (proxy, connection, timeline):
        with connection.channel() as channel:
            channel.declare(Queue("stopped"))
        Consumer(connection, "stopped", print).open().close()
        second = Consumer(connection, "stopped", print).open()
        mark = timeline.mark()
        with proxy.fault(Refuse()):
            proxy.cut()
            timeline.wait_for(AttemptFailed, timeout=10, since=mark)
            second.close()  # while there is no link
        timeline.wait_for(ConnectionRecovered, timeout=20, since=mark)
        assert consumers(settings, "stopped") == 0
        assert connection.status().channels == 0


def test_what_was_only_looked_at_is_not_declared_again(settings):
    with through_a_proxy(settings, recovery=True) as (proxy, connection, timeline):
        with Connection(settings) as other, other.channel() as theirs:
            theirs.declare(Queue("theirs"))
            theirs.declare(Exchange("theirs"))
            channel = connection.channel()
            channel.declare(Queue("theirs"), passive=True)
            channel.declare(Exchange("theirs"), passive=True)
            channel.declare(Queue("ours", exclusive=True))  # so that there is a replay
            theirs.delete(Queue("theirs"))
            theirs.delete(Exchange("theirs"))
        cut(proxy, timeline)
        assert exists(settings, Queue("ours", exclusive=True))
        assert not exists(settings, Queue("theirs"))
        assert not exists(settings, Exchange("theirs"))


def test_an_unbound_exchange_stays_unbound(settings, view):
    chain = Binding(Exchange("upper"), Exchange("lower"), "a.#", arguments={"n": 1})
    with through_a_proxy(settings, recovery=True) as (proxy, connection, timeline):
        channel = connection.channel()
        for each in (Exchange("upper", type="topic"), Exchange("lower", type="topic")):
            channel.declare(each)
        before = definitions(view, settings)
        channel.declare(chain)
        channel.delete(chain)
        cut(proxy, timeline)
        assert definitions(view, settings) == before


# Answers that come too late


@pytest.mark.parametrize("verb", ["ack", "nack", "reject"])
def test_an_answer_to_a_delivery_from_before_the_cut_is_never_sent(settings, verb):
    """On the new link the same tag is another message's, or nobody's: the broker would close the channel (406)."""
    begun, go_on, errors, handled = threading.Event(), threading.Event(), [], []

    def handle(delivery):
        handled.append(delivery.redelivered)
        begun.set()
        go_on.wait(20)
        if delivery.redelivered:
            delivery.ack()
        else:
            getattr(delivery, verb)()

    with publishing(settings) as (publisher, proxy, timeline):
        connection = publisher.connection
        for _ in range(2):
            publisher.publish("x", routing_key="work").result()
        with connection.channel() as channel:
            got = channel.get("work")
            with Consumer(connection, "work", handle, prefetch=1) as consumer:
                begun.wait(10)
                cut(proxy, timeline)
                with pytest.raises(ChannelLost) as caught:
                    getattr(got, verb)()
                errors.append(caught.value)
                go_on.set()
                until(lambda: handled.count(True) == 2)
                until(lambda: consumer.handled == 3)
                assert consumer.dropped_acks == 1
        assert timeline.names().count("ConnectionLost") == 1
        assert all(each.reason is not None for each in errors)
    assert drained(settings, silence=0.3) == []


# While it is being lost, and found


def test_a_writer_whose_socket_is_full_is_no_obstacle_to_recovery(settings):
    """The broker's side stops reading: megabytes wait in the socket, and here, when the link is given up."""
    bodies = [bytes([number]) * 1024 * 1024 for number in range(24)]
    with publishing(settings, heartbeat=1) as (publisher, proxy, timeline):
        with proxy.fault(Stall()):
            sent = publisher.publish_many(bodies, routing_key="work", deadline=60)
            started = time.monotonic()
            lost = timeline.wait_for(ConnectionLost, timeout=10)
            assert time.monotonic() - started < 2 * 1 + 1 + SLACK
            assert "nothing was received" in str(lost.reason)
        timeline.wait_for(ConnectionRecovered, timeout=20)
        publisher.flush(timeout=60)
        assert {each.outcome for each in sent} == {Outcome.CONFIRMED}
        replayed = publisher.replayed
    taken = drained(settings)
    check_nothing_is_lost(sent, taken, replayed)
    assert {body for _, body in taken} == set(bodies)


@pytest.mark.parametrize("event", [ConnectionLost, AttemptFailed, ConnectionRecovered])
def test_a_listener_may_close_the_connection_whatever_it_hears(settings, event):
    with Proxy(settings) as proxy:
        closed = threading.Event()

        def listener(heard):
            if isinstance(heard, event) and not closed.is_set():
                connection.close(timeout=2)
                closed.set()

        connection = Connection(proxy.settings(), recovery=True, backoff=EAGER, listeners=[listener])
        with connection, Publisher(connection), proxy.fault(Refuse()) as refusing:
            if event is not AttemptFailed:
                refusing.end()
            proxy.cut()
            assert closed.wait(10)
            connection.wait_for(State.CLOSED, timeout=5)
            until(lambda: proxy.links == ())
