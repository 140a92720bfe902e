"""A lost link is noticed in time, said with its cause, replaced when that is wanted, and leaves nothing behind."""

import random
import re
import threading
import time
import uuid

import pika.exceptions as px
import pytest

from labkit import (
    AttemptFailed,
    ChannelLost,
    ConnectError,
    Connection,
    ConnectionBlocked,
    ConnectionGivenUp,
    ConnectionLost,
    ConnectionRecovered,
    ConnectionUnblocked,
    DeadlineExceeded,
    NotConnected,
    Queue,
    State,
    Timeline,
    brokers,
)
from labkit.retry import Backoff
from labkit.wire import DropHeartbeats, Proxy, Refuse, Stall
from tests.broker.connections import (
    BRISK,
    EAGER,
    SLACK,
    connected,
    descriptors,
    our_threads,
    own_virtual_host,
    retired,
    through_a_proxy,
)
from tests.broker.topology import whole_topology
from tests.view import until

pytestmark = pytest.mark.broker


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "tls"])
def settings(broker, request):
    """One virtual host for all tests here, each by both listeners: making one takes longer than most of them."""
    with own_virtual_host(broker, tls=request.param) as settings:
        yield settings


def test_without_recovery_a_cut_is_the_end_and_open_begins_again(settings):
    with through_a_proxy(settings) as (proxy, connection, timeline):
        proxy.cut()
        connection.wait_for(State.FAILED, timeout=5)
        assert not connection.is_open
        with pytest.raises(NotConnected, match="call open"):
            connection.channel()
        connection.open()
        assert (connection.is_open, connection.generation) == (True, 2)
    names = [name for name in timeline.names() if not name.startswith("Channel")]
    attempt = ["ConnectAttempted", "ConnectionOpened"]
    assert names == [*attempt, "ConnectionLost", *attempt, "ConnectionClosed"]


def test_with_recovery_each_cut_is_lost_then_recovered(settings):
    with through_a_proxy(settings, recovery=True) as (proxy, connection, timeline):
        for generation in (2, 3, 4):
            mark = timeline.mark()
            channel = connection.channel()
            proxy.cut(reset=generation == 3)
            recovered = timeline.wait_for(ConnectionRecovered, timeout=5, since=mark)
            assert recovered.generation == connection.generation == generation
            assert not channel.is_open
            with pytest.raises(ChannelLost):
                channel.get("any")
            assert connection.channel().is_open
            assert (connection.status().tls is None) == (settings.tls is None)
    lost = [event for event in timeline.events if isinstance(event, ConnectionLost)]
    assert [event.generation for event in lost] == [1, 2, 3]
    assert all(str(event.reason) for event in lost)
    assert timeline.names().count("ConnectionOpened") == 1


def test_recovery_is_back_within_the_longest_pause_and_a_second(settings):
    """G2, class size: with all that was declared and consumed."""
    with through_a_proxy(settings, recovery=True) as (proxy, connection, timeline), whole_topology(connection):
        for _ in range(3):
            mark = timeline.mark()
            with proxy.fault(Refuse()):
                proxy.cut()
                timeline.wait_for(AttemptFailed, timeout=10, since=mark, count=4)
            accepts_since = time.monotonic()
            timeline.wait_for(ConnectionRecovered, timeout=10, since=mark)
            assert time.monotonic() - accepts_since < BRISK.maximum + 1 + SLACK
            assert connection.is_open
    failures = [event for event in timeline.events if isinstance(event, AttemptFailed)]
    assert all(repr(event.error) and event.next_delay <= BRISK.maximum for event in failures)


@pytest.mark.parametrize("direction", ["both", "downstream"])
def test_a_half_open_link_is_noticed_within_two_heartbeats_and_a_second(settings, direction):
    """G9, class size. Pika alone takes up to 2 x (heartbeat + 5) seconds."""
    with through_a_proxy(settings, heartbeat=1, recovery=True) as (proxy, connection, timeline):
        with proxy.fault(Stall(), direction=direction):
            started = time.monotonic()
            lost = timeline.wait_for(ConnectionLost, timeout=10)
            assert time.monotonic() - started < 2 * 1 + 1 + SLACK
            assert isinstance(lost.reason, px.AMQPHeartbeatTimeout)
            assert not connection.is_open
            assert retired() == connection.status().retired == 1
        timeline.wait_for(ConnectionRecovered, timeout=10)
        until(lambda: retired() == 0)
        assert connection.channel().is_open


def test_a_stalled_upstream_is_noticed_by_the_broker_and_said(settings):
    silence = Stall() if settings.tls else DropHeartbeats()  # what is encrypted cannot be told apart
    with through_a_proxy(settings, heartbeat=1, recovery=True) as (proxy, _, timeline):
        with proxy.fault(silence, direction="upstream"):
            timeline.wait_for(ConnectionLost, timeout=15)
        timeline.wait_for(ConnectionRecovered, timeout=10)


def test_a_permanent_refusal_ends_recovery(settings):
    with through_a_proxy(settings, recovery=True, retry_refused=0) as (proxy, connection, timeline):
        object.__setattr__(connection.settings, "virtual_host", "no such")  # as if it had been deleted meanwhile
        proxy.cut()
        given_up = timeline.wait_for(ConnectionGivenUp, timeout=10)
        connection.wait_for(State.FAILED, timeout=5)
        assert (given_up.attempts, type(given_up.error).__name__) == (1, "AccessRefused")
        with pytest.raises(NotConnected):
            connection.wait_for(State.OPEN, timeout=30)


def test_recovery_ends_after_the_attempts_or_the_seconds_it_was_given(settings):
    with Proxy(settings) as proxy:
        for options in ({"backoff": Backoff(maximum=0.1, attempts=3), "recovery": True}, {"recovery": 0.5}):
            timeline = Timeline()
            connection = Connection(proxy.settings(), listeners=[timeline], **options).open()
            with proxy.fault(Refuse()):
                proxy.cut()
                given_up = timeline.wait_for(ConnectionGivenUp, timeout=10)
            assert isinstance(given_up.error, ConnectError)
            assert "backoff" not in options or given_up.attempts == 3
            assert connection.state is State.FAILED
            connection.close()


def test_close_stops_recovery_at_once(settings):
    slow = Backoff(initial=60.0, maximum=60.0, jitter="none")
    with Proxy(settings) as proxy:
        timeline = Timeline()
        connection = Connection(proxy.settings(), backoff=slow, recovery=True, listeners=[timeline]).open()
        proxy.cut()
        connection.wait_for(State.WAITING, timeout=5)
        started = time.monotonic()
        connection.close()
        assert time.monotonic() - started < SLACK
        until(lambda: "labkit-recovery" not in our_threads())
        assert timeline.names()[-2:] == ["ConnectionLost", "ConnectionClosed"]


def test_pauses_go_on_growing_while_links_die_young(settings):
    """A broker in a crash loop accepts and hangs up: each link lives, none is stable."""
    doubling = Backoff(initial=0.05, maximum=10.0, jitter="none")
    with Proxy(settings) as proxy:
        timeline = Timeline()
        connection = Connection(proxy.settings(), backoff=doubling, recovery=True, listeners=[timeline]).open()
        pauses = []
        for _ in range(4):
            mark = timeline.mark()
            proxy.cut()
            pauses.append(timeline.wait_for(ConnectionRecovered, timeout=10, since=mark).seconds)
        connection.close()
    assert pauses[3] >= 0.4  # 0.05, 0.1, 0.2, 0.4
    assert pauses[0] < pauses[3]


LETTERS = {
    "ConnectAttempted": "A",
    "AttemptFailed": "F",
    "ConnectionOpened": "O",
    "ConnectionLost": "L",
    "ConnectionRecovered": "R",
    "ConnectionClosed": "C",
}


def random_faults(settings, *, seed, count):
    """Take a connection through *count* faults: one event a transition, in an order the states allow, none dropped.

    Returns:
        Its story, a letter an event.
    """
    rng = random.Random(seed)
    with through_a_proxy(settings, recovery=True, backoff=EAGER) as (proxy, connection, timeline):
        for number in range(1, count + 1):
            mark = timeline.mark()
            if rng.random() < 0.3:
                with proxy.fault(Refuse()):
                    proxy.cut(reset=rng.random() < 0.5)
                    timeline.wait_for(AttemptFailed, timeout=20, since=mark, count=rng.randrange(1, 4))
            else:
                proxy.cut(reset=rng.random() < 0.5)
            timeline.wait_for(ConnectionLost, timeout=20, count=number)  # else the next cut may find no link
            if rng.random() < 0.5:
                timeline.wait_for(ConnectionRecovered, timeout=20, count=number)
            else:
                connection.wait_for(State.OPEN, timeout=20)
        proxy.cut()
        time.sleep(rng.uniform(0, 0.02))  # close() finds it open, waiting, connecting or open again
        connection.close()
        status = connection.status()
    story = "".join(LETTERS[name] for name in timeline.names())
    assert re.fullmatch(r"A(FA)*O(LA(FA)*R)*(L(A(FA)*F?)?)?C", story), story
    assert status.generation == 1 + story.count("R")
    assert story.count("L") - count in (0, 1)  # close() may be sooner than the last loss
    assert (status.dropped_events, timeline.dropped) == (0, 0)
    return story


@pytest.mark.parametrize("seed", range(4))
def test_events_are_exact_through_random_faults(settings, seed):
    """G15, class size."""
    random_faults(settings, seed=seed, count=8)


class Recorder:
    """A role that writes down what it is told; it declares a queue on each new link."""

    def __init__(self, outcome=0):
        self.told = []
        self.outcome = outcome

    def restore(self, link, done):
        self.told.append(("restore", link.generation, threading.current_thread().name))
        # Another name each time: the broker may not have noticed yet that the old link, and so its queue, is gone.
        self.queue = f"of-the-role-{uuid.uuid4().hex}"
        link.connection.channel(
            on_open_callback=lambda channel: channel.queue_declare(
                self.queue, exclusive=True, callback=lambda _: done(self.outcome)
            )
        )

    def lost(self, reason):
        self.told.append(("lost", type(reason).__name__))

    def ended(self, reason):
        self.told.append(("ended", reason))


def test_a_role_is_restored_before_anyone_hears_of_the_recovery(settings):
    role = Recorder(outcome=7)
    with through_a_proxy(settings, recovery=True) as (proxy, connection, timeline):
        connection._add_role(role)
        proxy.cut()
        assert timeline.wait_for(ConnectionRecovered, timeout=10).replayed == 7
        assert connection.channel().declare(Queue(role.queue), passive=True).consumers == 0
    assert role.told == [
        ("restore", 1, "labkit-io"),
        ("lost", "StreamLostError"),
        ("restore", 2, "labkit-io"),
        ("ended", None),
    ]


class SlowRecorder(Recorder):
    """A role that is restored when the test says so."""

    def __init__(self):
        super().__init__()
        self.begun, self.go = threading.Event(), threading.Event()

    def restore(self, link, done):
        self.begun.set()

        def look():
            if self.go.is_set():
                done(0)
            else:
                link.io.call_later(0.01, look)

        look()


def test_a_role_that_is_added_while_another_is_restored_is_on_the_new_link_too(settings):
    slow, late = SlowRecorder(), Recorder()
    slow.go.set()
    with through_a_proxy(settings, recovery=True) as (proxy, connection, timeline):
        connection._add_role(slow)
        slow.begun.clear()
        slow.go.clear()
        proxy.cut()
        assert slow.begun.wait(10)
        connection._add_role(late)
        slow.go.set()
        timeline.wait_for(ConnectionRecovered, timeout=10)
        assert ("restore", 2, "labkit-io") in late.told


def test_a_role_that_cannot_be_restored_fails_the_attempt_and_is_tried_again(settings):
    role = Recorder(outcome=px.ChannelClosedByBroker(405, "RESOURCE_LOCKED"))
    with through_a_proxy(settings, recovery=True) as (proxy, connection, timeline):
        with pytest.raises(px.ChannelClosedByBroker):
            connection._add_role(role)
        proxy.cut()
        timeline.wait_for(AttemptFailed, timeout=10)
        role.outcome = 0
        timeline.wait_for(ConnectionRecovered, timeout=15)
        assert connection.is_open


def test_twenty_forced_reconnects_leave_nothing_behind(settings):
    """C25, class size."""
    with through_a_proxy(settings, recovery=True, backoff=EAGER) as (proxy, connection, timeline):
        connection.channel()
        before = descriptors()
        for _ in range(20):
            mark = timeline.mark()
            proxy.cut(reset=True)
            timeline.wait_for(ConnectionRecovered, timeout=10, since=mark)
            connection.channel()
        until(lambda: our_threads() == ["labkit-io"], 10)
        until(lambda: descriptors() <= before, 10)
        assert retired() == 0
        assert len(proxy.links) == 1


@pytest.mark.slow
@pytest.mark.own_broker
@pytest.mark.timeout(180)
def test_a_killed_broker_is_noticed_at_once_and_found_again(monkeypatch):
    with brokers.own("local") as broker:
        if not {"process", "alarm"} <= broker.capabilities:
            pytest.skip("needs a broker that can be killed and alarmed")
        with connected(broker.settings().replace(heartbeat=2), recovery=True) as (connection, timeline):
            channel = connection.channel()
            broker.kill()
            timeline.wait_for(ConnectionLost, timeout=5)
            assert (connection.is_open, channel.is_open) == (False, False)
            broker.start()  # returns once it answers: from there on count the longest pause and a second, and one more
            timeline.wait_for(ConnectionRecovered, timeout=BRISK.maximum + 1 + 1.0)
            assert connection.is_open
            _blocked_is_a_flag(broker, connection, timeline)
        _blocked_too_long_is_a_loss(broker)


def _blocked_is_a_flag(broker, connection, timeline):
    channel = connection.channel()
    channel.declare(Queue("work"))
    with broker.alarm():
        channel.publish("the one that is told", routing_key="work")
        timeline.wait_for(ConnectionBlocked, timeout=10)
        assert (connection.state, connection.is_open, connection.is_blocked) == (State.OPEN, True, True)
        started = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            channel.publish("not sent", routing_key="work", timeout=0.3)
        assert time.monotonic() - started < 0.3 + SLACK
        assert channel.is_open
        time.sleep(5)  # more than 2 heartbeats: an alarm is no silence
        assert connection.is_open
        waiting = threading.Thread(target=lambda: channel.publish("sent later", routing_key="work", timeout=30))
        waiting.start()
    timeline.wait_for(ConnectionUnblocked, timeout=15)
    waiting.join(10)
    assert not connection.is_blocked
    until(lambda: channel.declare(Queue("work"), passive=True).messages == 2)


def _blocked_too_long_is_a_loss(broker):
    with connected(broker.settings().replace(blocked_connection_timeout=1.0)) as (connection, timeline):
        channel = connection.channel()
        with broker.alarm():
            channel.publish("x", routing_key="work")
            lost = timeline.wait_for(ConnectionLost, timeout=10)
            assert isinstance(lost.reason, px.ConnectionBlockedTimeout)
            started = time.monotonic()
            connection.close(timeout=1)
            assert time.monotonic() - started < 1 + SLACK
