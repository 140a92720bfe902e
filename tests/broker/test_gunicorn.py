"""gunicorn's workers fork, have threads, are restarted: each process has its own two connections, and none too many."""

import os
import signal
import time

import psutil
import pytest

from labkit import brokers
from tests.broker.connections import own_virtual_host
from tests.broker.flask_program import QUEUE
from tests.broker.publishing import drained
from tests.broker.web import Orders, declared, exported, server_process
from tests.tiers import in_soak
from tests.view import until

pytestmark = [
    pytest.mark.broker,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here"),
]

GUNICORN = ("-m", "gunicorn", "--bind", "127.0.0.1:{port}", "tests.broker.flask_program:create_app()")
SYNC = (*GUNICORN, "--workers", "2")
GTHREAD = (*GUNICORN, "--workers", "2", "--threads", "4", "--worker-class", "gthread")


@pytest.fixture(scope="module")
def settings(broker):
    with own_virtual_host(broker) as settings:
        yield settings


def taken(settings):
    return {body.decode() for _, body in drained(settings, QUEUE)}


def workers(process):
    return psutil.Process(process.pid).children()


@pytest.mark.parametrize(
    "command", [*in_soak(SYNC, GTHREAD), (*GTHREAD, "--preload")], ids=["sync", "gthread", "preloaded"]
)
def test_each_worker_has_one_connection_to_publish_and_closes_it_at_the_end(command, broker, settings, tmp_path):
    url, here = declared(settings), settings.virtual_host
    with server_process(command, url, tmp_path / "log") as (process, address):
        assert broker.connections(here) == []  # nothing before a request needs it
        orders = Orders(address)
        until(lambda: orders.post(clients=8, each=10) or len(broker.connections(here)) == 2)
        assert (set(orders.statuses), orders.broken) == ({202}, [])
        before = {each.pid for each in workers(process)}
        os.kill(process.pid, signal.SIGHUP)  # new workers
        until(lambda: len(workers(process)) == 2 and not before & {each.pid for each in workers(process)})
        until(lambda: orders.post(clients=8, each=5) or len(broker.connections(here)) == 2, 30)
    assert set(orders.accepted) <= taken(settings)
    until(lambda: not broker.connections(here))


CONFIG = """
from prometheus_client import multiprocess
from tests.tiers import in_soak


def child_exit(server, worker):
    multiprocess.mark_process_dead(worker.pid)
"""


@pytest.mark.parametrize("command", [*in_soak(SYNC), (*GTHREAD, "--preload")], ids=["sync", "preloaded"])
def test_metrics_are_the_sum_over_all_workers_those_that_ended_too(command, broker, settings, tmp_path):
    (tmp_path / "conf.py").write_text(CONFIG)
    (tmp_path / "shared").mkdir()
    command, shared = (*command, "--config", str(tmp_path / "conf.py")), str(tmp_path / "shared")
    url, here, confirmed = declared(settings), settings.virtual_host, 'messages_published_total{outcome="confirmed"}'
    with server_process(command, url, tmp_path / "log", PROMETHEUS_MULTIPROC_DIR=shared) as (process, address):
        orders = Orders(address)
        until(lambda: orders.post(clients=8, each=10) or len(broker.connections(here)) == 2)
        assert set(orders.statuses) == {202}
        until(lambda: exported(address, confirmed) == len(orders.accepted))
        assert [exported(address, confirmed) for _ in range(10)] == [len(orders.accepted)] * 10  # whichever answers
        assert exported(address, "publish_confirm_seconds_count") == len(orders.accepted)
        until(lambda: exported(address, 'connection_state{state="open"}') == 2)
        orders.post(clients=8, each=10)
        before = {each.pid for each in workers(process)}
        os.kill(process.pid, signal.SIGHUP)  # new workers; the old ones say what they counted last
        until(lambda: len(workers(process)) == 2 and not before & {each.pid for each in workers(process)}, 30)
        assert exported(address, confirmed) == len(orders.accepted)
        until(lambda: exported(address, 'connection_state{state="open"}') == 0)
        orders.post(clients=8, each=10)
        until(lambda: exported(address, confirmed) == len(orders.accepted))
    assert set(orders.statuses) == {202}


def through_restarts(command, log, *, clients, each, restarts):
    """Post while the broker is restarted; return the orders, and those that were accepted and are lost.

    Afterwards the broker has the connections and channels of before, and the workers their descriptors and threads.
    """
    with brokers.own() as broker:
        settings = broker.settings()
        url = declared(settings)
        with server_process(command, url, log) as (process, address):
            orders = Orders(address)
            # A worker's threads: the main one, four that serve, labkit's I/O thread, two that watch for metrics.
            until(lambda: orders.post(clients=8, each=10) or held(broker, process)[::3] == (2, 16), 60)
            before = held(broker, process)
            threads = orders.start(clients=clients, each=each)
            for share in range(1, restarts + 1):
                wanted = clients * each * share // (restarts + 1)
                until(lambda wanted=wanted: sum(orders.statuses.values()) >= wanted, 600)
                broker.restart()
            for thread in threads:
                thread.join(600)
                assert not thread.is_alive()
            orders.post(clients=8, each=10)
            # One more may be on its way; a leak would be one for each of hundreds of orders.
            until(lambda: all(now <= then + 2 for now, then in zip(held(broker, process), before, strict=True)), 30)
            until(lambda: len(broker.connections()) == 2)
        return orders, set(orders.accepted) - taken(settings)


def held(broker, process):
    seen, children = broker.connections(), workers(process)
    return (
        len(seen),
        sum(each.channels for each in seen),
        sum(each.num_fds() for each in children),
        sum(each.num_threads() for each in children),
    )


@pytest.mark.own_broker
def test_gunicorn_through_a_restart_says_503_at_worst_and_loses_nothing(tmp_path):
    began = time.monotonic()
    orders, lost = through_restarts(GTHREAD, tmp_path / "log", clients=8, each=150, restarts=1)
    assert set(orders.statuses) <= {202, 503}
    assert orders.statuses[202] > 600
    assert (orders.broken, lost) == ([], set())
    assert time.monotonic() - began < 240
