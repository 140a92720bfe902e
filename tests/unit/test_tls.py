"""TLS handshakes on the loopback interface, against a server that speaks TLS and nothing else."""

import contextlib
import datetime
import socket
import ssl
import threading

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from labkit import (
    BrokerSettings,
    CertificateExpired,
    CertificateNameMismatch,
    CertificateNotTrusted,
    ClientCertificateRefused,
    ConfigurationError,
    ConnectionFactory,
    TlsError,
    TlsSettings,
)


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture(scope="module")
def ca_data(authority):
    return authority.cert_pem.bytes().decode()


@contextlib.contextmanager
def tls_server(certificate, *, client_authority=None):
    """Shake hands with everyone who comes, then hang up. Yields the port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
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


def refusal(port, tls, *, attempts=5):
    """Return the TlsError of a connect."""
    settings = BrokerSettings(
        host="127.0.0.1", port=port, tls=tls, connection_attempts=attempts, retry_delay=0.0, connect_deadline=20.0
    )
    with pytest.raises(TlsError) as caught:
        ConnectionFactory(settings).blocking()
    assert caught.value.__cause__ is not None
    return caught.value


def client_refusal(port, tls):
    """As above. The server refuses after our side of a TLS 1.3 handshake is done; when its reset overtakes its
    alert, that attempt looks like a lost link and is rightly made again."""
    return refusal(port, tls, attempts=100)


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


def test_missing_client_certificate_is_client_certificate_refused(authority, ca_data):
    with tls_server(authority.issue_cert("127.0.0.1"), client_authority=authority) as port:
        assert type(client_refusal(port, TlsSettings(ca_data=ca_data))) is ClientCertificateRefused


def test_client_certificate_of_a_stranger_is_client_certificate_refused(authority, ca_data, tmp_path):
    path = tmp_path / "stranger.pem"
    path.write_bytes(trustme.CA().issue_cert("someone").private_key_and_cert_chain_pem.bytes())
    with tls_server(authority.issue_cert("127.0.0.1"), client_authority=authority) as port:
        assert type(client_refusal(port, TlsSettings(ca_data=ca_data, cert_file=path))) is ClientCertificateRefused


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
