"""A scheduled job in real time: a run each second while the broker is stopped and started three times."""

import time

import pytest
from apscheduler.events import EVENT_JOB_ERROR, EVENT_JOB_MAX_INSTANCES

from tests.broker.test_scheduling import through_restarts
from tests.soak.measured import write_table

pytestmark = [pytest.mark.soak, pytest.mark.broker, pytest.mark.own_broker, pytest.mark.timeout(900)]


def test_a_job_each_second_through_three_outages_loses_no_run_that_it_counted():
    began = time.monotonic()
    job, runs, lost = through_restarts(3, pause=10.0)
    assert (runs[EVENT_JOB_ERROR], lost) == (0, set())
    waited = runs[EVENT_JOB_MAX_INSTANCES]
    write_table(
        "scheduled jobs",
        ["what", "runs", "runs that failed", "published and lost", "ticks during a run", "seconds"],
        [
            [
                "APScheduler, a run each second, 3 outages of 10 s and more",
                job.published,
                job.failed,
                len(lost),
                waited,
                f"{time.monotonic() - began:.0f}",
            ]
        ],
    )
