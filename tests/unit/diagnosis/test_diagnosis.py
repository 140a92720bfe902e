"""What a learner is told about an error."""

import inspect
import re
import socket
import ssl

import pika.exceptions as px
import pytest

from labkit import AuthenticationFailed, ChannelLost, ConnectError, LabkitError, OutcomeUnknown
from labkit.diagnosis.explain import explain
from labkit.verdicts import ADVICE

CLOSERS = {"client", "broker", "network", "nobody"}
EXAMPLES = [
    (px.ConnectionClosedByBroker(320, "CONNECTION_FORCED - night shift"), "broker", "CONNECTION_FORCED - night shift"),
    (px.ChannelClosedByBroker(404, "NOT_FOUND - no queue 'q' in vhost '/'"), "broker", "no queue 'q'"),
    (
        px.ProbableAccessDeniedError("probable: (\"ConnectionClosedByBroker: (530) 'NOT_ALLOWED - vhost x'\",)"),
        "broker",
        "the broker says: NOT_ALLOWED - vhost x",
    ),
    (px.StreamLostError("Transport indicated EOF"), "network", "without a close handshake"),
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


def test_a_wait_on_a_connection_that_has_ended_is_not_taken_for_the_programs_failure():
    told = explain(ValueError("Timeout closed before call"))
    assert (told.diagnosis, told.kind.value) == ("connection-used-after-its-end", "transient")


@pytest.mark.parametrize("error", [px.StreamLostError, px.IncompatibleProtocolError])
def test_bytes_that_are_no_amqp_are_told_from_a_lost_link(error):
    told = explain(
        error("Stream connection lost: InvalidFrameError: Invalid frame received: 'Invalid FRAME_END marker'")
    )
    assert (told.diagnosis, told.closed_by) == ("unreadable-frame", "client")


@pytest.mark.parametrize(
    ("text", "diagnosis"),
    [
        ("[SSL: WRONG_VERSION_NUMBER] wrong version number (_ssl.c:1006)", "not-tls"),
        (
            "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate",
            "certificate-not-trusted",
        ),
        ("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: certificate has expired", "certificate-expired"),
        ("[SSL: TLSV1_ALERT_UNKNOWN_CA] tlsv1 alert unknown ca (_ssl.c:1006)", "client-certificate-refused"),
        ("[SSL] something else", "tls-failed"),
    ],
)
def test_what_went_wrong_with_tls_is_read_from_openssls_text(text, diagnosis):
    assert explain(ssl.SSLError(1, text)).diagnosis == diagnosis


def test_the_name_of_a_virtual_host_may_hold_spaces():
    assert explain(px.ConnectionClosedByBroker(530, "NOT_ALLOWED - vhost of mine not found")).what.startswith(
        "the virtual"
    )
    assert explain(px.ConnectionClosedByBroker(530, "NOT_ALLOWED - vhost of mine not found")).diagnosis == (
        "virtual-host-missing"
    )


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


def family(cls: type[BaseException]) -> list[type[BaseException]]:
    """The class and all that labkit derives from it."""
    return [cls, *(each for child in cls.__subclasses__() for each in family(child) if "labkit" in each.__module__)]


OURS = [*family(LabkitError), KeyboardInterrupt]


def bare(cls: type[BaseException]) -> BaseException:
    """One of that class, with nothing said about its cause."""
    error = cls.__new__(cls)
    error.args = ("text",)
    return error


def test_the_whole_tree_of_our_errors_is_looked_at():
    assert len(OURS) >= 25


@pytest.mark.parametrize("error", OURS, ids=lambda error: error.__name__)
def test_each_of_our_errors_without_a_cause_is_told_with_advice_of_its_own(error):
    told = explain(bare(error))
    assert told.what != explain(ZeroDivisionError("x")).what
    assert told.closed_by in CLOSERS
    assert told.advice not in ADVICE.values()  # what to do about any error of its kind


PUBLIC = [each for each in OURS if each.__module__ == "labkit.errors" and each is not LabkitError]


@pytest.mark.parametrize("error", PUBLIC, ids=lambda error: error.__name__)
def test_each_of_our_errors_is_told_in_words_of_its_own(error):
    told = explain(bare(error))
    general = explain(bare(LabkitError))
    assert told.what != general.what
    assert told.advice != general.advice


def test_an_unknown_outcome_says_so_and_what_ended_the_link():
    error = OutcomeUnknown("x")
    error.__cause__ = px.StreamLostError("x")
    told = explain(error)
    assert told.what.startswith("no answer came about the message: it may be in the queue, or not; the TCP link ended")
    assert "duplicates" in told.advice
    assert told.closed_by == "network"


def test_what_ended_a_connection_says_what_to_do_about_it():
    reason = px.ChannelClosedByBroker(404, "NOT_FOUND")
    assert explain(ChannelLost("x", reason=reason)).advice == explain(reason).advice


@pytest.mark.parametrize("error", [*OURS, *pika_errors()], ids=lambda error: error.__name__)
def test_no_line_is_longer_than_ninety_columns_and_no_word_is_cut(error):
    arguments = (530, "NOT_ALLOWED - " + "access to vhost refused " * 9)
    instance = error(*arguments) if issubclass(error, px.ConnectionClosed | px.ChannelClosed) else bare(error)
    text = str(explain(instance))
    assert max(len(line) for line in text.splitlines()) <= 90
    told = explain(instance)
    assert told.advice in " ".join(text.split())
    assert " ".join(told.said.split()) in " ".join(text.split())
