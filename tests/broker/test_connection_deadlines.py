"""Every public call ends: within its deadline and 2 s, whatever the line does (G8); an interrupt costs one call."""

import contextlib
import random
import signal
import threading
import time
from contextlib import contextmanager

import pytest

from labkit import ChannelLost, Connection, LabkitError, Queue, State
from labkit.wire import Proxy, Stall
from tests.broker.connections import SLACK, connected, io_thread_at_a_stop, own_virtual_host
from tests.view import until

pytestmark = pytest.mark.broker
TIMEOUT = 0.15  # seconds
FAULTS = {"silent both ways": "both", "silent downstream": "downstream", "silent upstream": "upstream", "gone": "both"}

CALLS = {
    "declare": lambda channel, _: channel.declare(Queue("work"), timeout=TIMEOUT),
    "delete": lambda channel, _: channel.delete(Queue("other"), timeout=TIMEOUT),
    "qos": lambda channel, _: channel.qos(5, timeout=TIMEOUT),
    "publish": lambda channel, _: channel.publish("x", routing_key="work", timeout=TIMEOUT),
    "publish and wait": lambda channel, _: channel.publish("x", routing_key="work", timeout=TIMEOUT),
    "get": lambda channel, _: channel.get("work", timeout=TIMEOUT),
    "purge": lambda channel, _: channel.purge("work", timeout=TIMEOUT),
    "consume": lambda channel, _: channel.consume("work", print, timeout=TIMEOUT),
    "cancel": lambda channel, tag: channel.cancel(tag, timeout=TIMEOUT),
    "close": lambda channel, _: channel.close(timeout=TIMEOUT),
}
ANSWERS = ["ack", "nack", "reject"]


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "tls"])
def settings(broker, request):
    """One virtual host for all tests here, each by both listeners: making one takes longer than most of them."""
    with own_virtual_host(broker, tls=request.param) as settings:
        yield settings


@contextmanager
def connection_at_work(settings):
    """A connection with a channel for each call, the tag of a consumer, and a delivery for each answer."""
    with connected(settings, recovery=True) as (connection, _):
        channels, deliveries = {}, {}
        for name in [*CALLS, *ANSWERS]:
            channel = channels[name] = connection.channel(confirm=name == "publish and wait")
            channel.delete(Queue(name))
            channel.declare(Queue(name))
        for name in ANSWERS:
            channels[name].publish("x", routing_key=name)
            deliveries[name] = until(lambda name=name: channels[name].get(name))
        tag = channels["cancel"].consume("cancel", print)
        yield connection, channels, deliveries, tag


def every_call_of_the_connection_ends(connection, channels, deliveries, tag, *, slack):
    """Make every public call, and measure each."""

    def ends(name, call):
        started = time.monotonic()
        with contextlib.suppress(LabkitError):
            call()
        assert time.monotonic() - started < TIMEOUT + slack, name

    for name, call in CALLS.items():
        ends(name, lambda name=name, call=call: call(channels[name], tag))
    for name, delivery in deliveries.items():
        ends(name, lambda name=name, delivery=delivery: getattr(delivery, name)(timeout=TIMEOUT))
    ends("channel", lambda: connection.channel(timeout=TIMEOUT))
    ends("confirming channel", lambda: connection.channel(confirm=True, timeout=TIMEOUT))
    ends("wait_for", lambda: connection.wait_for(State.FAILED, timeout=TIMEOUT))
    ends("status", connection.status)
    ends("close", lambda: connection.close(timeout=TIMEOUT))
    assert connection.state is State.CLOSED
    ends("open", lambda: connection.open(deadline=TIMEOUT))
    ends("abort", connection.abort)


def every_call_ends(settings, fault, *, slack):
    """Make every public call while the line is so."""
    with (
        Proxy(settings) as proxy,
        connection_at_work(proxy.settings(heartbeat=0)) as at_work,
        proxy.fault(Stall(), direction=FAULTS[fault]),
    ):
        if fault == "gone":
            proxy.cut()
        every_call_of_the_connection_ends(*at_work, slack=slack)


@pytest.mark.parametrize("fault", FAULTS)
def test_every_call_ends_in_time_while_the_link_is(settings, fault):
    every_call_ends(settings, fault, slack=SLACK)


@pytest.fixture
def interrupt():
    """Send this thread the signal of Ctrl-C, *after* so many seconds."""
    me = threading.main_thread().ident
    timers = []

    def interrupt(after):
        timer = threading.Timer(after, signal.pthread_kill, (me, signal.SIGINT))
        timers.append(timer)
        timer.start()

    yield interrupt
    for timer in timers:
        timer.cancel()
        timer.join(5)


def test_an_interrupted_call_costs_its_channel_and_not_the_connection(settings, interrupt):
    with Proxy(settings) as proxy, connected(proxy.settings()) as (connection, timeline):
        channel = connection.channel()
        with proxy.fault(Stall(), direction="downstream"):
            interrupt(0.2)
            with pytest.raises(KeyboardInterrupt):
                channel.declare(Queue("work"), timeout=20)
            until(lambda: not channel.is_open)
        with pytest.raises(ChannelLost, match="interrupted"):
            channel.get("work")
        assert connection.channel().declare(Queue("work")).name == "work"
        assert "ConnectionLost" not in timeline.names()


def test_an_interrupted_open_leaves_nothing_and_opens_again(settings, interrupt):
    with Proxy(settings) as proxy:
        connection = Connection(proxy.settings())
        with proxy.fault(Stall()):
            interrupt(0.3)
            with pytest.raises(KeyboardInterrupt):
                connection.open(deadline=20)
            until(lambda: connection.state is State.CLOSED)
        with connection:
            assert connection.channel().is_open
            until(lambda: len(proxy.links) == 1)


@pytest.mark.usefixtures("interrupts_may_hit_finalizers")
def test_interrupts_at_random_moments_leave_the_connection_usable(settings):
    rng = random.Random(20)
    me = threading.main_thread().ident
    stop = threading.Event()
    interrupts = 0
    survived = 0
    with connected(settings) as (connection, timeline):

        def shoot():
            while not stop.wait(rng.uniform(0.001, 0.02)):
                signal.pthread_kill(me, signal.SIGINT)

        shooter = threading.Thread(target=shoot)
        ends = time.monotonic() + 2.0
        channel = None
        shooter.start()
        while not stop.is_set():
            try:
                if time.monotonic() > ends:
                    stop.set()
                    shooter.join()
                    break
                if channel is None or not channel.is_open:
                    channel = connection.channel()
                channel.declare(Queue("work"))
                channel.publish("x", routing_key="work")
                survived += 1
            except KeyboardInterrupt:
                interrupts += 1
            except ChannelLost:
                channel = None
        while True:  # the last one may still be on its way
            try:
                time.sleep(0.1)
                break
            except KeyboardInterrupt:
                interrupts += 1
        assert connection.channel().declare(Queue("work"), passive=True).name == "work"
        assert "ConnectionLost" not in timeline.names()
        del channel
        until(lambda: connection.status().channels == 0)
    assert interrupts > 20
    assert survived > 0


def test_an_interrupted_acknowledgement_can_be_given_again(settings, interrupt, monkeypatch):
    with connected(settings) as (connection, _):
        channel = connection.channel()
        channel.declare(Queue("interrupted"))
        channel.publish("x", routing_key="interrupted")
        delivery = until(lambda: channel.get("interrupted"))
        monkeypatch.setattr("labkit.connection.channel_outbox.LINE_MAX", 1)
        with io_thread_at_a_stop(channel):
            channel.publish("in the way", routing_key="elsewhere")  # as if the loop were far behind: the next one waits
            interrupt(0.2)
            with pytest.raises(KeyboardInterrupt):
                delivery.ack(timeout=20)
        delivery.ack()
        channel.close()
        assert connection.channel().get("interrupted") is None


def test_a_channel_whose_call_was_interrupted_goes_to_no_other_borrower(settings, interrupt):
    with connected(settings) as (connection, _):
        channel = connection.channel()
        with_the_loop_held = threading.Event()
        connection._io.post(lambda: with_the_loop_held.wait(20))
        interrupt(0.2)
        with pytest.raises(KeyboardInterrupt):
            channel.declare(Queue("work"), timeout=20)
        assert not channel._core.is_clean
        with_the_loop_held.set()


def test_a_listener_that_sleeps_holds_no_call_up(settings):
    awake = threading.Event()
    connection = Connection(settings, listeners=[lambda _: awake.wait(30)])
    took = {}

    def timed(name, call):
        started = time.monotonic()
        result = call()
        took[name] = time.monotonic() - started
        return result

    try:
        connection.open()
        channel = timed("channel", lambda: connection.channel(timeout=TIMEOUT))
        timed("close of the channel", lambda: channel.close(timeout=TIMEOUT))
        timed("close", lambda: connection.close(timeout=TIMEOUT))
    finally:
        awake.set()
        connection.close()
    assert {name: seconds for name, seconds in took.items() if seconds > TIMEOUT + 0.6} == {}
