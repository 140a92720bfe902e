"""What a monitor says of connections that were never open. No broker."""

import gc
import threading
import time
import weakref

import pika
import pytest
from pika.connection import Connection as PikaConnection

from labkit import (
    AsyncConnection,
    BrokerSettings,
    ChannelPool,
    ConfigurationError,
    Connection,
    ConnectionManager,
    ConnectionMonitor,
    ConnectionPool,
    Consumer,
    Publisher,
    SyncConnection,
)
from labkit.connector.facts import PROTOCOL_STATES, LinkFacts, Traffic
from labkit.monitor.targets import PikaTarget
from tests.asynchronous import asynchronous
from tests.view import until

SETTINGS = BrokerSettings()
KINDS = {
    "connection": lambda: Connection(SETTINGS),
    "pool": lambda: ConnectionPool(SETTINGS),
    "channel pool": lambda: ChannelPool(SETTINGS),
    "publisher": lambda: Publisher(SETTINGS),
    "consumer": lambda: Consumer(SETTINGS, "q", print),
    "manager": lambda: ConnectionManager(SETTINGS),
    "sync": lambda: SyncConnection(SETTINGS),
    "select": lambda: pika.SelectConnection(pika.ConnectionParameters(port=1), internal_connection_workflow=False),
}


def monitors():
    return [each for each in threading.enumerate() if each.name == "labkit-monitor"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_never_open_has_a_status_and_no_alert(kind):
    what = KINDS[kind]()
    with ConnectionMonitor(what) as monitor:
        status = monitor.status()
    assert (status.is_open, status.bytes_sent, status.bytes_received, status.server_properties) == (False, 0, 0, {})
    assert status.protocol_state in PROTOCOL_STATES
    assert monitor.alerts == ()
    if kind == "select":
        what.ioloop.close()


@asynchronous
async def test_an_async_connection_has_one_too():
    connection = AsyncConnection(SETTINGS)
    with ConnectionMonitor(connection) as monitor:
        assert not monitor.status().is_open


def test_a_link_that_ends_between_two_looks_is_looked_at_once_more():
    connection = KINDS["select"]()
    connection.params.heartbeat = 60
    traffic = Traffic()
    traffic.begin(LinkFacts(connection))
    target = PikaTarget(traffic)
    assert not target.needs_looks
    connection.connection_state = PROTOCOL_STATES.index("OPEN")
    assert target.read()[1] is None
    connection.connection_state = PROTOCOL_STATES.index("CLOSED")
    assert target.needs_looks
    assert target.read()[1] == "it has ended, and nobody said why"
    assert not target.needs_looks
    connection.ioloop.close()


def test_the_names_of_protocol_states_are_pikas_in_pikas_order():
    named = {value: name for name, value in vars(PikaConnection).items() if name.startswith("CONNECTION_")}
    assert [f"CONNECTION_{each}" for each in PROTOCOL_STATES] == [named[number] for number in sorted(named)]


@pytest.mark.parametrize("interval", [0.001, 5.0, 3600.0, 1e9])
def test_stop_does_not_wait_for_the_interval(interval):
    connection = Connection(SETTINGS)
    monitor = ConnectionMonitor(connection, interval=interval).start()
    until(monitors)
    began = time.monotonic()
    monitor.stop()
    assert time.monotonic() - began < 0.5
    until(lambda: not monitors())


def test_it_may_be_started_and_stopped_twice_and_again():
    connection = Connection(SETTINGS)
    monitor = ConnectionMonitor(connection)
    for _ in range(3):
        assert monitor.open().start().is_open
        until(monitors)
        assert len(monitors()) == 1
        monitor.stop()
        monitor.close()
        until(lambda: not monitors())
        assert (monitor.is_open, connection.events.listeners) == (False, ())


def test_a_monitor_that_gets_no_thread_watches_nothing_and_may_be_opened_later(monkeypatch):
    def no_thread(*_):
        raise RuntimeError("can't start new thread")

    connection = Connection(SETTINGS)
    monitor = ConnectionMonitor(connection)
    with monkeypatch.context() as without:
        without.setattr("labkit.concurrency.threads.start_daemon", no_thread)
        with pytest.raises(RuntimeError):
            monitor.open()
    assert (monitor.is_open, connection.events.listeners) == (False, ())
    with monitor:
        until(monitors)


@pytest.mark.parametrize("kind", KINDS)
def test_a_monitor_keeps_nothing_alive(kind):
    what = KINDS[kind]()
    monitor = ConnectionMonitor(what, interval=0.01).start()
    gone = weakref.ref(what)
    if kind == "select":
        what.ioloop.close()
    del what

    def is_over():
        gc.collect()
        return gone() is None and not monitors()

    until(is_over)
    assert not monitor.status().is_open


def test_a_monitor_that_is_forgotten_ends_its_thread_and_listens_no_more():
    connection = Connection(SETTINGS)
    ConnectionMonitor(connection).start()
    gc.collect()
    until(lambda: not monitors())
    assert connection.events.listeners == ()


def test_what_is_no_connection_is_refused_by_name():
    with pytest.raises(ConfigurationError, match="what: an int is not allowed; allowed: one of Pika's"):
        ConnectionMonitor(5672)
    with pytest.raises(ConfigurationError, match="interval"):
        ConnectionMonitor(Connection(SETTINGS), interval=0)


def test_its_repr_is_the_same_on_every_run():
    connection = Connection(SETTINGS)
    monitor = ConnectionMonitor(connection)
    assert repr(monitor) == "ConnectionMonitor(stopped)"
    with monitor:
        assert repr(monitor) == "ConnectionMonitor(watching)"


def test_readiness_says_what_is_missing_and_health_does_not_ask_for_a_broker():
    connection = Connection(SETTINGS.replace(connection_name="orders"))
    monitor = ConnectionMonitor(connection)
    assert monitor.health()
    assert not monitor.readiness()
    assert monitor.readiness().problems == ("orders is new",)
    manager = ConnectionManager(SETTINGS)
    assert ConnectionMonitor(manager).readiness().problems == ("nothing is open yet",)
    pool = ConnectionPool(SETTINGS)
    assert ConnectionMonitor(pool).readiness()


class Facts:
    def __init__(self, sent, received, protocol_state="CLOSED"):
        self.bytes_sent, self.bytes_received, self.protocol_state = sent, received, protocol_state


def test_traffic_is_summed_over_links_and_never_falls():
    traffic = Traffic()
    seen = []
    for number in range(5):
        traffic.begin(Facts(10, number, "OPEN" if number % 2 else "CLOSED"))
        seen.append(traffic.bytes_sent)
    assert seen == [10, 20, 30, 40, 50]
    assert traffic.bytes_received == 0 + 1 + 2 + 3 + 4
    assert traffic.generation == 5
