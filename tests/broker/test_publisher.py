"""A publisher says of each message, once, what became of it; nothing it says is confirmed is lost."""

import gc
import random
import threading
import time

import pytest

from labkit import (
    BrokerSettings,
    ChannelClosed,
    ConfigurationError,
    Connection,
    ConnectionRecovered,
    DeadlineExceeded,
    Exchange,
    LabkitError,
    Message,
    MessageRefused,
    MessageReturned,
    NotConnected,
    Outcome,
    OutcomeUnknown,
    Publisher,
    PublishRejected,
    Queue,
    State,
    Unroutable,
)
from labkit.connector.private_pika import JOIN_MAX
from labkit.wire import LimitData, Refuse, ResetPeer, Stall
from tests.broker.connections import SLACK, descriptors, our_threads, own_virtual_host, roles
from tests.broker.publishing import check_nothing_is_lost, drained, publishing
from tests.view import until

pytestmark = pytest.mark.broker


@pytest.fixture(scope="module")
def settings(broker):
    """One virtual host for all tests here."""
    with own_virtual_host(broker) as settings:
        yield settings


def outcomes(confirmations):
    return [each.outcome for each in confirmations]


# What became of it


def test_a_confirmed_message_is_in_its_queue_once_with_an_id(settings):
    with publishing(settings) as (publisher, _, _):
        confirmation = publisher.publish("hello", routing_key="work")
        assert confirmation.result() is None
        assert (confirmation.done, confirmation.outcome) == (True, Outcome.CONFIRMED)
        assert publisher.in_flight == 0
    assert drained(settings) == [(confirmation.message_id, b"hello")]


def test_settings_are_enough_and_what_it_opened_it_closes(settings):
    publisher = Publisher(settings)
    with publisher:
        publisher.publish("x", routing_key="no such queue", mandatory=False).result()
        assert publisher.connection.is_open
    assert publisher.connection.state is State.CLOSED
    publisher.close()
    with publisher:  # and again
        publisher.publish("x", routing_key="no such queue", mandatory=False).result()


def test_a_connection_that_was_given_is_opened_and_left_open(settings):
    connection = Connection(settings, recovery=True)
    with Publisher(connection):
        assert connection.status().channels == 1
    assert connection.is_open
    until(lambda: connection.status().channels == 0)
    connection.close()


def test_opening_it_again_in_vain_costs_nothing_that_is_on_its_way(settings):
    with publishing(settings) as (publisher, proxy, _):
        with proxy.fault(Stall(), direction="downstream"):
            sent = publisher.publish("x", routing_key="work")
            until(lambda: publisher.in_flight == 1)
            with proxy.fault(Refuse()):
                proxy.cut()
                until(lambda: not publisher.connection.is_open)
                with pytest.raises(DeadlineExceeded):
                    publisher.open(deadline=0.2)
                assert not publisher.is_closed
        sent.result()
        publisher.open()
    assert publisher.is_closed
    assert {body for _, body in drained(settings)} == {b"x"}


def test_a_connection_without_recovery_is_refused():
    with pytest.raises(ConfigurationError, match="recovery=True"):
        Publisher(Connection(BrokerSettings()))
    with pytest.raises(ConfigurationError, match="a str is not allowed"):
        Publisher("amqp://localhost")


@pytest.mark.parametrize(("stamp", "own_id"), [(True, None), (True, "the same"), (False, None)])
def test_each_returned_message_is_told_from_its_neighbours(settings, stamp, own_id):
    with publishing(settings, stamp=stamp) as (publisher, _, timeline):
        keys = ["work" if number % 3 else "nowhere" for number in range(60)]
        messages = [Message(str(number % 5), message_id=own_id) for number in range(60)]
        sent = [publisher.publish(each, routing_key=key) for each, key in zip(messages, keys, strict=True)]
        publisher.flush(timeout=20)
        expected = [Outcome.CONFIRMED if key == "work" else Outcome.RETURNED for key in keys]
        assert outcomes(sent) == expected
        with pytest.raises(Unroutable, match="nowhere") as caught:
            sent[0].result()
        assert (caught.value.routing_key, caught.value.reply_code) == ("nowhere", 312)
        timeline.wait_for(MessageReturned, timeout=5, count=20)
    assert len(drained(settings)) == 40


@pytest.mark.parametrize("stamp", [True, False])
def test_a_message_that_is_passed_on_with_its_headers_is_told_when_it_comes_back(settings, stamp):
    with publishing(settings, stamp=stamp) as (publisher, _, _):
        publisher.publish("another", routing_key="work").result()
        stale = [Message("x", headers={"x-labkit-publish-id": number}) for number in (1, 2, 99)]
        sent = [publisher.publish(each, routing_key="nowhere") for each in stale]
        sent.append(publisher.publish(Message("x", message_id="mine"), routing_key="work"))
        publisher.flush(timeout=20)
        assert outcomes(sent) == [Outcome.RETURNED] * 3 + [Outcome.CONFIRMED]
    drained(settings)


def test_without_a_stamp_a_message_is_sent_as_it_is(settings):
    with publishing(settings, stamp=False) as (publisher, _, _):
        publisher.publish(Message("x", headers={"mine": 1}), routing_key="work").result()
        with publisher.connection.channel() as channel:
            delivery = channel.get("work")
            delivery.ack()
    assert (dict(delivery.message.headers), delivery.message.message_id) == ({"mine": 1}, None)


@pytest.mark.parametrize(
    ("own_id", "mandatory", "headers"),
    [("mine", True, {"a", "x-labkit-publish-id"}), ("mine", False, {"a"}), (None, True, {"a"}), (None, False, {"a"})],
)
def test_a_message_keeps_its_own_id_and_gets_a_header_only_if_needed(settings, own_id, mandatory, headers):
    with publishing(settings) as (publisher, _, _):
        message = Message("x", message_id=own_id, headers={"a": 1})
        sent = publisher.publish(message, routing_key="work", mandatory=mandatory)
        sent.result()
        with publisher.connection.channel() as channel:
            delivery = channel.get("work")
            delivery.ack()
    assert sent.message_id == delivery.message.message_id
    assert sent.message_id == own_id or own_id is None
    assert set(delivery.message.headers) == headers


def test_a_missing_exchange_is_said_with_the_brokers_words_and_harms_no_other(settings):
    with publishing(settings) as (publisher, _, timeline):
        sent = []
        for number in range(60):
            sent.append(publisher.publish(str(number), routing_key="work"))
            if number % 20 == 10:
                sent.append(publisher.publish("x", exchange="not there", routing_key="work"))
        publisher.flush(timeout=30)
        failed = [each for each in sent if each.outcome is not Outcome.CONFIRMED]
        assert len(failed) == 3
        for each in failed:
            assert each.exchange == "not there"
            with pytest.raises(Unroutable, match="no exchange 'not there'") as caught:
                each.result()
            assert caught.value.reply_code == 404
        assert publisher.connection.generation == 1
        timeline.wait_for(ChannelClosed, timeout=5)
    taken = drained(settings)
    assert {body for _, body in taken} == {str(number).encode() for number in range(60)}


def test_the_one_message_that_the_broker_will_not_take_is_found_among_many(settings):
    """It closes the channel, and its words (406) do not say over which message."""
    with publishing(settings) as (publisher, _, _):
        sent = [publisher.publish(str(number), routing_key="work") for number in range(15)]
        # Its answer is to come to a consumer of this channel, and there is none.
        refused = publisher.publish(Message("x", reply_to="amq.rabbitmq.reply-to"), routing_key="work")
        sent += [publisher.publish(str(number), routing_key="work") for number in range(15, 30)]
        publisher.flush(timeout=30)
        with pytest.raises(MessageRefused, match="406") as caught:
            refused.result()
        assert caught.value.reason.reply_code == 406
        assert set(outcomes(sent)) == {Outcome.CONFIRMED}
    assert {body for _, body in drained(settings)} == {str(number).encode() for number in range(30)}


def test_a_message_that_may_not_be_sent_is_refused_for_good(settings):
    with publishing(settings) as (publisher, _, _):
        with publisher.connection.channel() as channel:
            channel.declare(Exchange("inner", internal=True))
        with pytest.raises(MessageRefused, match="403"):
            publisher.publish("x", exchange="inner", routing_key="work").result()
        publisher.publish("x", routing_key="work").result()
    drained(settings)


def test_a_refused_message_goes_again_until_its_deadline(settings):
    full = {"x-max-length": 1, "x-overflow": "reject-publish"}
    with publishing(settings, queue="small", arguments=full) as (publisher, _, _):
        publisher.publish("the first", routing_key="small").result()
        started = time.monotonic()
        # Long enough for pauses that are long beside an answer: what is on its way at the deadline is OutcomeUnknown.
        late = publisher.publish("no room for this one", routing_key="small", deadline=3.0)
        with pytest.raises(PublishRejected, match="nack"):
            late.result()
        assert 1.5 < time.monotonic() - started < 3.0 + SLACK
        waits = publisher.publish("there will be room", routing_key="small", deadline=30)
        assert not waits.wait(0.3)
        with publisher.connection.channel() as channel:
            channel.get("small").ack()
        waits.result()
        assert publisher.in_flight == 0
    assert [body for _, body in drained(settings, "small")] == [b"there will be room"]


# Under faults


def cut_at_random_bytes(publisher, proxy, timeline, *, messages, cuts, seed):
    """Publish *messages* numbered messages while the link is cut *cuts* times, anywhere in a frame."""
    rng = random.Random(seed)
    sent = []
    for number in range(cuts):
        mark = timeline.mark()
        fault = rng.choice([ResetPeer(), LimitData(0)])
        direction = rng.choice(["upstream", "downstream"])
        most = 100 * messages // cuts if direction == "upstream" else 200
        with proxy.fault(fault, direction=direction, after_bytes=rng.randrange(most)) as active:
            part = range(number * messages // cuts, (number + 1) * messages // cuts)
            sender = threading.Thread(
                target=lambda part=part: sent.extend(
                    publisher.publish_many([str(each) for each in part], routing_key="work", deadline=60)
                )
            )
            sender.start()
            while sender.is_alive() and not active.wait(0.05):
                pass
            if not active.wait(0.3):
                proxy.cut()  # fewer bytes went this way than it was to wait for
        timeline.wait_for(ConnectionRecovered, timeout=30, since=mark)
        sender.join(60)
    publisher.flush(timeout=60)
    return sent


def test_no_confirmed_message_is_lost_over_twenty_cuts_at_random_bytes(settings):
    """G1, class size."""
    with publishing(settings, max_in_flight=50) as (publisher, proxy, timeline):
        sent = cut_at_random_bytes(publisher, proxy, timeline, messages=2000, cuts=20, seed=1)
        replayed = publisher.replayed
    assert len(sent) == 2000
    assert set(outcomes(sent)) == {Outcome.CONFIRMED}
    taken = drained(settings)
    check_nothing_is_lost(sent, taken, replayed)
    assert {body for _, body in taken} == {str(number).encode() for number in range(2000)}


def test_what_was_not_confirmed_is_sent_again_with_the_same_id(settings):
    with publishing(settings) as (publisher, proxy, timeline):
        with proxy.fault(Stall(), direction="downstream"):  # the broker gets it, and nobody hears its confirm
            sent = [publisher.publish(str(number), routing_key="work") for number in range(20)]
            until(lambda: waiting(settings) == 20)
            proxy.cut()
        assert timeline.wait_for(ConnectionRecovered, timeout=20).replayed == 20
        publisher.flush(timeout=20)
        assert set(outcomes(sent)) == {Outcome.CONFIRMED}
        assert publisher.replayed == 20
    assert publisher.replayed == 20  # closing forgets nothing
    taken = drained(settings)
    assert check_nothing_is_lost(sent, taken, 20) == 20
    assert sorted({message_id for message_id, _ in taken}) == sorted(each.message_id for each in sent)


def waiting(settings, queue="work"):
    with Connection(settings) as connection, connection.channel() as channel:
        return channel.declare(Queue(queue), passive=True).messages


def test_publish_waits_for_a_lost_link_to_come_back(settings):
    with publishing(settings) as (publisher, proxy, _):
        with proxy.fault(Refuse()):
            proxy.cut()
            publisher.connection.wait_for(State.WAITING, timeout=5)
            started = time.monotonic()
            with pytest.raises(DeadlineExceeded, match="the connection is"):
                publisher.publish("never sent", routing_key="work", deadline=0.3)
            assert time.monotonic() - started < 0.3 + SLACK
            sent = []
            sender = threading.Thread(target=lambda: sent.append(publisher.publish("later", routing_key="work")))
            sender.start()
        sender.join(20)
        sent[0].result()
    assert [body for _, body in drained(settings)] == [b"later"]


def test_on_a_stalled_link_every_wait_ends_and_the_outcome_is_unknown(settings):
    with publishing(settings, max_in_flight=3, heartbeat=60) as (publisher, proxy, _), proxy.fault(Stall()):
        started = time.monotonic()
        sent = [publisher.publish("x", routing_key="work", deadline=1.5) for _ in range(3)]
        with pytest.raises(DeadlineExceeded, match="3 messages"):
            publisher.publish("no room", routing_key="work", deadline=0.2)
        assert time.monotonic() - started < 0.2 + SLACK
        with pytest.raises(DeadlineExceeded, match="3 of 3"):
            publisher.flush(timeout=0.1)
        for each in sent:
            with pytest.raises(OutcomeUnknown) as caught:
                each.result()
            assert caught.value.message_id == each.message_id
        assert time.monotonic() - started < 1.5 + SLACK
        assert publisher.in_flight == 0
        last = publisher.publish("x", routing_key="work")
        started = time.monotonic()
        publisher.close(timeout=0.5)
        assert time.monotonic() - started < 0.5 + SLACK
        assert last.outcome is Outcome.UNKNOWN
    drained(settings)


def test_opening_and_closing_end_in_time_on_a_stalled_link(settings):
    with publishing(settings, heartbeat=60) as (publisher, proxy, _):
        own = Publisher(proxy.settings(heartbeat=60)).open()
        with proxy.fault(Stall()):
            own.publish("x", routing_key="work")
            for call, limit in (
                (lambda: Publisher(publisher.connection).open(deadline=0.5), 0.5),
                (lambda: Publisher(proxy.settings()).open(deadline=0.5), 0.5),
            ):
                started = time.monotonic()
                with pytest.raises(LabkitError):
                    call()
                assert time.monotonic() - started < limit + SLACK
            started = time.monotonic()
            own.close(timeout=1)
            assert time.monotonic() - started < 1 + SLACK
        assert len(roles(publisher.connection)) == 1
    drained(settings)


def test_close_waits_for_the_answers(settings):
    with publishing(settings) as (publisher, _, _):
        sent = publisher.publish_many([b"x"] * 300, routing_key="work")
        publisher.close(timeout=30)
        assert set(outcomes(sent)) == {Outcome.CONFIRMED}
        with pytest.raises(NotConnected, match="open"):
            publisher.publish("x", routing_key="work")
    assert len(drained(settings)) == 300


def test_a_connection_that_is_closed_settles_what_was_on_its_way(settings):
    with publishing(settings, heartbeat=60) as (publisher, proxy, _), proxy.fault(Stall()):
        sent = publisher.publish("x", routing_key="work")
        publisher.connection.close(timeout=0.3)
        with pytest.raises(OutcomeUnknown, match="closed by this side"):
            sent.result(timeout=5)
        with pytest.raises(NotConnected):
            publisher.publish("x", routing_key="work")
    drained(settings)


def test_publish_many_has_a_future_for_each_even_if_time_runs_out(settings):
    with publishing(settings, max_in_flight=5, heartbeat=60) as (publisher, proxy, _), proxy.fault(Stall()):
        sent = publisher.publish_many(["x"] * 8, routing_key="work", deadline=0.5)
        until(lambda: all(each.done for each in sent), 5)
        assert outcomes(sent)[:5] == [Outcome.UNKNOWN] * 5
        assert len(sent) == 8
        publisher.close(timeout=0.2)
    drained(settings)


def test_messages_that_wait_together_go_to_the_socket_in_large_pieces(settings):
    with publishing(settings, max_in_flight=1000) as (publisher, _, _):
        publisher.publish("first", routing_key="work").result()
        link = publisher.connection._life.link.connection
        written = []
        write = link._write_pieces
        link._write_pieces = lambda: (written.append(link._size), write())
        publisher.publish_many(["x" * 100] * 500, routing_key="work")
        publisher.flush(timeout=30)
        del link._write_pieces
    assert sum(written) > 500 * 100
    assert len(written) < 500  # a message has three frames
    assert max(written) <= JOIN_MAX + 4096


def test_eight_threads_share_a_publisher_and_each_keeps_its_order(settings):
    with publishing(settings, max_in_flight=20) as (publisher, _, _):
        sent = []

        def work(name):
            sent.extend(publisher.publish(f"{name} {each}", routing_key="work", deadline=60) for each in range(50))

        threads = [threading.Thread(target=work, args=(name,)) for name in "abcdefgh"]
        for each in threads:
            each.start()
        most = 0
        while any(each.is_alive() for each in threads):
            most = max(most, publisher.in_flight)
            threading.Event().wait(0.001)
        publisher.flush(timeout=60)
        assert set(outcomes(sent)) == {Outcome.CONFIRMED}
        assert 0 < most <= 20
    bodies = [body.decode().split() for _, body in drained(settings)]
    for name in "abcdefgh":
        assert [number for each, number in bodies if each == name] == [str(number) for number in range(50)]


def test_publishers_leave_nothing_behind(settings):
    with Connection(settings, recovery=True) as connection:
        Publisher(connection).open().close()
        before, threads = descriptors(), our_threads()
        for _ in range(10):
            with Publisher(connection) as publisher:
                publisher.publish("x", routing_key="nowhere", mandatory=False).result()
        assert connection.status().channels == 0
        assert roles(connection) == []
        assert (descriptors(), our_threads()) == (before, threads)


def test_a_forgotten_publisher_sends_to_the_end_and_gives_its_channel_back(settings):
    with publishing(settings) as (publisher, _, _):
        connection = publisher.connection
        sent = Publisher(connection).open().publish("x", routing_key="work")
        gc.collect()
        sent.result()
        gc.collect()
        until(lambda: connection.status().channels == 1)
        assert len(roles(connection)) == 1
    assert len(drained(settings)) == 1
