"""Serve the learner's notebooks in JupyterLab, and end everything that was started when the learner is done."""

import contextlib
import html
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import webbrowser
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from labkit.brokers.home import replace_file
from labkit.errors import LabkitError
from labkit.lab import workspace
from labkit.lab.notebook_file import GRAMMARS
from labkit.lab.workspace import LANDING

if TYPE_CHECKING:
    import httpx

PREFERRED_PORT = 8888
ATTEMPTS = 3  # to have a port that nobody takes while JupyterLab starts
READY_TIMEOUT = 60.0  # seconds; 2.4 measured on two cores
# JupyterLab breaks a printed line at the edge, in the middle of a word.
STYLE = ".jp-OutputArea .jp-OutputArea-output pre { word-break: normal; overflow-wrap: anywhere; }\n"
# `jupyter lab`, as its script starts it.
LAUNCH = f"import sys; sys.modules[{GRAMMARS!r}] = None; from jupyterlab.labapp import main; sys.exit(main())"
STOP_TIMEOUT = 10.0  # seconds; kernels get this long to end by themselves


class ServerError(LabkitError):
    """JupyterLab did not start."""


class _EndedError(ServerError):
    """The server ended by itself, as when its port is taken."""


class NotebookServer:
    """One JupyterLab of the bench's own: its settings, workspaces and kernels are nobody else's.

    One thread owns it. Listens on 127.0.0.1 only and asks for a token.
    """

    def __init__(self, directory: Path, state: Path, *, port: int | None = None) -> None:
        self._directory = directory
        self._state = state
        self._may_move = port is None
        self._port = port or free_port(PREFERRED_PORT)
        self._token = secrets.token_hex(16)
        self._page = state / "open-jupyterlab.html"
        self._log = state / "jupyter.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """What to open in a browser; the token in it is the key to the learner's machine."""
        return f"http://127.0.0.1:{self._port}/lab/tree/{LANDING}?token={self._token}"

    def landing_page(self) -> str:
        """Write a page that sends the browser to :attr:`address`, for this user's eyes only; return where it is.

        A browser gets what it is to open on its command line, where every user of the machine can read it, so that
        must not be the token.
        """
        target = html.escape(self.address, quote=True)
        page = (
            f'<!doctype html><meta http-equiv="refresh" content="0; url={target}"><a href="{target}">JupyterLab</a>\n'
        )
        replace_file(self._page, page.encode())
        return self._page.resolve().as_uri()

    def begin(self) -> None:
        """Start JupyterLab and return at once, so that a broker can start beside it; :meth:`start` waits for it."""
        self._write_settings()
        self._spawn()

    def start(self) -> None:
        """Start JupyterLab, unless it has begun, and wait until it answers.

        A port that another program took since it was chosen is replaced by a free one, unless it was asked for.

        Raises:
            ServerError: it ended (a busy port), or said nothing for 60 s; the text holds the log's last lines.
        """
        if self._process is None:
            self.begin()
        for _ in range(ATTEMPTS - 1 if self._may_move else 0):
            try:
                return self._wait_or_stop()
            except _EndedError:
                self._port = free_port(0)
                self._spawn()
        return self._wait_or_stop()

    def _spawn(self) -> None:
        with self._log.open("wb") as sink:
            # Its own session: Ctrl-C at the terminal reaches us alone, and we end the server with all its kernels.
            self._process = subprocess.Popen(
                self._command(), env=self._environment(), stdin=subprocess.DEVNULL, stdout=sink, stderr=sink,
                start_new_session=True,
            )  # fmt: skip

    def _wait_or_stop(self) -> None:
        if self._process is None:
            raise ServerError("JupyterLab was stopped while it started")
        try:
            self._wait_until_it_answers(self._process)
        except BaseException:
            self.stop()
            raise

    def arrange(self, lesson: str | None) -> None:
        """Show the table of notebooks with the dashboard beside it, and give that the kernel of *lesson*.

        Nothing happens where JupyterLab does not do that: then there is a table of notebooks, as ever.
        """
        import httpx

        with contextlib.suppress(httpx.HTTPError, ValueError), self._client(READY_TIMEOUT) as client:
            workspace.arrange(client, lesson)

    def _client(self, timeout: float) -> "httpx.Client":
        import httpx  # here, not at the top: JupyterLab and the broker start while it is imported

        # trust_env=False: a class's web proxy has no business with loopback.
        headers = {"Authorization": f"token {self._token}"}
        base = f"http://127.0.0.1:{self._port}"
        return httpx.Client(base_url=base, trust_env=False, timeout=timeout, headers=headers)

    def wait(self) -> int:
        """Block until the server ends by itself (File > Shut Down) and return its exit code."""
        if self._process is None:
            return 0
        return self._process.wait()

    def stop(self) -> None:
        """End the server and its kernels; at most 10 s, then without asking. Twice is fine."""
        self._page.unlink(missing_ok=True)
        process = self._process
        if process is None or process.poll() is not None:
            return
        _signal_session(process, signal.SIGTERM)
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            _signal_session(process, getattr(signal, "SIGKILL", signal.SIGTERM))
            process.wait(STOP_TIMEOUT)

    def _command(self) -> list[str]:
        return [
            sys.executable, "-P", "-c", LAUNCH, "--no-browser", "--ip=127.0.0.1", f"--port={self._port}",
            "--ServerApp.port_retries=0", f"--ServerApp.root_dir={self._directory}", "--ServerApp.allow_root=True",
            "--LabApp.extension_manager=readonly", "--LabApp.custom_css=True",
            "--ServerApp.shutdown_no_activity_timeout=0",
        ]  # fmt: skip

    def _environment(self) -> dict[str, str]:
        own = self._state / "jupyter"
        return {
            **os.environ,
            # `labkit` in JupyterLab's own terminal is the one of this environment.
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
            "JUPYTER_TOKEN": self._token,  # not on the command line, where every user of the machine reads it
            "JUPYTER_CONFIG_DIR": f"{own}/config",
            "JUPYTER_DATA_DIR": f"{own}/data",
            "JUPYTER_RUNTIME_DIR": f"{own}/run",
            "JUPYTERLAB_SETTINGS_DIR": f"{own}/settings",
            "JUPYTERLAB_WORKSPACES_DIR": f"{own}/workspaces",
            "IPYTHONDIR": f"{own}/ipython",
        }

    def _write_settings(self) -> None:
        if os.name == "posix":
            # Named, so that it is no login shell: one takes PATH from /etc/profile, and does not find `labkit`.
            shell = [os.environ.get("SHELL") or "/bin/sh"]
            _write_json(
                self._state / "jupyter" / "config" / "jupyter_server_config.json",
                {"ServerApp": {"terminado_settings": {"shell_command": shell}}},
            )
        custom = self._state / "jupyter" / "config" / "custom"
        custom.mkdir(parents=True, exist_ok=True)
        replace_file(custom / "custom.css", STYLE.encode())
        settings = self._state / "jupyter" / "settings" / "@jupyterlab"
        _write_json(
            settings / "apputils-extension" / "notification.jupyterlab-settings",
            {"fetchNews": "false", "checkForUpdates": False},  # the news box covers a notebook's corner
        )
        _write_json(
            settings / "docmanager-extension" / "plugin.jupyterlab-settings",
            {"defaultViewers": {"markdown": "Markdown Preview"}},  # the landing page: read, not edited, no kernel
        )
        _write_json(
            settings / "notebook-extension" / "tracker.jupyterlab-settings",
            {"windowingMode": "defer"},  # cells out of sight keep their outputs, so that Ctrl-F finds them
        )

    def _wait_until_it_answers(self, process: subprocess.Popen[bytes]) -> None:
        import httpx

        kind, went = ServerError, f"did not answer within {READY_TIMEOUT:.0f} s"
        deadline = time.monotonic() + READY_TIMEOUT
        while time.monotonic() < deadline:
            if process.poll() is not None:
                kind, went = _EndedError, f"ended with code {process.returncode}"
                break
            try:
                with self._client(2.0) as client:
                    if client.get("/api/status").status_code == 200:
                        return
            except httpx.HTTPError:
                pass
            time.sleep(0.1)
        tail = "\n".join(self._log.read_text(errors="replace").splitlines()[-5:])
        raise kind(f"JupyterLab {went} on port {self._port}; its log ends: {tail}")


@contextlib.contextmanager
def ended_by_signals(end: Callable[[], None], say: Callable[[str], None]) -> Iterator[None]:
    """Have Ctrl-C, SIGTERM and a closed terminal end the block; then call *end*, undisturbed by a second Ctrl-C."""
    previous = {number: signal.signal(number, _interrupt) for number in _ending_signals()}
    try:
        yield
    except KeyboardInterrupt:
        say("")
    finally:
        for number in previous:
            signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C must not leave kernels behind
        try:
            end()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def serve(server: NotebookServer, *, say: Callable[[str], None], open_browser: bool, lesson: str | None = None) -> None:
    """Run *server* until it ends by itself, with a dashboard on the kernel of *lesson*."""
    server.start()
    say(f"JupyterLab: {server.address}")
    say("Ctrl-C here ends JupyterLab and the broker that this command started")
    server.arrange(lesson)  # takes less time than a page that was asked for at this moment
    if open_browser and _has_display():
        webbrowser.open(server.landing_page())
    server.wait()


def _has_display() -> bool:
    """Whether a browser could open a window; without one, webbrowser may start a text browser in this terminal."""
    if sys.platform in ("darwin", "win32"):
        return True
    if os.environ.get("WSL_DISTRO_NAME"):
        return False  # the browser is Windows' own and cannot open a file of ours: the address is printed
    return any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


def free_port(preferred: int) -> int:
    """*preferred* if nobody listens there, else a port that is free now."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise ServerError("no free TCP port on 127.0.0.1")


def _signal_session(process: subprocess.Popen[bytes], number: int) -> None:
    """Reach the server and the kernels it started; Windows has no such groups, there the server ends its kernels."""
    with contextlib.suppress(ProcessLookupError):
        if os.name == "posix":
            os.killpg(process.pid, number)
        else:
            process.terminate()


def _ending_signals() -> list[signal.Signals]:
    names = ("SIGINT", "SIGTERM", "SIGHUP")
    return [getattr(signal, name) for name in names if hasattr(signal, name)]


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _write_json(path: Path, content: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
