"""One manager publishes and consumes on two connections, keeps both going, and ends in order."""

import contextlib
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pika
import pytest

from labkit import (
    AttemptFailed,
    AuthenticationFailed,
    ChannelLost,
    ConnectError,
    Connection,
    ConnectionGivenUp,
    ConnectionLost,
    ConnectionManager,
    ConnectionRecovered,
    ConsumerCancelled,
    DeadlineExceeded,
    NotConnected,
    Outcome,
    Queue,
    State,
    Timeline,
    Unroutable,
)
from labkit.lab.interrupting import StopAfter
from labkit.retry import Backoff
from labkit.wire import LimitData, Proxy, Refuse, Stall
from tests.broker.connections import BRISK, EAGER, SLACK, connected, descriptors, our_threads, own_virtual_host, settle
from tests.broker.publishing import check_nothing_is_lost, drained
from tests.view import until

pytestmark = pytest.mark.broker


@pytest.fixture(scope="module")
def settings(broker):
    """One virtual host for all tests here."""
    with own_virtual_host(broker) as settings:
        yield settings


@contextmanager
def managing(settings, *, queue="work", heartbeat=5, backoff=BRISK, **options):
    """An open manager behind a proxy, its timeline, and a queue that is there and empty."""
    timeline = Timeline()
    with Proxy(settings) as proxy:
        changed = proxy.settings(heartbeat=heartbeat)
        with ConnectionManager(changed, backoff=backoff, listeners=[timeline], **options) as manager:
            with manager.channel() as channel:
                channel.delete(Queue(queue))
                channel.declare(Queue(queue))
            yield manager, proxy, timeline


class Handler:
    """Acknowledges and remembers."""

    def __init__(self):
        self.taken = []

    def __call__(self, delivery):
        self.taken.append((delivery.message.message_id, delivery.body))
        delivery.ack()

    @property
    def bodies(self):
        return {body for _, body in self.taken}


def names_at_the_broker(broker, settings, count):
    """The names of the connections there, sorted, once there are so many."""
    seen = broker.wait_for_connections(count, settings.virtual_host, timeout=15)
    return sorted(each.client_name for each in seen)


# Lazy, and two of them


def test_publishing_and_consuming_have_a_connection_each_opened_when_first_needed(broker, settings):
    name = settings.connection_name
    manager = ConnectionManager(settings)
    try:
        assert broker.count_connections(settings.virtual_host) == 0
        manager.channel().declare(Queue("work"))
        manager.publish("", "work", "first").result()
        assert names_at_the_broker(broker, settings, 1) == [f"{name} publishing"]
        handler = Handler()
        consumer = manager.consume("work", handler)
        until(lambda: handler.bodies == {b"first"})
        assert names_at_the_broker(broker, settings, 2) == [f"{name} consuming", f"{name} publishing"]
        assert [each.is_open for each in manager.connections] == [True, True]
        assert consumer.is_consuming
    finally:
        manager.close()
    assert broker.wait_for_connections(0, settings.virtual_host, timeout=15) == []


def test_who_only_consumes_has_one_connection(broker, settings):
    with managing(settings) as (manager, _, _):
        manager.publish("", "work", "x").result()
    handler, manager = Handler(), ConnectionManager(settings)
    manager.consume("work", handler)
    until(lambda: handler.taken)
    assert names_at_the_broker(broker, settings, 1) == [f"{settings.connection_name} consuming"]
    manager.close()


# With


def test_with_raises_what_keeps_it_from_opening(settings):
    with pytest.raises(AuthenticationFailed), ConnectionManager(settings.replace(password="wrong")):
        raise AssertionError("it went in")
    with Proxy(settings) as proxy, proxy.fault(Refuse()):
        manager = ConnectionManager(proxy.settings(connect_deadline=0.3))
        with pytest.raises(ConnectError) as caught, manager:
            raise AssertionError("it went in")
        assert caught.value.__cause__ is not None
        assert [each.state for each in manager.connections] == [State.CLOSED]


def test_with_lets_the_bodys_error_out_and_closes(settings):
    with pytest.raises(ZeroDivisionError), managing(settings) as (manager, _, _):
        _ = 1 / 0
    assert repr(manager) == "ConnectionManager(closed)"
    assert {each.state for each in manager.connections} == {State.CLOSED}


def test_it_opens_again_after_a_close(settings):
    with managing(settings) as (manager, _proxy, _):
        manager.close()
        with pytest.raises(NotConnected):
            manager.publish("", "work", "x")
        with manager:
            assert manager.publish("", "work", "x").result() is None
        assert drained(settings) != []


# From plain arguments


def test_the_attempts_are_as_many_as_were_asked_for_and_not_their_square(settings):
    # In the login: a link that ends before the broker's first word is looked at once more.
    login = {"direction": "downstream", "at_frame": "Connection.Tune"}
    with Proxy(settings) as proxy, proxy.fault(LimitData(0), **login) as shut:
        host, port = proxy.settings().addresses[0]
        manager = ConnectionManager.from_arguments(
            host, port, settings.username, settings.password.get_secret_value(), settings.virtual_host, 60, 20, 3, 0.05
        )
        with pytest.raises(ConnectError) as caught:
            manager.open()
        assert shut.links == 3
        assert caught.value.attempts == 3


def test_the_time_to_connect_is_the_time_that_was_given(settings):
    with Proxy(settings) as proxy, proxy.fault(Stall()):
        host, port = proxy.settings().addresses[0]
        manager = ConnectionManager.from_arguments(host, port, connection_timeout=0.5, max_retries=None)
        started = time.monotonic()
        with pytest.raises(ConnectError):
            manager.ensure_connection()
        assert time.monotonic() - started < 0.5 + SLACK


# Publishing


def test_a_message_is_persistent_and_its_type_is_what_it_is(settings):
    with managing(settings) as (manager, _, _):
        for body, properties in (
            ("text", None),
            (b"bytes", None),
            ("{}", {"content_type": "application/json", "headers": {"a": 1}}),
            ("old", pika.BasicProperties(delivery_mode=1, correlation_id="7")),
        ):
            manager.publish("", "work", body, properties).result()
        with manager.channel() as channel:
            found = []
            for _ in range(4):
                delivery = until(lambda: channel.get("work"))
                found.append(delivery.message)
                delivery.ack()
    assert [each.content_type for each in found] == [
        "text/plain",
        "application/octet-stream",
        "application/json",
        "text/plain",
    ]
    assert [each.persistent for each in found] == [True, True, True, False]
    assert (found[2].headers["a"], found[3].correlation_id) == (1, "7")


def test_what_no_queue_would_receive_is_reported_and_logged_and_the_next_is_confirmed(settings, caplog):
    caplog.set_level(logging.WARNING, logger="labkit")
    with managing(settings) as (manager, _, _):
        with pytest.raises(Unroutable, match="nowhere"):
            manager.publish("", "nowhere", "x").result()
        with pytest.raises(Unroutable, match="no exchange 'missing'"):
            manager.publish("missing", "work", "x").result()
        assert manager.publish("", "work", "x").result() is None
        assert manager.connections[0].generation == 1
    until(lambda: "NO_ROUTE" in caplog.text and "NOT_FOUND - no exchange 'missing'" in caplog.text)


def test_the_publisher_publishes_many_at_once(settings):
    with managing(settings, max_in_flight=50) as (manager, _, _):
        sent = manager.publisher.publish_many([str(number) for number in range(200)], routing_key="work")
        manager.publisher.flush(timeout=20)
        assert {each.outcome for each in sent} == {Outcome.CONFIRMED}


def test_a_publish_ends_in_time_on_a_line_that_is_silent(settings):
    with managing(settings, heartbeat=0) as (manager, proxy, _), proxy.fault(Stall()):
        sent = manager.publish("", "work", "x", deadline=0.3)
        started = time.monotonic()
        with pytest.raises(Exception, match="not answered by its deadline"):
            sent.result()
        with pytest.raises(DeadlineExceeded):
            manager.channel(timeout=0.3)
        manager.close(timeout=0.5)
        assert time.monotonic() - started < 1.1 + SLACK


# Consuming


def test_the_prefetch_is_the_managers_or_the_calls_and_there_again_after_a_cut(settings):
    may_go_on = threading.Event()

    def hold(delivery):
        may_go_on.wait(60)
        delivery.ack()

    with managing(settings, prefetch=7) as (manager, proxy, timeline), manager.channel() as channel:
        channel.declare(Queue("other"))
        for queue in ("work", "other"):
            for each in manager.publisher.publish_many(["x"] * 20, routing_key=queue):
                each.result()

        def are_handed_out(*expected):
            with manager.channel() as channel:
                ready = [channel.declare(Queue(name), passive=True).messages for name in ("work", "other")]
            return [20 - each for each in ready] == list(expected)

        manager.consume("work", hold)
        manager.consume("other", hold, 3)
        until(lambda: are_handed_out(7, 3))
        mark = timeline.mark()
        proxy.cut()
        timeline.wait_for(ConnectionRecovered, timeout=20, since=mark, count=2)
        until(lambda: are_handed_out(7, 3))
        may_go_on.set()
        until(lambda: are_handed_out(20, 20))
    with ConnectionManager(settings) as manager, manager.channel() as channel:
        channel.delete(Queue("other"))


def test_a_missing_queue_is_said_at_once_and_nothing_of_the_consumer_stays(settings):
    with managing(settings) as (manager, _, _):
        with pytest.raises(ChannelLost, match="404"):
            manager.consume("no such queue", Handler())
        assert repr(manager) == "ConnectionManager(open)"
        handler = Handler()
        consumer = manager.consume("work", handler)
        assert repr(manager) == "ConnectionManager(open, consumers=1)"
        consumer.close()
        assert repr(manager) == "ConnectionManager(open)"


def test_a_deleted_queue_comes_back_for_the_consumer_that_declares_it(settings):
    with managing(settings) as (manager, _, timeline):
        handler = Handler()
        manager.consume(Queue("work"), handler)
        with manager.channel() as channel:
            channel.delete(Queue("work"))
        timeline.wait_for(ConsumerCancelled, timeout=10)
        until(lambda: manager.publish("", "work", "x").wait(5) and handler.taken)


def test_a_manager_forwards_through_cuts_and_nothing_is_lost(settings):
    """What a service does: take from one queue, publish to the other, acknowledge; the line is cut meanwhile."""
    with managing(settings, backoff=EAGER) as (manager, proxy, timeline):
        with manager.channel() as channel:
            channel.delete(Queue("done"))
            channel.declare(Queue("done"))

        forwarded = set()

        def forward(delivery):
            manager.publish("", "done", delivery.message).result()
            delivery.ack()
            forwarded.add(delivery.message.message_id)

        sent = manager.publisher.publish_many([str(number) for number in range(400)], routing_key="work")
        manager.consume("work", forward)
        for cuts in range(1, 5):
            mark = timeline.mark()
            proxy.cut()
            timeline.wait_for(ConnectionRecovered, timeout=20, since=mark, count=2)
            arrived = manager.connections[0].generation
            assert arrived >= cuts
        manager.publisher.flush(timeout=30)
        assert {each.outcome for each in sent} == {Outcome.CONFIRMED}

        until(lambda: len(forwarded) == 400, 40)
    taken = drained(settings, "done")
    assert {message_id for message_id, _ in taken} == {each.message_id for each in sent}
    assert drained(settings, silence=0.3) == []


# Repair


def test_ensure_connection_waits_for_a_lost_link_and_for_a_lost_channel(settings, broker):
    with managing(settings) as (manager, _, timeline):
        manager.consume("work", Handler())
        assert broker.close_connections("maintenance", settings.virtual_host) == 2
        timeline.wait_for(ConnectionLost, timeout=10, count=2)
        manager.ensure_connection()
        assert [(each.state, each.generation) for each in manager.connections] == [(State.OPEN, 2)] * 2
        with pytest.raises(Unroutable):
            manager.publish("missing", "x", "y").result()  # costs the channel
        manager.ensure_connection()
        assert manager.publish("", "work", "x").result() is None


def test_ensure_connection_that_comes_too_early_costs_nothing(settings):
    with managing(settings) as (manager, proxy, _):
        handler = Handler()
        manager.consume("work", handler)
        sent = manager.publish("", "work", "before")
        with proxy.fault(Refuse()):
            proxy.cut()
            until(lambda: manager.connections[0].state is not State.OPEN)
            with pytest.raises(DeadlineExceeded):
                manager.ensure_connection(deadline=0.3)
        sent.result()
        manager.publish("", "work", "after").result()
        until(lambda: handler.bodies == {b"before", b"after"})


def test_consuming_comes_back_by_itself_after_its_attempts_and_publishing_when_somebody_publishes(settings):
    once = Backoff(initial=0.01, maximum=0.1, attempts=1)
    with managing(settings, backoff=once) as (manager, proxy, timeline):
        handler = Handler()
        manager.consume("work", handler)
        with proxy.fault(Refuse()):
            proxy.cut()
            timeline.wait_for(ConnectionGivenUp, timeout=10)
            timeline.wait_for(AttemptFailed, timeout=10, count=6)
            assert manager.connections[0].state is State.FAILED
            with pytest.raises(ConnectError):
                manager.publish("", "work", "x", deadline=0.5)
        with connected(settings) as (other, _):  # nobody has asked this manager for anything
            other.channel().publish("meanwhile", routing_key="work")
        until(lambda: handler.bodies == {b"meanwhile"})
        manager.publish("", "work", "again").result()
        until(lambda: handler.bodies == {b"meanwhile", b"again"})
        assert [each.state for each in manager.connections] == [State.OPEN, State.OPEN]


def test_a_manager_that_is_refused_for_too_long_comes_back_when_somebody_asks(settings):
    with managing(settings, retry_refused=0.3) as (manager, proxy, timeline):
        handler = Handler()
        manager.consume("work", handler)
        right = settings.virtual_host
        for each in manager.connections:
            object.__setattr__(each.settings, "virtual_host", "no such")  # as if it had been deleted meanwhile
        proxy.cut()
        timeline.wait_for(ConnectionGivenUp, timeout=10, count=2)
        for each in manager.connections:
            object.__setattr__(each.settings, "virtual_host", right)
        manager.ensure_connection()
        manager.publish("", "work", "again").result()
        until(lambda: handler.bodies == {b"again"})


# The end


def test_close_lets_the_handler_finish_and_publish_and_the_publisher_flush(settings):
    begun, may_go_on = threading.Event(), threading.Event()
    with managing(settings) as (manager, _, _):
        results = []

        def slow(delivery):
            begun.set()
            may_go_on.wait(20)
            results.append(manager.publish("", "done", delivery.message, mandatory=False).result())
            delivery.ack()

        manager.publish("", "work", "x").result()
        manager.consume("work", slow)
        begun.wait(10)
        sent = manager.publisher.publish_many(["late"] * 300, routing_key="done", mandatory=False)
        closing = threading.Thread(target=lambda: manager.close(timeout=10))
        closing.start()
        until(lambda: repr(manager) == "ConnectionManager(closing)")
        with pytest.raises(NotConnected):
            manager.consume("work", Handler())
        may_go_on.set()
        closing.join(15)
        assert {each.outcome for each in sent} == {Outcome.CONFIRMED}
    assert drained(settings, silence=0.5) == []


def test_close_gives_the_handlers_of_all_consumers_most_of_its_time_and_begins_no_more(settings):
    queues, closing = ["one", "two", "three"], threading.Event()
    begun, late, done = queue.Queue(), [], []
    with managing(settings) as (manager, _, _):

        def slow(delivery):
            if closing.is_set():
                late.append(delivery.body)
            begun.put(delivery.queue)
            time.sleep(2.2)
            delivery.ack()
            done.append(delivery.queue)

        for name in queues:
            manager.consume(Queue(name), slow)
            for body in ("first", "second"):
                manager.publish("", name, body).result()
        assert {begun.get(timeout=10) for _ in queues} == set(queues)
        closing.set()
        manager.close(timeout=4)
        assert (sorted(done), late) == (sorted(queues), [])
    left = [body for name in queues for _, body in drained(settings, name, silence=0.2)]
    assert left == [b"second"] * 3


def test_close_from_inside_a_handler_returns_and_ends_in_order(settings):
    returned = []
    with managing(settings) as (manager, _, _):

        def last_one(delivery):
            manager.close(timeout=5)
            returned.append(True)
            delivery.ack()

        manager.publish("", "work", "x").result()
        manager.consume("work", last_one)
        until(lambda: returned)
        until(lambda: {each.state for each in manager.connections} == {State.CLOSED})
    assert drained(settings, silence=0.5) == []


def test_an_interrupt_while_close_waits_for_a_handler_leaves_nothing_open(settings):
    begun, may_return = threading.Event(), threading.Event()

    def handle(delivery):
        begun.set()
        may_return.wait(20)

    with managing(settings) as (manager, _, _):
        consumer = manager.consume("work", handle)
        manager.publish("", "work", "x").result()
        assert begun.wait(10)
        with StopAfter(0.3) as stop:
            manager.close()
        assert stop.interrupted
        assert [each.state for each in manager.connections] == [State.CLOSED, State.CLOSED]
        assert (consumer.is_closed, repr(manager)) == (True, "ConnectionManager(closed)")
        may_return.set()
    assert [body for _, body in drained(settings, silence=0.5)] == [b"x"]


def test_a_close_while_another_thread_opens_leaves_nothing_open(settings, caplog):
    for pause in (0.0, 0.002, 0.004, 0.006, 0.008, 0.01, 0.02, 0.03):
        manager = ConnectionManager(settings)

        def work(manager=manager):
            with contextlib.suppress(NotConnected, ConnectError):
                manager.consume(Queue("work"), Handler())
                manager.publish("", "work", "x").result()

        thread = threading.Thread(target=work)
        thread.start()
        time.sleep(pause)  # another moment each time
        manager.close()
        thread.join(20)
        until(lambda manager=manager: all(each.state is State.CLOSED for each in manager.connections))
    assert "crashed" not in caplog.text


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_child_process_publishes_on_a_link_of_its_own_and_leaves_the_parents_alone(settings):
    with managing(settings) as (manager, _, _):
        manager.publish("", "work", "parent").result()
        child = os.fork()
        if child == 0:
            os._exit(_publish_in_the_child(manager))
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        manager.publish("", "work", "parent").result()
        assert manager.connections[0].generation == 1
    assert sorted(body for _, body in drained(settings)) == [b"child", b"parent", b"parent"]


def _publish_in_the_child(manager):
    try:
        manager.publish("", "work", "child").result()
        manager.close()
    except BaseException:
        return 1
    return 0


def test_a_manager_leaves_nothing_behind(settings, broker):
    def once():
        with managing(settings) as (manager, proxy, timeline):
            manager.consume("work", Handler())
            manager.publish("", "work", "x").result()
            proxy.cut()
            timeline.wait_for(ConnectionRecovered, timeout=20, count=2)

    once()
    settle()
    before = descriptors()
    once()
    settle()
    assert our_threads() == []
    assert descriptors() <= before
    assert broker.wait_for_connections(0, settings.virtual_host, timeout=15) == []


def test_the_log_says_what_was_lost_and_why(settings, caplog, broker):
    caplog.set_level(logging.INFO, logger="labkit.event_log")
    with managing(settings) as (_, _, timeline):
        broker.close_connections("upgrade at noon", settings.virtual_host)
        timeline.wait_for(ConnectionRecovered, timeout=20)
    text = caplog.text
    assert "publishing: open after 1 attempt" in text
    assert "lost, it reconnects: ConnectionClosedByBroker: (320) CONNECTION_FORCED - upgrade at noon" in text
    assert "publishing: open again after" in text
    assert "publishing: closed" in text


def test_confirmed_messages_outlive_cuts_in_the_middle_of_them(settings):
    with managing(settings, backoff=EAGER) as (manager, proxy, timeline):
        sent = []
        for limit in (700, 1500, 3100, 6500):  # bytes; a hundred of these messages have about 18,000
            mark = timeline.mark()
            with proxy.fault(LimitData(limit), direction="upstream"):
                sent += [manager.publish("", "work", f"{limit}.{number}") for number in range(100)]
                timeline.wait_for(ConnectionLost, timeout=20, since=mark)
            timeline.wait_for(ConnectionRecovered, timeout=20, since=mark)
        manager.publisher.flush(timeout=30)
        assert {each.outcome for each in sent} == {Outcome.CONFIRMED}
        replayed = manager.publisher.replayed
    check_nothing_is_lost(sent, drained(settings), replayed)


SERVICE = """
import sys
from labkit import BrokerSettings, ConnectionManager

def handle(delivery):
    print("handled", delivery.body.decode(), flush=True)
    delivery.ack()

with ConnectionManager(BrokerSettings.from_env()) as manager:
    manager.consume("work", handle)
    print("consuming", flush=True)
    manager.run_until_stopped()
    print("ended", flush=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="Windows cannot send another process these signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_service_works_until_a_signal_and_ends_in_order(settings, broker, number):
    with Connection(settings) as connection, connection.channel() as channel:
        channel.delete(Queue("work"))
        channel.declare(Queue("work"))
        environment = {**os.environ, "LABKIT_URL": settings.to_url(mask=False)}
        command = [sys.executable, "-c", SERVICE]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as service:
            try:
                assert service.stdout.readline() == "consuming\n"
                channel.publish("one", routing_key="work")
                assert service.stdout.readline() == "handled one\n"
                began = time.monotonic()
                service.send_signal(number)
                assert service.communicate(timeout=20)[0] == "ended\n"
                assert (service.returncode, time.monotonic() - began < 5) == (0, True)
            finally:
                service.kill()
        assert channel.declare(Queue("work"), passive=True).consumers == 0


def test_run_until_stopped_ends_with_a_close_elsewhere_and_with_a_connection_that_was_given_up(settings):
    with managing(settings) as (manager, proxy, _):
        manager.consume("work", Handler())
        waiting = threading.Thread(target=manager.run_until_stopped)
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive()
        manager.close()
        waiting.join(10)
        assert not waiting.is_alive()
        with pytest.raises(NotConnected, match="closed"):
            manager.run_until_stopped()
    with managing(settings, backoff=Backoff(initial=0.01, maximum=0.05, attempts=2)) as (manager, proxy, _):
        manager.publish("", "work", "x").result()
        with proxy.fault(Refuse()):
            lost = threading.Timer(0.2, proxy.cut)
            lost.start()
            with pytest.raises(ConnectError):
                manager.run_until_stopped()
            lost.join()
            with pytest.raises(NotConnected):
                manager.run_until_stopped()


def test_run_until_stopped_says_at_once_what_was_given_up_before(settings):
    with managing(settings, backoff=Backoff(initial=0.01, maximum=0.05, attempts=2)) as (manager, proxy, timeline):
        manager.publish("", "work", "x").result()
        with proxy.fault(Refuse()):
            proxy.cut()
            timeline.wait_for(ConnectionGivenUp, timeout=10)
            with pytest.raises(NotConnected, match="failed"):
                manager.run_until_stopped()
