"""Every adapter of the factory against a real broker: all of them at once, and one answer expected of all."""

import asyncio
import contextlib
import os
import socket
import ssl
import subprocess
import sys
import threading
import time

import pika
import pytest
import trustme

from labkit import ConfigurationError, ConnectionFactory, Timeline, TlsSettings, brokers, classify
from labkit.lab.adapters import ADAPTERS, IN_A_THREAD, Trial
from labkit.wire import Proxy
from tests.broker.test_factory import black_hole, refused_port, silent_peer

pytestmark = pytest.mark.broker
SLACK = 2.0  # seconds a deadline may be late on a busy machine
THREAD_SAFE = hasattr(pika, "Connection")


@contextlib.contextmanager
def on_every_adapter(settings, adapters=ADAPTERS):
    """Start one connection an adapter, all at the same time; each is named after its adapter."""
    with contextlib.ExitStack() as stack:
        trials = [stack.enter_context(Trial(each, settings.replace(connection_name=f"on-{each}"))) for each in adapters]
        yield trials


def ends(trials, what):
    """How each of *trials* ended, by adapter."""
    return {trial.adapter: {**trial.wait_for(what), "what": what} for trial in trials}


def alike(*, adapters=ADAPTERS, **expected):
    return dict.fromkeys(adapters, expected)


def events(trials):
    return {trial.adapter: trial.wait_for("ended")["events"] for trial in trials}


def test_every_adapter_echoes_under_its_name_until_the_broker_closes_it_with_a_code(settings, view):
    with on_every_adapter(settings) as trials:
        for trial in trials:
            trial.wait_for("echoed")
        names = {each["user_provided_name"] for each in view.connections(settings.virtual_host)}
        assert names == {f"on-{each}" for each in ADAPTERS}
        view.close_connections(settings.virtual_host)
        expected = alike(what="closed", error="ConnectionClosedByBroker", code=320, kind="TRANSIENT")
        assert ends(trials, "closed") == expected
        assert events(trials) == {each: ["ConnectAttempted", "ConnectionOpened", "ConnectionLost"] for each in ADAPTERS}


def test_every_adapter_serves_its_heartbeats_while_it_is_idle_and_closes_cleanly(settings):
    with on_every_adapter(settings.replace(heartbeat=1)) as trials:
        for trial in trials:
            trial.wait_for("echoed")
        time.sleep(3.5)  # not for a condition: the broker ends a link after two intervals of silence
        for trial in trials:
            trial.echo()
            trial.wait_for("echoed", count=2)
            trial.close()
        expected = alike(what="closed", error="ConnectionClosedByClient", code=200, kind="ASKED_FOR")
        assert ends(trials, "closed") == expected
        assert events(trials) == {
            each: ["ConnectAttempted", "ConnectionOpened", "ConnectionClosed"] for each in ADAPTERS
        }


def test_a_refused_port_is_transient_and_tried_as_often_as_the_settings_say(settings):
    with refused_port() as port:
        two = settings.replace(host="127.0.0.1", port=port, connection_attempts=2, retry_delay=0.05)
        with on_every_adapter(two) as trials:
            assert {name: each["kind"] for name, each in ends(trials, "failed").items()} == dict.fromkeys(
                ADAPTERS, "TRANSIENT"
            )
            assert events(trials) == {
                each: ["ConnectAttempted", "AttemptFailed"] * 2 + ["ConnectionGivenUp"] for each in ADAPTERS
            }


@pytest.mark.parametrize(
    ("adapters", "change"), [(ADAPTERS, {"password": "wrong"}), (IN_A_THREAD, {"virtual_host": "not-there"})]
)
def test_what_the_broker_refuses_is_tried_once(settings, adapters, change):
    with on_every_adapter(settings.replace(connection_attempts=5, **change), adapters) as trials:
        assert {name: each["kind"] for name, each in ends(trials, "failed").items()} == dict.fromkeys(
            adapters, "REFUSED"
        )
        assert events(trials) == {each: ["ConnectAttempted", "AttemptFailed", "ConnectionGivenUp"] for each in adapters}


def test_a_cut_link_is_lost_on_every_adapter(settings):
    with Proxy(settings) as proxy, on_every_adapter(proxy.settings()) as trials:
        for trial in trials:
            trial.wait_for("echoed")
        proxy.cut()
        expected = alike(what="closed", error="StreamLostError", code=None, kind="TRANSIENT")
        assert ends(trials, "closed") == expected


def test_hosts_that_do_not_exist_refuse_or_stay_silent_do_not_hide_the_last_one(settings):
    host, port = settings.addresses[0]
    with refused_port() as nobody, silent_peer() as deaf:
        hosts = ("no-such-host.invalid", f"127.0.0.1:{nobody}", f"127.0.0.1:{deaf}", f"{host}:{port}")
        with on_every_adapter(settings.replace(hosts=hosts, connect_deadline=8.0)) as trials:
            for trial in trials:
                trial.wait_for("echoed")
                trial.close()
            expected = ["ConnectAttempted", "AttemptFailed"] * 3 + [
                "ConnectAttempted",
                "ConnectionOpened",
                "ConnectionClosed",
            ]
            assert events(trials) == dict.fromkeys(ADAPTERS, expected)


@pytest.mark.parametrize("trap", [silent_peer, black_hole, refused_port])
def test_one_deadline_bounds_every_host_and_attempt_on_a_loop(settings, trap):
    with trap() as port:
        hosts = (f"127.0.0.1:{port}", f"localhost:{port}")
        patient = settings.replace(hosts=hosts, connect_deadline=1.0, connection_attempts=99, retry_delay=0.2)
        started = time.monotonic()
        with on_every_adapter(patient, IN_A_THREAD) as trials:
            assert {each["kind"] for each in ends(trials, "failed").values()} == {"TRANSIENT"}
        assert time.monotonic() - started < 1.0 + SLACK


def test_a_name_lookup_without_an_answer_is_given_up(settings, monkeypatch):
    never, real = threading.Event(), socket.getaddrinfo

    def slow(host, *args, **kwargs):
        if host == "slow.invalid":
            never.wait(30)
        return real(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    try:
        started = time.monotonic()
        with on_every_adapter(settings.replace(host="slow.invalid", connect_deadline=0.5), IN_A_THREAD) as trials:
            assert {each["kind"] for each in ends(trials, "failed").values()} == {"TRANSIENT"}
            assert time.monotonic() - started < 0.5 + SLACK
    finally:
        never.set()


def test_close_while_it_opens_is_heard_once_and_asked_for(settings):
    heard = []
    with silent_peer() as port:
        factory = ConnectionFactory(settings.replace(host="127.0.0.1", port=port))

        def stop(connection, error):
            heard.append(classify(error).kind.name)
            connection.ioloop.stop()

        connection = factory.select(on_open_error_callback=stop)
        connection.ioloop.call_later(0.1, connection.close)
        connection.ioloop.start()
        connection.ioloop.close()
    assert heard == ["ASKED_FOR"]
    assert connection.is_closed


def test_close_in_a_pause_between_attempts_ends_the_bring_up(settings):
    heard = []
    timeline = Timeline()
    with silent_peer() as port:
        one = settings.replace(host="127.0.0.1", port=port, stack_timeout=0.1, connection_attempts=5, retry_delay=20.0)

        def stop(connection, error):
            heard.append(classify(error).kind.name)
            connection.ioloop.stop()

        connection = ConnectionFactory(one, listeners=[timeline]).select(on_open_error_callback=stop)
        connection.ioloop.call_later(0.5, connection.close)
        connection.ioloop.start()
        connection.ioloop.close()
    assert heard == ["ASKED_FOR"]
    assert timeline.names() == ["ConnectAttempted", "AttemptFailed", "ConnectionGivenUp"]


def test_without_an_error_callback_the_error_leaves_the_loop(settings):
    with refused_port() as port:
        connection = ConnectionFactory(settings.replace(host="127.0.0.1", port=port)).select()
        with pytest.raises(pika.exceptions.AMQPConnectionError):
            connection.ioloop.start()
        connection.ioloop.close()


@contextlib.contextmanager
def in_front_of(settings, context):
    """A TLS server that passes everything on to the broker; yields its port."""
    host, port = settings.addresses[0]
    loop = asyncio.new_event_loop()
    tasks = set()

    async def pump(reader, writer):
        with contextlib.suppress(OSError, ssl.SSLError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader, writer):
        tasks.add(asyncio.current_task())
        inner_reader, inner_writer = await asyncio.open_connection(host, port)
        await asyncio.gather(pump(reader, inner_writer), pump(inner_reader, writer), return_exceptions=True)
        for each in (writer, inner_writer):
            with contextlib.suppress(OSError, ssl.SSLError):
                await each.wait_closed()
        tasks.discard(asyncio.current_task())

    async def end(server):
        server.close()
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)

    server = loop.run_until_complete(asyncio.start_server(serve, "127.0.0.1", 0, ssl=context))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield server.sockets[0].getsockname()[1]
        asyncio.run_coroutine_threadsafe(end(server), loop).result(15)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def test_the_tls_of_the_settings_reaches_every_adapter(settings, tmp_path):
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("broker.test").configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    good = TlsSettings(ca_file=str(tmp_path / "ca.pem"), server_name="broker.test")
    with in_front_of(settings, context) as port:
        behind = settings.replace(host="127.0.0.1", port=port, tls=good)
        with on_every_adapter(behind) as trials:
            for trial in trials:
                trial.wait_for("echoed")
        wrong = (
            (("select", "twisted"), good.replace(server_name="other.test")),
            (
                ("asyncio", "libev"),
                TlsSettings(server_name="broker.test"),
            ),
        )
        for adapters, tls in wrong:
            with on_every_adapter(behind.replace(tls=tls, connection_attempts=3), adapters) as trials:
                assert {each["kind"] for each in ends(trials, "failed").values()} == {"REFUSED"}
                assert all(names.count("ConnectAttempted") == 1 for names in events(trials).values())


@pytest.mark.own_broker
@pytest.mark.slow
def test_a_killed_broker_is_noticed_and_a_new_one_used_on_every_adapter():
    with brokers.own() as broker:
        if "process" not in broker.capabilities:
            pytest.skip("this broker cannot be killed")
        with on_every_adapter(broker.settings()) as trials:
            for trial in trials:
                trial.wait_for("echoed")
            broker.kill()
            expected = alike(what="closed", error="StreamLostError", code=None, kind="TRANSIENT")
            assert ends(trials, "closed") == expected
        broker.start()
        with on_every_adapter(broker.settings()) as trials:
            for trial in trials:
                trial.wait_for("echoed")


@pytest.mark.skipif(THREAD_SAFE, reason="this Pika has it")
def test_a_pika_without_a_thread_safe_connection_is_named_with_one_that_has_it(settings):
    with pytest.raises(ConfigurationError, match=rf"Pika {pika.__version__} .* 1\.5") as caught:
        ConnectionFactory(settings).thread_safe()
    assert "pip install" in str(caught.value)


@pytest.mark.skipif(not THREAD_SAFE, reason="came with Pika 1.5")
def test_pikas_own_thread_safe_connection_serves_many_threads(settings, view):
    timeline = Timeline()
    with ConnectionFactory(settings, listeners=[timeline]).thread_safe() as connection:
        assert view.connection(settings.virtual_host)["user_provided_name"] == settings.connection_name
        channel = connection.channel()
        queue = channel.queue_declare("", exclusive=True).method.queue
        threads = [threading.Thread(target=channel.basic_publish, args=("", queue, b"from a thread")) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        deadline = time.monotonic() + 10
        while channel.queue_declare(queue, passive=True).method.message_count < 8:
            assert time.monotonic() < deadline
    connection._connection.ioloop.close()  # Pika 1.5.0rc1 leaves its waker's two sockets to the garbage collector
    assert timeline.names() == ["ConnectAttempted", "ConnectionOpened", "ConnectionClosed"]


# -- the libev loop --------------------------------------------------------------------------------------------------


@pytest.fixture
def loop():
    from labkit.connector.libev import LibevLoop

    loop = LibevLoop()
    yield loop
    loop.close()


def test_a_large_message_crosses_a_libev_loop_whole(settings, loop):
    body, got = b"x" * 5_000_000, []

    def opened(connection):
        connection.channel(on_open_callback=declare)

    def declare(channel):
        def send(frame):
            channel.basic_publish("", frame.method.queue, body)
            channel.basic_get(frame.method.queue, receive, auto_ack=True)

        channel.queue_declare("", exclusive=True, callback=send)

    def receive(channel, _, __, message):
        got.append(message)
        channel.connection.close()

    ConnectionFactory(settings).libev(
        custom_ioloop=loop, on_open_callback=opened, on_close_callback=lambda *_: loop.stop()
    )
    loop.call_later(30, loop.stop)
    loop.start()
    assert [len(each) for each in got] == [len(body)]


def test_two_connections_share_a_libev_loop(settings, loop):
    ended = []

    def closed(_, reason):
        ended.append(type(reason).__name__)
        if len(ended) == 2:
            loop.stop()

    for _ in range(2):
        ConnectionFactory(settings).libev(
            custom_ioloop=loop, on_open_callback=lambda connection: connection.close(), on_close_callback=closed
        )
    loop.call_later(30, loop.stop)
    loop.start()
    assert ended == ["ConnectionClosedByClient"] * 2


def test_pikas_own_host_list_works_on_libev(settings, loop):
    from labkit.connector.libev import LibevConnection

    done = []

    def on_done(result):
        done.append(result)
        loop.stop()

    with refused_port() as nobody:
        LibevConnection.create_connection(
            [settings.replace(port=nobody).to_pika()[0], *settings.to_pika()], on_done, custom_ioloop=loop
        )
        loop.call_later(30, loop.stop)
        loop.start()
    assert [type(each) for each in done] == [LibevConnection]
    done[0].add_on_close_callback(lambda *_: loop.stop())
    done[0].close()
    loop.start()


PINNED = """
import sys
import gevent
from labkit import BrokerSettings
from labkit.lab.adapters import live
from labkit.connector.libev import pin_gevent

pin_gevent()
lives, seen = [], []

def note(happening):
    seen.append(happening["what"])
    if seen[-1] == "echoed":
        lives[0].close()

settings = BrokerSettings.from_url(sys.stdin.readline().strip())
live("gevent", settings, note, lambda _, life: lives.append(life))
print(*seen, type(gevent.get_hub().loop).__module__)
"""


def test_gevent_pinned_to_libev_carries_a_connection(settings):
    done = subprocess.run(
        [sys.executable, "-c", PINNED],
        input=settings.to_url(mask=False),
        env={**os.environ, "GEVENT_LOOP": "libuv-cffi"},  # what it would run on if it were not pinned
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["opened", "echoed", "closed", "ended", "gevent.libev.corecext"]


def test_a_trial_that_is_closed_before_it_is_open_ends(settings):
    for adapter in ADAPTERS:
        trial = Trial(adapter, settings).start()
        trial.close()
        trial.end(timeout=15)
        assert trial.happened[-1]["what"] == "ended"
