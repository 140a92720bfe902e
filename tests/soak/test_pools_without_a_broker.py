"""The pool's hand-off in full counts: random schedules, real interrupts, storms. No broker."""

import platform
import shutil
import subprocess
import sys
import time
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from tests.soak.measured import write_table
from tests.unit.pool.test_pool_interrupts import interrupted_in_a_process
from tests.unit.pool.test_pool_model import QUICK, PoolMachine
from tests.unit.pool.test_pool_under_load import storm

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]
SCHEDULES, PARTS = 10_000, 4
INTERRUPTS = 1000
SEEDS = range(3)
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
ASK = "import platform, pika, pydantic_settings; print(platform.python_version())"


@pytest.fixture(scope="module")
def facts():
    rows: list[list[object]] = []
    yield rows
    write_table("pool facts soak", ["what", "times", "requests", "wrong", "seconds"], rows, beside_others=True)


@pytest.mark.parametrize("part", range(1, PARTS + 1))
def test_ten_thousand_schedules_break_no_fact(facts, part):
    """G6, in parts that may run side by side."""
    counted = Counter()

    class Counted(PoolMachine):
        def teardown(self):
            super().teardown()
            counted.update(schedules=1, requests=self.asked)

    began = time.monotonic()
    run_state_machine_as_test(Counted, settings=settings(QUICK, max_examples=SCHEDULES // PARTS))
    assert counted["schedules"] >= SCHEDULES // PARTS
    what = f"generated schedules of 30 steps, part {part}: nobody overtakes, never above max_size, none lent twice"
    seconds = f"{time.monotonic() - began:.0f}"
    facts.append([what, counted["schedules"], counted["requests"], 0, seconds])


@pytest.fixture(scope="module")
def table():
    rows: list[list[object]] = []
    yield rows
    write_table("interrupt soak", ["Python", "interrupts", "lost", "seconds"], rows)


@pytest.mark.parametrize("version", PYTHONS)
def test_a_thousand_real_interrupts_lose_nothing_and_disturb_nobody_else(table, version):
    """G7, on every Python that is here and has what labkit needs: the first on the path."""
    is_this = platform.python_version().startswith(f"{version}.")
    python = sys.executable if is_this else shutil.which(f"python{version}")
    asked = python and subprocess.run([python, "-c", ASK], capture_output=True, text=True, check=False)
    if not asked or asked.returncode:
        table.append([version, "not here", "", ""])
        pytest.skip(f"no Python {version} here that has what labkit needs")
    began = time.monotonic()
    for seed in SEEDS:
        interrupted_in_a_process(INTERRUPTS, seed, python)
    table.append([asked.stdout.strip(), len(SEEDS) * INTERRUPTS, 0, f"{time.monotonic() - began:.0f}"])


@pytest.mark.parametrize("seed", range(5))
def test_numbers_add_up_in_every_snapshot_of_a_long_storm(facts, seed):
    """G14."""
    began = time.monotonic()
    looks, requests = storm(seed, actions=2000)
    what = f"snapshots of a storm in which the numbers add up, seed {seed}"
    facts.append([what, looks, requests, 0, f"{time.monotonic() - began:.0f}"])
