"""What a channel without confirms is handed: sent in order, bounded, and counted if it is not sent."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest

from labkit import (
    ChannelLost,
    ChannelPool,
    ConfigurationError,
    ConnectionPool,
    DeadlineExceeded,
    LabkitError,
    Message,
    Queue,
    WrongThread,
    brokers,
)
from labkit.connection.io_thread import SHARED
from labkit.connection.loop import failure
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
def connection(settings):
    with connected(settings) as (connection, _):
        yield connection


@pytest.fixture
def channel(connection):
    return fresh(connection)


def fresh(connection, queue="work"):
    """A channel with an empty queue."""
    channel = connection.channel()
    channel.delete(Queue(queue))
    channel.declare(Queue(queue))
    return channel


def count(settings, queue="work"):
    """How many messages are in the queue."""
    with connected(settings) as (connection, _):
        return connection.channel().declare(Queue(queue), passive=True).messages


def there_are(channel, messages, queue="work"):
    """Wait until so many messages are in the queue, which the broker may say a moment late, and no more."""
    until(lambda: channel.declare(Queue(queue), passive=True).messages >= messages)
    assert channel.declare(Queue(queue), passive=True).messages == messages


def taken(channel, messages, queue="work"):
    """All bodies that are in the queue, in order, when there are so many; None: however many there are."""
    if messages is not None:
        there_are(channel, messages, queue)
    bodies = []
    while (delivery := channel.get(queue, auto_ack=True)) is not None:
        bodies.append(delivery.body)
    return bodies


def lose_the_link_first(channel):
    """Have the link end before the I/O thread sends anything that it was handed."""
    core = channel._core
    core.io.tasks.appendleft(lambda: core.link.drop(failure("cut by the test", OSError())))


def test_a_publish_does_not_wait_for_the_loop_and_the_next_call_finds_it_sent(channel):
    with io_thread_at_a_stop(channel):
        began = time.monotonic()
        for number in range(100):
            channel.publish(str(number), routing_key="work")
        assert time.monotonic() - began < SLACK
    assert taken(channel, 100) == [str(number).encode() for number in range(100)]


def test_an_ack_between_two_publishes_is_between_them_on_the_wire_also_when_they_are_held_up(settings, monkeypatch):
    with Proxy(settings) as proxy, connected(proxy.settings()) as (connection, _):
        channel = fresh(connection)
        channel.publish("first", routing_key="work")
        delivery = until(lambda: channel.get("work"))
        mark = proxy.mark()
        with monkeypatch.context() as patch:
            patch.setattr("labkit.connection.link.UNSENT_MAX", 0)  # as if the socket took nothing
            channel.publish("a", routing_key="work")
            delivery.ack()
            channel.publish("b", routing_key="work")
            time.sleep(0.1)
            assert len(channel._core.outbox) == 3
        channel.declare(Queue("work"), passive=True)
        wanted = ("Basic.Publish", "Basic.Ack", "Queue.Declare")
        names = [each.name for each in proxy.conversation().since(mark).frames if each.name in wanted]
        assert names == ["Basic.Publish", "Basic.Ack", "Basic.Publish", "Queue.Declare"]


def test_no_more_than_a_thousand_wait_and_who_waited_in_vain_handed_nothing_over(channel):
    with io_thread_at_a_stop(channel):
        for _ in range(1000):
            channel.publish("x", routing_key="work", timeout=0)
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded, match=r"not handed over within 0\.2 s: 1000 messages"):
            channel.publish("late", routing_key="work", timeout=0.2)
        assert 0.2 <= time.monotonic() - began < SLACK
    channel.publish("last", routing_key="work")
    assert taken(channel, 1001)[-1] == b"last"


def test_no_more_than_eight_mebibytes_wait_those_that_pika_holds_included(settings):
    with Proxy(settings) as proxy, connected(proxy.settings(heartbeat=0)) as (connection, _):
        channel = fresh(connection)
        body, sent = bytes(1 << 20), 0
        with io_thread_at_a_stop(channel), contextlib.suppress(DeadlineExceeded):
            while sent < 20:
                channel.publish(body, routing_key="work", timeout=0)
                sent += 1
        assert sent == 8
        with proxy.fault(Stall(), direction="upstream"):
            with contextlib.suppress(DeadlineExceeded):
                while sent < 100:
                    channel.publish(body, routing_key="work", timeout=0.3)
                    sent += 1
            waiting = sum(each.size for each in list(channel._core.outbox._line)) + channel._core.link.unsent
            assert 7 << 20 < waiting < 10 << 20
        there_are(channel, sent)
        channel.purge("work")


def test_headers_count_as_bytes_that_wait(channel):
    sent, message = 0, Message("x", headers={"h": "x" * 100_000})
    with io_thread_at_a_stop(channel), contextlib.suppress(DeadlineExceeded):
        while sent < 200:
            channel.publish(message, routing_key="work", timeout=0)
            sent += 1
    assert sent == (8 << 20) // 100_000 + 1
    there_are(channel, sent)


def test_who_waits_for_room_goes_on_when_there_is_some(channel):
    sent = threading.Event()
    with io_thread_at_a_stop(channel):
        for _ in range(1000):
            channel.publish("x", routing_key="work")
        (thread,) = in_threads(1, lambda: (channel.publish("last", routing_key="work", timeout=30), sent.set()))
        assert not sent.wait(0.2)
    assert sent.wait(10)
    thread.join(10)
    there_are(channel, 1001)


@pytest.mark.own_broker
def test_while_the_broker_blocks_the_connection_a_publish_waits_and_nothing_is_sent_after_its_deadline():
    with brokers.own() as broker:
        if "alarm" not in broker.capabilities:
            pytest.skip("this broker cannot be alarmed")
        settings = broker.vhost("blocked")
        with connected(settings) as (connection, _), connected(settings) as (other, _):
            channel, sent = fresh(connection), 0
            with broker.alarm():
                while not connection.is_blocked:
                    channel.publish("x", routing_key="work", timeout=1)
                    sent += 1
                    time.sleep(0.01)
                began = time.monotonic()
                with pytest.raises(DeadlineExceeded, match="the broker blocks the connection"):
                    channel.publish("late", routing_key="work", timeout=0.2)
                assert time.monotonic() - began < 0.2 + SLACK
                threads = in_threads(3, lambda: channel.publish("waited", routing_key="work", timeout=60))
            for each in threads:
                each.join(30)
            channel.flush(timeout=10)
            assert taken(other.channel(), sent + 3).count(b"waited") == 3


def test_what_was_handed_over_and_not_sent_is_counted_and_the_next_call_says_so(settings, caplog):
    with connected(settings) as (connection, _):
        channel = fresh(connection)
        for _ in range(2):
            channel.publish("x", routing_key="work")
        deliveries = [until(lambda: channel.get("work")) for _ in range(2)]
        with io_thread_at_a_stop(channel):
            for _ in range(5):
                channel.publish("lost", routing_key="work")
            for each in deliveries:
                each.ack()
            lose_the_link_first(channel)
        with pytest.raises(ChannelLost, match="not sent: 5 messages, 2 acknowledgements") as caught:
            channel.get("work")
        assert (caught.value.unsent, caught.value.unsent_messages) == (7, 5)
        with pytest.raises(ChannelLost) as caught:
            channel.publish("later", routing_key="work")
        assert caught.value.unsent == 7
        channel.close()  # it was told
    until(lambda: count(settings) == 2)
    assert "not sent: 5 messages" in caplog.text


def test_a_channel_that_the_broker_closes_counts_what_came_after(connection, channel):
    with io_thread_at_a_stop(channel):
        channel.publish("x", exchange="nowhere", routing_key="work")
        channel.publish("y", routing_key="work")
    until(lambda: not channel.is_open)
    with pytest.raises(ChannelLost, match="404") as caught:
        channel.publish("z", routing_key="work")
    assert caught.value.unsent == 0  # both were sent, and the broker dropped the second
    assert connection.is_open


@pytest.mark.parametrize("seed", range(4))
def test_over_cut_links_no_more_arrives_than_was_handed_over_and_sent(settings, seed):
    rng = random.Random(seed)
    queue, names = f"cut-{seed}", "abcd"[: rng.choice([1, 4])]
    handed, errors = dict.fromkeys(names, 0), []
    with Proxy(settings) as proxy, connected(proxy.settings()) as (connection, _):
        channel, left = fresh(connection, queue), list(names)

        def publish(name):
            rng = random.Random(f"{seed}{name}")
            try:
                while True:
                    channel.publish(f"{name} {handed[name]} " + " " * rng.choice([0, 10, 5000]), routing_key=queue)
                    handed[name] += 1
            except ChannelLost as exc:
                errors.append(exc)

        fuse = threading.Timer(rng.uniform(0.0, 0.2), proxy.cut, kwargs={"reset": rng.random() < 0.5})
        fuse.start()
        for thread in in_threads(len(names), lambda: publish(left.pop())):
            thread.join(60)
        fuse.join()
        with pytest.raises(ChannelLost) as lost:
            channel.flush()
        assert len(errors) == len(names)
        for each in errors:  # each has the whole count
            assert each.unsent == each.unsent_messages == lost.value.unsent
        channel.close()
    with connected(settings) as (connection, _):
        arrived = [each.decode().split() for each in taken(connection.channel(), None, queue)]
    for name in names:
        numbers = [int(number) for who, number in arrived if who == name]
        assert numbers == list(range(len(numbers)))
    assert len(arrived) <= sum(handed.values()) - lost.value.unsent


def test_close_sends_what_is_left_and_the_end_of_a_block_does_too(connection, channel):
    with io_thread_at_a_stop(channel):
        for _ in range(100):
            channel.publish("x", routing_key="work")
    channel.close()
    with connection.channel() as other:
        for _ in range(100):
            other.publish("x", routing_key="work")
    there_are(connection.channel(), 200)


def test_close_says_within_its_time_what_could_not_be_sent_and_only_once(settings, monkeypatch):
    with connected(settings) as (connection, _):
        channel = fresh(connection)
        monkeypatch.setattr("labkit.connection.link.UNSENT_MAX", 0)  # as if the socket took nothing
        for _ in range(3):
            channel.publish("lost", routing_key="work")
        began = time.monotonic()
        with pytest.raises(ChannelLost, match="closed by this side; not sent: 3 messages") as caught:
            channel.close(timeout=0.2)
        assert time.monotonic() - began < 0.2 + SLACK
        assert (caught.value.unsent, caught.value.unsent_messages) == (3, 3)
        channel.close()
    assert count(settings) == 0


def test_close_says_what_was_lost_before_it_if_no_call_has(connection, channel):
    with io_thread_at_a_stop(channel):
        channel.publish("lost", routing_key="work")
        lose_the_link_first(channel)
    until(lambda: not channel.is_open)
    with pytest.raises(ChannelLost, match="cut by the test; not sent: 1 message"):
        channel.close()
    channel.close()


def test_lost_acknowledgements_are_no_error_of_close(connection, channel):
    channel.publish("x", routing_key="work")
    delivery = until(lambda: channel.get("work"))
    with io_thread_at_a_stop(channel):
        delivery.ack()
        lose_the_link_first(channel)
    until(lambda: not channel.is_open)
    channel.close()
    assert channel._core.lost().unsent == 1


def lose_one_in_a_block(connection, error=None):
    with fresh(connection) as channel:
        with io_thread_at_a_stop(channel):
            channel.publish("lost", routing_key="work")
            lose_the_link_first(channel)
        until(lambda: not channel.is_open)
        if error is not None:
            raise error


def test_the_end_of_a_block_raises_what_is_lost_but_never_over_the_error_of_the_block(settings):
    with connected(settings) as (connection, _), pytest.raises(KeyError):
        lose_one_in_a_block(connection, KeyError())
    with connected(settings) as (connection, _), pytest.raises(ChannelLost, match="not sent: 1 message"):
        lose_one_in_a_block(connection)


def test_flush_returns_when_the_socket_has_all_and_costs_nothing_when_it_is_late(settings):
    with Proxy(settings) as proxy, connected(proxy.settings(heartbeat=0)) as (connection, _):
        channel = fresh(connection)
        channel.flush(timeout=10)
        for _ in range(7):
            channel.publish(bytes(1 << 20), routing_key="work")
        channel.flush(timeout=10)
        assert channel._core.link.unsent == 0
        with proxy.fault(Stall(), direction="upstream"):
            with contextlib.suppress(DeadlineExceeded):
                while True:
                    channel.publish(bytes(1 << 20), routing_key="work", timeout=0.1)
            with pytest.raises(DeadlineExceeded):
                channel.flush(timeout=0.2)
        assert channel.is_open
        channel.flush(timeout=20)
        assert channel._core.link.unsent == 0
        channel.purge("work")


def test_threads_that_share_a_channel_each_keep_their_order(channel):
    names, each_sends = list("abcdefgh"), 500

    def publish(name):
        for number in range(each_sends):
            channel.publish(f"{name}{number}", routing_key="work")

    for thread in in_threads(8, lambda: publish(names.pop())):
        thread.join(60)
    bodies = [each.decode() for each in taken(channel, 8 * each_sends)]
    for name in "abcdefgh":
        assert [each for each in bodies if each[0] == name] == [f"{name}{number}" for number in range(each_sends)]


@pytest.mark.parametrize("seed", range(3))
def test_whatever_threads_do_at_the_same_time_all_that_was_handed_over_arrives_in_order(settings, seed):
    names, errors = list("abcd"), []
    with connected(settings) as (connection, _):
        channel = fresh(connection)
        handed = dict.fromkeys(names, 0)

        def work(name):
            rng, unsettled = random.Random(f"{seed}{name}"), []
            channel.declare(Queue(name))
            channel.purge(name)
            try:
                for _ in range(400):
                    act = rng.random()
                    if act < 0.6:
                        with contextlib.suppress(DeadlineExceeded):
                            body = Message(f"{handed[name]} " + "x" * rng.choice([1, 100, 20_000]), headers={"n": name})
                            channel.publish(body, routing_key=name, timeout=rng.choice([0, 0.0001, 10]))
                            handed[name] += 1
                    elif act < 0.7:
                        channel.publish("passing", routing_key="work")
                    elif act < 0.85:
                        if (delivery := channel.get("work")) is not None:
                            unsettled.append(delivery)
                    elif act < 0.95 and unsettled:
                        unsettled.pop(rng.randrange(len(unsettled))).ack()
                    elif act < 0.97:
                        channel.flush(timeout=10)
                    else:
                        channel.declare(Queue(name), passive=True)
                for each in unsettled:
                    each.ack()
            except Exception as exc:
                errors.append(exc)

        for thread in in_threads(4, lambda: work(names.pop())):
            thread.join(60)
        assert errors == []
        for name, sent in handed.items():
            assert [int(each.split()[0]) for each in taken(channel, sent, name)] == list(range(sent))
        taken(channel, None)
        channel.close()
    assert count(settings) == 0  # every ack has arrived, and no more


def test_on_the_io_thread_a_publish_is_handed_over_and_never_waits(channel):
    def publish_and_fill():
        for _ in range(1000):
            channel.publish("x", routing_key="work")
        with pytest.raises(WrongThread):
            channel.publish("late", routing_key="work")

    SHARED.call(publish_and_fill, timeout=10)
    there_are(channel, 1000)


def test_an_interrupted_wait_for_room_hands_nothing_over_and_costs_nothing(channel):
    me = threading.main_thread().ident
    with io_thread_at_a_stop(channel):
        for _ in range(1000):
            channel.publish("x", routing_key="work")
        timer = threading.Timer(0.2, signal.pthread_kill, (me, signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            channel.publish("late", routing_key="work", timeout=20)
        timer.join(5)
    there_are(channel, 1000)
    assert channel._core.is_clean


def test_what_pika_refuses_when_its_turn_comes_is_counted_and_close_says_so(connection, channel, caplog):
    class Fickle(str):
        """A text that can be encoded, but not on the I/O thread."""

        def encode(self, *arguments):
            if SHARED.is_current:
                raise ValueError("odd")
            return super().encode(*arguments)

    channel.publish("odd", routing_key=Fickle("fickle"))
    channel.publish("fine", routing_key="work")
    there_are(channel, 1)
    with pytest.raises(ChannelLost) as caught:
        channel.close()
    assert caught.value.unsent_messages == 1
    assert "cannot be sent" in caplog.text


def test_what_cannot_be_sent_is_refused_before_it_is_handed_over(channel):
    with io_thread_at_a_stop(channel):
        for call in (
            lambda: channel.publish("x", routing_key="k" * 256),
            lambda: channel.publish(Message("x", headers={"h": "x" * 200_000}), routing_key="work"),
            lambda: channel.publish("x", routing_key="work", mandatory=1),
            lambda: channel.publish("x", routing_key="work", timeout=-1),
        ):
            with pytest.raises(ConfigurationError):
                call()
        assert len(channel._core.outbox) == 0


def test_what_a_lease_handed_over_is_sent_before_the_channel_is_lent_again(settings):
    with connected(settings) as (connection, _), ChannelPool(settings, max_size=1) as pool:
        fresh(connection)
        with pool.channel() as first:
            pass
        for _ in range(3):
            with pool.channel() as channel, io_thread_at_a_stop(channel):
                for _ in range(100):
                    channel.publish("x", routing_key="work")
                lease_ends = channel
        with pool.channel() as channel:
            assert channel is lease_ends is first
            there_are(channel, 300)
        assert pool.get_stats().leftovers == 0


def test_what_a_lease_handed_over_and_could_not_be_sent_is_logged_and_the_next_borrower_has_another_channel(
    settings, monkeypatch, caplog
):
    monkeypatch.setattr("labkit.pool.keeper.CLEAN_TIMEOUT", 0.4)
    with connected(settings) as (connection, _), ChannelPool(settings, max_size=1) as pool:
        fresh(connection)
        with monkeypatch.context() as patch:
            with pool.channel() as channel:
                patch.setattr("labkit.connection.link.UNSENT_MAX", 0)  # as if the socket took nothing
                for _ in range(3):
                    channel.publish("lost", routing_key="work")
            until(lambda: not channel.is_open)
        assert "not sent: 3 messages" in caplog.text
        with pool.channel() as other:
            assert other is not channel
            there_are(other, 0)


def test_what_execute_published_is_sent_though_nobody_waited_for_it(settings):
    with connected(settings) as (connection, _), ConnectionPool(settings, max_size=1) as pool:
        channel = fresh(connection)

        def publish(channel):
            for number in range(500):
                channel.publish(str(number), routing_key="work")

        for _ in range(3):
            pool.execute(publish)
        pool.execute(lambda channel: None)
        there_are(channel, 1500)
        assert pool.get_stats().leftovers == 0


def test_the_end_of_a_connection_sends_what_its_channels_were_handed(settings, monkeypatch):
    with connected(settings) as (connection, _):
        channel = fresh(connection)
        with monkeypatch.context() as patch:
            patch.setattr("labkit.connection.link.UNSENT_MAX", 0)  # as if the socket took nothing
            for _ in range(3):
                channel.publish("x", routing_key="work")
            (closing,) = in_threads(1, lambda: connection.close(timeout=10))
            time.sleep(0.2)
        closing.join(10)
        channel.close()
    assert count(settings) == 3


FORGETFUL = """
import sys
from labkit import BrokerSettings, Connection
connection = Connection(BrokerSettings.from_url(sys.stdin.read())).open()
channel = connection.channel()
for _ in range(1000):
    channel.publish("x", routing_key="work")
"""


def test_a_program_that_ends_without_a_close_has_sent_what_it_handed_over_and_says_nothing(settings, channel):
    told = subprocess.run(
        [sys.executable, "-c", FORGETFUL],
        input=settings.to_url(mask=False),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert (told.stdout, told.stderr) == ("", "")
    there_are(channel, 1000)


def test_an_answer_that_would_wait_on_the_io_thread_can_be_given_later(channel):
    channel.publish("x", routing_key="work")
    delivery = until(lambda: channel.get("work"))

    def fill_and_ack():
        for _ in range(1000):
            channel.publish("x", routing_key="work")
        with pytest.raises(WrongThread):
            delivery.ack()

    SHARED.call(fill_and_ack, timeout=10)
    delivery.ack()
    there_are(channel, 1000)
    channel.close()


def test_a_channel_that_is_forgotten_sends_what_it_was_handed_first(connection, channel):
    other = connection.channel()
    core = other._core
    with io_thread_at_a_stop(channel):
        for _ in range(10):
            other.publish("x", routing_key="work")
        del other
        core.io.tasks.appendleft(core.tick)
    until(lambda: core.is_closed)
    there_are(channel, 10)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_what_was_handed_over_before_a_fork_is_sent_once_by_the_parent(channel):
    with io_thread_at_a_stop(channel):
        for _ in range(5):
            channel.publish("x", routing_key="work")
        if (pid := os.fork()) == 0:
            try:
                channel.publish("child", routing_key="work")
            except ChannelLost as exc:
                os._exit(exc.unsent)
            except LabkitError:
                os._exit(100)
            finally:
                os._exit(101)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    there_are(channel, 5)


def test_the_loop_looks_at_the_others_before_all_of_one_channel_is_sent(channel):
    left = []
    with io_thread_at_a_stop(channel):
        for _ in range(1000):
            channel.publish("x", routing_key="work")
        channel._core.io.post(lambda: left.append(len(channel._core.outbox)))
    there_are(channel, 1000)
    assert 900 <= left[0] <= 901  # the call that asks how many are there may wait behind them by then


def test_however_often_the_loop_was_asked_to_look_it_sends_one_slice_a_turn(channel):
    core, left = channel._core, []

    def ask_often():
        for _ in range(20):
            core.tick()
            channel.publish("x", routing_key="work")
        for _ in range(900):
            channel.publish("x", routing_key="work")
        core.io.post(lambda: left.append(len(core.outbox)))

    core.io.call(ask_often, timeout=10)
    there_are(channel, 920)
    assert left[0] >= 700
