"""TLS endpoints with flawed certificates in front of a broker: who looks refuses them, who does not is read along."""

import contextlib
import threading
import warnings
from collections.abc import Iterator

import pika
import pytest

from labkit.brokers import Broker
from labkit.brokers.certificates import FLAWED, Flaw, LabCertificates
from labkit.errors import ConfigurationError
from labkit.lab import Lab
from labkit.settings.settings import BrokerSettings
from labkit.settings.tls import TlsSettings
from labkit.wire import Proxy, TlsTerminator
from tests.broker.backends import connect
from tests.broker.tls import REFUSED, by_certificate, showing
from tests.view import until

pytestmark = [pytest.mark.broker, pytest.mark.timeout(180)]


def connect_blindly(impostor: TlsTerminator) -> pika.BlockingConnection:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it verifies nothing is what we are here for
        return connect(impostor.settings(tls=TlsSettings(insecure=True)))


@pytest.fixture
def lab(broker: Broker, encrypted: BrokerSettings) -> Iterator[Lab]:
    with Lab("tls") as lab:
        yield lab


@pytest.mark.parametrize("flaw", [*FLAWED, None])
def test_an_impostor_is_refused_by_who_looks_and_reads_along_with_who_does_not(lab: Lab, flaw: Flaw | None) -> None:
    impostor = lab.impostor(flaw)
    if flaw is None:
        connect(impostor.settings()).close()
        assert (impostor.served, impostor.refused) == (1, 0)
        return
    with pytest.raises(REFUSED):
        connect(impostor.settings())
    until(lambda: impostor.refused == 1)
    assert impostor.served == 0

    connect_blindly(impostor).close()
    assert impostor.served == 1


def test_links_that_end_in_order_leave_no_complaint_in_the_log(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    impostor = lab.impostor(None)
    for _ in range(20):
        connect(impostor.settings()).close()
    impostor.close()
    assert impostor.served == 20
    assert [each.getMessage() for each in caplog.records if each.name == "asyncio"] == []


def test_what_an_impostor_reads_is_seen_by_the_proxy_behind_it(lab: Lab) -> None:
    proxy = lab.proxy()
    proxy.tap(reveal=True)
    impostor = lab.impostor("other-ca", upstream=proxy.settings())
    connect_blindly(impostor).close()
    password = lab.settings().password.get_secret_value()
    assert password in str(proxy.conversation())


def test_a_proxy_in_front_of_the_tls_listener_reads_nothing(lab: Lab) -> None:
    proxy = lab.proxy(tls=True)
    connect(proxy.settings()).close()
    assert "encrypted (TLS)" in str(proxy.conversation())
    assert "Connection" not in str(proxy.conversation())


def test_an_impostor_ends_with_its_lab_and_leaves_no_thread(broker: Broker, encrypted: BrokerSettings) -> None:
    with Lab("tls") as lab:
        impostor = lab.impostor("expired")
        left = connect_blindly(impostor)
    assert repr(impostor) == "<TlsTerminator (closed)>"
    assert "labkit-terminator" not in {each.name for each in threading.enumerate()}
    with contextlib.suppress(*REFUSED):
        left.close()


def test_an_interrupt_as_a_proxy_opens_leaves_none_after_its_lab(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Proxy] = []

    def interrupted(proxy: Proxy) -> None:
        opened.append(open_one(proxy))
        raise KeyboardInterrupt

    open_one = Proxy.open
    monkeypatch.setattr(Proxy, "open", interrupted)
    with pytest.raises(KeyboardInterrupt):
        lab.proxy()
    lab.close()
    assert [each.is_open for each in opened] == [False]


def test_a_users_login_ends_with_the_lab(broker: Broker, encrypted: BrokerSettings) -> None:
    with Lab("tls") as lab:
        lab.user("bob", configure="", write="", read=".*")
        by_certificate(showing(lab.settings(tls=True), lab.certificates.client("bob"))).close()
        with pytest.raises(REFUSED):
            connect(lab.settings(), username="bob", password="guessed")
    assert not broker.delete_user("bob")


def test_a_shared_broker_is_not_told_to_demand_certificates() -> None:
    with pytest.raises(ConfigurationError, match="demand_certificate: allowed together with own_broker=True"):
        Lab("tls", demand_certificate=True)


def test_a_terminator_says_what_it_cannot_stand_in_front_of(
    encrypted: BrokerSettings, certificates: LabCertificates
) -> None:
    with pytest.raises(ConfigurationError, match="upstream: settings without TLS"):
        TlsTerminator(encrypted, certificates.server(), ca_file=certificates.ca_file)
