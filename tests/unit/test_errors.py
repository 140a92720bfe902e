import asyncio
import inspect
import pickle
import re
import socket
import ssl

import pika.exceptions as px
import pytest
from pika.adapters.utils import connection_workflow as workflow

from labkit import errors
from labkit.connector.failures import connect_error
from labkit.diagnosis.explain import explain
from labkit.errors import Kind, LabkitError, classify, describe
from labkit.verdicts import PLACES, REPLY_CODES, SPEAKS_TLS, root_cause

PIKAS = [
    cls
    for module in (px, workflow)
    for _, cls in inspect.getmembers(module, inspect.isclass)
    if issubclass(cls, BaseException) and cls.__module__ == module.__name__
]
OURS = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, LabkitError)]


def raised(error, cause):
    error.__cause__ = cause
    return error


def wrapped(cause):
    """As BlockingConnection hands on a failed TCP connect."""
    return px.AMQPConnectionError(workflow.AMQPConnectorSocketConnectError(cause))


def test_every_exception_class_of_pika_has_a_place():
    assert len(PIKAS) > 40
    assert [cls.__name__ for cls in PIKAS if cls not in PLACES] == []


def test_tree_in_the_docstring_names_every_class():
    assert len(OURS) > 25
    named = set(re.findall(r"\w+", errors.__doc__))
    assert [cls.__name__ for cls in OURS if cls.__name__ not in named] == []


def test_every_error_of_ours_is_exported():
    assert {cls.__name__ for cls in OURS} <= set(errors.__all__)


def test_timeouts_are_timeout_errors_and_configuration_errors_are_value_errors():
    assert issubclass(errors.PoolTimeout, TimeoutError)
    assert issubclass(errors.DeadlineExceeded, TimeoutError)
    assert issubclass(errors.RpcTimeout, TimeoutError)
    assert issubclass(errors.MissingExtra, ValueError)
    assert not issubclass(errors.ConnectError, OSError)


@pytest.mark.parametrize(
    "error",
    [
        errors.ConnectError("m", hosts=["a:1"], attempts=2, elapsed=0.5),
        errors.RemoteError("KeyError", "x"),
        errors.MissingExtra("flask", "flask"),
        errors.ChannelLost("m", reason=px.ChannelClosedByBroker(404, "x")),
        errors.PoolTimeout("m", timeout=1.0),
    ],
)
def test_error_keeps_its_facts_through_pickle(error):
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert {k: repr(v) for k, v in vars(again).items()} == {k: repr(v) for k, v in vars(error).items()}


BROKER_403 = px.ProbableAuthenticationError("ConnectionClosedByBroker: (403) 'ACCESS_REFUSED - Login was refused'")
VHOST_MISSING = px.ProbableAccessDeniedError("ConnectionClosedByBroker: (530) 'NOT_ALLOWED - vhost x not found'")
LIMIT = px.ProbableAccessDeniedError(
    "ConnectionClosedByBroker: (530) \"NOT_ALLOWED - access to vhost 'x' refused for user 'u': "
    'connection limit (0) is reached"'
)
# As RabbitMQ 3.10.8, 4.0.5 and 4.3.6 say it; the broker tests ask the broker of the run.
USER_LIMIT = "opened for user 'u' has reached the maximum allowed user limit of"
NODE_LIMIT = "opened on node 'rabbit@x' has reached the maximum allowed limit of"
QUORUM_TIMEOUT = "INTERNAL_ERROR - timed out consuming from quorum queue 'q' in vhost '/': {'%2F_q',\n  'rabbit@x'}"
DEPRECATED = (
    "INTERNAL_ERROR - Feature `transient_nonexcl_queues` is deprecated.\nIts use is not permitted per the "
    "configuration (overriding the default, which is permitted):\n"
    '    "deprecated_features.permit.transient_nonexcl_queues = false"'
)
ALERT = px.IncompatibleProtocolError(
    "StreamLostError: (\"Stream connection lost: SSLError(1, '[SSL: TLSV13_ALERT_CERTIFICATE_REQUIRED] "
    "tlsv13 alert certificate required (_ssl.c:2580)')\",)"
)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (px.StreamLostError("x"), Kind.TRANSIENT),
        (px.AMQPHeartbeatTimeout("x"), Kind.TRANSIENT),
        (px.AMQPConnectionError(), Kind.TRANSIENT),
        (wrapped(ConnectionRefusedError(111, "refused")), Kind.TRANSIENT),
        (wrapped(TimeoutError("x")), Kind.TRANSIENT),
        (socket.gaierror(-2, "unknown"), Kind.TRANSIENT),
        (workflow.AMQPConnectorStackTimeout("x"), Kind.TRANSIENT),
        (px.ConnectionClosedByBroker(320, "CONNECTION_FORCED"), Kind.TRANSIENT),
        (px.IncompatibleProtocolError("StreamLostError: ('EOF',)"), Kind.TRANSIENT),
        (px.ProbableAuthenticationError("StreamLostError: ('EOF',)"), Kind.TRANSIENT),
        (px.ProbableAccessDeniedError("StreamLostError: ('EOF',)"), Kind.TRANSIENT),
        (px.ConsumerCancelled(), Kind.TRANSIENT),
        (ssl.SSLEOFError(8, "EOF"), Kind.TRANSIENT),
        (px.ConnectionBlockedTimeout("x"), Kind.BUSY),
        (px.ConnectionClosedByBroker(506, "x"), Kind.BUSY),
        (px.ConnectionClosedByBroker(541, "x"), Kind.BUSY),
        (px.ConnectionClosedByBroker(530, "NOT_ALLOWED - node connection limit (1) is reached"), Kind.BUSY),
        (px.ConnectionClosedByBroker(530, f"NOT_ALLOWED - number of channels {USER_LIMIT} (6)"), Kind.BUSY),
        (px.ConnectionClosedByBroker(530, f"NOT_ALLOWED - number of channels {USER_LIMIT} 6"), Kind.BUSY),
        (px.ConnectionClosedByBroker(530, f"NOT_ALLOWED - number of channels {NODE_LIMIT} 2000"), Kind.BUSY),
        (px.ConnectionClosedByBroker(530, "... connection limit cannot be queried, timeout"), Kind.BUSY),
        (px.ConnectionClosedByBroker(541, QUORUM_TIMEOUT), Kind.BUSY),
        (px.ConnectionClosedByBroker(541, "INTERNAL_ERROR"), Kind.BUSY),
        (px.ConnectionClosedByBroker(541, DEPRECATED), Kind.REFUSED),
        (px.ConnectionClosedByBroker(530, "NOT_ALLOWED - attempt to reuse consumer tag 't'"), Kind.REFUSED),
        (LIMIT, Kind.BUSY),
        (px.ChannelClosedByBroker(405, "RESOURCE_LOCKED"), Kind.BUSY),
        (px.NackError([]), Kind.BUSY),
        (OSError(24, "Too many open files"), Kind.BUSY),
        (px.ConnectionClosedByBroker(530, "NOT_ALLOWED - vhost is gone"), Kind.REFUSED),
        (px.ConnectionClosedByBroker(403, "x"), Kind.REFUSED),
        (BROKER_403, Kind.REFUSED),
        (VHOST_MISSING, Kind.REFUSED),
        (ALERT, Kind.REFUSED),
        (px.AuthenticationError("EXTERNAL"), Kind.REFUSED),
        (ssl.SSLCertVerificationError("x"), Kind.REFUSED),
        (px.ChannelClosedByBroker(404, "x"), Kind.REFUSED),
        (px.ChannelClosedByBroker(406, "x"), Kind.REFUSED),
        (px.UnroutableError([]), Kind.REFUSED),
        (px.ConnectionClosedByBroker(501, "x"), Kind.OUR_BUG),
        (px.ConnectionClosedByBroker(505, "x"), Kind.OUR_BUG),
        (px.UnexpectedFrameError("x"), Kind.OUR_BUG),
        (px.ReentrancyError(), Kind.OUR_BUG),
        (TypeError("x"), Kind.OUR_BUG),
        (px.ConnectionClosedByClient(200, "x"), Kind.ASKED_FOR),
        (px.ChannelClosedByClient(0, "x"), Kind.ASKED_FOR),
        (KeyboardInterrupt(), Kind.ASKED_FOR),
        (asyncio.CancelledError(), Kind.ASKED_FOR),
        (workflow.AMQPConnectionWorkflowFailed([ConnectionRefusedError(), BROKER_403]), Kind.REFUSED),
        (workflow.AMQPConnectionWorkflowFailed([BROKER_403, ConnectionRefusedError()]), Kind.REFUSED),
        (workflow.AMQPConnectionWorkflowFailed([ConnectionRefusedError()] * 2), Kind.TRANSIENT),
        (workflow.AMQPConnectorAMQPHandshakeError(LIMIT), Kind.BUSY),
        (errors.ConfigurationError("x"), Kind.OUR_BUG),
        (errors.PoolTimeout("x"), Kind.BUSY),
        (errors.NotConnected("x"), Kind.TRANSIENT),
        (errors.OutcomeUnknown("x"), Kind.TRANSIENT),
        (raised(errors.OutcomeUnknown("x"), px.ConnectionBlockedTimeout("x")), Kind.BUSY),
        (errors.ChannelLost("x", reason=px.ChannelClosedByBroker(404, "x")), Kind.REFUSED),
        (raised(errors.ConnectError("x"), wrapped(ConnectionRefusedError())), Kind.TRANSIENT),
        (raised(errors.ConnectError("x"), LIMIT), Kind.BUSY),
        (raised(errors.AuthenticationFailed("x"), ConnectionRefusedError()), Kind.REFUSED),
    ],
    ids=lambda value: repr(value)[:60] if isinstance(value, BaseException) else value.name,
)
def test_classification(error, kind):
    verdict = classify(error)
    assert verdict.kind is kind
    assert verdict.advice
    assert verdict.is_retryable is (kind in (Kind.TRANSIENT, Kind.BUSY))


def test_every_reply_code_of_amqp_has_a_kind():
    codes = {200, 311, 312, 313, 320, 402, 403, 404, 405, 406, 501, 502, 503, 504, 505, 506, 530, 540, 541}
    assert set(REPLY_CODES) == codes


def test_error_that_is_its_own_cause_is_classified_all_the_same():
    error = errors.NotConnected("x")
    error.__cause__ = error
    assert classify(error).kind is Kind.TRANSIENT


def test_description_of_a_refused_socket_is_never_empty():
    assert describe(wrapped(ConnectionRefusedError(111, "Connection refused"))).startswith("ConnectionRefusedError: ")
    assert describe(px.AMQPConnectionError()) == "AMQPConnectionError"
    assert [cls for cls in PIKAS if cls.__init__ is Exception.__init__ and not describe(cls())] == []


def certificate_error(code):
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_code = code
    return error


@pytest.mark.parametrize(
    ("cause", "cls"),
    [
        (BROKER_403, errors.AuthenticationFailed),
        (px.AuthenticationError("EXTERNAL"), errors.AuthenticationFailed),
        (VHOST_MISSING, errors.AccessRefused),
        (LIMIT, errors.ConnectError),
        (wrapped(ConnectionRefusedError()), errors.ConnectError),
        (px.ProbableAuthenticationError("StreamLostError: ('EOF',)"), errors.ConnectError),
        (certificate_error(10), errors.CertificateExpired),
        (certificate_error(62), errors.CertificateNameMismatch),
        (certificate_error(64), errors.CertificateNameMismatch),
        (certificate_error(20), errors.CertificateNotTrusted),
        (certificate_error(9), errors.CertificateNotYetValid),
        (ALERT, errors.ClientCertificateMissing),
        (px.IncompatibleProtocolError(f"{SPEAKS_TLS} (at first: EOF)"), errors.TlsRequired),
        (ssl.SSLError(1, "[SSL: SSLV3_ALERT_CERTIFICATE_EXPIRED] x"), errors.ClientCertificateRefused),
        (ssl.SSLError(1, "[SSL: TLSV1_ALERT_UNKNOWN_CA] x"), errors.ClientCertificateRefused),
        (ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number"), errors.NotTls),
        (ssl.SSLError(1, "[SSL: TLSV1_ALERT_PROTOCOL_VERSION] x"), errors.TlsError),
        (ssl.SSLError(1, "[SSL: NO_PROTOCOLS_AVAILABLE]"), errors.TlsError),
        (ssl.SSLError(1, "[SSL: TLSV1_ALERT_INTERNAL_ERROR] the other side's own"), errors.ConnectError),
    ],
)
def test_failed_connect_becomes_the_error_of_its_cause(cause, cls):
    error = connect_error(cause, hosts=["mq:5672"], attempts=3, elapsed=1.25)
    assert type(error) is cls
    assert (error.hosts, error.attempts, error.elapsed) == (("mq:5672",), 3, 1.25)
    assert "mq:5672 after 3 attempts" in str(error)
    assert type(root_cause(cause)).__name__ in str(error)


def test_handshake_failure_means_a_missing_certificate_only_where_none_was_shown():
    cause = ssl.SSLError(1, "[SSL: SSLV3_ALERT_HANDSHAKE_FAILURE] sslv3 alert handshake failure")
    facts = {"hosts": ["mq:5671"], "attempts": 1, "elapsed": 0.1}
    assert type(connect_error(cause, **facts)) is errors.ClientCertificateMissing
    assert type(connect_error(cause, **facts, shows_certificate=True)) is errors.TlsError


@pytest.mark.parametrize(
    ("error", "closed_by", "clue"),
    [
        (px.ConnectionClosedByBroker(320, "x"), "broker", "on purpose"),
        (px.ConnectionClosedByClient(200, "x"), "client", "this program"),
        (px.StreamLostError("x"), "network", "without a close handshake"),
        (wrapped(ConnectionRefusedError(111, "x")), "nobody", "nothing listens"),
        (socket.gaierror(-2, "x"), "nobody", "resolve"),
        (BROKER_403, "broker", "user name and password"),
        (VHOST_MISSING, "broker", "virtual host"),
        (ALERT, "broker", "certificate"),
        (px.AMQPHeartbeatTimeout("x"), "client", "heartbeats"),
        (errors.ChannelLost("x", reason=px.ChannelClosedByBroker(404, "x")), "broker", "does not exist"),
        (errors.ConfigurationError("x"), "nobody", "setting"),
        (KeyError("x"), "nobody", "program"),
    ],
)
def test_explanation_says_who_closed_it_and_what_to_do(error, closed_by, clue):
    explanation = explain(error)
    assert explanation.closed_by == closed_by
    assert clue in explanation.what
    assert str(explanation).splitlines()[-1].startswith("what to do: ")


def test_explanation_is_the_same_whatever_the_port_and_the_time():
    one = connect_error(ConnectionRefusedError(111, "x"), hosts=["h:1111"], attempts=1, elapsed=0.1)
    two = connect_error(ConnectionRefusedError(111, "y"), hosts=["g:2222"], attempts=7, elapsed=9.0)
    assert repr(explain(one)) == repr(explain(two))
    assert not re.search(r"\d{4}", repr(explain(one)))


@pytest.mark.parametrize("cls", PIKAS + OURS)
def test_every_class_can_be_explained(cls):
    error = cls.__new__(cls)
    error.args = (320, "text") if issubclass(cls, px.ConnectionClosed | px.ChannelClosed) else ("text", "more")
    error.exceptions, error.exception = [OSError("x")], OSError("x")
    assert explain(error).what
