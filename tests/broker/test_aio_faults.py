"""AsyncConnection, on a link that breaks."""

import asyncio
import contextlib
import socket
import threading

import pika
import pika.exceptions as px
import pytest

from labkit import (
    AsyncConnection,
    ChannelLost,
    ConnectError,
    DeadlineExceeded,
    Message,
    NotConnected,
    OutcomeUnknown,
    TlsSettings,
)
from labkit.wire import Latency, Proxy, Stall
from tests.asynchronous import asynchronous, until

pytestmark = pytest.mark.broker

SLACK = 2.0


@pytest.fixture(params=["settings", "encrypted"], ids=["plain", "tls"])
def proxy(request):
    with Proxy(request.getfixturevalue(request.param)) as proxy:
        yield proxy


def elapsed_since(started):
    return asyncio.get_running_loop().time() - started


def now():
    return asyncio.get_running_loop().time()


def silent_listener():
    """Accept connections, and say nothing."""
    listener = socket.create_server(("127.0.0.1", 0))
    return listener, listener.getsockname()[1]


@asynchronous
async def test_cut_link_fails_every_await_at_once_with_the_reason(proxy):
    heard = []
    connection = AsyncConnection(proxy.settings(), on_close=lambda *what: heard.append(what))
    async with connection:
        await connection.publish("q", "x")
        at_work, cancelled = asyncio.Event(), []

        async def handler(_):
            at_work.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append("handler")
                raise

        consumer = asyncio.create_task(connection.consume("q", handler))
        await at_work.wait()
        with proxy.fault(Stall(), direction="upstream"):
            publishes = [
                asyncio.create_task(connection.publish("q", Message("x", message_id=str(i)))) for i in range(5)
            ]
            await asyncio.sleep(0)
            started = now()
            proxy.cut()
            ends = await asyncio.gather(consumer, *publishes, return_exceptions=True)
            assert elapsed_since(started) < SLACK
        assert [type(each) for each in ends] == [NotConnected] + 5 * [OutcomeUnknown]
        assert isinstance(ends[0].reason, px.StreamLostError)
        assert [(each.message_id, type(each.__cause__)) for each in ends[1:]] == [
            (str(i), px.StreamLostError) for i in range(5)
        ]
        assert not connection.is_open
        with pytest.raises(NotConnected) as caught:
            await connection.publish("q", "x")
        assert isinstance(caught.value.reason, px.StreamLostError)
    assert cancelled == ["handler"]
    assert [(who, type(why)) for who, why in heard] == [(connection, px.StreamLostError)]


@asynchronous
async def test_what_on_close_raises_after_a_loss_goes_to_the_loop_s_exception_handler(proxy):
    crashes = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: crashes.append(context["exception"]))
    await AsyncConnection(proxy.settings(), on_close=lambda *_: 1 / 0).open()
    proxy.cut()
    await until(lambda: crashes)
    assert [type(each) for each in crashes] == [ZeroDivisionError]


@asynchronous
async def test_it_opens_again_after_a_loss(proxy):
    async with AsyncConnection(proxy.settings()) as connection:
        await connection.publish("q", "x")
        proxy.cut()
        await until(lambda: not connection.is_open)
        await connection.open()
        await connection.publish("q", "x")


@asynchronous
async def test_message_of_a_handler_at_work_comes_again_after_a_loss(proxy, settings):
    async with AsyncConnection(proxy.settings()) as connection:
        await connection.publish("q", "x")

        def lose_the_link(_):
            proxy.cut()

        with pytest.raises(NotConnected):
            await connection.consume("q", lose_the_link)
        await connection.open()
        received = asyncio.Event()
        consumer = asyncio.create_task(connection.consume("q", lambda _: received.set()))
        await received.wait()
        consumer.cancel()
        await asyncio.wait({consumer})


@asynchronous
async def test_publish_ends_at_its_deadline_and_says_whether_it_was_sent(proxy):
    async with AsyncConnection(proxy.settings()) as connection:
        await connection.publish("q", "x")
        with proxy.fault(Stall(), direction="upstream"):
            started = now()
            with pytest.raises(DeadlineExceeded, match="was sent"):
                await connection.publish("another", "x", deadline=0.3)
            with pytest.raises(OutcomeUnknown, match=r"within 0\.3 s"):
                await connection.publish("q", "x", deadline=0.3)
            assert elapsed_since(started) < 0.6 + SLACK
        assert connection.is_open
        await connection.publish("q", "the late confirm was not taken for this one's")
        await connection.publish("another", "x")


@asynchronous
async def test_silent_link_is_noticed_within_two_heartbeats(proxy):
    heard = []
    settings = proxy.settings(heartbeat=1)
    async with AsyncConnection(settings, on_close=lambda *what: heard.append(what)) as connection:
        started = now()
        with proxy.fault(Stall(), direction="both"), pytest.raises(NotConnected) as caught:
            await connection.consume("q", print)
        assert elapsed_since(started) < 2 * 1 + 1 + SLACK
        assert isinstance(caught.value.reason, px.AMQPHeartbeatTimeout)
        await until(lambda: [type(why) for _, why in heard] == [px.AMQPHeartbeatTimeout])


@asynchronous
async def test_link_survives_a_loop_that_was_blocked_for_less_than_the_broker_s_patience(settings):
    async with AsyncConnection(settings.replace(heartbeat=1)) as connection:
        threading.Event().wait(1.8)  # blocks the loop, as time.sleep in a handler does
        await asyncio.sleep(1.0)  # heartbeats come: nothing happens, though it is more than two that went by
        assert connection.is_open
        await connection.publish("q", "x")


@asynchronous
async def test_close_is_bounded_when_the_broker_does_not_answer(proxy):
    connection = await AsyncConnection(proxy.settings()).open()
    with proxy.fault(Stall(), direction="both"):
        started = now()
        await connection.close(timeout=0.3)
        assert elapsed_since(started) < 0.3 + SLACK
    assert not connection.is_open


@asynchronous
async def test_cancelled_close_drops_the_socket(proxy):
    connection = await AsyncConnection(proxy.settings()).open()
    with proxy.fault(Stall(), direction="both"):
        closing = asyncio.create_task(connection.close())
        await asyncio.sleep(0.1)
        closing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await closing
        assert not connection.is_open


@pytest.mark.parametrize("tls", [None, TlsSettings()], ids=["plain", "tls"])
def test_connect_deadline_and_cancel_hold_against_a_host_that_accepts_and_says_nothing(settings, tls):
    @asynchronous
    async def check():
        listener, port = silent_listener()
        with listener:
            there = settings.replace(host="127.0.0.1", port=port, connect_deadline=0.5, tls=tls)
            started = now()
            with pytest.raises(ConnectError, match="1 attempt"):
                await AsyncConnection(there).open()
            assert 0.4 < elapsed_since(started) < 0.5 + SLACK
            opening = asyncio.create_task(AsyncConnection(there.replace(connect_deadline=30.0)).open())
            await asyncio.sleep(0.1)
            opening.cancel()
            await asyncio.wait({opening}, timeout=SLACK)
            assert opening.cancelled()

    check()


@asynchronous
async def test_silent_first_host_leaves_time_for_the_second(settings):
    listener, port = silent_listener()
    with listener:
        hosts = (f"127.0.0.1:{port}", f"127.0.0.1:{settings.port}")
        async with AsyncConnection(settings.replace(hosts=hosts, connect_deadline=4.0)) as connection:
            await connection.publish("q", "x")


@asynchronous
async def test_failed_login_leaves_no_timer_that_goes_off_later(proxy):
    settings = proxy.settings(stack_timeout=0.5)
    with pytest.raises(ConnectError):
        await AsyncConnection(settings.replace(password="wrong")).open()
    await asyncio.sleep(0.8)  # asynchronous() looks at what the loop's exception handler has heard


@asynchronous
async def test_slow_link_holds_up_no_other_task(proxy):
    ticks = 0

    async def tick():
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    async with AsyncConnection(proxy.settings()) as connection:
        ticking = asyncio.create_task(tick())
        with proxy.fault(Latency(0.1), direction="both"):
            await connection.publish("q", "x")
        ticking.cancel()
        assert ticks > 10


def test_loop_that_ended_without_a_close_is_named(settings):
    connection = AsyncConnection(settings)
    asyncio.run(connection.open())
    assert not connection.is_open
    with pytest.raises(NotConnected, match=r"event loop .* is closed"):
        asyncio.run(connection.publish("q", "x"))
    asyncio.run(connection.close())
    connection._link.raw._transport._sock.close()  # nothing but the interpreter could have done it


def test_blocking_client_sees_what_was_confirmed(settings):
    async def publish():
        async with AsyncConnection(settings) as connection:
            await connection.publish("q", Message("text", headers={"a": 1}, persistent=True))

    asyncio.run(publish())
    with contextlib.closing(pika.BlockingConnection(settings.to_pika())) as other:
        _, properties, body = other.channel().basic_get("q", auto_ack=True)
    assert (body, properties.headers, properties.delivery_mode) == (b"text", {"a": 1}, 2)


@asynchronous
async def test_a_connection_without_a_free_channel_number_says_so_and_stays_open(settings):
    async with AsyncConnection(settings.replace(channel_max=1)) as connection:
        with pytest.raises(ChannelLost) as caught:
            await connection.publish("q", "x")
        assert isinstance(caught.value.reason, px.NoFreeChannels)
        assert connection.is_open
