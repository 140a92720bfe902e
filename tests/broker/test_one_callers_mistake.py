"""What one caller does wrong costs that caller: the connection comes back for all others, whatever ended its link."""

import contextlib
import random
import threading
import time
from contextlib import contextmanager

import pytest

from labkit import (
    AttemptFailed,
    ChannelLost,
    ConnectionGivenUp,
    ConnectionLost,
    ConnectionRecovered,
    Consumer,
    DeadlineExceeded,
    DeclarationRefused,
    Exchange,
    MessageRefused,
    NotConnected,
    Outcome,
    Publisher,
    Queue,
    State,
    Timeline,
    brokers,
)
from labkit.connection.topology_replay import _ReplayRun
from labkit.messaging.consumer_io import ConsumingChannel
from labkit.retry import Backoff
from labkit.wire import Refuse
from tests.broker.connections import connected, own_virtual_host, through_a_proxy
from tests.broker.mistakes import (
    STREAM,
    ask_for_a_window_in_bytes,
    get_from_a_stream,
    publish_headers_that_are_too_large,
    publish_too_large,
    use_a_consumer_tag_twice,
)
from tests.broker.test_texts_of_the_broker import REFUSES_TRANSIENT_QUEUES, limited_user
from tests.view import until

pytestmark = pytest.mark.broker

QUICK = Backoff(initial=0.01, maximum=0.2)


@pytest.fixture(scope="module")
def settings(broker):
    with own_virtual_host(broker) as settings:
        yield settings


@pytest.fixture
def work(settings):
    """A queue of this test's, empty, and what a consumer of it has got."""
    with connected(settings) as (connection, _):
        channel = connection.channel()
        channel.declare(Queue("work"))
        yield []
        channel.delete(Queue("work"))
        channel.delete(STREAM)


@contextmanager
def at_work(settings, got, **options):
    """A recovering connection with a publisher and a consumer on it."""

    def handle(delivery):
        got.append(delivery.body)
        delivery.ack()

    with (
        connected(settings, recovery=True, **({"backoff": QUICK} | options)) as (connection, timeline),
        Publisher(connection) as publisher,
        Consumer(connection, "work", handle) as consumer,
    ):
        yield connection, timeline, publisher, consumer


def losses(timeline):
    """Return the ends of links that were open, restored or not yet."""
    return [
        each
        for each in timeline.events
        if isinstance(each, ConnectionLost)
        or (isinstance(each, AttemptFailed) and getattr(each.error, "reason", None) is not None)
    ]


def wait_until_well(connection, timeline, publisher, consumer, got):
    """The connection is open, a message goes out and comes in, and nobody has given up."""
    connection.wait_for(State.OPEN, timeout=20)
    body = f"after {connection.generation}".encode()
    publisher.publish(body, routing_key="work").result(20)
    until(lambda: body in got)
    assert consumer.is_consuming
    assert "ConnectionGivenUp" not in timeline.names()


@pytest.mark.parametrize(
    ("mistake", "code"),
    [(get_from_a_stream, 540), (publish_headers_that_are_too_large, 501), (use_a_consumer_tag_twice, 530)],
)
def test_a_callers_mistake_costs_the_link_and_everybody_else_goes_on(settings, work, mistake, code):
    with at_work(settings, work) as (connection, timeline, publisher, consumer):
        for number in (1, 2, 3, 4):
            with contextlib.suppress(ChannelLost):
                mistake(connection)
            timeline.wait_for(ConnectionLost, timeout=10, count=number)
            wait_until_well(connection, timeline, publisher, consumer, work)
        assert {each.reason.reply_code for each in losses(timeline)} == {code}
        assert len(losses(timeline)) == 4
        assert "DeclarationRefused" not in timeline.names()


def test_an_exchange_type_that_the_broker_does_not_know_costs_no_more_than_the_link(settings, work):
    """RabbitMQ 3.10 ends the connection (503), later versions only the channel (406)."""
    with at_work(settings, work) as everything:
        for _ in range(3):
            with pytest.raises(ChannelLost) as caught:
                everything[0].channel().declare(Exchange("odd", type="x-nobody-knows"))
            assert caught.value.reason.reply_code in (503, 406)
            wait_until_well(*everything, work)


def test_a_caller_who_repeats_a_mistake_at_once_meets_growing_pauses(settings, work):
    doubling = Backoff(initial=0.05, maximum=1.0, jitter="none")
    with at_work(settings, work, backoff=doubling) as (connection, timeline, *_):
        for number in range(1, 8):
            with pytest.raises(ChannelLost):
                get_from_a_stream(connection)
            timeline.wait_for(ConnectionRecovered, timeout=20, count=number)
        pauses = [each.seconds for each in timeline.events if isinstance(each, ConnectionRecovered)]
        for pause, least in zip(pauses, (0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0), strict=False):
            assert pause >= least


def test_a_users_limit_of_channels_sets_nothing_aside(view, settings, work):
    with (
        limited_user(view, settings, channels=3) as limited,
        at_work(limited, work) as (connection, timeline, publisher, consumer),
    ):
        for number in (1, 2, 3):
            with pytest.raises((ChannelLost, NotConnected)) as caught:
                _ = [connection.channel() for _ in range(3)]
            assert caught.value.reason.reply_code == 530
            timeline.wait_for(ConnectionLost, timeout=10, count=number)
            wait_until_well(connection, timeline, publisher, consumer, work)
        assert not connection._life.blame


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_callers_who_repeat_mistakes_have_nobody_elses_work_set_aside(settings, work, seed):
    """Whatever else is in hand as they make them: one message, many, a consumer that is just being made."""
    rng = random.Random(seed)
    mistakes = (get_from_a_stream, publish_headers_that_are_too_large, use_a_consumer_tag_twice)
    with at_work(settings, work) as (connection, timeline, publisher, consumer):
        over, sent = threading.Event(), []

        def publish_steadily():
            while not over.is_set():
                sent.append(publisher.publish(str(len(sent)), routing_key="work"))
                if rng.random() < 0.5:
                    sent[-1].wait(30)  # else there are many on their way

        def consume_anew():
            while not over.is_set():
                with (
                    contextlib.suppress(ChannelLost, NotConnected),  # the link's end; a refusal would be told below
                    Consumer(connection, Queue("other", exclusive=True), print),
                ):
                    time.sleep(0.01)

        threads = [threading.Thread(target=each) for each in (publish_steadily, consume_anew)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(25):
                connection.wait_for(State.OPEN, timeout=30)
                with contextlib.suppress(ChannelLost, NotConnected, DeadlineExceeded):
                    rng.choice(mistakes)(connection)
                time.sleep(rng.uniform(0, 0.05))
        finally:
            over.set()
            for thread in threads:
                thread.join(60)
        publisher.flush(timeout=30)
        assert {each.outcome for each in sent} == {Outcome.CONFIRMED}
        assert len(losses(timeline)) > 15
        assert "DeclarationRefused" not in timeline.names()
        assert not connection._life.blame.aside
        wait_until_well(connection, timeline, publisher, consumer, work)


# Messages


def test_a_message_that_ends_the_link_twice_fails_with_the_reason(settings, work):
    with at_work(settings, work) as (connection, timeline, publisher, consumer):
        refused = publish_too_large(publisher)
        with pytest.raises(MessageRefused, match="frame_too_large") as caught:
            refused.result(20)
        assert caught.value.reason.reply_code == 501
        wait_until_well(connection, timeline, publisher, consumer, work)
        assert len(losses(timeline)) == 2
        assert not connection._life.blame


@pytest.mark.parametrize("place", [0, 150, 299])
def test_a_message_among_many_that_ends_the_link_is_found_and_the_others_are_confirmed(settings, work, place):
    with at_work(settings, work) as (connection, timeline, publisher, consumer):
        sent = publisher.publish_many([str(number) for number in range(place)], routing_key="work")
        refused = publish_too_large(publisher)
        sent += publisher.publish_many([str(number) for number in range(place, 300)], routing_key="work")
        publisher.flush(timeout=30)
        assert {each.outcome for each in sent} == {Outcome.CONFIRMED}
        assert isinstance(refused.error, MessageRefused)
        assert len(losses(timeline)) <= 3  # over many in hand, over this one alone, and again
        until(lambda: {str(number).encode() for number in range(300)} <= set(work))
        wait_until_well(connection, timeline, publisher, consumer, work)
        assert not connection._life.blame


def test_two_messages_that_end_the_link_are_both_found(settings, work):
    with at_work(settings, work) as (connection, timeline, publisher, consumer):
        sent = publisher.publish_many(["a", "b"], routing_key="work")
        refused = [publish_too_large(publisher)]
        sent += publisher.publish_many(["c", "d"], routing_key="work")
        refused += [publish_too_large(publisher)]
        publisher.flush(timeout=30)
        assert [type(each.error) for each in refused] == [MessageRefused] * 2
        assert {each.outcome for each in sent} == {Outcome.CONFIRMED}
        wait_until_well(connection, timeline, publisher, consumer, work)


def test_another_publisher_on_the_connection_goes_on_while_one_finds_its_message(settings, work):
    with at_work(settings, work) as (connection, timeline, publisher, consumer), Publisher(connection) as other:
        over, sent = threading.Event(), []

        def publish_steadily():
            while not over.is_set():
                sent.append(other.publish("steady", routing_key="work"))
                time.sleep(0.001)

        thread = threading.Thread(target=publish_steadily)
        thread.start()
        try:
            until(lambda: len(sent) > 50)
            refused = publish_too_large(publisher)
            assert refused.wait(20)
        finally:
            over.set()
            thread.join(20)
        assert isinstance(refused.error, MessageRefused)
        other.flush(timeout=20)
        assert {each.outcome for each in sent} == {Outcome.CONFIRMED}
        assert len(losses(timeline)) <= 3
        wait_until_well(connection, timeline, publisher, consumer, work)


def test_a_cut_between_two_closes_blames_no_message(settings, work):
    """What is in hand when a link is merely lost is as good as before."""
    with (
        through_a_proxy(settings, recovery=True, backoff=QUICK) as (proxy, connection, timeline),
        Publisher(connection) as publisher,
    ):
        for number in range(1, 6):
            sent = publisher.publish_many(["x"] * 20, routing_key="work")
            proxy.cut()
            timeline.wait_for(ConnectionRecovered, timeout=20, count=number)
            publisher.flush(timeout=20)
            assert {each.outcome for each in sent} == {Outcome.CONFIRMED}
        assert not connection._life.blame


# Declarations and consumers. Which of them ends a connection depends on the version; a forced one is the same on all.


@pytest.fixture
def poisoned(monkeypatch):
    """Have what is called "poison" end the connection, when a replay declares it or a consumer consumes from it."""
    switch = threading.Event()
    switch.set()
    begin, declare = ConsumingChannel.begin, _ReplayRun._declare

    def begin_badly(channel):
        if channel._role.queue == "poison" and switch.is_set():
            ask_for_a_window_in_bytes(channel.pika)
        else:
            begin(channel)

    def declare_badly(run, entity, name):
        if name == "poison" and switch.is_set():
            ask_for_a_window_in_bytes(run._channel)
        else:
            declare(run, entity, name)

    monkeypatch.setattr(ConsumingChannel, "begin", begin_badly)
    monkeypatch.setattr(_ReplayRun, "_declare", declare_badly)
    return switch


def test_a_consumer_that_ends_the_link_twice_fails_with_the_reason(settings, work, poisoned):
    with at_work(settings, work) as (connection, timeline, publisher, consumer):
        sent = publisher.publish_many(["x"] * 100, routing_key="work")
        bad = Consumer(connection, "poison", lambda delivery: delivery.ack())
        with pytest.raises(ChannelLost) as caught:
            bad.open(deadline=20)
        assert caught.value.reason.reply_code == 540
        publisher.flush(timeout=20)
        assert {each.outcome for each in sent} == {Outcome.CONFIRMED}
        wait_until_well(connection, timeline, publisher, consumer, work)
        assert 2 <= len(losses(timeline)) <= 3
        poisoned.clear()
        connection.channel().declare(Queue("poison", exclusive=True))
        with bad:  # opened again: it is asked for
            assert bad.is_consuming


def test_a_consumer_that_turns_bad_costs_the_others_two_links(settings, work, poisoned):
    poisoned.clear()
    with (
        through_a_proxy(settings, recovery=True, backoff=QUICK) as (proxy, connection, timeline),
        Publisher(connection) as publisher,
        Consumer(connection, Queue("poison", exclusive=True), lambda delivery: delivery.ack()) as bad,
    ):
        poisoned.set()
        connection._life.topology.deleted(Queue("poison"))  # only the consumer declares it
        proxy.cut()
        timeline.wait_for(ConnectionRecovered, timeout=20)
        publisher.publish("x", routing_key="work").result(20)
        assert (bad.is_consuming, connection.is_open, len(losses(timeline))) == (False, True, 3)
        for _ in range(2):  # not tried again by asking whether it is well
            with pytest.raises(ChannelLost) as caught:
                bad.open(deadline=20)
            assert caught.value.reason.reply_code == 540
        assert len(losses(timeline)) == 3  # the cut, and two


def test_a_declaration_that_turns_bad_is_set_aside_until_it_is_declared_again(settings, work, poisoned):
    poisoned.clear()
    once = Backoff(initial=0.01, maximum=0.2, attempts=1)  # a link that is lost while it is restored is no attempt
    with through_a_proxy(settings, recovery=True, backoff=once) as (proxy, connection, timeline):
        channel = connection.channel()
        for each in (Exchange("before"), Queue("poison", exclusive=True), Queue("after", exclusive=True)):
            channel.declare(each)

        def cut():
            mark = timeline.mark()
            proxy.cut()
            timeline.wait_for(ConnectionRecovered, timeout=20, since=mark)
            return [each for each in timeline.events[mark:] if isinstance(each, DeclarationRefused)]

        poisoned.set()
        (refused,) = cut()
        assert (refused.what, refused.reason.reply_code) == ("queue 'poison'", 540)
        connection.channel().declare(Queue("after", exclusive=True), passive=True)
        assert len(losses(timeline)) == 3  # the cut, and two
        poisoned.clear()
        (refused,) = cut()  # still set aside: nobody has asked for it
        connection.channel().declare(Queue("poison", exclusive=True))
        assert cut() == []
        connection.channel().declare(Queue("poison", exclusive=True), passive=True)
        connection.channel().delete(Exchange("before"))


def test_a_consumer_of_a_queue_whose_declaration_is_set_aside_fails_with_that_reason(settings, poisoned):
    poisoned.clear()
    with through_a_proxy(settings, recovery=True, backoff=QUICK) as (proxy, connection, timeline):
        connection.channel().declare(Queue("poison", exclusive=True))
        with Consumer(connection, "poison", lambda delivery: delivery.ack()) as consumer:
            poisoned.set()
            proxy.cut()
            timeline.wait_for(ConnectionRecovered, timeout=20)
            with pytest.raises(ChannelLost) as caught:
                consumer.open(deadline=20)
            assert caught.value.reason.reply_code == 540
            poisoned.clear()
            connection.channel().declare(Queue("poison", exclusive=True))
            until(lambda: consumer.is_consuming)


def test_two_losses_while_a_connection_is_opened_first_do_not_end_the_opening(settings, poisoned):
    timeline = Timeline()
    with connected(settings, recovery=True, backoff=QUICK) as (connection, _):
        connection.close()
        connection.events.add(timeline)
        with pytest.raises(ChannelLost) as caught:
            Consumer(connection, Queue("poison", exclusive=True), lambda delivery: delivery.ack()).open(deadline=20)
        assert caught.value.reason.reply_code == 540
        assert connection.is_open
        assert not any(isinstance(each, ConnectionGivenUp) for each in timeline.events)


def test_an_exchange_that_an_older_broker_does_not_know_is_set_aside(broker, settings, work):
    """As after a move to a broker without the plugin. RabbitMQ 3.10 ends the connection, 4 the channel."""
    with through_a_proxy(settings, recovery=True, backoff=QUICK) as (proxy, connection, timeline):
        connection._life.topology.declared(Exchange("odd", type="x-nobody-knows"))
        connection.channel().declare(Queue("mine", exclusive=True))
        with Publisher(connection) as publisher:
            proxy.cut()
            timeline.wait_for(ConnectionRecovered, timeout=20)
            refused = timeline.wait_for(DeclarationRefused, timeout=10)
            code = 503 if broker.version.startswith("3.") else 406
            assert (refused.what, refused.reason.reply_code) == ("exchange 'odd'", code)
            connection.channel().declare(Queue("mine"), passive=True)
            publisher.publish("x", routing_key="work").result(20)


@pytest.mark.own_broker
@pytest.mark.timeout(180)
def test_a_broker_that_permits_a_queue_no_more_after_its_upgrade_costs_that_queue_only():
    with brokers.own("local") as broker:
        if broker.version.startswith("3."):
            pytest.skip("RabbitMQ 3 permits them")
        got, passing = [], Queue("passing", durable=False)
        slowly = Backoff(initial=0.05, maximum=0.5)

        def handle(delivery):
            got.append(delivery.body)
            delivery.ack()

        with through_a_proxy(broker.settings(), recovery=True, backoff=slowly) as (proxy, connection, timeline):
            connection.channel().declare(Queue("work"))
            with (
                Publisher(connection) as publisher,
                Consumer(connection, passing, print) as bad,
                Consumer(connection, "work", handle),
            ):
                with proxy.fault(Refuse()):
                    proxy.cut()
                    broker.ctl("delete_queue", "passing")  # while it is there, the broker would not start
                    broker.stop()
                    permitted = broker.directory / "conf.d" / "deprecated.conf"
                    permitted.write_text(REFUSES_TRANSIENT_QUEUES, encoding="utf-8")
                    broker.start()
                timeline.wait_for(ConnectionRecovered, timeout=60)
                refused = timeline.wait_for(DeclarationRefused, timeout=10)
                assert (refused.what, refused.reason.reply_code) == ("queue 'passing'", 541)
                publisher.publish("x", routing_key="work").result(20)
                until(lambda: got == [b"x"])
                with pytest.raises(ChannelLost, match="deprecated"):
                    bad.open(deadline=20)
                with pytest.raises(ChannelLost, match="deprecated"):  # costs its caller two links
                    Consumer(connection, passing, print).open(deadline=30)
                publisher.publish("y", routing_key="work").result(20)
                until(lambda: got == [b"x", b"y"])
