"""`labkit lab` as a process: it serves the learner's copies and takes everything along when it ends."""

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest
from tornado.httpclient import HTTPRequest
from tornado.websocket import websocket_connect

from labkit.lab.server import NotebookServer, ServerError
from tests.view import until

ROOT = Path(__file__).parents[2]
START = 90.0  # seconds
ADDRESS = re.compile(r"JupyterLab: (http://127\.0\.0\.1:\d+)/lab/tree/README\.md\?token=(\w+)")

pytestmark = [pytest.mark.broker, pytest.mark.slow]


@pytest.fixture
def lab_command(broker):
    """`labkit lab` beside a broker that runs already, so that it has none of its own to end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "labkit.cli", "lab", "--no-browser"],
        cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    yield process
    if process.poll() is None:
        process.terminate()  # kill() would leave it no time to end JupyterLab and the kernels
    process.wait(30)
    process.stdout.close()


def address_of(process: subprocess.Popen[str]) -> tuple[str, str]:
    seen = ""
    deadline = time.monotonic() + START
    while time.monotonic() < deadline:
        line = process.stdout.readline()
        seen += line
        if found := ADDRESS.search(line):
            return found[1], found[2]
        if not line and process.poll() is not None:
            break
    raise AssertionError(f"no address printed; it said: {seen}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ending_it_leaves_no_process_behind(lab_command, number):
    url, token = address_of(lab_command)
    with httpx.Client(base_url=url, headers={"Authorization": f"token {token}"}, trust_env=False) as client:
        kernel = client.post("/api/kernels", json={}, timeout=30).raise_for_status().json()
        assert kernel["id"]
        contents = client.get("/api/contents/").raise_for_status().json()["content"]
    assert "README.md" in {entry["name"] for entry in contents}
    family = psutil.Process(lab_command.pid).children(recursive=True)
    assert len(family) >= 2  # the server and the kernel
    lab_command.send_signal(number)
    assert lab_command.wait(30) == 0
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive


def test_it_listens_on_loopback_only_and_asks_for_a_token(lab_command):
    url, token = address_of(lab_command)
    assert httpx.get(f"{url}/api/contents/", trust_env=False).status_code == 403
    httpx.post(
        f"{url}/api/kernels", json={}, headers={"Authorization": f"token {token}"}, timeout=30, trust_env=False
    ).raise_for_status()

    def listeners():
        """The addresses of each process that listens, once the kernel does, too."""
        found = {}
        for each in psutil.Process(lab_command.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # a kernel that starts asks other programs this and that
                found[each.pid] = {c.laddr.ip for c in each.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
        addresses = [each for each in found.values() if each]
        return addresses if len(addresses) > 1 else None

    assert set.union(*until(listeners)) == {"127.0.0.1"}


async def in_a_terminal(server: NotebookServer, command: str, done: Path) -> None:
    """Give *command* to a terminal of JupyterLab's, which is a WebSocket on the wire."""
    url = httpx.URL(server.address)
    token, base = url.params["token"], f"//127.0.0.1:{url.port}"
    headers = {"Authorization": f"token {token}"}
    async with httpx.AsyncClient(trust_env=False, headers=headers, timeout=30) as client:
        name = (await client.post(f"http:{base}/api/terminals", json={})).raise_for_status().json()["name"]
    request = HTTPRequest(f"ws:{base}/terminals/websocket/{name}", headers=headers)
    socket = await websocket_connect(request)
    await socket.write_message(json.dumps(["stdin", f"{command}\r"]))
    while not done.exists():  # its prompt, the command's echo, what the command prints
        await asyncio.wait_for(socket.read_message(), 30)
    socket.close()


def test_the_terminal_of_jupyterlab_finds_labkit(tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("PATH", os.defpath)  # nobody has activated the virtual environment
    server = NotebookServer(tmp_path / "work", tmp_path)
    server.start()
    try:
        said, done = tmp_path / "said.txt", tmp_path / "done.txt"
        command = f"labkit --help >{said} 2>&1; mv {said} {done}; echo ended"
        asyncio.run(in_a_terminal(server, command, done))
    finally:
        server.stop()
    assert "A lab bench for RabbitMQ connections" in done.read_text()


def test_a_port_taken_since_it_was_chosen_is_replaced(tmp_path):
    (tmp_path / "work").mkdir()
    server = NotebookServer(tmp_path / "work", tmp_path)
    with socket.create_server(("127.0.0.1", httpx.URL(server.address).port)) as squatter:
        try:
            server.start()
            assert httpx.URL(server.address).port != squatter.getsockname()[1]
        finally:
            server.stop()


def test_a_taken_port_that_was_asked_for_is_an_error_that_names_it(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as squatter:
        port = squatter.getsockname()[1]
        with pytest.raises(ServerError, match=f"on port {port}; its log ends"):
            NotebookServer(tmp_path, tmp_path, port=port).start()
