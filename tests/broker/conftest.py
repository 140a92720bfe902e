"""The shared test bench, for every test that needs a real RabbitMQ."""

import os
import uuid
from collections.abc import Iterator

import pytest

from labkit.lab import brokers
from labkit.lab.brokers import Broker
from labkit.lab.home import project
from labkit.settings import BrokerSettings

TEST_BENCH = project() / ".lab" / "test"


@pytest.fixture(scope="session")
def broker() -> Iterator[Broker]:
    """The test bench's broker; the learner's own is never touched. What this run started, it ends."""
    if os.environ.get("LABKIT_BROKER"):
        yield brokers.up()
        return
    was_running = brokers.find(TEST_BENCH) is not None
    yield brokers.up(home=TEST_BENCH)
    if not was_running:
        brokers.down(TEST_BENCH)


@pytest.fixture
def settings(broker: Broker) -> Iterator[BrokerSettings]:
    """Settings for a virtual host that is this test's own."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    yield broker.vhost(name)
    broker.delete_vhost(name)
