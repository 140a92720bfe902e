"""A scheduled job publishes through outages, one run at a time, says what failed, and stops when told to."""

import contextlib
import datetime
import threading
import time

import pika
import pytest
import schedule
from apscheduler.events import EVENT_JOB_ERROR, EVENT_JOB_EXECUTED, EVENT_JOB_MAX_INSTANCES
from apscheduler.schedulers.background import BackgroundScheduler

from labkit import (
    BrokerSettings,
    ConfigurationError,
    ConnectionManager,
    DeadlineExceeded,
    Message,
    OutcomeUnknown,
    Queue,
    brokers,
)
from labkit.integrations.scheduling import PublisherJob, run_schedule
from labkit.wire import Proxy, Refuse, Stall
from tests.broker.connections import SLACK, nothing_left_behind, own_virtual_host
from tests.view import until

pytestmark = pytest.mark.broker

QUEUE = "heartbeats"


@pytest.fixture
def settings(broker):
    with own_virtual_host(broker) as settings:
        yield settings


@contextlib.contextmanager
def managed(settings, *, heartbeat=2):
    with Proxy(settings) as proxy, contextlib.ExitStack() as stack:
        manager = ConnectionManager(proxy.settings(heartbeat=heartbeat))
        stack.callback(manager.close)
        yield manager, proxy


@contextlib.contextmanager
def looping(job, *, seconds=1):
    """The job every second on a thread of its own; yields what stops the loop."""
    scheduler, stop = schedule.Scheduler(), job._stop
    scheduler.every(seconds).seconds.do(job.attempt)
    failures = []

    def loop():
        try:
            run_schedule(stop, scheduler)
        except BaseException as exc:
            failures.append(exc)

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield thread
    finally:
        stop.set()
        thread.join(10)
        assert not thread.is_alive()
        assert failures == []


def messages(settings, queue=QUEUE):
    """All messages of the queue, as (message_id, body, headers, timestamp)."""
    connection = pika.BlockingConnection(settings.to_pika()[0])
    channel, found = connection.channel(), []
    while (got := channel.basic_get(queue, auto_ack=True))[0] is not None:
        found.append((got[1].message_id, got[2].decode(), got[1].headers, got[1].timestamp))
    connection.close()
    return found


def test_n_ticks_are_n_messages_in_a_declared_queue_with_the_time_of_each_run(settings):
    began = datetime.datetime.now(datetime.UTC)
    with managed(settings) as (manager, _):
        job = PublisherJob(manager, Queue(QUEUE), lambda at: f"alive at {at:%H:%M}")
        with looping(job):
            until(lambda: job.published >= 3)
    found = messages(settings)
    assert (len(found), job.failed, job.skipped) == (job.published, 0, 0)
    for _, body, headers, timestamp in found:
        at = datetime.datetime.fromisoformat(headers["x-run-at"])
        assert began <= at <= datetime.datetime.now(datetime.UTC)
        assert (body, timestamp) == (f"alive at {at:%H:%M}", int(at.timestamp()))


def test_the_loop_survives_an_outage_and_goes_on(settings):
    with managed(settings) as (manager, proxy):
        job = PublisherJob(manager, QUEUE, "alive", deadline=1.0)
        with proxy.fault(Refuse()), looping(job):
            until(lambda: job.failed >= 2)
        assert job.published == 0
        job._stop.clear()
        with looping(job):
            until(lambda: job.published >= 1)
            with proxy.fault(Refuse()):
                proxy.cut()
                before = job.failed
                until(lambda: job.failed > before)
            before = job.published
            until(lambda: job.published > before)
    assert len({each[0] for each in messages(settings)}) == job.published


def test_what_was_due_during_an_outage_runs_late_and_once(settings):
    with managed(settings) as (manager, proxy):
        job = PublisherJob(manager, QUEUE, "alive", deadline=30)
        with looping(job):
            until(lambda: job.published >= 1)
            with proxy.fault(Refuse()):
                proxy.cut()
                before = job.published
                time.sleep(4)  # four ticks
                assert job.published <= before + 1  # one may have been confirmed just before the cut
                before = job.published
            until(lambda: job.published > before)
            assert job.published == before + 1
    assert job.failed == 0


@pytest.mark.parametrize("when", ["it connects", "it waits for the confirm", "the link is lost"])
def test_a_run_that_waits_for_the_broker_ends_soon_after_stop(settings, when):
    with nothing_left_behind(), managed(settings, heartbeat=30) as (manager, proxy):
        job = PublisherJob(manager, QUEUE, "alive", deadline=60)
        if when != "it connects":
            assert job()
        fault = Stall() if when == "it waits for the confirm" else Refuse()
        with proxy.fault(fault):
            proxy.cut() if when == "the link is lost" else None
            with looping(job) as thread:
                until(lambda: job._running.locked())
                time.sleep(0.5)
                assert thread.is_alive()
                began = time.monotonic()
                job._stop.set()
                thread.join(10)
                assert time.monotonic() - began < 3 + SLACK
        assert job.failed == 1


def test_a_call_raises_what_became_of_the_message(settings):
    with managed(settings, heartbeat=30) as (manager, proxy):
        job = PublisherJob(manager, QUEUE, "alive", deadline=1.5)
        assert job()
        with proxy.fault(Stall()), pytest.raises((OutcomeUnknown, DeadlineExceeded)):
            job()
        assert not PublisherJob(manager, QUEUE, lambda _: 1 / 0).attempt()


def test_a_queue_that_was_deleted_is_there_again_at_the_next_run(settings):
    with managed(settings) as (manager, _):
        job = PublisherJob(manager, Queue(QUEUE, arguments={"x-queue-type": "quorum"}), "alive")
        assert job()
        with ConnectionManager(settings) as other, other.channel() as channel:
            channel.delete(Queue(QUEUE))
        assert job()
    assert len(messages(settings)) == 1


def test_a_call_during_a_run_is_skipped(settings):
    with managed(settings) as (manager, _):
        inside, go_on = threading.Event(), threading.Event()

        def work(_):
            inside.set()
            assert go_on.wait(30)
            return "alive"

        job = PublisherJob(manager, QUEUE, work)
        thread = threading.Thread(target=job)
        thread.start()
        assert inside.wait(10)
        assert job() is False
        go_on.set()
        thread.join(10)
    assert (job.published, job.skipped, len(messages(settings))) == (1, 1, 1)


@pytest.mark.slow
def test_a_job_longer_than_three_heartbeats_keeps_its_connection(settings):
    with managed(settings, heartbeat=1) as (manager, _):

        def work(_):
            ends = time.monotonic() + 4
            while time.monotonic() < ends:
                sum(range(1000))  # Python's lock is busy, too
            return Message("the report", headers={"pages": 7})

        job = PublisherJob(manager, QUEUE, "before")
        assert job()
        assert PublisherJob(manager, QUEUE, work)()
        assert [each.generation for each in manager.connections] == [1]
    assert [each[1] for each in messages(settings)] == ["before", "the report"]


def through_restarts(restarts, *, pause=2.0):
    """Have APScheduler run a job each second meanwhile; return the job, its runs by outcome, and what is lost."""
    runs = {EVENT_JOB_EXECUTED: 0, EVENT_JOB_ERROR: 0, EVENT_JOB_MAX_INSTANCES: 0}
    with brokers.own() as broker:
        settings, confirmed = broker.settings().replace(heartbeat=5), []
        with ConnectionManager(settings) as manager:
            job = PublisherJob(
                manager, QUEUE, lambda at: confirmed.append(at.isoformat()) or confirmed[-1], deadline=60
            )
            scheduler = BackgroundScheduler(timezone=datetime.UTC)
            scheduler.add_job(job, "interval", seconds=1, coalesce=True, misfire_grace_time=None)
            scheduler.add_listener(lambda event: runs.update({event.code: runs[event.code] + 1}), sum(runs))
            scheduler.start()
            for _ in range(restarts):
                before = job.published
                until(lambda before=before: job.published >= before + 2, 60)
                broker.stop()
                time.sleep(pause)
                broker.start()
            before = job.published
            until(lambda: job.published >= before + 2, 60)
            scheduler.shutdown()
        bodies = {each[1] for each in messages(settings)}
        assert job.published == runs[EVENT_JOB_EXECUTED]
        return job, runs, set(confirmed) - bodies


@pytest.mark.own_broker
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_apscheduler_goes_on_through_a_restart_and_loses_no_run_that_it_counted():
    job, runs, lost = through_restarts(1)
    assert (runs[EVENT_JOB_ERROR], job.failed, lost) == (0, 0, set())
    assert runs[EVENT_JOB_MAX_INSTANCES] >= 1  # ticks during the outage: none was run beside the one that waited


def test_odd_arguments_are_refused_before_any_io():
    manager = ConnectionManager(BrokerSettings())
    for arguments, field in (
        ((manager, "", "x"), "queue"),
        ((manager, Queue(), "x"), "queue"),
        ((None, "q", "x"), "manager"),
        ((manager, "q", 5), "body"),
    ):
        with pytest.raises(ConfigurationError) as caught:
            PublisherJob(*arguments)
        assert caught.value.field == field
    with pytest.raises(ConfigurationError, match="deadline"):
        PublisherJob(manager, "q", "x", deadline=-1)
