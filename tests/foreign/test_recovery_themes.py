"""What the Java client, aio-pika and psycopg_pool ask of their recovery, and no test of ours asked yet."""

import random
import threading

import pytest

from labkit import (
    ConnectionLost,
    ConnectionPool,
    ConnectionRecovered,
    Consumer,
    DeadlineExceeded,
    LabkitError,
    NotConnected,
    Outcome,
    Publisher,
    Queue,
    State,
)
from labkit.wire import LimitData, Proxy, Refuse, Stall
from tests.broker.connections import EAGER, connected, own_virtual_host, through_a_proxy
from tests.unit.pool.still_pool import in_threads
from tests.view import until

pytestmark = [pytest.mark.soak, pytest.mark.broker, pytest.mark.timeout(180)]
BIG = bytes(256 * 1024)
STAIRS = [2**power for power in range(17)]  # bytes that pass until the link ends, 1 B to 64 KiB


@pytest.fixture
def settings(broker):
    with own_virtual_host(broker) as settings:
        yield settings


def fill(channel):
    while True:
        channel.publish(BIG, routing_key="window", timeout=1.0)


def test_a_link_that_is_lost_while_a_writer_waits_for_the_full_window_recovers(settings):
    """Nobody reads: the kernel's buffers are full, then ours, and a publish waits. Then the link ends."""
    with through_a_proxy(settings, recovery=True, backoff=EAGER, heartbeat=0) as (proxy, connection, timeline):
        channel = connection.channel()
        channel.declare(Queue("window"))
        mark = timeline.mark()
        with proxy.fault(Stall(), direction="upstream"):
            with pytest.raises(DeadlineExceeded):
                fill(channel)
            proxy.cut()
        timeline.wait_for(ConnectionRecovered, timeout=15, since=mark)
        with Publisher(connection) as publisher:
            confirmation = publisher.publish(b"after it", routing_key="window")
            confirmation.result(timeout=15)
        assert confirmation.outcome is Outcome.CONFIRMED


@pytest.mark.parametrize("direction", ["upstream", "downstream"])
def test_links_that_end_after_more_and_more_bytes_lose_no_message(settings, direction):
    got, confirmed, over = [], [], threading.Event()

    def publish_on():
        while not over.is_set():
            confirmed.append(publisher.publish(str(len(confirmed)), routing_key="stairs", deadline=60.0))
            confirmed[-1].result(timeout=60)

    with through_a_proxy(settings, recovery=True, backoff=EAGER) as (proxy, connection, timeline):
        connection.channel().declare(Queue("stairs"))
        with (
            Consumer(connection, "stairs", lambda delivery: (got.append(int(delivery.message.text)), delivery.ack())),
            Publisher(connection) as publisher,
        ):
            (thread,) = in_threads(1, publish_on)
            for limit in STAIRS:
                mark = timeline.mark()
                with proxy.fault(LimitData(limit), direction=direction):
                    timeline.wait_for(ConnectionLost, timeout=30, since=mark)
                connection.wait_for(State.OPEN, timeout=30)
            over.set()
            thread.join(60)
            until(lambda: set(got) == set(range(len(confirmed))), 60)
        assert len(timeline.names()) > len(STAIRS)


def test_listeners_that_raise_at_every_event_hold_no_recovery_up(settings):
    def raises(event):
        raise RuntimeError(f"no use for {type(event).__name__}")

    with Proxy(settings) as proxy, connected(proxy.settings(), recovery=True, backoff=EAGER) as (connection, timeline):
        connection._listen(raises)
        for _ in range(10):
            mark = timeline.mark()
            proxy.cut()
            timeline.wait_for(ConnectionRecovered, timeout=15, since=mark)
        assert connection.generation == 11
        until(lambda: connection.status().listener_failures >= 20, 15)


def test_a_pool_whose_growth_fails_serves_everybody_once_the_broker_is_back(settings):
    """A spike comes while new links are refused: who waits is served by what is there, then by what is made again."""
    seed = random.Random(7)
    with Proxy(settings) as proxy, ConnectionPool(proxy.settings(), min_size=1, max_size=4, timeout=60.0) as pool:
        pool.open(wait=True, timeout=15)
        served, failed = [], []

        def work():
            for _ in range(20):
                try:
                    with pool.connection() as connection:
                        connection.channel().close()
                        served.append(1)
                except (NotConnected, LabkitError) as exc:
                    failed.append(exc)

        with proxy.fault(Refuse()):
            threads = in_threads(8, work)
            for _ in range(seed.randint(2, 4)):
                proxy.cut()
                until(lambda: pool.get_stats().size <= 1, 10)
        for thread in threads:
            thread.join(60)
        assert len(served) + len(failed) == 160
        assert len(served) >= 120
        with pool.connection() as connection:
            assert connection.is_open
        until(lambda: pool.get_stats().waiting == 0 and pool.get_stats().leased == 0, 10)
