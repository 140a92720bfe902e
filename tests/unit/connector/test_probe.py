"""The second look at who did not answer AMQP: real sockets, a real TLS alert, and nobody who speaks AMQP."""

import contextlib
import socket
import ssl
import threading
import time

import pika
import pika.exceptions as px
import pytest
import trustme

from labkit.connector.probe import PROTOCOL_HEADER, ProbeOnce, is_unclear, probe
from labkit.verdicts import SPEAKS_TLS

UNCLEAR = px.IncompatibleProtocolError("the other side hung up")
AUTHORITY = trustme.CA()


@contextlib.contextmanager
def server(answer):
    """One that has *answer* deal with each client, on a thread; its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    with client, contextlib.suppress(OSError):
                        answer(client)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(10)
    assert not thread.is_alive()


def parameters(port, *, tls=False):
    options = None
    if tls:
        context = ssl.create_default_context()
        AUTHORITY.configure_trust(context)
        options = pika.SSLOptions(context, "localhost")
    return pika.ConnectionParameters("127.0.0.1", port, ssl_options=options)


def over_tls(*, wants_certificate):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    AUTHORITY.issue_cert("localhost").configure_cert(context)
    if wants_certificate:
        AUTHORITY.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED

    def answer(client):
        with context.wrap_socket(client, server_side=True) as link:
            link.recv(8)

    return answer


def test_plain_amqp_at_a_tls_port_is_told_by_the_alert():
    heard = []

    def answer(client):
        heard.append(client.recv(8))
        client.sendall(b"\x15\x03\x01\x00\x02\x02\x46")  # fatal: protocol_version

    with server(answer) as port:
        error = probe(parameters(port), UNCLEAR, 5.0)
    assert SPEAKS_TLS in str(error)
    assert error.__cause__ is UNCLEAR
    assert heard == [PROTOCOL_HEADER]


def test_a_client_certificate_that_is_missing_is_told_by_the_alert():
    with server(over_tls(wants_certificate=True)) as port:
        error = probe(parameters(port, tls=True), UNCLEAR, 5.0)
    assert "certificate" in str(error).lower()
    assert error.__cause__ is UNCLEAR


@pytest.mark.parametrize(
    ("answer", "tls"),
    [
        (lambda client: client.recv(8), False),  # hangs up
        (lambda client: client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"), False),
        (over_tls(wants_certificate=False), True),  # TLS is well; it hangs up after our first byte
        (lambda client: client.sendall(b"AMQP\x00\x00\x09\x01"), True),  # no TLS at all
    ],
)
def test_where_no_alert_comes_the_error_stays_as_it_was(answer, tls):
    with server(answer) as port:
        assert probe(parameters(port, tls=tls), UNCLEAR, 0.5) is UNCLEAR


def test_a_silent_server_costs_what_is_left_and_no_more():
    ended = threading.Event()
    with server(lambda _: ended.wait(10)) as port:
        begun = time.monotonic()
        assert probe(parameters(port), UNCLEAR, 0.3) is UNCLEAR
        assert time.monotonic() - begun < 2.0
        ended.set()


def test_a_slow_handshake_and_then_silence_cost_together_what_is_left():
    ended = threading.Event()

    def answer(client):
        ended.wait(0.8)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        AUTHORITY.issue_cert("localhost").configure_cert(context)
        with context.wrap_socket(client, server_side=True):
            ended.wait(10)

    with server(answer) as port:
        begun = time.monotonic()
        assert probe(parameters(port, tls=True), UNCLEAR, 1.0) is UNCLEAR
        assert time.monotonic() - begun < 1.5
        ended.set()


def test_nobody_is_asked_when_no_time_is_left():
    asked = []
    with server(asked.append) as port:
        assert probe(parameters(port), UNCLEAR, 0.0) is UNCLEAR
    assert asked == []


def test_each_address_is_probed_once_and_only_for_an_unclear_error():
    once = ProbeOnce()
    assert not once.claim(parameters(1), px.ProbableAuthenticationError("no"))
    assert once.claim(parameters(1), UNCLEAR)
    assert not once.claim(parameters(1), UNCLEAR)
    assert once.claim(parameters(2), UNCLEAR)


def test_an_error_that_names_its_alert_is_clear():
    assert is_unclear(UNCLEAR)
    assert not is_unclear(ConnectionRefusedError())
