"""One connection from open to close: states, events, and errors that say what happened."""

import threading
import time

import pika.exceptions as px
import pytest

from labkit import (
    AccessRefused,
    AuthenticationFailed,
    BrokerSettings,
    ChannelLost,
    ConfigurationError,
    ConnectError,
    Connection,
    ConnectionClosed,
    ConnectionFactory,
    ConnectionLost,
    DeadlineExceeded,
    LabkitError,
    NotConnected,
    State,
    Timeline,
)
from labkit.lab.interrupting import StopAfter
from labkit.wire import Proxy, Refuse, Stall
from tests.broker.connections import BRISK, SLACK, connected, io_thread_at_a_stop, our_threads, own_virtual_host
from tests.view import until

pytestmark = pytest.mark.broker


@pytest.fixture(scope="module")
def settings(broker):
    """One virtual host for all tests here: making one takes longer than most of them."""
    with own_virtual_host(broker) as settings:
        yield settings


def test_open_use_and_close_emit_one_event_each_in_order(settings):
    timeline = Timeline()
    connection = Connection(settings, listeners=[timeline])
    assert (connection.state, connection.generation, timeline.names()) == (State.NEW, 0, [])

    with connection:
        assert (connection.state, connection.generation, connection.is_open) == (State.OPEN, 1, True)
        assert timeline.names() == ["ConnectAttempted", "ConnectionOpened"]
        connection.channel().close()

    assert timeline.names()[2:] == ["ChannelOpened", "ChannelClosed", "ConnectionClosed"]
    assert timeline.events[-1] == ConnectionClosed(clean=True, connection=settings.connection_name)
    assert timeline.events[-2].reason is None
    assert (connection.state, connection.is_open, timeline.dropped) == (State.CLOSED, False, 0)


def test_repr_and_status_show_states_and_no_secret_port_or_time(settings):
    with connected(settings) as (connection, _):
        channel = connection.channel()
        assert repr(connection) == "Connection(open)"
        assert repr(channel) == "Channel(open)"
        assert repr(connection.status()) == (
            "ConnectionStatus(state=State.OPEN, is_open=True, is_blocked=False, generation=1, channels=1)"
        )
        assert connection.status().bytes_received > 0


def test_close_twice_and_before_open_is_harmless(settings):
    connection = Connection(settings)
    connection.close()
    assert connection.state is State.NEW
    connection.open()
    connection.close()
    connection.close()
    connection.abort()
    assert connection.state is State.CLOSED


def test_a_closed_connection_opens_again_and_says_opened(settings):
    with connected(settings) as (connection, timeline):
        connection.close()
        connection.open()
        assert connection.generation == 2
        assert timeline.names().count("ConnectionOpened") == 2
        assert "ConnectionRecovered" not in timeline.names()


def test_threads_that_open_at_once_share_one_link(settings):
    timeline = Timeline()
    with Proxy(settings) as proxy:
        connection = Connection(proxy.settings(), listeners=[timeline])
        threads = [threading.Thread(target=connection.open) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert connection.is_open
        assert timeline.names().count("ConnectAttempted") == 1
        assert len(proxy.links) == 1
        connection.close()


def test_threads_that_open_a_closed_connection_at_once_all_have_it_open(settings):
    connection = Connection(settings)
    for _ in range(5):
        connection.open()
        connection.close()
        together, errors = threading.Barrier(8), []

        def open_it(together=together, errors=errors):
            together.wait(10)
            try:
                connection.open()
            except LabkitError as exc:
                errors.append(exc)

        threads = [threading.Thread(target=open_it) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert errors == []
        connection.close()


def test_the_factory_connects_and_its_listeners_hear(settings):
    timeline = Timeline()
    connection = ConnectionFactory(settings, listeners=[timeline]).connect()
    with connection:
        assert connection.is_open
    assert timeline.names() == ["ConnectAttempted", "ConnectionOpened", "ConnectionClosed"]


@pytest.mark.parametrize(
    ("changes", "error"),
    [({"password": "wrong"}, AuthenticationFailed), ({"virtual_host": "no such"}, AccessRefused)],
)
def test_a_refusal_is_not_tried_again(settings, changes, error):
    timeline = Timeline()
    connection = Connection(settings.replace(**changes), backoff=BRISK, recovery=True, listeners=[timeline])
    with pytest.raises(error) as caught:
        connection.open()
    assert caught.value.attempts == 1
    assert connection.state is State.FAILED
    assert timeline.names() == ["ConnectAttempted", "AttemptFailed", "ConnectionGivenUp"]
    assert timeline.events[-1].error is caught.value
    with pytest.raises(NotConnected):
        connection.channel()


def test_attempts_are_made_until_the_deadline_and_every_failure_has_a_cause(settings):
    timeline = Timeline()
    with Proxy(settings) as proxy, proxy.fault(Refuse()):
        connection = Connection(proxy.settings(), backoff=BRISK, listeners=[timeline])
        started = time.monotonic()
        with pytest.raises(ConnectError) as caught:
            connection.open(deadline=1.0)
        assert time.monotonic() - started < 1.0 + SLACK
    failures = [event for event in timeline.events if type(event).__name__ == "AttemptFailed"]
    assert caught.value.attempts == len(failures) > 1
    assert all(repr(event.error) and event.next_delay is not None for event in failures[:-1])
    assert failures[-1].next_delay is None
    assert connection.state is State.FAILED


def test_close_ends_an_attempt_to_connect(settings):
    timeline = Timeline()
    with Proxy(settings) as proxy, proxy.fault(Stall()):
        connection = Connection(proxy.settings(), listeners=[timeline])
        caught = []

        def open_it():
            try:
                connection.open()
            except NotConnected as exc:
                caught.append(exc)

        thread = threading.Thread(target=open_it)
        thread.start()
        connection.wait_for(State.CONNECTING, timeout=5)
        started = time.monotonic()
        connection.close(timeout=1)
        thread.join(5)
        assert time.monotonic() - started < 1 + SLACK
    assert not thread.is_alive()
    assert len(caught) == 1
    assert timeline.names() == ["ConnectAttempted", "ConnectionClosed"]


@pytest.mark.parametrize("end", [Connection.close, Connection.abort])
def test_ending_a_connection_during_its_handshake_harms_no_other(settings, caplog, end):
    with connected(settings) as (other, _), Proxy(settings) as proxy, proxy.fault(Stall(), direction="downstream"):
        connection = Connection(proxy.settings())
        outcome = []

        def work():
            try:
                connection.open()
            except LabkitError as exc:
                outcome.append(exc)

        thread = threading.Thread(target=work)
        thread.start()
        proxy.wait_for("ProtocolHeader", timeout=10)
        end(connection)
        thread.join(10)
        assert isinstance(outcome[0], NotConnected)
        assert connection.state is State.CLOSED
        assert other.is_open
        assert other.generation == 1
    assert "crashed" not in caplog.text


def test_close_under_a_stall_ends_in_time_and_says_it_was_not_clean(settings):
    with Proxy(settings) as proxy, connected(proxy.settings()) as (connection, timeline):
        with proxy.fault(Stall()):
            started = time.monotonic()
            connection.close(timeout=0.5)
            assert time.monotonic() - started < 0.5 + SLACK
        assert connection.state is State.CLOSED
        assert timeline.events[-1].clean is False


def test_an_interrupt_while_close_waits_for_what_is_not_sent_closes_all_the_same(settings):
    connection = Connection(settings, recovery=True).open()
    channel = connection.channel()
    with io_thread_at_a_stop(channel):
        channel.publish("not sent yet", routing_key="nobody")
        with StopAfter(0.2) as stop:
            connection.close(timeout=1)
    assert stop.interrupted
    connection.wait_for(State.CLOSED, timeout=5)


def test_abort_drops_the_socket_without_a_goodbye(settings):
    with Proxy(settings) as proxy, connected(proxy.settings()) as (connection, timeline):
        connection.abort()
        assert connection.state is State.CLOSED
        until(lambda: not proxy.links)
        assert "Connection.Close" not in str(proxy.conversation())
        assert timeline.events[-1].clean is False


def test_a_connection_that_the_broker_closes_is_lost_with_the_broker_s_reason(settings, view):
    with connected(settings) as (connection, timeline):
        channel = connection.channel()
        view.close_connections(settings.virtual_host, "maintenance")
        lost = timeline.wait_for(ConnectionLost, timeout=10)
        assert lost.reason.reply_code == 320
        assert "maintenance" in lost.reason.reply_text
        assert (connection.state, connection.is_open, channel.is_open) == (State.FAILED, False, False)
        with pytest.raises(ChannelLost, match="maintenance"):
            channel.get("any")
        with pytest.raises(NotConnected, match="maintenance"):
            connection.channel()


def test_waiting_for_a_state_that_cannot_come_ends_at_once(settings):
    with Proxy(settings) as proxy, connected(proxy.settings()) as (connection, _):
        started = time.monotonic()
        with pytest.raises(NotConnected):
            connection.wait_for(State.WAITING, timeout=30)
        with pytest.raises(DeadlineExceeded):
            connection.wait_for(State.CLOSED, timeout=0.05)
        errors = []

        def wait():
            try:
                connection.wait_for(State.CLOSING, timeout=30)
                connection.wait_for(State.OPEN, timeout=30)
            except NotConnected as exc:
                errors.append(exc)

        waiting = threading.Thread(target=wait)
        waiting.start()
        proxy.cut()
        connection.wait_for(State.FAILED, timeout=10)
        with pytest.raises(NotConnected) as caught:
            connection.wait_for(State.OPEN, timeout=30)
        assert isinstance(caught.value.reason, px.StreamLostError)
        connection.close()
        waiting.join(10)
        assert len(errors) == 1
        assert time.monotonic() - started < 10 + SLACK


def test_a_listener_that_raises_or_sleeps_costs_no_event_and_no_heartbeat(settings):
    timeline = Timeline()
    release = threading.Event()

    def bad(event):
        release.wait(4)
        raise ValueError("a broken dashboard")

    connection = Connection(settings.replace(heartbeat=1), listeners=[bad, timeline])
    connection.open()
    try:
        assert timeline.names() == []
        time.sleep(3.5)  # more than the broker forgives without heartbeats
        assert connection.is_open
    finally:
        release.set()
        connection.close()
    until(lambda: len(timeline.names()) == 3)
    assert timeline.names() == ["ConnectAttempted", "ConnectionOpened", "ConnectionClosed"]
    assert connection.status().listener_failures == 3


def test_listeners_are_called_off_the_io_thread(settings):
    names = set()
    with connected(settings) as (connection, _):
        connection.events.add(lambda _: names.add(threading.current_thread().name))
        connection.channel().close()
    assert names == {"labkit-events"}


@pytest.mark.parametrize(
    "arguments",
    [{"settings": "amqp://localhost"}, {"backoff": 3}, {"recovery": -1}, {"recovery": "yes"}, {"listeners": [3]}],
)
def test_an_argument_that_cannot_be_is_refused_before_any_io(arguments):
    with pytest.raises(ConfigurationError):
        Connection(**{"settings": BrokerSettings(), **arguments})


@pytest.mark.parametrize(("heartbeat", "agreed"), [(0, 0), (None, 60), (7, 7), (lambda _, offered: min(offered, 9), 9)])
def test_the_heartbeat_is_what_settings_say(settings, heartbeat, agreed):
    with Proxy(settings) as proxy, connected(proxy.settings(heartbeat=heartbeat)):
        assert f"heartbeat={agreed}" in str(proxy.conversation()) or f"'heartbeat': {agreed}" in str(
            proxy.conversation()
        )


def test_a_heartbeat_function_that_raises_fails_the_connect_at_once(settings):
    def broken(_, offered):
        raise ValueError("not my day")

    connection = Connection(settings.replace(heartbeat=broken))
    with pytest.raises(ConnectError, match="not my day") as caught:
        connection.open()
    assert caught.value.attempts == 1


def test_an_idle_thread_and_an_io_thread_without_connections_end(settings):
    with connected(settings):
        assert "labkit-io" in our_threads()
    until(lambda: not our_threads(), 10)


def test_a_forgotten_connection_is_closed(settings):
    with Proxy(settings) as proxy:
        Connection(proxy.settings()).open()
        until(lambda: not proxy.links)
        proxy.wait_for("Connection.CloseOk", timeout=1)
