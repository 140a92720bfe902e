"""What a learner is told about an error."""

import inspect
import re
import socket

import pika.exceptions as px
import pytest

from labkit import AuthenticationFailed, ConnectError
from labkit.lab.diagnosis import explain

CLOSERS = {"client", "broker", "network", "nobody"}
EXAMPLES = [
    (px.ConnectionClosedByBroker(320, "CONNECTION_FORCED - night shift"), "broker", "CONNECTION_FORCED - night shift"),
    (px.ChannelClosedByBroker(404, "NOT_FOUND - no queue 'q' in vhost '/'"), "broker", "no queue 'q'"),
    (
        px.ProbableAccessDeniedError("probable: (\"ConnectionClosedByBroker: (530) 'NOT_ALLOWED - vhost x'\",)"),
        "broker",
        "the broker says: NOT_ALLOWED - vhost x",
    ),
    (px.StreamLostError("Transport indicated EOF"), "network", "without a goodbye"),
    (px.AMQPHeartbeatTimeout("none"), "client", "several heartbeats"),
    (px.ConnectionClosedByClient(200, "Normal shutdown"), "client", "this program closed the connection"),
    (socket.gaierror(-2, "Name or service not known"), "nobody", "does not resolve"),
    (ConnectionRefusedError(111, "Connection refused"), "nobody", "nothing listens"),
    (ZeroDivisionError("division by zero"), "nobody", "failed by itself"),
]


@pytest.mark.parametrize(("error", "closer", "text"), EXAMPLES, ids=lambda value: type(value).__name__)
def test_an_error_is_told_with_who_closed_and_why(error, closer, text):
    told = explain(error)
    assert told.closed_by == closer
    assert text in str(told)
    assert "what to do: " in str(told)


def pika_errors() -> list[type[BaseException]]:
    classes = [each for _, each in inspect.getmembers(px, inspect.isclass) if issubclass(each, Exception)]
    assert len(classes) > 30
    return classes


@pytest.mark.parametrize("error", pika_errors(), ids=lambda error: error.__name__)
def test_every_pika_error_has_a_text_without_numbers_of_this_machine(error):
    arguments = (404, "gone") if issubclass(error, px.ConnectionClosed | px.ChannelClosed) else ()
    instance = error.__new__(error, *arguments)
    instance.args = arguments
    if arguments:
        instance = error(*arguments)
    told = explain(instance)
    assert told.what
    assert told.advice
    assert told.closed_by in CLOSERS
    assert not re.search(r"\d{4,}|0x", str(told).replace("0-9-1", ""))


def test_a_peer_that_hangs_up_at_once_is_the_networks_doing_and_worth_a_retry():
    error = ValueError("Expected connected socket, but getpeername() failed: error=OSError(107, 'not connected')")
    told = explain(error)
    assert (told.closed_by, told.kind.value) == ("network", "transient")


def test_the_cause_of_our_own_error_is_what_is_explained():
    error = ConnectError("nothing worked")
    error.__cause__ = ConnectionRefusedError(111, "Connection refused")
    assert "nothing listens on that port" in str(explain(error))


def test_our_own_refusal_is_explained_by_what_the_broker_said():
    error = AuthenticationFailed("refused")
    error.__cause__ = px.ProbableAuthenticationError("(\"ConnectionClosedByBroker: (403) 'ACCESS_REFUSED - no'\",)")
    told = explain(error)
    assert told.what == "the broker does not accept this user name and password (403)"
    assert (told.said, told.closed_by) == ("ACCESS_REFUSED - no", "broker")


def test_a_close_asked_for_by_the_program_quotes_no_broker():
    assert explain(px.ConnectionClosedByClient(200, "Normal shutdown")).said == ""
