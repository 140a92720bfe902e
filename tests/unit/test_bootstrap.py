"""bootstrap.py before anything is installed: what it says, and what it refuses."""

import ast
import contextlib
import hashlib
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import types
import zipfile
from pathlib import Path
from types import ModuleType

import psutil
import pytest

from tests.view import until

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "bootstrap.py"


@pytest.fixture
def bootstrap() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bootstrap", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_an_old_python_can_read_it_and_so_can_say_that_it_is_too_old():
    assert ast.parse(SCRIPT.read_text(), feature_version=(3, 8)).body


def test_it_imports_nothing_outside_the_standard_library():
    tree = ast.parse(SCRIPT.read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name.split(".")[0] for node in imports if isinstance(node, ast.Import) for alias in node.names}
    assert names
    assert not [node for node in imports if isinstance(node, ast.ImportFrom)]
    assert names <= sys.stdlib_module_names


def test_a_python_that_is_too_old_ends_with_one_sentence(bootstrap, monkeypatch):
    monkeypatch.setattr(bootstrap, "OLDEST", (9, 9))
    monkeypatch.setattr(bootstrap, "TESTED", ())
    with pytest.raises(SystemExit) as ended:
        bootstrap.use_a_new_enough_python()
    assert "too old, labkit needs 9.9 or newer" in str(ended.value)
    assert "\n" not in str(ended.value)


@pytest.mark.parametrize("words", [[], ["labs"]])
def test_an_unknown_command_is_answered_with_the_known_ones(words):
    done = subprocess.run([sys.executable, SCRIPT, *words], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert "say one of: lab, test, check, soak" in done.stderr


def test_loopback_is_taken_off_the_proxy(bootstrap, monkeypatch, capsys):
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", "intranet")
    monkeypatch.setenv("no_proxy", "intranet")
    bootstrap.keep_loopback_off_the_proxy()
    assert os.environ["NO_PROXY"] == "intranet,127.0.0.1,localhost"
    assert "HTTP_PROXY is set" in capsys.readouterr().out


def test_without_a_proxy_nothing_is_said_or_changed(bootstrap, monkeypatch, capsys):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    bootstrap.keep_loopback_off_the_proxy()
    assert "NO_PROXY" not in os.environ
    assert capsys.readouterr().out == ""


def test_a_changed_requirement_is_noticed_and_an_unchanged_one_installs_nothing(bootstrap, monkeypatch, tmp_path):
    for name in ("requirements-uv.txt", "requirements.txt", "pyproject.toml"):
        (tmp_path / name).write_text(name)
    monkeypatch.setattr(bootstrap, "ROOT", tmp_path)
    before = bootstrap.fingerprint()
    assert bootstrap.fingerprint() == before
    (tmp_path / "requirements.txt").write_text("pika==1.4.5")
    assert bootstrap.fingerprint() != before


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX")
def test_a_folder_one_cannot_write_into_is_named(bootstrap, monkeypatch, tmp_path):
    monkeypatch.setattr(bootstrap, "ROOT", tmp_path)
    monkeypatch.setattr(bootstrap.os, "access", lambda path, mode: False)
    with pytest.raises(SystemExit, match="cannot write into"):
        bootstrap.preflight("test")


def test_too_little_disk_says_how_much_there_is_and_how_much_it_takes(bootstrap, monkeypatch, tmp_path):
    monkeypatch.setattr(bootstrap, "STAMP", tmp_path / "not there")
    monkeypatch.setattr(bootstrap, "DISK_NEEDED", 10**18)
    with pytest.raises(SystemExit, match=r"GB free in .*, 2 GB needed"):
        bootstrap.preflight("test")


@pytest.mark.parametrize(("is_there", "is_root"), [(True, True), (False, True), (True, False)])
def test_only_where_a_root_directory_of_this_checkout_can_be_used_nobody_asks_for_a_broker(
    bootstrap, monkeypatch, tmp_path, is_there, is_root
):
    asked = []
    monkeypatch.setattr(bootstrap, "ROOT", tmp_path)
    monkeypatch.setattr(bootstrap, "is_root", lambda: is_root)
    monkeypatch.setattr(bootstrap, "broker_possible", lambda: asked.append("labkit") or True)
    monkeypatch.delenv("LABKIT_BROKER", raising=False)
    rootfs = tmp_path / ".lab" / "rootfs"
    (rootfs / "labkit").mkdir(parents=True)  # as an unpacking that was interrupted could leave it
    if is_there:
        (rootfs / "usr" / "lib" / "rabbitmq").mkdir(parents=True)
    bootstrap.have_broker()
    assert bool(asked) is not (is_there and is_root)


def test_without_any_broker_the_way_to_get_one_is_said(bootstrap, monkeypatch):
    monkeypatch.setattr(bootstrap, "is_unpacked", lambda: False)
    monkeypatch.setattr(bootstrap, "broker_possible", lambda: False)
    monkeypatch.setattr(bootstrap, "apt", lambda packages, why: False)
    monkeypatch.setattr(bootstrap, "system", lambda: "macos")
    with pytest.raises(SystemExit, match="brew install rabbitmq"):
        bootstrap.have_broker()


def test_at_a_terminal_a_no_installs_nothing(bootstrap, monkeypatch):
    monkeypatch.setattr(bootstrap, "asks", lambda: True)
    monkeypatch.setattr("builtins.input", lambda question: "")
    monkeypatch.setattr(bootstrap.shutil, "which", lambda name: "/usr/bin/" + name)
    monkeypatch.setattr(bootstrap.subprocess, "call", lambda *a, **k: pytest.fail("something was run"))
    monkeypatch.setattr(bootstrap, "is_root", lambda: True)
    assert bootstrap.apt(["rabbitmq-server"], "broker: none here") is False


# --- an apt install starts no system broker --------------------------------------------------------------------------


@pytest.fixture
def debian(tmp_path):
    """A folder of commands that stand for Debian's, a log of what they were asked, and where the guard would lie."""
    if os.name != "posix":
        pytest.skip("apt-get is Debian's")
    commands = tmp_path / "bin"
    commands.mkdir()
    policy = tmp_path / "policy-rc.d"
    log = tmp_path / "log"
    # What a package's postinst does: it asks the policy before it starts its service.
    (commands / "apt-get").write_text(
        f'#!/bin/sh\necho "apt-get $*" >>{log}\n'
        f'if [ -x {policy} ]; then {policy} rabbitmq-server start; echo "policy says $?" >>{log};\n'
        f"else echo 'the service starts' >>{log}; fi\n"
        'case "$1 $FAIL" in "install yes") exit 100;; esac\n'
        '[ -z "$HANG" ] || exec sleep 60\n'
    )
    (commands / "systemctl").write_text(f'#!/bin/sh\necho "systemctl $*" >>{log}\n')
    for command in commands.iterdir():
        command.chmod(0o755)

    started = []

    def run(script, **environment):
        path = f"{commands}{os.pathsep}{os.environ['PATH']}"
        process = subprocess.Popen(
            ["sh", "-c", script], env={"PATH": path, **environment}, stderr=subprocess.DEVNULL, start_new_session=True
        )
        started.append(process)
        return process

    log.touch()
    yield types.SimpleNamespace(policy=policy, run=run, said=lambda: log.read_text().splitlines())
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


def test_an_install_starts_no_service_now_or_at_the_next_boot(bootstrap, debian):
    script = bootstrap.apt_script(["rabbitmq-server"], debian.policy)
    assert debian.run(script).wait(30) == 0
    install, asked, disabled = debian.said()
    assert install == "apt-get install -y -qq --no-install-recommends rabbitmq-server"
    assert asked == "policy says 101"  # "action forbidden by policy"
    assert disabled == "systemctl disable -q rabbitmq-server"
    assert not debian.policy.exists()


def test_a_failed_install_refreshes_the_lists_once_is_reported_and_leaves_no_guard(bootstrap, debian):
    assert debian.run(bootstrap.apt_script(["mmdebstrap"], debian.policy), FAIL="yes").wait(30) != 0
    verbs = [line.split()[1] for line in debian.said() if line.startswith("apt-get")]
    assert verbs == ["install", "update", "install"]
    assert "the service starts" not in debian.said()
    assert not debian.policy.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_install_leaves_no_guard_behind(bootstrap, debian, number):
    process = debian.run(bootstrap.apt_script(["rabbitmq-server"], debian.policy), HANG="yes")
    deadline = time.monotonic() + 30
    while not debian.policy.exists() or "policy says 101" not in debian.said():
        assert time.monotonic() < deadline
        assert process.poll() is None
    while process.poll() is None:
        assert time.monotonic() < deadline
        # Again and again, as a person would: the shell that stands for apt-get may miss one while it forks.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.2)
    assert process.returncode != 0
    assert not debian.policy.exists()


def test_a_guard_that_the_machine_has_already_is_used_and_stays(bootstrap, debian):
    debian.policy.write_text("#!/bin/sh\nexit 101\n")
    debian.policy.chmod(0o755)
    assert debian.run(bootstrap.apt_script(["rabbitmq-server"], debian.policy)).wait(30) == 0
    assert "policy says 101" in debian.said()
    assert debian.policy.exists()


def test_an_ordinary_user_without_sudo_installs_nothing(bootstrap, monkeypatch):
    monkeypatch.setattr(bootstrap, "is_root", lambda: False)
    monkeypatch.setattr(bootstrap.shutil, "which", lambda name: "/usr/bin/apt-get" if name == "apt-get" else None)
    monkeypatch.setattr(bootstrap.subprocess, "call", lambda *a, **k: pytest.fail("something was run"))
    assert bootstrap.apt(["rabbitmq-server"], "broker: none here") is False


def test_without_a_terminal_sudo_is_used_only_where_it_asks_for_no_password(bootstrap, monkeypatch):
    ran = []
    monkeypatch.setattr(bootstrap, "is_root", lambda: False)
    monkeypatch.setattr(bootstrap, "asks", lambda: False)
    monkeypatch.setattr(bootstrap.shutil, "which", lambda name: "/usr/bin/" + name)
    monkeypatch.setattr(bootstrap.subprocess, "call", lambda words, **k: ran.append(words) or 1)
    assert bootstrap.apt(["rabbitmq-server"], "broker: none here") is False
    assert ran == [["sudo", "-n", "true"]]


# --- the rest of the set-up ------------------------------------------------------------------------------------------


def test_make_and_windows_name_the_same_commands(bootstrap):
    makefile = (ROOT / "Makefile").read_text()
    targets = set(makefile.partition(".PHONY:")[2].partition("\n")[0].split())
    assert targets == set(bootstrap.COMMANDS)
    recipes = [line for line in makefile.splitlines() if line.startswith("\t")]
    assert recipes
    assert all(line.startswith("\t@$(PYTHON) bootstrap.py ") for line in recipes)


def test_every_stage_runs_and_one_failure_is_the_result(bootstrap, capfd):
    stages = [("first", [sys.executable, "-c", "raise SystemExit(3)"]), ("second", [sys.executable, "-c", ""])]
    assert bootstrap.run_stages(stages) == 1
    assert bootstrap.run_stages(stages[1:]) == 0
    said = capfd.readouterr().out
    assert "FAILED (exit code 3)" in said
    assert said.count("=== second") == 2


def test_a_second_run_installs_nothing_and_asks_no_network(bootstrap, monkeypatch, tmp_path):
    monkeypatch.setattr(bootstrap, "STAMP", tmp_path / "stamp")
    monkeypatch.setattr(bootstrap, "PYTHON", Path(sys.executable))
    (tmp_path / "stamp").write_text(bootstrap.fingerprint())
    monkeypatch.setattr(bootstrap.subprocess, "call", lambda *a, **k: pytest.fail("something was run"))
    bootstrap.make_venv()


@pytest.mark.parametrize("step", ["venv", "pip"])
def test_a_set_up_that_cannot_go_on_ends_with_one_sentence(bootstrap, monkeypatch, tmp_path, step):
    monkeypatch.setattr(bootstrap, "STAMP", tmp_path / "stamp")
    monkeypatch.setattr(bootstrap, "VENV", tmp_path / "venv")
    monkeypatch.setattr(bootstrap, "PYTHON", tmp_path / "venv" / "python")
    monkeypatch.setattr(bootstrap, "can_run", lambda *_: True)
    monkeypatch.setattr(bootstrap.subprocess, "call", lambda words, **k: int(step in words))
    with pytest.raises(SystemExit) as ended:
        bootstrap.make_venv()
    assert ("venv failed" if step == "venv" else "is a package index reachable?") in str(ended.value)
    assert "\n" not in str(ended.value)
    assert not (tmp_path / "stamp").exists()


@pytest.fixture
def venv_and_index(bootstrap, monkeypatch, tmp_path):
    """A small virtual environment to install into, and a package index of its own: a folder with one wheel in it."""
    monkeypatch.setattr(bootstrap, "VENV", tmp_path / "venv")
    monkeypatch.setattr(bootstrap, "BIN", tmp_path / "venv" / "bin")
    monkeypatch.setattr(bootstrap, "PYTHON", tmp_path / "venv" / "bin" / "python")
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True, timeout=120)
    (tmp_path / "wheels").mkdir()
    return tmp_path / "wheels"


def wheel(folder, name, text):
    """A package of one module, as a wheel; return the line of requirements.txt that names it with its hash."""
    file = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(f"{name}.py", text)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return f"{name}==1.0 --hash=sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="the scripts of a virtual environment lie elsewhere")
@pytest.mark.parametrize("uv", ["that works", "that cannot be had", "that fails", "that cannot be run"])
def test_packages_come_from_the_index_that_pip_is_configured_for_by_uv_or_by_pip_and_only_with_their_hashes(
    bootstrap, monkeypatch, tmp_path, venv_and_index, capfd, uv
):
    # A closed network's mirror, and nothing else: what pip is told, uv must be told.
    for name in [each for each in os.environ if each.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    (tmp_path / "pip.conf").write_text(f"[global]\nno-index = true\nfind-links = {venv_and_index}\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(bootstrap, "ROOT", tmp_path)
    real = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    if uv == "that works" and real is None:
        pytest.skip("needs uv")
    (tmp_path / "requirements.txt").write_text(wheel(venv_and_index, "lesson", "answer = 42") + "\n")
    missing = "uv==0.0.0 --hash=sha256:" + "0" * 64
    stand_in = wheel(venv_and_index, "standin", "")
    (tmp_path / "requirements-uv.txt").write_text((missing if uv == "that cannot be had" else stand_in) + "\n")
    if uv == "that works":
        (tmp_path / "venv" / "bin" / "uv").symlink_to(real)
    elif uv == "that fails":
        (tmp_path / "venv" / "bin" / "uv").write_text("#!/bin/sh\nexit 2\n")
        (tmp_path / "venv" / "bin" / "uv").chmod(0o755)
    elif uv == "that cannot be run":
        (tmp_path / "venv" / "bin" / "uv").write_text("")
    itself = tmp_path / "pyproject.toml"
    itself.write_text('[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n')
    (tmp_path / "backend.py").write_text(BACKEND)

    bootstrap.install_packages()
    assert subprocess.check_output([bootstrap.PYTHON, "-c", "import lesson; print(lesson.answer)"]) == b"42\n"
    assert ("going on with pip" in capfd.readouterr().out) == (uv != "that works")

    altered = wheel(venv_and_index, "altered", "").partition("sha256:")[0] + "sha256:" + "0" * 64
    (tmp_path / "requirements.txt").write_text(altered + "\n")
    with pytest.raises(SystemExit, match=r"could not install requirements\.txt"):
        bootstrap.install_packages()


BACKEND = """
import zipfile

def build_editable(directory, *_):
    with zipfile.ZipFile(directory + "/itself-1.0-py3-none-any.whl", "w") as archive:
        info = "itself-1.0.dist-info/"
        archive.writestr(info + "METADATA", "Metadata-Version: 2.1\\nName: itself\\nVersion: 1.0\\n")
        archive.writestr(info + "WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        archive.writestr(info + "RECORD", "")
    return "itself-1.0-py3-none-any.whl"
"""


@pytest.mark.skipif(os.name != "posix", reason="processes are grouped by session")
def test_what_is_unpacked_meanwhile_ends_with_the_set_up(bootstrap, monkeypatch, tmp_path):
    script = tmp_path / "labkit" / "brokers" / "images" / "build.sh"
    script.parent.mkdir(parents=True)
    script.write_text(f"sleep 60 & echo $! >{tmp_path}/child; echo $@ >{tmp_path}/asked; wait\n")
    monkeypatch.setattr(bootstrap, "ROOT", tmp_path)
    monkeypatch.setattr(bootstrap, "is_debian_root", lambda: True)
    monkeypatch.setattr(bootstrap, "agreed_to_unpack", lambda: True)
    monkeypatch.setattr(bootstrap, "asks", lambda: False)
    monkeypatch.setattr(bootstrap.shutil, "which", lambda name: None)
    for name in ("LABKIT_BROKER", "SUDO_UID"):
        monkeypatch.delenv(name, raising=False)
    process = bootstrap.begin_to_unpack()
    until(lambda: (tmp_path / "asked").exists())
    assert (tmp_path / "asked").read_text() == f"--rootfs {tmp_path}/.lab/rootfs\n"
    assert (tmp_path / ".lab").stat().st_mode & 0o777 == 0o700
    child = int((tmp_path / "child").read_text())
    bootstrap.end(process)
    until(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE)
    assert bootstrap.begin_to_unpack() is None  # .lab is there


@pytest.mark.parametrize("there", ["docker", "rabbitmq-server", "LABKIT_BROKER", "a person who is to be asked"])
def test_nothing_is_unpacked_beforehand_where_there_may_be_another_way(bootstrap, monkeypatch, tmp_path, there):
    monkeypatch.setattr(bootstrap, "ROOT", tmp_path)
    monkeypatch.setattr(bootstrap, "is_debian_root", lambda: True)
    monkeypatch.setattr(bootstrap, "asks", lambda: "asked" in there)
    monkeypatch.setattr(bootstrap.shutil, "which", lambda name: name if name == there else None)
    monkeypatch.setenv("LABKIT_BROKER", "amqp://far.example" if there == "LABKIT_BROKER" else "")
    monkeypatch.setattr(bootstrap, "agreed_to_unpack", lambda: pytest.fail("it began"))
    assert bootstrap.begin_to_unpack() is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("system", ["debian", "fedora", "macos", "windows", "other"])
def test_every_system_is_told_how_to_get_what_is_missing(bootstrap, monkeypatch, system):
    monkeypatch.setattr(bootstrap, "is_unpacked", lambda: False)
    monkeypatch.setattr(bootstrap, "broker_possible", lambda: False)
    monkeypatch.setattr(bootstrap, "apt", lambda packages, why: False)
    monkeypatch.setattr(bootstrap, "is_root", lambda: False)
    monkeypatch.setattr(bootstrap, "system", lambda: system)
    with pytest.raises(SystemExit) as ended:
        bootstrap.have_broker()
    assert bootstrap.GET_BROKER[system] in str(ended.value)
    assert "LABKIT_BROKER=amqp://" in str(ended.value)
    assert bootstrap.GET_PYTHON[system]


def test_preflight_says_each_finding_in_a_line_of_its_own(bootstrap, monkeypatch, capsys):
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(bootstrap, "taken", lambda port: port == 15672)
    monkeypatch.setattr(bootstrap.platform, "release", lambda: "5.15.90.1-microsoft-standard-WSL2")
    monkeypatch.setattr(bootstrap.sys, "platform", "linux")
    bootstrap.preflight("lab")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["labkit", "wsl", "port 15672", "browser"]


def test_a_port_is_taken_while_somebody_listens_and_free_afterwards(bootstrap):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert bootstrap.taken(port)
    assert not bootstrap.taken(port)


FLAKY = """
import pathlib

def test_that_fails_the_first_time():
    mark = pathlib.Path("mark")
    was_there = mark.exists()
    mark.touch()
    assert was_there

def test_that_passes(): pass
"""


@pytest.mark.slow
@pytest.mark.parametrize("ci", ["true", ""])
def test_a_failure_that_passes_the_second_time_is_listed_and_said_to_be_one_in_ci_and_fails_elsewhere(
    bootstrap, monkeypatch, tmp_path, capfd, ci
):
    (tmp_path / "tests" / "broker").mkdir(parents=True)
    (tmp_path / "tests" / "broker" / "test_flaky.py").write_text(FLAKY)
    (tmp_path / ".pytest_cache" / "v" / "cache").mkdir(parents=True)
    (tmp_path / bootstrap.LAST_FAILED).write_text('{"tests/lab/test_of_another_stage.py::test_it": true}')
    monkeypatch.setattr(bootstrap, "ROOT", tmp_path)
    monkeypatch.setenv("CI", ci)
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)

    code = bootstrap.run_stages([("broker", [sys.executable, "-m", "pytest", "-q", "tests/broker"])])

    said = capfd.readouterr().out
    _, _, log_and_table = said.partition("the failed ones once more")
    if not ci:
        assert code is True
        assert "FAILED (exit code 1)" in said
        assert not log_and_table
        return
    assert code is False
    assert "=== broker: passed at the second try only:" in log_and_table
    listed = [line.strip() for line in log_and_table.splitlines() if line.startswith("    tests/")]
    assert listed == ["tests/broker/test_flaky.py::test_that_fails_the_first_time"]
    (row,) = [line for line in log_and_table.splitlines() if line.startswith("broker  ")]
    assert row.endswith("passed at the second try: 1 of its tests, listed above")
    assert "1 passed" in log_and_table  # and the other one was not run again


def test_what_failed_is_run_alone_the_second_time_and_a_notebook_from_its_first_cell(bootstrap):
    words = ["-q", "-n3", *bootstrap.ONE_BY_ONE, "tests/broker", "-k", "pool"]
    assert bootstrap.once_more(words, ["tests/broker/test_pool.py::test_it"])[:4] == [
        "-q", "tests/broker", "-k", "pool",
    ]  # fmt: skip
    cells = [
        "notebooks/00.ipynb::ipynb::Cell 1",
        "notebooks/00.ipynb::ipynb::Cell 2",
        "notebooks/01.ipynb::ipynb::Cell 3",
    ]
    assert bootstrap.once_more(["-q", "-n2", "--dist=loadfile", "--nbval", "notebooks"], cells) == [
        "-q", "--nbval", "notebooks/00.ipynb", "notebooks/01.ipynb",
    ]  # fmt: skip


def test_what_fails_twice_fails_also_in_ci(bootstrap, monkeypatch, capsys):
    monkeypatch.setenv("CI", "true")
    monkeypatch.setattr(bootstrap.subprocess, "call", lambda *a, **k: 1)
    assert bootstrap.run_stages([("broker", ["pytest"])]) is True
    assert "FAILED" in capsys.readouterr().out


def test_every_package_that_a_class_installs_is_pinned_with_its_hashes():
    entries = re.split(r"\n(?=\S)", re.sub(r"(?m)^#.*\n", "", (ROOT / "requirements.txt").read_text()).strip())
    assert len(entries) > 100
    assert [each for each in entries if not re.match(r"[\w.-]+==\S+", each) or "--hash=sha256:" not in each] == []
