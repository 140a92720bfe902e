"""Interrupts at any moment: nothing is lost, nothing is left behind, and the connection is usable or says it is not."""

import signal
import subprocess
import sys

import pytest

from labkit.brokers.home import project
from tests.tiers import in_soak

pytestmark = [
    pytest.mark.broker,
    pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no timer that interrupts a program"),
]
VERBS = ("publish", "consume", "open", "close")


def interrupt(settings, verb, seed, count):
    program = [sys.executable, "-m", "tests.broker.interrupted_program"]
    done = subprocess.run(
        [*program, verb, str(seed), str(count)], input=settings.to_url(mask=False),
        cwd=project(), capture_output=True, text=True, timeout=60 + count, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-6000:]
    assert f"{count} interrupts of {verb}" in done.stdout


@pytest.mark.parametrize("verb", [*VERBS[:2], *in_soak(*VERBS[2:])])
def test_call_that_is_interrupted_leaves_nothing_half_done(settings, verb):
    interrupt(settings, verb, seed=1, count=60)
