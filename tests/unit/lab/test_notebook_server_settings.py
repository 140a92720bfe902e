"""JupyterLab's port, settings and command line, before it is started."""

import json
import os
import socket
import sys
from pathlib import Path

from labkit.lab.server import NotebookServer, free_port


def test_the_preferred_port_is_taken_when_nobody_has_it() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        preferred = probe.getsockname()[1]
    assert free_port(preferred) == preferred


def test_a_busy_port_is_passed_over() -> None:
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", 0))
        squatter.listen()
        busy = squatter.getsockname()[1]
        assert free_port(busy) not in {0, busy}


def test_the_settings_keep_outputs_findable_and_the_news_away(tmp_path: Path) -> None:
    NotebookServer(tmp_path / "work", tmp_path, port=1)._write_settings()
    written = {path.stem: json.loads(path.read_text()) for path in tmp_path.rglob("*.jupyterlab-settings")}
    assert written == {
        "notification": {"fetchNews": "false", "checkForUpdates": False},
        "tracker": {"windowingMode": "defer"},
        "plugin": {"defaultViewers": {"markdown": "Markdown Preview"}},
    }


def test_the_token_is_in_the_address_and_the_environment_and_never_on_the_command_line(tmp_path: Path) -> None:
    server = NotebookServer(tmp_path / "work", tmp_path, port=4242)
    token = server._environment()["JUPYTER_TOKEN"]
    assert server.address == f"http://127.0.0.1:4242/lab/tree/README.md?token={token}"
    assert len(token) >= 32
    assert not [word for word in server._command() if token in word]
    assert "--ip=127.0.0.1" in server._command()


def test_every_server_has_another_token(tmp_path: Path) -> None:
    tokens = {NotebookServer(tmp_path, tmp_path, port=1)._environment()["JUPYTER_TOKEN"] for _ in range(20)}
    assert len(tokens) == 20


def test_the_learners_own_jupyter_settings_are_not_touched(tmp_path: Path) -> None:
    environment = NotebookServer(tmp_path / "work", tmp_path, port=1)._environment()
    ours = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_SETTINGS_DIR", "IPYTHONDIR")
    assert all(environment[name].startswith(str(tmp_path)) for name in ours)


def test_a_terminal_finds_the_commands_of_this_environment_first(tmp_path: Path) -> None:
    path = NotebookServer(tmp_path, tmp_path, port=1)._environment()["PATH"]
    assert path.split(os.pathsep)[0] == str(Path(sys.executable).parent)


def test_ending_a_server_that_never_started_is_fine(tmp_path: Path) -> None:
    server = NotebookServer(tmp_path, tmp_path, port=1)
    server.stop()
    assert server.wait() == 0


def test_the_browser_is_given_a_private_page_that_leads_to_the_token_and_goes_with_the_server(tmp_path: Path) -> None:
    server = NotebookServer(tmp_path / "work", tmp_path, port=4242)
    token = server._environment()["JUPYTER_TOKEN"]
    page = server.landing_page()
    assert token not in page
    assert page.startswith("file://")
    written = tmp_path / "open-jupyterlab.html"
    assert f"url={server.address}" in written.read_text()
    assert os.name == "nt" or written.stat().st_mode & 0o077 == 0
    server.stop()
    assert not written.exists()
