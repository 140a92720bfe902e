"""A notebook's Lab on a real broker: its own virtual host, what it finds open at the end, and a broker that went."""

import subprocess
import sys
from collections.abc import Iterator

import pika
import pika.exceptions
import pytest

from labkit import ConnectionManager, brokers
from labkit.brokers import Broker
from labkit.brokers.discovery import VARIABLE
from labkit.errors import BrokerError
from labkit.lab import Lab
from labkit.settings.settings import BrokerSettings
from labkit.trials.stand import stand
from tests.broker.backends import error_of

pytestmark = [pytest.mark.broker, pytest.mark.timeout(120)]


@pytest.fixture
def bench(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> Broker:
    """The test broker, named to Lab as it is to a kernel."""
    if broker.home is not None:
        monkeypatch.setenv(VARIABLE, str(broker.home))
    return broker


@pytest.fixture
def lab(bench: Broker) -> Iterator[Lab]:
    lab = Lab("bench")
    yield lab
    lab.close()


@pytest.fixture
def private() -> Iterator[Lab]:
    """A lab with a node of its own, to stop it."""
    with Lab("private", own_broker=True) as lab:
        lab.settings()
        yield lab


def connect(settings: BrokerSettings, **changes: object) -> pika.BlockingConnection:
    return pika.BlockingConnection(settings.replace(**changes).to_pika()[0])


def test_making_a_lab_asks_no_broker_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(brokers, "up", lambda *_: pytest.fail("a broker was looked for"))
    lab = Lab("idle")
    assert repr(lab) == "Lab('idle')"
    lab.close()


def test_the_first_use_gives_an_empty_virtual_host_named_after_the_notebook(bench: Broker, lab: Lab) -> None:
    left_behind = connect(bench.vhost("lab-bench"))
    left_behind.channel().queue_declare("from an earlier run")

    settings = lab.settings()

    assert (settings.virtual_host, settings.connection_name) == ("lab-bench", "lab-bench")
    assert isinstance(error_of(left_behind), pika.exceptions.ConnectionClosedByBroker)
    fresh = connect(settings)
    with pytest.raises(pika.exceptions.ChannelClosedByBroker):
        fresh.channel().queue_declare("from an earlier run", passive=True)
    fresh.close()
    assert lab.settings() == settings


def test_a_lab_that_was_used_and_tidied_says_so_and_takes_its_virtual_host_along(
    bench: Broker, lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    connect(lab.settings()).close()
    lab.close()
    assert "lab-bench" not in bench.vhosts()
    lab.close()
    assert capsys.readouterr().out == "nothing left open\nnothing left open\n"


def test_connections_left_open_are_named_as_the_notebook_named_them_and_closed(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("worker", "worker", "publisher")
    left = [connect(lab.settings(), connection_name=name) for name in names]

    lab.close()

    # No address and no port: this is an output that is compared from run to run.
    assert capsys.readouterr().out.splitlines() == [
        "left open: 1 x connection publisher",
        "left open: 2 x connection worker",
    ]
    assert [type(error_of(each)) for each in left] == [pika.exceptions.ConnectionClosedByBroker] * 3


def test_a_second_lab_with_the_same_id_closes_what_the_first_left(lab: Lab) -> None:
    abandoned = connect(lab.settings())
    proxy = lab.proxy()
    assert proxy.is_open

    with Lab("bench") as again:
        assert isinstance(error_of(abandoned), pika.exceptions.ConnectionClosedByBroker)
        assert not proxy.is_open
        connect(again.settings()).close()


def test_two_labs_see_their_own_connections_only(lab: Lab) -> None:
    with Lab("other") as other:
        mine, theirs = connect(lab.settings()), connect(other.settings())
        assert [each.client_name for each in lab.broker.connections()] == ["lab-bench"]
        assert lab.broker.close_connections("mine alone") == 1
        assert "mine alone" in str(error_of(mine))
        theirs.process_data_events(0)
        theirs.close()


def test_the_block_frees_everything_without_a_word(bench: Broker, capsys: pytest.CaptureFixture[str]) -> None:
    with Lab("block") as lab:
        left = connect(lab.settings())
    assert isinstance(error_of(left), pika.exceptions.ConnectionClosedByBroker)
    assert "lab-block" not in bench.vhosts()
    assert capsys.readouterr().out == ""


def test_the_doctor_of_a_notebook_looks_at_the_broker_that_the_notebook_uses(lab: Lab) -> None:
    rows = {finding.name: finding.ok for finding in lab.doctor()}
    assert rows["broker"]
    assert rows["management"]


def test_a_kernel_that_ends_without_close_leaves_no_virtual_host(bench: Broker) -> None:
    code = "from labkit.lab import Lab; lab = Lab('forgotten'); print(lab.settings().virtual_host)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "lab-forgotten\n"
    assert "lab-forgotten" not in bench.vhosts()


@pytest.mark.own_broker
def test_a_private_broker_goes_with_its_lab_also_when_it_is_gone_already(
    bench: Broker, private: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    node = private.broker
    assert node.settings().port != bench.settings().port
    node.kill()

    private.close()

    assert capsys.readouterr().out == "nothing left open\n"
    assert node.home is not None
    assert not node.home.exists()
    assert bench.is_running


@pytest.mark.own_broker
def test_close_resumes_a_broker_that_was_left_paused_and_says_so(
    private: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    forgotten = connect(private.settings())
    private.broker.pause()
    private.close()
    assert capsys.readouterr().out.splitlines() == [
        "left paused: the broker",
        "left open: 1 x connection lab-private",
    ]
    with pytest.raises(pika.exceptions.AMQPError):
        forgotten.process_data_events(5)


@pytest.mark.own_broker
def test_close_ends_the_private_broker_whatever_its_other_steps_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    lab = Lab("08", own_broker=True)
    node = lab.broker
    monkeypatch.setattr(type(node), "delete_vhost", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        lab.close()
    assert node.home is not None
    assert not node.home.exists()


def test_a_first_use_that_fails_half_way_leaves_no_virtual_host(
    bench: Broker, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_answer(*_: object, **__: object) -> list[str]:
        raise BrokerError("no answer")

    with monkeypatch.context() as silent:
        silent.setattr(type(bench), "users", no_answer)
        with pytest.raises(BrokerError, match="no answer"):
            lab.settings()
    assert "lab-bench" not in bench.vhosts()
    assert lab.settings().virtual_host == "lab-bench"


@pytest.mark.own_broker
def test_a_first_use_that_fails_half_way_leaves_no_private_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Broker] = []

    def no_answer(broker: Broker, _: str) -> bool:
        begun.append(broker)
        raise BrokerError("no answer")

    with Lab("private", own_broker=True) as lab:
        monkeypatch.setattr(Broker, "delete_vhost", no_answer)
        with pytest.raises(BrokerError, match="no answer"):
            lab.settings()
        assert [each.home is not None and each.home.exists() for each in begun] == [False]


def test_a_stand_that_fails_half_way_leaves_no_virtual_host(bench: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_answer(*_: object, **__: object) -> None:
        raise BrokerError("no answer")

    monkeypatch.setattr(type(bench), "grant", no_answer)
    with pytest.raises(BrokerError, match="no answer"), stand(bench, ConnectionManager, "lab-trials"):
        raise AssertionError("not reached")
    assert "lab-trials" not in bench.vhosts()


def test_a_broker_that_cannot_be_had_is_said_at_first_use(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    def none_to_be_had(*_: object) -> Broker:
        raise BrokerError("no RabbitMQ to be had here")

    monkeypatch.setattr(brokers, "up", none_to_be_had)
    lab = Lab("nowhere")
    with pytest.raises(BrokerError, match="no RabbitMQ to be had"):
        lab.settings()
    lab.close()
