"""A channel from any thread: every call ends, what closed it is kept, and a value that cannot be sent costs nothing."""

import contextlib
import gc
import random
import threading
import time

import pytest

from labkit import (
    Binding,
    ChannelClosed,
    ChannelLost,
    ConfigurationError,
    ConsumerCancelled,
    DeadlineExceeded,
    Exchange,
    LeaseError,
    Message,
    MessageReturned,
    Queue,
    QueueState,
)
from labkit.wire import Proxy, Stall
from tests.broker.connections import SLACK, connected, io_thread_at_a_stop, own_virtual_host
from tests.unit.pool.still_pool import in_threads
from tests.view import until

pytestmark = pytest.mark.broker


@pytest.fixture(scope="module")
def settings(broker):
    """One virtual host for all tests here: making one takes longer than most of them."""
    with own_virtual_host(broker) as settings:
        yield settings


@pytest.fixture
def both(settings):
    with connected(settings) as both:
        yield both


@pytest.fixture
def connection(both):
    return both[0]


@pytest.fixture
def timeline(both):
    return both[1]


@pytest.fixture
def channel(connection):
    channel = connection.channel()
    channel.delete(Queue("work"))
    channel.declare(Queue("work"))
    return channel


def fetch(channel, queue="work"):
    return until(lambda: channel.get(queue), 10)


def test_what_is_published_is_got_and_acknowledged_once(channel):
    assert channel.get("work") is None
    channel.publish(Message("hello", headers={"a": [1, {"b": None}]}, message_id="m1"), routing_key="work")
    delivery = fetch(channel)
    assert (delivery.body, delivery.message.text, delivery.redelivered) == (b"hello", "hello", False)
    assert (delivery.message.message_id, delivery.message.headers["a"]) == ("m1", (1, {"b": None}))
    delivery.ack()
    with pytest.raises(LeaseError, match="settled before"):
        delivery.ack()
    assert channel.declare(Queue("work"), passive=True) == QueueState("work", 0, 0)


def test_a_delivery_given_back_comes_again_and_a_refused_one_does_not(channel):
    channel.publish("hello", routing_key="work")
    fetch(channel).nack()
    again = fetch(channel)
    assert again.redelivered
    again.reject()
    assert channel.get("work") is None
    assert repr(again) == "Delivery(5 bytes, reject)"


def test_a_purge_drops_what_waits_and_says_how_much_and_leaves_what_is_with_a_consumer(channel):
    for body in "abc":
        channel.publish(body, routing_key="work")
    taken = channel.get("work")
    assert channel.purge("work") == 2
    assert channel.purge("work") == 0
    taken.nack()
    until(lambda: channel.declare(Queue("work"), passive=True).messages == 1)
    with pytest.raises(ChannelLost, match="404"):
        channel.purge("nobody made this")


def test_purging_a_stream_is_refused_by_the_end_of_the_connection(settings):
    with connected(settings) as (connection, _), connection.channel() as channel:
        channel.declare(Queue("kept", arguments={"x-queue-type": "stream"}))
        with pytest.raises(ChannelLost, match="540"):
            channel.purge("kept")
        until(lambda: not connection.is_open)


def test_exchanges_and_bindings_are_made_and_deleted(channel):
    channel.declare(Exchange("logs", "headers"))
    channel.declare(Exchange("all", "fanout"))
    by_header = Binding(Exchange("logs"), Queue("work"), arguments={"x-match": "all", "level": "error"})
    channel.declare(by_header)
    channel.declare(Binding("all", Exchange("logs")))
    channel.publish(Message("x", headers={"level": "error"}), exchange="all", routing_key="")
    fetch(channel).ack()
    channel.delete(by_header)
    channel.publish(Message("x", headers={"level": "error"}), exchange="logs", routing_key="")
    assert channel.get("work") is None
    channel.delete(Binding("all", Exchange("logs")))
    channel.delete(Exchange("logs"))
    channel.delete(Queue("work"))
    with pytest.raises(ChannelLost, match="404"):
        channel.declare(Queue("work"), passive=True)


def test_the_broker_names_a_queue_without_a_name(channel):
    state = channel.declare(Queue(exclusive=True))
    assert state.name.startswith("amq.gen")


def test_an_answer_that_closes_the_channel_is_raised_by_every_later_call(connection, channel, timeline):
    with pytest.raises(ChannelLost, match="404") as caught:
        channel.get("missing")
    assert caught.value.reason.reply_code == 404
    assert channel.close_reason is caught.value.reason
    assert not channel.is_open
    calls = [
        lambda: channel.publish("x", routing_key="work"),
        lambda: channel.declare(Queue("other")),
        lambda: channel.qos(1),
        lambda: channel.consume("work", print),
        lambda: channel.cancel("tag"),
    ]
    for call in calls:
        with pytest.raises(ChannelLost) as again:
            call()
        assert again.value.reason.reply_code == 404
    channel.close()
    assert timeline.wait_for(ChannelClosed, timeout=5).reason.reply_code == 404
    with pytest.raises(ChannelLost, match="406"):
        connection.channel().declare(Queue("work", durable=False))
    assert connection.is_open


@pytest.mark.parametrize(
    "call",
    [
        lambda channel: channel.publish("x", routing_key="k" * 256),
        lambda channel: channel.publish("x", exchange=3, routing_key="k"),
        lambda channel: channel.publish(None, routing_key="k"),
        lambda channel: channel.publish(Message("x", headers={"n" * 256: 1}), routing_key="k"),
        lambda channel: channel.publish(Message("x", headers={"o": object()}), routing_key="k"),
        lambda channel: channel.declare(Queue("work", arguments={"x": object()})),
        lambda channel: channel.declare(Queue("q" * 256)),
        lambda channel: channel.declare("work"),
        lambda channel: channel.delete("work"),
        lambda channel: channel.declare(Binding("a", "b"), passive=True),
        lambda channel: channel.get(""),
        lambda channel: channel.qos(0),
        lambda channel: channel.qos(70000),
        lambda channel: channel.consume("work", None),
        lambda channel: channel.get("work", timeout=-1),
    ],
)
def test_a_value_that_cannot_be_sent_leaves_the_channel_usable(channel, call):
    with pytest.raises(ConfigurationError):
        call(channel)
    channel.publish("fine", routing_key="work")
    fetch(channel).ack()


def test_what_pika_itself_refuses_to_encode_leaves_the_channel_usable(channel):
    class Odd(str):
        """Looks like text to labkit; Pika cannot encode it."""

        def encode(self, *_):
            raise UnicodeEncodeError("utf-8", "x", 0, 1, "odd")

    message = Message("x")
    object.__setattr__(message, "type", Odd("t"))
    with pytest.raises(ConfigurationError, match="cannot be sent"):
        channel.publish(message, routing_key="work")
    channel.publish("fine", routing_key="work")
    assert fetch(channel).body == b"fine"


def test_a_mandatory_message_without_a_queue_is_returned_as_an_event(channel, timeline):
    channel.publish(Message("x", message_id="m1"), routing_key="nowhere", mandatory=True)
    returned = timeline.wait_for(MessageReturned, timeout=5)
    assert (returned.routing_key, returned.reply_code, returned.message_id) == ("nowhere", 312, "m1")


def test_a_handler_gets_every_message_in_order_off_the_io_thread(channel):
    bodies, names = [], set()

    def handler(delivery):
        names.add(threading.current_thread().name)
        bodies.append(delivery.body)
        delivery.ack()

    tag = channel.consume("work", handler)
    for number in range(200):
        channel.publish(str(number), routing_key="work")
    until(lambda: len(bodies) == 200)
    assert bodies == [str(number).encode() for number in range(200)]
    assert names == {"labkit-consumer"}
    channel.cancel(tag)
    channel.cancel(tag)
    channel.publish("later", routing_key="work")
    assert fetch(channel).body == b"later"


def test_no_more_than_the_prefetch_waits_here_and_a_cancel_gives_it_back(connection, channel):
    begun, go = threading.Semaphore(0), threading.Event()

    def handler(delivery):
        begun.release()
        go.wait(10)
        delivery.ack()

    channel.qos(3)
    for number in range(10):
        channel.publish(str(number), routing_key="work")
    tag = channel.consume("work", handler)
    assert begun.acquire(timeout=10)
    other = connection.channel()
    until(lambda: other.declare(Queue("work"), passive=True).messages == 7)
    channel.cancel(tag)
    until(lambda: other.declare(Queue("work"), passive=True).messages == 9)
    go.set()
    assert not begun.acquire(timeout=0.2)


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_what_a_cancel_gives_back_keeps_its_order(channel, kind):
    begun, go = threading.Semaphore(0), threading.Event()

    def handler(delivery):
        begun.release()
        go.wait(10)
        delivery.ack()

    queue = f"in order, {kind}"
    channel.declare(Queue(queue, arguments={"x-queue-type": kind}))
    for number in range(8):
        channel.publish(str(number), routing_key=queue)
    tag = channel.consume(queue, handler)
    assert begun.acquire(timeout=10)
    until(lambda: channel.declare(Queue(queue), passive=True).messages == 0)
    channel.cancel(tag)
    go.set()
    assert [until(lambda: channel.get(queue, auto_ack=True)).body for _ in range(7)] == [
        b"1234567"[n : n + 1] for n in range(7)
    ]


@pytest.mark.parametrize("error", [ValueError("bad message"), SystemExit(1)])
def test_a_handler_that_raises_has_its_message_put_back_once_and_then_refused(channel, error):
    seen = []

    def handler(delivery):
        seen.append(delivery.redelivered)
        raise error

    channel.consume("work", handler)
    channel.publish("poison", routing_key="work")
    until(lambda: seen == [False, True])
    until(lambda: channel.declare(Queue("work"), passive=True).messages == 0)
    assert channel.is_open
    assert seen == [False, True]


def test_an_ack_of_many_settles_what_came_before_it_and_no_more(channel):
    got = take(channel, 5)
    got[3].ack(multiple=True)
    for each in got[:3]:
        with pytest.raises(LeaseError, match="settled before"):
            each.ack()
        with pytest.raises(LeaseError, match="settled before"):
            each.nack()
    got[4].nack()
    again = channel.get("many")
    assert (again.body, again.redelivered) == (b"4", True)
    again.ack(multiple=True)
    assert channel.declare(Queue("many"), passive=True).messages == 0


@pytest.mark.parametrize("multiple", [1, "yes", None])
def test_whether_an_ack_is_for_many_is_said_by_a_truth_value(channel, multiple):
    (got,) = take(channel, 1)
    with pytest.raises(ConfigurationError, match="multiple"):
        got.ack(multiple)
    got.ack()


def take(channel, count):
    channel.declare(Queue("many"))
    for number in range(count):
        channel.publish(str(number), routing_key="many")
    got = [channel.get("many") for _ in range(count)]
    assert [each.body for each in got] == [str(number).encode() for number in range(count)]
    return got


def test_an_ack_from_another_thread_and_after_the_handler_counts(channel):
    kept = []
    channel.consume("work", kept.append)
    channel.publish("x", routing_key="work")
    until(lambda: kept)
    kept[0].ack()
    channel.close()


def test_an_ack_after_the_channel_is_gone_says_so_and_the_message_comes_again(connection, channel):
    channel.publish("x", routing_key="work")
    delivery = fetch(channel)
    channel.close()
    with pytest.raises(ChannelLost):
        delivery.ack()
    assert fetch(connection.channel()).redelivered


def test_an_ack_that_the_end_of_the_link_overtakes_is_lost_and_the_message_comes_again(settings, channel, caplog):
    channel.publish("x", routing_key="work")
    delivery = fetch(channel)
    core = channel._core

    def close_and_ack():
        core.link.connection.close()  # behind our back, and in the same turn: no callback has come yet
        delivery.ack()

    core.io.call(close_and_ack, timeout=5.0)
    until(lambda: not core.is_open)
    with connected(settings) as (other, _):
        assert fetch(other.channel()).redelivered
    assert [each for each in caplog.records if each.name.startswith("labkit") and each.levelname == "ERROR"] == []


def test_answers_do_not_wait_for_the_loop_and_are_sent_in_their_order(settings, channel):
    for number in range(4):
        channel.publish(str(number), routing_key="work")
    deliveries = [fetch(channel) for _ in range(4)]
    with io_thread_at_a_stop(channel):
        deliveries[1].ack(multiple=True)
        deliveries[2].nack(requeue=True)
        deliveries[3].reject(requeue=False)
        with pytest.raises(LeaseError, match="ack\\(multiple=True\\)"):
            deliveries[0].ack()
        assert channel._core.held() == ""
    again = fetch(channel)
    assert (again.body, again.redelivered) == (b"2", True)
    again.ack()
    channel.close()
    with connected(settings) as (other, _):
        assert other.channel().get("work") is None


def test_an_answer_waits_when_the_loop_is_far_behind_and_can_be_given_again(channel, monkeypatch):
    monkeypatch.setattr("labkit.connection.channel_outbox.LINE_MAX", 2)
    for number in range(4):
        channel.publish(str(number), routing_key="work")
    deliveries = [fetch(channel) for _ in range(4)]
    with io_thread_at_a_stop(channel):
        deliveries[0].ack()
        deliveries[1].ack()
        with pytest.raises(DeadlineExceeded, match=r"not handed over within 0\.1 s: 2 messages"):
            deliveries[2].ack(multiple=True, timeout=0.1)
        assert not deliveries[2].is_settled
        assert channel._core.held() == "2 unsettled messages"
    deliveries[2].ack()
    deliveries[3].ack()
    assert channel.declare(Queue("work"), passive=True).messages == 0
    assert channel.is_open


def test_an_ack_of_many_that_was_not_handed_over_leaves_all_of_them_unsettled(channel, monkeypatch):
    for number in range(3):
        channel.publish(str(number), routing_key="work")
    deliveries = [fetch(channel) for _ in range(3)]
    monkeypatch.setattr("labkit.connection.channel_outbox.LINE_MAX", 1)
    with io_thread_at_a_stop(channel):
        channel.publish("in the way", routing_key="work")
        with pytest.raises(DeadlineExceeded):
            deliveries[2].ack(multiple=True, timeout=0.1)
    assert channel._core.held() == "3 unsettled messages"
    deliveries[2].ack(multiple=True)
    assert channel._core.held() == ""


def test_answers_of_several_threads_while_the_broker_ends_the_consumer_harm_nobody(channel):
    crashes, errors = channel._core.io.crashes, []
    for number in range(15):
        queue = channel.declare(Queue(f"going-{number}", auto_delete=True)).name
        deliveries = []
        channel.qos(500)
        channel.consume(queue, deliveries.append)
        for _ in range(300):
            channel.publish("x", routing_key=queue)
        until(lambda: len(deliveries) >= 300)  # noqa: B023 - called at once

        def answer(mine):
            try:
                for each in mine:
                    each.ack()
            except Exception as exc:
                errors.append(exc)

        parts = [deliveries[start::3] for start in range(3)]
        threads = in_threads(3, lambda parts=parts: answer(parts.pop()))
        channel.delete(Queue(queue))
        for thread in threads:
            thread.join(30)
    assert errors == []
    assert channel.is_open
    assert channel._core.io.crashes == crashes
    until(lambda: channel._core.held() == "")  # the broker's word that the last consumer has ended may still come


def test_a_channel_that_is_forgotten_right_after_an_ack_sends_it(connection, channel):
    channel.publish("x", routing_key="work")
    other = connection.channel()
    core, delivery = other._core, fetch(other)
    with io_thread_at_a_stop(channel):
        del other
        gc.collect()
        delivery.ack()
        core.io.post(core.tick)  # after it; and before, which a tick of the loop's own may be
        core.io.tasks.appendleft(core.tick)
    until(lambda: core.is_closed)
    assert channel.declare(Queue("work"), passive=True).messages == 0


def test_threads_that_answer_one_by_one_and_many_at_once_never_answer_twice(settings, channel):
    rng, count, deliveries = random.Random(31), 400, []
    for number in range(count):
        channel.publish(str(number), routing_key="work")
    channel.qos(count)
    channel.consume("work", deliveries.append)
    until(lambda: len(deliveries) == count)
    order = list(range(count))
    rng.shuffle(order)

    def answer(mine):
        for number in mine:
            with contextlib.suppress(LeaseError):  # another thread's ack(multiple=True) was meant for it, too
                deliveries[number].ack(multiple=number % 7 == 0)

    for thread in in_threads(4, lambda: answer([order.pop() for _ in range(count // 4)])):
        thread.join(30)
    assert channel.declare(Queue("work"), passive=True).messages == 0
    assert channel.is_open
    channel.close()
    with connected(settings) as (other, _):
        assert other.channel().get("work") is None


def test_a_deleted_queue_ends_its_consumer_with_an_event(channel, timeline):
    tag = channel.consume("work", print)
    channel.delete(Queue("work"))
    cancelled = timeline.wait_for(ConsumerCancelled, timeout=5)
    assert (cancelled.queue, cancelled.consumer_tag) == ("work", tag)
    channel.cancel(tag)
    assert channel.is_open


def test_gets_from_many_threads_at_once_give_each_message_to_one(channel):
    for number in range(60):
        channel.publish(str(number), routing_key="work")
    until(lambda: channel.declare(Queue("work"), passive=True).messages == 60)
    bodies = []

    def take():
        for _ in range(10):
            delivery = channel.get("work")
            bodies.append(delivery.body)
            delivery.ack()

    threads = [threading.Thread(target=take) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(map(int, bodies)) == list(range(60))


def test_a_call_without_an_answer_in_time_costs_the_channel_and_not_the_connection(settings):
    with Proxy(settings) as proxy, connected(proxy.settings()) as (connection, _):
        channel = connection.channel()
        started = time.monotonic()
        with proxy.fault(Stall(), direction="downstream"):
            with pytest.raises(DeadlineExceeded, match="no answer within"):
                channel.declare(Queue("work"), timeout=0.3)
            assert time.monotonic() - started < 0.3 + SLACK
            until(lambda: not channel.is_open)
        with pytest.raises(ChannelLost):
            channel.get("work")
        assert connection.is_open
        assert connection.channel().declare(Queue("work")).name == "work"


def test_a_get_that_is_given_up_before_it_is_asked_costs_neither_the_channel_nor_a_message(settings):
    with Proxy(settings) as proxy, connected(proxy.settings(heartbeat=0)) as (connection, _):
        channel, first = connection.channel(), []
        channel.delete(Queue("work"))
        channel.declare(Queue("work"))
        for body in "12":
            channel.publish(body, routing_key="work")
        with proxy.fault(Stall(), direction="downstream"):
            asking = threading.Thread(target=lambda: first.append(channel.get("work")))
            asking.start()
            until(lambda: channel._core.deliveries)
            with pytest.raises(DeadlineExceeded, match="no answer within"):
                channel.get("work", timeout=0.3)
        asking.join(20)
        assert first[0].body == b"1"
        assert channel.get("work").body == b"2"


def test_a_publish_waits_while_nobody_reads_and_sends_nothing_after_its_deadline(settings):
    with Proxy(settings) as proxy, connected(proxy.settings(heartbeat=0)) as (connection, _):
        channel = connection.channel()
        channel.delete(Queue("work"))
        channel.declare(Queue("work"))
        sent = 0
        with proxy.fault(Stall(), direction="upstream"):
            started = time.monotonic()
            try:
                while sent < 100:
                    channel.publish(b"x" * 1_000_000, routing_key="work", timeout=0.5)
                    sent += 1
            except DeadlineExceeded:
                assert time.monotonic() - started < 0.5 + 2 * SLACK
            assert 8 <= sent < 60
        assert channel.is_open
        until(lambda: channel.declare(Queue("work"), passive=True).messages == sent)


def test_a_publish_or_ack_whose_deadline_passes_as_its_turn_comes_is_sent_or_late_and_never_both(channel):
    rng, sent = random.Random(20), 0
    for _ in range(600):
        with contextlib.suppress(DeadlineExceeded):
            channel.publish("x", routing_key="work", timeout=rng.uniform(0.00001, 0.0006))
            sent += 1
    channel.publish("last", routing_key="work")
    got = 0
    while (delivery := fetch(channel)).body != b"last":
        got += 1
        while not delivery.is_settled:
            with contextlib.suppress(DeadlineExceeded):
                delivery.ack(timeout=rng.uniform(0.00001, 0.0006))
    assert sent
    assert got == sent
    channel.declare(Queue("work"), passive=True)  # an ack that was sent twice has closed the channel by now


def test_more_channels_than_agreed_are_refused_and_the_connection_lives(settings):
    with connected(settings.replace(channel_max=2)) as (connection, _):
        held = [connection.channel(), connection.channel()]
        with pytest.raises(ChannelLost):
            connection.channel()
        held[0].close()
        assert connection.channel().is_open
        assert connection.status().channels == 2
