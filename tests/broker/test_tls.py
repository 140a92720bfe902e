"""TLS against a real broker: what is good opens on every way in, what is wrong is refused once, with its own class."""

import asyncio
import re
import ssl
import time

import pika
import pika.exceptions as px
import pytest
import trustme

from labkit import (
    AsyncConnection,
    AuthenticationFailed,
    CertificateExpired,
    CertificateNameMismatch,
    CertificateNotTrusted,
    CertificateNotYetValid,
    ClientCertificateMissing,
    ClientCertificateRefused,
    Connection,
    ConnectionFactory,
    ConnectionLost,
    ConnectionPool,
    ConnectionRecovered,
    InsecureTls,
    LabkitError,
    NotTls,
    Publisher,
    Queue,
    State,
    SyncConnection,
    TlsRequired,
    TlsSettings,
    brokers,
    classify,
)
from labkit.brokers.certificates import ELSEWHERE, LabCertificates
from labkit.connector.tls_session import tls_session
from labkit.errors import Kind
from labkit.verdicts import root_cause
from labkit.wire import Proxy, Refuse, TlsTerminator
from tests.broker.connections import BRISK, connected, own_virtual_host, through_a_proxy
from tests.broker.test_adapters import ADAPTERS, THREAD_SAFE, ends, events, on_every_adapter
from tests.broker.tls import handshake, showing
from tests.view import until

pytestmark = pytest.mark.broker


@pytest.fixture(scope="module")
def plain(broker):
    """One virtual host for all tests here: making one takes longer than most of them."""
    with own_virtual_host(broker) as settings:
        yield settings


@pytest.fixture(scope="module")
def secure(broker, plain):
    """The same, by the broker's own TLS listener."""
    tls = broker.settings(plain.virtual_host, tls=True)
    return tls.replace(connection_name=plain.connection_name)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """An authority of this module's own, and what it and a stranger sign."""
    return LabCertificates(tmp_path_factory.mktemp("bench", numbered=True))


@pytest.fixture
def trusting(certificates):
    return TlsSettings(ca_file=certificates.ca_file)


@pytest.fixture(scope="module")
def front(plain, certificates):
    """Make a TLS endpoint in front of the broker, with a certificate of this module's authority."""
    return lambda flaw=None, upstream=plain: TlsTerminator(
        upstream, certificates.server(flaw), ca_file=certificates.ca_file
    )


def refused(settings, cls):
    """The error of a connect that may be tried five times, and is tried once."""
    with pytest.raises(cls) as caught:
        ConnectionFactory(settings.replace(connection_attempts=5, retry_delay=0.0)).blocking()
    assert (type(caught.value), caught.value.attempts) == (cls, 1)
    assert classify(caught.value).kind is Kind.REFUSED
    assert not classify(caught.value.__cause__).is_retryable
    return caught.value


def refusal(settings, cls):
    """The same, as text."""
    return str(refused(settings, cls))


# -- each cause has its class ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flaw", "cls", "fix"),
    [
        ("expired", CertificateExpired, "new certificate"),
        ("not-yet-valid", CertificateNotYetValid, "clock"),
        ("wrong-name", CertificateNameMismatch, "server_name"),
        ("other-ca", CertificateNotTrusted, "ca_file"),
    ],
)
def test_each_broken_certificate_is_refused_once_with_its_own_class_and_its_fix(front, trusting, flaw, cls, fix):
    with front(flaw) as door:
        assert fix in refusal(door.settings(tls=trusting), cls)
        assert door.served == 0  # it was refused before the password was sent


def test_the_name_of_the_settings_decides_which_certificate_is_right(front, trusting):
    with front("wrong-name") as door:
        named = door.settings(tls=trusting.replace(server_name=ELSEWHERE))
        ConnectionFactory(named).blocking().close()


def test_the_brokers_own_listener_is_verified_by_authority_and_name(secure):
    stranger = trustme.CA().cert_pem.bytes()
    refusal(secure.replace(tls=TlsSettings(ca_data=stranger)), CertificateNotTrusted)
    refusal(secure.replace(tls=TlsSettings()), CertificateNotTrusted)  # the system's authorities did not sign it
    refusal(secure.replace(tls=secure.tls.replace(server_name="other.example")), CertificateNameMismatch)


def test_a_port_and_a_client_that_do_not_speak_the_same_are_told_apart(plain, secure):
    assert "5671" in refusal(secure.replace(port=plain.addresses[0][1]), NotTls)
    assert "TlsSettings" in refusal(plain.replace(port=secure.addresses[0][1]), TlsRequired)


def test_what_was_agreed_is_modern_and_says_how_long_the_certificate_holds(secure):
    with connected(secure) as (connection, _):
        session = connection.status().tls
    raw = ConnectionFactory(secure).blocking()
    assert tls_session(raw) == session
    raw.close()
    assert session.version in ("TLSv1.2", "TLSv1.3")
    assert re.search("GCM|CHACHA20", session.cipher)
    assert session.certificate.days_left() > 30


@pytest.mark.parametrize(
    "adapter",
    ["blocking", pytest.param("thread_safe", marks=pytest.mark.skipif(not THREAD_SAFE, reason="came with Pika 1.5"))],
)
def test_a_certificate_that_ends_soon_is_warned_of(secure, monkeypatch, caplog, adapter):
    monkeypatch.setattr("labkit.settings.certificates.WARN_BEFORE", 10_000.0)
    connection = getattr(ConnectionFactory(secure), adapter)()
    connection.close()
    if adapter == "thread_safe":
        connection._connection.ioloop.close()  # Pika 1.5.0rc1 leaves its waker's two sockets to the garbage collector
    assert [each for each in caplog.messages if "the broker's certificate is out of date in" in each]


def test_a_plain_connection_has_no_tls_session(plain):
    with connected(plain) as (connection, _):
        assert connection.status().tls is None


# -- every way in ------------------------------------------------------------------------------------------------------


def test_every_adapter_opens_by_tls_as_the_broker_sees_it(secure, view):
    with on_every_adapter(secure) as trials:
        for trial in trials:
            trial.wait_for("echoed")
        agreed = {each["user_provided_name"]: each["ssl"] for each in view.connections(secure.virtual_host)}
        assert agreed == {f"on-{each}": True for each in ADAPTERS}


@pytest.mark.parametrize("wrong", ["authority", "plain"])
def test_every_adapter_is_refused_once_for_what_is_wrong(plain, secure, wrong):
    bad = {
        "authority": secure.replace(tls=TlsSettings(ca_data=trustme.CA().cert_pem.bytes())),
        "plain": plain.replace(port=secure.addresses[0][1]),
    }[wrong]
    with on_every_adapter(bad.replace(connection_attempts=5)) as trials:
        assert {name: each["kind"] for name, each in ends(trials, "failed").items()} == dict.fromkeys(
            ADAPTERS, "REFUSED"
        )
        assert events(trials) == {each: ["ConnectAttempted", "AttemptFailed", "ConnectionGivenUp"] for each in ADAPTERS}


def test_an_async_connection_publishes_by_tls(secure):
    async def publish():
        async with AsyncConnection(secure) as connection:
            await connection.publish("by tls", "x")

    asyncio.run(publish())
    with connected(secure) as (connection, _):
        assert connection.channel().declare(Queue("by tls"), passive=True).messages == 1


def test_pool_publisher_sync_and_async_connection_refuse_a_stranger(secure):
    bad = secure.replace(tls=TlsSettings(ca_data=trustme.CA().cert_pem.bytes()), connect_deadline=20.0)

    async def open_async():
        await AsyncConnection(bad).open()

    def open_pool():
        with ConnectionPool(bad, max_size=1) as pool:
            pool.execute(lambda channel: channel)

    ways = (
        open_pool,
        lambda: Publisher(bad).open(),
        lambda: SyncConnection(bad).open(),
        lambda: asyncio.run(open_async()),
    )
    for way in ways:
        with pytest.raises(Exception) as caught:
            way()
        chain = [caught.value, caught.value.__cause__]
        assert any(isinstance(each, CertificateNotTrusted) for each in chain), way


# -- client certificates -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def strict():
    """A node that wants a client certificate; it has an authority of its own."""
    with brokers.own(demand_certificate=True) as broker:
        yield broker


@pytest.mark.own_broker
def test_who_shows_a_client_certificate_gets_in_and_who_does_not_is_told_why(strict):
    bare, certificates = strict.settings(tls=True), strict.certificates
    ours, strangers = certificates.client("lab"), certificates.stranger("lab")
    as_bytes = ours.key_file.read_bytes() + ours.cert_file.read_bytes()
    ConnectionFactory(showing(bare, ours)).blocking().close()
    ConnectionFactory(bare.replace(tls=bare.tls.replace(cert_data=as_bytes))).blocking().close()
    assert "cert_file" in refusal(bare, ClientCertificateMissing)
    assert "cert_file" in refusal(showing(bare, strangers), ClientCertificateRefused)


@pytest.mark.own_broker
def test_by_tls_1_3_a_missing_client_certificate_looks_like_another_protocol_and_is_a_refusal(strict):
    bare = strict.settings(tls=True)
    newest = bare.replace(tls=bare.tls.replace(minimum_version="TLSv1.3"))
    with handshake(newest) as link:  # on our side it is over before the broker has looked for a certificate
        assert link.version() == "TLSv1.3"
    cause = root_cause(refused(newest, ClientCertificateMissing).__cause__)
    assert type(cause) is px.IncompatibleProtocolError  # Pika's word for an end before Connection.Start
    assert "CERTIFICATE_REQUIRED" in str(cause)  # an alert that only TLS 1.3 has (RFC 8446, 6.2)


@pytest.mark.own_broker
def test_every_adapter_is_refused_once_without_a_client_certificate(strict):
    with on_every_adapter(strict.settings(tls=True).replace(connection_attempts=5)) as trials:
        assert {each["kind"] for each in ends(trials, "failed").values()} == {"REFUSED"}
        assert {names.count("ConnectAttempted") for names in events(trials).values()} == {1}


@pytest.mark.own_broker
def test_a_missing_client_certificate_is_not_tried_for_ever_by_a_recovering_connection(strict):
    with pytest.raises(ClientCertificateMissing):
        Connection(strict.settings(tls=True), backoff=BRISK, recovery=True).open()


@pytest.mark.own_broker
def test_a_renewed_client_certificate_is_used_by_the_next_connection_without_a_restart(strict, tmp_path):
    mine, certificates = tmp_path / "mine.pem", strict.certificates
    mine.write_bytes(b"".join(path.read_bytes() for path in certificates.stranger("lab")))
    bare = strict.settings(tls=True)
    with ConnectionPool(
        bare.replace(tls=bare.tls.replace(cert_file=mine)), min_size=0, max_size=1, timeout=20.0
    ) as pool:
        with pytest.raises(LabkitError) as caught, pool.connection():
            pass
        assert any(isinstance(each, ClientCertificateRefused) for each in (caught.value, caught.value.__cause__))
        mine.write_bytes(b"".join(path.read_bytes() for path in certificates.client("lab")))
        with pool.connection() as connection:
            assert connection.is_open


def test_a_login_by_certificate_works_on_every_adapter(broker, secure):
    broker.add_user("by-certificate")
    try:
        broker.grant("by-certificate", secure.virtual_host)
        me = showing(secure, broker.certificates.client("by-certificate")).replace(auth_mechanism="EXTERNAL")
        with on_every_adapter(me) as trials:
            for trial in trials:
                trial.wait_for("echoed")
            expected = {(f"on-{adapter}", "by-certificate") for adapter in ADAPTERS}
            until(  # the test before may still be in the list: a closed TLS connection stays for some seconds
                lambda: (
                    {(each.client_name, each.username) for each in broker.connections(secure.virtual_host)} >= expected
                )
            )
    finally:
        broker.delete_user("by-certificate")


def test_a_login_by_the_certificate_of_nobody_is_refused(broker, secure):
    me = showing(secure, broker.certificates.client("nobody-here")).replace(auth_mechanism="EXTERNAL")
    with pytest.raises(AuthenticationFailed):  # no such user
        ConnectionFactory(me).blocking()


# -- who verifies nothing ----------------------------------------------------------------------------------------------


def test_the_naive_context_tells_an_impostor_the_password_and_ours_does_not(plain, front, certificates, trusting):
    """The context that tutorials show: an authority is loaded, and nothing is checked."""
    naive = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    naive.check_hostname, naive.verify_mode = False, ssl.CERT_NONE  # what PROTOCOL_TLS sets, without its deprecation
    naive.load_verify_locations(certificates.ca_file)
    throwaway = plain.replace(password="for the impostor")
    with Proxy(plain) as proxy, front("other-ca", upstream=proxy.settings()) as impostor:
        tap = proxy.tap(reveal=True)
        host, port = impostor.settings().addresses[0]
        with pytest.raises(px.ProbableAuthenticationError):
            pika.BlockingConnection(
                pika.ConnectionParameters(
                    host,
                    port,
                    credentials=pika.PlainCredentials("ann", "for the impostor"),
                    ssl_options=pika.SSLOptions(naive, "localhost"),
                )
            )
        assert b"for the impostor" in b"".join(entry.frame.payload for entry in tap.entries() if entry.frame)
        tap.clear()
        refusal(impostor.settings(tls=trusting, password=throwaway.password), CertificateNotTrusted)
        assert not tap.entries()
        with pytest.warns(InsecureTls):  # the same without a check, by its name
            ConnectionFactory(impostor.settings(tls=trusting.replace(insecure=True))).blocking().close()


# -- renewed certificates ----------------------------------------------------------------------------------------------


def test_recovery_outlives_a_certificate_file_that_is_half_written(front, certificates, tmp_path):
    authority = tmp_path / "ca.pem"
    good = certificates.ca_file.read_bytes()
    authority.write_bytes(good)
    with (
        front() as door,
        Proxy(door.settings(tls=TlsSettings(ca_file=authority))) as proxy,
        connected(proxy.settings(), recovery=True) as (connection, timeline),
    ):
        authority.write_bytes(good[: len(good) // 2])
        proxy.cut()
        timeline.wait_for(ConnectionLost, timeout=10)
        time.sleep(0.5)  # not for a condition: some attempts are to fail
        assert connection.state is not State.FAILED
        authority.write_bytes(good)
        timeline.wait_for(ConnectionRecovered, timeout=20)


# -- the engine's promises, by TLS -------------------------------------------------------------------------------------


def test_a_publisher_loses_nothing_over_cuts_of_a_tls_link(secure):
    with Proxy(secure) as proxy, connected(proxy.settings(heartbeat=2), recovery=True) as (connection, timeline):
        connection.channel().declare(Queue("orders"))
        with Publisher(connection) as publisher:
            confirmations = []
            for number in range(300):
                if number % 100 == 50:
                    mark = timeline.mark()
                    proxy.cut(reset=number > 100)
                    timeline.wait_for(ConnectionRecovered, timeout=20, since=mark)
                confirmations.append(publisher.publish(str(number), routing_key="orders"))
            for each in confirmations:
                each.result(timeout=30)
        channel = connection.channel()
        arrived = set()
        while (message := channel.get("orders")) is not None:
            arrived.add(message.body)
            message.ack()
        assert arrived == {str(number).encode() for number in range(300)}


def test_recovery_waits_for_a_tls_listener_that_is_down(secure):
    with through_a_proxy(secure, recovery=True) as (proxy, connection, timeline):
        with proxy.fault(Refuse()):
            proxy.cut()
            connection.wait_for(State.WAITING, timeout=10)
        timeline.wait_for(ConnectionRecovered, timeout=20)
        assert connection.status().tls is not None
