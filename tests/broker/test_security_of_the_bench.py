"""The bench guards its learner: loopback only, passwords nobody chose, no more rights than needed, no secret shown."""

import logging
import os
import re
import secrets
import socket
import stat
import traceback
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from labkit import (
    AuthenticationFailed,
    Connection,
    LabkitError,
    MessageRefused,
    Publisher,
    Queue,
    SyncConnection,
    brokers,
)
from labkit.brokers import zero
from labkit.brokers.certificates import LabCertificates
from labkit.brokers.credentials import new_password
from labkit.brokers.state import STATE_FILE, StateFile
from labkit.lab import Lab
from labkit.wire import Proxy, TlsTerminator
from tests.broker.connections import own_virtual_host
from tests.view import until

pytestmark = pytest.mark.broker
LOOPBACK = {"127.0.0.1", "::1"}
PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----\s+(\S+)")
on_linux = pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="reads /proc")


@pytest.fixture(scope="module")
def settings(broker):
    with own_virtual_host(broker) as settings:
        yield settings


@pytest.fixture
def record(broker):
    found = StateFile(broker.home).read() if broker.home is not None else None
    if found is None:
        pytest.skip("this broker is a URL: somebody else's")
    return found


@pytest.fixture
def known_secrets(broker, record):
    """Everything that must not be seen: the password, the cookie, the lines of the private keys."""
    found = {broker.settings().password.get_secret_value()}
    for path in broker.home.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.stat().st_size < 20_000:
            found |= set(PRIVATE_KEY.findall(path.read_text(errors="replace")))
    cookies = [path.read_text().strip() for path in broker.home.glob("*/home/.erlang.cookie")]
    assert len(found) > 1, "no private key was found: this test would look for nothing"
    return found | set(cookies)


# -- who can reach it --------------------------------------------------------------------------------------------------


@on_linux
def test_nothing_of_the_bench_listens_beyond_loopback(record, settings, tmp_path):
    """The notebook server has a test of its own, where it runs."""
    known = LabCertificates(tmp_path)
    with Proxy(settings) as proxy, TlsTerminator(settings, known.server("other-ca"), ca_file=known.ca_file) as impostor:
        own = {proxy.settings().port, impostor.settings().port}
        ports = own | {record.amqp_port, record.management_port, record.dist_port, record.epmd_port, record.amqps_port}
        listening = [each for each in psutil.net_connections("tcp") if each.status == psutil.CONN_LISTEN]
        ours = {each.laddr.port: each.laddr.ip for each in listening if each.laddr.port in ports - {0}}
        assert own | {record.amqp_port, record.management_port} <= ours.keys()
        assert set(ours.values()) <= LOOPBACK


@on_linux
def test_no_process_of_the_broker_listens_anywhere_else(record):
    if not record.pid:
        pytest.skip("this broker's processes are a container's: only its published ports count")
    root = psutil.Process(record.pid)
    family = [root, *root.children(recursive=True)]
    listening = [each for process in family for each in process.net_connections("tcp")]
    addresses = {each.laddr.ip for each in listening if each.status == psutil.CONN_LISTEN}
    assert addresses
    assert addresses <= LOOPBACK


def test_passwords_are_drawn_and_not_chosen(broker, record):
    drawn = {new_password() for _ in range(100)}
    assert len(drawn) == 100
    assert min(len(each) for each in drawn) >= 20
    assert len(record.password) >= 20
    with pytest.raises(AuthenticationFailed):
        SyncConnection(broker.settings().replace(password="guest")).open()


@contextmanager
def dialling_from(address):
    """Our sockets get that address of this machine; Pika has no setting for it."""
    connect = socket.socket.connect

    def from_there(self, target):
        self.bind((address, 0))
        return connect(self, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", from_there)
        yield


def test_only_the_drawn_user_exists_and_nobody_can_log_in_as_guest(broker, record):
    """A well-known password on a loopback port would make every user of this machine an administrator."""
    assert broker.users() == [record.username]
    guest = {"username": "guest", "password": "guest"}
    with pytest.raises(AuthenticationFailed):
        SyncConnection(broker.settings().replace(**guest)).open()
    answer = httpx.get(f"{broker.management_url}/api/whoami", auth=tuple(guest.values()), trust_env=False)
    assert answer.status_code == 401


def test_a_broker_brought_back_to_zero_still_has_no_guest():
    with brokers.own() as private:
        private.add_user("forgotten")
        zero.reset(private, lambda _: None)
        assert private.users() == [private.settings().username]


@pytest.fixture(scope="module")
def guested():
    """A private node with the guest of an ordinary installation: users are global, so not on the shared one."""
    with brokers.own() as private:
        private.ctl("add_user", "guest", "guest")
        private.grant("guest", "/")
        yield private


def version_info(broker):
    return tuple(int(part) for part in re.findall(r"\d+", broker.version)[:3])


@on_linux  # where any address of the machine reaches its loopback address
def test_guest_is_refused_from_another_address_of_this_machine_and_the_benchs_user_is_not(guested):
    known = [each.address for card in psutil.net_if_addrs().values() for each in card if each.family == socket.AF_INET]
    others = [address for address in known if not address.startswith("127.")]
    if guested.backend == "compose":
        pytest.skip("its ports are published: the broker sees every client at the engine's own address")
    if version_info(guested) < (4, 3, 6):
        pytest.skip("3.10.8 and 4.0.5 look at their own address, where they were reached: 127.0.0.1 here")
    if not others:
        pytest.skip("this machine has a loopback address only")
    bench = guested.settings()
    guest = bench.replace(username="guest", password="guest")
    SyncConnection(guest).open().close()
    with dialling_from(others[0]):
        SyncConnection(bench).open().close()
        with pytest.raises(AuthenticationFailed):
            SyncConnection(guest).open()
    until(lambda: "user 'guest' can only connect via localhost" in guested.logs(2000))


def test_guest_is_refused_from_any_address_but_loopback(guested):
    """Asked of the broker's own rule: also where a login from another address cannot be made or is not refused."""
    ask = 'rabbit_access_control:check_user_loopback(<<"{user}">>, {{{address}}}).'
    told = {
        (user, address): guested.ctl("eval", ask.format(user=user, address=address)).strip()
        for user, address in (("guest", "127,0,0,1"), ("guest", "192,0,2,1"), ("lab", "192,0,2,1"))
    }
    assert list(told.values()) == ["ok", "not_allowed", "ok"]


# -- what a login may do -----------------------------------------------------------------------------------------------


def test_a_user_that_may_not_write_there_is_told_403_for_a_publish_and_one_that_may_is_confirmed(
    broker, record, settings
):
    name, password = f"clerk-{secrets.token_hex(4)}", new_password()
    broker.add_user(name, password)
    try:
        broker.grant(name, settings.virtual_host, configure="", write="^amq\\.topic$", read="")
        with Publisher(settings.replace(username=name, password=password)) as publisher:
            publisher.publish("x", exchange="amq.topic", routing_key="x", mandatory=False).result(timeout=20)
            with pytest.raises(MessageRefused) as refused:
                publisher.publish("x", exchange="amq.fanout", routing_key="x").result(timeout=20)
            assert refused.value.reason.reply_code == 403
    finally:
        broker.delete_user(name)


# -- what is seen of secrets -------------------------------------------------------------------------------------------


def test_no_secret_is_in_a_repr_a_log_or_a_traceback(broker, record, settings, known_secrets, caplog):
    texts = []
    caplog.set_level(logging.DEBUG)
    with Proxy(settings) as proxy, Connection(proxy.settings()) as connection:
        connection.channel().declare(Queue(exclusive=True))
        lab = Lab("security")
        shown = (
            broker,
            record,
            settings,
            proxy,
            proxy.conversation(),
            connection,
            connection.status(),
            lab,
            proxy.tap(),
        )
        texts += [f"{each!r} {each}" for each in shown]
        texts.append(settings.to_url())
    wrong = new_password()
    bad = (settings.replace(password=wrong), settings.replace(port=1), settings.replace(virtual_host="not there"))
    for each in bad:
        with pytest.raises(LabkitError) as caught:
            SyncConnection(each).open()
        texts.append("".join(traceback.format_exception(caught.value)))
        texts.append(str(lab.explain(caught.value)) if hasattr(lab, "explain") else "")
    texts.append(caplog.text)
    lab.close()
    assert "ACCESS_REFUSED" in caplog.text, "nothing was logged: this test would look at nothing"
    leaked = [secret[:4] for secret in known_secrets | {wrong} for text in texts if secret in text]
    assert leaked == []


def test_no_secret_is_in_the_brokers_log(broker, record, known_secrets):
    log = broker.logs(2000)
    assert log
    assert [secret[:4] for secret in known_secrets if secret in log] == []


@on_linux
def test_no_secret_is_in_a_command_line(record, known_secrets):
    """The environment of a process is its owner's to read; a command line is everybody's."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes().decode(errors="replace"))
        except OSError:  # it has ended, or is somebody else's
            continue
    assert any("beam" in line or "docker" in line for line in lines)
    assert [secret[:4] for secret in known_secrets for line in lines if secret in line] == []


@pytest.mark.skipif(os.name == "nt", reason="modes are not what protects a file there")
def test_what_holds_a_secret_is_for_the_learners_eyes_only(broker, record, known_secrets):
    assert stat.S_IMODE(broker.home.stat().st_mode) == 0o700  # so what a container has to read may be 0644 inside
    assert stat.S_IMODE((broker.home / STATE_FILE).stat().st_mode) == 0o600
    keys = [path for path in broker.home.glob("certificates/*.key") if path.name != "server.key"]
    assert keys
    assert {stat.S_IMODE(path.stat().st_mode) for path in keys} == {0o600}
