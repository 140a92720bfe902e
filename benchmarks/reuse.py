"""What a pool saves: a confirmed publish with a new connection, a new channel, a pooled one: ratios from one run.

    python benchmarks/reuse.py [amqp://guest:guest@localhost:5672/] [--quick]

Each way is measured in turn, several times, and the median of the turns is compared, for a machine has moods.
"""

import statistics
import sys
import time
from collections.abc import Callable

from labkit import BrokerSettings, ChannelPool, Connection, ConnectionPool, Queue

TIMES = 50  # publishes in one turn
ROUNDS = 5
QUEUE = Queue("labkit-benchmark-reuse", arguments={"x-max-length": 10})


def main() -> None:
    """Measure and print."""
    urls = [each for each in sys.argv[1:] if not each.startswith("--")]
    settings = BrokerSettings.from_url(urls[0]) if urls else BrokerSettings()
    times, rounds = (3, 1) if "--quick" in sys.argv else (TIMES, ROUNDS)
    with ConnectionPool(settings) as connections, ChannelPool(settings) as channels:
        channels.execute(lambda channel: channel.declare(QUEUE))

        def new_connection() -> None:
            with Connection(settings) as connection:
                connection.channel(confirm=True).publish("x", routing_key=QUEUE.name)

        def pooled_connection() -> None:
            with connections.connection() as connection, connection.channel(confirm=True) as channel:
                channel.publish("x", routing_key=QUEUE.name)

        def pooled_channel() -> None:
            channels.execute(lambda channel: channel.publish("x", routing_key=QUEUE.name), confirm=True)

        ways: dict[str, Callable[[], None]] = {
            "new connection": new_connection,
            "pooled connection, new channel": pooled_connection,
            "pooled channel": pooled_channel,
        }
        taken: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, way in ways.items():
                began = time.perf_counter()
                for _ in range(times):
                    way()
                taken[name].append((time.perf_counter() - began) / times)
        channels.execute(lambda channel: channel.delete(QUEUE))
    base = statistics.median(taken["new connection"])
    for name, each in taken.items():
        median = statistics.median(each)
        print(f"{name:32} {median * 1e3:8.2f} ms  {median / base:6.3f} of a new connection")


if __name__ == "__main__":
    main()
