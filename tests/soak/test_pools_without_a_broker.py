"""The pool's hand-off in full counts: random schedules, real interrupts, storms. No broker."""

import shutil
import subprocess
import sys

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from tests.unit.test_pool_interrupts import interrupted_in_a_process
from tests.unit.test_pool_model import QUICK, PoolMachine
from tests.unit.test_pool_under_load import storm

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]
SCHEDULES = 10_000
INTERRUPTS = 1000
NEEDED = "import pika, pydantic_settings"


def test_ten_thousand_schedules_break_no_fact():
    """G6."""
    run_state_machine_as_test(PoolMachine, settings=settings(QUICK, max_examples=SCHEDULES))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("version", ["this", "3.11", "3.12", "3.13", "3.14"])
def test_a_thousand_real_interrupts_lose_nothing_and_disturb_nobody_else(version, seed):
    """G7, on every Python that is here and has what labkit needs."""
    python = sys.executable if version == "this" else shutil.which(f"python{version}")
    if python is None or subprocess.run([python, "-c", NEEDED], capture_output=True, check=False).returncode:
        pytest.skip(f"no Python {version} here that has what labkit needs")
    interrupted_in_a_process(INTERRUPTS, seed, python)


@pytest.mark.parametrize("seed", range(5))
def test_numbers_add_up_in_every_snapshot_of_a_long_storm(seed):
    """G14."""
    storm(seed, actions=2000)
