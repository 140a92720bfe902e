"""A proxy opens and closes in bounded time, survives interrupts and forks, and leaves nothing behind."""

import contextlib
import gc
import random
import signal
import socket
import ssl
import struct
import subprocess
import sys
import textwrap
import threading
import time

import pika
import psutil
import pytest
import trustme
from pika.exceptions import AMQPConnectionError, AMQPError

from labkit.errors import ConfigurationError, ConnectError, LabkitError, classify
from labkit.factory import ConnectionFactory
from labkit.settings.settings import BrokerSettings, TlsSettings
from labkit.wire import LimitData, Proxy, ResetPeer, Stall, TlsTerminator

pytestmark = pytest.mark.broker

SLACK = 2.0


def until(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def proxy_threads():
    return [t.name for t in threading.enumerate() if t.name.startswith(("labkit-proxy", "asyncio"))]


def descriptors():
    gc.collect()
    process = psutil.Process()
    return process.num_fds() if hasattr(process, "num_fds") else process.num_handles()


@pytest.mark.slow
def test_200_links_opened_and_ended_at_random_leave_nothing_behind(settings):
    chance = random.Random(20)
    before, threads_before = descriptors(), threading.active_count()
    with Proxy(settings) as proxy:
        with_proxy = descriptors()
        connections = []
        for number in range(200):
            connections.append(pika.BlockingConnection(proxy.settings().to_pika()))
            dice = chance.random()
            if dice < 0.2:
                proxy.cut(link=chance.randint(1, number + 1), reset=chance.random() < 0.5)
            elif dice < 0.3:
                with contextlib.suppress(AMQPError):
                    connections.pop(chance.randrange(len(connections))).close()
            elif dice < 0.4:
                fault = chance.choice([ResetPeer(), LimitData(10), Stall()])
                with proxy.fault(fault, direction=chance.choice(["upstream", "downstream", "both"])):
                    victim = chance.choice(connections)
                    with contextlib.suppress(AMQPError):
                        victim.channel() if victim.is_open and not isinstance(fault, Stall) else None
        proxy.cut(reset=True)
        for connection in connections:
            with contextlib.suppress(AMQPError):
                connection.close()
        connections.clear()
        assert until(lambda: not proxy._engine.links)
        assert until(lambda: descriptors() <= with_proxy), f"{descriptors()} descriptors, {with_proxy} before"
        assert len(proxy.endings) == 200
    assert proxy_threads() == []
    assert threading.active_count() <= threads_before  # an idle one of an earlier test may have ended meanwhile
    assert descriptors() <= before


def test_closing_is_quick_idempotent_and_possible_from_any_thread(settings):
    proxy = Proxy(settings).open()
    connection = pika.BlockingConnection(proxy.settings().to_pika())
    started = time.monotonic()
    closers = [threading.Thread(target=proxy.close) for _ in range(5)]
    for closer in closers:
        closer.start()
    for closer in closers:
        closer.join(5)
    proxy.close()
    assert time.monotonic() - started < SLACK
    assert proxy_threads() == []
    assert repr(proxy) == "<Proxy (closed)>"
    with pytest.raises(AMQPError):
        connection.channel()
    with pytest.raises(LabkitError, match="not open"):
        proxy.settings()


def test_closing_does_not_wait_for_a_stalled_link(settings):
    proxy = Proxy(settings).open()
    connection = pika.BlockingConnection(proxy.settings().to_pika())
    fault = proxy.fault(Stall())
    fault.begin()
    started = time.monotonic()
    proxy.close()
    assert time.monotonic() - started < SLACK
    fault.end()
    with pytest.raises(AMQPError):
        connection.close()


def test_a_proxy_that_was_closed_opens_again(settings):
    proxy = Proxy(settings)
    for _ in range(2):
        with proxy:
            assert proxy.open() is proxy
            pika.BlockingConnection(proxy.settings().to_pika()).close()
    assert proxy.conversation().names.count("Connection.CloseOk") == 2


def test_a_proxy_or_a_terminator_that_gets_no_thread_leaves_nothing_open_and_may_be_opened_later(
    settings, tmp_path, monkeypatch
):
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    issued = trustme.CA().issue_cert("127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(certificate)
    issued.private_key_pem.write_to_path(key)

    def no_thread(_):
        raise RuntimeError("can't start new thread")

    for each in (Proxy(settings), TlsTerminator(settings, (certificate, key), ca_file=certificate)):
        before = descriptors()
        with monkeypatch.context() as without:
            without.setattr(threading.Thread, "start", no_thread)
            with pytest.raises(RuntimeError) as raised:
                each.open()
        assert descriptors() == before, f"{raised.value}"  # held, with all that its frames hold
        assert "closed" in repr(each)
        each.close()
        with each, socket.create_connection((each.settings().host, each.settings().port)):
            assert "open" in repr(each)


def test_an_unreachable_broker_ends_the_client_at_once_and_says_why(settings):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with Proxy(settings.replace(port=unused.getsockname()[1])) as proxy:
            started = time.monotonic()
            # ValueError is Pika's, when the link is gone before its first look at the socket.
            with pytest.raises((AMQPConnectionError, ValueError)) as ended:
                pika.BlockingConnection(proxy.settings().to_pika())
            assert classify(ended.value).is_retryable
            assert time.monotonic() - started < SLACK
            assert proxy.endings[0][1].startswith("the broker cannot be reached (ConnectionRefusedError")
            assert "proxy" in str(proxy.conversation())
            assert "the broker cannot be reached" in str(proxy.conversation())


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="this system cannot interrupt one thread")
@pytest.mark.parametrize("where", ["wait_for", "fault.wait", "a client's read"])
def test_an_interrupted_caller_leaves_a_usable_proxy(settings, where):
    def interrupt():
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    def waits():
        if where == "wait_for":
            proxy.wait_for("Basic.Publish", timeout=20)
        with proxy.fault(Stall(), at_frame=None if "read" in where else "Basic.Publish") as fault:
            if where == "fault.wait":
                fault.wait(20)
            with socket.create_connection((proxy.settings().host, proxy.settings().port), 20) as client:
                client.sendall(b"AMQP\x00\x00\x09\x01")
                client.recv(1)

    with Proxy(settings) as proxy:
        timer = threading.Timer(0.3, interrupt)
        timer.start()
        started = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            waits()
        timer.join()
        assert time.monotonic() - started < 0.3 + SLACK
        connection = pika.BlockingConnection(proxy.settings().to_pika())
        connection.channel().basic_publish("", "nobody", b"")
        proxy.wait_for("Basic.Publish", timeout=5)
        connection.close()
    assert proxy_threads() == []


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_a_fork_closes_the_childs_copy_and_leaves_the_parents_alone(settings, tmp_path):
    program = textwrap.dedent("""
        import os, sys, time, warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        import pika
        from labkit.wire import Proxy
        from labkit.settings.settings import BrokerSettings

        proxy = Proxy(BrokerSettings.from_url(sys.stdin.read())).open()
        connection = pika.BlockingConnection(proxy.settings().to_pika())
        child = os.fork()
        if not child:
            assert not proxy.is_open and repr(proxy) == "<Proxy (closed)>"
            proxy.close()
            time.sleep(30)
            os._exit(0)
        connection.channel().queue_declare("", exclusive=True)
        started = time.monotonic()
        proxy.cut()
        try:
            connection.process_data_events(5)
        except pika.exceptions.StreamLostError:
            print("cut", time.monotonic() - started < 2)
        pika.BlockingConnection(proxy.settings().to_pika()).close()
        proxy.close()
        print("running", os.waitpid(child, os.WNOHANG)[0] == 0)
        os.kill(child, 9)
        os.waitpid(child, 0)
    """)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        input=settings.to_url(mask=False),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("cut True\nrunning True\n", 0), done.stderr


def test_an_exit_without_close_is_silent_and_quick(settings):
    program = textwrap.dedent("""
        import socket, sys
        from labkit.wire import Proxy
        from labkit.settings.settings import BrokerSettings

        proxy = Proxy(BrokerSettings(host=sys.argv[1], port=int(sys.argv[2]))).open()
        client = socket.create_connection((proxy.settings().host, proxy.settings().port), 5)
        client.sendall(b"AMQP\\x00\\x00\\x09\\x01")
        print(client.recv(1))
        client.detach()
    """)
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", program, settings.host, str(settings.port)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("b'\\x01'\n", "", 0)
    assert time.monotonic() - started < 5 + SLACK


def test_many_threads_may_use_one_proxy(settings):
    with Proxy(settings) as proxy:
        failed = []

        def work(seed):
            chance = random.Random(seed)
            try:
                for _ in range(10):
                    with proxy.fault(Stall(), direction="upstream", at_frame="Basic.Publish"):
                        proxy.cut(link=chance.randint(1, 50))
                        str(proxy.conversation())
                        proxy.mark()
            except Exception as error:
                failed.append(error)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for _ in range(20):
            try:  # not Pika itself: cut in the wrong moment, it forgets its loop's sockets
                ConnectionFactory(proxy.settings()).blocking().close()
            except (ConnectError, AMQPError):
                continue
        for thread in threads:
            thread.join(20)
        assert failed == []
        pika.BlockingConnection(proxy.settings().to_pika()).close()


# -- TLS ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def tls_echo():
    """A TLS server for the name ``broker.test`` that says back what it hears; and the authority that vouches for it."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("broker.test").configure_cert(context)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        try:
            raw, _ = listener.accept()
        except OSError:
            return
        with raw, context.wrap_socket(raw, server_side=True) as talk:
            while data := talk.recv(65536):
                talk.sendall(data)

    thread = threading.Thread(target=serve)
    thread.start()
    yield authority, listener.getsockname()[1]
    listener.close()
    thread.join(5)


def test_tls_passes_untouched_and_is_said_to_be_unreadable(tls_echo):
    authority, port = tls_echo
    ca = authority.cert_pem.bytes().decode()
    upstream = BrokerSettings(host="127.0.0.1", port=port, tls=TlsSettings(ca_data=ca, server_name="broker.test"))
    with Proxy(upstream) as proxy:
        there = proxy.settings()
        assert there.tls.server_name == "broker.test"
        message = random.Random(1).randbytes(1_000_000)
        with (
            socket.create_connection((there.host, there.port), 5) as raw,
            there.tls.make_context().wrap_socket(raw, server_hostname=there.tls.server_name) as client,
        ):
            received = b""
            for start in range(0, len(message), 50_000):  # by one thread: OpenSSL does not like two
                client.sendall(message[start : start + 50_000])
                while len(received) < start + 50_000:
                    received += client.recv(65536)
        assert received == message
        said = " ".join(str(proxy.conversation()).split())
        assert said == "proxy encrypted (TLS): its frames cannot be read"
        with pytest.raises(ConfigurationError, match="TLS"):
            proxy.fault(ResetPeer(), at_frame="Basic.Publish")


def test_the_certificate_is_checked_for_the_brokers_name_not_for_the_proxys():
    with Proxy(BrokerSettings(host="broker.test", tls=TlsSettings())) as proxy:
        assert proxy.settings().tls.server_name == "broker.test"
        assert proxy.settings().host == "127.0.0.1"


def test_cutting_a_tls_link_is_a_lost_connection(tls_echo):
    authority, port = tls_echo
    upstream = BrokerSettings(
        host="127.0.0.1",
        port=port,
        tls=TlsSettings(ca_data=authority.cert_pem.bytes().decode(), server_name="broker.test"),
    )
    with Proxy(upstream) as proxy:
        there = proxy.settings()
        with (
            socket.create_connection((there.host, there.port), 5) as raw,
            there.tls.make_context().wrap_socket(raw, server_hostname="broker.test") as client,
        ):
            client.settimeout(5)
            client.sendall(b"hello")
            assert client.recv(5) == b"hello"
            proxy.cut()
            assert client.recv(1) == b""


def test_a_link_whose_client_vanished_behind_a_stall_can_still_be_cut(settings):
    with Proxy(settings) as proxy:
        before = descriptors()
        client = socket.create_connection((proxy.settings().host, proxy.settings().port), 5)
        client.sendall(b"AMQP\x00\x00\x09\x01")
        assert client.recv(1) == b"\x01"
        with proxy.fault(Stall()):
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
            assert proxy.links == (1,)
            assert proxy.cut() == 1
        assert until(lambda: descriptors() == before)
        assert proxy.endings == ((1, "closed by the proxy (cut)"),)
    assert proxy.endings == ((1, "closed by the proxy (cut)"),)


def test_a_call_that_meets_a_closing_proxy_is_told_so_at_once(settings):
    proxy = Proxy(settings).open()
    engine = proxy._engine
    closer = threading.Thread(target=proxy.close)
    closer.start()
    started = time.monotonic()

    def ask():
        while time.monotonic() - started < 5:
            engine.call(lambda: None)

    with pytest.raises(LabkitError, match="closed"):
        ask()
    closer.join(5)
    assert time.monotonic() - started < SLACK
