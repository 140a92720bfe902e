"""labkit.rpc and a real oslo.messaging, each on either end: every line of the protocol's conformance list."""

import json
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from labkit import Connection, Message, Queue, RemoteError, RpcTimeout, Unroutable
from labkit.rpc import (
    NoSuchMethod,
    NotificationListener,
    NotificationResult,
    Notifier,
    RabbitOptions,
    RPCClient,
    RPCServer,
    Target,
    Transport,
    UnsupportedVersion,
)
from tests.broker.rpc import DURABLE, TOPIC
from tests.broker.test_texts_of_the_broker import broker_without_transient_queues
from tests.unit.pool.still_pool import in_threads
from tests.view import until

pytestmark = [pytest.mark.broker, pytest.mark.timeout(180)]

PEER = Path(__file__).with_name("oslo_peer.py")
VALUES = [None, 7, "grüße €", [1, [2, {"x": None}]], {"a": {"b": [True, 1.5]}}, ""]
VARIANTS = {
    "transient": {},
    "durable": {"amqp_durable_queues": True},
    "quorum": DURABLE,
    "gzip": {"kombu_compression": "gzip"},
}


class MineError(Exception):
    """Of the same name as the peer's, and of a module that it does not list."""


class Sums:
    """The same as the peer serves."""

    target = Target(version="1.2")

    def __init__(self, name, seen):
        self.name = name
        self.seen = seen

    def add(self, ctxt, a, b):
        self.seen.append([self.name, "add", a, b])
        return a + b

    def echo(self, ctxt, value):
        return value

    def nothing(self, ctxt):
        return None

    def who(self, ctxt):
        return {"server": self.name, "ctxt": ctxt}

    def overdraw(self, ctxt):
        import bank_errors  # as the peer has it

        raise bank_errors.OverdrawnError("ann", 7)

    def fail(self, ctxt, kind):
        raise {"value": ValueError, "mine": MineError}[kind]("no")

    def slow(self, ctxt, seconds):
        time.sleep(seconds)
        return "done"


class Spaced:
    target = Target(namespace="space", version="2.0")

    def name(self, ctxt):
        return "spaced"


class Heard:
    def __init__(self, *answers):
        self.heard = []
        self._answers = list(answers)

    def _hear(self, priority, ctxt, publisher_id, event_type, payload, metadata):
        self.heard.append([priority, ctxt, publisher_id, event_type, payload])
        return self._answers.pop(0) if self._answers else None

    def info(self, *told):
        return self._hear("info", *told)

    def error(self, *told):
        return self._hear("error", *told)


class Peer:
    """oslo.messaging in a process of its own; a method of it that raises there raises PeerError here."""

    def __init__(self, settings, options):
        url = settings.to_url(mask=False).replace("amqp://", "rabbit://").split("?")[0]
        command = [sys.executable, "-W", "ignore", PEER, json.dumps(options)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._process.stdin.write(url + "\n")  # not an argument: those are every user's to read

    def __getattr__(self, name):
        def ask(**given):
            self._process.stdin.write(json.dumps({"do": name, **given}) + "\n")
            self._process.stdin.flush()
            answer = json.loads(self._process.stdout.readline())
            if "error" in answer:
                raise PeerError(answer)
            return answer["ok"]

        return ask

    def call(self, method, *, ctxt=None, how=None, **args):
        return self.__getattr__("call")(method=method, args=args, ctxt=ctxt, how=how)

    def cast(self, method, *, how=None, **args):
        return self.__getattr__("cast")(method=method, args=args, how=how)

    def close(self):
        self._process.kill()
        self._process.communicate()


class PeerError(Exception):
    def __init__(self, answer):
        super().__init__(f"{answer['error']}: {answer['text']}")
        self.name, self.text, self.exc_type, self.of = (answer[each] for each in ("error", "text", "exc_type", "of"))


@contextmanager
def both_ends(settings, values=None):
    """A peer and a transport with the same options."""
    values = values or {}
    peer = Peer(settings, values)
    try:
        with Transport(settings, options=RabbitOptions(**values)) as transport:
            yield peer, transport
    finally:
        peer.close()


@pytest.fixture(params=VARIANTS)
def ends(request, settings):
    """Every kind of queue, and compressed bodies."""
    with both_ends(settings, VARIANTS[request.param]) as ends:
        yield ends


@pytest.fixture
def plain_ends(settings):
    with both_ends(settings) as ends:
        yield ends


@contextmanager
def serving(transport, *names):
    """labkit's servers of these names, and what they have seen."""
    seen, servers = [], []
    try:
        for name in names:
            server = RPCServer(transport, TOPIC.replace(server=name), [Sums(name, seen), Spaced()])
            servers.append(server.start())
        yield seen, servers
    finally:
        for each in servers:
            each.close()


def client_of(transport, **options):
    return RPCClient(transport, TOPIC, **{"timeout": 15, **options})


def publish(transport, body, *, exchange="openstack", routing_key="sums", **properties):
    """Send a body that no client would send."""
    properties = {"content_type": "application/json", "content_encoding": "utf-8", **properties}
    with transport.driver._get_connection("send", 10) as connection:
        message = Message(body, **properties)
        connection._sending.publish(message, exchange=exchange, routing_key=routing_key, timeout=10)


def request(**changes):
    return {"method": "add", "args": {"a": 1, "b": 2}, "version": "1.0", **changes}


# --- labkit calls, oslo.messaging serves ------------------------------------------------------------------------


def test_our_calls_and_casts_reach_their_server(ends):
    peer, transport = ends
    peer.serve(server="one")
    client = client_of(transport)
    for value in VALUES:
        assert client.call({}, "echo", value=value) == value
    assert client.call({}, "nothing") is None
    assert client.call({"user": "ann"}, "who") == {"server": "one", "ctxt": {"user": "ann"}}
    peer.serve(server="two")
    assert {client.call({}, "who")["server"] for _ in range(4)} == {"one", "two"}
    assert client.prepare(server="two").call({}, "who")["server"] == "two"
    client.cast({}, "add", a=1, b=1)
    until(lambda: len(peer.what_was_seen()["calls"]) == 1)
    client.prepare(server="two").cast({}, "add", a=2, b=2)
    until(lambda: ["two", "add", 2, 2] in peer.what_was_seen()["calls"])
    client.prepare(fanout=True).cast({}, "add", a=3, b=3)
    until(lambda: {each[0] for each in peer.what_was_seen()["calls"] if each[2] == 3} == {"one", "two"})


def test_our_caller_gets_the_failures_of_their_server(plain_ends):
    peer, transport = plain_ends
    peer.serve()
    client = client_of(transport)
    assert client.prepare(version="1.1").call({}, "add", a=1, b=2) == 3
    assert client.prepare(namespace="space", version="2.0").call({}, "name") == "spaced"
    with pytest.raises(NoSuchMethod, match="none_such"):
        client.call({}, "none_such")
    with pytest.raises(UnsupportedVersion, match=r"9\.0"):
        client.prepare(version="9.0").call({}, "add", a=1, b=2)
    with pytest.raises(ValueError, match="Traceback"):
        client.call({}, "fail", kind="value")
    with pytest.raises(RemoteError) as caught:
        client.call({}, "fail", kind="mine")
    assert (caught.value.type_name, caught.value.text) == ("MineError", "no")
    assert "Traceback" in caught.value.traceback


@pytest.fixture
def bank_errors_module(monkeypatch):
    """The name of a module that can be imported here as it can in the peer, and is not yet."""
    monkeypatch.syspath_prepend(str(PEER.parent))
    monkeypatch.delitem(sys.modules, "bank_errors", raising=False)
    return "bank_errors"


def test_our_caller_restores_a_failure_of_a_module_that_it_lists_and_imports_no_other(settings, bank_errors_module):
    with both_ends(settings) as (peer, transport):
        peer.serve()
        with pytest.raises(RemoteError) as caught:
            client_of(transport).call({}, "overdraw")
        assert (caught.value.type_name, caught.value.text) == ("OverdrawnError", "ann lacks 7")
        assert bank_errors_module not in sys.modules
        with Transport(settings, allowed_remote_exmods=[bank_errors_module]) as listing:
            with pytest.raises(Exception, match=r"(?s)ann lacks 7.*Traceback") as caught:
                client_of(listing).call({}, "overdraw")
            listed = sys.modules[bank_errors_module].OverdrawnError
            assert isinstance(caught.value, listed)
            assert (caught.value.args, caught.value.missing) == (("ann", 7), 7)
            assert (type(caught.value).__name__, type(caught.value).__module__) == (
                "OverdrawnError_Remote",
                "bank_errors_Remote",
            )
        with Transport(settings, allowed_remote_exmods=["__main__"]) as listing, pytest.raises(RemoteError):
            client_of(listing).call({}, "fail", kind="mine")  # there is no such class in our __main__


def test_our_call_times_out_and_their_late_answer_is_ignored(plain_ends):
    peer, transport = plain_ends
    peer.serve()
    client = client_of(transport)
    with pytest.raises(RpcTimeout):
        client.prepare(timeout=0.5).call({}, "slow", seconds=1.5)
    until(lambda: transport.driver.replies.late == 1)
    assert client.call({}, "add", a=1, b=2) == 3


def test_their_server_gives_our_caller_signs_of_life(plain_ends):
    peer, transport = plain_ends
    peer.serve()
    assert client_of(transport, call_monitor_timeout=3).call({}, "slow", seconds=4) == "done"


def test_nobody_serves_and_our_caller_is_told_if_it_wants_to_be(plain_ends):
    _, transport = plain_ends
    with pytest.raises(Unroutable):
        client_of(transport, at_least_once=True).call({}, "add", a=1, b=2)


# --- oslo.messaging calls, labkit serves ------------------------------------------------------------------------


def test_their_calls_and_casts_reach_our_server(ends):
    peer, transport = ends
    with serving(transport, "one") as (seen, _):
        for value in VALUES:
            assert peer.call("echo", value=value) == value
        assert peer.call("nothing") is None
        assert peer.call("who", ctxt={"user": "ann"}) == {"server": "one", "ctxt": {"user": "ann"}}
        with serving(transport, "two") as (also_seen, _):
            assert {peer.call("who")["server"] for _ in range(4)} == {"one", "two"}
            assert peer.call("who", how={"server": "two"})["server"] == "two"
            peer.cast("add", a=1, b=1)
            until(lambda: len(seen + also_seen) == 1)
            peer.cast("add", a=2, b=2, how={"server": "two"})
            until(lambda: ["two", "add", 2, 2] in also_seen)
            peer.cast("add", a=3, b=3, how={"fanout": True})
            until(lambda: ["one", "add", 3, 3] in seen and ["two", "add", 3, 3] in also_seen)


def test_their_caller_gets_the_failures_of_our_server(plain_ends):
    peer, transport = plain_ends
    with serving(transport, "one"):
        assert peer.call("add", a=1, b=2, how={"version": "1.1"}) == 3
        assert peer.call("name", how={"namespace": "space", "version": "2.0"}) == "spaced"
        for how, method, name in (
            ({}, "none_such", "NoSuchMethod"),
            ({"version": "9.0"}, "nothing", "UnsupportedVersion"),
        ):
            with pytest.raises(PeerError) as caught:
                peer.call(method, how=how)
            assert name in (caught.value.name, caught.value.exc_type)
        dispatcher = ["oslo_messaging.rpc.dispatcher"]
        with pytest.raises(PeerError) as caught:  # listed, it is the class itself
            peer.call("none_such", how={"allowed": dispatcher})
        assert "NoSuchMethod" in caught.value.of
        with pytest.raises(PeerError) as caught:
            peer.call("fail", kind="value")
        assert caught.value.name == "ValueError"
        assert "Traceback" in caught.value.text
        with pytest.raises(PeerError) as caught:
            peer.call("fail", kind="mine")
        assert (caught.value.name, caught.value.exc_type) == ("RemoteError", "MineError")


def test_their_caller_restores_a_failure_of_ours_if_it_lists_the_module(plain_ends, bank_errors_module):
    peer, transport = plain_ends
    with serving(transport, "one"):
        with pytest.raises(PeerError) as caught:
            peer.call("overdraw")
        assert (caught.value.name, caught.value.exc_type) == ("RemoteError", "OverdrawnError")
        with pytest.raises(PeerError, match="ann lacks 7") as caught:
            peer.call("overdraw", how={"allowed": [bank_errors_module]})
        assert caught.value.of[:2] == ["OverdrawnError_Remote", "OverdrawnError"]


def test_their_call_times_out_and_our_late_answer_is_ignored(plain_ends):
    peer, transport = plain_ends
    with serving(transport, "one"):
        with pytest.raises(PeerError, match="MessagingTimeout"):
            peer.call("slow", seconds=1.5, how={"timeout": 1})
        assert peer.call("slow", seconds=1) == "done"  # while the late answer comes
        assert peer.call("add", a=1, b=2) == 3


def test_our_server_gives_their_caller_signs_of_life(plain_ends):
    peer, transport = plain_ends
    with serving(transport, "one"):
        assert peer.call("slow", seconds=4, how={"call_monitor_timeout": 3}) == "done"


def test_their_caller_is_told_that_nobody_serves(plain_ends):
    peer, _ = plain_ends
    with pytest.raises(PeerError, match="MessageUndeliverable"):
        peer.call("add", a=1, b=2, how={"at_least_once": True})


# --- messages that no client sends ------------------------------------------------------------------------------


@pytest.mark.parametrize("whose", ["ours", "theirs"])
def test_copies_old_formats_and_broken_messages_do_the_same_to_both(plain_ends, view, settings, whose):
    peer, transport = plain_ends
    if whose == "theirs":
        peer.serve()
        check_odd_messages(transport, lambda: peer.what_was_seen()["calls"])
    else:
        with serving(transport, "one") as (seen, (server,)):
            check_odd_messages(transport, lambda: seen)
            assert (server.rejected, server.duplicates) == (4, 1)
    assert view.get(f"queues/{settings.virtual_host}/sums").get("messages", 0) == 0


def check_odd_messages(transport, calls):
    for _ in range(2):  # a copy, in format 1.0
        publish(transport, json.dumps(request(_unique_id="same")))
    publish(transport, "{")  # bad JSON
    publish(transport, "{}", content_type="text/plain")
    publish(transport, json.dumps({"oslo.version": "2.1", "oslo.message": json.dumps(request())}))
    publish(transport, b"\xff")
    publish(transport, json.dumps(request(args={"a": 5, "b": 5})))  # without an id
    reply_q = transport.driver._get_reply_q()
    waiter = transport.driver.replies.listen("m")
    publish(transport, json.dumps(request(_msg_id="m", _reply_q=reply_q)))  # without _timeout
    assert waiter.wait(time.monotonic() + 10, None).result == 3
    transport.driver.replies.unlisten("m")
    until(lambda: sorted(each[2:] for each in calls()) == [[1, 2], [1, 2], [5, 5]])


@pytest.mark.parametrize("whose", ["ours", "theirs"])
def test_a_server_tries_a_missing_reply_queue_for_a_while_and_gives_up_and_goes_on_meanwhile(settings, whose):
    with both_ends(settings, {"kombu_missing_consumer_retry_timeout": 3}) as (peer, transport), ExitStack() as stack:
        if whose == "theirs":
            peer.serve()
        else:
            stack.enter_context(serving(transport, "one"))
        channel = stack.enter_context(Connection(settings)).channel()
        client = client_of(transport)
        client.call({}, "nothing")
        for name in ("reply_late", "reply_gone"):
            publish(transport, json.dumps(request(_msg_id=name, _reply_q=name, _unique_id=name)))
        began = time.monotonic()
        assert client.call({}, "add", a=3, b=4) == 7
        assert time.monotonic() - began < 3  # nobody waits for them
        channel.declare(Queue("reply_late", durable=False, auto_delete=False))
        answer = until(lambda: channel.get("reply_late"))
        assert json.loads(json.loads(answer.body)["oslo.message"])["_msg_id"] == "reply_late"
        time.sleep(max(0.0, began + 5 - time.monotonic()))
        channel.declare(Queue("reply_gone", durable=False, auto_delete=False))
        assert client.call({}, "add", a=5, b=6) == 11
        time.sleep(0.6)  # two pauses between attempts
        assert channel.get("reply_gone") is None


def test_their_server_answers_our_caller_whose_reply_queue_was_deleted_meanwhile(plain_ends, view, settings):
    peer, transport = plain_ends
    peer.serve()
    client = client_of(transport)
    client.call({}, "nothing")
    results = []
    (thread,) = in_threads(1, lambda: results.append(client.call({}, "slow", seconds=2)))
    name = transport.driver._get_reply_q()
    view.delete(f"queues/{settings.virtual_host}/{name}")
    thread.join(20)
    assert results == ["done"]


def test_our_server_answers_their_caller_whose_reply_queue_was_deleted_meanwhile(plain_ends, view, settings):
    """oslo.messaging's client is told that its consumer is cancelled, and declares the queue again."""
    peer, transport = plain_ends
    with serving(transport, "one"):
        assert peer.call("add", a=1, b=2) == 3
        results = []
        queues = f"queues/{settings.virtual_host}"
        (name,) = (each["name"] for each in view.get(queues) if each["name"].startswith("reply_"))
        (thread,) = in_threads(1, lambda: results.append(peer.call("slow", seconds=2)))
        view.delete(f"{queues}/{name}")
        thread.join(20)
        assert results == ["done"]
        assert name in {each["name"] for each in view.get(queues)}


# --- notifications ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("driver", ["messagingv2", "messaging"])
def test_our_notifications_reach_their_listener_and_theirs_ours(plain_ends, driver):
    peer, transport = plain_ends

    class Context:
        def redacted_copy(self):
            return {"user": "ann"}

    notifier = Notifier(transport, "us", topics=["events"], driver=driver)
    notifier.info(Context(), "early", {"x": ["ü", 1]})
    peer.listen()
    notifier.error({"secret": 1}, "late", None)
    until(lambda: len(peer.what_was_seen()["heard"]) == 2)
    assert sorted(peer.what_was_seen()["heard"]) == [
        ["error", {}, "us", "late", None],
        ["info", {"user": "ann"}, "us", "early", {"x": ["ü", 1]}],
    ]
    peer.stop()
    peer.notify(priority="info", event_type="early", payload={"x": ["ü", 1]}, ctxt={"user": "bob"}, driver=driver)
    heard = Heard()
    with NotificationListener(transport, [Target(topic="events")], [heard]):
        peer.notify(priority="error", event_type="late", payload=None, driver=driver)
        until(lambda: len(heard.heard) == 2)
    assert sorted(heard.heard) == [
        ["error", {}, "peer", "late", None],
        ["info", {"user": "bob"}, "peer", "early", {"x": ["ü", 1]}],
    ]


def test_what_one_side_requeues_comes_again_on_that_side(plain_ends):
    peer, transport = plain_ends
    peer.listen(answers=["requeue"])
    Notifier(transport, "us", topics=["events"]).info({}, "made", 1)
    until(lambda: len(peer.what_was_seen()["heard"]) == 2)
    peer.stop()
    heard = Heard(NotificationResult.REQUEUE)
    with NotificationListener(transport, [Target(topic="events")], [heard]):
        peer.notify(priority="info", event_type="made", payload=1)
        until(lambda: len(heard.heard) == 2)


def test_listeners_of_one_pool_share_what_comes_whoever_they_are(plain_ends):
    peer, transport = plain_ends
    ours, other = Heard(), Heard()
    targets = [Target(topic="events")]
    peer.listen(pool="mixed")
    with (
        NotificationListener(transport, targets, [ours], pool="mixed"),
        NotificationListener(transport, targets, [other], pool="other"),
    ):
        for number in range(6):
            peer.notify(priority="info", event_type="made", payload=number)
        until(lambda: len(ours.heard) + len(peer.what_was_seen()["heard"]) == 6)
        until(lambda: sorted(each[4] for each in other.heard) == list(range(6)))
        assert ours.heard
        assert peer.what_was_seen()["heard"]


# --- a broker that does not permit the defaults -----------------------------------------------------------------


@pytest.mark.own_broker
@pytest.mark.slow
def test_both_directions_hold_on_a_broker_that_forbids_transient_queues():
    with broker_without_transient_queues() as broker:
        for check in (
            test_our_calls_and_casts_reach_their_server,
            test_their_calls_and_casts_reach_our_server,
            lambda ends: test_our_notifications_reach_their_listener_and_theirs_ours(ends, "messagingv2"),
        ):
            settings = broker.vhost(f"interop-{id(check)}")
            with both_ends(settings, DURABLE) as ends:
                check(ends)
