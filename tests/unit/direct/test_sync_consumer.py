"""A consumer's side on the I/O thread, where no broker is needed to see it."""

import threading
from types import SimpleNamespace

import pika
import pika.exceptions as px
import pytest

from labkit.connection.consume_options import ConsumeOptions
from labkit.connection.mailbox import Mailbox
from labkit.connection.topology_record import TopologyRecord
from labkit.content.failed_deliveries import RetryCounts
from labkit.content.stream_position import StreamPosition
from labkit.messaging.consumer_io import ConsumerRole, ConsumingChannel
from tests.view import until

PREFETCH = 3


class Loop:
    """Stands in for the I/O thread, on which nothing else happens here."""

    def post(self, function):
        pass

    def call_later(self, delay, function):
        pass


def deliver(channel, *bodies):
    for tag, body in enumerate(bodies, start=1):
        method = SimpleNamespace(delivery_tag=tag, redelivered=False, exchange="", routing_key="work")
        channel._deliver(None, method, pika.BasicProperties(), body)


def lose_the_link(role, channel):
    role.channel_ended(channel, px.StreamLostError("gone"))


def cancel(role, channel):
    role.cancelled(channel)


@pytest.mark.parametrize("end", [lose_the_link, cancel])
def test_what_waited_on_a_channel_that_is_gone_takes_no_place_from_the_next_ones(end):
    """The handler is slow while channels come and go, and the line has room for one prefetch and two goodbyes."""
    go, handled = threading.Event(), []

    def handle(delivery):
        go.wait(20)
        handled.append(delivery.body)

    loop = Loop()
    life = SimpleNamespace(io=loop, topology=TopologyRecord())
    role = ConsumerRole(
        life,
        loop,
        queue="work",
        handler=handle,
        options=ConsumeOptions(),
        prefetch=PREFETCH,
        retry_counts=RetryCounts("requeue-once"),
        position=StreamPosition({}),
    )
    role.mailbox = Mailbox("test-consumer", limit=PREFETCH + 2)
    link = SimpleNamespace(io=loop, is_open=True, channels=set())
    for number in range(3):
        role.channel = ConsumingChannel(link, role, lambda told: None)
        deliver(role.channel, *(f"{number} {place}".encode() for place in range(PREFETCH)))
        if number == 0:
            until(lambda: role.threads)
        if number < 2:
            end(role, role.channel)
    go.set()
    assert role.mailbox.flush(20)
    assert handled == [b"0 0", b"2 0", b"2 1", b"2 2"]
    assert role.mailbox.dropped == 0
