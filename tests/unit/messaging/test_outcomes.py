"""Over which message did the broker close the channel? Its words, and what was on its way."""

from dataclasses import dataclass

import pika.exceptions as px
import pytest

from labkit import MessageRefused, Unroutable
from labkit.connection.refusals import refusal, suspects

TOO_LARGE = "PRECONDITION_FAILED - message size 2000 is larger than configured max size 1000"


@dataclass(frozen=True)
class Sent:
    exchange: str = ""
    size: int = 1


A, B, DEFAULT, LARGE, LARGER = Sent("a"), Sent("b"), Sent(), Sent(size=1001), Sent("a", 2000)


@pytest.mark.parametrize(
    ("code", "text", "sent", "found", "is_certain"),
    [
        (404, "NOT_FOUND - no exchange 'a' in vhost '/'", [A, B, DEFAULT], [A], True),
        (404, "NOT_FOUND - no exchange 'a' in vhost '/'", [A, B, A], [A, A], False),
        (403, "ACCESS_REFUSED - write access to exchange 'amq.default' refused", [A, DEFAULT], [DEFAULT], True),
        (403, "ACCESS_REFUSED - in words of a later version", [A, B], [A, B], False),
        (406, TOO_LARGE, [A, LARGE, LARGER, B], [LARGE, LARGER], True),
        (406, TOO_LARGE, [A, B], [A, B], False),
        (406, "PRECONDITION_FAILED - fast reply consumer does not exist", [A], [A], True),
        (406, "PRECONDITION_FAILED - fast reply consumer does not exist", [A, B], [A, B], False),
        (406, "PRECONDITION_FAILED", [], [], False),
    ],
)  # fmt: skip
def test_the_words_of_the_broker_find_the_message(code, text, sent, found, is_certain):
    assert suspects(sent, px.ChannelClosedByBroker(code, text)) == (found, is_certain)


def test_a_missing_exchange_is_no_route_and_all_else_a_refusal():
    missing = refusal(px.ChannelClosedByBroker(404, "no exchange 'a'"), exchange="a", routing_key="k")
    assert isinstance(missing, Unroutable)
    assert (missing.exchange, missing.routing_key, missing.reply_code) == ("a", "k", 404)
    reason = px.ChannelClosedByBroker(406, TOO_LARGE)
    refused = refusal(reason, exchange="", routing_key="k")
    assert isinstance(refused, MessageRefused)
    assert refused.reason is refused.__cause__ is reason
    assert TOO_LARGE in str(refused)
