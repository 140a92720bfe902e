"""A process may fork at any moment: the child starts anew, and nothing that it does reaches the parent's links."""

import os
import socket
import ssl
import subprocess
import sys
import textwrap
import time

import psutil
import pytest
import trustme

from labkit import BrokerSettings
from labkit.concurrency.bell import PendingCall
from labkit.connection.io_thread import SHARED
from labkit.connection.link import Link
from labkit.settings.tls import TlsSettings
from labkit.wire import Proxy
from tests.broker.connections import own_virtual_host
from tests.view import until

pytestmark = [
    pytest.mark.broker,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here"),
]


@pytest.fixture(scope="module")
def settings(broker):
    with own_virtual_host(broker) as settings:
        yield settings


COMMON = """
import faulthandler, os, random, signal, sys, threading, time, traceback, warnings
from labkit import *
from labkit.errors import *
warnings.filterwarnings("ignore", category=DeprecationWarning)  # Python 3.12 on: threads and fork; it is the point here
faulthandler.dump_traceback_later(50, exit=True)
settings = BrokerSettings.from_url(sys.stdin.read())
def in_child(act):
    "What *act* returns in a child process, as text, or the type of what it raises; and whether it took long."
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        began = time.monotonic()
        try:
            told = str(act())
        except BaseException as exc:
            told = type(exc).__name__ + ": " + str(exc)
        took = time.monotonic() - began
        os.write(writing, (told if took < 3 else f"{took:.1f} s, {told}").encode())
        os._exit(0)
    os.close(writing)
    told = b""
    while piece := os.read(reading, 4096):
        told += piece
    os.close(reading)
    os.waitpid(pid, 0)
    return told.decode()
"""


def run(script, settings, *arguments, timeout=60):
    done = subprocess.run(
        [sys.executable, "-c", COMMON + textwrap.dedent(script), *map(str, arguments)],
        input=settings.to_url(mask=False), capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip
    return (done.stdout + done.stderr).splitlines()


def test_a_sync_connection_in_a_child_says_so_and_the_parents_goes_on(settings):
    script = """
        connection = SyncConnection(settings.replace(heartbeat=2)).open()
        connection.publish("forked", "before")
        raw = connection.channel
        def leave_the_block():
            with connection:
                raise AssertionError("not reached: it is open, so there is nothing to open")
        def use_pikas_channel():
            raw.basic_publish("", "forked", b"of the child")
        def open_its_own():
            connection.open().publish("forked", "of the child")
            connection.close()
            return "opened its own"
        acts = (
            connection.close,
            lambda: connection.__exit__(None, None, None),
            lambda: connection.is_open,
            lambda: connection.publish("forked", "no"),
            lambda: connection.consume("forked", print, timeout=0.1),
            connection.stop,
            lambda: connection.add_callback_threadsafe(print),
            use_pikas_channel,
            open_its_own,
        )
        for act in acts:
            print(in_child(act).partition(":")[0].partition("(")[0])
            connection.publish("forked", "still here")  # answered: the link lives, and nobody has written to it
        got = []
        connection.consume("forked", lambda channel, method, properties, body: got.append(body), timeout=1)
        print(sorted(set(got)), connection.is_open)
        connection.close()
    """
    told = run(script, settings)
    assert told[:7] == ["None", "None", "False", "NotConnected", "NotConnected", "None", "NotConnected"]
    assert told[7] in ("ConnectionWrongStateError", "StreamLostError", "AMQPConnectionError", "ValueError", "OSError")
    assert told[8:] == ["opened its own", "[b'before', b'of the child', b'still here'] True"]


def test_a_child_says_why_it_cannot_use_what_its_parent_opened(settings):
    script = """
        connection = SyncConnection(settings).open()
        print(in_child(lambda: connection.publish("forked", "no")))
        connection.close()
    """
    (told,) = run(script, settings)
    assert "made before a fork, and this is the child process" in told


def test_a_child_forked_in_a_callback_goes_no_further_and_the_parent_consumes_on(settings):
    script = """
        connection = SyncConnection(settings).open()
        got, answers = [], []
        def callback(channel, method, properties, body):
            if not got:
                pid = os.fork()
                if pid == 0:
                    return  # into Pika's code, in the child
                answers.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            got.append(body)
        for text in "ab":
            connection.publish("callbacks", text)
        parent = os.getpid()
        try:
            connection.consume("callbacks", callback, timeout=1)
        except NotConnected:
            os._exit(0 if os.getpid() != parent else 1)
        except BaseException:
            traceback.print_exc()
            os._exit(2)
        print(answers, got, connection.is_open)
        connection.close()
    """
    assert run(script, settings) == ["[0] [b'a', b'b'] True"]


SILENT = """
    import socket
    silent = socket.socket(); silent.bind(("127.0.0.1", 0)); silent.listen(50)  # accepts, and never answers
    nobody = BrokerSettings(host="127.0.0.1", port=silent.getsockname()[1], connect_deadline=4, stack_timeout=3)
"""


@pytest.mark.parametrize("kind", ["Publisher(nobody)", "Consumer(nobody, 'work', print)"])
def test_a_child_forked_while_another_thread_opens_can_open(settings, kind):
    script = (
        SILENT
        + f"""
    role = {kind}
    def open_it():
        try:
            role.open()
        except LabkitError:
            pass
    threading.Thread(target=open_it, daemon=True).start()
    time.sleep(0.5)
    print(in_child(lambda: role.open(deadline=1)).partition(":")[0])
    os._exit(0)
    """
    )
    assert run(script, settings) == ["ConnectError"]  # its own: nobody answers it either


@pytest.mark.parametrize("kind", ["Connection(nobody, recovery=True)", "Publisher(nobody)", "SyncConnection(nobody)"])
def test_a_child_forked_inside_open_comes_out_of_it_and_can_open_what_answers(settings, kind):
    script = (
        SILENT
        + f"""
    opened, parent, children = {kind}, os.getpid(), []
    def fork(*_):
        pid = os.fork()
        if pid:
            children.append(pid)
    signal.signal(signal.SIGALRM, fork)
    signal.setitimer(signal.ITIMER_REAL, 0.7)
    began = time.monotonic()
    try:
        opened.open() if "Sync" in {kind!r} else opened.open(deadline=4)
    except LabkitError as exc:
        error = exc
    took = time.monotonic() - began
    if os.getpid() != parent:
        try:
            with Connection(settings) as own:
                code = 0 if own.channel().is_open and took < 3.5 else 3
        except BaseException:
            traceback.print_exc()
            code = 2
        os._exit(code)
    print(type(error).__name__, os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]), took > 3)
    with Connection(settings) as own:
        print(own.channel().is_open)
    """
    )
    assert run(script, settings) == ["ConnectError 0 True", "True"]


def held(port):
    return sum(1 for each in psutil.Process().net_connections("tcp") if each.raddr and each.raddr.port == port)


def held_in_a_child(port):
    pid = os.fork()
    if pid == 0:
        os._exit(held(port))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
@pytest.mark.parametrize("stage", ["TCP", "TLS"])
def test_a_child_holds_no_socket_of_a_connection_that_was_connecting(stage):
    """At the stages at which Pika's connection does not know its socket yet."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
        port = server.getsockname()[1]
        tls = None
        crowd = []
        if stage == "TLS":
            tls = TlsSettings(ca_data=trustme.CA().cert_pem.bytes().decode())
        else:
            for _ in range(4):  # the line before the server is full: it does not answer the next one
                crowd.append(socket.socket())
                crowd[-1].setblocking(False)
                crowd[-1].connect_ex(("127.0.0.1", port))
            time.sleep(0.1)
        settings = BrokerSettings(host="127.0.0.1", port=port, tls=tls)
        link, waiter = Link(SHARED, None, 1), PendingCall()
        SHARED.call(lambda: link.start(settings.to_pika()[0], waiter), timeout=5)
        try:
            mine = len(crowd) + 1
            until(lambda: held(port) == mine)
            others = len(crowd)
            if tls is not None:
                peer, _ = server.accept()
                crowd.append(peer)
                assert peer.recv(3)[:1] == b"\x16"  # a TLS record: a handshake begins
            assert held_in_a_child(port) == others
            assert held(port) == mine
        finally:
            SHARED.call(lambda: link.drop(ssl.SSLError("over")), timeout=5)
            for each in crowd:
                each.close()
            until(lambda: not SHARED.hosted())


def test_an_async_connection_in_a_child_is_not_open_and_the_parents_goes_on(settings):
    script = """
        import asyncio
        async def main():
            async with AsyncConnection(settings) as connection:
                await connection.publish("forked", "before")
                print(in_child(lambda: connection.is_open))
                await connection.publish("forked", "after")
                print(connection.is_open)
        asyncio.run(main())
    """
    assert run(script, settings) == ["False", "True"]


FORKING = """
    seed, count = int(sys.argv[1]), int(sys.argv[2])
    rng = random.Random(seed)
    connection = Connection(settings, recovery=True).open()
    with connection.channel() as channel:
        channel.declare(Queue("forking"))
    publisher, over, sent = Publisher(connection).open(), threading.Event(), []
    def publish():
        while not over.is_set():
            sent.append(publisher.publish("parent", routing_key="forking"))
            time.sleep(0.001)
    def open_and_close():
        while not over.is_set():
            with Connection(settings) as own:
                own.channel()
            with Publisher(settings) as own:
                own.publish("parent too", routing_key="forking").result()
    threads = [threading.Thread(target=each, daemon=True) for each in (publish, open_and_close, open_and_close)]
    for each in threads:
        each.start()
    def in_the_child():
        assert not connection.is_open
        with publisher.open(deadline=15):
            publisher.publish("child", routing_key="forking").result()
        connection.close()
        return "well"
    told = []
    for _ in range(count):
        time.sleep(rng.uniform(0, 0.05))
        told.append(in_child(in_the_child).rpartition("s, ")[2])
    over.set()
    for each in threads:
        each.join(20)
    publisher.flush(timeout=20)
    print(set(told), {each.outcome for each in sent}, connection.generation, any(each.is_alive() for each in threads))
    connection.close()
"""


def test_children_forked_at_random_moments_amid_busy_threads_work_and_harm_nobody(settings):
    assert run(FORKING, settings, 1, 12, timeout=120) == ["{'well'} {Outcome.CONFIRMED} 1 False"]


def test_a_parent_whose_child_has_closed_everything_is_not_disturbed(settings):
    with Proxy(settings) as proxy:
        script = """
            connection = Connection(settings, recovery=True).open()
            sync = SyncConnection(settings).open()
            def act():
                connection.close(); sync.close(); connection.abort()
                return "closed"
            print(in_child(act), connection.generation, connection.channel().is_open, sync.is_open)
            connection.close(); sync.close()
        """
        assert run(script, proxy.settings(heartbeat=2)) == ["closed 1 True True"]
