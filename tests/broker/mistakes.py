"""Calls that the broker answers with the end of the whole connection, the same on every version that we test."""

import time

import pika

from labkit import Confirmation, Queue
from labkit.connection.channel_io import Request
from labkit.messaging.confirmations import Pending

TOO_LARGE = pika.BasicProperties(headers={"x": "x" * 200_000})  # a frame of headers above any frame_max that is agreed
STREAM = Queue("stream", arguments={"x-queue-type": "stream"})


def _call(channel, call, *, is_publish=False):
    """Have *call* done with Pika's channel, past every check of ours, as one of the channel's own calls."""
    core = channel._core

    def begin(request):
        call(core.pika)
        if is_publish:  # else it waits for an answer, and that is the end of the link
            request.settle()

    channel._request("a mistake", Request(begin, is_publish=is_publish), 10)


def get_from_a_stream(connection):
    """540: a caller waits for the answer."""
    channel = connection.channel()
    channel.declare(STREAM)
    channel.get("stream")


def publish_headers_that_are_too_large(connection):
    """501: nobody waits for an answer."""
    channel = connection.channel()
    _call(channel, lambda pikas: pikas.basic_publish("", "nobody", b"", TOO_LARGE), is_publish=True)


def use_a_consumer_tag_twice(connection):
    """530: the broker allows it once a channel."""
    channel = connection.channel()
    channel.declare(Queue("twice", exclusive=True))

    def consume_twice(pikas):
        for _ in range(2):
            pikas._consumers.clear()  # else Pika itself would refuse the second
            pikas.basic_consume("twice", print, consumer_tag="t")

    _call(channel, consume_twice)


def ask_for_a_window_in_bytes(pikas, callback=None):
    """540: RabbitMQ has no prefetch size. For Pika's channel, on the I/O thread."""
    pikas.basic_qos(prefetch_size=10, callback=callback)


def publish_too_large(publisher, deadline=30.0):
    """Hand *publisher* a message whose headers are too large, past every check of ours; return its future."""
    role = publisher._role
    ends = time.monotonic() + deadline
    confirmation = Confirmation(exchange="", routing_key="work", ends=ends, message_id="too large")
    pending = Pending(next(publisher._numbers), confirmation, body=b"too large", properties=TOO_LARGE, mandatory=False)
    role.window.enter(pending, deadline)
    role.wake()
    return confirmation
