"""A message is delivered whatever its properties are; what cannot be read of them stays bytes, and nothing is lost."""

import asyncio
import contextlib
import json
import queue
import socket
import subprocess
import sys
import threading
import time

import pika.exceptions as px
import pytest

from labkit import (
    AsyncConnection,
    ConnectionFactory,
    ConnectionLost,
    Consumer,
    Message,
    MessageReturned,
    NotConnected,
    Publisher,
    Queue,
    SyncConnection,
    Timeline,
    Unroutable,
)
from labkit.lab.adapters import ADAPTERS
from tests.asynchronous import asynchronous
from tests.broker.connections import connected
from tests.broker.undecodable import GOOD, HEADERS, QUEUE, UNDECODABLE, put
from tests.view import until

pytestmark = pytest.mark.broker


@pytest.fixture
def odd(settings):
    """One message of each kind, and one behind them."""
    put(settings, *(GOOD + each for each in UNDECODABLE.values()))
    return [*UNDECODABLE.values(), b""]


def check(message, unread):
    """That is what was put there."""
    assert message.undecodable == unread
    if unread:
        assert (message.body, dict(message.headers), message.type) == (b"odd", HEADERS, "type")
    else:
        assert message.body == b"behind"


def depth(settings):
    with connected(settings) as (connection, _):
        return connection.channel().declare(Queue(QUEUE), passive=True).messages


def test_a_channel_gets_it_and_all_behind_it(settings, odd):
    with connected(settings) as (connection, timeline), connection.channel() as channel:
        for unread in odd:
            delivery = channel.get(QUEUE)
            check(delivery.message, unread)
            delivery.ack()
        assert channel.get(QUEUE) is None
        assert "ConnectionLost" not in timeline.names()


def test_a_channel_s_consumer_gets_it_and_all_behind_it(settings, odd):
    taken = queue.SimpleQueue()
    with connected(settings) as (connection, timeline), connection.channel() as channel:
        channel.consume(QUEUE, lambda delivery: (delivery.ack(), taken.put(delivery.message)))
        for unread in odd:
            check(taken.get(timeout=10), unread)
        assert "ConnectionLost" not in timeline.names()


def test_a_consumer_gets_it_on_its_first_link_and_a_publisher_beside_it_opens(settings, odd):
    taken = queue.SimpleQueue()
    with connected(settings, recovery=True) as (connection, timeline):
        with Consumer(connection, QUEUE, lambda delivery: (delivery.ack(), taken.put(delivery))):
            with Publisher(connection) as publisher:
                publisher.publish("one more", routing_key=QUEUE).result(timeout=10)
            deliveries = [taken.get(timeout=10) for _ in [*odd, "one more"]]
        for delivery, unread in zip(deliveries, odd, strict=False):
            check(delivery.message, unread)
            assert not delivery.redelivered
        assert "ConnectionLost" not in timeline.names()
        assert connection.generation == 1
    assert depth(settings) == 0


def test_a_publisher_sends_it_on_unchanged_and_is_told_that_it_came_back(settings, odd):
    with connected(settings, recovery=True) as (connection, timeline), connection.channel() as channel:
        channel.declare(Queue("next"))
        with Publisher(connection, stamp=False) as publisher:
            for unread in odd:
                message = channel.get(QUEUE).message
                publisher.publish(message, routing_key="next").result(timeout=10)
                if unread:
                    assert channel.get("next").message == message
                with pytest.raises(Unroutable):
                    publisher.publish(message, routing_key="nowhere").result(timeout=10)
            channel.publish(message, routing_key="next")
        assert len([each for each in timeline.events if isinstance(each, MessageReturned)]) == len(odd)
        assert "ConnectionLost" not in timeline.names()


def test_a_channel_with_confirms_sends_it_on_and_is_told_that_it_came_back(settings, odd):
    with connected(settings) as (connection, _), connection.channel(confirm=True) as channel:
        message = channel.get(QUEUE).message
        with pytest.raises(Unroutable):
            channel.publish(message, routing_key="nowhere", mandatory=True)
        channel.publish(message, routing_key=QUEUE, mandatory=True)


@pytest.mark.parametrize("headers", [{"half": 2.75}, {"list": [0.1, {"deep": -1e300}]}])
def test_a_float_arrives_as_it_was_sent_and_is_sent_on_as_it_arrived(settings, headers):
    with connected(settings, recovery=True) as (connection, _), connection.channel() as channel:
        channel.declare(Queue(QUEUE))
        with Publisher(connection) as publisher:
            publisher.publish(Message("x", headers=headers), routing_key=QUEUE).result(timeout=10)
            once = channel.get(QUEUE).message
            publisher.publish(once, routing_key=QUEUE, mandatory=False).result(timeout=10)
            channel.publish(Message("x", headers={**once.headers, "more": 1}), routing_key=QUEUE)
            assert once.headers == Message("x", headers=headers).headers
            assert channel.get(QUEUE).message.headers == once.headers
            assert channel.get(QUEUE).message.headers == {**once.headers, "more": 1}


def test_text_that_is_not_utf_8_stays_bytes_and_is_sent_on(settings):
    put(settings, GOOD, kind=b"\xff\0\xfe\xfd")
    with connected(settings, recovery=True) as (connection, _), connection.channel() as channel:
        message = channel.get(QUEUE).message
        assert (message.type, dict(message.headers), message.undecodable) == (b"\xff\0\xfe\xfd", HEADERS, b"")
        channel.declare(Queue("next"))
        with Publisher(connection, stamp=False) as publisher:
            publisher.publish(message, routing_key="next").result(timeout=10)
        assert channel.get("next").message == message


def test_a_sync_connection_consumes_it_and_sends_it_on(settings, odd):
    timeline = Timeline()
    taken = []
    with SyncConnection(settings, listeners=[timeline]) as connection:

        def take(channel, method, properties, body):
            taken.append(Message.received(properties, body))
            channel.basic_publish("", "next", body, properties)  # Pika's own, as it came
            connection.publish("next", taken[-1])
            if body == b"behind":
                connection.stop()

        connection.publish("next", "first")
        connection.consume(QUEUE, take, timeout=20)
        for message, unread in zip(taken, odd, strict=True):
            check(message, unread)
        _, _, body = connection.channel.basic_get("next", auto_ack=True)
        assert body == b"first"
        for message in taken:
            for _ in range(2):
                _, properties, body = connection.channel.basic_get("next", auto_ack=True)
                assert Message.received(properties, body).headers == message.headers
                assert Message.received(properties, body).undecodable == message.undecodable
    assert "ConnectionLost" not in timeline.names()


@asynchronous
async def test_an_async_connection_consumes_it_and_sends_it_on(settings, odd):
    taken = asyncio.Queue()
    async with AsyncConnection(settings) as connection:
        task = asyncio.create_task(connection.consume(QUEUE, taken.put_nowait))
        for unread in odd:
            message = await asyncio.wait_for(taken.get(), 10)
            check(message, unread)
            await connection.publish("next", message)
        task.cancel()
        await asyncio.wait({task})
        task = asyncio.create_task(connection.consume("next", taken.put_nowait))
        for unread in odd:
            check(await asyncio.wait_for(taken.get(), 10), unread)
        task.cancel()
        await asyncio.wait({task})
        assert connection.is_open


@pytest.mark.slow
def test_every_adapter_of_the_factory_gets_it(settings):
    unread = UNDECODABLE["tables 300 deep"]
    children = {}
    for adapter in ADAPTERS:
        put(settings, GOOD + unread, queue=adapter)
        command = [sys.executable, "-m", "tests.broker.undecodable", adapter]
        children[adapter] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    url = settings.to_url(mask=False) + "\n"
    said = {adapter: json.loads(child.communicate(url, timeout=100)[0]) for adapter, child in children.items()}
    expected = {
        "taken": [["odd", HEADERS, "type", unread.hex()], ["behind", {}, None, ""]],
        "events": ["ConnectAttempted", "ConnectionOpened", "ConnectionClosed"],
    }
    assert said == dict.fromkeys(ADAPTERS, expected)


def test_the_factory_s_blocking_connection_gets_it(settings, odd):
    connection = ConnectionFactory(settings).blocking()
    with contextlib.closing(connection):
        channel = connection.channel()
        for unread in odd:
            _, properties, body = channel.basic_get(QUEUE, auto_ack=True)
            check(Message.received(properties, body), unread)


class Meddler:
    """Passes bytes between a client and the broker, and slips in what neither has said."""

    def __init__(self, settings):
        self._broker = settings.addresses[0]
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.settings = settings.replace(host="127.0.0.1", port=self._listener.getsockname()[1], hosts=())
        self.clients = []
        self._sockets = [self._listener]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                broker = socket.create_connection(self._broker)
                self._sockets += [client, broker]
                self.clients.append(client)
                for source, target in ((client, broker), (broker, client)):
                    threading.Thread(target=self._pass, args=(source, target), daemon=True).start()

    def _pass(self, source, target):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


BAD = {
    "an unknown method": b"\1\0\0\0\0\0\4\0\1\0\1\xce",
    "no end mark": b"\x08\0\0\0\0\0\0!",
    "no frame": b"GET / HTTP/1.1\r\n\r\n",
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_a_frame_that_cannot_be_read_costs_one_link_and_the_reason_says_so(settings, bad):
    with Meddler(settings) as meddler, connected(meddler.settings, recovery=True) as (connection, timeline):
        meddler.clients[0].sendall(bad)
        timeline.wait_for(ConnectionLost, timeout=10)
        until(lambda: connection.is_open and connection.generation == 2)
        time.sleep(0.5)  # not for a condition: there is to be no second loss
        (lost,) = [each for each in timeline.events if isinstance(each, ConnectionLost)]
        assert isinstance(lost.reason, px.StreamLostError)
        assert "InvalidFrameError" in str(lost.reason)
        assert connection.generation == 2


def test_a_frame_that_cannot_be_read_ends_a_sync_connection_with_the_reason(settings):
    with Meddler(settings) as meddler, SyncConnection(meddler.settings) as connection:
        meddler.clients[0].sendall(BAD["an unknown method"])
        with pytest.raises(NotConnected, match="a method frame of 4 bytes on channel 0 cannot be read"):
            connection.consume(QUEUE, print, timeout=10)
