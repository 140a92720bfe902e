"""The broker tests and the notebooks on every RabbitMQ version and backend, each in a clean clone of this checkout."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.soak.measured import write_table
from tests.soak.runs import run_tests
from tests.soak.versions import ROOT, VERSIONS, Version, why_not

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600), pytest.mark.skipif(bool(why_not()), reason=why_not())]


@pytest.fixture(scope="module")
def table():
    rows: list[list[object]] = []
    yield rows
    columns = ["RabbitMQ", "tests", "passed", "skipped", "failed", "seconds"]
    write_table("versions", columns, rows, beside_others=True)


@pytest.fixture
def clone(tmp_path) -> Path:
    subprocess.run(["git", "clone", "-q", ROOT, tmp_path / "labkit"], check=True, timeout=60)
    return tmp_path / "labkit"


def unpacked(version: Version, clone: Path) -> None:
    (clone / ".lab").mkdir(mode=0o700)
    (clone / ".lab" / "rootfs").symlink_to(version.unpack())


def record(table, version: Version, backend: str, what: str, arguments: list[str], clone: Path, **environment: str):
    counts, seconds, tail = run_tests(clone, what, arguments, **environment)
    failed = counts.get("failed", 0) + counts.get("error", 0) + counts.get("errors", 0)
    passed, skipped = counts.get("passed", 0), counts.get("skipped", 0)
    table.append([f"{version.number}, {backend}", what, passed, skipped, failed, f"{seconds:.0f}"])
    assert passed, tail
    assert not failed, tail


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.number)
def test_broker_tests_and_notebooks_pass_without_docker(version, clone, table):
    unpacked(version, clone)
    environment = {"LABKIT_BROKER": "local", "DOCKER_HOST": f"unix://{clone}/no-engine"}
    record(table, version, "local", "broker", ["tests/broker"], clone, **environment)
    record(table, version, "local", "notebooks", ["--nbval", "--nbval-current-env", "notebooks"], clone, **environment)


@pytest.mark.parametrize("version", VERSIONS[:-1], ids=lambda version: version.number)
def test_publishers_lose_nothing_on_the_older_versions_too(version, clone, table):
    """G1 and G16 in full counts; on the newest version they are tests of this run."""
    unpacked(version, clone)
    tests = ["tests/soak/test_publisher_soak.py", "tests/soak/test_topology_soak.py"]
    environment = {"LABKIT_BROKER": "local", "DOCKER_HOST": f"unix://{clone}/no-engine"}
    record(table, version, "local", "publisher and topology soak", ["-m", "soak", *tests], clone, **environment)


@pytest.mark.compose
@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.number)
def test_broker_tests_and_notebooks_pass_in_a_container(version, clone, table):
    unpacked(version, clone)  # some tests want a broker of their own, which is a local one
    environment = {"LABKIT_BROKER": "compose", "LABKIT_RABBITMQ_IMAGE": version.build_image()}
    record(table, version, "compose", "broker", ["tests/broker"], clone, **environment)
    record(
        table, version, "compose", "notebooks", ["--nbval", "--nbval-current-env", "notebooks"], clone, **environment
    )


def test_notebooks_pass_twice_in_a_row_and_while_two_loops_keep_the_machine_busy(clone, table):
    newest = VERSIONS[-1]
    unpacked(newest, clone)
    arguments = ["--nbval", "--nbval-current-env", "notebooks"]
    for what in ("notebooks", "notebooks again"):
        record(table, newest, "local", what, arguments, clone, LABKIT_BROKER="local")
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        record(table, newest, "local", "notebooks, two busy loops", arguments, clone, LABKIT_BROKER="local")
    finally:
        for loop in loops:
            loop.kill()
            loop.wait(10)
