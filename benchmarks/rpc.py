"""What a remote call costs: labkit, oslo.messaging, and a bare loop over direct reply-to, which is the limit.

    LABKIT_URL=amqp://... python benchmarks/rpc.py [--quick] [--callers 1,32] [--write]

``--write`` puts the table into docs/measured.md. Needs oslo.messaging for its row (the extra ``test`` has it).

Each way has its server in a process of its own, on one broker, with its defaults: queues that are not durable. A call
takes a number and returns it. The ways take turns, several rounds each, and medians of the rounds are compared, for a
machine has moods; ratios of one run are what counts. What they promise differs: the bare loop confirms nothing, knows
no deadline, and loses calls with its link; its callers have a connection each, the others share what their library has.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pika
from report import write_block

from labkit import BrokerSettings
from labkit.rpc import RPCClient, RPCServer, Target, Transport

TOPIC = "labkit-benchmark-rpc"
CALLS = {1: 2000, 32: 6400}  # in a round, all callers together
ROUNDS = 3
PATIENCE = 60.0  # seconds for a call

Call = Callable[[int], Any]


class Echo:
    """What is called."""

    def echo(self, ctxt: Any, value: int) -> int:  # noqa: ARG002
        return value


# --- servers, each in a process of its own ------------------------------------------------------------------------


def serve_labkit(settings: BrokerSettings) -> None:
    with Transport(settings) as transport, RPCServer(transport, Target(topic=TOPIC, server="one"), [Echo()]):
        wait_for_the_end()


def serve_oslo(settings: BrokerSettings) -> None:
    messaging, conf = oslo()
    transport = messaging.get_rpc_transport(conf, rabbit_url(settings))
    server = messaging.get_rpc_server(transport, messaging.Target(topic=f"{TOPIC}-oslo", server="one"), [Echo()])
    server.start()
    wait_for_the_end()
    server.stop()
    server.wait()


def serve_bare(settings: BrokerSettings) -> None:
    connection = pika.BlockingConnection(settings.to_pika()[0])
    channel = connection.channel()
    channel.queue_declare(f"{TOPIC}-bare", exclusive=True)

    def answer(_: Any, method: Any, properties: Any, body: bytes) -> None:
        channel.basic_ack(method.delivery_tag)
        value = json.loads(body)["value"]
        channel.basic_publish(
            "",
            properties.reply_to,
            json.dumps({"result": value}).encode(),
            pika.BasicProperties(correlation_id=properties.correlation_id),
        )

    channel.basic_consume(f"{TOPIC}-bare", answer)
    print("serving", flush=True)
    channel.start_consuming()


def wait_for_the_end() -> None:
    print("serving", flush=True)
    sys.stdin.read()


# --- callers ------------------------------------------------------------------------------------------------------


@contextmanager
def labkit(settings: BrokerSettings, callers: int) -> Iterator[list[Call]]:
    with Transport(settings) as transport:
        client = RPCClient(transport, Target(topic=TOPIC), timeout=PATIENCE)
        yield [lambda value: client.call({}, "echo", value=value)] * callers


@contextmanager
def oslo_messaging(settings: BrokerSettings, callers: int) -> Iterator[list[Call]]:
    messaging, conf = oslo()
    transport = messaging.get_rpc_transport(conf, rabbit_url(settings))
    client = messaging.get_rpc_client(transport, messaging.Target(topic=f"{TOPIC}-oslo"), timeout=PATIENCE)
    yield [lambda value: client.call({}, "echo", value=value)] * callers
    transport.cleanup()


@contextmanager
def direct_reply_to(settings: BrokerSettings, callers: int) -> Iterator[list[Call]]:
    made = [BareCaller(settings) for _ in range(callers)]
    yield [each.call for each in made]
    for each in made:
        each.connection.close()


class BareCaller:
    """One connection, one thread: RabbitMQ's sixth tutorial with direct reply-to."""

    def __init__(self, settings: BrokerSettings) -> None:
        self.connection = pika.BlockingConnection(settings.to_pika()[0])
        self._channel = self.connection.channel()
        self._answers: dict[str, Any] = {}
        self._channel.basic_consume("amq.rabbitmq.reply-to", self._arrived, auto_ack=True)

    def call(self, value: int) -> Any:
        number = uuid.uuid4().hex
        properties = pika.BasicProperties(reply_to="amq.rabbitmq.reply-to", correlation_id=number)
        self._channel.basic_publish("", f"{TOPIC}-bare", json.dumps({"value": value}).encode(), properties)
        while number not in self._answers:
            self.connection.process_data_events(PATIENCE)
        return self._answers.pop(number)

    def _arrived(self, _: Any, __: Any, properties: Any, body: bytes) -> None:
        self._answers[properties.correlation_id] = json.loads(body)["result"]


def oslo() -> tuple[Any, Any]:
    warnings.simplefilter("ignore")
    import oslo_messaging
    from oslo_config import cfg

    if not cfg.CONF._args:
        cfg.CONF([], project="benchmark")
    return oslo_messaging, cfg.CONF


def rabbit_url(settings: BrokerSettings) -> str:
    return settings.to_url(mask=False).split("?")[0].replace("amqp://", "rabbit://")


# --- measuring ----------------------------------------------------------------------------------------------------

SERVERS = {"labkit": serve_labkit, "oslo.messaging": serve_oslo, "direct reply-to": serve_bare}
WAYS = {"labkit": labkit, "oslo.messaging": oslo_messaging, "direct reply-to": direct_reply_to}


@contextmanager
def served(name: str) -> Iterator[None]:
    command = [sys.executable, "-W", "ignore", __file__, "--serve", name]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        if process.stdout.readline() != "serving\n":
            raise RuntimeError(f"the server of {name} did not start")
        yield
    finally:
        process.kill()
        process.communicate()


def measure(calls: list[Call], count: int) -> tuple[float, list[float]]:
    """Return calls a second, and the seconds of each call."""
    took: list[list[float]] = [[] for _ in calls]

    def work(call: Call, mine: list[float]) -> None:
        for number in range(count // len(calls)):
            began = time.perf_counter()
            if call(number) != number:
                raise AssertionError("a wrong answer")
            mine.append(time.perf_counter() - began)

    threads = [threading.Thread(target=work, args=each) for each in zip(calls, took, strict=True)]
    began = time.perf_counter()
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    seconds = time.perf_counter() - began
    every = [each for mine in took for each in mine]
    if len(every) != count // len(calls) * len(calls):
        raise AssertionError("a caller has failed")
    return len(every) / seconds, every


def run(settings: BrokerSettings, callers: int, count: int, rounds: int) -> dict[str, tuple[float, float, float]]:
    """Return calls a second, median and 99th percentile in seconds, by way: medians of the rounds."""
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in WAYS}
    for _ in range(rounds):
        for name, way in WAYS.items():
            with served(name), way(settings, callers) as calls:
                measure(calls, max(callers, count // 20))  # connections, threads, caches
                rate, took = measure(calls, count)
            cuts = statistics.quantiles(took, n=100)
            found[name].append((rate, cuts[49], cuts[98]))
            print(f"{callers} callers, {name}: {rate:.0f}/s, median {cuts[49] * 1000:.2f} ms", file=sys.stderr)
    return {name: tuple(map(statistics.median, zip(*each, strict=True))) for name, each in found.items()}  # type: ignore[misc]


def table(results: dict[int, dict[str, tuple[float, float, float]]]) -> list[str]:
    lines = [
        "| callers | way | calls/s | of oslo.messaging's | median | of the bare loop's | 99 % |",
        "|" + " --- |" * 7,
    ]
    for callers, found in results.items():
        theirs, bare = found["oslo.messaging"][0], found["direct reply-to"][1]
        for name, (rate, median, late) in found.items():
            lines.append(
                f"| {callers} | {name} | {rate:,.0f} | {rate / theirs:.1f} | {median * 1000:.2f} ms "
                f"| {median / bare:.2f} | {late * 1000:.2f} ms |"
            )
    where = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    return [*lines, "", f"Measured on {where}."]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", choices=SERVERS, help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="one round of few calls: to see that it works")
    parser.add_argument("--callers", default="1,32", help="how many at once; several, with commas")
    parser.add_argument("--write", action="store_true", help="put the table into docs/measured.md")
    asked = parser.parse_args()
    settings = BrokerSettings.from_env()
    if asked.serve:
        SERVERS[asked.serve](settings)
        return
    results = {}
    for callers in map(int, asked.callers.split(",")):
        count = 320 if asked.quick else CALLS.get(callers, 200 * callers)
        results[callers] = run(settings, callers, count, 1 if asked.quick else ROUNDS)
    lines = table(results)
    print("\n".join(lines))
    if asked.write:
        write_block("rpc", lines)


if __name__ == "__main__":
    main()
