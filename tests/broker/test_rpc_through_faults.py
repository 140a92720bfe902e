"""A call ends with its own answer or a named error within its time, whatever happens to link, server or reply queue."""

import os
import subprocess
import sys
import threading
import time
from collections import Counter

import pytest

from labkit import LabkitError, OutcomeUnknown, RpcTimeout, brokers
from labkit.rpc import (
    NotificationListener,
    Notifier,
    RabbitOptions,
    RPCClient,
    RPCServer,
    Target,
    TransientQueuesForbidden,
    Transport,
)
from labkit.rpc.envelope import to_body
from labkit.wire import Proxy, Stall
from tests.broker.connections import SLACK
from tests.broker.rpc import DURABLE, TOPIC, Sums, calling, outcomes_of_calls, served
from tests.broker.test_texts_of_the_broker import broker_without_transient_queues
from tests.unit.pool.still_pool import in_threads
from tests.view import until

pytestmark = pytest.mark.broker

BRISK = RabbitOptions(rabbit_retry_interval=0, rabbit_interval_max=1)
NAMED = {"answered", "RpcTimeout"}


def test_a_call_survives_the_loss_of_the_callers_links(settings):
    with (
        calling(settings) as (_, serving),
        served(serving) as (sums, _),
        Proxy(settings) as proxy,
        calling(proxy.settings(), options=BRISK) as (client, transport),
    ):
        results = []
        (thread,) = in_threads(1, lambda: results.append(client.call({}, "wait")))
        assert sums.entered.acquire(timeout=10)
        proxy.cut()
        sums.gate.set()
        thread.join(20)
        assert results == ["waited"]
        assert len(transport.driver.replies) == 0
        assert client.call({}, "add", a=1, b=2) == 3


def test_a_request_that_is_lost_on_its_way_goes_out_again_and_is_carried_out_once(settings):
    one_link = RabbitOptions(rabbit_retry_interval=0, rabbit_interval_max=1, conn_pool_min_size=1)
    with (
        calling(settings) as (_, serving),
        served(serving) as (sums, _),
        Proxy(settings) as proxy,
        calling(proxy.settings(), options=one_link) as (client, transport),
    ):
        assert client.call({}, "add", a=0, b=0) == 0
        results = []
        with proxy.fault(Stall(), direction="upstream"):
            (thread,) = in_threads(1, lambda: results.append(client.call({}, "add", a=1, b=2)))
            until(lambda: len(transport.driver.replies) == 1)
            time.sleep(0.3)  # now it is on its way
            assert transport.driver.pool.get_stats().leased == 1  # until the broker has confirmed
            proxy.cut()
        thread.join(20)
        assert results == [3]
        assert sums.seen == [(0, 0), (1, 2)]
        with proxy.fault(Stall(), direction="upstream"):
            in_threads(1, lambda: (time.sleep(0.3), proxy.cut()))
            with pytest.raises(OutcomeUnknown):
                client.prepare(retry=0).call({}, "add", a=2, b=2)
        assert sums.seen[2:] == []


def test_more_calls_than_workers_and_large_ones_wait_for_a_worker_and_are_answered(settings):
    with calling(settings) as (client, transport), served(transport, workers=1) as (sums, server):
        results = []
        waiting = in_threads(1, lambda: results.append(client.call({}, "wait")))
        assert sums.entered.acquire(timeout=10)
        waiting += in_threads(5, lambda: results.append(client.call({}, "add", a=1, b=2)))
        waiting += in_threads(1, lambda: results.append(len(client.call({}, "echo", value="x" * 50_000))))
        time.sleep(0.3)
        assert results == []
        sums.gate.set()
        for each in waiting:
            each.join(20)
        assert sorted(results, key=str) == sorted(["waited", *[3] * 5, 50_000], key=str)
        consumers = server._listener.connection.consumers
        until(lambda: sum(each.handled for each in consumers) == 7)


def test_a_call_survives_the_loss_of_the_servers_links_and_is_carried_out_once(settings):
    with (
        Proxy(settings) as proxy,
        calling(proxy.settings(), options=BRISK) as (_, serving),
        served(serving) as (sums, _),
        calling(settings) as (client, _),
    ):
        results = []
        (thread,) = in_threads(1, lambda: results.append(client.call({}, "wait")))
        assert sums.entered.acquire(timeout=10)
        proxy.cut()
        sums.gate.set()
        thread.join(20)
        assert results == ["waited"]
        assert not sums.entered.acquire(blocking=False)
        assert client.call({}, "add", a=1, b=2) == 3


def test_a_call_whose_server_dies_ends_at_its_deadline_and_the_next_server_takes_the_next(settings):
    program = [sys.executable, "-m", "tests.broker.rpc_program"]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        process.stdin.write(settings.to_url(mask=False) + "\n")
        process.stdin.flush()
        assert process.stdout.readline() == "serving\n"
        with calling(settings) as (client, transport):
            assert client.call({}, "add", a=1, b=2) == 3
            began = time.monotonic()
            with pytest.raises(RpcTimeout):
                client.prepare(timeout=1.5).call({}, "die")
            assert 1.5 <= time.monotonic() - began < 1.5 + SLACK
            assert process.wait(20) == 9
            with served(transport):
                assert client.call({}, "add", a=3, b=4) == 7


def test_a_reply_queue_that_is_deleted_while_the_connection_is_well_comes_back_and_the_answer_with_it(settings, view):
    with calling(settings) as (client, transport), served(transport) as (sums, _):
        results = []
        (thread,) = in_threads(1, lambda: results.append(client.call({}, "wait")))
        assert sums.entered.acquire(timeout=10)
        name = transport.driver._get_reply_q()
        view.delete(f"queues/{settings.virtual_host}/{name}")
        sums.gate.set()
        thread.join(20)
        assert results == ["waited"]
        assert client.call({}, "add", a=1, b=2) == 3
        assert transport.driver._get_reply_q() == name


def test_a_reply_connection_that_has_given_up_is_replaced_by_the_next_call(settings):
    with calling(settings) as (client, transport), served(transport):
        client.call({}, "add", a=1, b=1)
        name, deaf = transport.driver._listening_for_replies
        deaf.abort()
        assert client.call({}, "add", a=1, b=2) == 3
        assert transport.driver._get_reply_q() != name


def test_an_answer_to_a_queue_that_stays_missing_holds_no_worker_up_and_is_given_up(settings):
    options = RabbitOptions(kombu_missing_consumer_retry_timeout=3)
    with calling(settings, options=options) as (client, transport), served(transport, workers=1):
        driver = transport.driver
        body = to_body(
            {"method": "add", "args": {"a": 1, "b": 1}, "_unique_id": "u", "_msg_id": "m", "_reply_q": "reply_gone"}
        )
        driver._publish(
            lambda connection, within, _: connection.topic_send("openstack", "sums", body, within=within),
            ends=time.monotonic() + 10,
        )
        began = time.monotonic()
        assert client.call({}, "add", a=1, b=2) == 3  # by the one worker
        assert time.monotonic() - began < 3
        until(lambda: "reply_gone" in driver.obsolete)
        assert client.call({}, "add", a=2, b=2) == 4


EXITING = """
import sys
from labkit.rpc import RPCClient, RPCServer, Target, Transport

class Sums:
    def add(self, ctxt, a, b):
        return a + b

transport = Transport(sys.stdin.readline().strip())
server = RPCServer(transport, Target(topic="sums", server="one"), [Sums()]).start()
print(RPCClient(transport, Target(topic="sums"), timeout=10).call({}, "add", a=1, b=2))
"""


def test_an_exit_without_close_is_quick_and_silent(settings, view):
    command = [sys.executable, "-W", "error", "-c", EXITING]
    done = subprocess.run(command, input=settings.to_url(mask=False) + "\n", capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "3\n", "")
    until(lambda: view.connections(settings.virtual_host) == [])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_child_process_calls_on_its_own_and_harms_nobody(settings):
    with calling(settings) as (client, transport), served(transport):
        assert client.call({}, "add", a=1, b=1) == 2
        name = transport.driver._get_reply_q()
        child = os.fork()
        if child == 0:
            os._exit(0 if called_in_the_child(client, transport, name) else 1)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert client.call({}, "add", a=2, b=2) == 4
        assert transport.driver._get_reply_q() == name


def called_in_the_child(client, transport, name):
    return client.call({}, "add", a=3, b=3) == 6 and transport.driver._get_reply_q() != name


def test_a_listener_that_closes_acknowledges_what_it_is_at_and_leaves_the_rest(settings, view):
    first, second = Listening(gate=threading.Event()), Listening()
    with Transport(settings) as transport:
        notifier = Notifier(transport, "pub", topics=["events"])
        listener = NotificationListener(transport, [Target(topic="events")], [first], workers=1).start()
        for number in range(3):
            notifier.info({}, "made", number)
        assert first.entered.wait(10)
        listener.stop()
        first.gate.set()
        assert listener.wait(timeout=10)
        with NotificationListener(transport, [Target(topic="events")], [second]):
            until(lambda: sorted(first.heard + second.heard) == [0, 1, 2])
    assert first.heard == [0]


def test_what_is_no_request_is_rejected_without_requeue_and_counted(settings, view):
    with calling(settings) as (client, transport), served(transport) as (_, server):
        with transport.driver._get_connection("send", 10) as connection:
            for body in ("{", "7", '{"oslo.version": "2.1", "oslo.message": "{}"}', to_body({"args": {}})):
                connection.direct_send("sums", body, within=10)
        assert client.call({}, "add", a=1, b=2) == 3
        until(lambda: server.rejected == 4)
        assert view.get(f"queues/{settings.virtual_host}/sums").get("messages", 0) == 0


def ends_in_time(function, seconds):
    began = time.monotonic()
    with pytest.raises(LabkitError) as caught:
        function()
    assert time.monotonic() - began < seconds + SLACK
    return caught.value


def test_every_wait_has_an_end_while_the_link_is_silent(settings):
    options = RabbitOptions(conn_pool_min_size=1)
    with Proxy(settings) as proxy, calling(proxy.settings(heartbeat=0), options=options) as (client, transport):
        notifier = Notifier(transport, "pub", topics=["events"])
        with served(transport) as (_, server):
            client.call({}, "add", a=1, b=2)
            with proxy.fault(Stall(), direction="upstream"), proxy.fault(Stall(), direction="downstream"):
                ends_in_time(lambda: client.prepare(timeout=0.5).call({}, "add", a=1, b=2), 0.5)
                ends_in_time(lambda: client.prepare(timeout=0.5).cast({}, "add", a=1, b=2), 0.5)
                ends_in_time(lambda: client.prepare(timeout=0.5, fanout=True).cast({}, "add", a=1, b=2), 0.5)
                other = RPCServer(transport, TOPIC.replace(server="two"), [Sums()])
                ends_in_time(lambda: other.start(deadline=0.5), 0.5 + 3)  # and the close of what was begun
                began = time.monotonic()
                server.close(timeout=1)
                transport.close(timeout=1)
                assert time.monotonic() - began < 8 + SLACK
        assert repr(notifier) == "Notifier('pub')"
        assert len(transport.driver.replies) == 0


def test_a_call_made_while_the_broker_is_unreachable_ends_at_its_deadline(settings):
    with Proxy(settings) as proxy:
        unreachable = proxy.settings()
    with calling(unreachable) as (client, transport):
        error = ends_in_time(lambda: client.prepare(timeout=0.5).call({}, "add", a=1, b=2), 0.5)
        assert isinstance(error, LabkitError)
        error = ends_in_time(lambda: client.prepare(timeout=0.5).cast({}, "add", a=1, b=2), 0.5)
        assert len(transport.driver.replies) == 0


def calls_over_deleted_reply_queues(settings, view, *, callers, calls, timeout, slack, times=3):
    """Return what became of the calls while their reply queue was deleted, again and again; and the longest call."""
    with calling(settings, timeout=timeout) as (client, transport), served(transport):
        client.call({}, "add", a=0, b=0)
        name = transport.driver._get_reply_q()
        queues = f"queues/{settings.virtual_host}"

        def delete():
            for _ in range(times):
                view.delete(f"{queues}/{name}")
                time.sleep(0.3)  # let calls go by
                until(lambda: name in {each["name"] for each in view.get(queues)})

        outcomes, longest = outcomes_of_calls(
            client, callers=callers, calls=calls, timeout=timeout, slack=slack, meanwhile=delete
        )
        counted = Counter(outcomes)
        assert set(counted) <= NAMED
        assert sum(counted.values()) == callers * calls
        assert longest < timeout + slack
        assert len(transport.driver.replies) == 0
        assert client.call({}, "add", a=1, b=2) == 3
    return counted, longest


def test_every_call_over_a_deleted_reply_queue_ends_with_its_answer_or_a_named_error(settings, view):
    """What was in the queue when it was deleted is gone; all others are answered."""
    counted, _ = calls_over_deleted_reply_queues(settings, view, callers=10, calls=20, timeout=5, slack=SLACK)
    assert counted["answered"] > 100


def calls_over_a_restart(broker, *, callers, calls, timeout, slack, options=BRISK):
    """Return what became of the calls while the broker was restarted, and the longest call in seconds."""
    settings = broker.settings().replace(heartbeat=5)
    with (
        calling(settings, options=options) as (_, serving),
        served(serving),
        calling(settings, timeout=timeout, options=options) as (client, transport),
    ):
        client.call({}, "add", a=1, b=1)
        outcomes, longest = outcomes_of_calls(
            client, callers=callers, calls=calls, timeout=timeout, slack=slack, meanwhile=broker.restart
        )
        assert len(transport.driver.replies) == 0
        counted = Counter(outcomes)
        assert set(counted) <= NAMED
        assert sum(counted.values()) == callers * calls
        assert longest < timeout + slack
        assert until(lambda: answers(client), 60)
    return counted, longest


def answers(client):
    try:
        return client.prepare(timeout=2).call({}, "add", a=1, b=2) == 3
    except LabkitError:
        return False


@pytest.mark.own_broker
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_call_over_a_restart_of_the_broker_ends_with_its_answer_or_a_named_error():
    with brokers.own("local") as broker:
        counted, _ = calls_over_a_restart(broker, callers=20, calls=20, timeout=8, slack=SLACK)
        assert counted["answered"] > 0


@pytest.mark.own_broker
@pytest.mark.timeout(180)
def test_a_broker_that_forbids_transient_queues_is_named_with_the_options_that_help():
    with broker_without_transient_queues() as broker:
        settings = broker.settings()
        with calling(settings) as (client, transport):
            began = time.monotonic()
            for fails in (
                lambda: client.call({}, "add", a=1, b=2),
                lambda: Notifier(transport, "pub").info({}, "made", 1),
                RPCServer(transport, TOPIC.replace(server="one"), [Sums()]).start,
                NotificationListener(transport, [Target(topic="events")], [Listening()]).start,
            ):
                with pytest.raises(TransientQueuesForbidden, match="rabbit_transient_quorum_queue=True"):
                    fails()
            assert time.monotonic() - began < 10
        with (
            Transport(settings, options=RabbitOptions(**DURABLE)) as transport,
            served(transport),
        ):
            client = RPCClient(transport, TOPIC, timeout=20)
            assert client.call({}, "add", a=1, b=2) == 3
            heard = Listening()
            with NotificationListener(transport, [Target(topic="events")], [heard]):
                Notifier(transport, "pub", topics=["events"]).info({}, "made", 1)
                until(lambda: heard.heard == [1])


class Listening:
    def __init__(self, gate=None):
        self.heard = []
        self.entered = threading.Event()
        self.gate = gate

    def info(self, *told):
        self.entered.set()
        assert self.gate is None or self.gate.wait(20)
        self.heard.append(told[3])
