"""A publisher through what happens to its own process: a crash of the I/O thread, a fork, an exit, interrupts."""

import _thread
import os
import random
import subprocess
import sys
import threading
import time

import pytest

from labkit import Connection, NotConnected, Outcome, Publisher, Queue
from labkit.connection.io_thread import SHARED
from labkit.messaging.publisher import _at_exit
from labkit.wire import Stall
from tests.broker.connections import connected, own_virtual_host
from tests.broker.publishing import check_nothing_is_lost, drained, publishing

pytestmark = pytest.mark.broker

# Publishes, and ends without a word while most of it is on its way.
PROGRAM = """
import sys
from labkit import BrokerSettings, Publisher
publisher = Publisher(BrokerSettings.from_url(sys.stdin.read())).open()
publisher.publish_many([str(number) for number in range(500)], routing_key="work")
"""


@pytest.fixture(scope="module")
def settings(broker):
    with own_virtual_host(broker) as settings:
        yield settings


def test_a_crash_of_the_io_thread_loses_nothing(settings, caplog):
    def bug():
        raise SystemExit("of the test")

    def crash():  # past the guard, as an error of Pika's loop would be
        SHARED.ioloop().add_callback(bug)

    with publishing(settings) as (publisher, _, _):
        sent = publisher.publish_many([str(number) for number in range(300)], routing_key="work")
        SHARED.post(crash)
        sent += publisher.publish_many([str(number) for number in range(300, 600)], routing_key="work")
        publisher.flush(timeout=30)
        assert {each.outcome for each in sent} == {Outcome.CONFIRMED}
        replayed = publisher.replayed
    assert "the I/O thread crashed" in caplog.text
    taken = drained(settings)
    check_nothing_is_lost(sent, taken, replayed)
    assert len({body for _, body in taken}) == 600


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_child_process_publishes_on_its_own_and_harms_nobody(settings):
    with connected(settings, recovery=True) as (connection, _):
        with connection.channel() as channel:
            channel.declare(Queue("work"))
        with Publisher(connection) as publisher:
            sent = publisher.publish_many(["parent"] * 100, routing_key="work")
            child = os.fork()
            if child == 0:
                os._exit(_publish_in_the_child(publisher))
            _, status = os.waitpid(child, 0)
            assert os.waitstatus_to_exitcode(status) == 0
            publisher.flush(timeout=20)
            assert {each.outcome for each in sent} == {Outcome.CONFIRMED}
            assert connection.generation == 1
    assert sorted(body for _, body in drained(settings)) == [b"child"] + [b"parent"] * 100


def _publish_in_the_child(publisher):
    """Return an exit code: 0, or the step that failed."""
    try:
        publisher.publish("x", routing_key="work")
    except NotConnected:
        pass
    else:
        return 1
    try:
        publisher.open()
        publisher.publish("child", routing_key="work").result()
        publisher.close()
        publisher.connection.close()
    except BaseException:
        return 2
    return 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_child_process_waits_for_no_message_of_its_parent(settings):
    with publishing(settings) as (publisher, proxy, _):
        with proxy.fault(Stall()):
            sent = publisher.publish_many(["parent"] * 10, routing_key="work")
            child = os.fork()
            if child == 0:
                started = time.monotonic()
                publisher.flush(timeout=20)
                _at_exit()
                publisher.close(timeout=20)
                os._exit(int(10 * (time.monotonic() - started)))
            _, status = os.waitpid(child, 0)
            assert os.waitstatus_to_exitcode(status) < 10  # tenths of a second
        publisher.flush(timeout=20)
        assert {each.outcome for each in sent} == {Outcome.CONFIRMED}
    assert len(drained(settings)) == 10


def test_what_is_on_its_way_at_exit_is_sent(settings):
    with Connection(settings) as connection:
        connection.channel().declare(Queue("work"))
    program, url = [sys.executable, "-W", "error", "-c", PROGRAM], settings.to_url(mask=False)
    done = subprocess.run(program, input=url, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert len(drained(settings)) == 500


@pytest.mark.usefixtures("interrupts_may_hit_finalizers")
def test_interrupts_at_any_moment_leave_the_window_whole(settings):
    """G7, for a publisher."""
    with publishing(settings, max_in_flight=10) as (publisher, _, _):
        sent, interrupts, rng = [], 0, random.Random(1)
        ends = time.monotonic() + 2.0

        def interrupt():
            while time.monotonic() < ends:
                time.sleep(rng.uniform(0, 0.01))
                _thread.interrupt_main()

        thread, is_over = threading.Thread(target=interrupt), False
        while not is_over:
            try:
                if thread.ident is None:
                    thread.start()
                while time.monotonic() < ends:
                    sent.append(publisher.publish("x", routing_key="work", deadline=5))
                thread.join()
                time.sleep(0.05)  # the last one may still be on its way
                is_over = True
            except KeyboardInterrupt:
                interrupts += 1
        publisher.flush(timeout=20)
        assert interrupts > 20
        assert {each.outcome for each in sent} == {Outcome.CONFIRMED}
        assert (publisher.in_flight, publisher.bytes_in_flight) == (0, 0)
        publisher.publish("x", routing_key="work").result()
    drained(settings)
