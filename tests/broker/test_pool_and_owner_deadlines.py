"""Every public call of a pool, a SyncConnection and an AsyncConnection ends: within its deadline and 2 s."""

import asyncio
import contextlib
import time
from contextlib import ExitStack, contextmanager

import pytest

from labkit import AsyncConnection, ChannelPool, ConnectionPool, LabkitError, Queue, SyncConnection
from labkit.wire import Proxy, Stall
from tests.broker.connections import SLACK, own_virtual_host
from tests.broker.test_connection_deadlines import FAULTS
from tests.tiers import in_soak
from tests.view import until

pytestmark = pytest.mark.broker
TIMEOUT = 0.15  # seconds


class Stopwatch:
    """Makes calls, and keeps for each by how many seconds it outlived its deadline."""

    def __init__(self):
        self.late = {}

    def ends(self, name, call, deadline=TIMEOUT):
        began = time.monotonic()
        with contextlib.suppress(LabkitError):
            call()
        self.late[name] = time.monotonic() - began - deadline

    async def ends_soon(self, name, awaitable):
        began = time.monotonic()
        with contextlib.suppress(LabkitError, TimeoutError):
            await awaitable
        self.late[name] = time.monotonic() - began - TIMEOUT


# Pools


@contextmanager
def pools_at_work(settings):
    """Of each kind one that is used, with a lease and something idle, and one that was never opened."""
    with ExitStack() as stack:
        at_work = []
        for kind in (ConnectionPool, ChannelPool):
            pool, new = (stack.enter_context(contextlib.closing(kind(settings, max_size=3))) for _ in range(2))
            pool.execute(lambda channel: channel.declare(Queue("work")))
            lease, other = pool.checkout(), pool.checkout()
            other.checkin()
            until(lambda pool=pool: pool.get_stats().idle)
            at_work.append((pool, lease, new))
        yield at_work
        for pool, lease, new in at_work:
            if lease.is_out:
                lease.checkin()
            for each in (pool, new):
                each.close(timeout=TIMEOUT)


def every_call_of_the_pools_ends(at_work):
    """Make every public call, and return by how much each was late."""
    watch = Stopwatch()
    for pool, lease, new in at_work:
        kind = type(pool).__name__

        def work(channel):
            channel.publish("x", routing_key="work", timeout=TIMEOUT)

        def borrow(pool):
            if isinstance(pool, ConnectionPool):
                with pool.connection(timeout=TIMEOUT):
                    pass
            else:
                with pool.channel(timeout=TIMEOUT), pool.channel(confirm=True, timeout=TIMEOUT):
                    pass

        def leave_a_channel(lease=lease):
            with contextlib.suppress(LabkitError):
                lease.connection.channel(timeout=0)

        calls = {
            "checkout": lambda pool=pool: pool.checkout(timeout=TIMEOUT).checkin(),
            "borrow": lambda pool=pool: borrow(pool),
            "execute": lambda pool=pool: pool.execute(work, timeout=TIMEOUT),
            "checkin": lambda lease=lease, kind=kind: (
                leave_a_channel() if kind == "ConnectionPool" else None, lease.checkin()
            ),
            "checkout after it": lambda pool=pool: pool.checkout(timeout=TIMEOUT).checkin(),
            "check": pool.check,
            "resize": lambda pool=pool: pool.resize(3, 4),
            "drain": pool.drain,
            "checkout after a drain": lambda pool=pool: pool.checkout(timeout=TIMEOUT).checkin(),
            "execute after a drain": lambda pool=pool: pool.execute(work, timeout=TIMEOUT),
            "get_stats": pool.get_stats,
            "pop_stats": pool.pop_stats,
            "close": lambda pool=pool: pool.close(timeout=TIMEOUT),
            "checkout after the close": lambda pool=pool: pool.checkout(timeout=TIMEOUT),
            "open of a new one": lambda new=new: new.open(wait=True, timeout=TIMEOUT),
            "borrow of a new one": lambda new=new: borrow(new),
            "close of a new one": lambda new=new: new.close(timeout=TIMEOUT),
        }  # fmt: skip
        waits = {"execute": 2, "execute after a drain": 2, "borrow": 2, "borrow of a new one": 2}  # each within its own
        for name, call in calls.items():
            watch.ends(f"{kind}: {name}", call, waits.get(name, 1) * TIMEOUT)
    return watch.late


# SyncConnection

SYNC_CALLS = {
    "publish": lambda each: each.publish("work", "x", deadline=TIMEOUT),
    "publish to another queue": lambda each: each.publish("other", "x", deadline=TIMEOUT),
    "consume": lambda each: each.consume("work", lambda *_: None, timeout=TIMEOUT),
    "consume from another queue": lambda each: each.consume("other", lambda *_: None, timeout=TIMEOUT),
    "consume and forget": lambda each: each.consume("work", lambda *_: None, True, timeout=TIMEOUT),
    "is_open": lambda each: each.is_open,
    "channel": lambda each: each.channel,
    "add_callback_threadsafe": lambda each: each.add_callback_threadsafe(lambda: None),
    "stop": lambda each: each.stop(),
    "close": lambda each: each.close(timeout=TIMEOUT),
}


@contextmanager
def sync_at_work(settings):
    """An open connection for each call, and one that was never opened."""
    with ExitStack() as stack:
        connections = {}
        for name in SYNC_CALLS:
            each = connections[name] = SyncConnection(settings).open()
            stack.callback(each.close, timeout=TIMEOUT)
            each.publish("work", "x")
        new = SyncConnection(settings.replace(connect_deadline=TIMEOUT))
        stack.callback(new.close, timeout=TIMEOUT)
        yield connections, new


def every_call_of_sync_connections_ends(connections, new):
    """Make every public call, and return by how much each was late."""
    watch = Stopwatch()
    for name, call in SYNC_CALLS.items():
        watch.ends(f"SyncConnection: {name}", lambda name=name, call=call: call(connections[name]))
    watch.ends("SyncConnection: open", new.open)
    return watch.late


# AsyncConnection

ASYNC_CALLS = {
    "publish": lambda each: each.publish("work", "x", deadline=TIMEOUT),
    "publish to another queue": lambda each: each.publish("other", "x", deadline=TIMEOUT),
    "call": lambda each: each.call("work", "x", deadline=TIMEOUT),
    "consume": lambda each: asyncio.wait_for(each.consume("work", print), TIMEOUT),
    "consume from another queue": lambda each: asyncio.wait_for(each.consume("other", print), TIMEOUT),
    "close": lambda each: each.close(timeout=TIMEOUT),
}


async def every_call_of_async_connections_ends(settings, fault):
    """Open a connection for each call, make them amid *fault*, and return by how much each was late."""
    watch = Stopwatch()
    async with contextlib.AsyncExitStack() as stack:
        connections = {}
        for name in [*ASYNC_CALLS, "consuming"]:
            each = connections[name] = await AsyncConnection(settings).open()
            stack.push_async_callback(each.close, timeout=TIMEOUT)
            await each.publish("work", "x")
        new = AsyncConnection(settings.replace(connect_deadline=TIMEOUT))
        stack.push_async_callback(new.close, timeout=TIMEOUT)
        at_work = asyncio.Event()

        async def handler(_):
            at_work.set()
            await asyncio.sleep(60)

        consuming = asyncio.create_task(connections["consuming"].consume("work", handler))
        await at_work.wait()
        with fault():
            for name, call in ASYNC_CALLS.items():
                await watch.ends_soon(f"AsyncConnection: {name}", call(connections[name]))
            await watch.ends_soon("AsyncConnection: open", new.open())
            consuming.cancel()
            await watch.ends_soon("AsyncConnection: cancel of consume", asyncio.wait({consuming}))
            closing = connections["consuming"].close(timeout=TIMEOUT)
            await watch.ends_soon("AsyncConnection: close after it", closing)
    return watch.late


# Faults


def every_call_is_late_by(settings, fault):
    """Make every call amid *fault*, a function of nothing that returns a context manager; return by how much."""
    late = {}
    with pools_at_work(settings) as at_work, fault():
        late |= every_call_of_the_pools_ends(at_work)
    with sync_at_work(settings) as at_work, fault():
        late |= every_call_of_sync_connections_ends(*at_work)
    late |= asyncio.run(every_call_of_async_connections_ends(settings, fault))
    return late


def calls_while_the_link_is(name, settings):
    """The same through a proxy, with the line so broken."""
    with Proxy(settings) as proxy:

        @contextmanager
        def fault():
            with proxy.fault(Stall(), direction=FAULTS[name]):
                if name == "gone":
                    proxy.cut()
                yield

        return every_call_is_late_by(proxy.settings(heartbeat=0), fault)


@pytest.mark.parametrize("tls", [False, *in_soak(True)], ids=["plain", "tls"])
@pytest.mark.parametrize("name", FAULTS)
def test_every_call_of_a_pool_and_an_owner_ends_in_time_while_the_link_is(broker, name, tls):
    with own_virtual_host(broker, tls=tls) as settings:
        late = calls_while_the_link_is(name, settings)
    assert {what: seconds for what, seconds in late.items() if seconds > SLACK} == {}
