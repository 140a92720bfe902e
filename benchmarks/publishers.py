"""The ways to publish that ``publish.py`` compares, each as its own documentation has it. They know nothing of clocks.

A way is a context manager that connects for a number of threads and yields a function for each of them; that takes
how many messages, publishes them to :data:`QUEUE`, and returns when the broker has confirmed every one, or, of the
ways without confirms, has answered a question that was asked after the last one.

Thread-safe clients get one connection and, where they have channels, a channel a thread; Pika and kombu get a
connection a thread; aio-pika lives on one event loop, with a channel a thread.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pika
from pika.adapters.select_connection import IOLoop

from labkit import BrokerSettings, Connection, Message, Publisher, Queue

QUEUE = "labkit-benchmark-publish"
WINDOW = 1000  # messages that wait for their confirm, in the ways that do not wait for each
SLICE = 100  # messages that raw Pika writes before it lets its loop send, without confirms
PATIENCE = 600.0  # seconds for all messages of one turn

Send = Callable[[int], None]


@dataclass(frozen=True)
class Load:
    """What is published, and by how many threads."""

    body: bytes
    is_persistent: bool
    threads: int

    @property
    def delivery_mode(self) -> int:
        """AMQP's word for it."""
        return 2 if self.is_persistent else 1


Way = Callable[[BrokerSettings, Load], AbstractContextManager[list[Send]]]


@contextmanager
def labkit_publisher(settings: BrokerSettings, load: Load, *, is_bare: bool = False) -> Iterator[list[Send]]:
    """One ``Publisher`` for all threads, as it is; *is_bare*: the frames that the limit sends.

    By default it adds an id, and asks for messages that nobody would receive (``mandatory``).
    """
    message = Message(load.body, persistent=load.is_persistent)
    with Publisher(settings, max_in_flight=WINDOW, stamp=not is_bare) as publisher:

        def send(count: int) -> None:
            sent = [
                publisher.publish(message, routing_key=QUEUE, mandatory=not is_bare, deadline=PATIENCE)
                for _ in range(count)
            ]
            for each in sent:
                each.result()

        yield [send] * load.threads


@contextmanager
def labkit_channel(settings: BrokerSettings, load: Load) -> Iterator[list[Send]]:
    """A ``Channel`` a thread, without confirms."""
    message = Message(load.body, persistent=load.is_persistent)
    with Connection(settings) as connection:

        def send(channel: Any, count: int) -> None:
            for _ in range(count):
                channel.publish(message, routing_key=QUEUE)
            channel.declare(Queue(QUEUE), passive=True)

        yield [partial(send, connection.channel()) for _ in range(load.threads)]


class Raw:
    """A ``SelectConnection`` whose loop runs in the thread that publishes: as little as can be between it and Pika."""

    def __init__(self, settings: BrokerSettings, load: Load, *, confirm: bool) -> None:
        self._loop = IOLoop()
        self._body = load.body
        self._properties = pika.BasicProperties(delivery_mode=load.delivery_mode)
        self._channel: Any = None
        self._left = self._open = 0
        self._answered = 0  # the broker has confirmed all tags up to this one
        self._early: set[int] = set()  # and these
        self._confirm = confirm
        self._connection = pika.SelectConnection(
            settings.to_pika()[0], on_open_callback=self._opened, custom_ioloop=self._loop
        )
        self._loop.start()

    def send(self, count: int) -> None:
        """Publish *count* messages."""
        self._left = count
        self._loop.add_callback(self._fill if self._confirm else self._pour)
        self._loop.start()

    def close(self) -> None:
        """Say goodbye."""
        self._connection.add_on_close_callback(lambda *_: self._loop.stop())
        self._connection.close()
        self._loop.start()

    def _opened(self, connection: Any) -> None:
        connection.channel(on_open_callback=self._channel_opened)

    def _channel_opened(self, channel: Any) -> None:
        self._channel = channel
        if self._confirm:
            channel.confirm_delivery(self._confirmed, callback=lambda _: self._loop.stop())
        else:
            self._loop.stop()

    def _publish(self, count: int) -> None:
        for _ in range(count):
            self._channel.basic_publish("", QUEUE, self._body, self._properties)
        self._left -= count

    def _fill(self) -> None:
        count = min(WINDOW - self._open, self._left)
        self._open += count
        self._publish(count)

    def _confirmed(self, frame: Any) -> None:
        tag = frame.method.delivery_tag
        if not frame.method.multiple and tag != self._answered + 1:
            self._early.add(tag)
            self._open -= 1
        else:
            early = {each for each in self._early if each <= tag} if self._early else self._early
            self._open -= tag - self._answered - len(early)
            self._early = self._early - early
            self._answered = tag
        if self._left:
            self._fill()
        elif not self._open:
            self._loop.stop()

    def _pour(self) -> None:
        self._publish(min(SLICE, self._left))
        if self._left:
            self._loop.add_callback(self._pour)
        else:
            self._channel.queue_declare(QUEUE, passive=True, callback=lambda _: self._loop.stop())


@contextmanager
def raw_pika(settings: BrokerSettings, load: Load, *, confirm: bool) -> Iterator[list[Send]]:
    """``SelectConnection``: pipelined, it is the limit of what Pika can do."""
    raws = [Raw(settings, load, confirm=confirm) for _ in range(load.threads)]
    yield [each.send for each in raws]
    for each in raws:
        each.close()


@contextmanager
def blocking_pika(settings: BrokerSettings, load: Load, *, confirm: bool) -> Iterator[list[Send]]:
    """``BlockingConnection``: with confirms it waits for each."""
    properties = pika.BasicProperties(delivery_mode=load.delivery_mode)
    connections = [pika.BlockingConnection(settings.to_pika()) for _ in range(load.threads)]
    channels = [each.channel() for each in connections]

    def send(channel: Any, count: int) -> None:
        for _ in range(count):
            channel.basic_publish("", QUEUE, load.body, properties)
        if not confirm:
            channel.queue_declare(QUEUE, passive=True)

    for each in channels:
        if confirm:
            each.confirm_delivery()
    yield [partial(send, each) for each in channels]
    for each in connections:
        each.close()


@contextmanager
def kombu(settings: BrokerSettings, load: Load, *, confirm: bool) -> Iterator[list[Send]]:
    """A ``Producer`` a thread; ``confirm_publish`` waits for each."""
    from kombu import Connection as KombuConnection

    host, port = settings.addresses[0]
    connections = [
        KombuConnection(
            hostname=host,
            port=port,
            userid=settings.username,
            password=settings.password.get_secret_value(),
            virtual_host=settings.virtual_host,
            transport_options={"confirm_publish": confirm},
        )
        for _ in range(load.threads)
    ]

    def send(producer: Any, count: int) -> None:
        for _ in range(count):
            producer.publish(
                load.body,
                exchange="",
                routing_key=QUEUE,
                delivery_mode=load.delivery_mode,
                content_type="application/octet-stream",
                content_encoding="binary",
            )
        if not confirm:
            producer.channel.queue_declare(QUEUE, passive=True)

    yield [partial(send, each.Producer()) for each in connections]
    for each in connections:
        each.close()


@contextmanager
def amqpstorm(settings: BrokerSettings, load: Load, *, confirm: bool) -> Iterator[list[Send]]:
    """A channel a thread on one connection; ``confirm_deliveries`` waits for each."""
    from amqpstorm import Connection as StormConnection

    host, port = settings.addresses[0]
    password = settings.password.get_secret_value()
    with StormConnection(
        host, settings.username, password, port=port, virtual_host=settings.virtual_host
    ) as connection:

        def send(channel: Any, count: int) -> None:
            for _ in range(count):
                channel.basic.publish(load.body, QUEUE, properties={"delivery_mode": load.delivery_mode})
            if not confirm:
                channel.queue.declare(QUEUE, passive=True)

        channels = [connection.channel() for _ in range(load.threads)]
        for each in channels:
            if confirm:
                each.confirm_deliveries()
        yield [partial(send, each) for each in channels]
        for each in channels:
            each.close()


@contextmanager
def aio_pika(settings: BrokerSettings, load: Load, *, confirm: bool) -> Iterator[list[Send]]:
    """A channel a thread on one event loop; ``asyncio.gather`` of as many publishes as the window holds."""
    from aio_pika import DeliveryMode, connect
    from aio_pika import Message as AioMessage

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def run(awaitable: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(awaitable, loop).result(PATIENCE)

    mode = DeliveryMode(load.delivery_mode)
    host, port = settings.addresses[0]
    connection = run(
        connect(
            host=host,
            port=port,
            login=settings.username,
            password=settings.password.get_secret_value(),
            virtualhost=settings.virtual_host,
        )
    )

    async def publish(channel: Any, count: int) -> None:
        exchange = channel.default_exchange
        for first in range(0, count, WINDOW):
            part = range(min(WINDOW, count - first))
            await asyncio.gather(
                *(exchange.publish(AioMessage(load.body, delivery_mode=mode), routing_key=QUEUE) for _ in part)
            )
        if not confirm:
            await channel.declare_queue(QUEUE, passive=True)

    async def channel() -> Any:
        return await connection.channel(publisher_confirms=confirm)

    channels = [run(channel()) for _ in range(load.threads)]
    try:
        yield [lambda count, channel=each: run(publish(channel, count)) for each in channels]  # type: ignore[misc]
    finally:
        run(connection.close())
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


LIMIT = "SelectConnection, pipelined"
BARE = "labkit, no stamp"  # nor mandatory: what the limit sends
CONFIRMED: dict[str, Way] = {
    "labkit Publisher": labkit_publisher,
    BARE: partial(labkit_publisher, is_bare=True),
    LIMIT: partial(raw_pika, confirm=True),
    "aio-pika, gather": partial(aio_pika, confirm=True),
    "BlockingConnection": partial(blocking_pika, confirm=True),
    "kombu": partial(kombu, confirm=True),
    "amqpstorm": partial(amqpstorm, confirm=True),
}
UNCONFIRMED: dict[str, Way] = {
    "labkit Channel": labkit_channel,
    "SelectConnection": partial(raw_pika, confirm=False),
    "aio-pika": partial(aio_pika, confirm=False),
    "BlockingConnection": partial(blocking_pika, confirm=False),
    "kombu": partial(kombu, confirm=False),
    "amqpstorm": partial(amqpstorm, confirm=False),
}
WAITS_FOR_EACH = {"BlockingConnection", "kombu", "amqpstorm"}  # with confirms


def installed(ways: dict[str, Way], settings: BrokerSettings) -> dict[str, Way]:
    """Return those whose client is installed here; say which is not."""
    found = {}
    for name, way in ways.items():
        try:
            with way(settings, Load(b"x", is_persistent=False, threads=1)):
                found[name] = way
        except ImportError as exc:
            print(f"{name} is left out: {exc}")
    return found
