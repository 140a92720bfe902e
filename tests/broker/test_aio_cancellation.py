"""A task of AsyncConnection's may be cancelled at any await. The moments are random, from seeds."""

import asyncio
import contextlib
import random

import pika
import pytest

from labkit import AsyncConnection, LabkitError, Message
from labkit.wire import Latency, Proxy
from tests.asynchronous import asynchronous, sockets, until

pytestmark = pytest.mark.broker

ROUNDS = 40


@pytest.fixture
def proxy(settings):
    """A link slow enough to be cancelled at each of its steps."""
    with Proxy(settings, tapped=False) as proxy, proxy.fault(Latency(0.002), direction="both"):
        yield proxy


async def seconds_for(coroutine):
    """How long it takes here and now."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    await coroutine
    return loop.time() - started


async def cancel_after(coroutine, seconds):
    """Whether it was cancelled, rather than done before."""
    task = asyncio.create_task(coroutine)
    await asyncio.wait({task}, timeout=seconds)
    task.cancel()
    await asyncio.wait({task}, timeout=5.0)
    assert task.done()
    if not task.cancelled():
        task.result()
    return task.cancelled()


@pytest.mark.parametrize("seed", range(2))
def test_cancelled_open_leaves_no_socket(proxy, seed):
    @asynchronous
    async def check():
        rng = random.Random(seed)
        before = sockets()
        settings = proxy.settings(stack_timeout=1.0, socket_timeout=1.0)
        cancelled, first = 0, AsyncConnection(settings)
        usual = await seconds_for(first.open())
        await first.close()
        for _ in range(ROUNDS):
            connection = AsyncConnection(settings)
            was_cancelled = await cancel_after(connection.open(), rng.uniform(0.0, 2 * usual))
            cancelled += was_cancelled
            assert connection.is_open != was_cancelled
            if was_cancelled:
                assert sockets() == before
            await connection.close()
        assert 0 < cancelled < ROUNDS
        await asyncio.sleep(1.1)  # a timer left behind goes off now, and asynchronous() hears of it

    check()


@asynchronous
async def test_open_cancelled_after_any_number_of_rounds_of_the_loop_leaves_no_socket(settings):
    before = sockets()
    for steps in [*range(20)] * 6:
        opening = asyncio.create_task(AsyncConnection(settings).open())
        for _ in range(steps):
            await asyncio.sleep(0)
        opening.cancel()
        await asyncio.wait({opening})
        assert opening.cancelled()
        assert sockets() == before, f"after {steps} rounds"


@pytest.mark.parametrize("seed", range(2))
def test_cancelled_publish_leaves_the_connection_usable_and_loses_no_confirmed_message(proxy, settings, seed):
    @asynchronous
    async def check():
        rng = random.Random(seed)
        cancelled, confirmed = 0, []
        async with AsyncConnection(proxy.settings()) as connection:
            usual = await seconds_for(connection.publish("first", "x"))
            for number in range(ROUNDS):
                queue = f"q{number % 8}"  # each is declared in its turn, so that is cancelled, too
                if await cancel_after(connection.publish(queue, str(number)), rng.uniform(0.0, 2 * usual)):
                    cancelled += 1
                else:
                    confirmed.append(str(number))
            await connection.publish("q0", "last")
            assert connection.is_open
        assert 0 < cancelled < ROUNDS
        with contextlib.closing(pika.BlockingConnection(settings.to_pika())) as other:
            channel = other.channel()
            found = []
            for number in range(8):
                channel.queue_declare(f"q{number}", durable=True)
                while (got := channel.basic_get(f"q{number}", auto_ack=True))[0] is not None:
                    found.append(got[2].decode())
        assert len(found) == len(set(found))
        assert {*confirmed, "last"} <= set(found)

    check()


@asynchronous
async def test_publish_cancelled_while_it_opens_another_channel_leaves_none(proxy):
    rng = random.Random(0)
    async with AsyncConnection(proxy.settings()) as connection:

        async def lose_the_channel():
            with pytest.raises(LabkitError):  # 404
                await connection.publish("q", "lost", exchange="missing")

        await connection.publish("q", "first")
        await lose_the_channel()
        usual, cancelled = await seconds_for(connection.publish("q", "second")), 0
        for _ in range(ROUNDS):
            await lose_the_channel()
            cancelled += await cancel_after(connection.publish("q", "next"), rng.uniform(0.0, 2 * usual))
        assert 0 < cancelled < ROUNDS
        await connection.publish("q", "last")
        await until(lambda: len(connection._link.raw._channels) == 1)


@asynchronous
async def test_cancelled_call_leaves_the_connection_usable_and_no_call_gets_anothers_answer(proxy):
    rng = random.Random(0)
    async with AsyncConnection(proxy.settings()) as server:

        async def answer(request):
            await server.publish(request.reply_to, Message(request.text, correlation_id=request.correlation_id))

        serving = asyncio.create_task(server.consume("calls", answer))
        cancelled = 0
        await until(lambda: "calls" in server._known)
        async with AsyncConnection(proxy.settings()) as client:
            usual = await seconds_for(client.call("calls", "x"))
        for number in range(ROUNDS):
            async with AsyncConnection(proxy.settings()) as client:  # a new one, whose first call has most to do
                for text in (f"{number} first", f"{number} second"):
                    cancelled += await cancel_after(client.call("calls", text), rng.uniform(0.0, 2 * usual))
                assert (await client.call("calls", f"{number} last")).text == f"{number} last"
        assert 0 < cancelled < 2 * ROUNDS
        serving.cancel()
        await asyncio.wait({serving})


@asynchronous
async def test_cancelled_consume_leaves_the_connection_usable_and_every_message(proxy):
    rng = random.Random(0)
    texts = {str(number) for number in range(30)}
    async with AsyncConnection(proxy.settings()) as connection:
        usual = await seconds_for(asyncio.gather(*(connection.publish("q", text) for text in texts)))
        seen = set()

        async def handler(message):
            await asyncio.sleep(rng.uniform(0.0, 0.002))
            seen.add(message.text)

        for _ in range(ROUNDS // 2):
            await cancel_after(connection.consume("q", handler), rng.uniform(0.0, usual))
        consumer = asyncio.create_task(connection.consume("q", handler))
        await until(lambda: seen == texts)
        consumer.cancel()
        await asyncio.wait({consumer})
        await until(lambda: len(connection._link.raw._channels) == 1)  # each consumer's channel is closed


@asynchronous
async def test_consume_ends_when_cancelled_although_its_handler_swallows_the_cancellation(settings):
    handled = []

    async def handler(message):
        handled.append(message.text)
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(30)

    async with AsyncConnection(settings) as connection:
        for text in ("0", "1", "2"):
            await connection.publish("stubborn", text)
        consumer = asyncio.create_task(connection.consume("stubborn", handler))
        await until(lambda: handled)
        consumer.cancel()
        await asyncio.wait({consumer}, timeout=5.0)
        ended = consumer.done()
        while not consumer.done():  # let nothing outlive this test
            consumer.cancel()
            await asyncio.wait({consumer}, timeout=0.5)
        assert ended
        assert handled == ["0"]


@asynchronous
async def test_mixture_of_cancelled_work_and_cut_links_hangs_nowhere(proxy):
    rng = random.Random(7)
    connection = AsyncConnection(proxy.settings())
    for _ in range(15):
        with contextlib.suppress(LabkitError):
            await connection.open()
        work = [asyncio.create_task(connection.publish("q", "x")) for _ in range(10)]
        work.append(asyncio.create_task(connection.consume("q", lambda _: None)))
        await asyncio.sleep(rng.uniform(0.0, 0.03))
        for task in rng.sample(work, 4):
            task.cancel()
        if rng.random() < 0.7:
            proxy.cut(reset=rng.random() < 0.5)
        else:
            work[-1].cancel()
        done, pending = await asyncio.wait(work, timeout=5.0)
        assert not pending
        for task in done:
            assert task.cancelled() or task.exception() is None or isinstance(task.exception(), LabkitError)
    await connection.close()
