"""The state file, process identities, ports, credentials and texts of the bench's broker: no broker here."""

import base64
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from labkit.brokers import advice, compose, credentials, images, ports, processes
from labkit.brokers import home as homes
from labkit.brokers.logs import clue
from labkit.brokers.state import Record, StateFile
from labkit.errors import BrokerError, ConfigurationError
from tests.view import until

RECORD = Record("local", 5672, 15672, "lab", "secret", pid=42, identity="boot:7")


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    state = StateFile(tmp_path)
    state.write(RECORD)
    assert state.read() == RECORD
    assert [each.name for each in tmp_path.iterdir()] == ["broker.json"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no modes")
def test_the_state_file_is_readable_to_its_owner_alone(tmp_path: Path) -> None:
    StateFile(tmp_path).write(RECORD)
    assert (tmp_path / "broker.json").stat().st_mode & 0o777 == 0o600


def written(**changes: object) -> str:
    """A state file as it is written, with *changes*; None leaves a field out."""
    return json.dumps({name: value for name, value in {**asdict(RECORD), **changes}.items() if value is not None})


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "7", '{"backend": "local"}', "\x00", "\x80", "[" * 100_000),
        *(
            written(format=None),
            written(format=1),
            written(pid="42"),
            written(pid=True),
            written(node="rabbit@localhost"),
        ),
    ],
)
def test_a_state_file_that_cannot_be_understood_counts_as_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broker.json"
    path.touch(mode=0o600)
    path.write_text(text, encoding="latin-1")
    assert StateFile(tmp_path).read() is None
    path.write_text(written())
    assert StateFile(tmp_path).read() == RECORD


def test_a_newer_labkits_extra_fields_are_passed_over(tmp_path: Path) -> None:
    state = StateFile(tmp_path)
    state.write(RECORD)
    data = json.loads(state.path.read_text())
    state.path.write_text(json.dumps({**data, "colour": "red"}))
    assert state.read() == RECORD


def test_a_record_shows_neither_password_nor_port() -> None:
    assert repr(RECORD) == "Record(backend='local', wanted='running')"


def test_the_lock_is_reentrant_and_names_the_bench_when_another_process_keeps_it(tmp_path: Path) -> None:
    state = StateFile(tmp_path)
    with state.lock(), StateFile(tmp_path).lock():
        code = (
            "import sys; from pathlib import Path; from labkit.brokers.state import StateFile\n"
            "with StateFile(Path(sys.argv[1])).lock(timeout=0.05): pass"
        )
        other = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False, timeout=60
        )
    assert "BrokerError" in other.stderr
    assert str(tmp_path) in other.stderr


def test_a_write_that_fails_leaves_the_old_record_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = StateFile(tmp_path)
    state.write(RECORD)

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(BrokerError, match="no space left at"):
        state.write(RECORD.replace(pid=43))
    assert state.read() == RECORD
    assert [each.name for each in tmp_path.iterdir()] == ["broker.json"]


# --- processes -------------------------------------------------------------------------------------


def test_this_process_has_an_identity_and_a_gone_one_has_none() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert processes.identity(os.getpid())
    assert processes.identity(os.getpid()) == processes.identity(os.getpid())
    assert processes.identity(gone.pid) == ""
    assert processes.identity(0) == ""
    assert processes.wait_gone(gone.pid, "any", 0.0)


# A broker that is killed under load may be in this state for a while: the thread that it began with has ended, and
# another still holds its port. The call that ends one thread alone has no name in Python.
END_ONE_THREAD = {"x86_64": 60, "aarch64": 93}.get(os.uname().machine if hasattr(os, "uname") else "")


@pytest.mark.skipif(
    not Path("/proc/self/stat").exists() or END_ONE_THREAD is None, reason="for Linux on x86_64 and aarch64"
)
def test_a_process_is_gone_with_its_last_thread_and_not_with_its_first() -> None:
    code = (
        "import ctypes, os, sys, threading\n"
        "def stay(): sys.stdin.read(); os._exit(0)\n"
        "threading.Thread(target=stay).start()\n"
        f"ctypes.CDLL(None).syscall({END_ONE_THREAD}, 0)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as child:
        stat = Path(f"/proc/{child.pid}/stat")
        until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "Z")
        born = processes.identity(child.pid)
        assert born
        assert not processes.wait_gone(child.pid, born, 0.1)
        assert child.stdin is not None
        child.stdin.close()
        assert processes.wait_gone(child.pid, born, 10)
    assert child.returncode == 0


# --- ports -----------------------------------------------------------------------------------------


def test_a_port_with_a_listener_is_not_free_on_any_of_its_addresses() -> None:
    for host in ("127.0.0.1", "0.0.0.0"):
        with socket.socket() as listener:
            listener.bind((host, 0))
            listener.listen()
            assert not ports.is_free(listener.getsockname()[1]), host


def test_free_ports_are_different_from_each_other() -> None:
    chosen = ports.free_ports(20)
    assert len(set(chosen)) == 20
    assert all(ports.is_free(port) for port in chosen)


def test_a_port_that_is_asked_for_is_taken_if_it_is_free() -> None:
    free = ports.free_ports(2)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        busy = listener.getsockname()[1]
        first, second, third = ports.choose(busy, *free)
    assert [second, third] == free
    assert first not in {0, busy}


def test_the_ports_of_one_broker_all_differ_even_if_chance_offers_the_same_again_and_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ports.random, "sample", lambda population, _: list(population))
    chosen = ports.choose(0, 0, 0, 0, 0)
    assert len(set(chosen)) == 5
    assert ports.choose(chosen[0], 0)[0] == chosen[0]
    assert len(set(ports.choose(chosen[0], chosen[0]))) == 2
    assert not {*chosen} & {*ports.choose(chosen[0], 0, but_not=chosen)}


# --- credentials -----------------------------------------------------------------------------------


def test_definitions_hold_hashes_that_match_and_no_password() -> None:
    text = credentials.definitions("lab", "a long secret")
    assert "a long secret" not in text
    users = {user["name"]: user for user in json.loads(text)["users"]}
    assert set(users) == {"lab"}, "whoever knows guest's password would be administrator"
    raw = base64.b64decode(users["lab"]["password_hash"])
    assert raw[4:] == hashlib.sha256(raw[:4] + b"a long secret").digest()


def test_the_hash_is_the_one_that_rabbitmqs_documentation_shows() -> None:
    salt = bytes.fromhex("908DC60A")
    expected = "908DC60A" + hashlib.sha256(salt + b"test12").hexdigest()
    assert base64.b64decode(credentials.password_hash("test12", salt)).hex().upper() == expected.upper()


def test_passwords_differ_and_need_no_quoting() -> None:
    drawn = {credentials.new_password() for _ in range(50)}
    assert len(drawn) == 50
    assert all(word.replace("-", "").replace("_", "").isalnum() for word in drawn)


# --- names, directories, texts ---------------------------------------------------------------------


def test_two_benches_never_share_a_compose_project(tmp_path: Path) -> None:
    names = {compose.project_name(tmp_path / each) for each in ("one", "two", "One")}
    assert len(names) == 3
    assert all(name == name.lower() and name.replace("-", "").isalnum() for name in names)
    assert compose.project_name(tmp_path / "one" / ".." / "two") == compose.project_name(tmp_path / "two")


def test_the_compose_file_is_found_and_names_what_labkit_sets() -> None:
    text = compose.compose_file().read_text()
    for variable in ("LABKIT_AMQP_PORT", "LABKIT_AMQPS_PORT", "LABKIT_MANAGEMENT_PORT", "LABKIT_FILES"):
        assert f"${{{variable}:?run labkit up" in text, variable
    published = [line.strip() for line in text.splitlines() if line.strip().startswith('- "')]
    assert published
    assert all(line.startswith('- "127.0.0.1:') for line in published)


def test_a_bench_that_is_a_file_is_refused_by_name(tmp_path: Path) -> None:
    place = tmp_path / "bench"
    place.write_text("in the way")
    with pytest.raises(BrokerError, match=r"bench.*File exists"):
        homes.private_directory(place)


@pytest.mark.parametrize(
    ("number", "words"),
    [(13, "make it writable"), (30, "make it writable"), (28, "no space left"), (5, "cannot use")],
)
def test_an_unusable_directory_says_what_to_do(number: int, words: str) -> None:
    error = homes.unwritable(Path("bench"), OSError(number, os.strerror(number)))
    assert words in str(error)
    assert "bench" in str(error)


def test_too_little_space_is_said_in_megabytes(tmp_path: Path) -> None:
    with pytest.raises(BrokerError, match=r"MB free and a broker needs \d+ MB there"):
        homes.require_space(tmp_path, needed=2**62)


def test_the_clue_is_the_first_error_without_its_stamp() -> None:
    lines = [
        "2026-01-31 10:00:00.1+00:00 [info] <0.1.0> starting the broker now",
        "2026-01-31 10:00:00.2+00:00 [error] <0.144.0>",
        "2026-01-31 10:00:00.3+00:00 [error] <0.144.0> the port is taken",
        "2026-01-31 10:00:00.4+00:00 [error] <0.144.0> and so everything has ended",
    ]
    assert clue(lines) == "the port is taken"
    assert clue(lines[:1]) == "starting the broker now"
    assert clue(["Cannot: an ERROR without a stamp", "=====", ""]) == "Cannot: an ERROR without a stamp"
    assert clue(["Feature flags: error while running:", "its module is missing", "(or", "no time was left"]) == (
        "Feature flags: error while running: its module is missing no time was left"
    )
    assert clue([]) == "(the log is empty)"


@pytest.mark.parametrize(
    ("platform", "distribution", "words"),
    [
        ("linux", "debian", "labkit image --rootfs"),
        ("linux", "ubuntu debian", "apt install rabbitmq-server"),
        ("linux", "fedora", "dnf install rabbitmq-server"),
        ("linux", "", "install Docker"),
        ("darwin", "", "brew install rabbitmq"),
        ("win32", "", "Docker Desktop"),
    ],
)
def test_every_system_is_told_how_to_get_a_broker(platform: str, distribution: str, words: str) -> None:
    told = advice.how_to_get_one(platform, distribution)
    assert words in told
    assert "LABKIT_BROKER" in told


def test_a_refusal_while_the_bench_is_held_is_not_called_an_unwritable_bench(tmp_path: Path) -> None:
    with pytest.raises(PermissionError, match="another matter"), StateFile(tmp_path).lock():
        raise PermissionError("another matter")


def test_a_bench_that_cannot_be_locked_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = StateFile(tmp_path)

    def read_only(**_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(state._lock, "acquire", read_only)
    with pytest.raises(BrokerError, match="make it writable"), state.lock():
        pass


@pytest.mark.parametrize("weak", ["", "guest", "short-1!", "aaaaaaaaaaaaaaaa", "Alice-in-wonderland"])
def test_a_weak_password_is_refused_and_not_shown(weak: str) -> None:
    with pytest.raises(ConfigurationError, match="password: too weak; allowed: 12 characters or more") as caught:
        credentials.check_password(weak, "alice")
    assert caught.value.field == "password"
    assert not weak or weak not in str(caught.value)


def test_drawn_passwords_are_strong() -> None:
    drawn = {credentials.new_password() for _ in range(50)}
    assert len(drawn) == 50
    for each in drawn:
        credentials.check_password(each, "alice")


def test_no_image_of_ours_lets_guest_in_from_elsewhere() -> None:
    files = [each for each in Path(images.__file__).parent.rglob("*") if each.is_file() and each.suffix != ".pyc"]
    assert len(files) > 3
    assert [each.name for each in files if re.search(r"^loopback_users", each.read_text(), re.MULTILINE)] == []
    assert "\nloopback_users.guest = true\n" in compose._files(RECORD)["20-labkit.conf"]
