"""The unit and broker tests on the pre-release of Pika that labkit promises to run on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from labkit.factory import FIRST_THREAD_SAFE
from tests.soak.measured import write_table
from tests.soak.runs import run_tests
from tests.soak.versions import ROOT, VERSIONS, why_not

INSTALL_TIMEOUT = 600  # seconds; 60 with a near mirror

pytestmark = [pytest.mark.soak, pytest.mark.timeout(7200), pytest.mark.skipif(bool(why_not()), reason=why_not())]


@pytest.fixture
def python(tmp_path) -> str:
    """The requirements of a class, but for Pika."""
    home = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", home], check=True, timeout=120)
    python = str(home / "bin" / "python")
    itself = ["--no-deps", "--no-build-isolation", "-e", str(ROOT)]  # the doctor reads what it says it needs
    for wanted in (["-r", str(ROOT / "requirements.txt")], ["--no-deps", f"pika=={FIRST_THREAD_SAFE}"], itself):
        done = subprocess.run(
            [python, "-m", "pip", "install", "-q", *wanted],
            capture_output=True, text=True, timeout=INSTALL_TIMEOUT, check=False,
        )  # fmt: skip
        if done.returncode:
            pytest.skip(f"cannot install {' '.join(wanted)}: {done.stderr.strip().splitlines()[-1:]}")
    return python


def test_unit_and_broker_tests_pass_on_the_prerelease(python, tmp_path):
    clone = tmp_path / "labkit"
    subprocess.run(["git", "clone", "-q", ROOT, clone], check=True, timeout=60)
    (clone / ".lab").mkdir(mode=0o700)
    (clone / ".lab" / "rootfs").symlink_to(VERSIONS[-1].unpack())
    environment = {
        "LABKIT_BROKER": "local",
        "DOCKER_HOST": f"unix://{clone}/no-engine",
        "PATH": f"{Path(python).parent}{os.pathsep}{os.environ['PATH']}",
    }
    rows, wrong = [], []
    for what in ("unit", "broker"):
        counts, seconds, tail = run_tests(clone, what, [f"tests/{what}"], python=python, **environment)
        failed = counts.get("failed", 0) + counts.get("error", 0) + counts.get("errors", 0)
        warned = counts.get("warning", 0) + counts.get("warnings", 0)
        passed, skipped = counts.get("passed", 0), counts.get("skipped", 0)
        rows.append([FIRST_THREAD_SAFE, what, passed, skipped, failed, warned, f"{seconds:.0f}"])
        if failed or not passed:
            wrong.append(tail)
    write_table("pika", ["Pika", "tests", "passed", "skipped", "failed", "warnings", "seconds"], rows)
    assert not wrong, wrong
