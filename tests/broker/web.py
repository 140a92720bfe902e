"""What the tests of web servers share: a server on a thread, one in a process, and clients that keep count."""

import contextlib
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter

import httpx
import pika
from werkzeug.serving import make_server

from labkit import Queue
from labkit.brokers.home import project
from tests.broker.flask_program import QUEUE
from tests.unit.pool.still_pool import in_threads
from tests.view import until


def declared(settings, queue=QUEUE):
    """Have a durable queue there, empty; return the URL of its virtual host."""
    connection = pika.BlockingConnection(settings.to_pika()[0])
    channel = connection.channel()
    channel.queue_declare(queue, durable=Queue(queue).durable)
    channel.queue_purge(queue)
    connection.close()
    return settings.to_url(mask=False)


@contextlib.contextmanager
def served(app):
    """Werkzeug's threaded server with *app*; yields its address."""
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.port}"
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def server_process(command, url, log, *, path="/healthz", **environment):
    """Run *command*, a server on the port that "{port}" in it stands for; yield the process and its address."""
    paths = os.pathsep.join([str(project()), str(log.parent)])
    port = free_port()
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, *(each.replace("{port}", str(port)) for each in command)],
            env={**os.environ, "LABKIT_URL": url, "PYTHONPATH": paths, **environment},
            stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    try:
        until(lambda: process.poll() is not None or answers(address + path), 30)
        assert process.poll() is None, log.read_text()
        yield process, address
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise


def answers(address):
    try:
        return httpx.get(address, trust_env=False, timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def exported(address, name):
    """What ``/metrics`` of a server says of *name*, its label included; None: it has no such row."""
    answer = httpx.get(f"{address}/metrics", trust_env=False, timeout=10)
    assert (answer.status_code, answer.headers["Content-Type"][:10]) == (200, "text/plain")
    found = re.search(rf"^labkit_{re.escape(name)} (\S+)$", answer.text, re.MULTILINE)
    return None if found is None else float(found[1])


class Orders:
    """Clients that post numbered orders, and remember what each was answered."""

    def __init__(self, address):
        self._host = address.removeprefix("http://")
        self.statuses = Counter()
        self.accepted = []
        self.broken = []  # what was no answer at all

    def start(self, *, clients, each):
        """Return the threads of *clients* that post *each* orders, one after the other."""
        numbers = iter(range(clients))
        lock = threading.Lock()

        def post():
            with lock:
                me = next(numbers)
            connection = http.client.HTTPConnection(self._host, timeout=30)
            for number in range(each):
                body = f"{me}-{number}"
                try:
                    connection.request("POST", "/orders", body)
                    answer = connection.getresponse()
                    answer.read()
                except (OSError, http.client.HTTPException) as exc:
                    self.broken.append(repr(exc))
                    connection.close()
                    continue
                with lock:
                    self.statuses[answer.status] += 1
                    if answer.status == 202:
                        self.accepted.append(body)
                    elif answer.status == 503:
                        assert int(answer.headers["Retry-After"]) >= 1
            connection.close()

        return in_threads(clients, post)

    def post(self, *, clients, each, timeout=60):
        for thread in self.start(clients=clients, each=each):
            thread.join(timeout)
            assert not thread.is_alive()
