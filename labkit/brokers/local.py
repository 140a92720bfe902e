"""A RabbitMQ node of this machine without Docker. Knows processes and files, no container.

Nothing of a RabbitMQ that the machine already runs is touched: the node has its own name, ports,
data, log, cookie and port mapper (epmd), and listens on the loopback address only. Two sources:
a root directory (an unpacked system with RabbitMQ in it, run in a mount namespace of its own), or
the scripts of an installed RabbitMQ.
"""

import contextlib
import hashlib
import os
import shutil
import subprocess
import time
from pathlib import Path

from labkit.brokers import encryption, ports, processes
from labkit.brokers.credentials import LAB_USER, definitions, new_password
from labkit.brokers.home import private_directory, require_space, unwritable
from labkit.brokers.interface import CTL_TIMEOUT, LOG_LINES_MAX, START_TIMEOUT, STOP_TIMEOUT, check_ctl
from labkit.brokers.logs import clue
from labkit.brokers.recorded import RecordedBroker
from labkit.brokers.sources import CHROOT_PATH, Source, default_rootfs, from_rootfs, from_scripts, namespace
from labkit.brokers.state import Record, Request, StateFile
from labkit.errors import BrokerError, ConfigurationError
from labkit.values import checked_count, checked_number

NODE_DIRECTORY = "node"
INSIDE = "/labkit"  # where the node's directory is mounted in a root directory
LOG = "node.log"
KILL_TIMEOUT = 10.0  # seconds; the kernel needs milliseconds
# Mounted by a shell in a namespace of its own, so the mounts go with the process. ("exec chroot"
# keeps the process id: the one we are given is the broker.)
CHROOT = (
    'R=$1; B=$2; shift 2; mount --bind "$R" "$R"; mount --make-private "$R"; '
    'mount --rbind /dev "$R/dev"; mount --rbind /proc "$R/proc"; '
    'mount --bind "$B" "$R/labkit"; exec chroot "$R" "$@"'
)
# Shell patterns; what rabbitmq.conf reads as a comment or an escape; what ends the quotes around the path in the disk
# monitor's command; and what does not fit into the one byte a character that rabbitmq.conf is read by.
NOT_TAKEN_BY_SCRIPTS = frozenset("*?^![]{}#\"'\\")
INETRC = '{host, {127,0,0,1}, ["localhost"]}.\n{lookup, [file, native]}.\n'
# The shell ends at once and leaves the broker to the system: nobody here has to wait for it,
# and it outlives the command that started it.
DETACH = 'log=$1; shift; "$@" </dev/null >>"$log" 2>&1 & echo $!'


class LocalBroker(RecordedBroker):
    """A private node, driven by signals and rabbitmqctl. Any process of this user may drive it."""

    backend = "local"

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self._given: Source | None = None  # what this process was told to run; no file says it
        self.directory = home / NODE_DIRECTORY
        self._old_lines = 0  # of the log, from before our last start

    @classmethod
    def create(cls, home: Path, source: Source, request: Request) -> "LocalBroker":
        """Record a new node in *home* and return it, not started yet.

        Args:
            home: The bench directory; it exists.
            source: Where RabbitMQ comes from.
            request: What it is to be.

        Raises:
            BrokerError: *home* cannot be written or is full.
            ConfigurationError: RabbitMQ's scripts cannot live with a character of its path.
        """
        if not source.is_rootfs:
            _check_path(home)
        require_space(home)
        wanted = (request.amqp_port, request.amqps_port, request.management_port)
        amqp, amqps, management, dist, epmd = ports.choose(*wanted, 0, 0)
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
                rootfs=source.is_rootfs,
                node=_node_of(home),
                dist_port=dist,
                epmd_port=epmd,
            )
        )
        made = cls(home)
        made._given = source
        return made

    @classmethod
    def end_unrecorded(cls, home: Path) -> bool:
        """End a node that runs in *home* though no state file tells of it, and return whether there was one.

        Its state file was lost or damaged, or its labkit was killed while it started. Two nodes in one directory would
        spoil each other's data.

        Raises:
            BrokerError: a process of it cannot be ended.
        """
        found = processes.end_node(_node_of(home), KILL_TIMEOUT)
        shutil.rmtree(home / NODE_DIRECTORY, ignore_errors=True)
        return found

    # --- facts -----------------------------------------------------------------------------------

    @property
    def is_running(self) -> bool:
        """Whether the node's process lives; a paused one does."""
        record = self._state.read()
        return record is not None and _lives(record)

    @property
    def is_paused(self) -> bool:
        """Whether the node's process is frozen."""
        record = self._state.read()
        return record is not None and _lives(record) and processes.is_paused(record.pid)

    def logs(self, lines: int = 50) -> str:
        """Return the last *lines* lines of the node's log."""
        checked_count("lines", lines, LOG_LINES_MAX)
        return "\n".join(self._log_lines()[-lines:])

    # --- verbs -----------------------------------------------------------------------------------

    def start(self, timeout: float = START_TIMEOUT) -> None:
        """Start it, on the ports it had, and return once it answers an AMQP handshake.

        Raises:
            BrokerError: it ended, or was not ready after *timeout* seconds; its log's last line is in the text.
        """
        checked_number("timeout", timeout)
        with self._state.lock():
            record = self._record()
            if _lives(record):
                self.resume()
                return
            if not record.amqps_port:  # an older labkit made it
                record = record.replace(amqps_port=ports.choose(0, but_not=record.ports)[0])
            # Also what no record tells of: its labkit may have been killed while it started.
            processes.end_node(record.node, KILL_TIMEOUT)
            self._write_files(record)
            self._old_lines = len(self._log_lines())
            try:
                record = self._spawn(record)
                self._wait_until_ready(timeout, ended=lambda: None if _lives(record) else "its process is gone")
            except BaseException:
                # Also an interrupt: nobody would know of a node that is half up.
                self._end(record, "SIGKILL", KILL_TIMEOUT)
                with contextlib.suppress(BrokerError):
                    processes.end_node(record.node)  # it may be there, and not be recorded yet
                self._state.write(record.replace(wanted="stopped", pid=0, identity=""))
                raise

    def stop(self, timeout: float = STOP_TIMEOUT) -> None:
        """Stop it gracefully; a paused one is resumed first, and one that does not end in time is killed."""
        checked_number("timeout", timeout)
        with self._state.lock():
            record = self._record()
            self._state.write(record.replace(wanted="stopped"))
            processes.send(record.pid, record.identity, "SIGCONT", record.node)
            if not self._end(record, "SIGTERM", timeout):
                self._end(record, "SIGKILL", KILL_TIMEOUT)

    def kill(self) -> None:
        """End its process without a word to anyone (SIGKILL)."""
        with self._state.lock():
            record = self._record()
            self._state.write(record.replace(wanted="stopped"))
            if not self._end(record, "SIGKILL", KILL_TIMEOUT):
                raise BrokerError(f"process {record.pid} is still there {KILL_TIMEOUT:g} s after SIGKILL")

    def pause(self) -> None:
        """Freeze its process: connections stay open and say nothing."""
        record = self._running_record("pause")
        processes.send(record.pid, record.identity, "SIGSTOP", record.node)
        end = time.monotonic() + KILL_TIMEOUT
        while not processes.is_paused(record.pid):
            if time.monotonic() >= end:
                raise BrokerError(f"process {record.pid} does not stop {KILL_TIMEOUT:g} s after SIGSTOP")
            time.sleep(processes.POLL)

    def resume(self) -> None:
        """Let a paused process go on; no harm to one that is not paused."""
        record = self._running_record("resume")
        processes.send(record.pid, record.identity, "SIGCONT", record.node)

    def ctl(self, *arguments: str, timeout: float = CTL_TIMEOUT) -> str:
        """Run ``rabbitmqctl -q`` with *arguments* on this node and return what it printed."""
        check_ctl(arguments, timeout)
        record = self._running_record(f"run rabbitmqctl {arguments[0]} on")
        if processes.is_paused(record.pid):
            raise BrokerError(f"the broker is paused and cannot answer rabbitmqctl {arguments[0]}: resume() it first")
        try:
            done = subprocess.run(
                _command(self._source(record), self.directory, "rabbitmqctl", "-q", *arguments),
                env=_environment(record, self.directory), stdin=subprocess.DEVNULL,
                capture_output=True, text=True, timeout=timeout, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise BrokerError(f"rabbitmqctl {arguments[0]} gave no answer within {timeout:g} s") from error
        if done.returncode:
            said = " ".join((done.stderr or done.stdout).split())[:400]
            raise BrokerError(f"rabbitmqctl {arguments[0]} failed with code {done.returncode}: {said}")
        return done.stdout

    def throw_away(self) -> None:
        """Kill it, end its port mapper, remove its directory and the state file."""
        with self._state.lock():
            record = self._state.read()
            if record is not None:
                self._end(record, "SIGKILL", KILL_TIMEOUT)
                processes.end_node(record.node)
            self._state.remove()
            shutil.rmtree(self.directory, ignore_errors=True)

    # --- helpers ---------------------------------------------------------------------------------

    def _source(self, record: Record) -> Source:
        """Return the RabbitMQ of this node: what we were given, what it runs from, or what labkit finds here."""
        if self._given is not None:
            return self._given
        if record.rootfs and _lives(record) and processes.is_of_node(record.pid, record.node):
            return Source(processes.root(record.pid), is_rootfs=True)
        return from_rootfs(default_rootfs()) if record.rootfs else from_scripts()

    def _running_record(self, verb: str) -> Record:
        record = self._record()
        if not _lives(record):
            raise BrokerError(f"cannot {verb} the broker: it is not running; start() it first")
        return record

    def _end(self, record: Record, signal_name: str, timeout: float) -> bool:
        processes.send(record.pid, record.identity, signal_name, record.node)
        return processes.wait_gone(record.pid, record.identity, timeout)

    def _write_files(self, record: Record) -> None:
        seen = INSIDE if record.rootfs else self.directory.as_posix()
        settings = (
            f"listeners.tcp.1 = {ports.LOOPBACK}:{record.amqp_port}\n"
            f"management.tcp.ip = {ports.LOOPBACK}\n"
            f"management.tcp.port = {record.management_port}\n"
            f"distribution.listener.interface = {ports.LOOPBACK}\n"
            f"load_definitions = {seen}/definitions.json\n"
            # The management page's figures every second (normally 5 s): a class is watching.
            "collect_statistics_interval = 1000\n"
            "log.console = true\nlog.console.use_colors = off\nlog.file = false\n"
        ) + encryption.configuration(
            f"{ports.LOOPBACK}:{record.amqps_port}",
            f"{seen}/{encryption.FILES}",
            demand_certificate=record.demand_certificate,
        )
        private_directory(self.directory)
        try:
            for name in ("data", "log", "home", "conf.d"):
                (self.directory / name).mkdir(exist_ok=True)
            (self.directory / "rabbitmq.conf").write_text(settings, encoding="utf-8")
            # Not every machine has an /etc/hosts that names localhost; without it, Erlang's port mapper finds no host.
            (self.directory / "inetrc").write_text(INETRC, encoding="ascii")
            (self.directory / "enabled_plugins").write_text(encryption.PLUGINS, encoding="utf-8")
            imported = self.directory / "definitions.json"
            imported.write_text(definitions(record.username, record.password), encoding="utf-8")
            cookie = self.directory / "home" / ".erlang.cookie"
            if not cookie.exists():
                cookie.write_text(new_password(), encoding="ascii")
                cookie.chmod(0o400)  # Erlang refuses a cookie that others can read
        except OSError as error:
            raise unwritable(self.directory, error) from error
        encryption.place(self.certificates, self.directory)

    def _spawn(self, record: Record) -> Record:
        detached = ["sh", "-c", DETACH, "sh", str(self.directory / LOG)]
        try:
            started = subprocess.run(
                [*detached, *_command(self._source(record), self.directory, "rabbitmq-server")],
                # Its own session: Ctrl-C in the notebook server's terminal must not reach it.
                env=_environment(record, self.directory), start_new_session=True,
                capture_output=True, text=True, timeout=10, check=True,
            )  # fmt: skip
            pid = int(started.stdout)
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            raise BrokerError(f"cannot start a process for the broker: {error}") from error
        return self._state.write(record.replace(wanted="running", pid=pid, identity=processes.identity(pid)))

    def _log_lines(self) -> list[str]:
        with contextlib.suppress(OSError):
            return (self.directory / LOG).read_text(encoding="utf-8", errors="replace").splitlines()
        return []

    def _clue(self) -> str:
        return clue(self._log_lines()[self._old_lines :])


def _lives(record: Record) -> bool:
    return bool(record.identity) and processes.identity(record.pid) == record.identity


def _node_of(home: Path) -> str:
    """Return the node's name. The port mapper is private, so any would do; this one tells two benches apart."""
    return f"labkit-{hashlib.sha256(str(home.resolve()).encode()).hexdigest()[:8]}@localhost"


def _check_path(home: Path) -> None:
    """Refuse a path that RabbitMQ's scripts cannot live with: they would say something else, after a minute."""
    bad = sorted({each for each in str(home) if each in NOT_TAKEN_BY_SCRIPTS or not "\x1f" < each < "\u0100"})
    if bad:
        allowed = "a path of Latin letters, digits, spaces and plain punctuation"
        raise ConfigurationError(
            f"home: RabbitMQ's scripts cannot use {home} (they stumble over {' '.join(map(repr, bad))}); allowed: "
            f"{allowed} (--home, or LABKIT_BROKER, names one); a container or a root directory takes any",
            field="home", value=str(home), allowed=allowed,
        )  # fmt: skip


def _command(source: Source, directory: Path, script: str, *arguments: str) -> list[str]:
    if not source.is_rootfs:
        return [str(source.path / script), *arguments]
    return [*namespace(), "sh", "-ec", CHROOT, "sh", str(source.path), str(directory), script, *arguments]


def _environment(record: Record, directory: Path) -> dict[str, str]:
    seen = INSIDE if record.rootfs else str(directory)
    return {
        "PATH": CHROOT_PATH if record.rootfs else os.environ.get("PATH", os.defpath),
        "HOME": f"{seen}/home",
        "LANG": "C.UTF-8",
        "RABBITMQ_NODENAME": record.node,
        "RABBITMQ_CONFIG_FILE": f"{seen}/rabbitmq",
        "RABBITMQ_CONFIG_FILES": f"{seen}/conf.d/*.conf",  # else the system's conf.d is read
        "RABBITMQ_ADVANCED_CONFIG_FILE": f"{seen}/advanced.config",
        "RABBITMQ_CONF_ENV_FILE": "/dev/null",  # else the system's rabbitmq-env.conf
        "RABBITMQ_ENABLED_PLUGINS_FILE": f"{seen}/enabled_plugins",
        "RABBITMQ_MNESIA_BASE": f"{seen}/data",
        "RABBITMQ_LOG_BASE": f"{seen}/log",
        "RABBITMQ_PID_FILE": f"{seen}/pid",
        "ERL_INETRC": f"{seen}/inetrc",
        "ERL_CRASH_DUMP": f"{seen}/erl_crash.dump",  # else it lands in the working directory
        "RABBITMQ_DIST_PORT": str(record.dist_port),
        "ERL_EPMD_PORT": str(record.epmd_port),
        "ERL_EPMD_ADDRESS": ports.LOOPBACK,
        # rabbitmqctl is a node of its own, and would listen on every address while it runs.
        "RABBITMQ_CTL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        # The script then replaces itself by the Erlang VM: the process we know is the broker.
        "RUNNING_UNDER_SYSTEMD": "true",
    }
