"""AsyncConnection beyond one queue: exchanges, bindings, arguments, deliveries, and several handlers at once."""

import asyncio

import pytest

from labkit import (
    AsyncConnection,
    Binding,
    ChannelLost,
    ConfigurationError,
    Exchange,
    LeaseError,
    NotConnected,
    Queue,
    Unroutable,
)
from tests.asynchronous import asynchronous, until
from tests.broker.test_aio import consuming, depth, unacknowledged

pytestmark = pytest.mark.broker


@asynchronous
async def test_what_is_declared_is_there_and_a_message_finds_its_way_by_its_key(settings):
    async with AsyncConnection(settings) as connection:
        await connection.declare(Exchange("events", "topic"))
        state = await connection.declare(Queue("", exclusive=True))
        assert state.name.startswith("amq.gen-")
        assert (state.messages, state.consumers) == (0, 0)
        await connection.declare(Binding("events", state.name, "order.#"))
        got = []
        async with consuming(connection, got.append, queue=state.name, deliveries=True):
            await connection.publish("order.paid", "x", exchange="events")
            await until(lambda: got)
        assert (got[0].body, got[0].exchange, got[0].routing_key) == (b"x", "events", "order.paid")
        with pytest.raises(Unroutable, match="no queue for 'invoice' of exchange 'events'") as caught:
            await connection.publish("invoice", "x", exchange="events")
        assert (caught.value.exchange, caught.value.routing_key) == ("events", "invoice")


@asynchronous
async def test_the_arguments_of_a_queue_are_the_brokers_too(settings):
    async with AsyncConnection(settings) as connection:
        short = Queue("short", arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
        await connection.declare(short)
        await connection.publish("short", "1")
        assert (await connection.declare(short)).messages == 1
        with pytest.raises(ChannelLost, match="406"):
            await connection.declare(Queue("short"))
        with pytest.raises(ChannelLost, match="404"):
            await connection.declare(Binding("not-there", "short"))
        assert connection.is_open


@asynchronous
async def test_an_exchange_that_is_not_there_costs_the_channel_and_the_next_publish_has_another(settings):
    async with AsyncConnection(settings) as connection:
        with pytest.raises(Exception, match="404") as caught:
            await connection.publish("key", "x", exchange="not-there")
        assert "not-there" in str(caught.value)
        await connection.publish("q", "x")
        assert depth(settings) == 1


@asynchronous
async def test_bad_arguments_are_refused_before_anything_is_sent(settings):
    connection = AsyncConnection(settings, prefetch=5)
    with pytest.raises(NotConnected):
        await connection.declare(Queue("q"))
    async with connection:
        for what in ("q", Binding("amq.fanout"), None):
            with pytest.raises(ConfigurationError, match="declare"):
                await connection.declare(what)
        for concurrency in (0, 6, True, "2"):
            with pytest.raises(ConfigurationError, match="concurrency"):
                await connection.consume("q", print, concurrency=concurrency)
        with pytest.raises(ConfigurationError, match="exchange"):
            await connection.publish("q", "x", exchange=7)


@asynchronous
async def test_a_handler_may_settle_its_delivery_itself_once(settings):
    async with AsyncConnection(settings) as connection:
        seen, errors = [], []

        def handle(delivery):
            seen.append((delivery.body, delivery.redelivered))
            if delivery.body == b"back" and not delivery.redelivered:
                delivery.nack(requeue=True)
            elif delivery.body == b"away":
                delivery.reject()
            else:
                delivery.ack()
                try:
                    delivery.ack()
                except LeaseError as exc:
                    errors.append(exc)

        async with consuming(connection, handle, deliveries=True):
            for body in ("back", "away", "done"):
                await connection.publish("q", body)
            await until(lambda: len(seen) == 4)
        assert sorted(seen) == [(b"away", False), (b"back", False), (b"back", True), (b"done", False)]
        assert len(errors) == 2
        await until(lambda: depth(settings) == 0)


@asynchronous
async def test_so_many_handlers_are_at_work_at_once_and_no_more(broker, settings):
    at_work, most, gate, done = set(), [], asyncio.Event(), []

    async def handle(delivery):
        at_work.add(delivery.body)
        most.append(len(at_work))
        await gate.wait()
        at_work.discard(delivery.body)
        done.append(delivery.body)

    async with AsyncConnection(settings) as connection:
        for number in range(8):
            await connection.publish("q", str(number))
        async with consuming(connection, handle, deliveries=True, concurrency=4):
            await until(lambda: len(at_work) == 4)
            await asyncio.sleep(0.2)  # a fifth would begin now
            assert max(most) == 4
            gate.set()
            await until(lambda: len(done) == 8)
            await until(lambda: unacknowledged(broker, settings) == 0)
        assert depth(settings) == 0


@asynchronous
async def test_acknowledging_several_at_once_leaves_the_others_handlers_without_a_second_answer(settings):
    begun, gate = [], asyncio.Event()

    async def handle(delivery):
        begun.append(delivery)
        if len(begun) < 3:
            await gate.wait()
        else:
            delivery.ack(multiple=True)
            gate.set()

    async with AsyncConnection(settings) as connection:
        for number in range(3):
            await connection.publish("q", str(number))
        async with consuming(connection, handle, deliveries=True, concurrency=3) as task:
            await gate.wait()
            await connection.publish("q", "later")
            await until(lambda: len(begun) == 4)
            assert not task.done()  # a second answer would have closed the channel
        assert depth(settings) == 0


@asynchronous
async def test_one_of_many_handlers_that_raises_ends_them_all_and_nothing_is_lost(settings):
    cancelled = []

    async def handle(message):
        if message.body == b"bad":
            raise ValueError("bad")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(message.body)
            raise

    async with AsyncConnection(settings) as connection:
        for body in ("1", "2", "bad"):
            await connection.publish("q", body)
        with pytest.raises(ValueError, match="bad"):
            await connection.consume("q", handle, concurrency=3)
        assert sorted(cancelled) == [b"1", b"2"]
        await until(lambda: depth(settings) == 3)
