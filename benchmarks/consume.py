"""How many deliveries a second each client hands to a handler and acknowledges, one by one and by the hundred.

    LABKIT_URL=... python benchmarks/consume.py [--quick] [--rounds N] [--write]

Every client consumes the same messages (100 bytes, persistent) from one durable queue, over one connection, with a
prefetch of 300. Its handler counts, and acknowledges each delivery, or every hundredth for all before it. The clock
runs from the request to consume until the broker has answered a question that was asked after the last
acknowledgement. Ways are measured in turn, several times; medians are compared. A turn that leaves a message in the
queue is an error. A client that is not installed is left out (benchmarks/requirements.txt has them).
"""

import argparse
import asyncio
import statistics
import time
from collections.abc import Callable

import pika
from pika.adapters.select_connection import IOLoop
from report import write_block

from labkit import AsyncConnection, BrokerSettings, Connection, Consumer, Publisher, Queue
from labkit.concurrency.bell import Flag

QUEUE = "labkit-benchmark-consume"
COUNT, ROUNDS = 10_000, 5
PREFETCH = 300
BODY = bytes(100)
PATIENCE = 120.0  # seconds for one turn
EVERY = {1: "each", 100: "every hundredth"}
LIMIT = "SelectConnection"

Way = Callable[[BrokerSettings, int, int], float]  # settings, messages, acknowledge every so many; seconds


class Clock:
    """Counts deliveries; says which are to be acknowledged, and when the last one was."""

    def __init__(self, count: int, every: int) -> None:
        self.began = time.perf_counter()
        self._left, self._every = count, every

    def is_due(self) -> bool:
        """Take one delivery; whether to acknowledge now."""
        self._left -= 1
        return self._left % self._every == 0

    @property
    def is_over(self) -> bool:
        """Whether that was the last one."""
        return self._left == 0

    def seconds(self) -> float:
        """Seconds since the request to consume."""
        return time.perf_counter() - self.began


def labkit_channel(settings: BrokerSettings, count: int, every: int) -> float:
    """``Channel.consume``; the handler runs on a thread of its own."""
    with Connection(settings) as connection, connection.channel() as channel:
        over = Flag()
        channel.qos(PREFETCH)
        clock = Clock(count, every)

        def handle(delivery) -> None:
            if clock.is_due():
                delivery.ack(multiple=every > 1)
            if clock.is_over:
                over.set()

        channel.consume(QUEUE, handle)
        over.wait(PATIENCE)
        channel.declare(Queue(QUEUE), passive=True)
        return clock.seconds()


def labkit_consumer(settings: BrokerSettings, count: int, every: int) -> float:
    """``Consumer``, which recovers."""
    with Connection(settings, recovery=True) as connection:
        over, clock = Flag(), Clock(count, every)

        def handle(delivery) -> None:
            if clock.is_due():
                delivery.ack(multiple=every > 1)
            if clock.is_over:
                over.set()

        with Consumer(connection, QUEUE, handle, prefetch=PREFETCH):
            over.wait(PATIENCE)
            with connection.channel() as channel:
                channel.declare(Queue(QUEUE), passive=True)
            return clock.seconds()


def labkit_async(settings: BrokerSettings, count: int, every: int) -> float:
    """``AsyncConnection.consume``: it acknowledges each by itself."""
    if every > 1:
        raise NotImplementedError("it acknowledges each message itself")

    async def main() -> float:
        over = asyncio.Event()
        async with AsyncConnection(settings) as connection:
            clock = Clock(count, every)

            async def handle(_: object) -> None:
                clock.is_due()
                if clock.is_over:
                    over.set()

            consuming = asyncio.create_task(connection.consume(QUEUE, handle))
            await asyncio.wait_for(over.wait(), PATIENCE)
            seconds = clock.seconds()
            consuming.cancel()
            await asyncio.wait([consuming])
            return seconds

    return asyncio.run(main())


def bare(settings: BrokerSettings, count: int, every: int) -> float:
    """``SelectConnection``: the handler runs on the loop; the limit of what Pika can do."""
    loop = IOLoop()
    clock = Clock(count, every)

    def opened(connection) -> None:
        connection.channel(on_open_callback=begin)

    def begin(channel) -> None:
        channel.basic_qos(prefetch_count=PREFETCH)
        clock.began = time.perf_counter()
        channel.basic_consume(QUEUE, handle)

    def handle(channel, method, _, __) -> None:
        if clock.is_due():
            channel.basic_ack(method.delivery_tag, multiple=every > 1)
        if clock.is_over:
            channel.queue_declare(QUEUE, passive=True, callback=lambda _: loop.stop())

    connection = pika.SelectConnection(settings.to_pika()[0], on_open_callback=opened, custom_ioloop=loop)
    loop.start()
    seconds = clock.seconds()
    connection.add_on_close_callback(lambda *_: loop.stop())
    connection.close()
    loop.start()
    return seconds


def blocking(settings: BrokerSettings, count: int, every: int) -> float:
    """``BlockingConnection.start_consuming``."""
    connection = pika.BlockingConnection(settings.to_pika())
    channel = connection.channel()
    channel.basic_qos(prefetch_count=PREFETCH)
    clock = Clock(count, every)

    def handle(channel, method, _, __) -> None:
        if clock.is_due():
            channel.basic_ack(method.delivery_tag, multiple=every > 1)
        if clock.is_over:
            channel.stop_consuming()

    channel.basic_consume(QUEUE, handle)
    channel.start_consuming()
    channel.queue_declare(QUEUE, passive=True)
    seconds = clock.seconds()
    connection.close()
    return seconds


def kombu(settings: BrokerSettings, count: int, every: int) -> float:
    """A ``Consumer`` and ``drain_events``; messages are left as they are."""
    from kombu import Connection as KombuConnection
    from kombu import Consumer as KombuConsumer
    from kombu import Queue as KombuQueue

    host, port = settings.addresses[0]
    with KombuConnection(
        hostname=host,
        port=port,
        userid=settings.username,
        password=settings.password.get_secret_value(),
        virtual_host=settings.virtual_host,
    ) as connection:
        channel = connection.channel()
        clock = Clock(count, every)

        def handle(message) -> None:
            if clock.is_due():
                message.ack(multiple=every > 1)

        queue = KombuQueue(QUEUE, channel=channel, no_declare=True)
        consumer = KombuConsumer(channel, [queue], on_message=handle, prefetch_count=PREFETCH, accept=None)
        with consumer:
            while not clock.is_over:
                connection.drain_events(timeout=PATIENCE)
            channel.queue_declare(QUEUE, passive=True)
            return clock.seconds()


def amqpstorm(settings: BrokerSettings, count: int, every: int) -> float:
    """``start_consuming`` with its messages as they are."""
    from amqpstorm import Connection as StormConnection

    host, port = settings.addresses[0]
    password = settings.password.get_secret_value()
    with StormConnection(
        host, settings.username, password, port=port, virtual_host=settings.virtual_host
    ) as connection:
        channel = connection.channel()
        channel.basic.qos(PREFETCH)
        clock = Clock(count, every)

        def handle(message) -> None:
            if clock.is_due():
                channel.basic.ack(message.delivery_tag, multiple=every > 1)
            if clock.is_over:
                channel.stop_consuming()

        channel.basic.consume(handle, QUEUE)
        channel.start_consuming(auto_decode=False)
        channel.queue.declare(QUEUE, passive=True)
        return clock.seconds()


def aio_pika(settings: BrokerSettings, count: int, every: int) -> float:
    """``queue.consume`` with a coroutine."""
    from aio_pika import connect

    async def main() -> float:
        host, port = settings.addresses[0]
        connection = await connect(
            host=host,
            port=port,
            login=settings.username,
            password=settings.password.get_secret_value(),
            virtualhost=settings.virtual_host,
        )
        over = asyncio.Event()
        async with connection:
            channel = await connection.channel()
            await channel.set_qos(prefetch_count=PREFETCH)
            queue = await channel.get_queue(QUEUE)
            clock = Clock(count, every)

            async def handle(message) -> None:
                if clock.is_due():
                    await message.ack(multiple=every > 1)
                if clock.is_over:
                    over.set()

            await queue.consume(handle)
            await asyncio.wait_for(over.wait(), PATIENCE)
            await channel.declare_queue(QUEUE, passive=True)
            return clock.seconds()

    return asyncio.run(main())


WAYS: dict[str, Way] = {
    "labkit Channel": labkit_channel,
    "labkit Consumer": labkit_consumer,
    "labkit AsyncConnection": labkit_async,
    LIMIT: bare,
    "BlockingConnection": blocking,
    "kombu": kombu,
    "aio-pika": aio_pika,
    "amqpstorm": amqpstorm,
}


def turn(settings: BrokerSettings, way: Way, count: int, every: int) -> float:
    """Fill the queue, have *way* consume it, and return deliveries a second."""
    with Connection(settings, recovery=True) as connection, connection.channel() as channel:
        channel.delete(Queue(QUEUE))
        channel.declare(Queue(QUEUE))
        with Publisher(connection) as publisher:
            for each in publisher.publish_many([BODY] * count, routing_key=QUEUE):
                each.result()
        seconds = way(settings, count, every)
        left = channel.declare(Queue(QUEUE), passive=True).messages
        channel.delete(Queue(QUEUE))
    if left:
        raise RuntimeError(f"{left} messages are left")
    return count / seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small counts: does it run?")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"turns of each way (default {ROUNDS})")
    parser.add_argument("--write", action="store_true", help="the table into docs/measured.md")
    options = parser.parse_args()
    settings = BrokerSettings.from_env()
    rounds, count = (1, 1000) if options.quick else (options.rounds, COUNT)
    rates: dict[str, dict[int, list[float]]] = {}
    for _ in range(rounds):
        for name, way in WAYS.items():
            for every in EVERY:
                try:
                    rate = turn(settings, way, count, every)
                except (ImportError, NotImplementedError) as exc:
                    print(f"{name}, {EVERY[every]}: left out: {exc}", flush=True)
                else:
                    rates.setdefault(name, {}).setdefault(every, []).append(rate)
    found = {name: {every: statistics.median(each) for every, each in of.items()} for name, of in rates.items()}
    lines = [f"| deliveries a second, acknowledged | {' | '.join(EVERY.values())} |", "| --- |" + " --- |" * len(EVERY)]
    for name, of in found.items():
        cells = [f"{of[e]:,.0f} ({of[e] / found[LIMIT][e]:.2f})" if e in of else "" for e in EVERY]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    print("\n".join(lines))
    if options.write:
        write_block("consume", lines)


if __name__ == "__main__":
    main()
