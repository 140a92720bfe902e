"""A bench whose state file is lost, damaged, stale or in a stranger's hands, beside processes that live."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from labkit import brokers
from labkit.brokers import Broker, compose, engine, processes
from labkit.brokers.state import Record, StateFile
from labkit.cli import main
from labkit.errors import BrokerError
from tests.broker.backends import connect, eventually, pins_of
from tests.strangers import STRANGER, only_as_root
from tests.tiers import in_soak

pytestmark = [pytest.mark.broker, pytest.mark.own_broker, pytest.mark.timeout(180)]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A bench directory with a running node."""
    place = tmp_path / "bench"
    up(place)
    record = record_of(place)
    yield place
    for each in (place, StateFile(place).path):
        if each.exists():
            os.chown(each, os.geteuid(), -1)
    brokers.down(place)
    processes.end_node(record.node)


def up(place: Path) -> Broker:
    kind, pins = pins_of("root directory")
    return brokers.up(kind, place, rootfs=pins.rootfs)


def record_of(place: Path) -> Record:
    record = StateFile(place).read()
    assert record is not None
    return record


def nodes(record: Record) -> list[int]:
    """The broker's own processes of that node, without its port mapper."""
    found = processes.of_node(record.node)
    return [pid for pid in found if b"beam" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]]


def damage(path: Path) -> None:
    path.write_text("{")


def forget(path: Path) -> None:
    """As a labkit that was killed between the node's start and the record of it."""
    state = json.loads(path.read_text())
    path.write_text(json.dumps({**state, "wanted": "stopped", "pid": 0, "identity": ""}))


@pytest.mark.parametrize("spoil", [damage, *in_soak(forget, Path.unlink)])
def test_up_never_has_two_nodes_in_one_directory(home: Path, spoil) -> None:
    before = record_of(home)
    running = nodes(before)
    assert len(running) == 1
    spoil(StateFile(home).path)
    again = up(home)
    connect(again.settings()).close()
    assert len(nodes(before)) == 1
    assert nodes(before) != running


@pytest.mark.parametrize(("lost", "is_running"), [("everything", True), ("the mounted files", False)])
def test_a_container_whose_files_are_gone_is_made_afresh(tmp_path: Path, lost: str, is_running: bool) -> None:
    """As by ``git clean``, or by a checkout that was deleted and cloned again."""
    kind, pins = pins_of("compose")
    place = tmp_path / "bench"
    try:
        broker = brokers.up(kind, place, image=pins.image)
        if not is_running:
            broker.stop()
        shutil.rmtree(place if lost == "everything" else place / compose.FILES_DIRECTORY)
        if lost == "everything":
            StateFile(place).path.unlink(missing_ok=True)
        again = brokers.up(kind, place, image=pins.image)
        connect(again.settings()).close()
        again.restart()
        connect(again.settings()).close()
    finally:
        brokers.down(place)


@pytest.mark.parametrize("spoil", [damage, forget, Path.unlink])
def test_down_ends_a_node_that_no_state_file_tells_of(home: Path, spoil) -> None:
    before = record_of(home)
    spoil(StateFile(home).path)
    assert brokers.down(home)
    assert processes.of_node(before.node) == []
    assert not (home / "node").exists()
    assert not StateFile(home).path.exists()
    assert not brokers.down(home)


@pytest.mark.parametrize("verb", ["up", "down"])
def test_a_container_that_no_state_file_tells_of_is_removed(tmp_path: Path, verb: str) -> None:
    kind, pins = pins_of("compose")
    place = tmp_path / "bench"
    label = f"{compose.PROJECT_LABEL}={compose.project_name(place)}"
    try:
        brokers.up(kind, place, image=pins.image)
        with engine.connected() as client:
            (before,) = client.containers.list(filters={"label": label})
            damage(StateFile(place).path)
            after = [brokers.up(kind, place, image=pins.image)] if verb == "up" else []
            assert after or brokers.down(place)
            now = client.containers.list(filters={"label": label})
            assert len(now) == len(after)
            assert before.id not in {each.id for each in now}
    finally:
        brokers.down(place)


def test_a_damaged_state_file_is_said_to_be_one(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(StateFile(home).path)
    monkeypatch.setattr(sys, "argv", ["labkit", "status", "--home", str(home)])
    with pytest.raises(SystemExit, match="1"):
        main()
    assert "broker.json cannot be understood: `labkit up` begins again" in capsys.readouterr().err


@contextmanager
def another_program(port: int) -> Iterator[list[bytes]]:
    """Listens where a port mapper was; yields what it has been told."""
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", port)) as listener:
        listener.settimeout(0.1)
        over = threading.Event()

        def listen() -> None:
            while not over.is_set():
                try:
                    link, _ = listener.accept()
                except TimeoutError:
                    continue
                with link:
                    link.settimeout(2)
                    heard.append(link.recv(100))

        thread = threading.Thread(target=listen)
        thread.start()
        yield heard
        over.set()
        thread.join(10)


@pytest.mark.parametrize("verb", ["up", *in_soak("status", "down")])
def test_a_program_that_has_the_port_of_a_port_mapper_that_is_gone_is_told_nothing(home: Path, verb: str) -> None:
    """After a reboot, say: the record is stale, and the port is somebody else's."""
    record = record_of(home)
    processes.end_node(record.node)
    assert eventually(lambda: not processes.identity(record.pid))
    with another_program(record.epmd_port) as heard:
        if verb == "status":
            assert brokers.find(home) is None
        elif verb == "up":
            assert up(home).is_running
            assert record_of(home).epmd_port != record.epmd_port
        else:
            assert brokers.down(home)
        assert heard == []


# --- a stranger's hand -------------------------------------------------------------------------------


@only_as_root
@pytest.mark.parametrize("whose", ["file", "directory"])
def test_a_stranger_who_has_the_state_file_makes_nobody_kill_run_or_log_in(home: Path, whose: str) -> None:
    record = record_of(home)
    with subprocess.Popen(["sleep", "60"]) as bystander:
        forged = {**json.loads(StateFile(home).path.read_text()), "pid": bystander.pid}
        forged |= {"identity": processes.identity(bystander.pid), "source": "/tmp/evil", "password": "stolen"}
        StateFile(home).path.write_text(json.dumps(forged))
        if whose == "file":
            os.chown(StateFile(home).path, STRANGER, STRANGER)
        else:
            os.chown(home, STRANGER, STRANGER)
        attached = brokers.attached.attach(home, record)
        asks = [lambda: brokers.find(home), lambda: brokers.down(home), lambda: up(home), attached.kill, attached.stop]
        asks += [lambda: attached.ctl("status"), attached.settings, attached.pause, attached.throw_away, attached.start]
        for ask in asks:
            with pytest.raises(BrokerError, match="belongs to another user"):
                ask()
        assert bystander.poll() is None
        bystander.kill()
    assert processes.identity(record.pid) == record.identity


@only_as_root
def test_down_ends_no_process_of_another_user_by_that_nodes_name(home: Path) -> None:
    record = record_of(home)
    with subprocess.Popen(
        ["sleep", "60"], env={"RABBITMQ_NODENAME": record.node}, user=STRANGER, group=STRANGER
    ) as theirs:
        assert brokers.down(home)
        assert theirs.poll() is None
        theirs.kill()
