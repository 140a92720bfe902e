"""Each verb of the `labkit` command on one bench; and what README tells people to type."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

from labkit import brokers
from labkit.brokers import Broker
from labkit.brokers.discovery import KINDS
from labkit.brokers.state import Record, StateFile
from labkit.cli import main
from labkit.settings.settings import BrokerSettings

ROOT = Path(__file__).parents[2]
VERSION = re.compile(r"RabbitMQ \d+\.\d+\.\d+")

pytestmark = [pytest.mark.broker, pytest.mark.own_broker, pytest.mark.timeout(180)]


@dataclass(frozen=True)
class Said:
    stdout: str
    stderr: str


def labkit(*words: str, code: int = 0) -> Said:
    """Run the command in this process: starting a Python for each verb takes longer than the verb."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.delenv("LABKIT_BROKER", raising=False)
        patch.setattr(sys, "argv", ["labkit", *words])
        with pytest.raises(SystemExit) as ended:
            main()
    assert (ended.value.code or 0) == code, out.getvalue() + err.getvalue()
    return Said(out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A bench whose broker was brought up by the command."""
    place = tmp_path_factory.mktemp("bench")
    kind = os.environ.get("LABKIT_BROKER", "auto")
    try:
        done = labkit("up", "--kind", kind if kind in KINDS else "auto", "--home", str(place))
        first, encrypted, second = done.stdout.splitlines()
        assert re.fullmatch(VERSION.pattern + r" \(\w+\) at amqp://lab:\*\*\*@127\.0\.0\.1:\d+", first)
        assert re.fullmatch(r"with TLS: amqps://lab:\*\*\*@127\.0\.0\.1:\d+\?ca_file=.*ca\.pem", encrypted)
        assert re.fullmatch(r"management page: http://127\.0\.0\.1:\d+", second)
        yield place
    finally:
        brokers.down(place)


def record(home: Path) -> Record:
    found = StateFile(home).read()
    assert found is not None
    return found


def test_up_finds_what_runs_and_starts_no_second_one(home: Path) -> None:
    before = record(home)
    done = labkit("up", "--home", str(home))
    assert VERSION.search(done.stdout)
    assert "starting" not in done.stderr
    assert record(home) == before


def test_status_and_logs_and_doctor_describe_it_and_show_no_password(home: Path) -> None:
    status = labkit("status", "--home", str(home)).stdout
    logs = labkit("logs", "--home", str(home), "--lines", "5000").stdout
    doctor = labkit("doctor", "--home", str(home)).stdout

    assert status.startswith(f"{record(home).backend}: running\nAMQP: amqp://lab:***@127.0.0.1:")
    assert VERSION.search(status)
    assert "RabbitMQ" in logs
    assert re.search(r"^broker +ok +RabbitMQ \d", doctor, re.MULTILINE)
    assert re.search(r"^management +ok", doctor, re.MULTILINE)
    assert re.search(r"^tls +ok +the broker's certificate is good for 36\d days", doctor, re.MULTILINE)
    assert len(labkit("logs", "--home", str(home), "-n", "2").stdout.splitlines()) == 2
    assert record(home).password
    assert record(home).password not in status + logs + doctor


def test_the_password_is_shown_to_who_asks_for_it(home: Path) -> None:
    shown = labkit("status", "--home", str(home), "--show-password").stdout
    assert f"amqp://lab:{record(home).password}@127.0.0.1:" in shown


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="reads Linux's /proc")
def test_no_process_has_the_password_on_its_command_line(home: Path) -> None:
    secret = record(home).password.encode()
    broker = brokers.find(home)
    assert broker is not None
    # A rabbitmqctl, too, while it runs.
    asked = subprocess.Popen(
        [sys.executable, "-m", "labkit.cli", "reset", "--broker", "--home", str(home)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    seen: set[bytes] = set()
    while asked.poll() is None:
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                seen.add(path.read_bytes())
            except OSError:
                continue
        time.sleep(0.02)
    assert asked.returncode == 0
    assert [line for line in seen if b"rabbit" in line]
    assert not [line for line in seen if secret in line]


def test_reset_brings_virtual_hosts_and_users_back_to_zero(home: Path) -> None:
    broker = brokers.find(home)
    assert broker is not None
    broker.vhost("left behind")
    broker.add_user("forgotten")
    done = labkit("reset", "--broker", "--home", str(home))
    assert "deleted 1 other virtual hosts" in done.stderr
    assert "deleted the user forgotten" in done.stderr
    assert broker.vhosts() == ["/"]
    assert broker.users() == ["lab"]


def test_demo_says_what_the_manager_does_and_leaves_no_queue_and_no_connection(home: Path) -> None:
    said = labkit("demo", "--home", str(home)).stdout.splitlines()
    assert VERSION.match(said[0])
    assert re.fullmatch(r"declared: queue labkit-demo-\w{8}", said[1])
    assert said[2] == "published: 200 messages, and the link was cut after 100"
    assert re.fullmatch(r"confirmed: 200; sent again after the cut: \d+", said[3])
    assert re.fullmatch(r"received: 200 different messages; twice: \d+; lost: 0", said[4])
    assert said[5:] == ["the queue is deleted"]
    broker = brokers.find(home)
    assert broker is not None
    assert broker.wait_for_connections(0, timeout=15) == []
    assert broker._api().get("queues") == []


def test_reset_without_a_word_says_what_it_wants() -> None:
    assert "a notebook's number, or --broker" in labkit("reset", code=2).stderr


def test_readmes_ten_lines_run_as_they_are_written(home: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 3  # the third: test_flask.py
    broker = brokers.find(home)
    assert broker is not None
    with_password = broker.vhost("readme").to_url(mask=False)
    done = subprocess.run(
        # Pika 1.5 tells of the end of BlockingConnection; nothing else may be said.
        [sys.executable, "-W", "error", "-W", "ignore:BlockingConnection:DeprecationWarning", "-c", blocks[0]],
        env={**os.environ, "PYTHONPATH": str(ROOT), "LABKIT_URL": with_password},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("b'resize picture 7'\n", "")
    assert BrokerSettings.from_url(with_password).virtual_host == "readme"
    assert broker.count_connections("readme") == 0
    broker.delete_vhost("readme")


@pytest.mark.own_broker
def test_readmes_test_with_a_broker_and_a_proxy_runs_as_it_is_written() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", blocks[1]],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "b'before the cut' b'after it'\n"


def test_down_ends_it_and_a_second_down_finds_nothing(home: Path) -> None:
    """Last in this file: it takes the bench away."""
    assert labkit("down", "--home", str(home)).stdout == "the broker is gone, with its data\n"
    assert labkit("down", "--home", str(home)).stdout == "there was no broker to end\n"
    gone = "labkit: no broker has been started here: `labkit up` starts one\n"
    assert labkit("status", "--home", str(home), code=1).stderr == gone
    assert labkit("logs", "--home", str(home), code=1).stderr == gone
    missing = labkit("doctor", "--home", str(home), code=1).stdout
    assert re.search(r"^broker +MISSING +none is running +labkit up$", missing, re.MULTILINE)


# --- verbs that work on notebooks -------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A project with one small notebook, and labkit beside it."""
    project = tmp_path / "project"
    (project / "notebooks").mkdir(parents=True)
    (project / "labkit").symlink_to(ROOT / "labkit")
    shutil.copy(ROOT / "docker-compose.yml", project)
    cell = {"cell_type": "code", "id": "a", "metadata": {}, "execution_count": None, "outputs": [], "source": "1 + 1"}
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = {"cells": [cell], "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}
    (project / "notebooks" / "40-small.ipynb").write_text(json.dumps(notebook))
    return project


def test_run_prints_a_table_and_writes_a_page_and_reset_makes_a_copy(checkout: Path, broker: Broker) -> None:
    if broker.home is None:
        pytest.skip("needs a bench directory to name")
    code = "import os, sys; from pathlib import Path; from labkit.brokers import home\n"
    code += "here = Path(os.environ['CHECKOUT']); home.project = lambda: here\n"
    code += "from labkit.cli import main; main()"
    named = {"PYTHONPATH": str(ROOT), "LABKIT_BROKER": str(broker.home), "CHECKOUT": str(checkout)}
    environment = {**os.environ, **named}

    def command(*words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-c", code, *words],
            env=environment, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    ran = command("run", "40")
    assert ran.returncode == 0, ran.stderr
    assert re.search(r"40-small\W+1\W+\d+\.\d\W+yes", ran.stdout)
    assert "1 + 1" in re.sub(r"<[^>]+>", "", (checkout / ".lab" / "html" / "40-small.html").read_text())

    copied = command("reset", "40")
    assert (copied.returncode, copied.stdout) == (0, "40-small.ipynb is fresh\n")
    assert (checkout / "work" / "40-small.ipynb").is_file()

    wrong = command("run", "41")
    assert wrong.returncode == 1
    assert wrong.stderr.startswith("labkit: ")
    assert "40-small" in wrong.stderr
