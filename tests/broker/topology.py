"""What the tests of recovery declare, one of every kind, and what the broker says is there of it."""

import contextlib
import json
from contextlib import contextmanager

from labkit import Binding, Consumer, Exchange, Queue

GONE = (Exchange("gone"), Queue("gone"), Binding("match", "mine", arguments={"x-match": "any", "kind": "gone"}))
DECLARED = (
    Exchange("match", type="headers"),
    Exchange("passing", type="topic", auto_delete=True),
    Exchange("gone"),
    Queue("mine", exclusive=True, arguments={"x-max-length": 7}),
    Queue("gone", exclusive=True),
    Binding("match", "mine", arguments={"x-match": "all", "kind": "a"}),
    Binding("match", "mine", arguments={"x-match": "all", "kind": "b"}),
    Binding("match", "mine", arguments={"x-match": "any", "kind": "gone"}),
    Binding("passing", "mine", "a.*"),
    Binding("match", Exchange("passing"), "x"),
)


@contextmanager
def whole_topology(connection):
    """Everything of DECLARED but what is GONE, a queue that the broker named, and consumers, for the block."""
    channel = connection.channel()
    for each in DECLARED:
        channel.declare(each)
    named = channel.declare(Queue(exclusive=True)).name
    channel.declare(Binding("passing", named, "b.*"))
    for each in GONE:
        channel.delete(each)
    with contextlib.ExitStack() as consumers:
        for queue, prefetch in (("mine", 7), ("mine", 1), (named, 300), (Queue("own", auto_delete=True), 20)):
            consumers.enter_context(Consumer(connection, queue, print, prefetch=prefetch))
        yield
    channel = connection.channel()
    channel.delete(Exchange("match"))
    channel.delete(Exchange("passing"))


def definitions(view, settings):
    """What the broker says there is in that virtual host, but for names that the broker has chosen."""
    there = []
    for kind in ("exchanges", "queues", "bindings"):
        for each in view.get(f"{kind}/{settings.virtual_host}"):
            keys = ("name", "type", "durable", "auto_delete", "internal", "exclusive", "source", "destination",
                    "destination_type", "routing_key", "arguments")  # fmt: skip
            facts = {key: each[key] for key in keys if key in each}
            there.append({"kind": kind, **facts})
    return _comparable(there)


def consumers(view, settings):
    """What the broker says of each consumer in that virtual host: its queue, its prefetch, whether it acknowledges."""
    return _comparable(view.consumers(settings.virtual_host))


def _comparable(there):
    return sorted(
        json.dumps(
            {key: "named by the broker" if str(value).startswith("amq.gen-") else value for key, value in each.items()},
            sort_keys=True,
        )
        for each in there
    )
