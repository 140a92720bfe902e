"""Every verb of the bench's broker, on every backend that this machine has."""

import time
from collections.abc import Iterator
from pathlib import Path

import pika
import pika.exceptions
import pytest
from pika.adapters.utils.connection_workflow import AMQPConnectorStackTimeout

from labkit import brokers
from labkit.brokers import Broker, zero
from labkit.brokers.remote import RemoteBroker
from labkit.brokers.state import StateFile
from labkit.errors import BrokerError
from tests.broker.backends import BACKENDS, connect, error_of, eventually, pins_of

pytestmark = [pytest.mark.broker, pytest.mark.own_broker, pytest.mark.timeout(180)]


@pytest.fixture(scope="module", params=BACKENDS)
def machine(request: pytest.FixtureRequest) -> Iterator[Broker]:
    kind, pins = pins_of(request.param)
    with brokers.own(kind, rootfs=pins.rootfs, scripts=pins.scripts, image=pins.image) as broker:
        yield broker


@pytest.fixture
def node(machine: Broker) -> Broker:
    """The module's broker, running and empty at the beginning of each test."""
    zero.reset(machine, lambda _: None)
    return machine


# --- looking ---------------------------------------------------------------------------------------


def test_connections_shows_a_connection_at_once_with_its_own_name(node: Broker) -> None:
    connection = connect(node.vhost("shown"), connection_name="fresh")
    connection.channel()

    shown = node.connections("shown")

    assert [(each.client_name, each.virtual_host, each.username, each.channels) for each in shown] == [
        ("fresh", "shown", "lab", 1)
    ]
    assert node.count_connections("shown") == 1
    connection.close()


def test_a_scoped_broker_sees_and_closes_its_own_virtual_host_only(node: Broker) -> None:
    mine, other = connect(node.vhost("mine")), connect(node.vhost("other"))
    scoped = node.scoped("mine")

    assert [each.virtual_host for each in scoped.connections()] == ["mine"]
    assert scoped.settings().virtual_host == "mine"
    assert scoped.close_connections("the lesson is over") == 1

    ended = error_of(mine)
    assert isinstance(ended, pika.exceptions.ConnectionClosedByBroker)
    assert (ended.reply_code, ended.reply_text) == (320, "CONNECTION_FORCED - the lesson is over")
    assert eventually(lambda: node.count_connections() == 1)
    other.process_data_events(0)
    other.close()


def test_close_connections_without_a_scope_closes_all_of_them(node: Broker) -> None:
    open_now = [connect(node.vhost("one")), connect(node.vhost("two"))]

    assert node.close_connections("everybody out") == 2

    assert [type(error_of(each)) for each in open_now] == [pika.exceptions.ConnectionClosedByBroker] * 2


def test_a_connection_that_the_broker_has_not_listed_yet_is_closed_too(node: Broker) -> None:
    here = node.vhost('a "quoted" näme')
    node.ctl("eval", "sys:suspend(rabbit_event).")  # which the list is made from
    try:
        unlisted = connect(here)
        closed = node.close_connections('for the "night"', here.virtual_host)
    finally:
        node.ctl("eval", "sys:resume(rabbit_event).")

    assert closed == 1
    assert 'for the "night"' in str(error_of(unlisted))


def test_closing_the_connections_of_an_empty_broker_closes_none(node: Broker) -> None:
    assert node.close_connections("nobody there") == 0


def test_version_and_logs_are_the_brokers_own(node: Broker) -> None:
    assert node.version.count(".") == 2
    assert "RabbitMQ" in node.logs(5000)
    assert len(node.logs(3).splitlines()) == 3


def test_a_virtual_host_is_made_once_and_deleted_once(node: Broker) -> None:
    node.vhost("a/b c")
    node.vhost("a/b c")

    assert node.vhosts() == ["/", "a/b c"]
    assert node.delete_vhost("a/b c")
    assert not node.delete_vhost("a/b c")


def test_nothing_shows_the_password(node: Broker) -> None:
    secret = node.settings().password.get_secret_value()
    assert node.home is not None
    shown = [repr(node), str(node.settings()), node.settings().to_url(), repr(StateFile(node.home).read())]
    assert secret
    assert not [each for each in shown if secret in each]


# --- alarms ----------------------------------------------------------------------------------------


def watermark(node: Broker) -> str:
    return node.ctl("eval", "vm_memory_monitor:get_vm_memory_high_watermark().").strip()


def test_an_alarm_blocks_publishers_and_is_gone_after_the_block(node: Broker) -> None:
    before = watermark(node)
    connection = connect(node.vhost("alarmed"))
    said: list[str] = []
    connection.add_on_connection_blocked_callback(lambda _, frame: said.append(str(frame.method.reason)))
    connection.add_on_connection_unblocked_callback(lambda *_: said.append("unblocked"))
    channel = connection.channel()

    def heard(expected: list[str]) -> bool:
        connection.process_data_events(0.05)
        return said == expected

    assert not node.has_alarm
    with node.alarm():
        channel.basic_publish("", "nowhere", b"x")
        assert eventually(lambda: heard(["low on memory"]))
        assert node.has_alarm
    assert eventually(lambda: heard(["low on memory", "unblocked"]))
    assert not node.has_alarm

    assert watermark(node) == before
    connection.close()


def test_a_publisher_that_an_alarm_blocks_gives_up_after_its_blocked_connection_timeout(node: Broker) -> None:
    connection = connect(node.vhost("impatient").replace(blocked_connection_timeout=1.0))
    channel = connection.channel()
    with node.alarm():
        channel.basic_publish("", "nowhere", b"x")
        with pytest.raises(pika.exceptions.ConnectionBlockedTimeout):
            connection.sleep(15)


def test_an_alarm_that_somebody_left_on_is_not_taken_for_the_normal_state(node: Broker) -> None:
    normal = watermark(node)
    node.ctl("set_vm_memory_high_watermark", "0")
    with node.alarm():
        pass
    assert watermark(node) == normal


def test_an_alarm_block_survives_a_broker_that_was_killed_inside(node: Broker) -> None:
    with node.alarm():
        node.kill()
    assert not node.is_running


def test_an_alarm_block_that_a_paused_broker_cannot_end_says_that_the_alarm_stays_on(node: Broker) -> None:
    before = watermark(node)
    says = r"paused, and its memory alarm stays on: resume\(\) it, then clear_alarm\(\)"
    with pytest.raises(BrokerError, match=says), node.alarm():
        node.pause()
    node.resume()
    assert node.has_alarm
    node.clear_alarm()
    assert watermark(node) == before
    assert not node.has_alarm


@pytest.mark.parametrize("interrupted", [1, 2])
def test_an_interrupt_while_an_alarm_begins_or_ends_leaves_it_off(
    node: Broker, interrupted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ctl, calls = node.ctl, 0

    def interrupting(*arguments: str, **options: float) -> str:
        nonlocal calls
        calls += 1
        if calls == interrupted == 2:
            raise KeyboardInterrupt
        said = ctl(*arguments, **options)
        if calls == interrupted:
            raise KeyboardInterrupt
        return said

    before = watermark(node)
    monkeypatch.setattr(node, "ctl", interrupting)
    with pytest.raises(KeyboardInterrupt), node.alarm():
        assert interrupted == 2
    monkeypatch.undo()
    assert watermark(node) == before
    assert not node.has_alarm


# --- processes -------------------------------------------------------------------------------------


def test_a_graceful_stop_tells_the_client_and_start_brings_the_same_address_back(node: Broker) -> None:
    settings = node.settings()
    connection = connect(settings)

    node.stop()

    ended = error_of(connection)
    assert isinstance(ended, pika.exceptions.ConnectionClosedByBroker)
    assert ended.reply_code == 320
    assert not node.is_running
    node.start()
    assert node.settings() == settings
    connect(settings).close()


def test_a_kill_says_nothing_and_loses_no_durable_queue(node: Broker) -> None:
    settings = node.vhost("kept")
    connection = connect(settings)
    connection.channel().queue_declare("kept", durable=True)
    # Mnesia (all there is on 3.10) writes its log a moment later: killed at once, the broker may forget the queue.
    node.ctl("eval", "mnesia:sync_log().")

    node.kill()

    assert isinstance(error_of(connection), pika.exceptions.StreamLostError)
    node.start()
    again = connect(settings)
    again.channel().queue_declare("kept", durable=True, passive=True)
    again.close()


def test_restart_ends_connections_and_comes_back_ready(node: Broker) -> None:
    connection = connect(node.settings())
    node.restart()
    assert isinstance(error_of(connection), pika.exceptions.ConnectionClosedByBroker)
    connect(node.settings()).close()


def test_a_paused_broker_is_silent_and_goes_on_where_it_was(node: Broker) -> None:
    connection = connect(node.settings())
    node.pause()
    assert node.is_paused
    assert node.is_running
    with pytest.raises(AMQPConnectorStackTimeout):
        connect(node.settings(), stack_timeout=1.0, socket_timeout=1.0)
    with pytest.raises(BrokerError, match="paused"):
        node.ctl("status")

    node.resume()

    assert not node.is_paused
    connection.channel().queue_declare("", exclusive=True)
    connection.close()


@pytest.mark.parametrize("verb", ["stop", "kill"])
def test_a_paused_broker_can_be_ended(node: Broker, verb: str) -> None:
    node.pause()
    began = time.monotonic()
    getattr(node, verb)()
    assert not node.is_running
    assert time.monotonic() - began < 15.0


def test_starting_twice_is_as_good_as_once(node: Broker) -> None:
    node.start()
    node.start()
    connect(node.settings()).close()


def test_a_stopped_broker_says_that_it_is_not_running(node: Broker) -> None:
    node.kill()
    for verb in (node.pause, node.resume, lambda: node.ctl("status")):
        with pytest.raises(BrokerError, match="not running"):
            verb()


# --- by URL ----------------------------------------------------------------------------------------


def test_the_url_backend_lists_closes_and_refuses_processes(node: Broker, tmp_path: Path) -> None:
    # The page of this broker is at a free port; a classroom's is at the usual one.
    remote = RemoteBroker(f"{node.settings().to_url(mask=False)}?management={node.management_url}", tmp_path / "bench")
    connection = connect(remote.vhost("class"), connection_name="student")

    assert remote.capabilities == {"management"}
    assert remote.is_running
    assert [each.client_name for each in remote.connections("class")] == ["student"]
    assert remote.scoped("class").close_connections("time is up") == 1
    assert "time is up" in str(error_of(connection))
    for verb in (remote.stop, remote.kill, remote.pause, remote.throw_away, remote.alarm().__enter__):
        with pytest.raises(BrokerError, match="url broker cannot"):
            verb()
    with pytest.raises(BrokerError, match="in use by others"):
        zero.reset(remote, print)
