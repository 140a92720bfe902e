"""The broker's TLS listener: what is negotiated, who is let in, and who by certificate."""

import queue
import ssl
from collections.abc import Iterator

import pika
import pika.exceptions
import pytest

from labkit import (
    Connection,
    ConnectionManager,
    ConnectionPool,
    Consumer,
    Delivery,
    Publisher,
    SyncConnection,
    brokers,
)
from labkit.brokers import Broker
from labkit.brokers.certificates import LabCertificates
from labkit.brokers.credentials import new_password
from labkit.brokers.remote import RemoteBroker
from labkit.brokers.state import StateFile
from labkit.errors import BrokerError
from labkit.settings.settings import BrokerSettings
from labkit.settings.tls import TlsSettings
from tests.broker.backends import BACKENDS, connect, pins_of
from tests.broker.publishing import drained
from tests.broker.tls import REFUSED, by_certificate, handshake, serial_shown, showing

pytestmark = [pytest.mark.broker, pytest.mark.timeout(180)]

# --- the handshake ---------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
def test_both_versions_are_spoken_with_a_cipher_that_keeps_the_past_secret(
    encrypted: BrokerSettings, version: ssl.TLSVersion
) -> None:
    with handshake(encrypted, version) as link:
        assert link.version() == {"TLSv1_2": "TLSv1.2", "TLSv1_3": "TLSv1.3"}[version.name]
        name = link.cipher()[0]  # type: ignore[index]
    # 1.3 has no others; in 1.2 the key exchange is in the name.
    assert name.startswith("TLS_" if version is ssl.TLSVersion.TLSv1_3 else "ECDHE-"), name
    assert any(word in name for word in ("GCM", "CHACHA20", "CCM")), name


def test_the_newest_version_is_taken_when_nobody_says_otherwise(encrypted: BrokerSettings) -> None:
    with handshake(encrypted) as link:
        assert link.version() == "TLSv1.3"


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1:DeprecationWarning")
def test_an_old_version_is_refused(encrypted: BrokerSettings) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(encrypted.tls.ca_file)  # type: ignore[union-attr]
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    parameters = encrypted.to_pika()[0]
    parameters.ssl_options = pika.SSLOptions(context, encrypted.host)
    with pytest.raises(REFUSED):
        pika.BlockingConnection(parameters)


def test_a_client_that_trusts_other_authorities_only_is_not_fooled(encrypted: BrokerSettings) -> None:
    with pytest.raises(REFUSED):
        connect(encrypted.replace(tls=TlsSettings()))


def test_every_labkit_class_works_over_tls(encrypted: BrokerSettings) -> None:
    taken: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def take(delivery: Delivery) -> None:
        taken.put(delivery.body)
        delivery.ack()

    with SyncConnection(encrypted) as sync:
        sync.channel.queue_declare("over-tls")
        sync.publish("over-tls", "one")
    with ConnectionPool(encrypted, max_size=1) as pool:
        pool.execute(lambda channel: channel.publish("two", routing_key="over-tls"))
    with Publisher(encrypted) as publisher:
        assert publisher.publish("three", routing_key="over-tls").result(timeout=10) is None
    assert [body for _, body in drained(encrypted, "over-tls")] == [b"one", b"two", b"three"]
    with Connection(encrypted, recovery=True) as connection, Consumer(connection, "over-tls", take) as consumer:
        connection.channel().publish("four", routing_key="over-tls")
        assert taken.get(timeout=10) == b"four"
        assert consumer.is_consuming
        assert connection.status().tls is not None
    with ConnectionManager(encrypted) as manager:
        manager.consume("over-tls", take)
        manager.publish("", "over-tls", "five").result(timeout=10)
        assert taken.get(timeout=10) == b"five"
        assert [each.status().tls is not None for each in manager.connections] == [True, True]
    assert drained(encrypted, "over-tls") == []


# --- by certificate --------------------------------------------------------------------------------


@pytest.fixture
def alice(broker: Broker, encrypted: BrokerSettings) -> Iterator[str]:
    """A user without a password, who may do everything in the test's virtual host."""
    broker.add_user("alice")
    broker.grant("alice", encrypted.virtual_host)
    yield "alice"
    broker.delete_user("alice")


def test_a_certificate_logs_in_the_user_that_its_common_name_names(
    broker: Broker, encrypted: BrokerSettings, certificates: LabCertificates, alice: str
) -> None:
    connection = by_certificate(showing(encrypted, certificates.client(alice)))
    connection.channel().queue_declare("alices")
    assert [each.username for each in broker.connections(encrypted.virtual_host)] == [alice]
    connection.close()


@pytest.mark.parametrize("shown", ["none", "of nobody", "a stranger's"])
def test_external_lets_nobody_in_without_the_certificate_of_a_user(
    encrypted: BrokerSettings, certificates: LabCertificates, alice: str, shown: str
) -> None:
    if shown != "none":
        pair = certificates.client("nobody") if shown == "of nobody" else certificates.stranger(alice)
        encrypted = showing(encrypted, pair)
    with pytest.raises(REFUSED):
        by_certificate(encrypted)


def test_a_user_without_a_password_cannot_log_in_by_one(encrypted: BrokerSettings, alice: str) -> None:
    with pytest.raises(pika.exceptions.ProbableAuthenticationError):
        connect(encrypted, username=alice, password="")


def test_a_certificate_that_is_shown_does_not_stand_in_for_a_password(
    broker: Broker, encrypted: BrokerSettings, certificates: LabCertificates, alice: str
) -> None:
    connection = connect(showing(encrypted, certificates.client(alice)))
    assert [each.username for each in broker.connections(encrypted.virtual_host)] == [encrypted.username]
    connection.close()


def test_the_plain_port_does_not_offer_to_log_in_by_certificate(settings: BrokerSettings) -> None:
    with pytest.raises(pika.exceptions.AuthenticationError):
        by_certificate(settings)


def test_a_user_may_do_what_the_patterns_allow_and_nothing_else(broker: Broker, settings: BrokerSettings) -> None:
    password = new_password()
    broker.add_user("reader", password)
    try:
        broker.grant("reader", settings.virtual_host, configure="", write="", read="^mine$")
        connection = connect(settings, username="reader", password=password)
        with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="ACCESS_REFUSED"):
            connection.channel().queue_declare("mine")
        connection.close()
        broker.grant("reader", settings.virtual_host, configure="^mine$", write="", read="^mine$")
        connection = connect(settings, username="reader", password=password)
        connection.channel().queue_declare("mine")
        connection.close()
    finally:
        assert broker.delete_user("reader")
    assert not broker.delete_user("reader")


# --- a second node, on each backend, that demands a certificate ------------------------------------


@pytest.fixture(scope="module", params=BACKENDS)
def strict(request: pytest.FixtureRequest) -> Iterator[Broker]:
    kind, pins = pins_of(request.param)
    with brokers.own(
        kind, rootfs=pins.rootfs, scripts=pins.scripts, image=pins.image, demand_certificate=True
    ) as broker:
        yield broker


@pytest.mark.own_broker
def test_a_broker_that_demands_a_certificate_lets_in_those_of_its_authority_only(strict: Broker) -> None:
    settings, certificates = strict.settings(tls=True), LabCertificates(strict.home)  # type: ignore[arg-type]
    connect(showing(settings, certificates.client("anybody"))).close()
    for refused in (settings, showing(settings, certificates.stranger("anybody"))):
        with pytest.raises(REFUSED):
            connect(refused)
    connect(strict.settings()).close()  # the plain port is another matter


@pytest.mark.own_broker
def test_a_new_certificate_is_shown_at_once_on_every_backend(strict: Broker) -> None:
    settings, certificates = strict.settings(tls=True), LabCertificates(strict.home)  # type: ignore[arg-type]
    client = showing(settings, certificates.client("anybody"))
    old = connect(client)
    before = serial_shown(client)
    for _ in range(2):
        strict.rotate_certificate()
        after = serial_shown(client)
        assert after != before
        before = after
    old.channel().queue_declare("", exclusive=True)  # as if nothing had happened
    old.close()


@pytest.mark.own_broker
def test_the_broker_is_given_its_own_key_and_no_other(strict: Broker) -> None:
    assert strict.home is not None
    directory = strict.home / ("compose" if strict.backend == "compose" else "node")
    assert strict.home.stat().st_mode & 0o777 == 0o700
    assert {each.name: each.stat().st_mode & 0o777 for each in (directory / "tls").iterdir()} == {
        "ca.pem": 0o644, "server.pem": 0o644, "server.key": 0o644,
    }  # fmt: skip
    assert {each.name for each in directory.rglob("*.key")} == {"server.key"}


@pytest.mark.own_broker
def test_a_broker_that_an_older_labkit_started_is_known_and_says_that_it_has_no_tls(strict: Broker) -> None:
    assert strict.home is not None
    state = StateFile(strict.home)
    record = state.read()
    assert record is not None
    try:
        state.write(record.replace(amqps_port=0, demand_certificate=False))
        found = brokers.find(strict.home)
        assert found is not None
        assert found.is_running
        assert "tls" not in found.capabilities
        with pytest.raises(BrokerError, match="started without a TLS listener: `labkit down`, then `labkit up`"):
            found.settings(tls=True)
    finally:
        state.write(record)


def test_a_broker_by_url_speaks_tls_where_the_url_says_so(broker: Broker, encrypted: BrokerSettings) -> None:
    plain = RemoteBroker(broker.settings().to_url(mask=False))
    with pytest.raises(BrokerError, match="amqps://"):
        plain.settings(tls=True)
    with pytest.raises(BrokerError, match="cannot rotate_certificate"):
        plain.rotate_certificate()
    assert RemoteBroker(encrypted.to_url(mask=False)).settings(tls=True).tls == encrypted.tls
