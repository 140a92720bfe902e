"""What ``labkit.rpc`` declares and sends, as the broker and the wire show it; pool, context and connection."""

import json
import re
import threading
import time
from pathlib import Path

import pytest

from labkit import Connection, ConnectionPool, LeaseError, NotConnected, PoolClosed, PoolTimeout, Unroutable
from labkit.lab.interrupting import StopAfter
from labkit.rpc import (
    ConnectionContext,
    InvalidRPCConnectionReuse,
    NotificationListener,
    Notifier,
    RabbitOptions,
    RPCClient,
    RPCServer,
    Target,
    Transport,
)
from labkit.rpc.driver import PURPOSE_LISTEN, PURPOSE_SEND, ConnectionBase
from labkit.rpc.rabbit import ListeningConnection, RabbitDriver, SendingConnection
from tests.broker.connections import connected
from tests.broker.rpc import DURABLE, TOPIC, Sums, calling, served
from tests.unit.pool.still_pool import in_threads
from tests.view import until

pytestmark = pytest.mark.broker


@pytest.fixture
def transport(settings):
    with Transport(settings) as transport:
        yield transport


def queues(view, settings):
    """The queues there are, by name without what is random in it."""
    listed = view.get(f"queues/{settings.virtual_host}?disable_stats=true&enable_queue_totals=true")
    return {re.sub(r"_[0-9a-f]{32}$", "_", each["name"]): each for each in listed}


def taken(settings, queue):
    """Take the one message that waits in *queue*."""
    with connected(settings) as (connection, _), connection.channel() as channel:
        return until(lambda: channel.get(queue, auto_ack=True))


def test_driver_context_pool_and_connection_are_four_things(transport):
    driver = transport.driver
    assert isinstance(driver, RabbitDriver)
    assert isinstance(driver.pool, ConnectionPool)
    with driver._get_connection(PURPOSE_SEND, 10) as context:
        assert isinstance(context, ConnectionContext)
        assert isinstance(context, ConnectionBase)
        assert isinstance(context.connection, SendingConnection)
        assert not isinstance(context.connection, ConnectionBase)
        assert context.is_open  # of the connection
        lent = context.connection
    with driver._get_connection(PURPOSE_SEND, 10) as context:
        assert context.connection is lent
    with pytest.raises(InvalidRPCConnectionReuse, match="given back") as caught:
        context.direct_send("x", "{}", within=1)
    assert isinstance(caught.value, LeaseError)


def test_the_connection_that_came_back_last_is_lent_first(transport):
    driver = transport.driver
    first, second = (driver._get_connection(PURPOSE_SEND, 10) for _ in range(2))
    lent = second.connection
    first.close()
    second.close()
    with driver._get_connection(PURPOSE_SEND, 10) as context:
        assert context.connection is lent


def test_a_context_to_listen_is_a_connection_of_its_own_that_is_closed_at_the_end(transport):
    context = transport.driver._get_connection(PURPOSE_LISTEN, 10)
    connection = context.connection
    assert isinstance(connection, ListeningConnection)
    assert connection.recovery is True
    context.open()
    with context:
        assert isinstance(connection, Connection)
        assert connection.is_open
    assert not connection.is_open
    context.close()
    assert repr(context) == "ConnectionContext(given back)"


def test_a_connection_that_lost_its_channel_is_not_lent_again(transport):
    driver = transport.driver
    with driver._get_connection(PURPOSE_SEND, 10) as context:
        lost = context.connection
        with pytest.raises(Unroutable):
            context._publish("{}", "no such exchange", "x", time.monotonic() + 10)
    with driver._get_connection(PURPOSE_SEND, 10) as context:
        assert context.connection is not lost
        context.reset()
    until(lambda: not lost.is_open)


def test_the_last_sender_of_a_full_pool_waits_for_the_first(settings):
    options = RabbitOptions(rpc_conn_pool_size=1, conn_pool_min_size=0)
    with Transport(settings, options=options) as transport:
        driver = transport.driver
        with driver._get_connection(PURPOSE_SEND, 10) as context:
            lent = context.connection
            with pytest.raises(PoolTimeout):
                driver._get_connection(PURPOSE_SEND, 0.1)
            got = []
            (thread,) = in_threads(1, lambda: got.append(driver._get_connection(PURPOSE_SEND, 10)))
            until(lambda: driver.pool.get_stats().waiting == 1)
        thread.join(10)
        assert got[0].connection is lent
        got[0].close()


def test_fifty_threads_that_come_first_share_one_pool_of_the_size_that_was_asked_for(settings):
    options = RabbitOptions(rpc_conn_pool_size=3, conn_pool_min_size=0)
    with calling(settings, options=options) as (client, transport):
        threads = in_threads(50, lambda: client.cast({}, "add", a=1, b=1))
        for each in threads:
            each.join(30)
            assert not each.is_alive()
        assert 1 <= transport.driver.pool.get_stats().size <= 3


def test_by_default_exchanges_queues_and_bindings_are_those_of_oslo_messaging(settings, view, transport):
    client = RPCClient(transport, TOPIC, timeout=20)
    with served(transport):
        assert client.call({}, "add", a=1, b=2) == 3
        found = queues(view, settings)
        assert set(found) == {"sums", "sums.one", "sums_fanout_", "reply_"}
        assert [found[each]["durable"] for each in sorted(found)] == [False] * 4
        assert not any(each["auto_delete"] or each["exclusive"] for each in found.values())
        for each in found.values():  # since RabbitMQ 4 the virtual host's default type is listed as an argument
            each["arguments"].pop("x-queue-type", None)
        assert found["sums"]["arguments"] == found["sums.one"]["arguments"] == {}
        assert found["reply_"]["arguments"] == found["sums_fanout_"]["arguments"] == {"x-expires": 1800000}
        exchanges = {each["name"]: each for each in view.get(f"exchanges/{settings.virtual_host}")}
        control, fanout = exchanges["openstack"], exchanges["sums_fanout"]
        assert (control["type"], control["durable"], control["auto_delete"]) == ("topic", False, False)
        assert (fanout["type"], fanout["durable"], fanout["auto_delete"]) == ("fanout", False, True)
        bound = view.get(f"exchanges/{settings.virtual_host}/openstack/bindings/source")
        assert {(each["routing_key"], each["destination"]) for each in bound} == {
            ("sums", "sums"),
            ("sums.one", "sums.one"),
        }
    until(lambda: set(queues(view, settings)) == {"sums", "sums.one", "reply_"})
    assert "sums_fanout" not in {each["name"] for each in view.get(f"exchanges/{settings.virtual_host}")}


@pytest.mark.parametrize(
    ("values", "durable"),
    [
        ({"amqp_durable_queues": True}, {"sums": True, "sums.one": True, "sums_fanout_": False, "reply_": False}),
        (DURABLE, {"sums": True, "sums.one": True, "sums_fanout_": True, "reply_": True}),
    ],
    ids=["durable", "quorum"],
)
def test_durable_and_quorum_queues_are_declared_where_the_options_say(settings, view, values, durable):
    with calling(settings, options=RabbitOptions(**values)) as (client, transport), served(transport):
        assert client.call({}, "add", a=1, b=2) == 3
        client.prepare(fanout=True).cast({}, "add", a=3, b=4)
        found = queues(view, settings)
        assert {name: each["durable"] for name, each in found.items()} == durable
        if "rabbit_quorum_queue" in values:
            assert {each["arguments"]["x-queue-type"] for each in found.values()} == {"quorum"}


def test_a_call_has_ids_a_reply_queue_and_an_expiration_and_a_cast_has_none(settings, transport):
    server = served(transport)
    with server:
        pass  # its queues stay
    client = RPCClient(transport, TOPIC.replace(version="1.2", namespace="n"), timeout=20)
    client.cast({"user": "ann"}, "add", a=1)
    delivery = taken(settings, "sums")
    message = delivery.message
    assert (delivery.exchange, delivery.routing_key) == ("openstack", "sums")
    assert (message.content_type, message.content_encoding, message.priority) == ("application/json", "utf-8", 0)
    assert (message.persistent, message.expiration, message.message_id) == (True, None, None)
    assert (message.correlation_id, message.reply_to, dict(message.headers)) == (None, None, {})
    envelope = json.loads(message.body)
    assert set(envelope) == {"oslo.version", "oslo.message"}
    payload = json.loads(envelope["oslo.message"])
    unique_id = payload.pop("_unique_id")
    assert (len(unique_id), int(unique_id, 16) > 0) == (32, True)
    assert payload == {
        "method": "add",
        "args": {"a": 1},
        "version": "1.2",
        "namespace": "n",
        "_context_user": "ann",
    }
    (thread,) = in_threads(1, lambda: client.prepare(call_monitor_timeout=7).call({}, "add", a=1))
    call = taken(settings, "sums")
    payload = json.loads(json.loads(call.message.body)["oslo.message"])
    assert (call.message.expiration, payload["_timeout"]) == (20.0, 7)
    assert payload["_reply_q"] == transport.driver._get_reply_q()
    answer = {"result": 5, "failure": None, "ending": True, "_msg_id": payload["_msg_id"], "_unique_id": "u"}
    transport.driver.send_reply(payload["_reply_q"], json.dumps(answer), 10)
    thread.join(10)
    assert not thread.is_alive()


def test_the_options_of_send_are_seen_on_the_wire(settings, transport):
    driver, target = transport.driver, Target(exchange="mine", topic="sums")
    with served(transport, target=target):
        pass
    driver._send(target, {"user": "ann"}, {"method": "x"}, False, 5, False)
    assert json.loads(taken(settings, "sums").message.body)["_context_user"] == "ann"
    driver._send(target, None, {"method": "x"}, notify=True)
    assert "oslo.version" in json.loads(taken(settings, "sums").message.body)


def test_a_notification_makes_its_queue_and_waits_there(settings, view, transport):
    Notifier(transport, "pub", topics=["events"]).warn({}, "made", {"x": 1})
    assert view.get(f"queues/{settings.virtual_host}/events.warn")["durable"] is False
    delivery = taken(settings, "events.warn")
    assert (delivery.exchange, delivery.routing_key) == ("openstack", "events.warn")
    payload = json.loads(json.loads(delivery.message.body)["oslo.message"])
    assert (payload["priority"], payload["event_type"], payload["payload"]) == ("WARN", "made", {"x": 1})
    assert "_msg_id" not in payload


def test_a_pool_of_listeners_has_one_queue_for_all_priorities(settings, view, transport):
    class Both:
        def __init__(self):
            self.heard = []

        def info(self, *told):
            self.heard.append(told[3])

        error = info

    both = Both()
    notifier = Notifier(transport, "pub", topics=["events"])
    with NotificationListener(transport, [Target(topic="events")], [both], pool="mine"):
        notifier.info({}, "made", 1)
        notifier.error({}, "made", 2)
        until(lambda: sorted(both.heard) == [1, 2])
        bound = view.get(f"queues/{settings.virtual_host}/mine/bindings")
        assert {each["routing_key"] for each in bound if each["source"]} == {"events.info", "events.error"}


def test_a_compressed_body_is_what_the_option_says_and_is_understood(settings):
    with calling(settings, options=RabbitOptions(kombu_compression="gzip")) as (client, transport), served(transport):
        assert client.call({}, "echo", value="x" * 10_000) == "x" * 10_000


def test_a_message_that_nobody_can_take_is_said_if_that_was_asked_for(transport):
    client = RPCClient(transport, Target(topic="nobody"), at_least_once=True, timeout=20)
    with pytest.raises(Unroutable):
        client.cast({}, "add")
    with pytest.raises(Unroutable):
        client.call({}, "add")
    assert len(transport.driver.replies) == 0
    client.prepare(fanout=True).cast({}, "add")  # nobody is there, and nobody is told


def test_a_control_exchange_that_was_deleted_is_declared_again(settings, view, transport):
    client = RPCClient(transport, TOPIC, timeout=20)
    with served(transport):
        client.call({}, "add", a=1, b=1)
    view.delete(f"exchanges/{settings.virtual_host}/openstack")
    client.cast({}, "add", a=2, b=2)  # lost, as nothing is bound, but no error
    with served(transport):
        assert client.call({}, "add", a=3, b=3) == 6


def test_small_calls_wake_no_consumers_thread_and_hold_no_connection_while_they_wait(settings):
    def consumers_threads():
        return [each.name for each in threading.enumerate() if each.name == "labkit-consumer"]

    until(lambda: not consumers_threads())  # of other tests: they end by themselves
    with calling(settings) as (client, transport), served(transport) as (sums, _):
        for number in range(5):
            assert client.call({}, "add", a=number, b=1) == number + 1
        (thread,) = in_threads(1, lambda: client.call({}, "wait"))
        assert sums.entered.acquire(timeout=10)
        until(lambda: transport.driver.pool.get_stats().leased == 0)
        assert consumers_threads() == []
        assert client.call({}, "echo", value="x" * 50_000) == "x" * 50_000
        assert consumers_threads() != []  # what takes its time to read
        sums.gate.set()
        thread.join(20)


def test_two_servers_take_turns_and_a_fanout_reaches_both(settings, transport):
    one, two = Sums(), Sums()
    client = RPCClient(transport, TOPIC, timeout=20)
    with served(transport, one), served(transport, two, server="two"):
        for number in range(10):
            client.call({}, "add", a=number, b=0)
        assert len(one.seen) == len(two.seen) == 5
        client.prepare(server="two").call({}, "add", a=7, b=7)
        assert (two.seen[-1], (7, 7) in one.seen) == ((7, 7), False)
        client.prepare(fanout=True).cast({}, "add", a=9, b=9)
        until(lambda: one.seen[-1] == two.seen[-1] == (9, 9))


def test_the_example_of_the_page_runs_as_it_is_written(settings, capsys, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "rpc.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", page, re.DOTALL)[1]
    monkeypatch.setenv("LABKIT_URL", settings.to_url(mask=False))
    exec(compile(code, "docs/rpc.md", "exec"), {})
    assert capsys.readouterr().out == "3\n"


def test_closing_leaves_no_connection_and_no_thread_at_work(settings, view):
    before = threading.active_count()
    with calling(settings) as (client, transport), served(transport):
        client.call({}, "add", a=1, b=1)
    until(lambda: view.connections(settings.virtual_host) == [])
    until(lambda: threading.active_count() <= before + 1)  # the I/O thread


def test_a_closed_transport_begins_to_listen_to_nothing(settings, view):
    with calling(settings) as (client, transport):
        pass
    with pytest.raises(PoolClosed):
        client.call({}, "add", a=1, b=1)
    with pytest.raises(PoolClosed), served(transport):
        raise AssertionError("not reached")
    assert view.connections(settings.virtual_host) == []


@pytest.fixture
def late(monkeypatch):
    """Set when a connection that listens has begun to consume, and what lets it go on."""
    begun, may_go_on = threading.Event(), threading.Event()
    consume = ListeningConnection.consume

    def consume_late(connection, *, deadline):
        begun.set()
        assert may_go_on.wait(10)
        consume(connection, deadline=deadline)

    monkeypatch.setattr(ListeningConnection, "consume", consume_late)
    return begun, may_go_on


def test_a_transport_that_is_closed_while_it_makes_its_reply_queue_keeps_none(settings, view, late):
    begun, may_go_on = late
    errors = []

    def call():
        with pytest.raises(PoolClosed) as raised:
            client.call({}, "add", a=1, b=1)
        errors.append(raised.value)

    with calling(settings) as (client, _):
        threads = in_threads(1, call)
        assert begun.wait(10)
    may_go_on.set()
    for each in threads:
        each.join(10)
    assert len(errors) == 1
    assert view.connections(settings.virtual_host) == []


def test_a_server_that_is_closed_while_it_starts_keeps_no_connection(settings, view, transport, late):
    begun, may_go_on = late
    server = RPCServer(transport, TOPIC.replace(server="one"), [Sums()])
    errors = []

    def start():
        with pytest.raises(NotConnected, match="stopped meanwhile") as raised:
            server.start()
        errors.append(raised.value)

    threads = in_threads(1, start)
    assert begun.wait(10)
    server.close()
    may_go_on.set()
    for each in threads:
        each.join(10)
    assert len(errors) == 1
    assert view.connections(settings.virtual_host) == []


def test_an_interrupt_while_a_server_waits_for_its_methods_leaves_no_connection(settings, view):
    sums = Sums()
    with Transport(settings) as transport:
        with StopAfter(1.0) as stop, RPCServer(transport, TOPIC.replace(server="one"), [sums]):
            RPCClient(transport, TOPIC).cast({}, "wait")
            assert sums.entered.acquire(timeout=10)
        sums.gate.set()
    assert stop.interrupted
    assert view.connections(settings.virtual_host) == []


def test_an_interrupt_while_a_transport_closes_leaves_no_connection(settings, view, monkeypatch):
    with calling(settings) as (client, transport):
        with served(transport):
            client.call({}, "add", a=1, b=1)
        monkeypatch.setattr(ListeningConnection, "stop_consuming", lambda *_, **__: time.sleep(10))
        with StopAfter(0.2) as stop:
            transport.close()
        assert stop.interrupted
        until(lambda: view.connections(settings.virtual_host) == [])
