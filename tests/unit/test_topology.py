import pika
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit import Binding, ConfigurationError, Exchange, Message, Queue


def test_text_is_sent_as_utf_8_and_labelled_as_text():
    message = Message("grüß")
    assert message.body == "grüß".encode()
    assert message.text == "grüß"
    assert (message.content_type, message.content_encoding) == ("text/plain", "utf-8")


def test_bytes_are_sent_as_they_are():
    message = Message(bytearray(b"\x00\xff"))
    assert message.body == b"\x00\xff"
    assert (message.content_type, message.content_encoding) == ("application/octet-stream", None)


def test_own_content_type_wins():
    assert Message("{}", content_type="application/json").content_type == "application/json"


def test_messages_are_persistent_unless_told_otherwise():
    assert Message("x").to_pika().delivery_mode == 2
    assert Message("x", persistent=False).to_pika().delivery_mode == 1


def test_expiration_is_seconds_here_and_milliseconds_on_the_wire():
    assert Message("x", expiration=1.5).to_pika().expiration == "1500"


def test_a_message_is_left_as_it_is_and_a_body_is_wrapped():
    message = Message("x")
    assert Message.of(message) is message
    assert Message.of("x") == message
    assert hash(Message.of("x")) == hash(message)


@given(
    st.binary(max_size=20) | st.text(st.characters(exclude_categories=("Cs",)), max_size=20),
    st.dictionaries(st.text("abc", min_size=1), st.integers(-9, 9) | st.booleans(), max_size=2),
    st.none() | st.text("xyz"),
    st.none() | st.integers(0, 255),
    st.none() | st.integers(0, 10**6).map(lambda ms: ms / 1000),
    st.booleans(),
)
def test_message_comes_back_from_what_pika_delivers(body, headers, message_id, priority, expiration, persistent):
    sent = Message(
        body, headers=headers, message_id=message_id, priority=priority, expiration=expiration, persistent=persistent
    )
    encoded = b"".join(sent.to_pika().encode())
    properties = pika.BasicProperties()
    properties.decode(encoded)
    assert Message.received(properties, sent.body) == sent


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("body", {"body": None}),
        ("body", {"body": {"a": 1}}),
        ("headers", {"body": "x", "headers": {"a": {1}}}),
        ("headers", {"body": "x", "headers": [1]}),
        ("message_id", {"body": "x", "message_id": "x" * 256}),
        ("priority", {"body": "x", "priority": 256}),
        ("expiration", {"body": "x", "expiration": -1}),
        ("content_type", {"body": "x", "content_type": 3}),
        ("undecodable", {"body": "x", "undecodable": "text"}),
    ],
)
def test_message_that_cannot_be_sent_is_refused(field, arguments):
    with pytest.raises(ConfigurationError) as caught:
        Message(**arguments)
    assert caught.value.field == field


@pytest.mark.parametrize(
    "make",
    [
        lambda: Queue("q" * 256),
        lambda: Queue(3),
        lambda: Queue("q", durable="yes"),
        lambda: Queue("q", arguments=[1]),
        lambda: Queue("q", arguments={"x": object()}),
        lambda: Exchange(""),
        lambda: Exchange("e", ""),
        lambda: Exchange("e", internal=None),
        lambda: Binding("", "q"),
        lambda: Binding(Queue("q"), Exchange("e")),
        lambda: Binding("e", None),
        lambda: Binding("e", kind="exchange"),
        lambda: Binding("e", "q", "k" * 256),
        lambda: Binding("e", "q", kind="both"),
    ],
)
def test_an_entity_that_cannot_be_is_refused_by_the_name_of_its_field(make):
    with pytest.raises(ConfigurationError, match=r"^(Queue|Exchange|Binding)\.\w+(\[.*\])?: .*allowed: "):
        make()


def test_a_binding_takes_names_or_entities_and_knows_what_it_leads_to():
    assert Binding(Exchange("e"), Queue("q"), "k") == Binding("e", "q", "k")
    assert Binding("e", Exchange("f")).kind == "exchange"
    assert Binding("e", "f", kind="exchange") == Binding(Exchange("e"), Exchange("f"))


def test_bindings_with_other_arguments_are_others_and_entities_can_be_hashed():
    by_level = [Binding("e", "q", arguments={"level": level}) for level in ("info", "error", "error")]
    assert len(set(by_level)) == 2
    assert len({Queue("q"), Queue("q"), Queue("q", arguments={"x-max-length": 1})}) == 2
    assert len({Exchange("e"), Exchange("e", "fanout")}) == 2


def test_an_entity_does_not_change_with_what_it_was_made_of():
    arguments = {"x-max-length": 1}
    queue = Queue("q", arguments=arguments)
    arguments["x-max-length"] = 2
    assert queue.arguments == {"x-max-length": 1}
