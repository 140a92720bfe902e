"""Everything that one caller can do wrong, in one process, in a random order: it costs nobody else anything."""

import json
import subprocess
import sys

import pytest

from labkit.brokers.home import project
from tests.broker.connections import own_virtual_host
from tests.tiers import in_soak
from tests.view import until

pytestmark = [
    pytest.mark.broker,
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="no signals, forks and descriptor limits of this kind"),
]
STEPS = 24  # of twelve kinds, each at least once


def storm(broker, seed, steps=STEPS, timeout=250):
    """Run one storm; return what it counted."""
    with own_virtual_host(broker) as settings:
        done = subprocess.run(
            [sys.executable, "-X", "faulthandler", "-m", "tests.broker.storm_program", str(seed), str(steps)],
            input=settings.to_url(mask=False) + "\n", cwd=project(), capture_output=True, text=True, timeout=timeout,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"seed {seed}:\n{done.stderr[-6000:]}"
        until(lambda: not broker.connections(settings.virtual_host), 15)
        print(done.stdout)
        return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", [1, *in_soak(2, 3)])
def test_what_one_caller_does_wrong_costs_nobody_else_anything(broker, seed):
    counted = storm(broker, seed)
    assert counted["happened"] >= STEPS
    assert counted["connections"] >= 20
    assert counted["lost"] == 0
