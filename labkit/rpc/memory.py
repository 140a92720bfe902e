"""A driver without a broker, for unit tests and for reading the layer: exchanges and queues are dicts and deques.

Everything above the connection is the RabbitMQ driver's own code. What is queued is lost with the last transport.
"""

import contextlib
import logging
import math
import time
import weakref
from collections import deque
from typing import Any

from labkit.concurrency.guard import guard
from labkit.connection.mailbox import Mailbox
from labkit.content.delivery import Delivery
from labkit.errors import ChannelLost, PoolClosed, Unroutable
from labkit.rpc.amqp import AmqpDriver
from labkit.rpc.driver import Callback, ConnectionBase, Finish, Told
from labkit.rpc.envelope import new_id, to_message
from labkit.topology import Message

LOGGER = logging.getLogger(__name__)


class MemoryQueue:
    """Messages, and who takes turns at them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.messages: deque[tuple[Message, float, bool]] = deque()  # when it expires, and whether it was out before
        self.consumers: deque[MemoryConsumer] = deque()


class MemoryConsumer:
    """One callback, called on a thread of its own. It settles what it was given."""

    def __init__(self, world: "MemoryWorld", queue: MemoryQueue, callback: Callback) -> None:
        self.queue = queue
        self.mailbox = Mailbox("labkit-memory-consumer", limit=math.inf)
        self.is_stopped = False
        self._world = world
        self._callback = callback
        self._out: dict[int, tuple[Message, float, bool]] = {}
        self._last = 0

    def give(self, entry: tuple[Message, float, bool]) -> None:
        """Have the callback called with a message."""
        self._last += 1
        tag = self._last
        self._out[tag] = entry
        if self.is_stopped:  # by another thread, which had nothing to put back yet
            self.end()
            self.return_all()
            return
        self.mailbox.put(lambda: self._call(tag))

    def settle(self, verb: str, tag: int, requeue: bool, timeout: float, may_send: Any) -> None:
        """Forget a message, or put it back."""
        del timeout
        if not may_send():
            return
        if verb == "ack-multiple":
            for each in [earlier for earlier in list(self._out) if earlier < tag]:
                self._out.pop(each, None)
        entry = self._out.pop(tag, None)
        if entry is None:
            raise ChannelLost("the connection was closed, and what was not settled was given back")
        if not verb.startswith("ack") and requeue:
            self._world.put(self.queue.name, entry[0], expires=entry[1], is_again=True)

    def end(self) -> None:
        """Have no more turns."""
        with contextlib.suppress(ValueError):  # it has none
            self.queue.consumers.remove(self)

    def return_all(self) -> None:
        """Put back what is not settled."""
        for tag in list(self._out):
            entry = self._out.pop(tag, None)
            if entry is not None:  # else it was settled meanwhile
                self._world.put(self.queue.name, entry[0], expires=entry[1], is_again=True)

    def _call(self, tag: int) -> None:
        if self.is_stopped or tag not in self._out:
            return
        message, _, is_again = self._out[tag]
        name = self.queue.name
        self._callback(
            Delivery(message, settler=self, tag=tag, redelivered=is_again, exchange="", routing_key=name, queue=name)
        )


class MemoryWorld:
    """What a broker holds. Thread-safe."""

    def __init__(self) -> None:
        self._queues: dict[str, MemoryQueue] = {}
        self._bindings: dict[str, list[tuple[str, str]]] = {}  # exchange: routing key, queue
        self._lock = guard()

    def queue(self, name: str) -> MemoryQueue:
        """Return a queue, made if it is not there."""
        with self._lock:
            return self._queues.setdefault(name, MemoryQueue(name))

    def bind(self, exchange: str, key: str, queue: str) -> None:
        """Have what is published to *exchange* with *key* put into *queue*."""
        self.queue(queue)
        with self._lock:
            bound = self._bindings.setdefault(exchange, [])
            if (key, queue) not in bound:
                bound.append((key, queue))

    def delete(self, name: str) -> None:
        """Delete a queue, and its bindings."""
        with self._lock:
            self._queues.pop(name, None)
            for exchange, bound in self._bindings.items():
                self._bindings[exchange] = [each for each in bound if each[1] != name]

    def publish(self, exchange: str, key: str, message: Message) -> int:
        """Return into how many queues it was put. "" leads to the queue of that name."""
        expires = math.inf if message.expiration is None else time.monotonic() + message.expiration
        bound = [(key, key)] if not exchange else list(self._bindings.get(exchange, ()))
        return sum(self.put(queue, message, expires=expires) for at, queue in bound if at == key)

    def put(self, name: str, message: Message, *, expires: float = math.inf, is_again: bool = False) -> bool:
        """Put a message into a queue, behind the others or back to the front; False: there is no such queue."""
        queue = self._queues.get(name)
        if queue is None:
            return False
        (queue.messages.appendleft if is_again else queue.messages.append)((message, expires, is_again))
        self.serve(queue)
        return True

    def serve(self, queue: MemoryQueue) -> None:
        """Hand out what is there, in turns."""
        while queue.messages and queue.consumers:
            try:
                consumer, entry = queue.consumers[0], queue.messages.popleft()
            except IndexError:  # another thread was faster
                return
            queue.consumers.rotate(-1)
            if entry[1] > time.monotonic():
                consumer.give(entry)


class MemoryConnection(ConnectionBase):
    """Sends, or listens, without a wire."""

    def __init__(self, world: MemoryWorld, compression: str | None) -> None:
        self._world = world
        self._compression = compression
        self._plans: list[tuple[str, Callback]] = []
        self._consumers: list[MemoryConsumer] = []
        self._fanout_queues: list[str] = []
        self.is_over = False

    def topic_send(
        self,
        exchange_name: str,
        topic: str,
        body: str,
        *,
        timeout: float | None = None,
        mandatory: bool = False,
        within: float,  # noqa: ARG002 - nothing is waited for
        told: Told | None = None,
    ) -> Finish | None:
        """Put it into the queues that are bound with *topic*."""
        message = to_message(body, expiration=timeout, compression=self._compression)
        if not self._world.publish(exchange_name, topic, message) and mandatory:
            raise Unroutable(f"nobody listens to {topic!r}", exchange=exchange_name, routing_key=topic)
        if told is not None:
            told(None)
        return lambda _: True

    def fanout_send(self, topic: str, body: str, *, within: float) -> None:  # noqa: ARG002
        """Put a copy into every server's queue."""
        self._world.publish(f"{topic}_fanout", "", to_message(body, compression=self._compression))

    def direct_send(self, queue: str, body: str, *, within: float) -> None:  # noqa: ARG002
        """Put it into *queue*."""
        if not self._world.publish("", queue, to_message(body, compression=self._compression)):
            raise Unroutable(f"there is no queue {queue!r}", routing_key=queue)

    def notify_send(self, exchange_name: str, topic: str, body: str, *, within: float) -> None:  # noqa: ARG002
        """Put it into the queue of *topic*."""
        self._world.bind(exchange_name, topic, topic)
        self._world.publish(exchange_name, topic, to_message(body, compression=self._compression))

    def declare_topic_consumer(
        self, exchange_name: str, topic: str, callback: Callback, queue_name: str | None = None
    ) -> None:
        """Plan to listen to the queue of *topic*."""
        self._world.bind(exchange_name, topic, queue_name or topic)
        if (queue_name or topic, callback) not in self._plans:
            self._plans.append((queue_name or topic, callback))

    def declare_fanout_consumer(self, topic: str, callback: Callback) -> None:
        """Plan to listen to a queue of one's own."""
        name = f"{topic}_fanout_{new_id()}"
        self._world.bind(f"{topic}_fanout", "", name)
        self._fanout_queues.append(name)
        self._plans.append((name, callback))

    def declare_direct_consumer(self, queue: str, callback: Callback) -> None:
        """Plan to listen to *queue*."""
        self._world.queue(queue)
        self._plans.append((queue, callback))

    def consume(self, *, deadline: float) -> None:  # noqa: ARG002
        """Begin."""
        for name, callback in self._plans:
            queue = self._world.queue(name)
            consumer = MemoryConsumer(self._world, queue, callback)
            self._consumers.append(consumer)
            queue.consumers.append(consumer)
            self._world.serve(queue)

    def stop_consuming(self, *, timeout: float) -> None:
        """Take no more."""
        for each in self._consumers:
            each.end()
            each.mailbox.flush(timeout)
        for name in self._fanout_queues:
            self._world.delete(name)

    def close(self) -> None:
        """Put back what is not settled. A connection that has sent has nothing to end."""
        self.is_over = True
        for each in self._consumers:
            each.is_stopped = True
            each.end()
        for each in self._consumers:
            each.return_all()
        self._consumers.clear()


class MemoryDriver(AmqpDriver):
    """The driver of ``memory://name``: transports of one name, in one process, reach each other.

    Args:
        name: Of the world; "": this driver's own.
    """

    def __init__(self, name: str = "", **options: Any) -> None:
        super().__init__(**options)
        self.world = _WORLDS.setdefault(name, MemoryWorld()) if name else MemoryWorld()

    def _get_connection(self, purpose: str, timeout: float) -> MemoryConnection:
        del purpose, timeout  # every connection can do both, at once
        if self._is_closed:
            raise PoolClosed("the transport is closed")
        return MemoryConnection(self.world, self.options.kombu_compression)


_WORLDS: weakref.WeakValueDictionary[str, MemoryWorld] = weakref.WeakValueDictionary()
