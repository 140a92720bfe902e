"""What one I/O thread for all connections must stand: TLS, crashes, many threads, forks, forgotten closes."""

import asyncio
import ctypes
import os
import random
import ssl
import subprocess
import sys
import textwrap
import threading
import time

import pytest
import trustme

from labkit import ChannelLost, ConnectionLost, ConnectionRecovered, NotConnected, Queue, State, TlsSettings
from labkit.connection.io_thread import SHARED
from labkit.wire import Proxy, Stall
from tests.broker.connections import SLACK, connected, our_threads, own_virtual_host, through_a_proxy
from tests.view import until

pytestmark = pytest.mark.broker


@pytest.fixture(scope="module")
def settings(broker):
    """One virtual host for all tests here: making one takes longer than most of them."""
    with own_virtual_host(broker) as settings:
        yield settings


class TlsRelay:
    """A TLS listener in front of the broker's plain port."""

    def __init__(self, context, host, port):
        self._context, self._target = context, (host, port)
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_):
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        self._loop.close()

    def cut_newest(self):
        self._loop.call_soon_threadsafe(lambda: self._writers[-1].transport.abort())

    def _run(self):
        self._loop.run_until_complete(self._serve())

    async def _serve(self):
        self._stop = asyncio.Event()
        self._writers = []
        self._tasks = set()
        server = await asyncio.start_server(self._relay, "127.0.0.1", 0, ssl=self._context)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _relay(self, reader, writer):
        task = asyncio.current_task()
        self._tasks.add(task)
        self._writers.append(writer)
        other_reader, other_writer = await asyncio.open_connection(*self._target)
        try:
            pumps = [self._pump(reader, other_writer), self._pump(other_reader, writer)]
            await asyncio.gather(*pumps)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            for each in (writer, other_writer):
                each.transport.abort()

    @staticmethod
    async def _pump(reader, writer):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        raise OSError("the end")


def compute_for(seconds):
    """Keep two threads busy with pure Python, this one and another."""
    ends = time.monotonic() + seconds

    def compute():
        while time.monotonic() < ends:
            sum(range(10_000))

    other = threading.Thread(target=compute)
    other.start()
    compute()
    other.join(10)


def test_tls_and_plain_connections_share_the_loop_and_each_dies_alone(settings):
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    host, port = settings.addresses[0]
    trust = TlsSettings(ca_data=authority.cert_pem.bytes().decode())
    with TlsRelay(context, host, port) as relay:
        secure = settings.replace(host="localhost", port=relay.port, tls=trust, heartbeat=2)
        with (
            connected(settings.replace(heartbeat=2)) as (plain, plain_line),
            connected(secure) as (first, first_line),
            connected(secure) as (second, second_line),
        ):
            body = os.urandom(3_000_000)  # many TLS records, many frames
            for connection in (plain, first, second):
                channel = connection.channel()
                name = channel.declare(Queue(exclusive=True)).name
                channel.publish(body, routing_key=name)
                assert until(lambda: channel.get(name)).body == body  # noqa: B023 - called at once
            compute_for(5.5)  # more than the broker forgives without heartbeats
            assert plain.is_open
            assert first.is_open
            until(lambda: our_threads() == ["labkit-io"])
            relay.cut_newest()
            second_line.wait_for(ConnectionLost, timeout=5)
            assert "ConnectionLost" not in plain_line.names() + first_line.names()
            assert first.channel().is_open


def test_a_crash_of_the_loop_fails_who_waits_and_recovering_connections_come_back(settings):
    with (
        through_a_proxy(settings, recovery=True) as (proxy, recovering, timeline),
        connected(settings) as (plain, plain_line),
    ):
        channel = recovering.channel()
        crashes = SHARED.crashes
        caught = []

        def wait():
            try:
                channel.declare(Queue("work"))
            except ChannelLost as exc:
                caught.append(exc)

        with proxy.fault(Stall(), direction="downstream"):
            waiting = threading.Thread(target=wait)
            waiting.start()
            proxy.wait_for("Queue.Declare", timeout=5)

            def crash():
                raise SystemError("a bug below us")

            # Past labkit's own guard, as an error inside Pika would be.
            SHARED.call(lambda: SHARED.ioloop().add_callback(crash), timeout=5)
            waiting.join(10)
            assert len(caught) == 1
            assert "a bug below us" in str(plain_line.wait_for(ConnectionLost, timeout=5).reason)
        timeline.wait_for(ConnectionRecovered, timeout=10)
        assert SHARED.crashes == crashes + 1
        assert recovering.channel().is_open
        with pytest.raises(NotConnected, match="a bug below us"):
            plain.channel()
        plain.open()
        assert plain.channel().is_open
        until(lambda: our_threads().count("labkit-io") == 1)
        until(lambda: len(proxy.links) == 1)


def test_a_function_that_raises_on_the_loop_costs_nobody_else_anything(settings):
    def bad():
        raise ValueError("mine")

    with connected(settings) as (connection, _):
        SHARED.post(bad)
        with pytest.raises(ValueError, match="mine"):
            SHARED.call(bad, timeout=5)
        assert connection.channel().is_open


def test_what_would_wait_for_the_io_thread_on_the_io_thread_is_refused(settings):
    with connected(settings) as (connection, _):
        channel = connection.channel()
        for wait in (connection.open, connection.channel, lambda: channel.get("any")):
            with pytest.raises(RuntimeError, match="I/O thread"):
                SHARED.call(wait, timeout=5)
        SHARED.call(connection.close, timeout=5)  # asked for, and not waited for
        connection.wait_for(State.CLOSED, timeout=5)


def test_a_busy_loop_shows_as_lag(settings):
    with connected(settings) as (connection, _):
        SHARED.post(lambda: time.sleep(1.0))
        until(lambda: connection.status().lag > 0.5, 5)
        until(lambda: connection.status().lag < 0.2, 5)


def test_native_code_that_holds_the_gil_shows_as_lag_afterwards(settings):
    """G5. Meanwhile nobody can look, so the gauge must still tell a moment later."""
    usleep = ctypes.PyDLL(None).usleep  # unlike CDLL's, it keeps the lock while it sleeps
    with connected(settings) as (connection, _):
        until(lambda: connection.status().lag < 0.2, 5)
        thread = threading.Thread(target=usleep, args=[900_000])
        thread.start()
        thread.join()
        for pause in (0.0, 0.3):
            time.sleep(pause)
            assert 0.5 < connection.status().lag < 0.9 + SLACK
        assert connection.is_open


def stress(settings, *, threads, calls, seed):
    """Mixed calls of many threads on one connection; what was published and not acknowledged must be there."""
    published, acknowledged, unexpected = [0] * threads, [0] * threads, []

    def work(number, connection):
        rng = random.Random(seed * 1000 + number)
        channel = connection.channel(timeout=60)
        for _ in range(calls // threads):
            act = rng.choice(["publish"] * 4 + ["get"] * 4 + ["look", "miss", "reopen", "status"])
            try:
                if act == "publish":
                    channel.publish(rng.randbytes(rng.randrange(3000)), routing_key="stress", timeout=60)
                    published[number] += 1
                elif act == "get":
                    delivery = channel.get("stress", timeout=60)
                    if delivery is not None:
                        delivery.ack(timeout=60)
                        acknowledged[number] += 1
                elif act == "look":
                    channel.declare(Queue("stress"), passive=True, timeout=60)
                elif act == "miss":
                    with pytest.raises(ChannelLost, match="404"):
                        channel.declare(Queue("missing"), passive=True, timeout=60)
                    channel = connection.channel(timeout=60)
                elif act == "reopen":
                    channel.close()
                    channel = connection.channel(timeout=60)
                else:
                    assert connection.status().is_open
            except Exception as exc:
                unexpected.append((number, act, exc))
                return
        channel.close()

    with connected(settings) as (connection, timeline):
        setup = connection.channel()
        setup.delete(Queue("stress"))
        setup.declare(Queue("stress"))
        workers = [threading.Thread(target=work, args=(number, connection)) for number in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(300)
        assert unexpected == []
        assert not any(worker.is_alive() for worker in workers)
        left = sum(published) - sum(acknowledged)
        until(lambda: setup.declare(Queue("stress"), passive=True).messages == left)
        assert connection.status().channels == 1
        assert connection.generation == 1
        opened, closed = timeline.names().count("ChannelOpened"), timeline.names().count("ChannelClosed")
        assert opened == closed + 1


def test_thirty_two_threads_share_one_connection(settings):
    stress(settings, threads=32, calls=2000, seed=1)


def run(script, settings, *, timeout=30):
    """Run *script* in a fresh interpreter, with the settings' URL on its standard input."""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        input=settings.to_url(mask=False),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    return done, time.monotonic() - started


OPEN = """
import sys, time
from labkit import BrokerSettings, Connection, Queue, Backoff
connection = Connection(BrokerSettings.from_url(sys.stdin.read()), recovery=True).open()
channel = connection.channel()
name = channel.declare(Queue(exclusive=True)).name
channel.consume(name, print)
began = time.monotonic()
"""


def test_an_exit_without_close_is_silent_quick_and_says_goodbye(settings):
    with Proxy(settings) as proxy:
        done, _ = run(OPEN, proxy.settings(heartbeat=2))
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        proxy.wait_for("Connection.CloseOk", timeout=5)


def test_an_exit_while_the_link_is_silent_or_gone_takes_at_most_two_seconds(settings):
    script = OPEN + "print('ready', flush=True)\nsys.stdin.close()\nimport os\nos.read(FD, 1)\n"
    for is_cut in (False, True):
        with Proxy(settings) as proxy:
            reading, writing = os.pipe()
            child = subprocess.Popen(
                [sys.executable, "-c", script.replace("FD", str(reading))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                pass_fds=[reading],
            )
            child.stdin.write(proxy.settings(heartbeat=0).to_url(mask=False))
            child.stdin.close()
            assert child.stdout.readline() == "ready\n"
            with proxy.fault(Stall()):
                if is_cut:
                    proxy.cut()
                    time.sleep(0.3)
                started = time.monotonic()
                os.write(writing, b"x")
                assert child.wait(20) == 0
                assert time.monotonic() - started < 2 + SLACK
            assert child.stderr.read() == ""
            for stream in (child.stdout, child.stderr):
                stream.close()
            os.close(reading)
            os.close(writing)


FORK = (
    OPEN
    + """
import os, warnings
def in_child(act):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 on: threads and fork; it is the point here
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if act() else 2
        except BaseException as exc:
            print(repr(exc), flush=True)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def look():
    return (repr(connection), connection.is_open, channel.is_open, connection.generation) == (
        "Connection(new)", False, False, 0)
def close():
    connection.close(); channel.close(); connection.abort()
    return True
def use():
    own = connection.open().channel()
    own.publish("from the child", routing_key=name2)
    connection.close()
    return connection.generation == 1
def collect():
    import gc
    global connection, channel
    connection = channel = None
    gc.collect()
    return True

name2 = channel.declare(Queue("from-the-child")).name
codes = [in_child(act) for act in (look, close, use, collect)]
time.sleep(3.5)  # more than the broker forgives without heartbeats
got = channel.get(name2)
print(codes, connection.is_open, connection.generation, got.body)
channel.delete(Queue(name2))
connection.close()
"""
)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_process_gets_its_own_connection_and_the_parent_keeps_its_own(settings):
    with Proxy(settings) as proxy:
        done, _ = run(FORK, proxy.settings(heartbeat=1))
        assert done.stderr == ""
        assert done.stdout == "[0, 0, 0, 0] True 1 b'from the child'\n"


FORK_WHILE_CONNECTING = """
import os, socket, sys, threading, warnings
import psutil
from labkit import BrokerSettings, Connection
from labkit.errors import LabkitError
sys.stdin.read()
server = socket.create_server(("127.0.0.1", 0))
port = server.getsockname()[1]
connection = Connection(BrokerSettings(host="127.0.0.1", port=port))
def open_it():
    try:
        connection.open(deadline=30)
    except LabkitError:
        pass
thread = threading.Thread(target=open_it)
thread.start()
peer, _ = server.accept()
assert peer.recv(8) == b"AMQP\\x00\\x00\\x09\\x01"
def held():
    return sum(1 for each in psutil.Process().net_connections("tcp") if each.raddr and each.raddr.port == port)
with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    pid = os.fork()
if pid == 0:
    os._exit(held())
code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
print("child", code, "parent", held())
connection.close()
thread.join(10)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_process_holds_no_socket_of_a_connection_that_was_connecting(settings):
    done, _ = run(FORK_WHILE_CONNECTING, settings)
    assert done.stderr == ""
    assert done.stdout == "child 0 parent 1\n"
