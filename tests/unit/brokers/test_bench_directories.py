"""Whose directory a bench may be, and whose word labkit takes: no broker here."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from labkit import brokers
from labkit.brokers import home as homes
from labkit.brokers import images, processes, sources
from labkit.brokers.certificates import LabCertificates
from labkit.brokers.discovery import known, recorded
from labkit.brokers.state import Record, StateFile
from labkit.cli import main
from labkit.errors import BrokerError
from labkit.lab import lesson
from tests.strangers import STRANGER, give_away, only_as_root
from tests.view import until

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no modes")


@pytest.fixture(autouse=True)
def no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LABKIT_BROKER", raising=False)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def labkit(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["labkit", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


# --- somebody's directory --------------------------------------------------------------------------


@pytest.fixture
def others(tmp_path: Path) -> Path:
    """A directory of ours that is no bench, with things in it that a careless bench would take for its own."""
    place = tmp_path / "others"
    (place / "node").mkdir(parents=True, mode=0o755)
    place.chmod(0o755)
    for name in ("broker.json", "node/kept", "compose"):
        (place / name).write_text("kept")
    return place


def contents(place: Path) -> dict[str, tuple[int, str]]:
    found = {"": (mode(place), "")}
    for each in place.rglob("*"):
        found[str(each.relative_to(place))] = (mode(each), each.read_text() if each.is_file() else "")
    return found


VERBS = ("up", "down", "status", "logs", "demo", "certs make", "certs show", "certs rotate", "reset --broker", "doctor")


@pytest.mark.parametrize("verb", VERBS)
def test_a_directory_that_is_no_bench_is_left_as_it_is(
    others: Path, verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(others)
    labkit(monkeypatch, *verb.split(), "--home", str(others))
    assert contents(others) == before


@pytest.mark.parametrize("verb", ["up", "demo", "certs make"])
def test_a_directory_that_is_no_bench_is_refused_by_name(
    others: Path, verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert labkit(monkeypatch, *verb.split(), "--home", str(others)) == 1
    assert f"{others} is not empty and not a bench of labkit" in capsys.readouterr().err


def test_the_variable_may_not_name_somebodys_directory_either(others: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(others)
    monkeypatch.setenv("LABKIT_BROKER", str(others))
    with pytest.raises(BrokerError, match="others is not empty and not a bench of labkit"):
        brokers.up()
    assert brokers.down() is False
    assert contents(others) == before


def test_an_empty_directory_that_others_may_read_is_refused_and_keeps_its_mode(tmp_path: Path) -> None:
    place = tmp_path / "bench"
    place.mkdir(mode=0o755)
    with pytest.raises(BrokerError, match=r"bench is open to other users \(mode 0755\).*chmod 700 "):
        homes.claim(place)
    assert mode(place) == 0o755
    assert list(place.iterdir()) == []


def test_what_labkit_makes_is_private_with_every_directory_above_it(tmp_path: Path) -> None:
    place = homes.claim(tmp_path / "one" / "two")
    assert [mode(each) for each in (place, place.parent)] == [0o700, 0o700]
    assert {each.name for each in place.iterdir()} == {".gitignore"}


def test_a_bench_is_known_again_and_git_leaves_it_alone(tmp_path: Path) -> None:
    place = homes.claim(tmp_path / "bench")
    StateFile(place).write(Record("local", 1, 2, "lab", "x"))
    assert homes.claim(place) == place
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    shown = subprocess.run(
        ["git", "-C", str(tmp_path), "status", "--porcelain"], capture_output=True, text=True, check=True
    )
    assert shown.stdout == ""


def test_a_link_to_somebodys_directory_is_no_bench(others: Path, tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / ".lab").symlink_to(others)
    before = contents(others)
    with pytest.raises(BrokerError, match="not empty and not a bench"):
        homes.claim(tmp_path / "project" / ".lab")
    assert contents(others) == before


class ElsewhereBroker:
    """A broker by URL, as far as a lesson needs one."""

    version, backend, management_url = "4.3.6", "url", "http://class.example:15672"


def test_a_lesson_on_a_broker_by_url_keeps_its_files_private_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notebooks").mkdir()
    shutil.copy(Path(__file__).parents[3] / "notebooks" / "00-start-here.ipynb", tmp_path / "notebooks")
    monkeypatch.setattr(homes, "is_checkout", lambda: False)
    monkeypatch.setattr(brokers, "find", lambda: ElsewhereBroker())
    monkeypatch.setattr(brokers, "up", lambda *_: ElsewhereBroker())
    monkeypatch.chdir(tmp_path)
    seen: list[int] = []
    monkeypatch.setattr(lesson.NotebookServer, "begin", lambda _: seen.append(mode(tmp_path / ".lab")))
    monkeypatch.setattr(lesson, "serve", lambda *_, **__: None)
    lesson.hold(port=None, open_browser=False, say=lambda _: None)
    assert seen == [0o700]


# --- another user's word -----------------------------------------------------------------------------


@pytest.fixture
def record() -> Record:
    return Record("local", 1, 2, "lab", "secret", wanted="stopped", node="labkit-00000000@localhost")


def asks(home: Path) -> list[object]:
    """Everything that would act on what a state file says."""
    return [
        lambda: StateFile(home).read(),
        lambda: brokers.find(home),
        lambda: brokers.up(home=home),
        lambda: brokers.down(home),
        lambda: recorded(home),
        lambda: known(home),
    ]


@only_as_root
@pytest.mark.parametrize("what", ["the file", "the directory", "both"])
def test_a_state_file_of_another_user_is_not_believed(tmp_path: Path, record: Record, what: str) -> None:
    place = homes.claim(tmp_path / "bench")
    path = StateFile(place).path
    StateFile(place).write(record)
    if what != "the file":
        give_away(place)
        os.chown(path, *((0, 0) if what == "the directory" else (STRANGER, STRANGER)))
    else:
        os.chown(path, STRANGER, STRANGER)
    for ask in asks(place):
        with pytest.raises(BrokerError, match=f"belongs to another user .number {STRANGER}."):
            ask()  # type: ignore[operator]
    assert path.exists()


@pytest.mark.parametrize(
    ("what", "given"), [("file", 0o644), ("file", 0o620), ("directory", 0o770), ("directory", 0o707)]
)
def test_a_state_file_that_others_may_read_or_write_is_not_believed(
    tmp_path: Path, record: Record, what: str, given: int
) -> None:
    """A repository or an archive, too, cannot bring a bench along: neither keeps a file to its owner alone."""
    place = homes.claim(tmp_path / "bench")
    StateFile(place).write(record)
    (StateFile(place).path if what == "file" else place).chmod(given)
    for ask in asks(place):
        with pytest.raises(BrokerError, match="is open to other users"):
            ask()  # type: ignore[operator]


@only_as_root
def test_another_users_bench_is_refused_for_every_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = homes.claim(tmp_path / "bench")
    give_away(place)
    for refused in (
        lambda: homes.claim(place),
        lambda: LabCertificates(place).ca_file,
        lambda: StateFile(place).lock().__enter__(),
    ):
        with pytest.raises(BrokerError, match="belongs to another user"):
            refused()
    assert {each.name for each in place.iterdir()} == {".gitignore"}


def test_the_state_file_names_no_program_and_one_that_does_is_not_followed(tmp_path: Path) -> None:
    place = homes.claim(tmp_path / "bench")
    StateFile(place).write(Record("local", 1, 2, "lab", "x", node="labkit-00000000@localhost"))
    assert "/" not in StateFile(place).path.read_text()


# --- programs ----------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A root directory as far as anybody looks."""
    path = tmp_path / "bench" / "rootfs"
    homes.claim(path.parent)
    for each in ("labkit", "usr/lib/rabbitmq"):
        (path / each).mkdir(parents=True)
    return path


@only_as_root
@pytest.mark.skipif(sys.platform != "linux", reason="root directories are Linux's")
def test_a_root_directory_of_another_user_is_not_run(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "namespace", lambda: pytest.fail("it was about to run"))
    give_away(tree)
    with pytest.raises(BrokerError, match="rootfs belongs to another user"):
        sources.from_rootfs(tree)


@pytest.mark.skipif(sys.platform != "linux", reason="root directories are Linux's")
def test_a_root_directory_that_came_with_the_current_directory_is_not_run(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a repository brings it: ours by name, in a directory that everybody may read."""
    monkeypatch.setattr(sources, "namespace", lambda: pytest.fail("it was about to run"))
    monkeypatch.setattr(homes, "is_checkout", lambda: False)
    monkeypatch.chdir(tree.parents[1])
    tree.parents[0].rename(tree.parents[1] / ".lab")
    (tree.parents[1] / ".lab").chmod(0o755)
    with pytest.raises(BrokerError, match=r"\.lab is open to other users"):
        sources.from_rootfs(sources.default_rootfs())


@only_as_root
@pytest.mark.skipif(sys.platform != "linux", reason="root directories are Linux's")
def test_building_a_root_directory_touches_nobody_elses(
    others: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`sudo labkit image --rootfs`, where .lab is a link that the project's owner has laid."""
    project = tmp_path / "project"
    project.mkdir()
    (project / ".lab").symlink_to(others)
    give_away(project)
    monkeypatch.setattr(homes, "is_checkout", lambda: False)
    monkeypatch.chdir(project)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("the build was started"))
    monkeypatch.setenv("SUDO_UID", str(STRANGER))
    before = contents(others)
    with pytest.raises(BrokerError, match="not empty and not a bench"):
        images.build(rootfs=True)
    assert contents(others) == before
    assert others.stat().st_uid == 0


@only_as_root
@pytest.mark.skipif(sys.platform != "linux", reason="root directories are Linux's")
def test_a_bench_that_root_makes_for_a_build_belongs_to_who_asked_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "project"
    project.mkdir()
    give_away(project)
    monkeypatch.setattr(homes, "is_checkout", lambda: False)
    monkeypatch.chdir(project)
    monkeypatch.setenv("SUDO_UID", str(STRANGER))
    for _ in range(2):  # the second time it is there
        assert images._shared_place(sources.default_rootfs()) == project / ".lab" / "rootfs"
        assert {each.stat().st_uid for each in (project / ".lab", project / ".lab" / ".gitignore")} == {STRANGER}
        assert mode(project / ".lab") == 0o700
    monkeypatch.setenv("SUDO_UID", "1234")
    with pytest.raises(BrokerError, match="belongs to another user"):
        images._shared_place(sources.default_rootfs())


# --- processes -----------------------------------------------------------------------------------------

NODE = "labkit-0a0b0c0d@localhost"


@pytest.fixture
def bystander():
    """A process of ours that has nothing to do with the bench."""
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


@pytest.fixture
def node():
    """A process with the environment of a bench's node."""
    with subprocess.Popen(["sleep", "60"], env={**os.environ, "RABBITMQ_NODENAME": NODE}) as process:
        # Popen returns while the kernel still lays out the new program: its environment is readable soon after.
        assert until(lambda: processes.is_of_node(process.pid, NODE))
        yield process
        process.kill()


def test_a_signal_reaches_the_benchs_own_process_only(bystander, node) -> None:
    processes.send(bystander.pid, processes.identity(bystander.pid), "SIGKILL", NODE)
    processes.send(node.pid, processes.identity(node.pid), "SIGKILL", "labkit-ffffffff@localhost")
    processes.send(node.pid, "another boot:1", "SIGKILL", NODE)
    processes.send(node.pid, "", "SIGKILL", NODE)
    processes.send(0, "", "SIGKILL", NODE)
    assert (bystander.poll(), node.poll()) == (None, None)
    processes.send(node.pid, processes.identity(node.pid), "SIGKILL", NODE)
    assert node.wait(10) == -9


@pytest.mark.slow
def test_down_does_not_kill_the_process_that_a_state_file_names(tmp_path: Path, record: Record, bystander) -> None:
    place = homes.claim(tmp_path / "bench")
    born = processes.identity(bystander.pid)
    StateFile(place).write(record.replace(wanted="running", pid=bystander.pid, identity=born))
    assert brokers.down(place)
    assert bystander.poll() is None


@only_as_root
def test_a_process_of_another_user_is_never_the_benchs_own() -> None:
    environment = {**os.environ, "RABBITMQ_NODENAME": NODE}
    with subprocess.Popen(["sleep", "60"], env=environment, user=STRANGER, group=STRANGER) as stranger:
        processes.send(stranger.pid, processes.identity(stranger.pid), "SIGKILL", NODE)
        assert processes.of_node(NODE) == []
        processes.end_node(NODE)
        assert stranger.poll() is None
        stranger.kill()


def test_whatever_a_node_left_is_ended_by_its_name(node, bystander) -> None:
    assert processes.of_node(NODE) == [node.pid]
    processes.end_node(NODE)
    assert node.wait(10) == -9
    assert bystander.poll() is None
    processes.end_node(NODE)
