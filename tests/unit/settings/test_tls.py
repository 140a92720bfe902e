"""TLS handshakes on the loopback interface, against a server that speaks TLS and nothing else."""

import contextlib
import datetime
import itertools
import socket
import ssl
import struct
import threading

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from labkit import (
    BrokerSettings,
    CertificateExpired,
    CertificateNameMismatch,
    CertificateNotTrusted,
    CertificateNotYetValid,
    ClientCertificateMissing,
    ClientCertificateRefused,
    ConfigurationError,
    ConnectError,
    ConnectionFactory,
    NotTls,
    TlsError,
    TlsRequired,
    TlsSettings,
    classify,
)
from labkit.errors import Kind


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture(scope="module")
def ca_data(authority):
    return authority.cert_pem.bytes().decode()


@contextlib.contextmanager
def tls_server(certificate, *, client_authority=None, version=None):
    """Shake hands with everyone who comes, then hang up. Yields the port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if version is not None:
        context.minimum_version = context.maximum_version = version
    certificate.configure_cert(context)
    if client_authority is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        client_authority.configure_trust(context)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    visitor, _ = server.accept()
                    with contextlib.suppress(OSError), visitor, context.wrap_socket(visitor, server_side=True) as link:
                        link.settimeout(5)
                        link.recv(8)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
    thread.join(10)


def refusal(port, tls, *, attempts=5, cls=TlsError):
    """Return the TlsError of a connect."""
    settings = BrokerSettings(
        host="127.0.0.1", port=port, tls=tls, connection_attempts=attempts, retry_delay=0.0, connect_deadline=20.0
    )
    with pytest.raises(cls) as caught:
        ConnectionFactory(settings).blocking()
    assert caught.value.__cause__ is not None
    return caught.value


def test_certificate_that_fails_is_refused_once_and_not_retried(authority):
    with tls_server(authority.issue_cert("127.0.0.1")) as port:
        assert refusal(port, TlsSettings()).attempts == 1


def test_unknown_authority_is_certificate_not_trusted(authority):
    with tls_server(authority.issue_cert("127.0.0.1")) as port:
        other = trustme.CA().cert_pem.bytes().decode()
        assert type(refusal(port, TlsSettings(ca_data=other))) is CertificateNotTrusted
        assert type(refusal(port, TlsSettings())) is CertificateNotTrusted


def test_certificate_for_another_name_is_a_name_mismatch(authority, ca_data):
    with tls_server(authority.issue_cert("mq.example")) as port:
        assert type(refusal(port, TlsSettings(ca_data=ca_data))) is CertificateNameMismatch
        wrong = TlsSettings(ca_data=ca_data, server_name="other.example")
        assert type(refusal(port, wrong)) is CertificateNameMismatch


def test_server_name_is_what_the_certificate_is_checked_against(authority, ca_data):
    certificate = authority.issue_cert("mq.example")
    with tls_server(certificate) as port, socket.create_connection(("127.0.0.1", port)) as plain:
        tls = TlsSettings(ca_data=ca_data, server_name="mq.example")
        options = BrokerSettings(tls=tls).to_pika()[0].ssl_options
        with options.context.wrap_socket(plain, server_hostname=options.server_hostname) as link:
            assert link.version() in ("TLSv1.2", "TLSv1.3")


def test_certificate_that_is_out_of_date_is_expired(authority, ca_data):
    past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    old = authority.issue_cert("127.0.0.1", not_before=past - datetime.timedelta(days=1), not_after=past)
    with tls_server(old) as port:
        assert type(refusal(port, TlsSettings(ca_data=ca_data))) is CertificateExpired


def test_certificate_that_is_for_later_is_not_yet_valid(authority, ca_data):
    tomorrow = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=1)
    early = authority.issue_cert("127.0.0.1", not_before=tomorrow, not_after=tomorrow + datetime.timedelta(days=1))
    with tls_server(early) as port:
        assert type(refusal(port, TlsSettings(ca_data=ca_data))) is CertificateNotYetValid


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_missing_client_certificate_is_said_by_each_version_of_tls(authority, ca_data, version):
    with tls_server(authority.issue_cert("127.0.0.1"), client_authority=authority, version=version) as port:
        error = refusal(port, TlsSettings(ca_data=ca_data))
        assert type(error) is ClientCertificateMissing
        assert "TlsSettings.cert_file" in str(error)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_client_certificate_of_a_stranger_is_client_certificate_refused(authority, ca_data, version):
    stranger = trustme.CA().issue_cert("someone").private_key_and_cert_chain_pem.bytes()
    with tls_server(authority.issue_cert("127.0.0.1"), client_authority=authority, version=version) as port:
        assert type(refusal(port, TlsSettings(ca_data=ca_data, cert_data=stranger))) is ClientCertificateRefused


def test_client_certificate_that_is_out_of_date_is_client_certificate_refused(authority, ca_data):
    past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    old = authority.issue_cert("someone", not_before=past - datetime.timedelta(days=1), not_after=past)
    tls = TlsSettings(ca_data=ca_data, cert_data=old.private_key_and_cert_chain_pem.bytes())
    with tls_server(authority.issue_cert("127.0.0.1"), client_authority=authority) as port:
        assert type(refusal(port, tls)) is ClientCertificateRefused


@contextlib.contextmanager
def listener(*answers):
    """Answer visitor after visitor, the last answer for all that follow. Yields the port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            with contextlib.suppress(OSError):
                for number in itertools.count():
                    visitor, _ = server.accept()
                    visitor.settimeout(5)
                    with contextlib.suppress(OSError), visitor:
                        answers[min(number, len(answers) - 1)](visitor)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
    thread.join(10)


def reset(visitor):
    visitor.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    visitor.close()


def alert_to_plain_amqp(visitor):
    """As Erlang's TLS answers what is no ClientHello: a fatal alert, in a record of seven octets."""
    visitor.recv(8)
    visitor.sendall(bytes.fromhex("15 03 03 00 02 02 46"))


def amqp_to_tls(visitor):
    """As RabbitMQ's plain port answers what is no AMQP header: with the version it speaks."""
    visitor.recv(4096)
    visitor.sendall(b"AMQP\0\0\x09\x01")


def hang_up(visitor):
    visitor.recv(8)


def test_tls_spoken_to_a_plain_port_is_not_tls():
    with listener(amqp_to_tls) as port:
        error = refusal(port, TlsSettings())
    assert (type(error), error.attempts) == (NotTls, 1)
    assert "5671" in str(error)


def test_plain_amqp_spoken_to_a_tls_port_is_tls_required_at_the_first_attempt():
    with listener(alert_to_plain_amqp) as port:
        error = refusal(port, None)
    assert (type(error), error.attempts) == (TlsRequired, 1)
    assert "TlsSettings" in str(error)
    assert classify(error).kind is Kind.REFUSED


def test_who_accepts_and_hangs_up_may_be_starting_and_is_asked_again():
    with listener(hang_up) as port:
        error = refusal(port, None, attempts=3, cls=ConnectError)
    assert (type(error), error.attempts) == (ConnectError, 3)
    assert classify(error).is_retryable


def test_client_certificate_that_is_missed_is_said_even_when_the_reset_overtakes_the_alert(authority, ca_data):
    certificate = authority.issue_cert("127.0.0.1")
    lenient, strict = (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) for _ in range(2))
    for context in (lenient, strict):
        certificate.configure_cert(context)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
    lenient.num_tickets = 0  # as with Erlang: after its Finished the server says nothing
    strict.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(strict)

    def shake_hands_and_reset(visitor):
        with lenient.wrap_socket(visitor, server_side=True) as link:
            link.recv(8)
            reset(link)

    def refuse(visitor):
        with strict.wrap_socket(visitor, server_side=True) as link:
            link.recv(8)

    with listener(shake_hands_and_reset, refuse) as port:
        error = refusal(port, TlsSettings(ca_data=ca_data), attempts=1)
    assert type(error) is ClientCertificateMissing
    assert "at first: IncompatibleProtocolError: StreamLostError" in str(error)


def test_key_without_its_password_is_a_configuration_error_not_a_prompt(authority, tmp_path):
    issued = authority.issue_cert("someone")
    key = serialization.load_pem_private_key(issued.private_key_pem.bytes(), None)
    locked = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"open sesame"),
    )
    (tmp_path / "cert.pem").write_bytes(issued.cert_chain_pems[0].bytes())
    (tmp_path / "key.pem").write_bytes(locked)
    files = {"cert_file": tmp_path / "cert.pem", "key_file": tmp_path / "key.pem"}
    for password in (None, "wrong password"):
        with pytest.raises(ConfigurationError) as caught:
            TlsSettings(**files, key_password=password).make_context()
        assert caught.value.field == "cert_file"
        assert "wrong password" not in str(caught.value)
    assert TlsSettings(**files, key_password="open sesame").make_context()
