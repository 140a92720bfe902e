"""What reuse saves: a confirmed publish on a new connection, a new channel, a pooled or a held one: ratios of one run.

    LABKIT_URL=... python benchmarks/reuse.py [--quick] [--write]

Each way is measured in turn, several times, and the median of the turns is compared, for a machine has moods.
"""

import argparse
import statistics
import time
from collections.abc import Callable

from labkit import BrokerSettings, Channel, ChannelPool, Connection, ConnectionPool, Queue

TIMES = 50  # publishes in one turn
ROUNDS = 5
QUEUE = Queue("labkit-benchmark-reuse", arguments={"x-max-length": 10})


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small counts: does it run?")
    parser.add_argument("--write", action="store_true", help="keep the table in docs/measured.md")
    options = parser.parse_args()
    settings = BrokerSettings.from_env()
    found = measure(settings, rounds=1 if options.quick else ROUNDS, times=3 if options.quick else TIMES)
    base = found["new connection, new channel"]
    rows = [[name, f"{each * 1e3:.2f} ms", f"{each / base:.3f}", f"{base / each:.1f}"] for name, each in found.items()]
    for name, took, ratio, faster in rows:
        print(f"{name:32} {took:>10}  {ratio} of a new connection, {faster} times as many")
    if options.write:
        from tests.soak.measured import write_table

        write_table("reuse", ["a confirmed publish on", "median", "of a new connection", "times as many"], rows)


def measure(settings: BrokerSettings, *, rounds: int, times: int) -> dict[str, float]:
    """Return each way's seconds for one message, the median of its turns."""
    with (
        ConnectionPool(settings) as connections,
        ChannelPool(settings) as channels,
        Connection(settings) as held,
        held.channel(confirm=True) as held_channel,
    ):
        held_channel.declare(QUEUE)

        def publish(channel: Channel) -> None:
            channel.publish("x", routing_key=QUEUE.name)

        def new_connection() -> None:
            with Connection(settings) as connection, connection.channel(confirm=True) as channel:
                publish(channel)

        def new_channel() -> None:
            with held.channel(confirm=True) as channel:
                publish(channel)

        def pooled_connection() -> None:
            with connections.connection() as connection, connection.channel(confirm=True) as channel:
                publish(channel)

        ways: dict[str, Callable[[], None]] = {
            "new connection, new channel": new_connection,
            "pooled connection, new channel": pooled_connection,
            "held connection, new channel": new_channel,
            "pooled channel": lambda: channels.execute(publish, confirm=True),
            "held channel": lambda: publish(held_channel),
        }
        taken: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, way in ways.items():
                began = time.perf_counter()
                for _ in range(times):
                    way()
                taken[name].append((time.perf_counter() - began) / times)
        held_channel.delete(QUEUE)
    return {name: statistics.median(each) for name, each in taken.items()}


if __name__ == "__main__":
    main()
