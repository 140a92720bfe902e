"""The rules for what newer versions of RabbitMQ and Pika refuse, or do otherwise."""

import ast
from collections.abc import Iterator
from typing import Any

from labkit.audit.code import Found
from labkit.audit.reading import UNKNOWN, Source
from labkit.audit.rules import DOCS, rule

DEPRECATED = "https://www.rabbitmq.com/release-information/deprecated-features-list"
RELEASES = "https://github.com/rabbitmq/rabbitmq-server/releases/tag/"
FRAME_MAX_LEAST = 8192  # bytes; RabbitMQ's initial_frame_max since 4.1
DEPRECATED_CLASSES = {"BlockingConnection", "TornadoConnection", "GeventConnection", "TwistedProtocolConnection"}


@rule(
    "transient-queue", "code", since="rabbitmq-4.0",
    why="deprecated; where it is not permitted, declaring such a queue ends the link (541)",
    fix="durable=True, or exclusive=True for a queue that goes with its connection",
    reference=DEPRECATED,
)  # fmt: skip
def transient_queue(source: Source) -> Found:
    """A queue that is neither durable nor exclusive."""
    for call in source.named("queue_declare", "Queue"):
        durable = source.value(call.given.get("durable"), call.name == "Queue")
        exclusive = source.value(call.given.get("exclusive"), False)
        passive = source.value(call.given.get("passive"), False)
        if call.is_whole and durable is False and exclusive is False and passive is False:
            yield call.node, f"{call.name}(...) neither durable nor exclusive"


@rule(
    "global-qos", "code", since="rabbitmq-4.3",
    why="4.3 does not share a prefetch any more unless told to: each consumer of the channel is sent that many ahead",
    fix="a prefetch for each consumer: basic_qos(prefetch_count=...) without global_qos",
    reference=DEPRECATED,
)  # fmt: skip
def global_qos(source: Source) -> Found:
    """A prefetch that all consumers of a channel share."""
    for call in source.named("basic_qos"):
        if source.value(call.given.get("global_qos")) is True:
            yield call.node, "basic_qos(global_qos=True)"


@rule(
    "queue-mode", "code", since="rabbitmq-4.0",
    why="x-queue-mode has had no effect since 3.12: such a queue is no lazier than others",
    fix="leave it out: classic queues write to disk early by themselves",
    reference=f"{DOCS}lazy-queues",
)  # fmt: skip
def queue_mode(source: Source) -> Found:
    """Lazy queues."""
    for node, _ in _arguments(source, "x-queue-mode"):
        yield node, "x-queue-mode"


@rule(
    "master-locator", "code", since="rabbitmq-4.3",
    why="deprecated; 4.3 does not permit it unless told to, and declaring such a queue ends the link (541)",
    fix="x-queue-leader-locator, or the broker's queue_leader_locator",
    reference=f"{RELEASES}v4.3.0",
)  # fmt: skip
def master_locator(source: Source) -> Found:
    """The old name of where a queue's leader is to be."""
    for node, _ in _arguments(source, "x-queue-master-locator"):
        yield node, "x-queue-master-locator"


@rule(
    "mirrored-queue", "code", since="rabbitmq-4.0",
    why="classic mirrored queues are gone: the broker refuses such a policy, and one node's loss takes the queue along",
    fix='quorum queues: arguments={"x-queue-type": "quorum"}',
    reference="https://www.rabbitmq.com/docs/3.13/migrate-mcq-to-qq",
)  # fmt: skip
def mirrored_queue(source: Source) -> Found:
    """A policy for mirrored queues."""
    for name in ("ha-mode", "x-ha-policy"):
        for node, _ in _arguments(source, name):
            yield node, name


@rule(
    "no-delivery-limit", "code", since="rabbitmq-4.0",
    why="a quorum queue drops, or dead-letters, a message after 20 failed deliveries unless it says another number",
    fix='say it: "x-delivery-limit", and "x-dead-letter-exchange" for what has failed that often',
    reference=f"{DOCS}quorum-queues#poison-message-handling",
)  # fmt: skip
def no_delivery_limit(source: Source) -> Found:
    """A quorum queue that does not say how often a message may fail."""
    for node, value in _arguments(source, "x-queue-type"):
        names = [source.value(each) for each in node.keys if each is not None]
        if value == "quorum" and "x-delivery-limit" not in names and None not in node.keys:
            yield node, "a quorum queue without x-delivery-limit"


@rule(
    "small-frames", "code", since="rabbitmq-4.1",
    why="the broker refuses a client whose frame_max is below 8192 bytes",
    fix="frame_max=131072, which is the default",
    reference=f"{RELEASES}v4.1.0",
)  # fmt: skip
def small_frames(source: Source) -> Found:
    """Frames that are smaller than the broker wants to begin with."""
    for call in source.named("ConnectionParameters", "BrokerSettings"):
        value = source.value(call.given.get("frame_max"), UNKNOWN)
        if isinstance(value, int) and 0 < value < FRAME_MAX_LEAST:
            yield call.node, f"frame_max={value}"


@rule(
    "failure-not-counted", "code", since="rabbitmq-4.3",
    why="on quorum queues basic.nack does not count towards x-delivery-limit: what always fails comes back forever",
    fix="basic_reject(delivery_tag, requeue=True) for what has failed; basic_nack for what was not tried",
    reference=f"{DOCS}nack",
)  # fmt: skip
def failure_not_counted(source: Source) -> Found:
    """A failed message that goes back by basic_nack."""
    for call in source.named("basic_nack"):
        failed = any(isinstance(each, ast.ExceptHandler) for each in source.above(call.node))
        if failed and source.value(call.given.get("requeue"), True) is True:
            yield call.node, "basic_nack(requeue=True) of what has failed"


@rule(
    "cancel-not-heard", "code", since="rabbitmq-4.3",
    why="a slow consumer of a quorum queue is cancelled, no longer its channel closed: start_consuming() returns as "
    "if all were done",
    fix="channel.add_on_cancel_callback(), and a return that nobody asked for is a failure; or a Consumer",
    reference="https://github.com/rabbitmq/rabbitmq-server/blob/main/consumer_timeouts.md",
)  # fmt: skip
def cancel_not_heard(source: Source) -> Found:
    """A consumer that would not notice that the broker has ended it."""
    if not any(source.named("add_on_cancel_callback")):
        for call in source.named("start_consuming"):
            yield call.node, "start_consuming() without add_on_cancel_callback()"


@rule(
    "deprecated-adapter", "code", since="pika-1.5",
    why="its constructor warns, and Pika 2.0 will not have it",
    fix="pika.Connection of Pika 1.5, SelectConnection, AsyncioConnection, or labkit's Connection",
    reference="https://github.com/pika/pika/blob/main/CHANGELOG.md",
)  # fmt: skip
def deprecated_adapter(source: Source) -> Found:
    """A connection class that Pika 1.5 deprecates."""
    for call in source.calls:
        if call.name in DEPRECATED_CLASSES:
            yield call.node, call.name
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ClassDef):
            for base in node.bases:
                if ast.unparse(base).rpartition(".")[2] in DEPRECATED_CLASSES:
                    yield node, f"class {node.name}({ast.unparse(base)})"


@rule(
    "pika-compat", "code", since="pika-1.5",
    why="pika.compat is gone",
    fix="what Python 3 has itself",
    reference="https://github.com/pika/pika/blob/main/CHANGELOG.md",
)  # fmt: skip
def pika_compat(source: Source) -> Found:
    """The module that made Pika run on Python 2."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            names = [each.name for each in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{each.name}" for each in node.names]
        else:
            continue
        if any(each == "pika.compat" or each.startswith("pika.compat.") for each in names):
            yield node, ast.unparse(node)


def _arguments(source: Source, name: str) -> Iterator[tuple[ast.Dict, Any]]:
    """Yield each dictionary in the text that has the key *name*, and what it is there."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if key is not None and source.value(key) == name:
                    yield node, source.value(value, UNKNOWN)
