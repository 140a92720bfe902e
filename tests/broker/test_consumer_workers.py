"""Several handlers of one Consumer at once: every message settled once, and an end that waits for those at work."""

import collections
import random
import threading
import time

import pytest

from labkit import ConfigurationError, ConnectionManager, ConnectionRecovered, Consumer, Publisher, Queue, State
from tests.broker.connections import connected, through_a_proxy
from tests.view import until

pytestmark = pytest.mark.broker

QUEUE = Queue("work")


def publish(connection, count, start=0):
    with Publisher(connection) as publisher:
        for number in range(start, start + count):
            publisher.publish(str(number), routing_key=QUEUE.name).result(20)


def ready(connection):
    return connection.channel().declare(QUEUE, passive=True).messages


class Gated:
    """A handler that waits for a gate, and says how many were at work at once, and on which threads."""

    def __init__(self):
        self.open, self.lock = threading.Event(), threading.Lock()
        self.at_work, self.most, self.done, self.threads = 0, 0, [], set()

    def __call__(self, delivery):
        with self.lock:
            self.at_work += 1
            self.most = max(self.most, self.at_work)
            self.threads.add(threading.get_ident())
        self.open.wait(20)
        delivery.ack()
        with self.lock:
            self.at_work -= 1
            self.done.append((delivery.body, delivery.redelivered))


def test_so_many_handlers_are_at_work_at_once_each_on_its_thread_and_no_more(settings):
    handler = Gated()
    with connected(settings, recovery=True) as (connection, _):
        with Consumer(connection, QUEUE, handler, workers=4, prefetch=8) as consumer:
            publish(connection, 12)
            until(lambda: handler.at_work == 4)
            handler.open.set()
            until(lambda: len(handler.done) == 12)
            until(lambda: consumer.handled == 12)
        assert (handler.most, len(handler.threads)) == (4, 4)
        assert ready(connection) == 0


@pytest.mark.parametrize("workers", [0, 11, True, 1.0, "2"])
def test_more_workers_than_messages_can_come_are_refused(settings, workers):
    with pytest.raises(ConfigurationError, match="workers") as caught:
        Consumer(settings, QUEUE, print, prefetch=10, workers=workers)
    assert caught.value.field == "workers"


def test_through_cuts_every_message_is_done_and_no_answer_is_given_twice(settings):
    done = collections.Counter()

    def handle(delivery):
        time.sleep(random.uniform(0, 0.01))
        delivery.ack()
        done[delivery.body] += 1

    with through_a_proxy(settings, recovery=True) as (proxy, connection, timeline):
        with Consumer(connection, QUEUE, handle, workers=5, prefetch=20) as consumer:
            for cut in range(3):
                publish(connection, 100, start=100 * cut)
                mark = timeline.mark()
                proxy.cut()
                timeline.wait_for(ConnectionRecovered, timeout=20, since=mark)
            until(lambda: len(done) == 300)
            until(lambda: consumer.handled >= 300)
            connection.wait_for(State.OPEN, timeout=20)
            until(lambda: consumer.is_consuming and ready(connection) == 0)
        assert ready(connection) == 0  # so the end gave none back: all were acknowledged


def test_the_end_waits_for_the_handlers_at_work_and_gives_the_rest_back(settings, caplog):
    handler = Gated()
    with connected(settings, recovery=True) as (connection, _):
        consumer = Consumer(connection, QUEUE, handler, workers=3, prefetch=8).open()
        publish(connection, 8)
        until(lambda: handler.at_work == 3)
        opened = threading.Timer(0.5, handler.open.set)
        opened.start()
        begun = time.monotonic()
        consumer.close(timeout=10)
        assert 0.3 < time.monotonic() - begun < 5
        assert (handler.at_work, len(handler.done)) == (0, 3)
        assert ready(connection) == 5
    assert "still at work" not in caplog.text


@pytest.mark.parametrize(("workers", "what"), [(1, "1 handler is"), (3, "3 handlers are")])
def test_handlers_that_are_not_done_in_time_are_told_and_their_messages_come_again(settings, caplog, workers, what):
    handler = Gated()
    with connected(settings, recovery=True) as (connection, _):
        consumer = Consumer(connection, QUEUE, handler, workers=workers).open()
        publish(connection, 4)
        until(lambda: handler.at_work == workers)
        begun = time.monotonic()
        consumer.close(timeout=0.5)
        assert time.monotonic() - begun < 2.5
        assert f"closing the consumer of 'work': {what} still at work after" in caplog.text
        until(lambda: ready(connection) == 4)
        handler.open.set()
        until(lambda: handler.at_work == 0)
        assert consumer.dropped_acks == workers


def test_closed_by_one_of_its_handlers_it_ends_when_all_have_returned(settings):
    handler, closed = Gated(), []

    def handle(delivery):
        if delivery.body == b"0":
            assert consumer.is_called_here
            consumer.close()
            closed.append(handler.at_work)
        handler(delivery)

    with connected(settings, recovery=True) as (connection, _):
        consumer = Consumer(connection, QUEUE, handle, workers=3)
        publish_to = connection.channel(confirm=True)
        publish_to.declare(QUEUE)
        for number in (1, 2, 0, 3, 4):
            publish_to.publish(str(number), routing_key=QUEUE.name)
        consumer.open()
        until(lambda: closed and handler.at_work == 3)
        assert not consumer.is_called_here
        handler.open.set()
        until(lambda: len(handler.done) == 3)
        until(lambda: ready(connection) == 2)
        assert sorted(body for body, _ in handler.done) == [b"0", b"1", b"2"]


def test_on_a_stream_what_ends_early_leaves_nothing_out_before_it(settings):
    stream = Queue("log", arguments={"x-queue-type": "stream"})
    gate, done = threading.Event(), []

    def handle(delivery):
        if delivery.body == b"0" and not gate.is_set():
            gate.wait(20)
            return  # never settled: it is read again
        delivery.ack()
        done.append(delivery.body)

    with connected(settings, recovery=True) as (connection, _):
        first = {"x-stream-offset": "first"}
        consumer = Consumer(connection, stream, handle, workers=3, arguments=first).open()
        with Publisher(connection) as publisher:
            for number in range(6):
                publisher.publish(str(number), routing_key="log").result(20)
        until(lambda: len(done) == 5)
        gate.set()
        consumer.close()
        with consumer:
            until(lambda: b"0" in done)
        assert set(done) == {str(number).encode() for number in range(6)}


# A manager's


def test_a_managers_workers_handle_so_many_at_once_and_its_close_waits_for_them(settings):
    handler = Gated()
    with ConnectionManager(settings) as manager:
        manager.consume(QUEUE, handler, prefetch=5, workers=3)
        for number in range(8):
            manager.publish("", QUEUE.name, str(number)).result(20)
        until(lambda: handler.at_work == 3)
        opened = threading.Timer(0.5, handler.open.set)
        opened.start()
        manager.close(timeout=10)
        assert (handler.at_work, handler.most, len(handler.done)) == (0, 3, 3)
    with connected(settings) as (connection, _):
        until(lambda: ready(connection) == 5)


def test_a_handler_of_several_that_raises_costs_its_own_message_only(settings):
    handler = Gated()

    def handle(delivery):
        if delivery.body == b"bad":
            raise ValueError("not like that")
        handler(delivery)

    with ConnectionManager(settings) as manager:
        consumer = manager.consume(QUEUE, handle, workers=3, on_error="reject")
        for body in ("first", "bad", "second", "third"):
            manager.publish("", QUEUE.name, body).result(20)
        until(lambda: handler.at_work == 3)  # the thread of the one that raised has taken the next
        assert consumer.failures == 1
        handler.open.set()
        until(lambda: len(handler.done) == 3)
        assert {body for body, _ in handler.done} == {b"first", b"second", b"third"}
    with connected(settings) as (connection, _):
        assert ready(connection) == 0
