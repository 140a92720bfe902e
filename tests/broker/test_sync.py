import contextlib
import gc
import select
import socket
import threading
import time

import pika
import pika.exceptions as px
import pytest

from labkit import (
    AuthenticationFailed,
    ChannelLost,
    LeaseError,
    Message,
    NotConnected,
    OutcomeUnknown,
    PublishRejected,
    SyncConnection,
    Timeline,
    Unroutable,
)
from labkit.connector.facts import LinkFacts

pytestmark = pytest.mark.broker


@pytest.fixture
def timeline():
    return Timeline()


@pytest.fixture
def connection(settings, timeline):
    with SyncConnection(settings, listeners=[timeline]) as connection:
        yield connection


def until(question, timeout=15.0):
    """Ask until the answer is true; return it."""
    ends = time.monotonic() + timeout
    while not (answer := question()):
        assert time.monotonic() < ends, f"not true within {timeout} s"
        time.sleep(0.05)
    return answer


def depth(settings, queue="q"):
    """Messages ready in the queue, as a connection of its own counts them."""
    with contextlib.closing(pika.BlockingConnection(settings.to_pika())) as other:
        return other.channel().queue_declare(queue, passive=True).method.message_count


def fill(connection, count):
    for number in range(count):
        connection.publish("q", str(number))


def kill(view, settings, connection=None):
    """Have the broker close the link; return when its Close lies in our socket, unread by Pika."""
    view.close_connections(settings.virtual_host)
    if connection is not None:
        inner = connection._link._connection._impl._transport._sock
        assert select.select([inner], [], [], 15.0)[0]


def test_constructor_does_no_io(settings):
    connection = SyncConnection(settings.replace(host="no-such-host.invalid"))
    assert repr(connection) == "SyncConnection(closed)"
    assert connection.is_open is False


def test_a_with_block_that_is_interrupted_as_it_begins_leaves_no_connection(settings, view, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    connection = SyncConnection(settings)
    with monkeypatch.context() as striking:
        striking.setattr(LinkFacts, "watch", interrupted)
        with pytest.raises(KeyboardInterrupt), connection:
            raise AssertionError("not reached")
    until(lambda: view.connections(settings.virtual_host) == [])
    with connection:
        assert connection.is_open


def test_open_opens_connection_and_channel(connection):
    assert connection.is_open
    assert connection.channel.is_open
    assert repr(connection) == "SyncConnection(open)"


def test_block_leaves_no_connection_behind(view, settings):
    with SyncConnection(settings) as connection:
        connection.publish("q", "x")
        until(lambda: view.connections(settings.virtual_host))
    until(lambda: not view.connections(settings.virtual_host))


def test_open_twice_makes_one_connection(settings, connection, timeline):
    connection.open()
    assert timeline.names().count("ConnectionOpened") == 1


def test_failed_open_raises_from_the_with_statement(settings):
    with pytest.raises(AuthenticationFailed), SyncConnection(settings.replace(password="wrong")):
        pytest.fail("the body must not run")


def test_published_message_is_in_the_durable_queue(view, settings, connection):
    connection.publish("q", "hello")
    assert depth(settings) == 1
    assert view.get(f"queues/{settings.virtual_host}/q")["durable"] is True


def test_text_bytes_and_messages_arrive_with_their_properties(connection):
    connection.publish("q", "grüß")
    connection.publish("q", b"\x00")
    connection.publish("q", Message("x", headers={"a": [1]}, message_id="m1", persistent=False))
    got = []

    def take(channel, method, properties, body):
        got.append(Message.received(properties, body))
        if len(got) == 3:
            connection.stop()

    connection.consume("q", take, timeout=20)
    assert got == [
        Message("grüß"),
        Message(b"\x00"),
        Message("x", headers={"a": [1]}, message_id="m1", persistent=False),
    ]


def test_queue_that_exists_is_used_as_it_is(settings, connection):
    connection.channel.queue_declare("q", durable=True, arguments={"x-max-length": 5})
    connection.publish("q", "x")
    assert depth(settings) == 1


def test_missing_queue_is_reported_not_lost(settings, timeline):
    with SyncConnection(settings, declare=False, listeners=[timeline]) as connection:
        with pytest.raises(Unroutable) as caught:
            connection.publish("missing", "x")
        assert caught.value.routing_key == "missing"
        assert isinstance(caught.value.__cause__, px.UnroutableError)
        with pytest.raises(ChannelLost) as caught:
            connection.consume("missing", print, timeout=5)
        assert caught.value.reason.reply_code == 404
        assert connection.is_open
    assert "MessageReturned" in timeline.names()


def test_queue_deleted_meanwhile_is_reported_then_declared_again(settings, connection):
    connection.publish("q", "x")
    connection.channel.queue_delete("q")
    with pytest.raises(Unroutable):
        connection.publish("q", "y")
    connection.publish("q", "z")
    assert depth(settings) == 1


def test_full_queue_is_publish_rejected(connection):
    connection.channel.queue_declare("q", durable=True, arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
    connection.publish("q", "x")
    with pytest.raises(PublishRejected):
        connection.publish("q", "y")
    assert connection.is_open


def test_channel_error_names_the_reason_and_the_next_call_works(settings, connection):
    with pytest.raises(px.ChannelClosedByBroker):
        connection.channel.queue_declare("missing", passive=True)
    connection.publish("q", "x")
    assert depth(settings) == 1


def test_reopened_channel_has_its_prefetch_again(view, settings, connection):
    with pytest.raises(px.ChannelClosedByBroker):
        connection.channel.queue_declare("missing", passive=True)
    fill(connection, 1)
    seen = []

    def look(channel, method, properties, body):
        seen.append(channel.channel_number)
        connection.stop()

    connection.consume("q", look, timeout=10)
    until(
        lambda: (
            [each.get("prefetch_count") for each in view.get("channels") if each["vhost"] == settings.virtual_host]
            == [10]
        )
    )
    assert seen


def test_every_message_reaches_the_callback_once_and_is_acknowledged(settings, connection):
    fill(connection, 30)
    got = []

    def take(channel, method, properties, body):
        got.append(int(body))
        if len(got) == 30:
            connection.stop()

    connection.consume("q", take, timeout=30)
    assert got == list(range(30))
    connection.close()
    assert depth(settings) == 0


def test_crash_in_the_callback_loses_nothing(settings, connection):
    fill(connection, 25)

    def crash(channel, method, properties, body):
        raise ZeroDivisionError("in the callback")

    with pytest.raises(ZeroDivisionError):
        connection.consume("q", crash, timeout=20)
    assert connection.is_open
    until(lambda: depth(settings) == 25)


def test_crash_with_auto_ack_loses_what_was_sent_ahead(settings, connection):
    fill(connection, 25)

    def crash(channel, method, properties, body):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        connection.consume("q", crash, auto_ack=True, timeout=20)
    assert depth(settings) == 0


def test_redelivered_message_is_marked(connection):
    fill(connection, 1)
    seen = []

    def second_time(channel, method, properties, body):
        seen.append(method.redelivered)
        if len(seen) == 1:
            raise ZeroDivisionError
        connection.stop()

    with pytest.raises(ZeroDivisionError):
        connection.consume("q", second_time, timeout=20)
    connection.consume("q", second_time, timeout=20)
    assert seen == [False, True]


def test_stop_gives_back_what_was_sent_ahead(settings, connection):
    fill(connection, 25)
    connection.consume("q", lambda *_: connection.stop(), timeout=20)
    until(lambda: depth(settings) == 24)


def test_stop_from_another_thread_ends_an_idle_consume(connection):
    connection.publish("q", "x")
    started = threading.Event()
    timer = threading.Thread(target=lambda: (started.wait(10), connection.stop()))
    timer.start()
    begun = time.monotonic()
    connection.consume("q", lambda *_: started.set(), timeout=30)
    timer.join(10)
    assert time.monotonic() - begun < 10


def test_consume_returns_after_its_timeout(connection):
    begun = time.monotonic()
    connection.consume("q", print, timeout=0.5)
    assert 0.4 < time.monotonic() - begun < 2.5


def test_callback_may_publish(settings, connection):
    fill(connection, 3)
    count = []

    def forward(channel, method, properties, body):
        connection.publish("next", body)
        count.append(1)
        if len(count) == 3:
            connection.stop()

    connection.consume("q", forward, timeout=20)
    assert depth(settings, "next") == 3


def test_callback_may_close(connection, timeline):
    fill(connection, 1)
    connection.consume("q", lambda *_: connection.close(), timeout=20)
    assert not connection.is_open
    assert timeline.names()[-1] == "ConnectionClosed"


def test_callback_that_acknowledges_by_itself_is_told_why_it_failed(connection):
    fill(connection, 2)

    def twice(channel, method, properties, body):
        channel.basic_ack(method.delivery_tag)

    with pytest.raises(ChannelLost, match="acknowledges for you"):
        connection.consume("q", twice, timeout=20)


def test_deleted_queue_ends_consume_with_an_error(connection, timeline):
    fill(connection, 1)
    with pytest.raises(ChannelLost, match="cancelled the consumer: queue 'q' was deleted") as caught:
        connection.consume("q", lambda channel, *_: channel.queue_delete("q"), timeout=20)
    assert isinstance(caught.value.__cause__, px.ConsumerCancelled)
    assert "ConsumerCancelled" in timeline.names()
    connection.publish("q", "still usable")


def test_killed_link_ends_consume_with_an_error(view, settings, connection):
    connection.publish("q", "x")
    killer = threading.Thread(target=kill, args=(view, settings))
    killer.start()
    with pytest.raises(NotConnected) as caught:
        connection.consume("q", lambda *_: None, timeout=30)
    killer.join(30)
    assert caught.value.reason.reply_code == 320


def test_use_after_a_killed_link_says_what_killed_it(view, settings, connection, timeline):
    kill(view, settings, connection)
    with pytest.raises(NotConnected) as caught:
        connection.publish("q", "x")
    assert caught.value.reason.reply_code == 320
    assert caught.value.__cause__ is caught.value.reason
    with pytest.raises(NotConnected, match="320"):
        connection.publish("q", "x")
    assert timeline.names().count("ConnectionLost") == 1
    connection.open()
    connection.publish("q", "back")


def test_is_open_tells_the_truth_about_a_killed_link(view, settings, connection):
    kill(view, settings, connection)
    assert connection.is_open is False


def test_body_keeps_its_own_exception_when_the_link_died_meanwhile(view, settings):
    def work():
        with SyncConnection(settings) as connection:
            kill(view, settings, connection)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()


def test_close_twice_is_a_no_op(connection, timeline):
    connection.close()
    connection.close()
    assert timeline.names().count("ConnectionClosed") == 1
    with pytest.raises(NotConnected, match="call open"):
        connection.publish("q", "x")


def test_connection_can_be_opened_again_after_close(settings, connection):
    connection.close()
    with connection:
        connection.publish("q", "x")
    assert depth(settings) == 1


@pytest.mark.parametrize(
    "use",
    [
        lambda connection: connection.publish("q", "x"),
        lambda connection: connection.consume("q", print, timeout=1),
        lambda connection: connection.channel,
        lambda connection: connection.is_open,
        lambda connection: connection.open(),
        lambda connection: connection.close(),
    ],
)
def test_second_thread_gets_a_clear_error(connection, use):
    caught = []

    def intrude():
        try:
            use(connection)
        except LeaseError as exc:
            caught.append(str(exc))

    thread = threading.Thread(target=intrude)
    thread.start()
    thread.join(20)
    assert len(caught) == 1
    assert "thread" in caught[0]
    connection.publish("q", "unharmed")


def test_callback_from_another_thread_runs_on_the_owner(connection):
    ran = []
    thread = threading.Thread(
        target=lambda: connection.add_callback_threadsafe(
            lambda: (ran.append(threading.get_ident()), connection.stop())
        )
    )
    thread.start()
    connection.publish("q", "x")
    thread.join(10)
    connection.consume("q", lambda *_: None, timeout=1)
    assert ran == [threading.get_ident()]


def test_callback_on_a_closed_connection_is_refused(connection):
    connection.close()
    with pytest.raises(NotConnected):
        connection.add_callback_threadsafe(print)


def test_broker_that_stops_answering_ends_publish_and_close_in_time(settings):
    host, port = settings.addresses[0]
    with socket.create_server(("127.0.0.1", 0)) as server:
        deaf = threading.Event()

        def copy(source, target, stop):
            with contextlib.suppress(OSError):
                while data := source.recv(65536):
                    if stop.is_set():
                        continue
                    target.sendall(data)

        def serve():
            client, _ = server.accept()
            with client, socket.create_connection((host, port)) as upstream:
                back = threading.Thread(target=copy, args=(upstream, client, deaf))
                back.start()
                copy(client, upstream, threading.Event())
                with contextlib.suppress(OSError):
                    upstream.shutdown(socket.SHUT_RDWR)
                back.join(10)

        thread = threading.Thread(target=serve)
        thread.start()
        through = settings.replace(host="127.0.0.1", port=server.getsockname()[1])
        connection = SyncConnection(through).open()
        connection.publish("q", "x")
        deaf.set()
        begun = time.monotonic()
        with pytest.raises(OutcomeUnknown) as caught:
            connection.publish("q", Message("y", message_id="m"), deadline=0.5)
        assert 0.4 < time.monotonic() - begun < 2.5
        assert caught.value.message_id == "m"
        connection.close()
        thread.join(10)


def test_close_is_bounded_when_the_broker_does_not_answer(settings, monkeypatch):
    connection = SyncConnection(settings).open()
    inner = connection._link._connection
    monkeypatch.setattr(inner._impl, "close", lambda *_: None)  # the question is never asked, so no answer comes
    begun = time.monotonic()
    connection.close(timeout=0.5)
    assert time.monotonic() - begun < 2.5
    assert repr(connection) == "SyncConnection(closed)"


def test_a_call_that_an_interrupt_abandoned_does_not_end_the_next_link_when_it_is_collected(connection):
    """An interrupt between a call's mark and its block leaves a generator, and its exception's traceback keeps it."""
    abandoned = connection._link.call("abandoned")
    abandoned.__enter__()
    with pytest.raises(NotConnected, match="interrupted"):
        connection.publish("q", "1")
    connection.open()
    del abandoned
    gc.collect()
    connection.publish("q", "2")
    assert connection.is_open
