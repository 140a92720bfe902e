"""Every adapter consumes, hears of a broker that goes in peace, and notices one that stands still."""

import asyncio
import subprocess
import sys
import threading
import time

import pika.exceptions as px
import pytest

from labkit import AsyncConnection, Connection, NotConnected, SyncConnection, Timeline, brokers
from labkit.events import ConnectionLost, ConnectionRecovered
from labkit.lab.adapters import MESSAGES
from labkit.wire import Proxy, Stall
from tests.broker.connections import BRISK, SLACK
from tests.broker.test_adapters import alike, on_every_adapter

pytestmark = pytest.mark.broker


def test_every_adapter_consumes_what_is_published_in_order_and_once(settings):
    with on_every_adapter(settings) as trials:
        for trial in trials:
            trial.wait_for("echoed")
            trial.consume()
        seen = {trial.adapter: trial.wait_for("consumed") for trial in trials}
        assert seen == alike(what="consumed", bodies=[str(number) for number in range(MESSAGES)], left=0)
        for trial in trials:  # the channel is as good as before
            trial.echo()
            trial.wait_for("echoed", count=2)
            trial.close()
            assert trial.wait_for("closed")["code"] == 200


TWISTED = """
import sys
from twisted.internet import defer, reactor
from labkit import BrokerSettings, ConnectionFactory

@defer.inlineCallbacks
def work():
    settings = BrokerSettings.from_url(sys.stdin.readline().strip())
    connection = yield ConnectionFactory(settings).twisted()
    channel = yield connection.channel()
    yield channel.basic_qos(prefetch_count=3)
    queue = (yield channel.queue_declare("", exclusive=True)).method.queue
    for number in range(25):
        yield channel.basic_publish("", queue, str(number).encode())
    inbox, tag = yield channel.basic_consume(queue)
    for number in range(25):
        _, method, _, body = yield inbox.get()
        assert body == str(number).encode() and not method.redelivered, body
        yield channel.basic_ack(method.delivery_tag)
    yield channel.basic_cancel(tag)
    left = (yield channel.queue_declare(queue, passive=True)).method.message_count
    ended = []
    connection.closed.addBoth(lambda reason: ended.append(type(reason).__name__))
    yield connection.close()
    return [left, *ended]

working = work()
working.addBoth(lambda result: (print(result), reactor.stop()))
reactor.callLater(45, reactor.stop)
reactor.run()
"""


def test_twisted_consumes_by_its_own_verbs(settings):
    done = subprocess.run(
        [sys.executable, "-c", TWISTED],
        input=settings.to_url(mask=False),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr, done.stdout.strip()) == (0, "", "[0, 'ConnectionClosedByClient']")


class Awaited(threading.Thread):
    """An AsyncConnection that consumes on a loop of its own; says what ended it."""

    def __init__(self, settings):
        super().__init__()
        self._settings, self.reason, self.lost_at = settings, None, None
        self.is_open = threading.Event()
        self.start()

    def run(self):
        asyncio.run(self._live())

    async def _live(self):
        ended = asyncio.Event()

        def closed(_, reason):
            self.reason, self.lost_at = reason, time.monotonic()
            ended.set()

        connection = await AsyncConnection(self._settings, on_close=closed).open()
        consuming = asyncio.create_task(connection.consume("awaited", lambda _: None))
        self.is_open.set()
        try:
            await asyncio.wait_for(ended.wait(), 60)
            with pytest.raises(NotConnected):
                await consuming
        finally:
            consuming.cancel()
            await connection.close()


@pytest.mark.own_broker
@pytest.mark.slow
def test_a_broker_that_is_restarted_in_peace_is_heard_of_on_every_adapter_and_nothing_hangs():
    with brokers.own() as broker:
        if "process" not in broker.capabilities:
            pytest.skip("this broker cannot be restarted")
        settings, timeline = broker.settings(), Timeline()
        sync = SyncConnection(settings).open()
        ours = Connection(settings, recovery=True, backoff=BRISK, listeners=[timeline]).open()
        awaited = Awaited(settings)
        with on_every_adapter(settings) as trials:
            for trial in trials:
                trial.wait_for("echoed")
                trial.consume()
                trial.wait_for("consumed")
            awaited.is_open.wait(30)
            broker.restart()
            for trial in trials:
                closed = trial.wait_for("closed")
                assert (closed["error"], closed["code"]) in [
                    ("ConnectionClosedByBroker", 320),
                    ("StreamLostError", None),
                ]
                assert closed["kind"] == "TRANSIENT"
                assert trial.wait_for("ended")["events"][-1] == "ConnectionLost"
        awaited.join(60)
        for reason in (awaited.reason, timeline.wait_for(ConnectionLost, timeout=20).reason):
            assert isinstance(reason, px.StreamLostError) or reason.reply_code == 320
        assert not sync.is_open
        timeline.wait_for(ConnectionRecovered, timeout=60)
        ours.close()
        with on_every_adapter(settings) as trials:
            for trial in trials:
                trial.wait_for("echoed")


@pytest.mark.own_broker
@pytest.mark.slow
def test_a_broker_that_stands_still_is_noticed_within_two_heartbeats_and_a_second():
    with brokers.own() as broker:
        if "process" not in broker.capabilities:
            pytest.skip("this broker cannot be stopped for a while")
        for heartbeat in (2, 4):
            settings, timeline = broker.settings().replace(heartbeat=heartbeat), Timeline()
            with Connection(settings, recovery=True, backoff=BRISK, listeners=[timeline]):
                awaited = Awaited(settings)
                awaited.is_open.wait(30)
                time.sleep(1.5 * heartbeat)  # not for a condition: an idle link, in the rhythm of its heartbeats
                broker.pause()
                began = time.monotonic()
                try:
                    lost = timeline.wait_for(ConnectionLost, timeout=30)
                    noticed = time.monotonic() - began
                    awaited.join(30)
                finally:
                    broker.resume()
                for reason, seconds in ((lost.reason, noticed), (awaited.reason, awaited.lost_at - began)):
                    assert isinstance(reason, px.AMQPHeartbeatTimeout)
                    assert seconds < 2 * heartbeat + 1 + SLACK
                timeline.wait_for(ConnectionRecovered, timeout=60)


@pytest.mark.slow
@pytest.mark.parametrize("heartbeat", [2, 4])
def test_a_line_that_goes_silent_is_noticed_within_two_heartbeats_and_a_second(settings, heartbeat):
    timeline = Timeline()
    with (
        Proxy(settings) as proxy,
        Connection(proxy.settings(heartbeat=heartbeat), recovery=True, backoff=BRISK, listeners=[timeline]),
    ):
        awaited = Awaited(proxy.settings(heartbeat=heartbeat))
        awaited.is_open.wait(30)
        with proxy.fault(Stall()):
            began = time.monotonic()
            lost = timeline.wait_for(ConnectionLost, timeout=30)
            noticed = time.monotonic() - began
            awaited.join(30)
        for reason, seconds in ((lost.reason, noticed), (awaited.reason, awaited.lost_at - began)):
            assert isinstance(reason, px.AMQPHeartbeatTimeout)
            assert seconds < 2 * heartbeat + 1 + SLACK
        timeline.wait_for(ConnectionRecovered, timeout=30)
