"""A signal handler that uses the connection amid any step of a declaration, on the thread that waits for it."""

import contextlib
import time

import pytest

from labkit import Binding, Exchange, LabkitError, Queue, State
from tests.broker.connections import BRISK, SLACK, connected, own_virtual_host
from tests.unit.striking import files_of, struck_everywhere

pytestmark = pytest.mark.broker
PARTS = files_of("connection.channel", "connection.topology_record", "concurrency.guard")


@pytest.fixture(scope="module")
def settings(broker):
    with own_virtual_host(broker) as settings:
        yield settings


class Declaring:
    """A recovering connection with a consumer, and a channel to declare on."""

    def __init__(self, settings):
        self.struck = False
        self.context = connected(settings, recovery=True, backoff=BRISK)
        self.connection, _ = self.context.__enter__()
        self.channel = self.connection.channel()
        self.channel.declare(Queue("work", auto_delete=True))
        self.channel.consume("work", lambda delivery: delivery.ack())

    def declare(self):
        with contextlib.suppress(LabkitError):  # the handler has closed it
            self.channel.declare(Exchange("logs", "topic"))
            self.channel.declare(Binding("logs", "work", routing_key="a"))

    def recorded(self):
        life = self.connection._life
        return {each for each, _ in life.io.call(life.topology.steps, timeout=10)}

    def end(self):
        self.context.__exit__(None, None, None)


def test_a_handler_that_closes_the_connection_amid_any_step_of_declaring_waits_for_nobody(settings):
    def close(made):
        began = time.monotonic()
        made.connection.close(timeout=20)
        assert time.monotonic() - began < SLACK
        assert made.connection.state is State.CLOSED

    for made, raised in struck_everywhere(lambda: Declaring(settings), Declaring.declare, close, PARTS, at_least=20):
        made.end()
        assert raised is None


def test_a_handler_that_declares_amid_any_step_of_declaring_has_both_in_the_record(settings):
    def declare(made):
        made.struck = True
        made.channel.declare(Queue("late", auto_delete=True))
        made.channel.declare(Binding("amq.topic", "late", routing_key="b"))

    both = {
        Queue("work", auto_delete=True),
        Exchange("logs", "topic"),
        Binding("logs", "work", routing_key="a"),
        Queue("late", auto_delete=True),
        Binding("amq.topic", "late", routing_key="b"),
    }
    for made, raised in struck_everywhere(lambda: Declaring(settings), Declaring.declare, declare, PARTS, at_least=20):
        recorded = made.recorded()
        made.end()
        assert raised is None
        if made.struck:
            assert recorded == both
