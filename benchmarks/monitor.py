"""What a monitor and its metrics cost a publisher and a consumer: ratios from one run.

    LABKIT_URL=... python benchmarks/monitor.py [--quick] [--rounds N] [--write]

The same messages are published, confirmed, and consumed, acknowledged one by one, by turns without a monitor and with
one that looks every half second and whose metrics a Prometheus would find at any time. The medians are compared, for a
machine has moods. ``--write`` puts the table into docs/measured.md.
"""

import argparse
import statistics
import threading
import time
from collections.abc import Callable

import prometheus_client
from report import write_block

from labkit import BrokerSettings, Connection, ConnectionMonitor, Consumer, Publisher, Queue

QUEUE = Queue("labkit-benchmark-monitor", durable=True)
COUNT, ROUNDS, AIM = 10_000, 7, 0.95
PATIENCE = 300.0  # seconds
Turn = Callable[[BrokerSettings, int, bool], float]


def watched(what: object, is_on: bool) -> ConnectionMonitor:
    """Return a monitor of *what*, which watches and exports if *is_on*."""
    monitor = ConnectionMonitor(what, interval=0.5)
    if is_on:
        monitor.start().export_to(prometheus_client.CollectorRegistry())
    return monitor


def publish(settings: BrokerSettings, count: int, is_on: bool) -> float:
    """Return how many messages a second are published and confirmed."""
    with Publisher(settings) as publisher:
        monitor = watched(publisher, is_on)
        publisher.publish(b"first", routing_key=QUEUE.name).result()
        began = time.perf_counter()
        publisher.publish_many([b"x" * 100] * count, routing_key=QUEUE.name, deadline=PATIENCE)
        publisher.flush(timeout=PATIENCE)
        seconds = time.perf_counter() - began
        monitor.stop()
    return count / seconds


def consume(settings: BrokerSettings, count: int, is_on: bool) -> float:
    """Return how many messages a second are delivered, handled and acknowledged."""
    publish(settings, count, False)
    left, over = count, threading.Event()

    def handle(delivery) -> None:  # type: ignore[no-untyped-def]
        nonlocal left
        delivery.ack()
        left -= 1
        if left <= 0:
            over.set()

    consumer = Consumer(settings, QUEUE.name, handle, prefetch=500)
    monitor = watched(consumer, is_on)
    began = time.perf_counter()
    with consumer:
        if not over.wait(PATIENCE):
            raise TimeoutError(f"{left} of {count} messages did not come")
        seconds = time.perf_counter() - began
        monitor.stop()
    return count / seconds


def compared(settings: BrokerSettings, turn: Turn, count: int, rounds: int) -> tuple[float, float]:
    """Return the median rate without a monitor, and with one."""
    rates: dict[bool, list[float]] = {False: [], True: []}
    for number in range(rounds):
        for is_on in (False, True) if number % 2 else (True, False):
            with Connection(settings) as connection, connection.channel() as channel:
                channel.delete(QUEUE)
                channel.declare(QUEUE)
            rates[is_on].append(turn(settings, count, is_on))
    return statistics.median(rates[False]), statistics.median(rates[True])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small counts: does it run?")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"turns of each way (default {ROUNDS})")
    parser.add_argument("--write", action="store_true", help="the table into docs/measured.md")
    options = parser.parse_args()
    settings = BrokerSettings.from_env()
    count, rounds = (200, 1) if options.quick else (COUNT, options.rounds)
    lines = [
        f"| messages a second | without | with monitor and metrics | ratio (aim {AIM}) |",
        "| --- | --- | --- | --- |",
    ]
    for name, turn in (("published, confirmed", publish), ("consumed, acknowledged", consume)):
        plain, monitored = compared(settings, turn, count, rounds)
        lines.append(f"| {name} | {plain:,.0f} | {monitored:,.0f} | {monitored / plain:.2f} |")
    with Connection(settings) as connection, connection.channel() as channel:
        channel.delete(QUEUE)
    lines += ["", f"Medians of {rounds} turns each of {count:,} messages of 100 bytes, by turns."]
    print("\n".join(lines))
    if options.write:
        write_block("monitor", lines)


if __name__ == "__main__":
    main()
