"""bootstrap.py before anything is installed: what it says, and what it refuses."""

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

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
    ast.parse(SCRIPT.read_text(), feature_version=(3, 8))


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
    for name in ("requirements.txt", "pyproject.toml"):
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


def test_without_any_broker_the_way_to_get_one_is_said(bootstrap, monkeypatch):
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
