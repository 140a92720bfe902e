"""Messages whose headers Pika cannot read, and a program that takes them on one of its adapters.

``python -m tests.broker.undecodable ADAPTER`` with the broker's URL on standard input: it takes two messages from
the queue of that name, and writes what came of them as a line of JSON.
"""

import contextlib
import json
import struct
import sys

import pika

from labkit import BrokerSettings
from labkit.lab import adapters

QUEUE = "work"
GOOD = b"\x04halfd" + struct.pack(">d", 2.75) + b"\x04nameS\0\0\0\x01x"
HEADERS = {"half": 2.75, "name": "x"}


def _nested(depth):
    raw = b"F\0\0\0\0"
    for _ in range(depth):
        raw = b"F" + struct.pack(">I", len(raw) + 2) + b"\x01k" + raw
    return raw


UNDECODABLE = {
    "a date in milliseconds": b"\x04whenT" + struct.pack(">Q", 1_764_000_000_000),
    "a date before 1970": b"\x04whenT" + struct.pack(">q", -86_400),
    "tables 300 deep": b"\x04deep" + _nested(300),
}


class RawProperties(pika.BasicProperties):
    """Properties with headers that are bytes already, and a type of four bytes."""

    def __init__(self, headers, kind=b"type"):
        super().__init__()
        self.raw = struct.pack(">HI", 0x2020, len(headers)) + headers + b"\x04" + kind

    def encode(self):
        return [self.raw]


def put(settings, *headers, queue=QUEUE, kind=b"type"):
    """Put a message with each of these *headers* into *queue*, and one without any behind them."""
    with contextlib.closing(pika.BlockingConnection(settings.to_pika())) as connection:
        channel = connection.channel()
        channel.queue_declare(queue, durable=True)
        channel.confirm_delivery()
        for each in headers:
            channel.basic_publish("", queue, b"odd", RawProperties(each, kind), mandatory=True)
        channel.basic_publish("", queue, b"behind", mandatory=True)


class Taking(adapters.Life):
    """Takes two messages, and closes the connection."""

    queue = ""

    def __init__(self, say):
        super().__init__(say)
        self.taken = []

    def _channel_opened(self, channel):
        self._channel = channel
        self._channel.basic_get(self.queue, self._taken, auto_ack=True)

    def _taken(self, _channel, _method, properties, body):
        unread = getattr(properties, "undecodable", b"").hex()
        self.taken.append([body.decode(), properties.headers or {}, properties.type, unread])
        if len(self.taken) < 2:
            self._channel.basic_get(self.queue, self._taken, auto_ack=True)
        else:
            self.close()


def main(adapter):
    happened = []
    lives = []
    Taking.queue = adapter
    adapters.Life = Taking
    settings = BrokerSettings.from_url(sys.stdin.readline().strip())
    adapters.live(adapter, settings, happened.append, lambda _, life: lives.append(life))
    print(json.dumps({"taken": lives[0].taken, "events": happened[-1]["events"]}))


if __name__ == "__main__":
    main(sys.argv[1])
