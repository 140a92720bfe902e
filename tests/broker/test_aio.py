"""AsyncConnection, on a link that works."""

import asyncio
import contextlib
import json
import threading

import pika
import pika.exceptions as px
import pytest

from labkit import (
    AccessRefused,
    AsyncConnection,
    AuthenticationFailed,
    ChannelLost,
    ConnectError,
    LeaseError,
    Message,
    NotConnected,
    PublishRejected,
    Unroutable,
)
from tests.asynchronous import asynchronous, sockets, until

pytestmark = pytest.mark.broker


def depth(settings, queue="q"):
    """Messages ready in the queue, as a connection of its own counts them."""
    return declared(settings, queue).message_count


def declared(settings, queue="q", passive=True, **changes):
    with contextlib.closing(pika.BlockingConnection(settings.to_pika())) as other:
        return other.channel().queue_declare(queue, passive=passive, **changes).method


def delete(settings, queue="q"):
    with contextlib.closing(pika.BlockingConnection(settings.to_pika())) as other:
        other.channel().queue_delete(queue)


def unacknowledged(broker, settings):
    (queue,) = json.loads(
        broker.ctl("list_queues", "messages_unacknowledged", "-p", settings.virtual_host, "--formatter", "json")
    )
    return queue["messages_unacknowledged"]


@contextlib.asynccontextmanager
async def consuming(connection, handler, queue="q", **keywords):
    """A task that consumes; cancelled at the end, unless it has ended by then."""
    task = asyncio.create_task(connection.consume(queue, handler, **keywords))
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


# Opening


@asynchronous
async def test_open_returns_when_the_broker_has_opened_the_connection_and_a_channel(view, settings):
    async with AsyncConnection(settings) as connection:
        assert (connection.is_open, repr(connection)) == (True, "AsyncConnection(open)")
        (seen,) = view.connections(settings.virtual_host)
        assert (seen["state"], seen["channels"]) == ("running", 1)


@asynchronous
async def test_on_open_is_called_once_with_the_open_connection(settings):
    heard = []
    connection = AsyncConnection(settings, on_open=lambda it: heard.append((it, it.is_open)))
    async with connection:
        await connection.open()
        await asyncio.gather(connection.open(), connection.open())
    assert heard == [(connection, True)]


@asynchronous
async def test_opens_at_once_make_one_connection(settings):
    before = sockets()
    connection = AsyncConnection(settings)
    await asyncio.gather(*(connection.open() for _ in range(5)))
    assert len(sockets()) == len(before) + 1
    await connection.close()


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"port": 1}, ConnectError),
        ({"password": "wrong"}, AuthenticationFailed),
        ({"virtual_host": "no-such-vhost"}, AccessRefused),
    ],
)
def test_failed_open_raises_where_it_is_awaited_and_tells_on_error(settings, changes, error):
    @asynchronous
    async def check():
        heard = []
        connection = AsyncConnection(settings.replace(**changes), on_error=lambda *what: heard.append(what))
        with pytest.raises(error) as caught:
            await connection.open()
        assert type(caught.value) is error
        assert heard == [(connection, caught.value)]
        assert caught.value.attempts == 1
        assert not connection.is_open

    check()


@asynchronous
async def test_attempts_and_pauses_are_those_of_the_settings(settings):
    loop = asyncio.get_running_loop()
    started = loop.time()
    with pytest.raises(ConnectError) as caught:
        await AsyncConnection(settings.replace(port=1, connection_attempts=3, retry_delay=0.2)).open()
    assert caught.value.attempts == 3
    assert 0.4 <= loop.time() - started < 3.0


@asynchronous
async def test_refused_login_is_not_tried_again(settings):
    with pytest.raises(AuthenticationFailed) as caught:
        await AsyncConnection(settings.replace(password="wrong", connection_attempts=3)).open()
    assert caught.value.attempts == 1


@asynchronous
async def test_host_that_does_not_resolve_is_passed_over(settings):
    hosts = ("no-such-host.invalid", f"127.0.0.1:{settings.port}")
    async with AsyncConnection(settings.replace(hosts=hosts)) as connection:
        await connection.publish("q", "x")


@asynchronous
async def test_what_on_open_raises_leaves_open_and_closes_the_connection(settings):
    def fail(_):
        raise FileNotFoundError("a file of the program's own")

    before = sockets()
    connection = AsyncConnection(settings, on_open=fail)
    with pytest.raises(FileNotFoundError):
        await connection.open()
    assert not connection.is_open
    assert sockets() == before


@asynchronous
async def test_what_on_error_raises_leaves_open(settings):
    def fail(*_):
        raise FileNotFoundError("a file of the program's own")

    with pytest.raises(FileNotFoundError) as caught:
        await AsyncConnection(settings.replace(port=1), on_error=fail).open()
    assert isinstance(caught.value.__context__, ConnectError)


# Publishing


@asynchronous
async def test_publish_declares_a_durable_queue_and_is_confirmed(view, settings):
    async with AsyncConnection(settings) as connection:
        assert await connection.publish("q", Message("hello")) is None
        assert depth(settings) == 1
        assert view.get(f"queues/{settings.virtual_host}/q")["durable"] is True


@asynchronous
async def test_eight_tasks_publish_four_thousand_messages_and_all_arrive(settings):
    async with AsyncConnection(settings) as connection:

        async def publish(task):
            for start in range(0, 500, 100):
                await asyncio.gather(*(connection.publish("q", f"{task} {start + i}") for i in range(100)))

        await asyncio.gather(*(publish(task) for task in range(8)))
        received, all_here = set(), asyncio.Event()

        def note(message):
            received.add(message.text)
            if len(received) == 4000:
                all_here.set()

        async with consuming(connection, note):
            await all_here.wait()
    assert received == {f"{task} {i}" for task in range(8) for i in range(500)}
    assert depth(settings) == 0


@asynchronous
async def test_each_of_many_publishes_gets_its_own_outcome(settings):
    declared(settings, "full", passive=False, arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
    async with AsyncConnection(settings) as connection:
        await connection.publish("full", "fills it")
        await connection.publish("gone", "x")
        delete(settings, "gone")
        texts = ["q", "full", "gone", "q", "gone", "full", "q"]
        outcomes = await asyncio.gather(*(connection.publish(q, "x") for q in texts), return_exceptions=True)
        assert [type(each) for each in outcomes] == [
            type(None), PublishRejected, Unroutable, type(None), Unroutable, PublishRejected, type(None),
        ]  # fmt: skip
        assert outcomes[2].routing_key == "gone"
        assert connection.is_open
        await connection.publish("gone", "x")  # declared anew
        assert (depth(settings), depth(settings, "gone")) == (3, 1)


@asynchronous
async def test_missing_queue_is_an_error_when_nothing_may_be_declared(settings):
    async with AsyncConnection(settings, declare=False) as connection:
        with pytest.raises(ChannelLost) as caught:
            await connection.publish("missing", "x")
        assert caught.value.reason.reply_code == 404
        with pytest.raises(ChannelLost):
            await connection.consume("missing", print)
        assert connection.is_open


@asynchronous
async def test_queue_of_another_connection_can_be_published_to(settings):
    with contextlib.closing(pika.BlockingConnection(settings.to_pika())) as other:
        channel = other.channel()
        channel.queue_declare("replies", exclusive=True)
        async with AsyncConnection(settings) as connection:
            await connection.publish("replies", "x")
        assert channel.basic_get("replies", auto_ack=True)[2] == b"x"


@asynchronous
async def test_publish_works_again_after_the_broker_has_closed_its_channel(settings):
    async with AsyncConnection(settings) as connection:
        await connection.publish("q", "x")
        raw = connection._publishing.channel.raw
        raw.basic_ack(4711)  # 406: an unknown delivery tag closes the channel
        await until(lambda: raw.is_closed)
        assert connection.is_open
        await connection.publish("q", "y")
    assert depth(settings) == 2


# Consuming


@asynchronous
async def test_consumer_is_known_to_the_broker_and_gone_after_a_cancel(settings):
    async with AsyncConnection(settings) as connection:
        async with consuming(connection, print):
            await until(
                lambda: (found := declared(settings, passive=False, durable=True)) and found.consumer_count == 1
            )
        await until(lambda: declared(settings).consumer_count == 0)
        assert connection.is_open


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_message_is_acknowledged_when_its_handler_has_returned(broker, settings, kind):
    @asynchronous
    async def check():
        received = []

        async def awaited(message):
            await asyncio.sleep(0)
            received.append(message.text)

        handler = awaited if kind == "async" else lambda message: received.append(message.text)
        async with AsyncConnection(settings) as connection:
            await asyncio.gather(*(connection.publish("q", str(number)) for number in range(20)))
            async with consuming(connection, handler):
                await until(lambda: len(received) == 20)
                await until(lambda: unacknowledged(broker, settings) == 0)
        assert received == [str(number) for number in range(20)]
        assert depth(settings) == 0

    check()


@asynchronous
async def test_prefetch_bounds_what_the_broker_sends_ahead(broker, settings):
    async with AsyncConnection(settings, prefetch=3) as connection:
        await asyncio.gather(*(connection.publish("q", "x") for _ in range(10)))
        at_work = asyncio.Event()

        async def handler(_):
            at_work.set()
            await asyncio.Event().wait()

        async with consuming(connection, handler):
            await at_work.wait()
            await until(lambda: unacknowledged(broker, settings) == 3)
        await until(lambda: depth(settings) == 10)  # a cancelled handler's message goes back, too


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_what_a_handler_raises_leaves_consume_and_loses_no_message(settings, kind):
    @asynchronous
    async def check():
        def plain(message):
            raise FileNotFoundError(message.text)

        async def awaited(message):
            plain(message)

        async with AsyncConnection(settings) as connection:
            await asyncio.gather(*(connection.publish("q", str(number)) for number in range(10)))
            with pytest.raises(FileNotFoundError, match="0"):
                await connection.consume("q", awaited if kind == "async" else plain)
            await until(lambda: depth(settings) == 10)
            await connection.publish("q", "the connection is well")

    check()


@pytest.mark.parametrize("concurrency", [1, 3])
@asynchronous
async def test_a_handler_that_ends_as_cancelled_ends_consume_and_says_so(settings, concurrency):
    """What it awaits was cancelled by others. A consume() that ended as cancelled would end unseen in a task group."""

    async def handler(_):
        elsewhere = asyncio.create_task(asyncio.sleep(10))
        elsewhere.cancel()
        await elsewhere

    async with AsyncConnection(settings) as connection:
        await connection.publish("q", "x")
        with pytest.raises(ChannelLost, match="a handler ended as cancelled") as caught:
            await connection.consume("q", handler, concurrency=concurrency)
        assert isinstance(caught.value.reason, asyncio.CancelledError)
        await until(lambda: depth(settings) == 1)


@asynchronous
async def test_the_loop_has_its_turn_between_two_messages_of_a_plain_handler(settings):
    turns, seen = 0, []

    async def count_turns():
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async with AsyncConnection(settings) as connection:
        await asyncio.gather(*(connection.publish("q", str(number)) for number in range(10)))
        counting = asyncio.create_task(count_turns())
        async with consuming(connection, lambda _: seen.append(turns)):
            await until(lambda: len(seen) == 10)
        counting.cancel()
    assert len(set(seen)) == 10


@asynchronous
async def test_auto_ack_makes_the_broker_forget_what_it_has_sent(settings):
    async with AsyncConnection(settings) as connection:
        await asyncio.gather(*(connection.publish("q", str(number)) for number in range(10)))
        with pytest.raises(ZeroDivisionError):
            await connection.consume("q", lambda _: 1 / 0, auto_ack=True)
        assert depth(settings) == 0


@asynchronous
async def test_deleted_queue_ends_consume_with_the_reason(settings):
    async with AsyncConnection(settings) as connection:
        await connection.publish("q", "x")
        with pytest.raises(ChannelLost, match="'q' was deleted") as caught:
            await connection.consume("q", lambda _: delete(settings))
        assert isinstance(caught.value.reason, px.ConsumerCancelled)
        await connection.publish("q", "declared anew")
        assert depth(settings) == 1


@asynchronous
async def test_handler_may_publish_on_the_same_connection(settings):
    async with AsyncConnection(settings) as connection:
        await connection.publish("q", "x")
        async with consuming(connection, lambda message: connection.publish("answers", message)):
            await until(lambda: declared(settings, "answers", passive=False, durable=True).message_count == 1)


# Closing, and whose it is


@asynchronous
async def test_close_returns_when_the_socket_is_closed_and_twice_is_fine(view, settings):
    before = sockets()
    connection = await AsyncConnection(settings).open()
    assert len(sockets()) == len(before) + 1
    await asyncio.gather(connection.close(), connection.close())
    assert sockets() == before
    await connection.close()
    assert (connection.is_open, repr(connection)) == (False, "AsyncConnection(closed)")
    await until(lambda: not view.connections(settings.virtual_host))


@asynchronous
async def test_on_close_is_told_once_that_this_side_closed_it(settings):
    heard = []
    connection = AsyncConnection(settings, on_close=lambda *what: heard.append(what))
    async with connection:
        pass
    await connection.close()
    assert [(who, type(why)) for who, why in heard] == [(connection, px.ConnectionClosedByClient)]


@asynchronous
async def test_close_by_the_broker_ends_consume_and_is_told_with_its_words(view, settings):
    heard = []
    async with AsyncConnection(settings, on_close=lambda *what: heard.append(what)) as connection:
        consumer = asyncio.create_task(connection.consume("q", print))
        await asyncio.sleep(0)
        view.close_connections(settings.virtual_host, "for maintenance")
        with pytest.raises(NotConnected, match="for maintenance") as caught:
            await consumer
        await until(lambda: heard)
    assert heard == [(connection, caught.value.reason)]
    assert (type(heard[0][1]), heard[0][1].reply_code) == (px.ConnectionClosedByBroker, 320)


@asynchronous
async def test_what_on_close_raises_leaves_close(settings):
    connection = await AsyncConnection(settings, on_close=lambda *_: 1 / 0).open()
    with pytest.raises(ZeroDivisionError):
        await connection.close()
    assert not connection.is_open


@asynchronous
async def test_close_during_open_wins(settings):
    before = sockets()
    connection = AsyncConnection(settings)
    opening = asyncio.create_task(connection.open())
    await asyncio.sleep(0)
    await connection.close()
    with pytest.raises(NotConnected, match=r"close\(\) was called"):
        await opening
    assert not connection.is_open
    assert sockets() == before


@asynchronous
async def test_it_opens_again_after_a_close(settings):
    connection = AsyncConnection(settings)
    for text in ("x", "y"):
        async with connection:
            await connection.publish("q", text)
    assert depth(settings) == 2


def test_it_opens_again_in_another_loop_after_a_close(settings):
    connection = AsyncConnection(settings)

    async def publish():
        async with connection:
            await asyncio.gather(*(connection.publish("q", "x") for _ in range(5)))

    asyncio.run(publish())
    asyncio.run(publish())
    assert depth(settings) == 10


@asynchronous
async def test_use_in_another_event_loop_is_a_clear_error(settings):
    async with AsyncConnection(settings) as connection:
        for use in (connection.open, connection.close, lambda: connection.publish("q", "x")):
            with pytest.raises(LeaseError, match="run_coroutine_threadsafe"):
                await asyncio.to_thread(lambda use=use: asyncio.run(use()))
        assert connection.is_open


@asynchronous
async def test_another_thread_may_hand_its_publish_to_the_loop(settings):
    loop = asyncio.get_running_loop()
    async with AsyncConnection(settings) as connection:

        def publish():
            asyncio.run_coroutine_threadsafe(connection.publish("q", "x"), loop).result(20)

        threads = [threading.Thread(target=publish) for _ in range(4)]
        for thread in threads:
            thread.start()
        await until(lambda: not any(thread.is_alive() for thread in threads))
    assert depth(settings) == 4
