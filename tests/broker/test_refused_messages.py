"""A message over which the broker closes the channel is refused with the broker's words, where there are confirms."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest

from labkit import (
    AsyncConnection,
    ChannelLost,
    ConfigurationError,
    Message,
    MessageRefused,
    Outcome,
    OutcomeUnknown,
    PublishRejected,
    Queue,
    SyncConnection,
    Unroutable,
)
from labkit.connector.private_pika import BASIC_PUBLISH
from tests.asynchronous import asynchronous
from tests.broker.connections import connected, own_virtual_host
from tests.broker.exits import every_exit
from tests.broker.publishing import drained, publishing
from tests.view import until

pytestmark = pytest.mark.broker

LIMIT = 1000  # bytes
LARGE = "x" * (LIMIT + 1)
# Its answer is to come to a consumer of the same channel, and there is none.
NO_CONSUMER = Message("x", reply_to="amq.rabbitmq.reply-to")


@pytest.fixture(scope="module")
def settings(broker):
    with own_virtual_host(broker) as settings:
        yield settings


@pytest.fixture
def small_bodies(broker):
    """Have the broker refuse bodies above LIMIT, as it does above 16 MiB (128 MiB before 4.0) by default."""
    if "process" not in broker.capabilities:
        pytest.skip("needs a broker whose settings can be changed")
    before = broker.ctl("eval", "element(2, application:get_env(rabbit, max_message_size)).").strip()

    def limit(size):  # where RabbitMQ looks: 3.10, and 4.0
        broker.ctl("eval", f"application:set_env(rabbit, max_message_size, {size}).")
        broker.ctl("eval", f"persistent_term:put(max_message_size, {size}).")

    limit(LIMIT)
    yield
    limit(before)


@pytest.mark.parametrize(("message", "words"), [(LARGE, "message size 1001"), (NO_CONSUMER, "fast reply consumer")])
def test_every_exit_that_confirms_says_what_the_broker_says(settings, small_bodies, message, words):
    with every_exit(settings) as exits:
        for way in exits.ways:
            if way in ("Channel", "ConnectionPool", "ChannelPool"):  # these wait for no answer
                continue
            if way == "AsyncConnection" and message is NO_CONSUMER:  # it has call() for that, and says so
                with pytest.raises(ConfigurationError, match=r"reply_to: .* call\(\)"):
                    exits.publish(way, message)
                continue
            with pytest.raises(MessageRefused, match=rf"406.*{words}") as caught:
                exits.publish(way, message)
            assert isinstance(caught.value, PublishRejected)
            assert caught.value.reason.reply_code == 406


def test_a_channel_without_confirms_says_it_at_the_next_call(settings, small_bodies):
    with connected(settings) as (connection, _):
        channel = connection.channel()
        channel.publish(LARGE, routing_key="anywhere")
        until(lambda: not channel.is_open)
        with pytest.raises(ChannelLost, match="message size 1001"):
            channel.declare(Queue("q"))


def test_all_that_are_too_large_are_found_at_once_among_many(settings, small_bodies):
    with publishing(settings) as (publisher, _, timeline):
        bodies = [LARGE if number % 10 == 3 else str(number) for number in range(100)]
        sent = publisher.publish_many(bodies, routing_key="work")
        publisher.flush(timeout=30)
        wanted = [Outcome.REJECTED if body is LARGE else Outcome.CONFIRMED for body in bodies]
        assert [each.outcome for each in sent] == wanted
        assert publisher.connection.generation == 1
        assert timeline.names().count("ChannelClosed") <= 3  # one for them all, as a rule; one was the queue's
    assert {body.decode() for _, body in drained(settings)} == {body for body in bodies if body is not LARGE}


@asynchronous
async def test_tasks_that_publish_beside_a_message_that_is_too_large_are_not_told_so(settings, small_bodies):
    async with AsyncConnection(settings) as connection:
        bodies = [LARGE if number == 25 else str(number) for number in range(50)]
        outcomes = await asyncio.gather(
            *(connection.publish("work-aio", body) for body in bodies), return_exceptions=True
        )
        assert isinstance(outcomes[25], MessageRefused)
        others = {type(each) for number, each in enumerate(outcomes) if number != 25}
        assert others <= {type(None), OutcomeUnknown, ChannelLost}
        await connection.publish("work-aio", "goes on")


def test_threads_that_publish_beside_a_message_that_is_too_large_are_not_told_so(settings, small_bodies):
    with connected(settings) as (connection, _), ThreadPoolExecutor(8) as threads:
        channel = connection.channel(confirm=True)
        channel.declare(Queue("beside"))
        bodies = [LARGE if number == 25 else str(number) for number in range(50)]
        running = [threads.submit(channel.publish, body, routing_key="beside") for body in bodies]
        outcomes = [each.exception(30) for each in running]
        assert isinstance(outcomes[25], MessageRefused)
        others = {type(each) for number, each in enumerate(outcomes) if number != 25}
        assert others <= {type(None), OutcomeUnknown, ChannelLost}


def test_what_closed_a_channel_is_known_by_its_method(settings):
    """The text for a missing exchange is the same whatever was done with it."""
    with connected(settings) as (connection, _):
        asked, published = connection.channel(confirm=True), connection.channel(confirm=True)
        with pytest.raises(ChannelLost, match="404"):
            asked.declare(Queue("missing"), passive=True)
        with pytest.raises(Unroutable):
            published.publish("x", exchange="missing", routing_key="k")
        assert asked._core._closing_method() == (50, 10)  # Queue.Declare
        assert published._core._closing_method() == BASIC_PUBLISH


def test_a_sync_channel_that_something_else_closed_refuses_no_message(settings):
    with SyncConnection(settings) as connection:
        connection.publish("work-sync", "x")
        connection.channel.basic_ack(99)  # the broker's answer comes while the next message waits for its own
        with pytest.raises(ChannelLost, match="unknown delivery tag"):
            connection.publish("work-sync", "y")
