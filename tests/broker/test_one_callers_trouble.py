"""One caller's trouble stays one caller's: a connect that fails in an odd way costs no other connection anything."""

import errno
import logging
import os
import socket
import subprocess
import sys
import textwrap
import time

import pytest
from pika.adapters.utils import connection_workflow, io_services_utils

from labkit import (
    ConfigurationError,
    Confirmation,
    ConnectError,
    Connection,
    ConnectionLost,
    ConnectionManager,
    ConnectionPool,
    Consumer,
    Delivery,
    PoolTimeout,
    Publisher,
    Queue,
    State,
    WrongThread,
)
from labkit.connection.io_thread import SHARED
from labkit.connection.link import Link
from labkit.settings import settings as settings_module
from tests.broker.connections import SLACK, connected, nothing_left_behind, own_virtual_host
from tests.broker.log_handler import APPLICATION, logs_published_by
from tests.view import until

pytestmark = pytest.mark.broker
REFUSED_OPTIONS = {"TCP_KEEPIDLE": 60000}


@pytest.fixture(scope="module")
def settings(broker):
    with own_virtual_host(broker) as settings:
        yield settings


@pytest.fixture
def unharmed(settings):
    """An open connection beside the others, which must not notice anything."""
    crashes = SHARED.crashes
    with connected(settings) as (connection, timeline):
        channel = connection.channel()
        name = channel.declare(Queue(exclusive=True)).name
        yield connection
        channel.publish("still here", routing_key=name)
        assert until(lambda: channel.get(name)).body == b"still here"
        assert timeline.names().count("ConnectionLost") == 0
        assert connection.generation == 1
    assert SHARED.crashes == crashes


class Sockets:
    """The module ``socket``, but for what the test makes of it."""

    def __init__(self, **changed):
        self.__dict__.update(changed)

    def __getattr__(self, name):
        return getattr(socket, name)


def test_a_socket_option_that_the_kernel_refuses_is_named_before_anything_is_sent(settings, unharmed):
    wrong = settings.replace(tcp_options=REFUSED_OPTIONS)
    began = time.monotonic()
    with pytest.raises(ConfigurationError, match="TCP_KEEPIDLE=60000") as caught:
        Connection(wrong).open(deadline=10)
    assert caught.value.field == "tcp_options"
    assert caught.value.__cause__.errno == errno.EINVAL
    assert time.monotonic() - began < SLACK


@pytest.mark.usefixtures("unharmed")
def test_an_error_at_socket_set_up_fails_its_own_connect_at_once_with_the_systems_error(settings, monkeypatch):
    monkeypatch.setattr(settings_module, "check_tcp_options", lambda options: None)  # as if it had fooled the look
    with nothing_but_this_link():
        connection = Connection(settings.replace(tcp_options=REFUSED_OPTIONS))
        began = time.monotonic()
        with pytest.raises(ConnectError) as caught:
            connection.open(deadline=1)
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.__cause__.errno == errno.EINVAL
        assert caught.value.attempts > 1
        assert time.monotonic() - began < 1 + SLACK


class nothing_but_this_link:  # noqa: N801 - used as a function
    """No connection is hosted after the block that was not before it."""

    def __enter__(self):
        self.before = {each for each in SHARED.hosted() if isinstance(each, Link)}

    def __exit__(self, *_):
        assert {each for each in SHARED.hosted() if isinstance(each, Link)} <= self.before


@pytest.mark.usefixtures("unharmed")
def test_an_address_family_that_the_kernel_lacks_leads_to_the_next_address(settings, monkeypatch):
    def picky(family, *arguments):
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return socket.socket(family, *arguments)

    host, port = settings.addresses[0]
    address = socket.getaddrinfo(host, port, socket.AF_INET)[0][4][0]
    monkeypatch.setattr(connection_workflow, "socket", Sockets(socket=picky))
    monkeypatch.setattr("labkit.connector.blocking.resolve", lambda host, port, timeout: ["::1", address])
    with connected(settings) as (connection, timeline):
        assert connection.channel().is_open
        assert timeline.names()[:2] == ["ConnectAttempted", "ConnectionOpened"]


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("step", ["connect", "TLS", "link-up"])
def test_an_error_in_any_callback_while_it_connects_fails_that_connect_only(broker, settings, monkeypatch, step):
    if step == "TLS" and "tls" not in broker.capabilities:
        pytest.skip("needs a broker with the lab's TLS listener")

    def fail(*_, **__):
        raise ZeroDivisionError("inside Pika")

    if step == "TLS":
        settings = broker.settings(settings.virtual_host, tls=True)
        monkeypatch.setattr(io_services_utils._AsyncStreamConnector, "_do_ssl_handshake", fail)
    elif step == "connect":
        monkeypatch.setattr(io_services_utils._AsyncSocketConnector, "_on_writable", fail)
    else:
        monkeypatch.setattr(connection_workflow.AMQPConnector, "_on_transport_establishment_done", fail)
    with nothing_but_this_link():
        began = time.monotonic()
        with pytest.raises(ConnectError) as caught:
            Connection(settings).open(deadline=10)
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
        assert time.monotonic() - began < SLACK


def test_what_fails_while_it_connects_leaves_no_socket(settings, monkeypatch):
    monkeypatch.setattr(settings_module, "check_tcp_options", lambda options: None)
    logging.getLogger("labkit").setLevel(logging.CRITICAL)  # a log record would keep the traceback, and so the socket
    try:
        with connected(settings) as (connection, _):
            connection.channel()
        with nothing_left_behind():
            for _ in range(3):
                with pytest.raises(ConnectError):
                    Connection(settings.replace(tcp_options=REFUSED_OPTIONS)).open(deadline=1)
    finally:
        logging.getLogger("labkit").setLevel(logging.NOTSET)


def test_a_log_handler_that_publishes_costs_no_connection_anything(settings, unharmed):
    """Pika and labkit log on the I/O thread too, where publishing cannot wait."""
    with Publisher(settings) as publisher:
        unharmed.channel().declare(Queue("log"))
        with logs_published_by(publisher) as handler, connected(settings) as (connection, _):
            connection.channel().declare(Queue("log"))
            APPLICATION.info("at work")
        publisher.flush(timeout=10)
        assert handler.count
        assert handler.refused


def test_a_checkout_that_would_wait_on_the_io_thread_is_refused_there(settings, unharmed):
    with ConnectionPool(settings, max_size=1, timeout=5) as pool, pool.connection():
        began = time.monotonic()
        with pytest.raises(WrongThread, match="ask from another thread"):
            SHARED.call(pool.checkout, timeout=10)
        assert time.monotonic() - began < SLACK
        with pytest.raises(PoolTimeout):
            pool.checkout(timeout=0.1)


@pytest.mark.parametrize("wait", ["a pool's entries", "a confirm"])
def test_whatever_would_wait_on_the_io_thread_is_refused_there(settings, unharmed, wait):
    with ConnectionPool(settings, min_size=2, max_size=2) as pool:
        confirmation = Confirmation(exchange="", routing_key="work", ends=time.monotonic() + 5)
        waits = {"a pool's entries": lambda: pool.open(wait=True, timeout=5), "a confirm": confirmation.result}
        began = time.monotonic()
        with pytest.raises(WrongThread, match="ask from another thread"):
            SHARED.call(waits[wait], timeout=10)
        assert time.monotonic() - began < SLACK


@pytest.mark.parametrize("make", [Publisher, lambda settings: Consumer(settings, Queue("work"), Delivery.ack)])
def test_what_ends_in_order_is_not_closed_on_the_io_thread_and_goes_on(settings, unharmed, make):
    with make(settings) as role:
        began = time.monotonic()
        with pytest.raises(WrongThread, match="ask from another thread"):
            SHARED.call(role.close, timeout=10)
        assert time.monotonic() - began < SLACK
        assert role.connection.is_open


def test_a_manager_that_is_closed_on_the_io_thread_holds_nothing_up_and_ends(settings, unharmed):
    manager = ConnectionManager(settings).open()
    began = time.monotonic()
    SHARED.call(manager.close, timeout=10)
    assert time.monotonic() - began < SLACK
    until(lambda: all(each.state is State.CLOSED for each in manager.connections))


def test_a_pool_that_is_closed_on_the_io_thread_holds_nothing_up_and_ends(settings, unharmed):
    pool = ConnectionPool(settings, max_size=2)
    lent = [pool.checkout() for _ in range(2)]
    lent.pop().checkin()
    began = time.monotonic()
    SHARED.call(pool.close, timeout=10)
    assert time.monotonic() - began < SLACK
    assert pool.is_closed
    lent.pop().checkin()
    until(lambda: pool.get_stats().size == 0 and pool.get_stats().retired == 0)


@pytest.mark.usefixtures("unharmed")
def test_an_error_in_a_callback_of_an_open_connection_ends_that_one_and_recovery_brings_it_back(settings):
    def fail():
        raise ZeroDivisionError("inside Pika")

    with connected(settings, recovery=True) as (connection, timeline):
        wire = connection._life.link.connection
        mark = timeline.mark()
        SHARED.call(lambda: wire._adapter_call_later(0, fail), timeout=5)
        lost = timeline.wait_for(ConnectionLost, timeout=5, since=mark)
        assert isinstance(lost.reason.__cause__, ZeroDivisionError)
        until(lambda: connection.is_open)
        assert connection.generation == 2
        until(lambda: wire.is_closed or wire._transport._sock.fileno() == -1)


# No descriptors are left.

STARVED = """
import asyncio, logging, os, resource, sys, time
from labkit import AsyncConnection, BrokerSettings, Connection, LabkitError, Publisher, Queue
from labkit.connection.io_thread import SHARED
from labkit.verdicts import root_cause
logging.disable(logging.CRITICAL)
settings = BrokerSettings.from_url(sys.stdin.read())
held = []
def starve():
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        while True:
            held.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        pass
def feed():
    while held:
        os.close(held.pop())
def attempt(function, seconds):
    began = time.monotonic()
    try:
        function()
    except LabkitError as exc:
        took = time.monotonic() - began
        print(type(exc).__name__, type(exc.__cause__).__name__, exc.__cause__.errno, took < seconds + 2, flush=True)
    else:
        print("opened", flush=True)
"""


def starved(script, settings, *, timeout=60):
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", STARVED + textwrap.dedent(script)],
        input=settings.to_url(mask=False), capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip
    return done.stdout + done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no limit of descriptors here")
def test_without_descriptors_what_is_open_works_on_and_what_is_to_be_opened_says_why_in_time(settings):
    script = """
        with Connection(settings) as connection:
            channel = connection.channel()
            name = channel.declare(Queue(exclusive=True)).name
            starve()
            attempt(lambda: Connection(settings).open(deadline=1), 1)
            channel.publish("x", routing_key=name)
            print(channel.get(name).body, connection.is_open, connection.generation, SHARED.crashes)
            feed()
            attempt(lambda: Connection(settings).open(deadline=10).close(), 10)
    """
    assert starved(script, settings) == "ConnectError OSError 24 True\nb'x' True 1 0\nopened\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no limit of descriptors here")
def test_a_program_that_has_no_descriptors_from_the_start_is_told_so_in_time(settings):
    script = """
        starve()
        attempt(lambda: Connection(settings).open(deadline=1), 1)
        feed()
        attempt(lambda: Connection(settings).open(deadline=10).close(), 10)
    """
    assert starved(script, settings) == "DeadlineExceeded OSError 24 True\nopened\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no limit of descriptors here")
def test_an_async_connection_without_descriptors_says_why_at_once(settings):
    script = """
        async def main():
            connection = AsyncConnection(settings.replace(connect_deadline=15))
            starve()
            began = time.monotonic()
            try:
                await connection.open()
            except LabkitError as exc:
                print(type(exc).__name__, root_cause(exc).errno, time.monotonic() - began < 2, flush=True)
            feed()
            async with connection:
                print("opened")
        asyncio.run(main())
    """
    assert starved(script, settings) == "ConnectError 24 True\nopened\n"


def test_a_crash_while_there_are_no_descriptors_is_survived_by_those_that_recover(settings):
    script = """
        connection = Connection(settings, recovery=True).open()
        plain = Connection(settings).open()
        starve()
        def bug(): raise SystemError("a bug below us")
        SHARED.call(lambda: SHARED.ioloop().add_callback(bug), timeout=5)
        ends = time.monotonic() + 5
        while (plain.is_open or connection.is_open) and time.monotonic() < ends:
            time.sleep(0.01)
        print(plain.state.value, connection.is_open, flush=True)
        feed()
        connection.open(deadline=20)
        print(connection.channel().is_open, connection.generation)
        connection.close()
    """
    assert starved(script, settings) == "failed False\nTrue 2\n"
