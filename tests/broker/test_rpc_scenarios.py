"""oslo.messaging's own functional scenarios, told again with labkit on one side: docs/measured.md has the table."""

import time

import pytest

from labkit import ConfigurationError, RpcTimeout
from labkit.rpc import NotificationListener, Notifier, RPCClient, RPCServer, Target, Transport
from tests.broker.test_rpc_interoperation import PeerError, Sums, both_ends
from tests.unit.pool.still_pool import in_threads
from tests.view import until

pytestmark = [pytest.mark.broker, pytest.mark.timeout(120)]

PRIORITIES = ["audit", "debug", "info", "warn", "error", "critical"]


class Ours:
    """labkit on this side, under the names of the peer's commands."""

    def __init__(self, transport):
        self._transport = transport
        self._closing = []
        self.seen, self.heard = [], []

    def call(self, method, *, how=None, **args):
        how = {"timeout": 10, **(how or {})}
        target = Target(exchange=how.pop("exchange", None), topic=how.pop("topic", "sums"))
        client = RPCClient(self._transport, target)
        return client.prepare(**how).call({}, method, **args)

    def serve(self, server="one", topic="sums", exchange=None):
        target = Target(exchange=exchange, topic=topic, server=server)
        self._closing.append(RPCServer(self._transport, target, [Sums(server, self.seen)]).start())

    def notify(self, priority, event_type, payload, topics=("events",), publisher="peer"):
        getattr(Notifier(self._transport, publisher, topics=topics), priority)({}, event_type, payload)

    def listen(self, topics=("events",), heard=None):
        listener = Everything(self.heard if heard is None else heard)
        targets = [Target(topic=each) for each in topics]
        self._closing.append(NotificationListener(self._transport, targets, [listener]).start())

    def what_was_seen(self):
        return {"calls": self.seen, "heard": self.heard}

    def stop(self):
        while self._closing:
            self._closing.pop().close()


class Everything:
    """Has a method for each priority."""

    def __init__(self, heard):
        for priority in PRIORITIES:
            setattr(self, priority, self._method(priority, heard))

    def _method(self, priority, heard):
        return lambda ctxt, publisher, event, payload, metadata: heard.append([priority, {}, publisher, event, payload])


@pytest.fixture(params=["labkit calls", "labkit serves"])
def sides(request, settings):
    """Who calls or notifies, and who serves or listens."""
    with both_ends(settings) as (peer, transport):
        ours = Ours(transport)
        yield (ours, peer) if request.param == "labkit calls" else (peer, ours)
        ours.stop()


def added(side):
    return sorted(each[2] for each in side.what_was_seen()["calls"])


def test_one_of_three_servers_is_asked_by_its_name(sides):
    caller, server = sides
    for name in ("one", "two", "three"):
        server.serve(server=name)
    for number in range(3):
        assert caller.call("add", a=number, b=1, how={"server": "two"}) == number + 1
    assert {each[0] for each in server.what_was_seen()["calls"]} == {"two"}


def test_a_group_of_servers_shares_the_work_and_each_has_some(sides):
    caller, server = sides
    for name in ("one", "two", "three"):
        server.serve(server=name)
    for number in range(14):
        caller.call("add", a=number, b=0)
    assert added(server) == list(range(14))
    assert {each[0] for each in server.what_was_seen()["calls"]} == {"one", "two", "three"}


def test_what_is_sent_by_one_exchange_does_not_reach_the_servers_of_another(sides):
    caller, server = sides
    for number, exchange in enumerate(("a", "b")):
        server.serve(server=f"of {exchange}", topic=f"sums {exchange}", exchange=exchange)
        caller.call("add", a=number, b=0, how={"topic": f"sums {exchange}", "exchange": exchange})
    assert [each[0] for each in server.what_was_seen()["calls"]] == ["of a", "of b"]
    with pytest.raises((RpcTimeout, PeerError)):
        caller.call("add", a=7, b=0, how={"topic": "sums a", "exchange": "b", "timeout": 1})


def test_a_topic_that_nobody_serves_times_out(sides):
    caller, _ = sides
    with pytest.raises((RpcTimeout, PeerError)) as caught:
        caller.call("add", a=1, b=1, how={"topic": "no such topic", "timeout": 1})
    assert isinstance(caught.value, RpcTimeout) or caught.value.name == "MessagingTimeout"


def test_an_exception_of_the_server_is_the_callers(sides):
    caller, server = sides
    server.serve()
    assert caller.call("add", a=1, b=2) == 3
    with pytest.raises((ValueError, PeerError)) as caught:
        caller.call("fail", kind="value")
    assert isinstance(caught.value, ValueError) or caught.value.name == "ValueError"


def test_a_long_call_times_out_while_short_ones_are_answered(settings):
    """One process, two threads that call: only labkit's caller is looked at, for the peer does one thing at a time."""
    with both_ends(settings) as (peer, transport):
        peer.serve()
        ours, late = Ours(transport), []

        def long_call():
            try:
                ours.call("slow", seconds=4, how={"timeout": 2})
            except RpcTimeout as exc:
                late.append(exc)

        (thread,) = in_threads(1, long_call)
        for number in range(5):
            assert ours.call("add", a=number, b=0) == number
            time.sleep(0.5)
        thread.join(10)
        assert len(late) == 1


def test_listeners_of_several_topics_hear_each(sides):
    notifier, listener = sides
    listener.listen(topics=["a", "b"])
    for topic in ("a", "b"):
        notifier.notify(priority="info", event_type=f"test-{topic}", payload=topic, topics=[topic])
    until(lambda: sorted(each[3] for each in listener.what_was_seen()["heard"]) == ["test-a", "test-b"])


def test_several_listeners_of_a_topic_share_what_comes(settings):
    """Each of both gets some, whoever publishes."""
    with both_ends(settings) as (peer, transport):
        ours = Ours(transport)
        ours.listen()
        peer.listen()
        try:
            for number in range(8):
                (ours if number % 2 else peer).notify(priority="info", event_type="made", payload=number)
            until(lambda: len(ours.heard) + len(peer.what_was_seen()["heard"]) == 8)
            assert ours.heard
            assert peer.what_was_seen()["heard"]
        finally:
            ours.stop()


def test_topics_are_independent(sides):
    notifier, listener = sides
    listener.listen(topics=["1"])
    for number in range(4):
        notifier.notify(priority="info", event_type="made", payload=number, topics=[str(number % 2)])
    until(lambda: sorted(each[4] for each in listener.what_was_seen()["heard"]) == [1, 3])


def test_every_priority_arrives_as_what_it_is(sides):
    notifier, listener = sides
    listener.listen()
    for priority in PRIORITIES:
        notifier.notify(priority=priority, event_type=f"type-{priority}", payload=f"{priority}-data")
    until(lambda: len(listener.what_was_seen()["heard"]) == len(PRIORITIES))
    assert sorted([each[0], *each[3:]] for each in listener.what_was_seen()["heard"]) == sorted(
        [each, f"type-{each}", f"{each}-data"] for each in PRIORITIES
    )


def test_an_endpoint_whose_target_is_a_method_is_refused(settings):
    class Bad:
        def target(self, ctxt):
            return None

    with Transport(settings) as transport, pytest.raises(ConfigurationError, match="target"):
        RPCServer(transport, Target(topic="t", server="s"), [Bad()])
