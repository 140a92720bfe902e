"""Each benchmark still runs, with small counts: what no test runs stops working, and nobody notices."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.broker.connections import own_virtual_host

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
QUICK = [each for each in sorted(BENCHMARKS.glob("*.py")) if '"--quick"' in each.read_text()]

pytestmark = [pytest.mark.soak, pytest.mark.broker, pytest.mark.timeout(400)]


@pytest.mark.parametrize("script", QUICK, ids=lambda script: script.stem)
def test_a_benchmark_runs_and_prints_what_it_measured(script, broker):
    with own_virtual_host(broker) as settings:
        environment = {**os.environ, "LABKIT_URL": settings.to_url(mask=False)}
        ended = subprocess.run(
            [sys.executable, str(script), "--quick"],
            env=environment, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert any(each.isdigit() for each in ended.stdout), ended.stdout
