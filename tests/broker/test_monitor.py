"""A monitor on real links: what it says of them, and that its numbers are those of the wire."""

import contextlib
import os
import threading
import time
from collections import Counter

import pika
import prometheus_client
import pytest

from labkit import (
    AlertCleared,
    AlertRaised,
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
    Unroutable,
)
from labkit.connector.facts import PROTOCOL_STATES
from labkit.monitor import AlertKind
from labkit.wire import Latency, Proxy
from tests.broker.connections import connected, nothing_left_behind, settle, through_a_proxy
from tests.view import until

pytestmark = pytest.mark.broker


@pytest.fixture
def blocking(settings):
    """An open BlockingConnection of Pika's own, made without labkit."""
    connection = pika.BlockingConnection(settings.replace(heartbeat=10).to_pika())
    yield connection
    if connection.is_open:
        connection.close()


def names(timeline):
    return [(type(each).__name__, each.kind) for each in timeline.events]


def test_the_status_of_pikas_own_connection_has_the_five_fields_and_keeps_them_after_a_close(blocking, broker):
    blocking.process_data_events(0)
    with ConnectionMonitor(blocking) as monitor:
        live = monitor.status()
        blocking.close()
        kept = monitor.status()
    assert (live.is_open, live.protocol_state) == (True, "OPEN")
    assert (live.server_properties["product"], live.server_properties["version"]) == ("RabbitMQ", broker.version)
    assert live.bytes_sent > 100 < live.bytes_received
    assert (kept.is_open, kept.protocol_state) == (False, "CLOSED")
    assert kept.server_properties == live.server_properties
    assert (blocking._impl.bytes_sent, blocking._impl.bytes_received) == (0, 0)  # Pika forgets
    assert kept.bytes_sent > live.bytes_sent
    assert kept.bytes_received > live.bytes_received


def test_bytes_grow_by_the_frames_of_a_publish_and_of_its_delivery(blocking):
    channel = blocking.channel()
    queue = channel.queue_declare("", exclusive=True).method.queue
    with ConnectionMonitor(blocking) as monitor:
        before = monitor.status()
        channel.basic_publish("", queue, b"x" * 100)
        sent = monitor.status()
        _, _, body = channel.basic_get(queue, auto_ack=True)
        got = monitor.status()
    frames = pika.frame.Method(1, pika.spec.Basic.Publish(exchange="", routing_key=queue)).marshal()
    frames += pika.frame.Header(1, 100, pika.BasicProperties()).marshal() + pika.frame.Body(1, b"x" * 100).marshal()
    assert sent.bytes_sent - before.bytes_sent == len(frames)
    assert body == b"x" * 100
    assert got.bytes_received - sent.bytes_received > 100


def test_the_protocol_state_never_raises_and_shows_the_handshake(settings):
    seen = set()
    with Proxy(settings) as proxy, proxy.fault(Latency(0.1)):
        connection = Connection(proxy.settings())
        with ConnectionMonitor(connection) as monitor:
            opening = threading.Thread(target=connection.open)
            opening.start()
            while opening.is_alive():
                seen.add(monitor.status().protocol_state)
                time.sleep(0.01)
            opening.join()
            seen.add(monitor.status().protocol_state)
            connection.close()
            seen.add(monitor.status().protocol_state)
    assert {"START", "OPEN", "CLOSED"} <= seen <= set(PROTOCOL_STATES)


def test_the_thread_survives_any_state_and_every_loss_is_raised_once_and_cleared_once(settings):
    timeline = Timeline()
    with through_a_proxy(settings, recovery=True) as (proxy, connection, events):
        with ConnectionMonitor(connection, interval=0.05, listeners=[timeline]) as monitor:
            for generation in range(2, 6):
                proxy.cut()
                until(lambda generation=generation: connection.is_open and connection.generation == generation)
            connection.close()
            connection.open()
            until(lambda: monitor.alerts == ())
            connection.abort()
            until(lambda: [each.kind for each in monitor.alerts] == [AlertKind.BAD_STATE])
            time.sleep(0.3)  # several looks: none of them raises anything again
            counters = monitor.status().counters
        assert Counter(names(timeline)) == {
            ("AlertRaised", "connection lost"): 4,
            ("AlertCleared", "connection lost"): 4,
            ("AlertRaised", "bad protocol state"): 6,
            ("AlertCleared", "bad protocol state"): 5,
        }
        assert (counters["connections_lost_total"], counters["reconnects_total"]) == (4, 4)
        del events


def test_a_lost_link_that_nobody_told_of_is_found_when_the_monitor_begins(settings):
    with through_a_proxy(settings) as (proxy, connection, _):
        proxy.cut()
        until(lambda: not connection.is_open)
        with ConnectionMonitor(connection) as monitor:
            until(lambda: {each.kind for each in monitor.alerts} == {AlertKind.LOST, AlertKind.BAD_STATE})
            connection.open()
            until(lambda: monitor.alerts == ())


def test_alerts_come_on_the_monitors_thread_and_a_listener_that_raises_costs_nothing(settings):
    threads = []

    def listener(_):
        threads.append(threading.current_thread().name)
        raise ZeroDivisionError

    with (
        through_a_proxy(settings, recovery=True) as (proxy, connection, _),
        ConnectionMonitor(connection, listeners=[listener]) as monitor,
    ):
        proxy.cut()
        until(lambda: connection.generation == 2 and len(threads) == 4)
        assert monitor.events.failures == 4
    assert set(threads) == {"labkit-monitor"}


def test_a_listener_that_hangs_does_not_hold_up_stop(settings):
    over = threading.Event()
    with through_a_proxy(settings, recovery=True) as (proxy, connection, _):
        monitor = ConnectionMonitor(connection, listeners=[lambda _: over.wait(30)]).start()
        proxy.cut()
        until(lambda: monitor.alerts)
        began = time.monotonic()
        monitor.stop()
        assert time.monotonic() - began < 0.5
        over.set()


def test_a_blocking_connection_is_looked_at_and_never_driven(blocking, view, settings):
    before = blocking._impl.bytes_received
    with ConnectionMonitor(blocking, interval=0.05) as monitor:
        time.sleep(0.3)
        assert blocking._impl.bytes_received == before
        view.close_connections(settings.virtual_host, "bye")
        until(lambda: {each.kind for each in monitor.alerts} == {AlertKind.LOST, AlertKind.BAD_STATE})
        assert "bye" in monitor.alerts[0].text
        assert not monitor.status().is_open
        assert blocking.is_open  # Pika has not read a byte of it
        with pytest.raises(pika.exceptions.ConnectionClosedByBroker):
            blocking.process_data_events(0)


def test_under_tls_a_blocking_connection_is_seen_to_be_cut(encrypted):
    with Proxy(encrypted) as proxy:
        connection = ConnectionFactory(proxy.settings(heartbeat=10)).blocking()
        with ConnectionMonitor(connection, interval=0.05) as monitor:
            status = monitor.status()
            assert status.is_open
            proxy.cut()
            until(lambda: AlertKind.LOST in {each.kind for each in monitor.alerts})
        with contextlib.suppress(pika.exceptions.AMQPError):
            connection.process_data_events(0)


def test_a_certificate_that_ends_soon_is_an_alert(encrypted, monkeypatch):
    monkeypatch.setattr("labkit.monitor.watch.WARN_BEFORE", 1e9)
    with connected(encrypted) as (connection, _), ConnectionMonitor(connection, interval=0.05) as monitor:
        until(lambda: [each.kind for each in monitor.alerts] == [AlertKind.CERTIFICATE])
        assert monitor.status().certificate_days > 0


def test_a_pool_that_is_used_up_and_a_lease_that_is_kept_are_alerts_until_they_end(settings):
    timeline = Timeline()
    with (
        ConnectionPool(settings, max_size=1, leak_after=0.2) as pool,
        ConnectionMonitor(pool, interval=0.05, listeners=[timeline]) as monitor,
    ):
        lease = pool.checkout()
        waiting = threading.Thread(target=lambda: pool.checkout().checkin())
        waiting.start()
        until(lambda: {each.kind for each in monitor.alerts} == {AlertKind.POOL_EXHAUSTED, AlertKind.LEAK})
        assert monitor.readiness()
        lease.checkin()
        waiting.join(10)
        until(lambda: monitor.alerts == ())
    told = Counter(names(timeline))
    assert told[("AlertRaised", "leak")] == told[("AlertCleared", "leak")] == 1
    # A look may find nothing lent, and the next one that the waiting thread has its lease and has not woken up.
    assert 1 <= told[("AlertRaised", "pool exhausted")] == told[("AlertCleared", "pool exhausted")] <= 2
    assert told.total() <= 6


def test_a_pools_lost_connection_is_an_alert_until_there_is_another(settings):
    timeline = Timeline()
    with Proxy(settings) as proxy, ConnectionPool(proxy.settings(), min_size=1) as pool:
        pool.open(wait=True)
        with ConnectionMonitor(pool, interval=0.05, listeners=[timeline]) as monitor:
            proxy.cut()
            timeline.wait_for(AlertRaised, timeout=10)
            timeline.wait_for(AlertCleared, timeout=10)
            until(monitor.readiness)
    assert {kind for _, kind in names(timeline)} == {"connection lost"}


def test_an_i_o_thread_that_lags_is_an_alert(settings):
    with connected(settings) as (connection, _), ConnectionMonitor(connection, interval=0.05) as monitor:
        connection._io.post(lambda: time.sleep(1.5))
        until(lambda: AlertKind.LAG in {each.kind for each in monitor.alerts})
        assert monitor.health()
        until(lambda: monitor.alerts == ())


def test_the_managers_monitor_sees_both_connections_and_ends_with_it(settings):
    with ConnectionManager(settings) as manager:
        assert manager.monitor is manager.monitor
        manager.channel().declare(Queue("q", durable=True))
        manager.consume("q", lambda delivery: delivery.ack())
        assert len(manager.monitor.status().connections) == 2
        assert manager.monitor.readiness()
    assert not manager.monitor.is_open
    assert (manager.monitor.status().is_open, manager.monitor.status().bytes_sent > 0) == (False, True)


def test_a_sync_connection_that_is_opened_again_is_the_next_generation(settings):
    with (
        Proxy(settings) as proxy,
        SyncConnection(proxy.settings(heartbeat=2)) as connection,
        ConnectionMonitor(connection) as monitor,
    ):
        first = monitor.status()
        proxy.cut()
        until(lambda: AlertKind.LOST in {each.kind for each in monitor.alerts})
        assert not connection.is_open
        connection.open()
        until(lambda: monitor.alerts == ())
        second = monitor.status()
    assert (first.generation, second.generation) == (1, 2)
    assert second.counters["sent_bytes_total"] > first.counters["sent_bytes_total"]


def test_what_is_counted_is_what_crossed_the_wire(settings):
    registry = prometheus_client.CollectorRegistry()
    with Proxy(settings) as proxy, contextlib.ExitStack() as watches:
        publisher = Publisher(proxy.settings())
        consumer = Consumer(proxy.settings(), Queue("counted", durable=True), lambda delivery: delivery.ack())
        for each in (publisher, consumer):
            watches.enter_context(ConnectionMonitor(each)).export_to(registry)

        def has_acked(count):  # and the proxy has seen it: what a cut swallows would have been sent and not arrived
            upstream = [each for each in proxy.tap().entries() if each.direction == "upstream" and each.frame]
            acks = sum(1 for each in upstream if each.frame.name == "Basic.Ack")
            return acks == consumer._tally.settled["ack"] == consumer._tally.delivered >= count

        with consumer, publisher:
            for count in (300, 600):
                publisher.publish_many([b"x" * 10] * 300, routing_key="counted")
                publisher.flush(timeout=30)
                until(lambda count=count: has_acked(count))
                proxy.cut()
                links = 1 + count // 300
                until(lambda links=links: publisher.connection.generation == consumer.connection.generation == links)
                until(lambda: publisher.connection.is_open and consumer.is_consuming)
            publisher.publish("x", routing_key="counted").result()
            with pytest.raises(Unroutable):
                publisher.publish("x", routing_key="nowhere").result()
            until(lambda: has_acked(601))

        def counted(name, **labels):
            return registry.get_sample_value(f"labkit_{name}", labels)

        crossed, frames = Counter(), Counter()
        for each in proxy.tap().entries():
            if each.frame is not None:
                crossed[each.direction] += each.frame.size
                frames[each.direction, each.frame.name] += 1
        assert proxy.tap().dropped == 0
        assert counted("messages_published_total", outcome="confirmed") == 601
        assert counted("messages_published_total", outcome="returned") == 1
        assert counted("publish_confirm_seconds_count") == 601
        assert counted("reconnects_total") == counted("connections_lost_total") == 4
        assert counted("messages_sent_total") == frames["upstream", "Basic.Publish"] == 602
        assert counted("deliveries_total") == frames["downstream", "Basic.Deliver"] >= 601
        assert counted("deliveries_handled_total", result="returned") == counted("deliveries_total")
        assert counted("settlements_total", verb="ack") == frames["upstream", "Basic.Ack"] >= 601
        assert counted("sent_bytes_total") == crossed["upstream"]
        assert counted("received_bytes_total") == crossed["downstream"]


def test_a_child_process_has_a_monitor_of_its_own(settings):
    with connected(settings, recovery=True) as (connection, _), ConnectionMonitor(connection) as monitor:
        until(lambda: threading.active_count() > 1)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            answer = b"failed"
            with contextlib.suppress(BaseException):
                assert (monitor.is_open, monitor.alerts, monitor.status().is_open) == (True, (), False)
                connection.open()
                assert monitor.status().is_open
                monitor.stop()
                answer = b"fine"
            os.write(write, answer)
            os._exit(0)
        os.waitpid(child, 0)
        assert os.read(read, 10) == b"fine"
        assert monitor.status().is_open
        os.close(read)
        os.close(write)


def test_nothing_is_left_of_many_monitors(settings):
    with connected(settings) as (connection, _), ConnectionMonitor(connection, interval=0.01):
        pass
    settle()
    with nothing_left_behind(), connected(settings) as (connection, _):
        for _ in range(50):
            with ConnectionMonitor(connection, interval=0.01) as monitor:
                monitor.status()
        assert connection.events.listeners != ()
