"""Where a consumer of a stream begins, and where it goes on."""

import datetime

import pytest

from labkit import Message
from labkit.content.stream_position import MARGIN, StreamPosition, offset_of

NOON = datetime.datetime(2026, 1, 1, 12, tzinfo=datetime.UTC)
LATER = NOON + datetime.timedelta(hours=1)


def at(offset):
    return {} if offset is None else {"x-stream-offset": offset}


def stream(offset=None):
    return StreamPosition(at(offset), "stream")


def reads(position, *offsets):
    for tag, offset in enumerate(offsets, 1):
        position.delivered(tag, offset)


@pytest.mark.parametrize("offset", ["first", "last", "next", "1h", 7, NOON])
def test_it_begins_where_it_is_told(offset):
    assert stream(offset).begin(NOON) == offset


def test_it_begins_with_what_is_published_next_if_nothing_is_said():
    assert stream().begin(NOON) == "next"


@pytest.mark.parametrize("offset", [None, "first", "last", "next", "1h", 7, NOON])
def test_it_goes_on_with_the_first_message_that_was_not_settled(offset):
    position = stream(offset)
    position.begin(NOON)
    reads(position, 7, 8, 9, 10)
    position.settled(1)
    position.settled(3)
    assert position.begin(LATER) == 8
    reads(position, 8)
    position.settled(1)
    assert position.begin(LATER) == 9
    assert position.begin(LATER) == 9  # nothing came meanwhile


@pytest.mark.parametrize("offset", ["first", "last", "1h", 7, NOON])
def test_until_the_first_message_it_begins_in_the_same_place_again(offset):
    position = stream(offset)
    assert [position.begin(NOON), position.begin(LATER)] == [offset, offset]


@pytest.mark.parametrize("offset", [None, "next"])
def test_until_the_first_message_next_is_what_has_come_since_the_first_time(offset):
    position = stream(offset)
    assert [position.begin(NOON), position.begin(LATER), position.begin(LATER)] == [
        "next",
        NOON - MARGIN,
        NOON - MARGIN,
    ]


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
def test_a_queue_that_was_declared_as_another_kind_is_none(queue_type):
    position = StreamPosition({}, queue_type)
    assert position.begin(NOON) is None
    assert not position.finds_stream(7)
    assert position.begin(LATER) is None


def test_a_first_message_without_a_number_says_that_the_queue_is_none():
    position = StreamPosition({})
    assert position.begin(NOON) is None
    assert not position.finds_stream(None)
    assert not position.finds_stream(7)  # shovelled
    assert position.begin(LATER) is None


def test_a_first_message_with_a_number_is_asked_for_again_by_that():
    position = StreamPosition({})
    assert position.begin(NOON) is None
    assert position.finds_stream(7)
    assert position.begin(NOON) == 7
    assert not position.finds_stream(7)


def test_a_first_message_with_a_number_after_another_link_is_not_the_first_that_there_was():
    position = StreamPosition({})
    assert [position.begin(NOON), position.begin(LATER)] == [None, None]
    assert position.finds_stream(9)
    assert position.begin(LATER) == NOON - MARGIN


def test_a_broker_that_refuses_an_offset_has_the_last_word_unless_somebody_asked_for_it():
    guessed = StreamPosition({})
    guessed.begin(NOON)
    guessed.finds_stream(7)
    assert guessed.finds_none()
    assert guessed.begin(NOON) is None
    for said in (stream(), StreamPosition(at("first"))):
        assert not said.finds_none()
        assert said.is_stream


def test_a_new_stream_is_read_from_its_first_message():
    position = stream(7)
    position.begin(NOON)
    reads(position, 7, 8)
    position.restart()
    assert position.begin(LATER) == "first"


@pytest.mark.parametrize("offset", [None, "first", "last", "next", 7])
def test_a_stream_that_is_missing_from_the_start_is_begun_where_it_was_told(offset):
    position = stream(offset)
    position.restart()
    assert position.begin(NOON) == (offset or "next")


@pytest.mark.parametrize(
    ("headers", "offset"), [({}, None), ({"x-stream-offset": 3}, 3), ({"x-stream-offset": "3"}, None)]
)
def test_the_number_of_a_message_is_in_its_header(headers, offset):
    assert offset_of(Message("x", headers=headers)) == offset
