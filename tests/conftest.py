"""The shared test bench, for every test that needs a real RabbitMQ."""

import logging
import os
import signal
import sys
import uuid
from collections.abc import Iterator

import hypothesis
import pytest

from labkit import brokers
from labkit.brokers import Broker
from labkit.brokers.certificates import LabCertificates
from labkit.brokers.discovery import KINDS
from labkit.brokers.home import project
from labkit.connection import states
from labkit.settings.settings import BrokerSettings
from tests.view import View

# A shell that starts a job in the background has it ignore Ctrl-C; the tests of interrupts are not to.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Nor SIGHUP under nohup, and a shell that starts with an ignored signal cannot trap it.
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# A busy machine is not a failure: what must be fast has its own, explicit, deadline.
hypothesis.settings.register_profile("labkit", deadline=None)
hypothesis.settings.load_profile("labkit")

# Tests that run side by side (`-n 3`) have a broker each: what one of them closes, counts or blocks is its own.
TEST_BENCH = project() / ".lab" / "-".join(["test", *filter(None, [os.environ.get("PYTEST_XDIST_WORKER")])])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Side by side, the long tests go first: the last one to end decides how long all of them take."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="session")
def broker() -> Iterator[Broker]:
    """The test bench's broker; the learner's own is never touched. What this run started, it ends."""
    named = os.environ.get("LABKIT_BROKER", "auto")
    if named not in KINDS:  # a URL, or the bench of a run that this one is part of
        yield brokers.up()
        return
    was_running = brokers.find(TEST_BENCH) is not None
    with pytest.MonkeyPatch.context() as patch:
        broker = brokers.up(named, TEST_BENCH)
        # A Lab inside a test, and every process that a test starts, is to use this one too.
        patch.setenv("LABKIT_BROKER", str(TEST_BENCH))
        yield broker
    if not was_running:
        brokers.down(TEST_BENCH)


@pytest.fixture
def interrupts_may_hit_finalizers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such an interrupt is Python's to drop, and pytest's report of it takes long enough to be interrupted itself."""
    report = sys.unraisablehook
    monkeypatch.setattr(
        sys, "unraisablehook", lambda what: None if what.exc_type is KeyboardInterrupt else report(what)
    )


@pytest.fixture(autouse=True)
def impossible_steps() -> Iterator[list[str]]:
    """Every test fails on a step of a connection that its table of transitions does not have."""
    found: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())
    states.LOGGER.addHandler(handler)
    yield found
    states.LOGGER.removeHandler(handler)
    assert found == []


@pytest.fixture
def view(broker: Broker) -> Iterator[View]:
    """What the management API says of that broker."""
    view = View(broker)
    yield view
    view.close()


@pytest.fixture
def settings(broker: Broker) -> Iterator[BrokerSettings]:
    """Settings for a virtual host that is this test's own."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    yield broker.vhost(name).replace(connection_name=name)
    broker.delete_vhost(name)


@pytest.fixture
def encrypted(broker: Broker, settings: BrokerSettings) -> BrokerSettings:
    """The test's virtual host, by the TLS listener."""
    if "tls" not in broker.capabilities:
        pytest.skip("needs a broker with the lab's TLS listener")
    return broker.settings(settings.virtual_host, tls=True).replace(connection_name=settings.connection_name)


@pytest.fixture
def certificates(broker: Broker) -> LabCertificates:
    assert broker.home is not None
    return LabCertificates(broker.home)
