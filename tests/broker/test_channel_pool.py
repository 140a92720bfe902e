"""Channels from a pool: kinds kept apart, only clean ones lent again, and an error costs one channel."""

import itertools
import logging
import os
import time

import pytest

from labkit import (
    ChannelLost,
    ChannelPool,
    ConfigurationError,
    DeadlineExceeded,
    LeaseError,
    NotConnected,
    OutcomeUnknown,
    PoolClosed,
    PoolTimeout,
    Queue,
    Unroutable,
)
from labkit.lab.interrupting import StopAfter
from labkit.wire import Proxy, Stall
from tests.broker.connections import SLACK, channels, errors_amid_cuts, nothing_left_behind, own_virtual_host, retired
from tests.broker.test_connection_pool import run
from tests.unit.pool.still_pool import adds_up, in_threads
from tests.view import until

pytestmark = pytest.mark.broker


@pytest.fixture(scope="module")
def settings(broker):
    with own_virtual_host(broker) as settings:
        yield settings.replace(heartbeat=1)


@pytest.fixture
def pools():
    made = []

    def make(settings, **options):
        made.append(ChannelPool(settings, **options))
        return made[-1]

    yield make
    for pool in made:
        assert adds_up(pool.get_stats()), vars(pool.get_stats())
        pool.close(timeout=2)
        assert pool.get_stats().size == 0


def counted(broker, settings, expected):
    """The broker's count follows after a moment."""
    until(lambda: channels(broker, settings.virtual_host) == expected)


def test_channel_that_only_published_is_lent_again(settings, pools):
    pool = pools(settings)
    with pool.channel() as first:
        first.declare(Queue("work"))
        first.publish("x", routing_key="work")
    with pool.channel() as second:
        assert second is first
    assert pool.get_stats().created == 1


def test_kinds_are_never_mixed(settings, pools):
    pool = pools(settings)
    with pool.channel() as plain:
        plain.declare(Queue("work"))
    with pool.channel(confirm=True) as confirming:
        assert confirming is not plain
        with pytest.raises(Unroutable):
            confirming.publish("x", routing_key="nowhere", mandatory=True)
    with pool.channel(confirm=True) as again:
        assert again is confirming
    with pool.channel() as again:
        assert again is plain
    assert [pool.get_stats(confirm=kind).created for kind in (False, True, None)] == [1, 1, 2]


@pytest.mark.parametrize(
    "use",
    [
        lambda channel: channel.qos(3),
        lambda channel: channel.consume("work", lambda delivery: delivery.ack()),
        lambda channel: channel.cancel(channel.consume("work", lambda delivery: delivery.ack())),
        lambda channel: until(lambda: channel.get("work")).ack(),
        lambda channel: until(lambda: channel.get("work")),
    ],
    ids=["prefetch", "consumer", "cancelled consumer", "message got and settled", "message got"],
)
def test_channel_that_carries_more_than_publishes_is_not_lent_again(settings, pools, broker, use):
    pool = pools(settings)
    with pool.channel() as channel:
        channel.declare(Queue("work"))
        channel.publish("x", routing_key="work")
        use(channel)
    with pool.channel() as another:
        assert another is not channel
    assert not channel.is_open
    counted(broker, settings, 1)
    assert pool.get_stats().lost == 0


def test_missing_queue_costs_the_channel_and_neither_the_connection_nor_the_place(settings, pools, broker):
    pool = pools(settings, max_size=1)
    for _ in range(10):
        with pytest.raises(ChannelLost, match="404") as caught:
            pool.execute(lambda channel: channel.declare(Queue("missing"), passive=True))
        assert caught.value.reason.reply_code == 404
    assert pool.execute(lambda channel: channel.declare(Queue("work"))).name == "work"
    assert len(broker.connections(settings.virtual_host)) == 1
    counted(broker, settings, 1)
    assert pool.get_stats().size == 1


def test_a_channel_that_comes_back_dead_is_logged_with_what_closed_it(settings, pools, caplog):
    caplog.set_level(logging.INFO, "labkit")
    pool = pools(settings, max_size=1)
    with pytest.raises(ChannelLost), pool.channel() as channel:
        channel.declare(Queue("missing"), passive=True)
    until(lambda: "Channel(closed) of a pool is dead and is replaced" in caplog.text)
    (record,) = [each for each in caplog.records if "is dead" in each.message]
    assert (record.levelname, "404" in record.message) == ("INFO", True)  # its borrower was told


def test_operation_s_own_error_comes_out_and_the_channel_goes_back(settings, pools):
    pool = pools(settings, max_size=1)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            pool.execute(lambda channel: 1 / 0, confirm=True)
    assert pool.get_stats().created == 1


def test_call_that_timed_out_costs_the_channel_and_its_place_is_free_at_once(settings, pools):
    with Proxy(settings) as proxy:
        pool = pools(proxy.settings(heartbeat=0), max_size=1)

        def late(channel):
            with proxy.fault(Stall(), direction="downstream"):
                channel.declare(Queue("work"), timeout=0.2)

        with pytest.raises(DeadlineExceeded):
            pool.execute(late)
        assert pool.execute(lambda channel: channel.declare(Queue("work"))).name == "work"
        pool.close()


def test_confirm_that_is_still_open_holds_no_place(settings, pools):
    with Proxy(settings) as proxy:
        pool = pools(proxy.settings(heartbeat=0), max_size=1)
        pool.execute(lambda channel: channel.declare(Queue("work")), confirm=True)
        lease = pool.checkout(confirm=True)
        channel, seen = lease.channel, []

        def publish():
            try:
                channel.publish("x", routing_key="work", timeout=20)
            except OutcomeUnknown as exc:
                seen.append(exc)

        with proxy.fault(Stall(), direction="downstream"):
            (thread,) = in_threads(1, publish)
            until(lambda: not channel._core.is_clean)
            lease.checkin()
            until(lambda: seen)
        with pool.channel(confirm=True, timeout=10) as another:
            assert another is not channel
        thread.join(10)
        assert len(seen) == 1
        pool.close()


def test_maximum_and_the_line_hold_at_the_broker(settings, pools, broker):
    pool = pools(settings, max_size=4, connections=2)
    most = []

    def work():
        for _ in range(15):
            pool.execute(lambda channel: channel.declare(Queue("work")))

    threads = in_threads(12, work)
    while any(thread.is_alive() for thread in threads):
        most.append(channels(broker, settings.virtual_host) - pool.get_stats().retired)
    stats = pool.get_stats()
    assert max(most) <= 4
    assert (stats.granted, stats.leased) == (180, 0)
    assert 1 <= stats.peak <= 4
    assert len(broker.connections(settings.virtual_host)) <= 2
    held = [pool.checkout() for _ in range(4)]
    assert len(broker.connections(settings.virtual_host)) == 2
    with pytest.raises(PoolTimeout):
        pool.checkout(timeout=0.05)
    for lease in held:
        pool.checkin(lease)
    with pytest.raises(LeaseError):
        pool.checkin(held[0])
    with pytest.raises(LeaseError):
        pools(settings).checkin(held[0])


def test_connection_that_dies_takes_its_channels_and_the_next_channel_opens_another(settings, pools, broker):
    with Proxy(settings) as proxy:
        pool = pools(proxy.settings(heartbeat=1), min_size=2)
        for _ in range(4):
            pool.execute(lambda channel: channel.declare(Queue("work")))
            until(lambda: pool.get_stats(confirm=False).idle == 2)
            idle = [entry.thing for entry in pool._kinds[False]._line.entries]
            proxy.cut()
            until(lambda idle=idle: not any(each.is_open for each in idle))
        with pytest.raises((ChannelLost, NotConnected)):
            pool.execute(lambda channel: (proxy.cut(), channel.declare(Queue("work"))))
        assert pool.execute(lambda channel: channel.declare(Queue("work"))).name == "work"
        until(lambda: pool.get_stats().retired == 0)
        until(lambda: len(broker.connections(settings.virtual_host)) == 1)
        pool.close()
    until(lambda: broker.connections(settings.virtual_host) == [])


def test_close_ends_in_time_while_a_connection_is_being_opened(settings, pools):
    with Proxy(settings) as proxy, proxy.fault(Stall()):
        pool = pools(proxy.settings(heartbeat=1), min_size=1)
        pool.open()
        until(lambda: pool.get_stats().connecting == 1)
        until(lambda: pool._trunks._all)
        began = time.monotonic()
        pool.close(timeout=1)
        assert time.monotonic() - began < 1 + SLACK
    until(lambda: retired() == 0)


def test_nothing_is_left_behind_by_channel_errors_and_cuts(settings, pools, broker):
    with nothing_left_behind():
        leave_nothing(settings, pools, broker, errors=80, cuts=4)


def leave_nothing(settings, pools, broker, *, errors, cuts):
    """Four borrowers whose every operation costs a channel, while the connections are cut."""
    with Proxy(settings) as proxy:
        pool = pools(proxy.settings(heartbeat=1), connections=2, max_size=3, timeout=60)
        kinds = itertools.cycle([False, True])
        errors_amid_cuts(
            proxy, lambda operation: pool.execute(operation, confirm=next(kinds)), errors=errors, cuts=cuts
        )
        stats = pool.get_stats()
        assert (stats.leased, stats.waiting, stats.recovered) == (0, 0, 0)
        pool.execute(lambda channel: channel.declare(Queue("work")))
        until(lambda: pool.get_stats().retired == 0 and pool.get_stats().connecting == 0)
        counted(broker, settings, pool.get_stats().size)
        assert len(broker.connections(settings.virtual_host)) <= 2
        pool.close()
    until(lambda: broker.connections(settings.virtual_host) == [])
    until(lambda: retired() == 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_child_process_gets_its_own_channels_and_the_parent_keeps_its_own(settings):
    program = """
import os, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of fork() beside threads: that is what this is about
from labkit import BrokerSettings, ChannelLost, ChannelPool, Queue
pool = ChannelPool(BrokerSettings.from_url(sys.stdin.read()), max_size=2)
held = pool.checkout(confirm=True)
with pool.channel() as channel:
    channel.declare(Queue("work"))
    child = os.fork()
    if child == 0:
        assert pool.get_stats().size == 0
        try:
            channel.declare(Queue("work"))
        except ChannelLost:
            pass
        else:
            raise AssertionError("the parent's channel works in the child")
        with pool.channel() as mine:
            assert mine is not channel
            mine.declare(Queue("work"))
        with pool.channel(confirm=True) as mine:
            mine.publish("x", routing_key="work")
        held.checkin()  # the parent's: nothing happens
        stats = pool.get_stats()
        assert (stats.created, stats.size, stats.leased) == (2, 2, 0), vars(stats)
        pool.close()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    channel.declare(Queue("work"))
held.channel.publish("x", routing_key="work")
held.checkin()
stats = pool.get_stats()
assert (stats.created, stats.size, stats.leased, stats.lost) == (2, 2, 0, 0), vars(stats)
pool.close()
print("well")
"""
    run(program, settings, "well")


def test_an_interrupt_while_close_waits_for_a_borrower_leaves_no_connection(settings, pools, broker):
    pool = pools(settings)
    with pool.channel():
        with StopAfter(0.3) as stop:
            pool.close()
        assert stop.interrupted
        until(lambda: broker.connections(settings.virtual_host) == [])


def test_drain_and_resize_and_close_reach_both_kinds(settings, pools, broker):
    pool = pools(settings)
    for confirm in (False, True):
        pool.execute(lambda channel: None, confirm=confirm)
    pool.drain()
    assert pool.get_stats().idle == 0
    pool.resize(0, 1)
    waiting = pool.checkout(confirm=True)
    errors = []

    def wait():
        try:
            pool.checkout(confirm=True, timeout=30)
        except PoolClosed as exc:
            errors.append(exc)

    (thread,) = in_threads(1, wait)
    until(lambda: pool.get_stats(confirm=True).waiting == 1)
    began = time.monotonic()
    pool.close(timeout=1)
    assert time.monotonic() - began < 1 + SLACK
    thread.join(10)
    assert len(errors) == 1
    assert not waiting._thing.is_open
    until(lambda: broker.connections(settings.virtual_host) == [])
    assert repr(pool) == "ChannelPool(closed, plain 0 of 0 out, confirming 0 of 0 out)"


@pytest.mark.parametrize("options", [{"connections": 0}, {"connections": 1.5}, {"max_size": 0}])
def test_setting_that_cannot_be_is_refused(settings, options):
    with pytest.raises(ConfigurationError):
        ChannelPool(settings, **options)


def test_pool_that_is_not_used_does_nothing(settings, pools, broker):
    pools(settings)
    assert broker.connections(settings.virtual_host) == []
