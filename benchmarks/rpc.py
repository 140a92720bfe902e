"""What a remote call costs: labkit, oslo.messaging, and two bare loops: over direct reply-to, and in oslo's format.

    LABKIT_URL=amqp://... python benchmarks/rpc.py [--quick] [--callers 1,32] [--rounds 20] [--write]

``--write`` puts the table into docs/measured.md. Needs oslo.messaging for its row (the extra ``test`` has it).

Each way has its server in a process of its own, on one broker, with its defaults: queues that are not durable. A call
takes a number and returns it. The ways take many short turns, and medians of the turns are compared, for a machine
has moods; ratios of one run are what counts. What they promise differs: the bare loop confirms nothing, knows
no deadline, and loses calls with its link; its callers have a connection each, the others share what their library has.
By hand is what the messages of oslo.messaging cost without a library: JSON in JSON, a queue for the answers, a confirm
for each message, an acknowledgement for each delivery. It has no deadline either, and two connections for each caller.
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
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import pika
from report import write_block

from labkit import BrokerSettings
from labkit.rpc import RPCClient, RPCServer, Target, Transport

TOPIC = "labkit-benchmark-rpc"
CALLS = {1: 100, 32: 640}  # in a turn, all callers together
ROUNDS = 20
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


def serve_by_hand(settings: BrokerSettings) -> None:
    listening, answers = (pika.BlockingConnection(settings.to_pika()[0]).channel() for _ in range(2))
    answers.confirm_delivery()
    listening.exchange_declare("openstack", "topic")
    listening.queue_declare(f"{TOPIC}-hand")
    listening.queue_bind(f"{TOPIC}-hand", "openstack", f"{TOPIC}-hand")

    def answer(_: Any, method: Any, __: Any, body: bytes) -> None:
        listening.basic_ack(method.delivery_tag)
        asked = unwrapped(body)
        payload = {"result": asked["args"]["value"], "failure": None, "ending": True, "_msg_id": asked["_msg_id"]}
        answers.basic_publish("", asked["_reply_q"], *wrapped(payload), mandatory=True)

    listening.basic_consume(f"{TOPIC}-hand", answer)
    print("serving", flush=True)
    listening.start_consuming()


def wrapped(payload: dict[str, Any], **properties: Any) -> tuple[bytes, pika.BasicProperties]:
    """Return a body and properties as oslo.messaging has them."""
    text = json.dumps({**payload, "_unique_id": uuid.uuid4().hex})
    given = {"content_type": "application/json", "content_encoding": "utf-8", "headers": {}, "delivery_mode": 2}
    body = json.dumps({"oslo.version": "2.0", "oslo.message": text}).encode()
    return body, pika.BasicProperties(**given, priority=0, **properties)


def unwrapped(body: bytes) -> Any:
    return json.loads(json.loads(body)["oslo.message"])


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
def direct_reply_to(
    settings: BrokerSettings, callers: int, kind: "type[BareCaller] | None" = None
) -> Iterator[list[Call]]:
    made = [(kind or BareCaller)(settings) for _ in range(callers)]
    yield [each.call for each in made]
    for each in made:
        each.connection.close()


def by_hand(settings: BrokerSettings, callers: int) -> AbstractContextManager[list[Call]]:
    return direct_reply_to(settings, callers, CallerByHand)


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


class CallerByHand(BareCaller):
    """Two connections, one thread: oslo.messaging's messages, and nothing around them."""

    def __init__(self, settings: BrokerSettings) -> None:
        self.connection = pika.BlockingConnection(settings.to_pika()[0])
        self._channel = self.connection.channel()
        self._answers: dict[str, Any] = {}
        self._reply_q = f"reply_{uuid.uuid4().hex}"
        self._channel.queue_declare(self._reply_q, arguments={"x-expires": 1_800_000})
        self._channel.basic_consume(self._reply_q, self._arrived)
        self._sending = pika.BlockingConnection(settings.to_pika()[0]).channel()
        self._sending.confirm_delivery()

    def call(self, value: int) -> Any:
        number = uuid.uuid4().hex
        payload = {"method": "echo", "args": {"value": value}, "_msg_id": number, "_reply_q": self._reply_q}
        message = wrapped({**payload, "_timeout": None}, expiration=str(int(PATIENCE * 1000)))
        self._sending.basic_publish("openstack", f"{TOPIC}-hand", *message)
        while number not in self._answers:
            self.connection.process_data_events(PATIENCE)
        return self._answers.pop(number)

    def _arrived(self, _: Any, method: Any, __: Any, body: bytes) -> None:
        self._channel.basic_ack(method.delivery_tag)
        answer = unwrapped(body)
        self._answers[answer["_msg_id"]] = answer["result"]


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

SERVERS = {
    "labkit": serve_labkit,
    "oslo.messaging": serve_oslo,
    "oslo's format by hand": serve_by_hand,
    "direct reply-to": serve_bare,
}
WAYS = {
    "labkit": labkit,
    "oslo.messaging": oslo_messaging,
    "oslo's format by hand": by_hand,
    "direct reply-to": direct_reply_to,
}


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
    with ExitStack() as stack:
        for name in WAYS:
            stack.enter_context(served(name))
        calls = {name: stack.enter_context(way(settings, callers)) for name, way in WAYS.items()}
        for each in calls.values():
            measure(each, count)  # connections, threads, caches
        for _ in range(rounds):
            for name, each in calls.items():
                rate, took = measure(each, count)
                cuts = statistics.quantiles(took, n=100)
                found[name].append((rate, cuts[49], cuts[98]))
    for name, each in found.items():
        rate, median, _ = map(statistics.median, zip(*each, strict=True))
        print(f"{callers} callers, {name}: {rate:.0f}/s, median {median * 1000:.2f} ms", file=sys.stderr)
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
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="how many, of which the medians count")
    parser.add_argument("--write", action="store_true", help="put the table into docs/measured.md")
    asked = parser.parse_args()
    settings = BrokerSettings.from_env()
    if asked.serve:
        SERVERS[asked.serve](settings)
        return
    results = {}
    for callers in map(int, asked.callers.split(",")):
        count = 320 if asked.quick else CALLS.get(callers, 20 * callers)
        results[callers] = run(settings, callers, count, 1 if asked.quick else asked.rounds)
    lines = table(results)
    print("\n".join(lines))
    if asked.write:
        write_block("rpc", lines)


if __name__ == "__main__":
    main()
