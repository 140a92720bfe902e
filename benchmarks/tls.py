"""What TLS costs: the handshake, and the ratio of confirmed publishes TLS to plain; numbers from one run.

    python benchmarks/tls.py [amqp://... 'amqps://...?ca_file=...'] [--quick] [--write]

Without URLs: the bench's broker, which has both listeners. The two ways are measured in turn, several times, and
medians are compared, for a machine has moods. ``--write`` puts the table into docs/measured.md.
"""

import argparse
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pika

from labkit import BrokerSettings, Connection, ConnectionFactory, Message, Publisher, Queue
from labkit.connector.tls_session import tls_session

PAGE = Path(__file__).parents[1] / "docs" / "measured.md"
QUEUE = Queue("labkit-benchmark-tls", arguments={"x-max-length": 10})
ROUNDS, CONNECTS, MESSAGES = 7, 30, 5000
SIZES = (100, 10_000)  # bytes


def connects(settings: BrokerSettings, count: int) -> float:
    """Seconds for one connection, opened and closed, by Pika's own adapter with our context."""
    factory = ConnectionFactory(settings)
    began = time.perf_counter()
    for _ in range(count):
        factory.blocking().close()
    return (time.perf_counter() - began) / count


def publishes(settings: BrokerSettings, count: int, size: int) -> float:
    """Confirmed messages a second, a window of 1000 on their way."""
    message = Message(b"x" * size, persistent=False)
    with Publisher(settings) as publisher:
        publisher.publish(message, routing_key=QUEUE.name).result(timeout=30)  # the link is open now
        began = time.perf_counter()
        for _ in range(count):
            publisher.publish(message, routing_key=QUEUE.name)
        publisher.flush(timeout=300)
        return count / (time.perf_counter() - began)


def in_turn(ways: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Return each way's median."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            found[name].append(way())
    return {name: statistics.median(each) for name, each in found.items()}


def rows(plain: BrokerSettings, tls: BrokerSettings, quick: bool) -> list[list[str]]:
    rounds, count, messages = (1, 3, 100) if quick else (ROUNDS, CONNECTS, MESSAGES)
    context = tls.tls.make_context if tls.tls is not None else None
    if context is None:
        raise SystemExit("the second URL must begin with amqps://")
    opened = in_turn({"plain": lambda: connects(plain, count), "tls": lambda: connects(tls, count)}, rounds)
    made = in_turn({"context": lambda: timed(context, count)}, rounds)["context"]
    table = [
        ["connect and close, median", *pair(opened["tls"] * 1e3, opened["plain"] * 1e3, "ms")],
        ["of that, reading the files and making the context", f"{made * 1e3:.1f} ms", "", ""],
    ]
    with Connection(plain) as connection:
        connection.channel().declare(QUEUE)
        for size in SIZES:
            rate = in_turn(
                {
                    "plain": lambda size=size: publishes(plain, messages, size),
                    "tls": lambda size=size: publishes(tls, messages, size),
                },
                rounds,
            )
            table.append([f"confirmed messages of {size} bytes a second", *pair(rate["tls"], rate["plain"], "", 0)])
        connection.channel().delete(QUEUE)
    return table


def timed(function: Callable[[], object], count: int) -> float:
    began = time.perf_counter()
    for _ in range(count):
        function()
    return (time.perf_counter() - began) / count


def pair(tls: float, plain: float, unit: str, digits: int = 1) -> list[str]:
    return [f"{tls:.{digits}f} {unit}".strip(), f"{plain:.{digits}f} {unit}".strip(), f"{tls / plain:.2f}"]


def agreed(settings: BrokerSettings) -> str:
    connection: pika.BlockingConnection = ConnectionFactory(settings).blocking()
    session = tls_session(connection)
    connection.close()
    return "no TLS" if session is None else f"{session.version}, {session.cipher}"


def bench() -> list[BrokerSettings]:
    from labkit.lab import Lab

    lab = Lab("benchmark-tls")
    return [lab.settings(), lab.settings(tls=True)]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("urls", nargs="*", help="the plain one and the TLS one")
    parser.add_argument("--quick", action="store_true", help="small counts: does it run?")
    parser.add_argument("--write", action="store_true", help="put the table into docs/measured.md")
    options = parser.parse_args()
    plain, tls = [BrokerSettings.from_url(each) for each in options.urls] or bench()
    lines = ["| what | TLS | plain | ratio |", "| --- | --- | --- | --- |"]
    lines += [f"| {' | '.join(row)} |" for row in rows(plain, tls, options.quick)]
    lines += ["", f"TLS here: {agreed(tls)}."]
    print("\n".join(lines))
    if options.write:
        block = "<!-- tls -->\n" + "\n".join(lines) + "\n<!-- /tls -->"
        page = PAGE.read_text()
        PAGE.write_text(re.sub(r"<!-- tls -->.*?<!-- /tls -->", lambda _: block, page, flags=re.DOTALL))


if __name__ == "__main__":
    main()
