"""One answer to "can this be sent?" at every exit: sent, or a ConfigurationError with the same field; nothing lost."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples

from labkit import (
    Binding,
    ConfigurationError,
    Connection,
    Consumer,
    Exchange,
    Message,
    Outcome,
    Publisher,
    Queue,
)
from labkit.content.sendable import FRAME_ROOM
from labkit.wire import Refuse
from tests.broker.connections import own_virtual_host
from tests.broker.exits import SENT, every_exit
from tests.broker.publishing import drained, publishing
from tests.tables import messages
from tests.view import until

pytestmark = pytest.mark.broker

FRAME_MAX = 8192  # the smallest that Pika 1.5 and RabbitMQ 4.1 agree on
EXAMPLES = 60


@pytest.fixture(scope="module")
def settings(broker):
    with own_virtual_host(broker) as settings:
        yield settings


@pytest.fixture(scope="module")
def exits(settings):
    with every_exit(settings.replace(frame_max=FRAME_MAX)) as exits:
        yield exits


def check_answers(exits, message):
    """The same by every way: sent, or refused by the same field; and nothing is lost by it."""
    answers = exits.send(message)
    assert set(answers.values()) in ({SENT}, {"body"}, {"headers"})
    assert exits.losses() == []
    if not isinstance(message, Message | bytes | str):
        assert set(answers.values()) == {"body"}


@pytest.mark.timeout(300)
@given(message=messages(FRAME_MAX))
@examples(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck), derandomize=True)
def test_every_exit_gives_the_same_answer_and_loses_nothing(exits, message):
    check_answers(exits, message)


def test_headers_are_sent_up_to_the_size_of_a_frame_and_refused_above_it(exits):
    fits = Message(b"", headers={"a": "x" * 7000})
    rest = FRAME_MAX - FRAME_ROOM - sum(map(len, fits.to_pika().encode()))
    for extra, answer in ((0, SENT), (1, "headers")):
        message = Message(b"", headers={"a": "x" * (7000 + rest + extra)}, content_type="application/octet-stream")
        assert set(exits.send(message).values()) == {answer}
    assert exits.losses() == []


def test_what_broke_pika_is_sent_or_named(exits):
    assert set(exits.send(Message("x", headers={"price": 2.75})).values()) == {SENT}
    assert set(exits.send("caf\udce9").values()) == {"body"}
    assert exits.losses() == []


def test_a_float_in_a_header_arrives_as_it_was_sent(settings, view):
    with Publisher(settings) as publisher, publisher.connection.channel() as channel:
        channel.declare(Queue("floats"))
        publisher.publish(Message("x", headers={"price": 2.75, "inside": [{"a": -0.5}]}), routing_key="floats").result()
    (got,) = view.post(
        f"queues/{settings.virtual_host}/floats/get", count=1, ackmode="ack_requeue_false", encoding="auto"
    )
    assert got["properties"]["headers"] == {"price": 2.75, "inside": [{"a": -0.5}]}


def test_publish_many_returns_one_confirmation_for_each_whatever_it_is(settings):
    with publishing(settings) as (publisher, _, timeline):
        odd = ["a", "caf\udce9", "b", None, Message("x", headers={"a": "b" * 131_000}), b"c"]
        sent = publisher.publish_many(odd, routing_key="work")
        publisher.flush(timeout=20)
        good, bad = Outcome.CONFIRMED, Outcome.NOT_SENT
        assert [each.outcome for each in sent] == [good, bad, good, bad, bad, good]
        for number, field in ((1, "body"), (3, "body"), (4, "headers")):
            with pytest.raises(ConfigurationError) as caught:
                sent[number].result()
            assert caught.value.field == field
        assert publisher.connection.generation == 1
        assert timeline.names().count("ChannelOpened") == 2  # the one that declared the queue, and ours
    assert [body for _, body in drained(settings)] == [b"a", b"b", b"c"]


def test_publish_raises_at_the_call_and_harms_no_other(settings):
    bad = [
        ({"message": "x", "routing_key": "k" * 300}, "routing_key"),
        ({"message": "x", "routing_key": None}, "routing_key"),
        ({"message": "x", "routing_key": "work", "exchange": b"e"}, "exchange"),
        ({"message": "x", "routing_key": "work", "mandatory": "no"}, "mandatory"),
        ({"message": None, "routing_key": "work"}, "body"),
        ({"message": Message("x", headers={"a": "b" * 131_000}), "routing_key": "work"}, "headers"),
    ]
    with publishing(settings) as (publisher, _, timeline):
        sent = []
        for number in range(42):
            arguments, field = bad[number % len(bad)]
            with pytest.raises(ConfigurationError) as caught:
                publisher.publish(**arguments)
            assert caught.value.field == field
            sent.append(publisher.publish("x", routing_key="work" if number % 2 else "nowhere"))
        publisher.flush(timeout=20)
        wanted = [Outcome.CONFIRMED if number % 2 else Outcome.RETURNED for number in range(42)]
        assert [each.outcome for each in sent] == wanted
        assert (publisher.connection.generation, publisher.in_flight) == (1, 0)
        assert timeline.names().count("ChannelOpened") == 2
    drained(settings)


@pytest.fixture
def smaller_frames(broker):
    """Have the broker agree on smaller frames from now on."""
    if "process" not in broker.capabilities:
        pytest.skip("needs a broker whose settings can be changed")
    before = broker.ctl("eval", "element(2, application:get_env(rabbit, frame_max)).").strip()
    yield lambda: broker.ctl("eval", f"application:set_env(rabbit, frame_max, {FRAME_MAX}).")
    broker.ctl("eval", f"application:set_env(rabbit, frame_max, {before}).")


def test_headers_too_large_for_the_next_links_frames_are_named_and_the_link_stays(settings, smaller_frames):
    """The message is let in while there is no link, for frames as large as any; what comes then has smaller ones."""
    large = Message("x", headers={"a": "b" * 20_000})
    with publishing(settings) as (publisher, proxy, _), ThreadPoolExecutor() as threads:
        publisher.publish(large, routing_key="work").result()
        smaller_frames()
        with proxy.fault(Refuse()):
            proxy.cut()
            until(lambda: not publisher.connection.is_open)
            waiting = threads.submit(publisher.publish, large, routing_key="work")
            with pytest.raises(TimeoutError):
                waiting.result(0.2)
        with pytest.raises(ConfigurationError, match="frame_max") as caught:
            waiting.result(20).result()
        assert caught.value.field == "headers"
        publisher.publish("y", routing_key="work").result()
        assert publisher.connection.generation == 2
    drained(settings)


def test_arguments_of_a_declaration_larger_than_a_frame_cost_no_connection(settings):
    with Connection(settings.replace(frame_max=FRAME_MAX)) as connection, connection.channel() as channel:
        large = {"a": "x" * FRAME_MAX}
        for what in (Queue("q", arguments=large), Exchange("e", arguments=large), Binding("e", "q", arguments=large)):
            for verb in (channel.declare, channel.delete) if isinstance(what, Binding) else (channel.declare,):
                with pytest.raises(ConfigurationError, match=r"^arguments: .*frame_max"):
                    verb(what)
        with pytest.raises(ConfigurationError, match=r"^arguments: "):
            Consumer(settings.replace(frame_max=FRAME_MAX), Queue("q", arguments=large), print)
        channel.declare(Queue("q"))
        assert connection.generation == 1
