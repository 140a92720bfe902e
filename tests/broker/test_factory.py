import contextlib
import gc
import logging
import socket
import sys
import threading
import time

import pika
import pytest

from labkit import (
    AccessRefused,
    AuthenticationFailed,
    ConfigurationError,
    ConnectError,
    ConnectionFactory,
    LabkitError,
    NotTls,
    Timeline,
    TlsError,
    TlsSettings,
    classify,
)
from labkit.connector.blocking import resolve
from labkit.wire import LimitData, Proxy
from tests.broker.connections import descriptors

pytestmark = pytest.mark.broker
OPEN_OK = 13  # bytes of the frame Connection.OpenOk
SLACK = 2.0  # seconds a deadline may be late on a busy machine

_connects: list[tuple] | None = None


def _hear(event, arguments):
    if event == "socket.connect" and _connects is not None:
        _connects.append(arguments[1])


sys.addaudithook(_hear)  # cannot be removed, so it listens only while a test asks it to


@pytest.fixture
def connects():
    """Count the TCP connects to a port, as the interpreter reports them (Pika's loop makes others, to itself)."""
    global _connects
    _connects = []
    yield lambda port: [address[1] for address in _connects].count(port)
    _connects = None


@contextlib.contextmanager
def refused_port():
    """A port that is ours, and where nothing listens."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


@contextlib.contextmanager
def silent_peer():
    """Accepts (the kernel does) and never says anything."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield server.getsockname()[1]


@contextlib.contextmanager
def black_hole():
    """A listener whose backlog is full: the kernel drops every further SYN."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.socket())
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(8):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(server.getsockname())
        yield server.getsockname()[1]


@contextlib.contextmanager
def rude_server():
    """Accepts, then resets at once: a proxy without a backend. Yields the port and the count of visitors."""
    visitors = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    visitor, _ = server.accept()
                    visitors.append(1)
                    visitor.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1], visitors
        server.shutdown(socket.SHUT_RDWR)
    thread.join(5)


def fail(settings, **changes):
    """Try to connect; return the error, the seconds it took, and the timeline."""
    timeline = Timeline()
    factory = ConnectionFactory(settings.replace(**changes), listeners=[timeline])
    started = time.monotonic()
    with pytest.raises(ConnectError) as caught:
        factory.blocking()
    return caught.value, time.monotonic() - started, timeline


def test_one_call_opens_a_connection_that_the_broker_names(view, settings):
    timeline = Timeline()
    connection = ConnectionFactory(settings, listeners=[timeline]).blocking()
    try:
        assert isinstance(connection, pika.BlockingConnection)
        seen = view.connection(settings.virtual_host)
        assert seen["user_provided_name"] == settings.connection_name
        assert timeline.names() == ["ConnectAttempted", "ConnectionOpened"]
        assert len(view.connections(settings.virtual_host)) == 1
    finally:
        connection.close()


def test_wrong_password_is_refused_once_and_never_retried(settings, connects):
    error, _, timeline = fail(settings, host="127.0.0.1", password="wrong", connection_attempts=5, retry_delay=1.0)
    assert type(error) is AuthenticationFailed
    assert isinstance(error.__cause__, pika.exceptions.ProbableAuthenticationError)
    assert (error.attempts, connects(settings.addresses[0][1])) == (1, 1)
    assert timeline.names() == ["ConnectAttempted", "AttemptFailed", "ConnectionGivenUp"]
    assert "wrong" not in str(error).replace("wrongly", "")


def test_wrong_password_is_not_carried_to_the_other_hosts(settings, connects):
    _, port = settings.addresses[0]
    both = (f"127.0.0.1:{port}", f"127.0.0.1:{port}")
    error, _, _ = fail(settings, hosts=both, password="wrong", connection_attempts=3)
    assert type(error) is AuthenticationFailed
    assert connects(port) == 1


def test_missing_virtual_host_is_access_refused(settings):
    error, _, _ = fail(settings, virtual_host="no-such-host", connection_attempts=3)
    assert type(error) is AccessRefused
    assert error.attempts == 1
    assert "530" in str(error)


def test_virtual_host_without_permission_is_access_refused(view, settings):
    user = f"{settings.virtual_host}-user"
    view.put(f"users/{user}", password="pw", tags="")
    try:
        error, _, _ = fail(settings, username=user, password="pw")
        assert type(error) is AccessRefused
    finally:
        view.delete(f"users/{user}")


def test_connection_limit_counts_as_busy_and_is_retried(view, settings):
    view.put(f"vhost-limits/{settings.virtual_host}/max-connections", value=0)
    error, _, _ = fail(settings, connection_attempts=2, retry_delay=0.1)
    assert type(error) is ConnectError
    assert error.attempts == 2
    assert classify(error).kind.value == "broker busy"
    assert "limit" in str(error)


@pytest.mark.parametrize(("attempts", "delay"), [(1, 5.0), (3, 0.4)])
def test_refused_port_is_tried_exactly_so_often_with_so_long_pauses(settings, connects, attempts, delay):
    with refused_port() as port:
        error, elapsed, timeline = fail(
            settings, host="127.0.0.1", port=port, connection_attempts=attempts, retry_delay=delay
        )
    assert connects(port) == attempts
    assert error.attempts == attempts
    assert (attempts - 1) * delay <= elapsed < (attempts - 1) * delay + SLACK
    assert timeline.names() == ["ConnectAttempted", "AttemptFailed"] * attempts + ["ConnectionGivenUp"]
    delays = [event.next_delay for event in timeline.events if type(event).__name__ == "AttemptFailed"]
    assert delays == [delay] * (attempts - 1) + [None]


def test_error_of_a_refused_port_has_a_cause_that_can_be_read(settings):
    with refused_port() as port:
        error, _, _ = fail(settings, host="127.0.0.1", port=port)
    assert error.hosts == (f"127.0.0.1:{port}",)
    assert "ConnectionRefusedError" in str(error)
    assert error.__cause__ is not None
    assert error.elapsed < SLACK


def test_server_that_hangs_up_is_retried_like_a_booting_broker(settings):
    with rude_server() as (port, visitors):
        error, _, _ = fail(settings, host="127.0.0.1", port=port, connection_attempts=3, retry_delay=0.1)
        assert len(visitors) == 4  # three attempts, and one look more: it may refuse us
    assert (type(error), error.attempts) == (ConnectError, 3)


def test_unresolvable_first_host_does_not_hide_a_good_second_one(settings):
    host, port = settings.addresses[0]
    timeline = Timeline()
    both = settings.replace(hosts=("no-such-host.invalid", f"{host}:{port}"))
    with contextlib.closing(ConnectionFactory(both, listeners=[timeline]).blocking()) as connection:
        assert connection.is_open
    assert timeline.names() == ["ConnectAttempted", "AttemptFailed", "ConnectAttempted", "ConnectionOpened"]


@pytest.mark.parametrize("trap", [silent_peer, black_hole])
def test_deaf_first_host_leaves_time_for_a_good_second_one(settings, trap):
    host, port = settings.addresses[0]
    with trap() as deaf:
        both = settings.replace(hosts=(f"127.0.0.1:{deaf}", f"{host}:{port}"), connect_deadline=4.0)
        started = time.monotonic()
        with contextlib.closing(ConnectionFactory(both).blocking()) as connection:
            assert connection.is_open
    assert time.monotonic() - started < 4.0 + SLACK


def test_name_that_does_not_resolve_is_a_connect_error(settings):
    error, _, _ = fail(settings, hosts=(), host="no-such-host.invalid", connection_attempts=2, retry_delay=0.1)
    assert type(error) is ConnectError
    assert isinstance(error.__cause__, socket.gaierror)
    assert error.attempts == 2


def test_name_that_cannot_be_encoded_is_a_connect_error(settings):
    error, _, _ = fail(settings, host="a..b")
    assert isinstance(error.__cause__, socket.gaierror)


@pytest.mark.parametrize("trap", [silent_peer, black_hole, refused_port])
def test_one_deadline_bounds_every_host_attempt_and_pause(settings, trap):
    with trap() as port:
        error, elapsed, _ = fail(
            settings,
            hosts=(f"127.0.0.1:{port}", f"localhost:{port}"),
            connect_deadline=1.5,
            connection_attempts=99,
            retry_delay=0.3,
        )
    assert elapsed < 1.5 + SLACK
    assert elapsed > 0.5
    assert error.attempts >= 2


def test_name_lookup_counts_for_the_deadline(settings, monkeypatch):
    never = threading.Event()
    real = socket.getaddrinfo

    def slow(host, *args, **kwargs):
        if host == "slow.invalid":
            never.wait(30)
        return real(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    try:
        error, elapsed, _ = fail(settings, host="slow.invalid", connect_deadline=0.5)
        assert elapsed < 0.5 + SLACK
        assert isinstance(error.__cause__, TimeoutError)
        assert "slow.invalid" in str(error)
    finally:
        never.set()


def test_addresses_need_no_lookup(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", None)
    assert resolve("127.0.0.1", 1, timeout=0.0) == ["127.0.0.1"]
    assert resolve("::1", 1, timeout=0.0) == ["::1"]
    assert resolve("fe80::1%lo", 1, timeout=0.0) == ["fe80::1%lo"]


def test_socket_timeout_bounds_a_lost_syn(settings):
    with black_hole() as port:
        error, elapsed, _ = fail(settings, host="127.0.0.1", port=port, socket_timeout=0.5)
    assert 0.4 < elapsed < 0.5 + SLACK
    assert type(error) is ConnectError


def test_stack_timeout_bounds_a_silent_peer(settings):
    with silent_peer() as port:
        error, elapsed, _ = fail(settings, host="127.0.0.1", port=port, stack_timeout=0.5)
    assert 0.4 < elapsed < 0.5 + SLACK
    assert "StackTimeout" in str(error)


def test_tls_to_a_plain_port_is_named_as_such(settings):
    _, port = settings.addresses[0]
    error, _, _ = fail(settings, port=port, tls=TlsSettings(), connection_attempts=3, retry_delay=0.1)
    assert isinstance(error, TlsError)
    assert type(error) is NotTls
    assert error.attempts == 1


def test_missing_ca_file_is_found_before_any_connect(settings, connects, tmp_path):
    factory = ConnectionFactory(settings.replace(tls=TlsSettings(ca_file=tmp_path / "none.pem")))
    with pytest.raises(ConfigurationError, match="ca_file"):
        factory.blocking()
    assert connects(settings.addresses[0][1]) == 0


def test_name_for_tls_follows_the_host_though_we_connect_by_address(settings):
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            with contextlib.suppress(OSError):
                visitor, _ = server.accept()
                with visitor:
                    visitor.settimeout(10)
                    asked.append(visitor.recv(4096))

        thread = threading.Thread(target=serve)
        thread.start()
        fail(settings, host="localhost", port=server.getsockname()[1], tls=TlsSettings(), stack_timeout=5.0)
        thread.join(10)
    assert b"localhost" in asked[0]  # the server name extension of the ClientHello (RFC 6066, section 3)


def test_failures_leave_no_socket_and_no_thread_behind(settings):
    fail(settings, host="127.0.0.1", password="wrong")
    gc.collect()
    threads = threading.active_count()
    with rude_server() as (port, _):
        for _ in range(20):
            fail(settings, host="127.0.0.1", port=port)
            fail(settings, host="127.0.0.1", password="wrong")
    gc.collect()  # a socket left open would be a ResourceWarning, and that is an error here
    assert threading.active_count() <= threads


def test_no_secret_is_logged(settings, caplog):
    secret = "s3cret-p4ss"
    with caplog.at_level(logging.DEBUG):
        error, _, _ = fail(settings, password=secret)
    assert caplog.records
    assert secret not in caplog.text
    assert secret not in str(error) + repr(error.__cause__)


def test_raising_listener_does_not_stop_the_connection(settings):
    def broken(event):
        raise ZeroDivisionError

    factory = ConnectionFactory(settings, listeners=[broken])
    with contextlib.closing(factory.blocking()) as connection:
        assert connection.is_open
    assert factory.events.failures == 2


def test_factory_is_shared_by_threads(settings):
    factory = ConnectionFactory(settings)
    errors = []

    def use():
        try:
            with contextlib.closing(factory.blocking()) as connection:
                connection.channel()
        except LabkitError as exc:
            errors.append(exc)

    threads = [threading.Thread(target=use) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []


def test_link_that_ends_in_the_moment_it_opens_is_a_failed_attempt_and_leaves_nothing(settings):
    gc.collect()
    before = descriptors()
    with Proxy(settings) as proxy:
        brief = proxy.settings(connection_attempts=2, retry_delay=0.0)
        with proxy.fault(LimitData(OPEN_OK), direction="downstream", at_frame="Connection.OpenOk"):
            refused = []
            for _ in range(30):
                try:
                    connection = ConnectionFactory(brief).blocking()
                except ConnectError as error:
                    refused.append(error)
                else:  # its end comes a moment later
                    assert connection.is_open
                    with contextlib.suppress(pika.exceptions.AMQPError):
                        connection.close()
        assert all(classify(each).is_retryable for each in refused)
        ConnectionFactory(brief).blocking().close()
    gc.collect()
    assert descriptors() <= before
