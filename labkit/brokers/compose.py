"""A RabbitMQ in a container: launched by the compose command, driven with the docker SDK.

The container is found by the labels that both compose versions set; their names for it differ.
"""

import contextlib
import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from labkit.brokers import encryption, engine, ports
from labkit.brokers.credentials import LAB_USER, definitions, new_password
from labkit.brokers.home import PACKAGE, private_directory, unwritable
from labkit.brokers.interface import CTL_TIMEOUT, LOG_LINES_MAX, START_TIMEOUT, STOP_TIMEOUT, check_ctl
from labkit.brokers.logs import clue
from labkit.brokers.recorded import RecordedBroker
from labkit.brokers.state import Record, Request, StateFile
from labkit.errors import BrokerError, ConfigurationError
from labkit.values import checked_count, checked_number

SERVICE = "rabbitmq"
FILES_DIRECTORY = "compose"
PROJECT_LABEL = "com.docker.compose.project"
SERVICE_LABEL = "com.docker.compose.service"
FILES_INSIDE = "/etc/rabbitmq/tls"  # where the compose file mounts them
COMPOSE_FILE = "docker-compose.yml"
LAUNCH_TIMEOUT = 120.0  # seconds for `compose up -d`; the image is here already
CLUE_LINES = 100  # of the log, to look for an error in
GONE_TIMEOUT = 20.0  # seconds for what was removed to be gone
PAUSE_PATIENCE = 5.0  # seconds for the kernel to freeze a container; on a busy machine it may be refused at first


def compose_file() -> Path:
    """Return the compose file: the checkout's, or the one that an installed package carries.

    Raises:
        BrokerError: neither is there (a broken installation).
    """
    for path in (PACKAGE.parent / COMPOSE_FILE, Path(__file__).with_name(COMPOSE_FILE)):
        if path.is_file():
            return path
    raise BrokerError(f"{COMPOSE_FILE} is missing from this installation of labkit: install it again")


def project_name(home: Path) -> str:
    """Return a compose project's name that no other bench directory has."""
    return "labkit-" + hashlib.sha256(str(home.resolve()).encode()).hexdigest()[:10]


class ComposeBroker(RecordedBroker):
    """One container, driven through the engine. Any process that may use the engine may drive it."""

    backend = "compose"

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self.directory = home / FILES_DIRECTORY
        self._project = project_name(home)

    @classmethod
    def create(cls, home: Path, image: str, request: Request) -> "ComposeBroker":
        """Record a new container for *home* and return it, not started yet.

        Args:
            home: The bench directory; it exists.
            image: An image that the engine has.
            request: What it is to be.

        Raises:
            BrokerError: *home* cannot be written, or an older container of it not removed.
            ConfigurationError: the compose command cannot live with its path.
        """
        if os.name != "nt" and ":" in str(home):  # the compose file's mounts are of the form source:target
            raise ConfigurationError(
                f"home: a container cannot use {home}; allowed: a path without a colon (--home, or LABKIT_BROKER)",
                field="home", value=str(home), allowed="a path without a colon",
            )  # fmt: skip
        # Of a bench that was at this path before: its container would be taken for this one's.
        _remove_project(project_name(home))
        amqp, amqps, management = ports.choose(request.amqp_port, request.amqps_port, request.management_port)
        StateFile(home).write(
            Record(
                backend=cls.backend,
                amqp_port=amqp,
                amqps_port=amqps,
                management_port=management,
                username=LAB_USER,
                password=new_password(),
                wanted="stopped",
                own=request.own,
                demand_certificate=request.demand_certificate,
                image=image,
            )
        )
        return cls(home)

    @classmethod
    def end_unrecorded(cls, home: Path) -> bool:
        """Remove what was started in *home* though no state file tells of it, and return whether there was a sign.

        Raises:
            BrokerError: the engine does not remove it.
        """
        files = home / FILES_DIRECTORY
        if not files.is_dir():
            return False
        with contextlib.suppress(engine.NoEngine):
            _remove_project(project_name(home))
        shutil.rmtree(files, ignore_errors=True)
        return True

    # --- facts -----------------------------------------------------------------------------------

    @property
    def is_running(self) -> bool:
        """Whether the container runs; a paused one does. False as well when no engine answers."""
        return self._status() in {"running", "paused", "restarting"}

    @property
    def is_paused(self) -> bool:
        """Whether the container is frozen."""
        return self._status() == "paused"

    def logs(self, lines: int = 50) -> str:
        """Return the last *lines* lines of the container's log."""
        checked_count("lines", lines, LOG_LINES_MAX)
        with self._container() as container:
            return str(container.logs(tail=lines).decode(errors="replace")).rstrip()

    # --- verbs -----------------------------------------------------------------------------------

    def start(self, timeout: float = START_TIMEOUT) -> None:
        """Start it, on the ports it had, and return once it answers an AMQP handshake.

        Raises:
            BrokerError: it ended, or was not ready after *timeout* seconds; its log's last line is in the text.
        """
        checked_number("timeout", timeout)
        with self._state.lock():
            record = self._record()
            if self.is_running:
                self.resume()
                return
            if self._status() == "none":
                if not record.amqps_port:  # an older labkit made it
                    record = record.replace(amqps_port=ports.choose(0, but_not=record.ports)[0])
                self._launch(record)
            else:
                self._place_files(record)
                if record.amqps_port:
                    encryption.place(self.certificates, self.directory)
                with self._container() as container:
                    container.start()
            self._state.write(record.replace(wanted="running"))
            self._wait_until_ready(timeout, ended=self._how_it_ended)

    def stop(self, timeout: float = STOP_TIMEOUT) -> None:
        """Stop it gracefully; a paused one is resumed first, and one that does not end in time is killed."""
        checked_number("timeout", timeout)
        with self._state.lock():
            self._state.write(self._record().replace(wanted="stopped"))
            with self._container(timeout=timeout + CTL_TIMEOUT) as container:
                _unpause(container)
                container.stop(timeout=int(timeout))

    def kill(self) -> None:
        """End it without a word to anyone (SIGKILL)."""
        with self._state.lock():
            self._state.write(self._record().replace(wanted="stopped"))
            with self._container() as container:
                _unpause(container)  # the engine refuses to kill a frozen one
                if container.status == "running":
                    container.kill()
                    container.wait(timeout=GONE_TIMEOUT)

    def pause(self) -> None:
        """Freeze it: connections stay open and say nothing."""
        with self._running("pause") as container:
            if container.status != "paused":
                _pause(container)

    def resume(self) -> None:
        """Let a paused one go on; no harm to one that is not paused."""
        with self._running("resume") as container:
            _unpause(container)

    def ctl(self, *arguments: str, timeout: float = CTL_TIMEOUT) -> str:
        """Run ``rabbitmqctl -q`` with *arguments* in the container and return what it printed."""
        check_ctl(arguments, timeout)
        with self._running(f"rabbitmqctl {arguments[0]}", timeout=timeout) as container:
            if container.status == "paused":
                raise BrokerError(
                    f"the broker is paused and cannot answer rabbitmqctl {arguments[0]}: resume() it first"
                )
            # Never as root: root's rabbitmqctl could make a cookie that the broker cannot read.
            code, (out, err) = container.exec_run(["rabbitmqctl", "-q", *arguments], user="rabbitmq", demux=True)
        if code:
            said = " ".join((err or out or b"").decode(errors="replace").split())[:400]
            raise BrokerError(f"rabbitmqctl {arguments[0]} failed with code {code}: {said}")
        return (out or b"").decode(errors="replace")

    def throw_away(self) -> None:
        """Remove the container with its data and its network, the files, and the state file."""
        with self._state.lock():
            # An engine that is gone took the broker with it; the container that it may bring back
            # has this bench's project name, so the next start replaces it.
            with contextlib.suppress(engine.NoEngine):
                _remove_project(self._project)
            self._state.remove()
            shutil.rmtree(self.directory, ignore_errors=True)

    # --- helpers ---------------------------------------------------------------------------------

    def _place_files(self, record: Record) -> None:
        """Write what the container mounts, also where someone has removed it since."""
        private_directory(self.directory)
        try:
            for name, text in _files(record).items():
                path = self.directory / name
                if path.is_dir():  # the engine makes one where a file is missing
                    path.rmdir()
                path.write_text(text, encoding="utf-8")
                path.chmod(0o644)  # the broker reads it as another user; the directory above is private
        except OSError as error:
            raise unwritable(self.directory, error) from error

    def _launch(self, record: Record) -> None:
        self._place_files(record)
        encryption.place(self.certificates, self.directory)
        _remove_project(self._project)
        command = [*engine.compose_command(), "-p", self._project, "-f", str(compose_file()), "up", "-d"]
        environment = {
            **os.environ,
            "LABKIT_RABBITMQ_IMAGE": record.image,
            "LABKIT_AMQP_PORT": str(record.amqp_port),
            "LABKIT_AMQPS_PORT": str(record.amqps_port),
            "LABKIT_MANAGEMENT_PORT": str(record.management_port),
            "LABKIT_FILES": self.directory.as_posix(),
        }
        try:
            done = subprocess.run(
                command, env=environment, stdin=subprocess.DEVNULL,
                capture_output=True, text=True, timeout=LAUNCH_TIMEOUT, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise BrokerError(f"`{' '.join(command[:-2])} up` did not end within {LAUNCH_TIMEOUT:g} s") from error
        except OSError as error:
            raise BrokerError(f"cannot run {command[0]}: {error}") from error
        if done.returncode:
            raise BrokerError(f"`{' '.join(command[:2])} up` failed: {clue((done.stderr or done.stdout).splitlines())}")

    @contextlib.contextmanager
    def _container(self, timeout: float = CTL_TIMEOUT) -> Iterator[Any]:
        """Yield our container; each request to the engine has *timeout* seconds."""
        self._record()
        with engine.connected(timeout) as client, _plain_errors("ask for the container"):
            found = _containers(client, self._project)
            if not found:
                raise BrokerError(f"the container of compose project {self._project} is gone: `labkit up` starts one")
            yield found[0]

    @contextlib.contextmanager
    def _running(self, verb: str, timeout: float = CTL_TIMEOUT) -> Iterator[Any]:
        with self._container(timeout) as container:
            if container.status not in {"running", "paused"}:
                raise BrokerError(f"cannot {verb}: the broker is not running; start() it first")
            yield container

    def _status(self) -> str:
        """Return the engine's word for the container's state; "none" without a container or without an engine."""
        record = self._state.read()
        if record is None or record.backend != self.backend:
            return "none"
        try:
            with engine.connected() as client, _plain_errors("ask for the container"):
                found = _containers(client, self._project)
                return str(found[0].status) if found else "none"
        except BrokerError:
            return "none"

    def _how_it_ended(self) -> str | None:
        with self._container() as container:
            if container.status in {"running", "created"}:
                return None
            return f"container {container.status} with code {container.attrs['State'].get('ExitCode')}"

    def _clue(self) -> str:
        with contextlib.suppress(BrokerError):
            return clue(self.logs(CLUE_LINES).splitlines())
        return "(no log)"


def _files(record: Record) -> dict[str, str]:
    """Return what the compose file mounts, by name."""
    settings = (
        "load_definitions = /etc/rabbitmq/definitions.json\n"
        # The page's figures every second (normally 5 s): a class is watching.
        "collect_statistics_interval = 1000\n"
        "log.console.use_colors = off\n"
        # The official image lets guest in from everywhere. Nobody of that name is here; whoever makes one for a lesson
        # gets RabbitMQ's own rule.
        "loopback_users.guest = true\n"
        + encryption.configuration("5671", FILES_INSIDE, demand_certificate=record.demand_certificate)
    )
    return {
        "20-labkit.conf": settings,
        "enabled_plugins": encryption.PLUGINS,
        "definitions.json": definitions(record.username, record.password),
    }


def _containers(client: Any, project: str) -> list[Any]:
    labels = [f"{PROJECT_LABEL}={project}", f"{SERVICE_LABEL}={SERVICE}"]
    return list(client.containers.list(all=True, filters={"label": labels}))


def _pause(container: Any) -> None:
    """Freeze it, asking again where the kernel could not: a process that was just being made holds it up."""
    ends = time.monotonic() + PAUSE_PATIENCE
    while True:
        try:
            container.pause()
        except engine.sdk().errors.APIError as exc:
            if "unable to freeze" not in str(exc) or time.monotonic() > ends:
                raise
            time.sleep(0.1)
        else:
            return


def _unpause(container: Any) -> None:
    if container.status == "paused":
        container.unpause()
        container.reload()


def _remove_project(project: str) -> None:
    """Remove the containers, networks and volumes that carry *project*'s label; none is fine."""
    mine = {"label": f"{PROJECT_LABEL}={project}"}
    with engine.connected(timeout=CTL_TIMEOUT) as client, _plain_errors("remove the container"):
        for container in client.containers.list(all=True, filters=mine):
            with contextlib.suppress(engine.sdk().errors.NotFound):
                _unpause(container)
                container.remove(force=True, v=True)
        for kind in (client.networks, client.volumes):
            for thing in kind.list(filters=mine):
                _remove(thing)


def _remove(thing: Any) -> None:
    """Remove a network or a volume; the engine may need a moment to notice that its container is gone."""
    end = time.monotonic() + GONE_TIMEOUT
    while True:
        try:
            thing.remove()
        except engine.sdk().errors.NotFound:
            return
        except engine.sdk().errors.APIError:
            if time.monotonic() >= end:
                raise
            time.sleep(0.1)
        else:
            return


@contextlib.contextmanager
def _plain_errors(doing: str) -> Iterator[None]:
    """Turn what the SDK raises into a BrokerError that says what was being done."""
    try:
        yield
    except engine.engine_errors() as error:
        raise BrokerError(f"the container engine could not {doing}: {error}") from error
