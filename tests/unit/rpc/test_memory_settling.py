"""What was given back when an in-memory connection closed is not settled after that, as with a broker."""

import logging
import threading

import pytest

from labkit import ChannelLost
from labkit.rpc import NotificationListener, Notifier, Target, Transport
from labkit.rpc.memory import MemoryConsumer, MemoryQueue, MemoryWorld
from labkit.topology import Message
from tests.view import until


class Slow:
    def __init__(self):
        self.entered, self.gate = threading.Event(), threading.Event()
        self.payloads = []

    def info(self, ctxt, publisher_id, event_type, payload, metadata):
        self.payloads.append(payload)
        self.entered.set()
        self.gate.wait(10)


def test_a_handler_that_ends_after_its_listener_was_closed_logs_no_error_and_the_notification_comes_again(caplog):
    endpoint, topic = Slow(), Target(topic="notifications")
    with Transport("memory://") as transport, caplog.at_level(logging.INFO):
        listener = NotificationListener(transport, [topic], [endpoint]).start()
        Notifier(transport, "p").info({}, "e", 1)
        assert endpoint.entered.wait(5)
        listener.close(timeout=0.1)
        endpoint.gate.set()
        until(lambda: "0 at work" in repr(listener))
        until(lambda: "not settled" in caplog.text)
        assert [each.getMessage() for each in caplog.records if each.levelno >= logging.ERROR] == []
        with NotificationListener(transport, [topic], [endpoint]):
            until(lambda: endpoint.payloads == [1, 1])


def test_what_reaches_a_consumer_that_was_closed_goes_back_to_its_queue():
    world = MemoryWorld()
    queue = world.queue("q")
    consumer = MemoryConsumer(world, queue, print)
    consumer.is_stopped = True  # closed by another thread, after this one was chosen
    consumer.return_all()
    consumer.give((Message("x"), float("inf"), False))
    assert [message.body for message, _, _ in queue.messages] == [b"x"]


def test_a_delivery_that_was_given_back_cannot_be_settled():
    consumer = MemoryConsumer(MemoryWorld(), MemoryQueue("q"), print)
    with pytest.raises(ChannelLost, match="given back"):
        consumer.settle("ack", 1, False, 1.0, lambda: True)
