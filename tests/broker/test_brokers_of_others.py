"""A broker by URL that others use, too: nothing is written before it is proven to be one, nothing of theirs goes."""

import secrets
import subprocess
import sys
from collections.abc import Iterator

import pytest

from labkit import brokers
from labkit.brokers import Broker, remote
from labkit.brokers import home as homes
from labkit.brokers.remote import RemoteBroker
from labkit.errors import BrokerError, ConfigurationError
from labkit.lab import Lab
from tests.broker.backends import connect

pytestmark = [pytest.mark.broker, pytest.mark.own_broker, pytest.mark.timeout(180)]
PASSWORD = "correct-horse-" + secrets.token_hex(6)


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[Broker, Broker]]:
    """Two brokers of this machine; a class has the first one, and somebody else the second."""
    with brokers.own() as one, brokers.own() as two:
        for each in (one, two):  # the same login for both, as a school may have it
            each._api().put("users/teacher", {"password": PASSWORD, "tags": "administrator"})
            each.grant("teacher", "/")
        yield one, two


@pytest.fixture
def theirs(both: tuple[Broker, Broker]) -> Iterator[Broker]:
    """The class's broker, with a virtual host and a user that no bench has made."""
    broker = both[0]
    api = broker._api()
    api.put("vhosts/lab-04", {"description": "the payroll"})
    api.put(f"permissions/lab-04/{broker.settings().username}", {"configure": ".*", "write": ".*", "read": ".*"})
    api.put("users/alice", {"password": PASSWORD, "tags": "management"})
    connection = connect(broker.settings("lab-04"))
    connection.channel().queue_declare("salaries", durable=True)
    connection.close()
    yield broker
    for name in broker.vhosts():
        if name != "/":
            broker.delete_vhost(name)
    for name in broker.users():
        if name not in {broker.settings().username, "teacher"}:
            broker.delete_user(name)


@pytest.fixture(autouse=True)
def bench(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A learner's own directory, and nothing known of earlier proofs."""
    monkeypatch.setattr(homes, "bench", lambda: tmp_path / ".lab")
    monkeypatch.setattr(remote, "_proven", set())


def url_of(broker: Broker, page: Broker | None = None) -> str:
    login = broker.settings().replace(username="teacher", password=PASSWORD)
    return f"{login.to_url(mask=False)}?management={(page or broker).management_url}"


def everything(broker: Broker) -> object:
    """What a broker holds, as its own page tells."""
    shown = broker._api().get("definitions")
    return {name: shown[name] for name in ("vhosts", "users", "permissions", "queues")}


@pytest.fixture
def named(theirs: Broker, monkeypatch: pytest.MonkeyPatch) -> RemoteBroker:
    """The class's broker by its URL, as LABKIT_BROKER names it."""
    monkeypatch.setenv("LABKIT_BROKER", url_of(theirs))
    broker = brokers.up()
    assert isinstance(broker, RemoteBroker)
    return broker


# --- one broker, or two ------------------------------------------------------------------------------


@pytest.mark.parametrize("cluster", ["named otherwise", "of the same name"])
def test_nothing_is_written_to_a_broker_whose_page_is_another_brokers(
    both: tuple[Broker, Broker], theirs: Broker, cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the usual port 15672 is another broker's: each of two containers may be called rabbit@rabbitmq."""
    wrong = RemoteBroker(url_of(theirs, both[1]))
    if cluster == "of the same name":
        for each in both:
            each.ctl("set_cluster_name", "rabbit@rabbitmq")
        monkeypatch.setattr("labkit.brokers.proof.SHOWN_WITHIN", 7.0)
    before = [everything(each) for each in both]
    monkeypatch.setenv("LABKIT_BROKER", url_of(theirs, both[1]))
    attempts = [
        lambda: Lab("other").settings(),
        lambda: wrong.vhost("mine"),
        lambda: wrong.add_user("mine", PASSWORD),
    ]
    for attempt in attempts:
        with pytest.raises(BrokerError, match=r"nothing was changed; name the page .*\?management=http://host:15672"):
            attempt()
    assert [everything(each) for each in both] == before


def test_a_page_that_does_not_answer_is_named_with_what_to_do(theirs: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABKIT_BROKER", f"{theirs.settings().to_url(mask=False)}?management=http://127.0.0.1:1")
    lab = Lab("04")
    with pytest.raises(BrokerError, match=r"http://127\.0\.0\.1:1/.*no answer"):
        lab.settings()
    lab.close()


def test_a_broker_by_url_that_does_not_answer_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABKIT_BROKER", "amqp://lab:secret@127.0.0.1:1/")
    with pytest.raises(BrokerError, match=r"amqp://lab:\*\*\*@127\.0\.0\.1:1 does not answer: "):
        Lab("04").settings()
    for verb in ("up", "demo"):
        done = subprocess.run([sys.executable, "-m", "labkit.cli", verb], capture_output=True, text=True, timeout=60)
        assert done.returncode == 1
        assert "does not answer" in done.stderr
        assert "secret" not in done.stderr


# --- what is theirs ----------------------------------------------------------------------------------


def test_a_virtual_host_that_the_bench_did_not_make_is_left_alone(theirs: Broker, named: RemoteBroker) -> None:
    before = everything(theirs)
    connection = connect(theirs.settings("lab-04"))
    attempts = [
        lambda: Lab("04").settings(),
        lambda: named.delete_vhost("lab-04"),
        lambda: named.vhost("lab-04"),
        lambda: named.grant("lab", "lab-04", write=""),
        lambda: named.close_connections("out", "lab-04"),
        lambda: named.scoped("lab-04").close_connections("out"),
    ]
    for attempt in attempts:
        with pytest.raises(BrokerError, match="virtual host 'lab-04' on this broker was not made by this bench"):
            attempt()
    with pytest.raises(BrokerError, match="name the virtual host"):
        named.close_connections("everybody out")
    connection.process_data_events(0)
    connection.close()
    assert everything(theirs) == before


def test_what_another_learners_bench_has_made_is_not_ours_either(
    theirs: Broker, named: RemoteBroker, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    neighbour = RemoteBroker(url_of(theirs), tmp_path / "neighbour")
    neighbour.vhost("lab-05")
    neighbour.add_user("bob", PASSWORD)
    before = everything(theirs)
    with pytest.raises(BrokerError, match="'lab-05' on this broker was not made by this bench"):
        Lab("05").settings()
    with pytest.raises(BrokerError, match="user 'bob' was not made by this bench"):
        named.delete_user("bob")
    assert everything(theirs) == before
    assert neighbour.delete_user("bob")
    assert neighbour.delete_vhost("lab-05")


def test_a_lab_on_the_classs_broker_works_and_takes_along_what_it_made(
    theirs: Broker, named: RemoteBroker, capsys: pytest.CaptureFixture[str]
) -> None:
    before = everything(theirs)
    for _ in range(2):  # the second run meets what the first one left
        lab = Lab("06")
        connection = connect(lab.settings())
        lab.user("carol", PASSWORD)
        connect(lab.settings().replace(username="carol", password=PASSWORD)).close()
        connection.channel().queue_declare("left behind")
        connection.close()
        assert "left behind" in str(everything(theirs))
    lab.close()
    assert everything(theirs) == before


def test_a_run_that_was_killed_leaves_nothing_in_the_next_ones_way(theirs: Broker, named: RemoteBroker) -> None:
    named.vhost("lab-06")
    named.add_user("carol", PASSWORD, tag="lab-06")
    with Lab("06") as lab:
        lab.user("carol", PASSWORD)
        assert "carol" in theirs.users()
    assert "carol" not in theirs.users()


# --- users -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["by URL", "the bench's own"])
def test_a_user_that_is_there_is_neither_overwritten_nor_deleted(
    theirs: Broker, named: RemoteBroker, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if where != "by URL":
        monkeypatch.setenv("LABKIT_BROKER", str(theirs.home))
    before = everything(theirs)["users"]  # type: ignore[index]
    with Lab("07") as lab:
        lab.settings()
        for taken in ("alice", "lab", "teacher"):
            with pytest.raises(BrokerError, match=f"there is a user '{taken}' on this broker already"):
                lab.user(taken, PASSWORD)
            with pytest.raises(ConfigurationError, match="password: too weak"):
                lab.user(taken, "short")
    assert everything(theirs)["users"] == before  # type: ignore[index]
    connect(theirs.settings("/")).close()


@pytest.mark.parametrize(
    ("name", "password"), [(None, None), ("", None), ("x" * 256, None), (b"bob", None), ("bob", "short"), ("bob", 7)]
)
def test_a_user_that_cannot_be_is_refused_before_anything_and_close_ends_everything(
    name: object, password: object, capsys: pytest.CaptureFixture[str]
) -> None:
    lab = Lab("08", own_broker=True)
    with pytest.raises(ConfigurationError):
        lab.user(name, password)  # type: ignore[arg-type]
    assert lab._broker is None, "a broker was started for it"
    lab.close()
    assert capsys.readouterr().out == "nothing left open\n"
