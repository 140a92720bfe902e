"""How fast Pika publishes through the proxy, compared with publishing directly: ratios from one run.

    LABKIT_URL=... python benchmarks/wire.py

The proxy shares the process, so one interpreter lock, with the publisher: the worst case, and the one in a notebook.
Each way is measured in turn, several times, and the median of the turns is compared, for a machine has moods.
"""

import statistics
import time

import pika

from labkit.settings.settings import BrokerSettings
from labkit.wire import Proxy

MESSAGES = 10_000
ROUNDS = 5
SIZES = (100, 10_000)


def publish(settings: BrokerSettings, body: bytes) -> float:
    """Messages a second, from the first publish to the answer to what was said after the last one."""
    connection = pika.BlockingConnection(settings.to_pika())
    channel = connection.channel()
    queue = channel.queue_declare("", exclusive=True, arguments={"x-max-length": 10}).method.queue
    count = MESSAGES if len(body) < 1000 else MESSAGES // 2
    started = time.perf_counter()
    for _ in range(count):
        channel.basic_publish("", queue, body)
    channel.queue_declare(queue, passive=True)
    elapsed = time.perf_counter() - started
    connection.close()
    return count / elapsed


def main() -> None:
    """Measure and print."""
    direct = BrokerSettings.from_env()
    with Proxy(direct, tapped=False) as plain, Proxy(direct) as tapped:
        ways = {"direct": direct, "proxy": plain.settings(), "proxy, tapped": tapped.settings()}
        for size in SIZES:
            body = b"x" * size
            rates: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(ROUNDS):
                for name, settings in ways.items():
                    rates[name].append(publish(settings, body))
                tapped.tap().clear()
            base = statistics.median(rates["direct"])
            for name, measured in rates.items():
                median = statistics.median(measured)
                print(f"{size:6} bytes  {name:14} {median:8.0f} messages/s  {median / base:5.2f} of direct")


if __name__ == "__main__":
    main()
