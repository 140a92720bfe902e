"""The pool at a real broker: what it counts is what the broker counts, and nothing that breaks costs a place."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from labkit import (
    AuthenticationFailed,
    ChannelLost,
    ConnectionPool,
    NotConnected,
    PoolClosed,
    PoolTimeout,
    Queue,
    State,
)
from labkit.wire import Latency, Proxy, Refuse, Stall
from tests.broker.connections import (
    EAGER,
    SLACK,
    channels,
    errors_amid_cuts,
    nothing_left_behind,
    our_threads,
    own_virtual_host,
)
from tests.unit.pool.still_pool import adds_up, in_threads
from tests.view import until

pytestmark = pytest.mark.broker


@pytest.fixture(scope="module")
def settings(broker):
    with own_virtual_host(broker) as settings:
        yield settings.replace(heartbeat=1)


@pytest.fixture
def pools():
    """Makes pools; closes them at the end, when all their numbers must add up and nothing may be out."""
    made = []

    def make(settings, **options):
        made.append(ConnectionPool(settings, **options))
        return made[-1]

    yield make
    for pool in made:
        stats = pool.get_stats()
        assert adds_up(stats), vars(stats)
        pool.close()
        assert pool.get_stats().size == 0


def count(broker, settings):
    return len(broker.connections(settings.virtual_host))


def test_broker_counts_what_the_pool_counts_and_never_more_than_the_maximum(settings, pools, broker):
    pool = pools(settings, max_size=3)
    most = []

    def work():
        for _ in range(6):
            pool.execute(lambda channel: channel.declare(Queue("work")))

    threads = in_threads(32, work)
    while any(thread.is_alive() for thread in threads):
        most.append(count(broker, settings) - pool.get_stats().retired)
    assert max(most) <= 3
    stats = pool.get_stats()
    assert (stats.granted, stats.leased, stats.recovered) == (192, 0, 0)
    assert count(broker, settings) == stats.size <= 3
    pool.close()
    until(lambda: count(broker, settings) == 0)


def test_operation_gets_a_channel_and_its_own_error_comes_out(settings, pools, broker):
    pool = pools(settings, max_size=1)
    assert pool.execute(lambda channel: channel.declare(Queue("work")).name) == "work"
    with pytest.raises(ChannelLost, match="404") as caught:
        pool.execute(lambda channel: channel.declare(Queue("missing"), passive=True))
    assert caught.value.reason.reply_code == 404
    with pytest.raises(ZeroDivisionError):
        pool.execute(lambda channel: 1 / 0)
    with pool.connection() as connection:
        until(lambda: connection.status().channels == 0)
    assert pool.get_stats().created == 1


def test_a_pool_fills_and_fills_again_through_a_slow_link_faster_than_one_connect_after_another(settings, pools):
    slow = Latency(0.3)  # in each direction, and a connect has three round trips
    with Proxy(settings) as proxy, proxy.fault(slow):
        pool = pools(proxy.settings(heartbeat=10), min_size=4)
        one_after_another = 4 * 3 * 2 * slow.delay
        started = time.monotonic()
        pool.open(wait=True)
        assert time.monotonic() - started < one_after_another - 1.0
        started = time.monotonic()
        proxy.cut()
        until(lambda: pool.get_stats().lost == 4)
        until(lambda: pool.get_stats().idle == 4)
        assert time.monotonic() - started < one_after_another - 1.0
        assert (pool.get_stats().created, pool.get_stats().failed) == (8, 0)


def test_a_pool_that_is_closed_while_it_fills_leaves_no_link_and_no_thread(settings, pools, broker):
    with Proxy(settings) as proxy, proxy.fault(Latency(0.2)):
        pool = pools(proxy.settings(heartbeat=10), min_size=8, max_size=8)
        pool.open()
        until(lambda: pool.get_stats().created and pool.get_stats().connecting > 1)
        pool.close()
        until(lambda: not any(each.startswith("labkit-pool") for each in our_threads()))
    until(lambda: count(broker, settings) == 0)


def test_idle_pool_outlives_many_heartbeats_without_a_new_connection(settings, pools):
    survives(pools(settings, min_size=3), intervals=3, work=lambda ends: time.sleep(max(0, ends - time.monotonic())))


def test_borrower_that_computes_for_many_heartbeats_keeps_its_connection(settings, pools):
    def compute(ends):
        while time.monotonic() < ends:
            sum(range(1000))

    pool = pools(settings, min_size=1)
    with pool.connection() as connection:
        compute(time.monotonic() + 4)
        assert connection.is_open
        connection.channel().declare(Queue("work"))
    assert (pool.get_stats().created, pool.get_stats().lost) == (1, 0)


def survives(pool, *, intervals, work):
    pool.open(wait=True)
    before = [entry.thing for entry in pool._line.entries]
    work(time.monotonic() + intervals * 1.0 + 0.5)
    leases = [pool.checkout() for _ in before]
    assert {lease.connection for lease in leases} == set(before)
    for lease in leases:
        with lease.connection.channel() as channel:
            channel.declare(Queue("work"))
        lease.checkin()
    stats = pool.get_stats()
    assert (stats.created, stats.lost, stats.idle) == (len(before), 0, len(before))
    assert our_threads().count("labkit-io") == 1


def living(pool):
    """The connections in the pool that are open; one that died stays in it for a moment."""
    return {each.thing for each in list(pool._line.entries) if each.is_ready and each.thing.is_open}


def test_connections_that_were_cut_while_idle_are_replaced_before_anybody_asks(settings, pools, broker):
    with Proxy(settings) as proxy:
        # No short heartbeat: on a busy machine it would add losses of its own, and these are counted.
        pool = pools(proxy.settings(heartbeat=30), min_size=2)
        pool.open(wait=True)
        for _ in range(5):
            before = until(lambda: len(living(pool)) == 2 and living(pool))
            proxy.cut()
            until(lambda before=before: len(living(pool) - before) == 2)
            with pool.connection() as connection:
                connection.channel().close()
        until(lambda: (pool.get_stats().size, pool.get_stats().lost) == (2, 10))
        until(lambda: pool.get_stats().retired == 0)
        until(lambda: count(broker, settings) == 2)
        pool.close()


def test_borrower_whose_connection_is_cut_hears_why_and_the_next_one_has_a_new_one(settings, pools):
    with Proxy(settings) as proxy:
        pool = pools(proxy.settings(heartbeat=1), max_size=1)

        def break_it():
            with pool.connection() as connection:
                channel = connection.channel()
                proxy.cut()
                channel.declare(Queue("work"))

        with pytest.raises((ChannelLost, NotConnected)):
            break_it()
        assert pool.execute(lambda channel: channel.declare(Queue("work"))).name == "work"
        pool.close()


def test_a_connection_that_comes_back_dead_is_logged_with_what_ended_it(settings, pools, broker, caplog):
    pool = pools(settings, max_size=1)
    with pool.connection() as connection:
        broker.close_connections("for maintenance", settings.virtual_host)
        until(lambda: not connection.is_open)
    with pool.connection() as connection:
        assert connection.is_open
    until(lambda: "Connection(failed) of a pool is dead and is replaced" in caplog.text)
    assert "CONNECTION_FORCED - for maintenance" in caplog.text


def test_lost_connection_advises_to_give_it_back_and_not_to_open_it(settings, pools):
    with Proxy(settings) as proxy:
        pool = pools(proxy.settings(heartbeat=1), max_size=1)
        with pool.connection() as connection:
            proxy.cut()
            until(lambda: not connection.is_open)
            until(lambda: connection.state is State.FAILED)
            with pytest.raises(NotConnected, match="give it back, and the pool lends you another"):
                connection.channel()
        pool.close()


def test_connection_that_its_borrower_closes_is_replaced_at_once(settings, pools, broker):
    pool = pools(settings, max_size=1)
    for _ in range(3):
        with pool.connection(timeout=2) as connection:
            connection.close()
    assert pool.execute(lambda channel: channel.declare(Queue("work"))).name == "work"
    assert pool.get_stats().created == 4
    until(lambda: count(broker, settings) == 1)


def test_half_open_connection_is_replaced_and_counted_as_retired_until_it_ends(settings, pools):
    with Proxy(settings) as proxy:
        pool = pools(proxy.settings(heartbeat=1), min_size=1, max_size=1)
        pool.open(wait=True)
        (entry,) = pool._line.entries
        old = entry.thing
        with proxy.fault(Stall(), direction="downstream"):
            until(lambda: not old.is_open, 2 + 1 + SLACK)
            until(lambda: pool.get_stats().retired >= 1)  # the keeper looks a moment later
        until(lambda: pool.get_stats().idle == 1)
        until(lambda: pool.get_stats().retired == 0)
        pool.close()


def test_broker_that_is_away_costs_no_place_and_its_return_is_noticed(settings, pools):
    with Proxy(settings) as proxy:
        pool = pools(proxy.settings(heartbeat=1), max_size=2)
        pool.checkout().checkin()
        with proxy.fault(Refuse()):
            proxy.cut()
            until(lambda: pool.get_stats().failed >= 2)
            with pytest.raises(PoolTimeout, match="last connect error") as caught:
                pool.checkout(timeout=0.3)
            assert caught.value.__cause__ is not None
        with pool.connection(timeout=10) as connection:
            assert connection.is_open
        pool.close()


def test_wrong_password_is_said_at_once(settings, pools):
    pool = pools(settings.replace(password="wrong"))
    started = time.monotonic()
    with pytest.raises(AuthenticationFailed):
        pool.checkout(timeout=30)
    assert time.monotonic() - started < 10


def test_nothing_is_left_behind_by_channel_errors_cuts_and_a_close(settings, pools, broker):
    with nothing_left_behind():
        leave_nothing(settings, pools, broker, errors=60, cuts=6)


def leave_nothing(settings, pools, broker, *, errors, cuts):
    """Four borrowers whose every operation costs a channel, while the connections are cut."""
    with Proxy(settings) as proxy:
        pool = pools(proxy.settings(heartbeat=1), max_size=3, timeout=60, _backoff=EAGER)
        errors_amid_cuts(proxy, pool.execute, errors=errors, cuts=cuts)
        until(lambda: pool.get_stats().retired == 0 and pool.get_stats().connecting == 0)
        until(lambda: count(broker, settings) == pool.get_stats().size)
        until(lambda: channels(broker, settings.virtual_host) == 0)
        pool.close()
    until(lambda: count(broker, settings) == 0)


def test_close_ends_in_time_though_nobody_answers_and_a_borrower_keeps_his(settings, pools):
    with Proxy(settings) as proxy:
        pool = pools(proxy.settings(heartbeat=0), min_size=2)
        pool.open(wait=True)
        lease = pool.checkout()
        with proxy.fault(Stall()):
            started = time.monotonic()
            pool.close(timeout=1.0)
            assert time.monotonic() - started < 1.0 + SLACK
        until(lambda: not lease._thing.is_open)
        with pytest.raises(PoolClosed):
            pool.checkout()


def test_child_process_gets_its_own_connections_and_the_parent_keeps_its_own(settings):
    program = """
import os, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of fork() beside threads: that is what this is about
from labkit import BrokerSettings, ConnectionPool, Queue
pool = ConnectionPool(BrokerSettings.from_url(sys.stdin.read()), max_size=2)
with pool.connection() as connection:
    child = os.fork()
    if child == 0:
        with pool.connection() as mine:
            assert mine is not connection
            mine.channel().declare(Queue("work"))
        assert pool.get_stats().created == 1, vars(pool.get_stats())
        pool.close()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    connection.channel().declare(Queue("work"))
pool.execute(lambda channel: channel.declare(Queue("work")))
assert pool.get_stats().created == 1
pool.close()
print("well")
"""
    run(program, settings, "well")


def test_exit_without_close_is_quick_and_silent(settings):
    program = """
import sys
from labkit import BrokerSettings, ConnectionPool
pool = ConnectionPool(BrokerSettings.from_url(sys.stdin.read()), min_size=3)
pool.open(wait=True)
lease = pool.checkout()
print("end")
"""
    run(program, settings, "end")


def run(program, settings, expected):
    url = settings.to_url(mask=False)
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=url, capture_output=True, text=True, timeout=60, env=os.environ, check=False,
    )  # fmt: skip
    assert (done.stdout.strip(), done.stderr, done.returncode) == (expected, "", 0)


def test_interrupted_borrower_gives_its_connection_back(settings, pools):
    pool = pools(settings, max_size=1)
    main = threading.main_thread().ident

    def hold():
        with pool.connection():
            threading.Timer(0.05, signal.pthread_kill, [main, signal.SIGINT]).start()
            threading.Event().wait(10)

    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            hold()
    pool.checkout().checkin()
    assert pool.get_stats().created == 1
