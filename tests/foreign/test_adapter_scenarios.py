"""What Pika's acceptance tests ask of its asynchronous adapters, on every adapter that the factory makes."""

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest

from labkit import brokers
from labkit.lab.adapters import ADAPTERS
from tests.foreign.scenarios import SCENARIOS, UNDER_AN_ALARM

pytestmark = [pytest.mark.soak, pytest.mark.broker, pytest.mark.timeout(120)]
ROOT = Path(__file__).parents[2]


def run(adapter, scenario, settings, on_line=lambda _: None):
    """Return what the child said, and what it complained of."""
    command = [sys.executable, "-m", "tests.foreign.on_a_loop", adapter, scenario.__name__]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as child:
        child.stdin.write(settings.to_url(mask=False) + "\n")
        child.stdin.close()
        said = []
        for line in child.stdout:
            said.append(line.strip())
            on_line(said[-1])
        return said, child.stderr.read()


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda each: each.__name__)
def test_every_adapter_does_what_pika_asks_of_its_own(adapter, scenario, settings):
    said, complained = run(adapter, scenario, settings)
    assert said == ["ok"], complained


@pytest.fixture(scope="module")
def broker_to_alarm():
    with brokers.own() as broker:
        yield broker


@pytest.mark.own_broker
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_blocked_connection_ends_or_goes_on_as_its_settings_say_on_every_adapter(adapter, broker_to_alarm):
    broker, (ends, goes_on) = broker_to_alarm, UNDER_AN_ALARM
    settings = broker.settings()
    with broker.alarm():
        said, complained = run(adapter, ends, settings.replace(blocked_connection_timeout=1.0))
    assert said == ["ok"], complained
    with contextlib.ExitStack() as alarm:
        alarm.enter_context(broker.alarm())
        said, complained = run(adapter, goes_on, settings, lambda line: line == "blocked" and alarm.close())
    assert said == ["blocked", "ok"], complained
