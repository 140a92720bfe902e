"""docker-compose.yml as the compose commands of this machine read it; no engine is asked."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

FILE = Path(__file__).parents[3] / "docker-compose.yml"
GIVEN = {
    "LABKIT_AMQP_PORT": "5672",
    "LABKIT_AMQPS_PORT": "5671",
    "LABKIT_MANAGEMENT_PORT": "15672",
    "LABKIT_FILES": "/nowhere",
}


@pytest.fixture(params=["v2", "v1"])
def compose(request: pytest.FixtureRequest) -> list[str]:
    if request.param == "v1":
        words = ["docker-compose"]
        if not shutil.which("docker-compose"):
            pytest.skip("no docker-compose 1.29 here")
    else:
        words = ["docker", "compose"]
        if not shutil.which("docker") or run([*words, "version"]).returncode:
            pytest.skip("no compose v2 here")
    return [*words, "-f", str(FILE)]


def run(words: list[str], **environment: str) -> "subprocess.CompletedProcess[str]":
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LABKIT")}
    return subprocess.run(
        words, env={**kept, **environment}, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("verb", [["up"], ["config"]])
def test_a_bare_compose_command_says_to_run_labkit_up(compose: list[str], verb: list[str]) -> None:
    done = run([*compose, *verb])
    assert done.returncode != 0
    assert "run labkit up" in done.stderr


@pytest.mark.parametrize("left_out", sorted(GIVEN))
def test_half_a_set_of_variables_is_as_good_as_none(compose: list[str], left_out: str) -> None:
    done = run([*compose, "config"], **{name: value for name, value in GIVEN.items() if name != left_out})
    assert done.returncode != 0
    assert "run labkit up" in done.stderr


def test_every_published_port_is_on_loopback_only(compose: list[str]) -> None:
    if compose[0] == "docker":
        done = run([*compose, "config", "--format", "json"], **GIVEN)
        services = json.loads(done.stdout)["services"].values()
        hosts = [port.get("host_ip") for service in services for port in service["ports"]]
    else:
        done = run([*compose, "config"], **GIVEN)
        published = [line.strip() for line in done.stdout.partition("ports:")[2].splitlines()]
        hosts = [line.removeprefix("- ").partition(":")[0] for line in published if line.endswith("/tcp")]
    assert hosts == ["127.0.0.1"] * 3
