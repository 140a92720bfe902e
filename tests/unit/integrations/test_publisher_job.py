"""What a scheduled job says when nothing listens at the broker's address, and what it refuses. No broker."""

import functools

import pytest

from labkit import BrokerSettings, ConfigurationError, ConnectError, ConnectionManager
from labkit.integrations.scheduling import PublisherJob


@pytest.fixture
def manager():
    manager = ConnectionManager(BrokerSettings(host="127.0.0.1", port=1))
    yield manager
    manager.close()


@pytest.mark.parametrize("deadline", [0.3, 1.3])
def test_a_run_that_cannot_connect_says_so_and_not_that_its_time_is_up(manager, deadline):
    job = PublisherJob(manager, "q", b"x", deadline=deadline)
    with pytest.raises(ConnectError, match="Connection refused"):
        job()
    assert job.failed == 1


async def awaited(_):
    """Would have to be awaited."""


@pytest.mark.parametrize("work", [awaited, functools.partial(awaited)])
def test_work_that_nobody_would_await_is_refused(manager, work):
    with pytest.raises(ConfigurationError, match=r"^work: a coroutine function is not allowed") as caught:
        PublisherJob(manager, "q", work)
    assert caught.value.field == "work"
