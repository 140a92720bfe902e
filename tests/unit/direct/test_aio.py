"""What AsyncConnection says and does before there is a connection."""

import asyncio
import socket
import threading
import time

import pytest

from labkit import AsyncConnection, BrokerSettings, ConfigurationError, ConnectError, NotConnected
from tests.asynchronous import asynchronous, until

NOWHERE = BrokerSettings(host="no-such-host.invalid")


@pytest.fixture
def resolver_that_hangs(monkeypatch):
    """What lets the hanging lookups end."""
    release, asked = threading.Event(), threading.Event()

    def hang(*_args, **_keywords):
        asked.set()
        release.wait(30)
        raise socket.gaierror(socket.EAI_AGAIN, "released by the test")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    release.asked = asked
    yield release
    release.set()
    for thread in threading.enumerate():
        if thread.name == "labkit-dns":
            thread.join(30)


def test_constructor_does_no_io_and_needs_no_event_loop():
    connection = AsyncConnection(NOWHERE)
    assert (repr(connection), connection.is_open) == ("AsyncConnection(closed)", False)


@pytest.mark.parametrize("name", ["on_open", "on_error", "on_close"])
def test_callback_that_would_have_to_be_awaited_is_refused(name):
    async def callback(*_):
        """Pika calls back without awaiting."""

    for wrong in (callback, "print"):
        with pytest.raises(ConfigurationError, match=f"{name}: .*a plain function"):
            AsyncConnection(NOWHERE, **{name: wrong})


@pytest.mark.parametrize("prefetch", [-1, 65536, True, "10"])
def test_prefetch_that_cannot_be_is_refused(prefetch):
    with pytest.raises(ConfigurationError, match="prefetch"):
        AsyncConnection(NOWHERE, prefetch=prefetch)


def test_use_before_open_says_what_to_do():
    connection = AsyncConnection(NOWHERE)

    async def check():
        for use in (connection.publish("q", "x"), connection.consume("q", print)):
            with pytest.raises(NotConnected, match=r"await open\(\) first"):
                await use
        await connection.close()

    asyncio.run(check())


def test_arguments_are_checked_before_the_connection_is():
    async def check():
        connection = AsyncConnection(NOWHERE)
        with pytest.raises(ConfigurationError, match="queue"):
            await connection.publish("", "x")
        with pytest.raises(ConfigurationError, match="deadline"):
            await connection.publish("q", "x", deadline=-1)
        with pytest.raises(ConfigurationError, match="queue"):
            await connection.consume(7, print)
        with pytest.raises(ConfigurationError, match="timeout"):
            await connection.close(timeout="soon")

    asyncio.run(check())


def test_name_that_does_not_resolve_is_a_connect_error(monkeypatch):
    def fail(*_args, **_keywords):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    heard = []

    @asynchronous
    async def check():
        with pytest.raises(ConnectError, match="no-such-host") as caught:
            await AsyncConnection(NOWHERE, on_error=lambda *what: heard.append(what[1])).open()
        assert isinstance(caught.value.__cause__, socket.gaierror)
        assert heard == [caught.value]

    check()


def test_deadline_holds_against_a_resolver_that_hangs_and_so_does_the_end_of_the_loop(resolver_that_hangs):
    async def check():
        with pytest.raises(ConnectError, match="no answer about the name"):
            await AsyncConnection(NOWHERE.replace(connect_deadline=0.05)).open()

    started = time.monotonic()
    asyncio.run(check())
    assert time.monotonic() - started < 2.05


def test_open_can_be_cancelled_while_a_resolver_hangs(resolver_that_hangs):
    async def check():
        opening = asyncio.create_task(AsyncConnection(NOWHERE).open())
        await until(resolver_that_hangs.asked.is_set)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening

    started = time.monotonic()
    asyncio.run(check())
    assert time.monotonic() - started < 2.0
