"""How soon after a broker's return a program publishes again, and what it lost: four programs, the same restarts.

    python benchmarks/recovery.py [--restarts N] [--quick] [--write]

A RabbitMQ of its own is killed (``kill -9``) and stopped by turns, and started again. Meanwhile each program, a process
of its own, publishes numbered persistent messages to its own durable queue, up to 200 a second, one after the other, in
the way of its client's documentation and with that client's default pauses. A program keeps a message until it believes
it sent: confirmed, or, in the tutorial's loop, which asks for no confirms, published without an error.

Measured are the seconds from the moment at which the broker answers an AMQP header to the first message of each
program that is sent after that. At the end the queues are compared with what the programs believe: *lost* was believed
sent and is not there, *twice* is there more than once. ``--write`` puts the table into docs/measured.md.
"""

import argparse
import asyncio
import contextlib
import importlib.util
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pika
from pika.exceptions import AMQPError
from report import write_block

from labkit import BrokerSettings, Publisher, brokers
from labkit.brokers import Broker

RESTARTS = 20
PACE = 0.005  # seconds between two messages
BETWEEN = 12.0  # seconds that the broker lives; labkit's pauses begin anew after a link of 10 s
COMEBACK = 180.0  # seconds for every program to come back; the slowest pauses are 5 s
PROBE = 0.01  # seconds between two looks whether the broker answers
PAUSE = 5.0  # seconds between two attempts of the tutorial's loop
GREETING = b"AMQP\x00\x00\x09\x01"  # AMQP 0-9-1, section 4.2.2 (Protocol Header)

Sent = Callable[[int], None]


# The programs. Each publishes 0, 1, 2, ... until *stop* is set, and calls *sent* with each number it believes sent.


def labkit(settings: BrokerSettings, queue: str, sent: Sent, stop: threading.Event) -> None:
    """A ``Publisher``: it is told of every message what became of it."""
    with Publisher(settings) as publisher:
        number = 0
        while not stop.wait(PACE):
            publisher.publish(str(number), routing_key=queue, deadline=COMEBACK).result()
            sent(number)
            number += 1


def aio_pika(settings: BrokerSettings, queue: str, sent: Sent, stop: threading.Event) -> None:
    """``connect_robust``: the connection comes back by itself, the program publishes again what raised."""
    import aio_pika as client
    from aiormq.exceptions import AMQPError as AioError

    host, port = settings.addresses[0]

    async def run() -> None:
        connection = await client.connect_robust(
            host=host, port=port, login=settings.username, password=settings.password.get_secret_value(),
            virtualhost=settings.virtual_host,
        )  # fmt: skip
        async with connection:
            channel = await connection.channel(publisher_confirms=True)
            number = 0
            while not stop.is_set():
                await asyncio.sleep(PACE)
                message = client.Message(str(number).encode(), delivery_mode=client.DeliveryMode.PERSISTENT)
                try:
                    await channel.default_exchange.publish(message, routing_key=queue)
                except (AioError, ConnectionError, RuntimeError):
                    continue  # the same number again, as soon as the channel is there
                sent(number)
                number += 1

    asyncio.run(run())


def kombu(settings: BrokerSettings, queue: str, sent: Sent, stop: threading.Event) -> None:
    """``Connection.ensure`` around ``publish``, with ``confirm_publish``; its pauses are kombu's own."""
    from kombu import Connection as KombuConnection

    host, port = settings.addresses[0]
    with KombuConnection(
        hostname=host, port=port, userid=settings.username, password=settings.password.get_secret_value(),
        virtual_host=settings.virtual_host, transport_options={"confirm_publish": True},
    ) as connection:  # fmt: skip
        producer = connection.Producer()
        publish = connection.ensure(producer, producer.publish)
        number = 0
        while not stop.wait(PACE):
            publish(str(number), exchange="", routing_key=queue, delivery_mode=2)
            sent(number)
            number += 1


def tutorial(settings: BrokerSettings, queue: str, sent: Sent, stop: threading.Event) -> None:
    """Look at ``is_open``, connect with five attempts and equal pauses, publish without confirms."""

    def connected() -> tuple[Any, Any]:
        for _ in range(5):
            with contextlib.suppress(AMQPError, OSError):
                connection = pika.BlockingConnection(settings.replace(heartbeat=60).to_pika())
                return connection, connection.channel()
            time.sleep(PAUSE)
        raise ConnectionError("five attempts have failed")

    connection, channel = connected()
    properties = pika.BasicProperties(delivery_mode=2)
    number = 0
    while not stop.wait(PACE):
        try:
            if not connection.is_open:
                connection, channel = connected()
            channel.basic_publish("", queue, str(number).encode(), properties)
        except (AMQPError, OSError):
            continue
        sent(number)
        number += 1
    with contextlib.suppress(AMQPError):
        connection.close()


PROGRAMS = {"labkit Publisher": labkit, "aio-pika robust": aio_pika, "kombu ensure": kombu, "tutorial's loop": tutorial}
NEEDS = {"aio-pika robust": "aio_pika", "kombu ensure": "kombu"}


# Who watches them


@dataclass
class Watched:
    """A program in its process, and what it has said so far."""

    name: str
    process: subprocess.Popen[str]
    queue: str
    sent: list[tuple[int, float]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # from the broker's return to the first message after it

    def listen(self) -> None:
        """Write down what it says, until it ends."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            number, at = line.split()
            self.sent.append((int(number), float(at)))

    def came_back(self, accepts_at: float) -> bool:
        """Wait for its first message after that moment, and note the seconds."""
        ends = time.monotonic() + COMEBACK
        while time.monotonic() < ends and self.process.poll() is None:
            if self.sent and self.sent[-1][1] > accepts_at:
                self.seconds.append(next(at for _, at in self.sent if at > accepts_at) - accepts_at)
                return True
            time.sleep(0.05)
        return False


def child(name: str, queue: str) -> None:
    """Be one of the programs; standard input says where the broker is, and ends when it is to stop."""
    settings = BrokerSettings.from_url(sys.stdin.readline().strip())
    stop = threading.Event()

    def listen() -> None:
        sys.stdin.read()
        stop.set()

    threading.Thread(target=listen, daemon=True).start()

    def sent(number: int) -> None:
        print(number, repr(time.monotonic()), flush=True)

    PROGRAMS[name](settings, queue, sent, stop)


def start(name: str, settings: BrokerSettings) -> Watched:
    """Start a program of that name, with an empty queue of its own."""
    queue = "recovery of " + name
    connection = pika.BlockingConnection(settings.to_pika())
    connection.channel().queue_declare(queue, durable=True)
    connection.close()
    process = subprocess.Popen(
        [sys.executable, __file__, "--child", name, queue],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin is not None
    process.stdin.write(settings.to_url(mask=False) + "\n")  # not an argument: those are for everybody to read
    process.stdin.flush()
    watched = Watched(name, process, queue)
    threading.Thread(target=watched.listen, daemon=True).start()
    return watched


def accepts(settings: BrokerSettings) -> bool:
    """Whether the broker answers an AMQP header."""
    try:
        with socket.create_connection(settings.addresses[0], timeout=1) as link:
            link.sendall(GREETING)
            return link.recv(1) == b"\x01"  # a method frame: Connection.Start
    except OSError:
        return False


def restart(broker: Broker, die: Callable[[], object]) -> float:
    """Have *broker* die and start again; return the moment at which it accepted connections."""
    settings = broker.settings()
    die()
    found: list[float] = []

    def probe() -> None:
        while not accepts(settings):
            time.sleep(PROBE)
        found.append(time.monotonic())

    prober = threading.Thread(target=probe, daemon=True)
    prober.start()
    broker.start()
    prober.join(60)
    return found[0]


def drained(settings: BrokerSettings, queue: str) -> Counter[int]:
    """Return how often each number is in *queue*."""
    connection = pika.BlockingConnection(settings.to_pika())
    taken: Counter[int] = Counter()
    for method, _, body in connection.channel().consume(queue, auto_ack=True, inactivity_timeout=3):
        if method is None:
            break
        taken[int(body)] += 1
    connection.close()
    return taken


def row(watched: Watched, taken: Counter[int], restarts: int) -> list[str]:
    """Say what became of one program and its messages."""
    believed = {number for number, _ in watched.sent}
    times = watched.seconds
    return [
        watched.name,
        f"{statistics.median(times):.2f} s" if times else "never",
        f"{max(times):.2f} s" if times else "never",
        f"{len(times)} of {restarts}",
        str(len(believed)),
        str(len(believed - set(taken))),
        str(sum(taken.values()) - len(taken)),
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--restarts", type=int, default=RESTARTS, help=f"how many (default {RESTARTS})")
    parser.add_argument("--quick", action="store_true", help="one kill and one restart, close together: does it run?")
    parser.add_argument("--write", action="store_true", help="put the table into docs/measured.md")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(*options.child)
        return
    restarts, between = (2, 1.0) if options.quick else (options.restarts, BETWEEN)
    with brokers.own("local") as broker:
        settings = broker.settings()
        names = [name for name in PROGRAMS if importlib.util.find_spec(NEEDS.get(name, "pika"))]
        programs = [start(name, settings) for name in names]
        accepts_at = time.monotonic()
        for number in range(restarts + 1):
            for each in programs:
                if not each.came_back(accepts_at):
                    print(f"{each.name}: not back within {COMEBACK:.0f} s, or ended", flush=True)
            if number < restarts:
                time.sleep(between)
                accepts_at = restart(broker, broker.stop if number % 2 else broker.kill)
                print(f"restart {number + 1} of {restarts}", flush=True)
        lines = [
            f"| after {restarts} restarts | back, p50 | back, max | came back | sent, it says | lost | twice |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        for each in programs:
            each.process.stdin.close()
            each.process.wait(COMEBACK)
            del each.seconds[:1]  # the first was its start
            lines.append(f"| {' | '.join(row(each, drained(settings, each.queue), restarts))} |")
    print("\n".join(lines))
    if options.write:
        write_block("recovery", lines)


if __name__ == "__main__":
    main()
