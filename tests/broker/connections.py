"""What the tests of ``labkit.Connection`` share: a recorder, a proxy, and counts of what must not be left behind."""

import gc
import threading
import uuid
from contextlib import contextmanager

import psutil
import pytest

from labkit import ChannelLost, Connection, NotConnected, Queue, State, Timeline
from labkit.connection.io_thread import SHARED
from labkit.connection.link import Link
from labkit.connection.topology_replay import TopologyRole
from labkit.retry import Backoff
from labkit.wire import Proxy
from tests.unit.pool.still_pool import in_threads
from tests.view import until

BRISK = Backoff(initial=0.05, maximum=1.0)
EAGER = Backoff(initial=0.01, maximum=0.05)  # for those who count, not time
SLACK = 2.0  # seconds; a busy machine is not a failure


@contextmanager
def connected(settings, *, backoff=BRISK, **options):
    """An open connection and its timeline; closed at the end."""
    timeline = Timeline()
    connection = Connection(settings, backoff=backoff, listeners=[timeline], **options)
    try:
        yield connection.open(), timeline
    finally:
        connection.close(timeout=2)


@contextmanager
def through_a_proxy(
    settings, *, heartbeat=2, recovery=False, backoff=BRISK, retry_refused=60.0, topology="all", **changes
):
    """The same, with a proxy in between that can break the line."""
    options = {"recovery": recovery, "backoff": backoff, "retry_refused": retry_refused, "topology": topology}
    with (
        Proxy(settings) as proxy,
        connected(proxy.settings(heartbeat=heartbeat, **changes), **options) as (connection, timeline),
    ):
        yield proxy, connection, timeline


@contextmanager
def own_virtual_host(broker, *, tls=False):
    """Settings for a virtual host of its own, by the plain listener or by that for TLS."""
    if tls and "tls" not in broker.capabilities:
        pytest.skip("needs a broker with the lab's TLS listener")
    name = f"test-{uuid.uuid4().hex[:12]}"
    broker.vhost(name)
    yield broker.settings(name, tls=tls).replace(connection_name=name)
    broker.delete_vhost(name)
    assert left_open(name) == []


def left_open(virtual_host):
    """The connections to *virtual_host* that look for it as long as this process lives, in the way of later tests."""
    gc.collect()
    return [
        f"{each!r}"
        for each in gc.get_objects()
        if issubclass(type(each), Connection)
        and each.settings.virtual_host == virtual_host
        and each.state not in (State.NEW, State.CLOSED, State.FAILED)
    ]


@contextmanager
def io_thread_at_a_stop(channel):
    """Nothing that is handed over has its turn until the block ends."""
    gate, is_held = threading.Event(), threading.Event()
    channel._core.io.post(lambda: (is_held.set(), gate.wait(20)))
    assert is_held.wait(10)
    try:
        yield
    finally:
        gate.set()


def retired():
    return sum(1 for each in SHARED.hosted() if isinstance(each, Link) and each.is_retired)


def descriptors():
    return psutil.Process().num_fds()


def our_threads():
    """The names of labkit's own threads, the proxy's left out."""
    return sorted(
        each.name for each in threading.enumerate() if each.name.startswith("labkit-") and "proxy" not in each.name
    )


def settle():
    """Wait until the I/O thread and the event threads have nothing left to do and have ended."""
    until(lambda: not our_threads(), 15)


@contextmanager
def nothing_left_behind():
    """After the block there are no more descriptors than before it, no thread of ours and no given-up link."""
    settle()
    files = descriptors()
    yield
    settle()
    assert our_threads() == []
    assert retired() == 0
    assert descriptors() <= files


def channels(broker, virtual_host):
    """How many channels the broker has open in *virtual_host*."""
    return sum(each.channels for each in broker.connections(virtual_host))


def errors_amid_cuts(proxy, execute, *, errors, cuts):
    """Have four borrowers lose a channel to a 404, *errors* times or more, while the links are cut *cuts* times.

    What a cut takes away is an error too, and not counted.
    """
    misses, over = [], threading.Event()

    def err():
        while len(misses) < errors or not over.is_set():
            try:
                execute(lambda channel: channel.declare(Queue("missing"), passive=True))
            except (ChannelLost, NotConnected) as exc:
                if getattr(exc.reason, "reply_code", None) == 404:
                    misses.append(exc)

    threads = in_threads(4, err)
    seen = hits = 0
    while hits < cuts:
        # Spread over the errors; and one since the last cut, so that in all likelihood there is a link again.
        least = max(seen, errors // (cuts + 1) * hits) + 1
        until(lambda least=least: len(misses) >= least, 120)
        hits += proxy.cut() > 0
        seen = len(misses)
    over.set()
    for thread in threads:
        thread.join(120)
    assert len(misses) >= errors


def roles(connection):
    """The publishers and consumers that live on *connection*."""
    return [each for each in connection._life.roles if not isinstance(each, TopologyRole)]
