"""What the Flask extension saves: a request that publishes, beside one that opens a connection of Pika's each time.

    LABKIT_URL=... python benchmarks/web.py [--quick] [--write]

Both applications wait for the broker's confirm, and run on the same threaded server with the same clients, in turns.
"""

import argparse
import http.client
import logging
import os
import statistics
import threading
import time

import pika
from flask import Flask, request
from werkzeug.serving import make_server

from labkit import BrokerSettings, Queue
from labkit.integrations.flask import RabbitMQ

CLIENTS = 8
EACH = 40  # requests of a client in one turn
ROUNDS = 5
QUEUE = Queue("labkit-benchmark-web", arguments={"x-max-length": 10})
KEPT, NEW = "labkit, one connection a process", "Pika, a connection for each request"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small counts: does it run?")
    parser.add_argument("--write", action="store_true", help="keep the table in docs/measured.md")
    options = parser.parse_args()
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    found = measure(rounds=1 if options.quick else ROUNDS, each=3 if options.quick else EACH)
    rows = [[name, f"{rate:.0f}", f"{rate / found[NEW]:.1f}"] for name, rate in found.items()]
    for name, rate, times in rows:
        print(f"{name:38} {rate:>6} requests a second, {times} times as many")
    if options.write:
        from tests.soak.measured import write_table

        write_table("requests that publish", ["a request on", "requests a second", "times as many"], rows)


def measure(*, rounds: int, each: int) -> dict[str, float]:
    """Return each application's requests a second, the median of its turns."""
    url = os.environ["LABKIT_URL"]
    app = keeping(url)
    apps = {KEPT: app, NEW: opening(url)}
    with app.app_context():
        rabbitmq = app.extensions["labkit"]
        with rabbitmq.manager.channel() as channel:
            channel.declare(QUEUE)
    servers = {name: make_server("127.0.0.1", 0, each, threaded=True) for name, each in apps.items()}
    for server in servers.values():
        threading.Thread(target=server.serve_forever, daemon=True).start()
    rates: dict[str, list[float]] = {name: [] for name in servers}
    for _ in range(rounds):
        for name, server in servers.items():
            rates[name].append(turn(server.port, each))
    for server in servers.values():
        server.shutdown()
    return {name: statistics.median(found) for name, found in rates.items()}


def keeping(url: str) -> Flask:
    """An application with the extension."""
    app, rabbitmq = Flask("keeping"), RabbitMQ()
    app.config["LABKIT_URL"] = url
    rabbitmq.init_app(app)

    @app.post("/")
    def order() -> tuple[str, int]:
        rabbitmq.publish(routing_key=QUEUE.name, body=request.get_data())
        return "", 202

    return app


def opening(url: str) -> Flask:
    """An application that opens a connection in each view: nothing is shared, so nothing is broken by threads."""
    app = Flask("opening")
    parameters = BrokerSettings.from_url(url).to_pika()[0]

    @app.post("/")
    def order() -> tuple[str, int]:
        connection = pika.BlockingConnection(parameters)
        channel = connection.channel()
        channel.confirm_delivery()
        properties = pika.BasicProperties(delivery_mode=2)
        channel.basic_publish("", QUEUE.name, request.get_data(), properties, mandatory=True)
        connection.close()
        return "", 202

    return app


def turn(port: int, each: int) -> float:
    """Have the clients send their requests at once; return the rate."""

    def send() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        for _ in range(each):
            connection.request("POST", "/", b"tea")
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 202, answer.status
        connection.close()

    clients = [threading.Thread(target=send) for _ in range(CLIENTS)]
    began = time.perf_counter()
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    return CLIENTS * each / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
