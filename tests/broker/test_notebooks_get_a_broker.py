"""With --nbval a broker runs before the first cell, kernels find it, and it is gone after the last one."""

from __future__ import annotations

from pathlib import Path

import pytest
from sample_notebook import code, numbered, printed, pytest_project, run_pytest, strict

from labkit import brokers

pytestmark = [pytest.mark.broker, pytest.mark.slow]

ASKS = "from labkit import brokers\n\nbroker = brokers.find()\nprint(broker is not None and broker.is_running)"


def asking(*needs: str) -> object:
    notebook = numbered([code(ASKS, printed("True\n"))])
    if needs:
        notebook.metadata["labkit"] = {"requires": list(needs)}
    return notebook


def test_kernels_find_the_test_broker_and_it_ends_with_the_run(tmp_path: Path) -> None:
    project = pytest_project(
        tmp_path, n90_plain=asking(), n91_needy=asking("management"), n92_hopeless=asking("time-travel")
    )

    done = run_pytest(project, *strict("notebooks"), LABKIT_BROKER="auto")

    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed, 1 deselected" in done.stdout
    assert "92-hopeless.ipynb (1 cells): needs time-travel: this broker cannot do that" in done.stdout
    assert brokers.find(project / ".lab" / "test") is None


def test_a_broker_that_runs_already_is_used_and_left_running(tmp_path: Path) -> None:
    project = pytest_project(tmp_path, n90_plain=asking())
    bench = tmp_path / "bench"
    brokers.up(home=bench)
    try:
        done = run_pytest(project, *strict("notebooks"), LABKIT_BROKER=str(bench))

        assert done.returncode == 0, done.stdout + done.stderr
        assert brokers.find(bench) is not None
        assert not (project / ".lab" / "test").exists()
    finally:
        brokers.down(bench)
