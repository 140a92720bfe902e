"""What basic.consume can say beside the queue's name: no acknowledgement, arguments, exclusive, a tag of one's own."""

import threading
from contextlib import closing

import pytest

from labkit import (
    ChannelLost,
    ConfigurationError,
    Connection,
    ConnectionRecovered,
    Consumer,
    LeaseError,
    Message,
    Queue,
)
from tests.broker.connections import own_virtual_host, through_a_proxy
from tests.broker.publishing import drained
from tests.broker.test_consumer import a_queue, fill, state
from tests.view import until

pytestmark = pytest.mark.broker
REPLY_TO = "amq.rabbitmq.reply-to"


@pytest.fixture(scope="module")
def settings(broker):
    with own_virtual_host(broker) as settings:
        yield settings


@pytest.fixture
def connection(settings):
    with Connection(settings) as connection:
        yield connection


@pytest.fixture
def channel(connection):
    with connection.channel() as channel:
        channel.delete(Queue("work"))
        channel.declare(Queue("work"))
        yield channel


class Held:
    """Remembers what comes, and holds each up until it may go on."""

    def __init__(self):
        self.bodies = []
        self.begun = threading.Event()
        self.may_go_on = threading.Event()

    def __call__(self, delivery):
        self.begun.set()
        self.may_go_on.wait(30)
        self.bodies.append(delivery.body)


def refuses_every_answer(delivery):
    for answer in (delivery.ack, delivery.nack, delivery.reject):
        with pytest.raises(LeaseError, match="auto_ack=True"):
            answer()
    return delivery.is_settled and repr(delivery) == f"Delivery({len(delivery.body)} bytes, auto-ack)"


# Auto-ack


def test_a_get_with_auto_ack_leaves_nothing_to_settle_and_the_channel_clean(settings, channel):
    channel.publish("x", routing_key="work")
    delivery = until(lambda: channel.get("work", auto_ack=True))
    assert delivery.body == b"x"
    assert refuses_every_answer(delivery)
    assert channel.is_open
    assert channel._core.is_clean
    channel.close()
    assert state(settings).messages == 0


def test_gets_with_and_without_auto_ack_from_many_threads_are_not_mixed_up(settings, channel):
    fill(settings, *["x"] * 40)
    kept = []

    def take(auto_ack):
        for _ in range(5):
            delivery = channel.get("work", auto_ack=auto_ack)
            kept.append((auto_ack, delivery.is_settled))

    threads = [threading.Thread(target=take, args=(number % 2 == 0,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(kept) == [(False, False)] * 20 + [(True, True)] * 20
    channel.close()
    until(lambda: state(settings).messages == 20)


def test_a_channels_auto_ack_consumer_handles_what_has_come_also_after_the_channel_is_gone(settings, channel):
    handler = Held()
    channel.consume("work", handler, auto_ack=True)
    fill(settings, *"12345")
    assert handler.begun.wait(10)
    (consumer,) = channel._core.deliveries.consumers.values()
    until(lambda: len(consumer._mailbox._tasks) == 4)
    channel.close()
    handler.may_go_on.set()
    until(lambda: handler.bodies == [b"1", b"2", b"3", b"4", b"5"])
    assert drained(settings, silence=0.3) == []


def test_a_handler_of_an_auto_ack_consumer_cannot_settle_and_may_fail(channel):
    answers = []

    def handler(delivery):
        answers.append(refuses_every_answer(delivery))
        raise RuntimeError("of the test")

    channel.consume("work", handler, auto_ack=True)
    for _ in range(3):
        channel.publish("x", routing_key="work")
    until(lambda: answers == [True] * 3)
    assert channel.is_open
    assert channel.declare(Queue("work"), passive=True).messages == 0


def test_an_auto_ack_consumer_handles_what_has_come_through_a_cut_and_its_own_end(settings):
    handler = Held()
    with (
        a_queue(settings, *"123") as (connection, proxy, timeline),
        Consumer(connection, "work", handler, auto_ack=True) as consumer,
    ):
        tasks = consumer._role.mailbox._tasks
        assert handler.begun.wait(10)
        until(lambda: len(tasks) == 2)
        proxy.cut()
        timeline.wait_for(ConnectionRecovered, timeout=20)
        until(lambda: state(settings).consumers == 1)  # else the broker may send the next ones to the old link
        fill(settings, *"456")
        until(lambda: len(tasks) == 5)
        closing = threading.Thread(target=consumer.close)
        closing.start()
        handler.may_go_on.set()
        closing.join(20)
        until(lambda: handler.bodies == [b"1", b"2", b"3", b"4", b"5", b"6"])
        assert (consumer.handled, consumer.dropped_acks) == (6, 0)
    assert drained(settings, silence=0.3) == []


def test_what_waits_for_the_handler_of_an_auto_ack_consumer_has_no_limit(settings, channel, monkeypatch):
    monkeypatch.setattr("labkit.connection.channel_deliveries.WAITING_MAX", 10)
    handler, many = Held(), 100
    channel.consume("work", handler, auto_ack=True)
    fill(settings, *["x"] * many)
    (consumer,) = channel._core.deliveries.consumers.values()
    until(lambda: len(consumer._mailbox._tasks) == many - 1)
    handler.may_go_on.set()
    until(lambda: len(handler.bodies) == many)


def test_direct_reply_to_brings_an_answer_without_a_queue(settings, connection):
    def serve(delivery):
        answer = Message(delivery.message.text.upper(), correlation_id=delivery.message.correlation_id)
        server.publish(answer, routing_key=delivery.message.reply_to)
        delivery.ack()

    answers = {}
    with Connection(settings) as other, other.channel() as server:
        server.declare(Queue("calls"))
        server.consume("calls", serve)
        with connection.channel() as client:
            client.consume(
                REPLY_TO,
                lambda delivery: answers.setdefault(delivery.message.correlation_id, delivery.message.text),
                auto_ack=True,
            )
            for number, text in enumerate(["one", "two", "three"]):
                client.publish(Message(text, reply_to=REPLY_TO, correlation_id=str(number)), routing_key="calls")
            until(lambda: answers == {"0": "ONE", "1": "TWO", "2": "THREE"})


def test_direct_reply_to_without_auto_ack_is_refused_with_the_brokers_words(connection):
    with pytest.raises(ChannelLost, match="406"):
        connection.channel().consume(REPLY_TO, print)


# Arguments


def test_arguments_reach_the_broker_also_after_a_cut(settings, view):
    with (
        through_a_proxy(settings, recovery=True) as (proxy, connection, timeline),
        Consumer(connection, Queue("ranked"), print, arguments={"x-priority": 7}),
    ):
        for _ in range(2):
            (seen,) = until(lambda: view.consumers(settings.virtual_host))
            assert "x-priority" in str(seen["arguments"])
            assert "7" in str(seen["arguments"])
            mark = timeline.mark()
            proxy.cut()
            timeline.wait_for(ConnectionRecovered, timeout=20, since=mark)


def test_the_consumer_with_the_higher_priority_gets_the_messages(channel):
    low, high = [], []
    channel.qos(1)
    for taken, priority in ((low, 1), (high, 10)):
        channel.consume(
            "work",
            lambda delivery, taken=taken: (taken.append(delivery.body), delivery.ack()),
            arguments={"x-priority": priority},
        )
    for number in range(5):
        channel.publish(str(number), routing_key="work")
        until(lambda number=number: len(low) + len(high) == number + 1)
    assert len(high) == 5


# Exclusive


def test_an_exclusive_consumer_keeps_others_out(settings, connection, channel):
    channel.consume("work", print, exclusive=True)
    with pytest.raises(ChannelLost, match="403"):
        connection.channel().consume("work", print)
    second = Consumer(settings, "work", print, exclusive=True)  # with a connection of its own
    with closing(second), pytest.raises(ChannelLost, match="403"):
        second.open()


def test_an_exclusive_consumer_is_back_after_a_cut(settings):
    taken = []
    with (
        a_queue(settings) as (connection, proxy, timeline),
        Consumer(
            connection, "work", lambda delivery: (taken.append(delivery.body), delivery.ack()), exclusive=True
        ) as consumer,
    ):
        proxy.cut()
        timeline.wait_for(ConnectionRecovered, timeout=20)
        until(lambda: consumer.is_consuming, 20)
        fill(settings, "x")
        until(lambda: taken == [b"x"])


# A tag of one's own


def test_a_tag_of_ones_own_is_the_brokers_too_and_in_use_once(channel):
    assert channel.consume("work", print, tag="mine") == "mine"
    with pytest.raises(ConfigurationError, match="tag: 'mine' is in use on this channel") as caught:
        channel.consume("work", print, tag="mine")
    assert caught.value.field == "tag"
    assert channel.is_open
    channel.cancel("mine")
    assert channel.declare(Queue("work"), passive=True).consumers == 0
    assert channel.consume("work", print, tag="mine") == "mine"


def test_a_consumer_has_its_tag_on_each_link(settings, broker):
    def tags():
        shown = broker.ctl("list_consumers", "-p", settings.virtual_host, "consumer_tag")
        return [row.strip() for row in shown.splitlines()[1:]]

    if "process" not in broker.capabilities:
        pytest.skip("needs rabbitmqctl")
    with (
        through_a_proxy(settings, recovery=True) as (proxy, connection, timeline),
        Consumer(connection, Queue("tagged"), print, tag="tagged consumer"),
    ):
        until(lambda: "tagged consumer" in tags())
        proxy.cut()
        timeline.wait_for(ConnectionRecovered, timeout=20)
        until(lambda: "tagged consumer" in tags())


@pytest.mark.parametrize(
    "option",
    [
        {"auto_ack": 1},
        {"exclusive": "yes"},
        {"arguments": "x"},
        {"arguments": {"x": {1, 2}}},
        {"arguments": {"x": "x" * 4000}},
        {"tag": ""},
        {"tag": 7},
    ],
    ids=lambda option: str(option)[:40],
)
def test_options_that_cannot_be_are_refused_before_anything_is_sent(settings, channel, option):
    name = next(iter(option))
    for consume in (lambda: channel.consume("work", print, **option), lambda: Consumer(settings, "q", print, **option)):
        with pytest.raises(ConfigurationError, match=name) as caught:
            consume()
        assert caught.value.field == name
    assert channel.is_open
    assert channel.declare(Queue("work"), passive=True).consumers == 0
