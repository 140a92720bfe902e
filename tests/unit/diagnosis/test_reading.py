"""What is read from a traceback, a client's log line or a broker's log."""

import random
import re
import time
from pathlib import Path

import pytest

from labkit.diagnosis.broker_words import WORDS
from labkit.diagnosis.cases import Rank
from labkit.diagnosis.explain import BY_NAME, explain
from labkit.diagnosis.explanations import CODES, TYPES
from labkit.diagnosis.reading import LONGEST, as_json, as_text, explain_text, masked
from labkit.lab.notebook_file import notebooks

ROOT = Path(__file__).parents[3]
CASES = (*WORDS, *CODES, *TYPES)
TEXTS = {
    ("pika", "connection-reset"): "StreamLostError: Stream connection lost: ConnectionResetError(104, 'reset by peer')",
    ("pika", "queue-missing"): "ChannelClosedByBroker: (404, \"NOT_FOUND - no queue 'q' in vhost '/'\")",
    ("labkit", "pool-timeout"): "labkit.errors.PoolTimeout: no connection became free within 1 s",
    ("kombu", "connection-refused"): "Cannot connect to amqp://u:pw@127.0.0.1:1//: [Errno 111] Connection refused.",
    ("py-amqp", "resource-locked"): "amqp.exceptions.ResourceLocked: Queue.declare: (405) RESOURCE_LOCKED - cannot",
    ("oslo", "rpc-timeout"): "MessagingTimeout: Timed out waiting for a reply to message ID 6fc0",
    ("aio-pika", "declared-differently"): "ChannelPreconditionFailed: PRECONDITION_FAILED - inequivalent arg 'durable'",
    ("amqpstorm", "no-heartbeat-from-broker"): "Connection dead, no heartbeat or data received in >= 120s",
    ("Java", "permission-missing"): """channel error; protocol method: #method<channel.close>(reply-code=403,
        reply-text=ACCESS_REFUSED - access to exchange 'e' in vhost '/' refused for user 'u', class-id=60)""",
    ("Java", "closed-by-the-program"): """clean connection shutdown; protocol method: #method<connection.close>(
        reply-code=200, reply-text=OK, class-id=0, method-id=0)""",
    (
        ".NET",
        "virtual-host-down",
    ): """The AMQP operation was interrupted: AMQP close-reason, initiated by Peer, code=320,
        text='CONNECTION_FORCED - vhost 'UAT' is down', classId=0, methodId=0""",
    (".NET", "client-library-failed"): "close-reason, initiated by Library, code=541, text='Unexpected Exception'",
    (
        "3.10",
        "queue-missing",
    ): "operation queue.declare caused a channel exception not_found: no queue 'q' in vhost '/'",
    ("4.3", "heartbeats-missed-by-client"): """closing AMQP connection <0.9.0> (127.0.0.1:1 -> 127.0.0.1:5672,
        duration: '3s'):
        missed heartbeats from client, timeout: 60s""",
    (
        "3.5",
        "heartbeats-missed-by-client",
    ): "closing AMQP connection <0.9.0> (127.0.0.1:1):\n{heartbeat_timeout,running}",
    ("3.5", "client-vanished"): "closing AMQP connection <0.9.0> (127.0.0.1:1):\n{inet_error,etimedout}",
    ("Erlang", "unexpected-frame"): "{amqp_error,unexpected_frame,\n  \"expected content body\",'basic.publish'}",
    ("Erlang", "precondition-failed"): "{handshake_error,opening,{amqp_error,precondition_failed,none}}",
    ("rabbitmq-c", "no-heartbeat-from-broker"): "AMQP_STATUS_HEARTBEAT_TIMEOUT: heartbeat timeout, connection closed",
    ("rabbitmq-c", "certificate-name-mismatch"): "AMQP_STATUS_SSL_HOSTNAME_VERIFY_FAILED",
    ("kombu 3", "no-answer"): "Connection to 10.0.0.9:5672 failed: timed out",
    ("JSON", "unknown-delivery-tag"): """{"level":"error","msg":"operation basic.ack caused a channel exception
        precondition_failed: unknown delivery tag 1"}""",
}


@pytest.mark.parametrize(("client", "expected"), TEXTS)
def test_a_text_of_each_client_and_of_the_broker_is_recognised(client, expected):
    first = explain_text(TEXTS[client, expected])[0].explanation
    assert first.diagnosis == expected
    assert first.what == BY_NAME[expected].what


@pytest.mark.parametrize(
    "text",
    [
        "",
        "HTTP/1.1 404 Not Found",
        "KeyError: 'routing_key'",
        "asyncio.exceptions.TimeoutError",
        "requests.exceptions.HTTPError: 403 Client Error: Forbidden for url: https://example.org/api/queues",
        "psycopg.errors.SyntaxError: syntax error at or near SELECT",
        "AMQP close-reason, initiated by Application, code=404, text='gone'",
    ],
)
def test_what_is_not_known_is_said_to_be(text):
    assert explain_text(text) == []
    assert as_text([]).startswith("not known")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_each_case_has_a_name_of_its_own_a_cause_and_something_to_do(case):
    assert [each.name for each in CASES].count(case.name) == 1
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", case.name)
    assert case.closed_by in {"client", "broker", "network", "nobody"}
    assert case.advice or case.rank != Rank.WORDS
    assert case.notebook in {"", *(path.name[:2] for path in notebooks(ROOT))}
    assert case.verdict()


def test_the_cause_comes_before_what_followed_from_it():
    text = "pika.exceptions.ChannelWrongStateError: Channel is closed.\n(404) NOT_FOUND - no exchange 'e' in vhost '/'"
    first, second = explain_text(text)
    assert (first.explanation.diagnosis, first.line) == ("exchange-missing", 2)
    assert (second.explanation.diagnosis, second.line) == ("channel-used-after-its-end", 1)
    assert "also there" in as_text([first, second])


def test_the_brokers_words_are_quoted_without_the_clients_quotes():
    told = [
        TEXTS[key] for key in ((".NET", "virtual-host-down"), ("Java", "permission-missing"), ("pika", "queue-missing"))
    ]
    for text, end in zip(told, ("is down", "user 'u'", "vhost '/'"), strict=True):
        said = explain_text(text)[0].explanation.said
        assert said in text
        assert said.endswith(end)


SECRETS = [
    "Cannot connect to amqp://user:s3cr3t@host:5672//: [Errno 111] Connection refused.",
    "Cannot connect to amqp://user:s3cr3t@s3cr3t/s3cr3t'@host//: connection refused",
    "password=s3cr3t connection refused",
    'connection refused {"RABBITMQ_PASSWORD": "s3cr3t"}',
    'connection refused {amqp_params_network,<<"user">>,<<"s3cr3t">>,<<"/">>}',
    "x" * 300 + "amqp://user:s3cr3t" + "s3cr3t" * 50 + "@host connection refused",
]


@pytest.mark.parametrize("text", SECRETS)
def test_no_password_is_shown(text):
    findings = explain_text(text)
    assert findings
    for shown in (as_text(findings), as_json(findings), masked(text)):
        assert "s3cr3t" not in shown
    assert "***" in masked(text)


def test_what_would_steer_a_terminal_is_shown_as_an_escape():
    shown = as_text(explain_text("\x1b]0;title\x07 NOT_FOUND - no queue '\x1b[2J\u202e' in vhost '/'"))
    assert all(each.isprintable() or each == "\n" for each in shown)


def test_binary_junk_is_not_known():
    junk = random.Random(1).randbytes(50_000)
    assert explain_text((junk + b"connection refused").decode("utf-8", errors="replace")) == []


HOSTILE = ["a", "\n", "://a:", "vhost '", "queue limit ", "labkit.", "(404) NOT_FOUND - x\n", "password ", "\u0130"]


@pytest.mark.parametrize("piece", HOSTILE)
def test_no_text_takes_long(piece):
    began = time.perf_counter()
    explain_text(piece * (2 * LONGEST // len(piece)))
    assert time.perf_counter() - began < 10  # 0.2 to 1 s; a pattern that goes wrong takes minutes


def test_an_exception_and_its_text_have_the_same_diagnosis():
    import pika.exceptions as px

    for error in (
        px.ChannelClosedByBroker(404, "NOT_FOUND - no queue 'q' in vhost '/'"),
        px.ConnectionClosedByBroker(530, "NOT_ALLOWED - vhost x not found"),
        px.AMQPHeartbeatTimeout("none"),
        px.NoFreeChannels(),
    ):
        assert explain_text(repr(error))[0].explanation.diagnosis == explain(error).diagnosis
