"""Direct reply-to: answers that come to the channel of the request, without a queue. AsyncConnection calls; all answer.

Through ``Connection`` the two ends are its own channel's: ``test_consume_options.py``.
"""

import asyncio
import contextlib
import threading
import time

import pytest

from labkit import (
    AsyncConnection,
    ConfigurationError,
    Connection,
    Consumer,
    Message,
    OutcomeUnknown,
    Publisher,
    Queue,
    RpcTimeout,
    SyncConnection,
    Unroutable,
)
from labkit.wire import Proxy
from tests.asynchronous import asynchronous, until
from tests.broker.connections import SLACK

pytestmark = pytest.mark.broker
REPLY_TO = "amq.rabbitmq.reply-to"


def answer_to(request, text=None):
    return Message(request.text.upper() if text is None else text, correlation_id=request.correlation_id)


@contextlib.asynccontextmanager
async def serving(settings, handle=None, queue="calls"):
    """A connection that answers; *handle* is given it and the request. Its queue is there when the block begins."""

    async def answer(request):
        await (handle or answer_at_once)(connection, request)

    async with AsyncConnection(settings) as connection:
        task = asyncio.create_task(connection.consume(queue, answer))
        try:
            await until(lambda: queue in connection._known)
            yield connection
        finally:
            task.cancel()
            await asyncio.wait({task})


async def answer_at_once(connection, request):
    await connection.publish(request.reply_to, answer_to(request))


async def never(connection, request):
    await asyncio.Event().wait()


@asynchronous
async def test_a_call_returns_the_answer_and_needs_no_queue_for_it(view, settings):
    async with serving(settings), AsyncConnection(settings) as client:
        answer = await client.call("calls", Message("one seat", headers={"row": 7}))
        assert answer.text == "ONE SEAT"
        assert [each["name"] for each in view.get(f"queues/{settings.virtual_host}")] == ["calls"]
        assert client._answers == {}


@asynchronous
async def test_each_of_many_calls_at_once_gets_its_own_answer_whatever_their_order(settings):
    held = []

    async def in_reverse(connection, request):
        held.append(request)
        if len(held) == 20:
            for each in reversed(held):
                await connection.publish(each.reply_to, answer_to(each))

    async with serving(settings, in_reverse), AsyncConnection(settings) as client:
        asked = [f"seat {number}" for number in range(20)]
        answers = await asyncio.gather(*(client.call("calls", each) for each in asked))
        assert [each.text for each in answers] == [each.upper() for each in asked]


@asynchronous
async def test_a_call_that_nobody_answers_ends_at_its_deadline_and_a_late_answer_harms_nobody(settings):
    late = []

    async def once_late(connection, request):
        late.append(request)
        if len(late) == 2:
            await connection.publish(late[0].reply_to, answer_to(late[0]))
            await connection.publish(request.reply_to, answer_to(request))

    async with serving(settings, once_late), AsyncConnection(settings) as client:
        began = time.monotonic()
        with pytest.raises(RpcTimeout, match=r"no answer to the message for 'calls' within 0\.5 s") as caught:
            await client.call("calls", "first", deadline=0.5)
        assert caught.value.timeout == 0.5
        assert 0.5 <= time.monotonic() - began < 0.5 + SLACK
        assert (await client.call("calls", "second")).text == "SECOND"
        assert client._answers == {}


@asynchronous
async def test_a_request_that_nobody_has_taken_by_its_deadline_is_not_carried_out_later(settings):
    seen = []

    async def see(connection, request):
        seen.append((request.text, request.expiration))
        await answer_at_once(connection, request)

    async with AsyncConnection(settings) as client:
        with pytest.raises(RpcTimeout):
            await client.call("calls", "first", deadline=0.3)
        with pytest.raises(RpcTimeout):
            await client.call("calls", Message("kept", expiration=60), deadline=0.3)
        async with serving(settings, see):
            await client.call("calls", "third", deadline=20)
    assert seen == [("kept", 60), ("third", 20)]


@asynchronous
async def test_a_call_whose_link_is_cut_ends_at_once_and_says_that_nobody_knows(settings):
    with Proxy(settings) as proxy:
        async with serving(settings, never), AsyncConnection(proxy.settings()) as client:
            task = asyncio.create_task(client.call("calls", Message("one seat", message_id="m1")))
            await until(lambda: "Basic.Ack" in proxy.conversation().names)  # it was confirmed
            proxy.cut()
            with pytest.raises(OutcomeUnknown, match="no answer to the message for 'calls'") as caught:
                await asyncio.wait_for(task, SLACK)
            assert caught.value.message_id == "m1"
            assert client._answers == {}


@asynchronous
async def test_a_call_to_a_queue_that_was_deleted_is_unroutable_at_once(settings):
    async with AsyncConnection(settings) as client:
        with pytest.raises(RpcTimeout):
            await client.call("calls", "nobody serves", deadline=0.2)
        with Connection(settings) as other, other.channel() as channel:
            channel.delete(Queue("calls"))
        with pytest.raises(Unroutable):
            await client.call("calls", "nobody is there")
        assert client._answers == {}


@asynchronous
async def test_a_cancelled_call_leaves_nothing_and_the_next_is_answered(settings):
    async with AsyncConnection(settings) as client:
        task = asyncio.create_task(client.call("calls", "x"))
        await until(lambda: client._answers)
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()
        assert client._answers == {}
        async with serving(settings):
            assert (await client.call("calls", "y")).text == "Y"


@asynchronous
async def test_answers_are_heard_again_after_an_error_has_closed_the_channel_and_after_a_new_open(settings):
    async with serving(settings), AsyncConnection(settings) as client:
        assert (await client.call("calls", "a")).text == "A"
        client._publishing.channel.raw.basic_ack(99)  # no such delivery: 406
        await until(lambda: client._publishing.channel.ended.done())
        assert (await client.call("calls", "b")).text == "B"
        await client.close()
        await client.open()
        assert (await client.call("calls", "c")).text == "C"


@asynchronous
async def test_what_a_call_sets_itself_is_not_to_be_given(settings):
    async with AsyncConnection(settings) as client:
        for given in ({"reply_to": "mine"}, {"correlation_id": "1"}):
            with pytest.raises(ConfigurationError, match=f"message.{next(iter(given))}"):
                await client.call("calls", Message("x", **given))
        with pytest.raises(ConfigurationError, match="call\\(\\)"):
            await client.publish("calls", Message("x", reply_to=REPLY_TO))
        assert client._answers == {}


@asynchronous
async def test_an_answer_to_a_caller_who_is_gone_is_dropped_and_harms_nobody(settings):
    addresses = []

    async def remember(connection, request):
        addresses.append(request.reply_to)

    async with serving(settings, remember) as server:
        async with AsyncConnection(settings) as client:
            with pytest.raises(RpcTimeout):
                await client.call("calls", "x", deadline=0.3)
        await server.publish(addresses[0], "too late")
        assert server._known == {"calls"}  # such addresses are not collected
        async with AsyncConnection(settings) as client:
            with pytest.raises(RpcTimeout):
                await client.call("calls", "y", deadline=0.3)
        assert len(set(addresses)) == 2


@asynchronous
async def test_an_answer_sent_by_a_sync_connection_arrives(settings):
    ready = threading.Event()

    def serve():
        with SyncConnection(settings) as server:

            def handle(channel, method, properties, body):
                server.publish(properties.reply_to, Message(b"done", correlation_id=properties.correlation_id))
                server.stop()

            server.publish("calls", Message("warm-up", reply_to="nowhere"))  # has the queue there
            server.channel.basic_get("calls", auto_ack=True)
            ready.set()
            server.consume("calls", handle, timeout=20)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        await asyncio.to_thread(ready.wait, 20)
        async with AsyncConnection(settings) as client:
            assert (await client.call("calls", "x", deadline=10)).body == b"done"
    finally:
        await asyncio.to_thread(thread.join, 25)
    assert not thread.is_alive()


@asynchronous
async def test_an_answer_of_a_publisher_that_is_not_mandatory_arrives_and_is_confirmed(settings):
    confirmed = []

    def serve(delivery):
        request = delivery.message
        confirmed.append(publisher.publish(answer_to(request), routing_key=request.reply_to, mandatory=False))
        delivery.ack()

    publisher, consumer = Publisher(settings), Consumer(settings, Queue("calls"), serve)
    async with AsyncConnection(settings) as client:
        try:
            await asyncio.to_thread(publisher.open)
            await asyncio.to_thread(consumer.open)
            assert (await client.call("calls", "x", deadline=10)).text == "X"
            (confirmation,) = confirmed
            await asyncio.to_thread(confirmation.result, 10)
        finally:
            await asyncio.to_thread(consumer.close)
            await asyncio.to_thread(publisher.close)
