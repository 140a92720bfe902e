"""Calls, casts and servers on the driver that needs no broker: everything above the connection is the real thing."""

import json
import logging
import signal
import threading
import time
from contextlib import nullcontext

import pytest

from labkit import ConfigurationError, MessageRefused, NotConnected, OutcomeUnknown, PoolClosed, RpcTimeout
from labkit.connection.mailbox import Mailbox
from labkit.rpc import (
    Driver,
    InvalidTarget,
    NoSuchMethod,
    RabbitOptions,
    RemoteError,
    RPCClient,
    RPCServer,
    Serializer,
    Target,
    Transport,
    Unroutable,
    UnsupportedVersion,
)
from labkit.rpc.amqp import AmqpDriver
from labkit.rpc.envelope import to_body, to_message
from labkit.rpc.memory import MemoryConnection, MemoryDriver
from tests.unit.pool.still_pool import in_threads
from tests.view import until

TOPIC = Target(topic="sums")


class UnlistedError(Exception):
    pass


class Sums:
    def __init__(self):
        self.seen = []
        self.gate = threading.Event()
        self.entered = threading.Semaphore(0)

    def add(self, ctxt, a, b):
        self.seen.append((a, b))
        return a + b

    def who(self, ctxt):
        return ctxt

    def nothing(self, ctxt):
        self.seen.append("nothing")

    def divide(self, ctxt, a, b):
        return a / b

    def refuse(self, ctxt):
        raise UnlistedError("no")

    def odd(self, ctxt):
        return object()

    def leave(self, ctxt):
        raise SystemExit("bye")

    def wait(self, ctxt):
        self.entered.release()
        assert self.gate.wait(20)
        return "waited"


@pytest.fixture
def transport():
    with Transport("memory://") as transport:
        yield transport


@pytest.fixture
def sums():
    return Sums()


@pytest.fixture
def server(transport, sums):
    with RPCServer(transport, TOPIC.replace(server="one"), [sums], workers=4, ping=True) as server:
        yield server
        sums.gate.set()


@pytest.fixture
def client(transport, server):
    return RPCClient(transport, TOPIC, timeout=10)


@pytest.mark.parametrize("value", [None, 0, "grüße €", [1, [2, {"x": None}]], {"a": {"b": [True]}}])
def test_a_call_returns_what_the_method_returned(client, value):
    assert client.call({"value": value}, "who") == {"value": value}


def test_a_call_without_a_result_returns_none(client, sums):
    assert client.call(None, "nothing") is None
    assert sums.seen == ["nothing"]


def test_a_cast_returns_at_once_and_is_carried_out(client, sums):
    client.cast({}, "add", a=1, b=2)
    until(lambda: sums.seen == [(1, 2)])


def test_one_of_two_servers_takes_a_call_and_both_take_turns(transport, client, sums):
    other = Sums()
    with RPCServer(transport, TOPIC.replace(server="two"), [other]):
        for number in range(10):
            client.call({}, "add", a=number, b=0)
    assert len(sums.seen) == len(other.seen) == 5


def test_a_call_to_a_server_is_that_server_s(transport, client, sums):
    other = Sums()
    with RPCServer(transport, TOPIC.replace(server="two"), [other]):
        for _ in range(3):
            client.prepare(server="two").call({}, "add", a=1, b=1)
    assert (len(sums.seen), len(other.seen)) == (0, 3)


def test_a_fanout_reaches_every_server_once(transport, client, sums):
    other = Sums()
    with RPCServer(transport, TOPIC.replace(server="two"), [other]):
        client.prepare(fanout=True).cast({}, "add", a=1, b=1)
        until(lambda: sums.seen == other.seen == [(1, 1)])


def test_a_call_with_fanout_is_refused(client):
    with pytest.raises(InvalidTarget):
        client.prepare(fanout=True).call({}, "add", a=1, b=1)


def test_what_the_endpoint_raises_the_caller_gets(client):
    with pytest.raises(ZeroDivisionError, match="Traceback"):
        client.call({}, "divide", a=1, b=0)
    with pytest.raises(RemoteError) as caught:
        client.call({}, "refuse")
    assert (caught.value.type_name, caught.value.text) == ("UnlistedError", "no")
    with pytest.raises(TypeError):
        client.call({}, "add", a=1)
    with pytest.raises(RemoteError, match="SystemExit"):
        client.call({}, "leave")


def test_an_exception_of_an_allowed_module_is_raised_as_what_it_is(server, transport):
    transport.driver._allowed = frozenset([__name__])
    with pytest.raises(UnlistedError, match="Traceback"):
        RPCClient(transport, TOPIC, timeout=10).call({}, "refuse")


def test_a_result_that_json_cannot_carry_is_the_callers_error_and_nobody_waits(client):
    with pytest.raises(RemoteError, match="cannot be sent"):
        client.call({}, "odd")


def test_an_argument_that_json_cannot_carry_is_refused(client):
    with pytest.raises(ConfigurationError, match="cannot be sent"):
        client.call({}, "add", a=object(), b=1)


def test_a_missing_method_and_a_missing_version_have_their_names(client):
    with pytest.raises(NoSuchMethod, match="none_such"):
        client.call({}, "none_such")
    with pytest.raises(UnsupportedVersion, match=r"9\.0"):
        client.prepare(version="9.0").call({}, "add", a=1, b=1)
    assert client.call({}, "oslo_rpc_server_ping") == "pong"


def test_a_call_that_nobody_answers_ends_at_its_deadline_and_leaves_no_waiter(client, sums, transport):
    began = time.monotonic()
    with pytest.raises(RpcTimeout, match=r"no reply within 0\.2 s"):
        client.prepare(timeout=0.2).call({}, "wait")
    assert 0.2 <= time.monotonic() - began < 2
    assert len(transport.driver.replies) == 0
    sums.gate.set()
    until(lambda: transport.driver.replies.late == 1)
    assert client.call({}, "add", a=1, b=1) == 2


def test_a_call_to_a_topic_without_servers_times_out_or_is_unroutable_if_that_was_asked_for(transport):
    client = RPCClient(transport, Target(topic="nobody"), timeout=0.1)
    with pytest.raises(RpcTimeout):
        client.call({}, "add")
    with pytest.raises(Unroutable):
        client.prepare(at_least_once=True, timeout=10).cast({}, "add")
    client.cast({}, "add")  # lost, as it is there


def test_a_call_that_expired_in_its_queue_is_not_carried_out(transport, sums):
    client = RPCClient(transport, TOPIC, timeout=0.05)
    server = RPCServer(transport, TOPIC.replace(server="one"), [sums])
    with server:
        pass
    with pytest.raises(RpcTimeout):
        client.call({}, "add", a=1, b=1)
    ((_, expires, _),) = transport.driver.world.queue(TOPIC.topic).messages
    until(lambda: time.monotonic() > expires)  # its time began when it was queued, a moment after the caller's
    with RPCServer(transport, TOPIC.replace(server="one"), [sums]):
        assert client.prepare(timeout=10).call({}, "add", a=2, b=2) == 4
    assert sums.seen == [(2, 2)]


def test_signs_of_life_keep_a_call_alive_beyond_its_monitor(client, sums):
    opener = threading.Timer(4.0, sums.gate.set)
    opener.start()
    assert client.prepare(call_monitor_timeout=3, timeout=20).call({}, "wait") == "waited"
    opener.join()


def test_a_caller_that_wants_signs_of_life_and_gets_none_ends_early(client, sums):
    began = time.monotonic()
    with pytest.raises(RpcTimeout, match="no sign of life within 1 s"):
        client.prepare(call_monitor_timeout=1, timeout=20).call({}, "wait")
    assert time.monotonic() - began < 5


def test_a_copy_is_not_carried_out_again(transport, server, client, sums):
    body = to_body({"method": "add", "args": {"a": 1, "b": 1}, "_unique_id": "same"})
    for _ in range(3):
        transport.driver.world.publish("openstack", "sums", to_message(body))
    client.call({}, "add", a=2, b=2)
    until(lambda: server.duplicates == 2)
    until(lambda: sorted(sums.seen) == [(1, 1), (2, 2)])


def test_what_is_no_request_is_rejected_and_counted_and_the_next_one_is_served(transport, server, client):
    for body in ("{", "[]", "{}", json.dumps({"oslo.version": "2.1", "oslo.message": "{}"})):
        transport.driver.world.publish("openstack", "sums", to_message(body))
    assert client.call({}, "add", a=1, b=1) == 2
    assert server.rejected == 4
    assert not transport.driver.world.queue("sums").messages


def test_what_the_workers_have_no_time_for_stays_in_the_queue(transport, client, server, sums):
    threads = in_threads(6, lambda: client.call({}, "wait"))
    for _ in range(4):
        assert sums.entered.acquire(timeout=10)
    assert not sums.entered.acquire(timeout=0.1)
    sums.gate.set()
    for each in threads:
        each.join(10)
    assert sums.entered.acquire(timeout=10)


def test_stop_takes_no_more_and_wait_waits_for_what_runs(transport, client, server, sums):
    results = []
    (thread,) = in_threads(1, lambda: results.append(client.call({}, "wait")))
    assert sums.entered.acquire(timeout=10)
    server.stop()
    with pytest.raises(RpcTimeout):
        client.prepare(timeout=0.1).call({}, "add", a=1, b=1)
    assert not server.wait(timeout=0.05)
    assert repr(server) == "RPCServer(closed, 1 at work)"
    sums.gate.set()
    thread.join(10)
    assert results == ["waited"]
    assert server.wait(timeout=10)
    with pytest.raises(ConfigurationError, match="once"):
        server.start()


def test_wait_comes_after_stop(server):
    with pytest.raises(ConfigurationError, match="after stop"):
        server.wait()


def test_a_hundred_callers_get_each_their_own_answer_and_nobody_is_left_waiting(client, transport):
    wrong = []

    def calls(number):
        sums = [(client.call({}, "add", a=number, b=each), number + each) for each in range(20)]
        wrong.extend(each for each in sums if each[0] != each[1])

    threads = [threading.Thread(target=calls, args=(number,)) for number in range(100)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(60)
        assert not each.is_alive()
    assert wrong == []
    assert len(transport.driver.replies) == 0


def test_all_calls_of_a_transport_share_one_reply_queue_made_once(client, transport):
    names = []
    threads = in_threads(20, lambda: names.append(transport.driver._get_reply_q()))
    for each in threads:
        each.join(10)
    assert len(names) == 20
    assert len(set(names)) == 1
    client.call({}, "add", a=1, b=1)
    assert transport.driver._get_reply_q() == names[0]
    assert names[0].startswith("reply_")
    assert len(names[0]) == len("reply_") + 32


def test_a_serializer_changes_what_goes_and_what_comes(transport, sums):
    class Doubling(Serializer):
        def serialize_entity(self, ctxt, entity):
            return {"boxed": entity}

        def deserialize_entity(self, ctxt, entity):
            return entity["boxed"]

        def serialize_context(self, ctxt):
            return {**ctxt, "sent": True}

        def deserialize_context(self, ctxt):
            return {**ctxt, "received": True}

    target = Target(topic="boxed", server="one")
    with RPCServer(transport, target, [sums], serializer=Doubling()):
        client = RPCClient(transport, target.replace(server=None), serializer=Doubling(), timeout=10)
        assert client.call({"a": 1}, "who") == {"a": 1, "sent": True, "received": True}
        assert client.call({}, "add", a="x", b="y") == "xy"


def test_the_debug_log_has_the_id_of_a_call_on_both_sides(client, caplog):
    with caplog.at_level(logging.DEBUG, logger="labkit.rpc"):
        client.call({}, "add", a=1, b=1)
    (msg_id,) = [each.getMessage().split()[-1] for each in caplog.records if "CALL msg_id" in each.getMessage()]
    assert len(msg_id) == 32
    told = [each.getMessage() for each in caplog.records if msg_id in each.getMessage()]
    assert [each.split()[0] for each in told][:1] == ["CALL"]
    assert any(each.startswith("REPLY") for each in told)
    assert any(each.startswith("received the answer") for each in told)


def test_transports_of_one_name_reach_each_other_and_others_do_not(sums):
    with (
        Transport("memory://shared") as here,
        Transport("memory://shared") as there,
        Transport("memory://") as alone,
        RPCServer(here, TOPIC.replace(server="one"), [sums]),
    ):
        assert RPCClient(there, TOPIC, timeout=10).call({}, "add", a=1, b=2) == 3
        with pytest.raises(RpcTimeout):
            RPCClient(alone, TOPIC, timeout=0.1).call({}, "add", a=1, b=2)


def test_a_call_that_waits_when_its_transport_is_closed_ends_then(transport, sums):
    with Transport("memory://closing") as serving, RPCServer(serving, TOPIC.replace(server="one"), [sums]):
        closing, ended = Transport("memory://closing"), []

        def call():
            with pytest.raises(NotConnected, match="closed") as caught:
                RPCClient(closing, TOPIC, timeout=60).call({}, "wait")
            ended.append(caught.value)

        (thread,) = in_threads(1, call)
        assert sums.entered.acquire(timeout=10)
        closing.close()
        thread.join(10)
        assert len(ended) == 1
        sums.gate.set()


def test_an_interrupt_ends_a_call_that_waits_and_leaves_no_waiter(client, sums, transport):
    def interrupt():
        assert sums.entered.acquire(timeout=10)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    (thread,) = in_threads(1, interrupt)
    with pytest.raises(KeyboardInterrupt):
        client.call({}, "wait")
    thread.join(10)
    assert len(transport.driver.replies) == 0
    assert client.call({}, "add", a=1, b=2) == 3


def test_targets_without_an_exchange_use_the_transports(sums):
    with (
        Transport("memory://exchanges", control_exchange="ours") as ours,
        Transport("memory://exchanges", control_exchange="theirs") as theirs,
        RPCServer(ours, TOPIC.replace(server="one"), [sums]),
    ):
        assert RPCClient(ours, TOPIC, timeout=10).call({}, "add", a=1, b=2) == 3
        with pytest.raises(Unroutable):
            RPCClient(theirs, TOPIC, timeout=10, at_least_once=True).call({}, "add", a=1, b=2)
        client = RPCClient(theirs, TOPIC.replace(exchange="ours"), timeout=10)
        assert client.call({}, "add", a=1, b=2) == 3


def test_a_driver_says_itself_how_it_connects():
    with pytest.raises(TypeError, match="_get_connection"):
        AmqpDriver(RabbitOptions())
    with pytest.raises(TypeError, match="_send"):
        Driver()


class DoubtfulDriver(MemoryDriver):
    """Loses the link so many times as a message is on its way."""

    def __init__(self, losses):
        super().__init__(options=RabbitOptions())
        self.bodies = []
        self._losses = losses

    def _get_connection(self, purpose, timeout):
        connection = super()._get_connection(purpose, timeout)
        send = connection.topic_send

        def topic_send(exchange_name, topic, body, **options):
            send(exchange_name, topic, body, **options)
            self.bodies.append(body)
            if len(self.bodies) <= self._losses:
                raise OutcomeUnknown("the link was lost")

        connection.topic_send = topic_send
        return connection


@pytest.mark.parametrize(
    ("retry", "losses", "sent", "is_told"),
    [(0, 1, 1, True), (2, 2, 3, False), (2, 9, 3, True), (None, 3, 4, False), (-1, 3, 4, False)],
)
def test_a_message_in_doubt_goes_out_again_as_often_as_was_said_with_the_same_id(retry, losses, sent, is_told):
    driver = DoubtfulDriver(losses)
    with pytest.raises(OutcomeUnknown) if is_told else nullcontext():
        driver._send(TOPIC, {}, {"method": "add"}, timeout=10, retry=retry)
    assert len(driver.bodies) == sent
    assert len(set(driver.bodies)) == 1


def test_a_closed_transport_sends_nothing():
    transport = Transport("memory://")
    transport.close()
    transport.close()
    with pytest.raises(PoolClosed):
        RPCClient(transport, TOPIC).call({}, "add")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"timeout": 0}, "timeout"),
        ({"timeout": "soon"}, "timeout"),
        ({"retry": -2}, "retry"),
        ({"call_monitor_timeout": 1.5}, "call_monitor_timeout"),
        ({"tiemout": 3}, "tiemout"),
        ({"topic": ""}, "topic"),
    ],
)
def test_what_a_client_cannot_be_told_is_refused_by_name(client, changes, field):
    with pytest.raises(ConfigurationError) as caught:
        client.prepare(**changes)
    assert caught.value.field == field


@pytest.mark.parametrize("endpoints", [object(), "Sums", {"sums": 1}, 7], ids=["one", "text", "mapping", "number"])
def test_endpoints_are_objects_in_a_list(transport, endpoints):
    with pytest.raises(ConfigurationError, match=r"endpoints: .*in a list") as caught:
        RPCServer(transport, TOPIC.replace(server="one"), endpoints)
    assert caught.value.field == "endpoints"


def test_a_server_needs_a_topic_and_a_name(transport):
    with pytest.raises(InvalidTarget, match="server"):
        RPCServer(transport, TOPIC, [])
    with pytest.raises(InvalidTarget, match="topic"):
        RPCClient(transport, Target(server="x"))


def test_the_threads_of_a_server_end_when_it_has_nothing_to_do(transport, sums):
    with RPCServer(transport, TOPIC.replace(server="one"), [sums], workers=3) as server:
        RPCClient(transport, TOPIC, timeout=10).call({}, "add", a=1, b=1)
        workers = list(server._workers._free)
    assert all(isinstance(each, Mailbox) for each in workers)
    until(lambda: all(each.is_idle for each in workers))


class Untold:
    """Nobody can say what it is."""

    def to_dict(self):
        raise KeyError("not loaded")

    def __str__(self):
        raise RuntimeError("no text")


class UntoldError(Exception):
    @property
    def kwargs(self):
        raise RuntimeError("no kwargs")


class Obscure:
    def result(self, ctxt):
        return Untold()

    def failure(self, ctxt):
        raise UnlistedError(Untold())

    def facts(self, ctxt):
        raise UntoldError("what it was")


@pytest.mark.parametrize(
    ("method", "name", "text"),
    [
        ("result", "ConfigurationError", "of an Untold raised KeyError: 'not loaded'"),
        ("failure", "UnlistedError", "whose text cannot be made"),
        ("facts", "UntoldError", "what it was"),
    ],
)
def test_an_answer_whose_objects_raise_when_they_are_written_is_an_error_at_once(method, name, text):
    with (
        Transport("memory://") as transport,
        RPCServer(transport, Target(topic="sums", server="one"), [Obscure()]),
        pytest.raises(RemoteError, match=text) as caught,
    ):
        RPCClient(transport, TOPIC, timeout=3).call({}, method)
    assert caught.value.type_name == name


def test_an_argument_that_raises_when_it_is_written_is_refused():
    with Transport("memory://") as transport, pytest.raises(ConfigurationError, match="of an Untold raised KeyError"):
        RPCClient(transport, TOPIC, timeout=3).cast({}, "add", a=Untold())


class Registry(Serializer):
    """Its own collection of converters, empty so far, so Python takes it for false."""

    def __len__(self):
        return 0

    def serialize_entity(self, ctxt, entity):
        return f"<{entity}>"


def test_a_serializer_that_python_takes_for_false_is_used():
    class Echo:
        def say(self, ctxt, what):
            return what

    with (
        Transport("memory://") as transport,
        RPCServer(transport, Target(topic="sums", server="one"), [Echo()], serializer=Registry()),
    ):
        assert RPCClient(transport, TOPIC, timeout=3, serializer=Registry()).call({}, "say", what="a") == "<<a>>"


class Huge:
    def result(self, ctxt):
        return "x" * 20_000

    def failure(self, ctxt):
        raise ValueError("x" * 20_000)


@pytest.mark.parametrize("method", ["result", "failure"])
def test_an_answer_that_the_broker_refuses_for_its_size_is_an_error_at_once(monkeypatch, method):
    def limited(connection, queue, body, *, within):
        if len(body) > 20_000:
            raise MessageRefused("message size is larger than configured max size")
        direct_send(connection, queue, body, within=within)

    direct_send = MemoryConnection.direct_send
    monkeypatch.setattr(MemoryConnection, "direct_send", limited)
    with (
        Transport("memory://") as transport,
        RPCServer(transport, Target(topic="sums", server="one"), [Huge()]),
        pytest.raises(RemoteError, match="larger than configured max size") as caught,
    ):
        RPCClient(transport, TOPIC, timeout=3).call({}, method)
    assert caught.value.type_name == "MessageRefused"


def test_an_answer_that_is_refused_whatever_is_in_it_is_given_up(monkeypatch, caplog):
    def refuse(connection, queue, body, *, within):
        raise MessageRefused("no size is small enough")

    monkeypatch.setattr(MemoryConnection, "direct_send", refuse)
    with (
        Transport("memory://") as transport,
        RPCServer(transport, Target(topic="sums", server="one"), [Huge()]),
        pytest.raises(RpcTimeout),
    ):
        RPCClient(transport, TOPIC, timeout=0.5).call({}, "result")
    assert caplog.text.count("was not sent: no size is small enough") == 1
