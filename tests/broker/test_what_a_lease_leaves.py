"""What one borrower leaves open reaches no other: it has ended, and its messages are in their queues, before that."""

import logging
import os
import threading
import time

import pytest

from labkit import ChannelLost, ChannelPool, ConnectionPool, LeaseError, PoolTimeout, Queue
from labkit.wire import Proxy, Stall
from tests.broker.connections import SLACK, channels, own_virtual_host
from tests.broker.test_connection_pool import run
from tests.unit.pool.still_pool import adds_up
from tests.view import until

pytestmark = pytest.mark.broker
WORK = Queue("work")


@pytest.fixture
def settings(broker):
    with own_virtual_host(broker) as settings:
        yield settings


@pytest.fixture
def pools():
    """Makes pools of one place; closes them at the end, when all their numbers must add up."""
    made = []

    def make(settings, kind=ConnectionPool, **options):
        made.append(kind(settings, **{"max_size": 1, **options}))
        return made[-1]

    yield make
    for pool in made:
        assert adds_up(pool.get_stats()), vars(pool.get_stats())
        pool.close(timeout=2)
        assert pool.get_stats().size == 0


def put(pool, *bodies, queue=WORK):
    """Have *bodies* in the queue, for certain."""

    def operate(channel):
        channel.declare(queue)
        for body in bodies:
            channel.publish(body, routing_key=queue.name)

    if isinstance(pool, ChannelPool):
        pool.execute(operate, confirm=True)
        return
    with pool.connection() as connection, connection.channel(confirm=True) as channel:
        operate(channel)


def get_all(pool, queue="work"):
    """What the next borrower gets at once."""

    def operate(channel):
        bodies = []
        while (delivery := channel.get(queue)) is not None:
            bodies.append(delivery.message.text)
            delivery.ack()
        return bodies

    return pool.execute(operate)


def are_back(pool, broker, *bodies):
    """Whether the next borrower gets *bodies*. Before 4.3 the broker may need a moment after it has agreed to close."""
    got = get_all(pool)
    if tuple(int(part) for part in broker.version.split(".")[:2]) < (4, 3):
        until(lambda: got.extend(get_all(pool)) or len(got) >= len(bodies))
    return sorted(got) == [*bodies]


# A pool of connections


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_messages_that_a_borrower_did_not_settle_are_there_for_the_next_one(settings, pools, broker, kind):
    queue = Queue("work", arguments={"x-queue-type": kind})
    pool = pools(settings)
    for _ in range(20):
        put(pool, *"abc", queue=queue)
        with pool.connection() as connection:
            channel = connection.channel()
            taken = [channel.get("work") for _ in "abc"]
            assert [each.message.text for each in taken] == [*"abc"]
        assert are_back(pool, broker, *"abc")
    stats = pool.get_stats()
    assert (stats.created, stats.leftovers) == (1, 20)


def test_consumer_that_a_borrower_left_takes_nothing_from_the_next_one(settings, pools, broker):
    pool, seen = pools(settings), []
    with pool.connection() as connection:
        channel = connection.channel()
        channel.declare(WORK)
        channel.consume("work", seen.append)
    put(pool, "x")
    assert get_all(pool) == ["x"]
    assert seen == []
    with pytest.raises(ChannelLost, match="given back to its pool") as caught:
        channel.declare(WORK)
    assert isinstance(caught.value.reason, LeaseError)
    with pool.connection() as connection, connection.channel() as channel:
        assert channel.declare(WORK).consumers == 0
    until(lambda: channels(broker, settings.virtual_host) == 0)
    assert pool.get_stats().created == 1


def test_message_in_the_hands_of_a_borrower_s_handler_is_there_for_the_next_one(settings, pools, broker):
    pool, begun, over, errors = pools(settings), threading.Event(), threading.Event(), []

    def handle(delivery):
        begun.set()
        over.wait(20)
        try:
            delivery.ack()
        except ChannelLost as exc:
            errors.append(exc)

    put(pool, "x", "y")
    with pool.connection() as connection:
        channel = connection.channel()
        channel.consume("work", handle)
        assert begun.wait(10)
    assert are_back(pool, broker, "x", "y")
    over.set()
    until(lambda: errors)


def test_what_was_opened_before_the_lease_stays(settings, pools):
    kept = []

    def configure(connection):
        kept.append(connection.channel())
        kept[0].declare(WORK)
        kept[0].consume("work", lambda delivery: (kept.append(delivery.message.text), delivery.ack()))

    pool = pools(settings, configure=configure)
    for body in "ab":
        with pool.connection() as connection:
            left = connection.channel()
            left.publish(body, routing_key="work")
    until(lambda: kept[1:] == ["a", "b"])
    until(lambda: not left.is_open)
    assert kept[0].is_open
    stats = pool.get_stats()
    assert (stats.created, stats.leftovers) == (1, 2)


def test_leftover_is_counted_and_logged_with_the_place_of_the_checkout(settings, pools, caplog):
    pool = pools(settings, leak_after=None)
    put(pool, "x")
    with pool.connection() as connection:
        connection.channel().get("work")
    pool.checkout().checkin()
    until(lambda: "left behind" in caplog.text)
    (record,) = [each for each in caplog.records if "left behind" in each.message]
    assert (record.levelno, pool.get_stats().leftovers) == (logging.WARNING, 1)
    assert "a channel (1 unsettled message)" in record.message
    assert "in test_leftover_is_counted_and_logged_with_the_place_of_the_checkout" in record.message


def test_listener_that_a_borrower_added_hears_nothing_of_the_next_one(settings, pools):
    pool, heard = pools(settings), []
    with pool.connection() as connection:
        connection.events.add(heard.append)
    with pool.connection() as connection, connection.channel():
        assert len(connection.events.listeners) == 1  # the pool's own
    assert heard == []
    assert pool.get_stats().leftovers == 1


def test_execute_leaves_no_message_locked_and_is_no_leftover(settings, pools, broker):
    pool = pools(settings)
    for _ in range(20):
        put(pool, "x")
        assert pool.execute(lambda channel: channel.get("work")).message.text == "x"
        assert are_back(pool, broker, "x")
    stats = pool.get_stats()
    assert (stats.created, stats.leftovers) == (1, 0)


def test_message_of_a_get_that_was_given_up_is_there_for_the_next_borrower(settings, pools, broker):
    with Proxy(settings) as proxy:
        pool = pools(proxy.settings(heartbeat=0))
        put(pool, "x")
        with pool.connection() as connection:
            channel = connection.channel()
            with proxy.fault(Stall(), direction="downstream"), pytest.raises(TimeoutError):
                channel.get("work", timeout=0.2)
        assert are_back(pool, broker, "x")
        pool.close(timeout=2)


# The hook


def test_reset_is_called_after_each_lease_with_what_is_clean_by_then(settings, pools):
    seen = []

    def reset(connection):
        seen.append((threading.current_thread().name, connection.status().channels, connection))

    pool = pools(settings, reset=reset)
    with pool.connection() as connection:
        connection.channel()
        assert seen == []
    with pool.connection() as again:
        assert seen == [("labkit-pool-reset", 0, connection)]
        assert again is connection
    pool.execute(lambda channel: channel.declare(WORK))
    with pool.connection():
        assert len(seen) == 3
    assert pool.get_stats().created == 1


def test_what_reset_opens_stays_for_the_next_borrower(settings, pools):
    opened = []
    pool = pools(settings, reset=lambda connection: opened.append(connection.channel()))
    for _ in range(3):
        pool.checkout().checkin()
    with pool.connection() as connection:
        assert connection.status().channels == 3
        assert all(each.is_open for each in opened)
    assert pool.get_stats().leftovers == 0


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(1)], ids=["an error", "an exit"])
def test_connection_whose_reset_raises_is_not_lent_again(settings, pools, broker, caplog, error):
    def reset(connection):
        raise error

    pool = pools(settings, reset=reset)
    with pool.connection() as first:
        pass
    with pool.connection() as second:
        assert second is not first
        assert not first.is_open
    until(lambda: pool.get_stats().reset_failures == 2)
    assert "of a pool is replaced: reset failed" in caplog.text
    until(lambda: len(broker.connections(settings.virtual_host)) <= 1)


def test_next_borrower_waits_for_a_reset_that_hangs_as_long_as_it_wants_to(settings, pools):
    may_go_on = threading.Event()
    pool = pools(settings, reset=lambda connection: may_go_on.wait(30))
    with pool.connection() as first:
        pass
    began = time.monotonic()
    with pytest.raises(PoolTimeout) as caught:
        pool.checkout(timeout=0.2)
    assert time.monotonic() - began < 0.2 + SLACK
    assert (caught.value.stats.leased, caught.value.stats.connecting) == (0, 1)
    may_go_on.set()
    with pool.connection() as second:
        assert second is first


def test_reset_that_hangs_holds_up_no_other_connection(settings, pools):
    may_go_on, hung = threading.Event(), []

    def reset(connection):
        if not hung:
            hung.append(connection)
            may_go_on.wait(30)

    pool = pools(settings, max_size=2, reset=reset)
    with pool.connection():
        with pool.connection():
            pass
        until(lambda: hung)
    try:
        for _ in range(3):
            with pool.connection(timeout=10) as connection:
                assert connection is not hung[0]
    finally:
        may_go_on.set()


# Trouble


def test_next_borrower_waits_no_longer_than_it_wants_to_for_a_broker_that_does_not_answer(settings, pools, broker):
    with Proxy(settings) as proxy:
        pool = pools(proxy.settings(heartbeat=0))
        put(pool, "x")
        lease = pool.checkout()
        lease.connection.channel().get("work")
        with proxy.fault(Stall()):
            began = time.monotonic()
            lease.checkin()
            with pytest.raises(PoolTimeout):
                pool.checkout(timeout=0.2)
            assert time.monotonic() - began < 0.2 + SLACK
        with pool.connection(timeout=20):
            pass
        assert are_back(pool, broker, "x")
        pool.close(timeout=2)


def test_connection_that_is_cut_while_it_is_made_clean_is_replaced(settings, pools):
    with Proxy(settings) as proxy:
        pool = pools(proxy.settings(heartbeat=0))
        put(pool, "x")
        lease = pool.checkout()
        lease.connection.channel().get("work")
        with proxy.fault(Stall()):
            lease.checkin()
            until(lambda: pool.get_stats().connecting == 1)
            proxy.cut()
        until(lambda: pool.get_stats().lost == 1)
        until(lambda: get_all(pool) == ["x"])
        pool.close(timeout=2)


def test_close_while_a_connection_is_made_clean_ends_everything(settings, pools, broker):
    may_go_on = threading.Event()
    pool = pools(settings, reset=lambda connection: may_go_on.wait(30))
    with pool.connection() as connection:
        connection.channel()
    pool.close(timeout=2)
    may_go_on.set()
    assert not connection.is_open
    until(lambda: broker.connections(settings.virtual_host) == [])
    assert pool.get_stats().size == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_child_process_that_is_forked_amid_a_reset_begins_anew_and_the_parent_s_goes_on(settings):
    program = """
import os, sys, threading, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of fork() beside threads: that is what this is about
from labkit import BrokerSettings, ConnectionPool, Queue
begun, may_go_on = threading.Event(), threading.Event()
def reset(connection):
    begun.set()
    may_go_on.wait(20)
pool = ConnectionPool(BrokerSettings.from_url(sys.stdin.read()), max_size=1, reset=reset)
with pool.connection() as connection:
    connection.channel().declare(Queue("work"))
assert begun.wait(10)
child = os.fork()
if child == 0:
    may_go_on.set()
    assert pool.get_stats().size == 0
    with pool.connection() as mine:
        assert mine is not connection
        mine.channel().declare(Queue("work"))
    with pool.connection() as again:
        assert again is mine
    pool.close()
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
may_go_on.set()
with pool.connection() as again:
    assert again is connection
    again.channel().close()
assert pool.get_stats().created == 1
pool.close()
print("well")
"""
    run(program, settings, "well")


# A pool of channels


def left_consumer(channel):
    channel.consume("work", lambda delivery: None)


def left_messages(channel):
    assert channel.get("work") is not None


def left_prefetch(channel):
    channel.qos(3)


@pytest.mark.parametrize(
    ("leave", "leftovers"),
    [(left_consumer, 1), (left_messages, 1), (left_prefetch, 0)],
    ids=["a consumer", "messages", "a prefetch"],
)
def test_channel_that_is_left_changed_is_replaced_and_its_messages_are_there(
    settings, pools, broker, caplog, leave, leftovers
):
    pool = pools(settings, ChannelPool)
    for n in range(1, 11):
        put(pool, "x", "y")
        with pool.channel() as channel:
            leave(channel)
        assert are_back(pool, broker, "x", "y")
        assert not channel.is_open
        assert pool.get_stats().leftovers == leftovers * n
    found = [each for each in caplog.records if "left behind" in each.message]
    assert len(found) == 10 * leftovers
    assert all("in test_channel_that_is_left_changed" in each.message for each in found)


def test_prefetch_that_configure_has_set_is_no_change(settings, pools):
    pool = pools(settings, ChannelPool, configure=lambda channel: channel.qos(3))
    with pool.channel() as first:
        first.declare(WORK)
    with pool.channel() as second:
        assert second is first
        second.qos(4)
    with pool.channel() as third:
        assert third is not first


def test_reset_of_a_channel_is_called_before_it_is_lent_again(settings, pools):
    seen = []
    pool = pools(settings, ChannelPool, reset=seen.append)
    with pool.channel() as first:
        first.declare(WORK)
    with pool.channel() as second:
        assert (second, seen) == (first, [first])
        second.qos(3)
    with pool.channel() as third:
        assert third is not first
    assert seen == [first]  # what was replaced was not reset


def test_channel_whose_reset_raises_is_not_lent_again(settings, pools):
    def reset(channel):
        raise ValueError("no")

    pool = pools(settings, ChannelPool, reset=reset)
    with pool.channel() as first:
        first.declare(WORK)
    with pool.channel() as second:
        assert second is not first
    assert not first.is_open
    until(lambda: pool.get_stats().reset_failures == 2)
