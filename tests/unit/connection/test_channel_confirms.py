"""What the broker's answers mean for those who wait for them, on a channel with confirms. No broker."""

from types import SimpleNamespace

import pika
import pika.exceptions as px
import pytest
from pika.spec import Basic

from labkit import Message, PublishRejected, Unroutable
from labkit.connection.channel_confirms import Confirms

NOT_FOUND = px.ChannelClosedByBroker(404, "NOT_FOUND - no exchange 'events' in vhost '/'")


@pytest.fixture
def told():
    return {}


@pytest.fixture
def confirms(told):
    """Three messages on their way: 1 and 2 to the default exchange, 3 to another."""
    confirms = Confirms()
    for number, exchange in ((1, ""), (2, ""), (3, "events")):
        tell = told.setdefault(number, []).append
        confirms.expect(exchange, "work", Message(str(number)), tell)
    return confirms


def answer(method):
    return SimpleNamespace(method=method)


def test_each_hears_once_and_an_answer_that_comes_again_tells_nobody(confirms, told):
    confirms.answered(answer(Basic.Ack(delivery_tag=2, multiple=True)))
    confirms.answered(answer(Basic.Ack(delivery_tag=2)))
    confirms.answered(answer(Basic.Nack(delivery_tag=9)))
    assert told == {1: [None], 2: [None], 3: []}


def test_a_message_that_is_refused_or_comes_back_is_told_with_its_place(confirms, told):
    method = Basic.Return(reply_code=312, reply_text="NO_ROUTE", exchange="events", routing_key="work")
    confirms.returned(method, pika.BasicProperties(), b"3")
    confirms.answered(answer(Basic.Nack(delivery_tag=1)))
    confirms.answered(answer(Basic.Ack(delivery_tag=3, multiple=True)))
    [refused], [taken], [unroutable] = told.values()
    assert isinstance(refused, PublishRejected)
    assert taken is None
    assert isinstance(unroutable, Unroutable)
    assert "no queue for 'work' of exchange 'events'" in str(unroutable)


def test_only_the_message_over_which_the_broker_closed_the_channel_is_told_so(confirms, told):
    confirms.refused(px.ChannelClosedByClient(200, "closed"))
    assert told == {1: [], 2: [], 3: []}
    confirms.refused(NOT_FOUND)
    assert (told[1], told[2], type(told[3][0])) == ([], [], Unroutable)
