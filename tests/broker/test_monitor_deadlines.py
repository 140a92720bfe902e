"""How soon an alert is raised, for each kind of connection: after a kill, a cut, a stall and an alarm."""

import asyncio
import contextlib
import threading
import time

import pytest

from labkit import (
    AlertRaised,
    AsyncConnection,
    ChannelPool,
    Connection,
    ConnectionFactory,
    ConnectionManager,
    ConnectionMonitor,
    ConnectionPool,
    Consumer,
    Publisher,
    Queue,
    SyncConnection,
    Timeline,
)
from labkit.connector.abandon import abort
from labkit.lab.adapters import ADAPTERS
from labkit.monitor import AlertKind
from labkit.retry import Backoff
from labkit.wire import Proxy, Stall
from tests.broker.connections import SLACK
from tests.broker.monitored import WatchedTrial, watched_trials
from tests.view import until

pytestmark = [pytest.mark.broker, pytest.mark.slow]
HEARTBEAT = 2
ROLES = ("connection", "pool", "channel pool", "publisher", "consumer", "manager", "sync", "async", "blocking")


class Watched:
    """One of labkit's objects, or a raw BlockingConnection that nobody pumps, with a monitor."""

    def __init__(self, what, publish=lambda: None):
        self.what, self.publish = what, publish
        self.timeline = Timeline()
        self.monitor = ConnectionMonitor(what, interval=60.0, listeners=[self.timeline]).start()

    def alert(self, kind, *, timeout=30.0):
        def told():
            return [each for each in self.timeline.events if isinstance(each, AlertRaised) and each.kind == kind]

        until(told, timeout)
        return told()[0].at


@contextlib.contextmanager
def everything(settings, names=ROLES, adapters=ADAPTERS):
    """Every kind of connection that there is, open and watched."""
    calm = {"backoff": Backoff(initial=0.05, maximum=1.0)}
    with contextlib.ExitStack() as stack:
        with Connection(settings) as connection, connection.channel() as channel:
            channel.declare(Queue("watched", durable=True))
        kinds = {}
        stack.enter_context(watched_trials())
        trials = [stack.enter_context(WatchedTrial(each, settings)) for each in adapters]
        loop = asyncio.SelectorEventLoop()
        thread = threading.Thread(target=loop.run_forever)
        thread.start()

        def end_loop():
            loop.call_soon_threadsafe(loop.stop)
            thread.join(10)
            loop.close()

        stack.callback(end_loop)

        def on_loop(coroutine):
            return asyncio.run_coroutine_threadsafe(coroutine, loop).result(30)

        def made(name):
            match name:
                case "connection":
                    link = stack.enter_context(Connection(settings, recovery=True, **calm))
                    return Watched(link, lambda: link.channel().publish("x", routing_key="watched", timeout=1.0))
                case "pool":
                    pool = stack.enter_context(ConnectionPool(settings, min_size=1))
                    pool.open(wait=True)
                    return Watched(
                        pool, lambda: pool.execute(lambda ch: ch.publish("x", routing_key="watched", timeout=1.0))
                    )
                case "channel pool":
                    pool = stack.enter_context(ChannelPool(settings))
                    pool.execute(lambda ch: ch.publish("x", routing_key="watched"))
                    return Watched(
                        pool, lambda: pool.execute(lambda ch: ch.publish("x", routing_key="watched", timeout=1.0))
                    )
                case "publisher":
                    role = stack.enter_context(Publisher(settings))
                    return Watched(role, lambda: role.publish("x", routing_key="watched"))
                case "consumer":
                    return Watched(stack.enter_context(Consumer(settings, "watched", lambda got: got.ack())))
                case "manager":
                    manager = stack.enter_context(ConnectionManager(settings))
                    return Watched(manager, lambda: manager.publish("", "watched", "x"))
                case "sync":
                    return Watched(stack.enter_context(SyncConnection(settings)))
                case "async":
                    link = AsyncConnection(settings)
                    on_loop(link.open())
                    stack.callback(lambda: on_loop(link.close()))
                    return Watched(
                        link,
                        lambda: asyncio.run_coroutine_threadsafe(link.publish("watched", "x", deadline=3.0), loop),
                    )
                case "blocking":
                    link = ConnectionFactory(settings).blocking()
                    stack.callback(lambda: abort(link._impl, RuntimeError("the end of the test")))
                    channel = link.channel()
                    return Watched(link, lambda: channel.basic_publish("", "watched", b"x"))

        for trial in trials:
            trial.wait_for("echoed")
            kinds[trial.adapter] = trial
        for name in names:  # the last ones are those whose heartbeats nobody serves
            kinds[name] = made(name)
            stack.callback(kinds[name].monitor.stop)
        yield kinds


def late(kinds, kind, began, limit, done=None):
    """What has not raised that alert within *limit* seconds after *done* (None: *began*), and how long it took."""
    done = began if done is None else done
    took = {name: each.alert(kind.value) for name, each in kinds.items()}
    return {name: at - done for name, at in took.items() if not began <= at <= done + limit + SLACK}


def test_an_alert_is_raised_within_a_heartbeat_and_a_second_of_a_cut(settings):
    with Proxy(settings) as proxy, everything(proxy.settings(heartbeat=HEARTBEAT)) as kinds:
        began = time.time()
        proxy.cut()
        assert late(kinds, AlertKind.LOST, began, HEARTBEAT + 1) == {}


def test_an_alert_is_raised_within_a_heartbeat_and_a_second_of_a_kill(settings, view):
    with everything(settings.replace(heartbeat=HEARTBEAT)) as kinds:
        began = time.time()
        view.close_connections(settings.virtual_host)  # which looks for them first: seconds, on older brokers
        done = time.time()
        assert late(kinds, AlertKind.LOST, began, HEARTBEAT + 1, done) == {}
        single = {name: each for name, each in kinds.items() if "pool" not in name}  # a pool's are replaced
        assert late(single, AlertKind.BAD_STATE, began, HEARTBEAT + 1, done) == {}


def test_an_alert_is_raised_within_two_heartbeats_and_a_second_of_a_stall(settings):
    with Proxy(settings) as proxy, everything(proxy.settings(heartbeat=HEARTBEAT)) as kinds:
        began = time.time()
        with proxy.fault(Stall()):
            assert late(kinds, AlertKind.LOST, began, 2 * HEARTBEAT + 1) == {}


def test_an_alert_is_raised_a_second_after_the_broker_says_that_it_blocks(settings, broker):
    names = [each for each in ROLES if each not in ("consumer", "sync")]  # those publish nothing meanwhile
    with Proxy(settings) as proxy, everything(proxy.settings(heartbeat=10), names) as kinds:
        with broker.alarm():
            for each in kinds.values():
                if isinstance(each, WatchedTrial):
                    each.echo()
                else:
                    with contextlib.suppress(Exception):
                        each.publish()
            proxy.wait_for("Connection.Blocked", timeout=30, count=len(kinds))
            told = {entry.link: entry.at for entry in proxy.tap().entries() if "Blocked" in repr(entry.frame)}
            last = time.time() - (time.monotonic() - max(told.values()))
            assert {
                name for name, each in kinds.items() if each.alert(AlertKind.BLOCKED.value) > last + 1 + SLACK
            } == set()
        for each in kinds.values():
            if isinstance(each, Watched):
                until(lambda each=each: each.monitor.alerts == ())
