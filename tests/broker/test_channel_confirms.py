"""A channel in confirm mode: publish() returns when the broker has the message, and says so when it has not."""

import threading

import pytest

from labkit import Message, OutcomeUnknown, PublishRejected, Queue, Unroutable
from labkit.wire import Proxy, Stall
from tests.broker.connections import connected, own_virtual_host
from tests.view import until

pytestmark = pytest.mark.broker


@pytest.fixture(scope="module")
def settings(broker):
    with own_virtual_host(broker) as settings:
        yield settings


def test_publish_returns_when_the_broker_has_the_message(settings):
    with connected(settings) as (connection, _):
        channel = connection.channel(confirm=True)
        channel.declare(Queue("work"))
        for number in range(20):
            channel.publish(str(number), routing_key="work")
        assert channel.declare(Queue("work"), passive=True).messages == 20


def test_threads_on_one_channel_wait_at_the_same_time(settings):
    with connected(settings) as (connection, _):
        channel = connection.channel(confirm=True)
        channel.declare(Queue("many"))

        def publish():
            for _ in range(25):
                channel.publish("x", routing_key="many")

        threads = [threading.Thread(target=publish) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert channel.declare(Queue("many"), passive=True).messages == 200


def test_message_that_nobody_would_receive_is_unroutable_and_the_others_are_not(settings):
    with connected(settings) as (connection, _):
        channel = connection.channel(confirm=True)
        with pytest.raises(Unroutable, match="no queue for 'nowhere'"):
            channel.publish(Message("x", message_id="m1"), routing_key="nowhere", mandatory=True)
        channel.publish("x", routing_key="nowhere")
        assert channel.is_open


def test_message_that_a_full_queue_refuses_is_rejected(settings):
    with connected(settings) as (connection, _):
        channel = connection.channel(confirm=True)
        channel.declare(Queue("full", arguments={"x-max-length": 1, "x-overflow": "reject-publish"}))
        channel.publish("fits", routing_key="full")
        with pytest.raises(PublishRejected, match="did not take"):
            channel.publish("too much", routing_key="full")
        assert channel.is_open


def test_exchange_that_is_missing_makes_the_message_unroutable_and_says_404(settings):
    with connected(settings) as (connection, _):
        channel = connection.channel(confirm=True)
        with pytest.raises(Unroutable, match="404") as caught:
            channel.publish("x", exchange="missing", routing_key="k")
        assert (caught.value.exchange, caught.value.reply_code) == ("missing", 404)
        assert connection.is_open


def test_answer_that_does_not_come_leaves_the_outcome_unknown(settings):
    with Proxy(settings) as proxy, connected(proxy.settings()) as (connection, _):
        channel = connection.channel(confirm=True)
        with proxy.fault(Stall(), direction="downstream"):
            with pytest.raises(OutcomeUnknown):
                channel.publish(Message("x", message_id="m1"), routing_key="work", timeout=0.3)
            until(lambda: not channel.is_open)
        assert connection.is_open
