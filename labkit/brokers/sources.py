"""Where a RabbitMQ without Docker comes from on this machine. Starts nothing but a probe."""

import functools
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from labkit.brokers import home as homes
from labkit.errors import BrokerError

# RabbitMQ's own scripts. The commands on PATH are often wrappers that insist on root or on the
# rabbitmq user (Debian, RPM); these do not.
SCRIPT_DIRECTORIES = (
    "/usr/lib/rabbitmq/bin",  # Debian, Ubuntu, Fedora, RHEL
    "/opt/homebrew/opt/rabbitmq/sbin",  # Homebrew, Apple silicon
    "/usr/local/opt/rabbitmq/sbin",  # Homebrew, Intel
    "/home/linuxbrew/.linuxbrew/opt/rabbitmq/sbin",
    "/opt/rabbitmq/sbin",  # the official image
    "/usr/local/sbin",  # the generic archive, linked
)
CHROOT_PATH = "/opt/rabbitmq/sbin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Source:
    """A root directory with RabbitMQ in it, or a directory of RabbitMQ's scripts."""

    path: Path
    is_rootfs: bool


def default_rootfs() -> Path:
    """Return where ``labkit image --rootfs`` puts the root directory; all benches of a project share it."""
    return homes.bench() / "rootfs"


def from_rootfs(path: Path) -> Source:
    """Return *path* as a source.

    Raises:
        BrokerError: it is no root directory of ours, another user could have put programs there, or this user may not
            run one.
    """
    if sys.platform != "linux":
        raise BrokerError(f"a root directory runs on Linux only, not on {sys.platform}")
    # What labkit mounts over, and what it runs: /opt/rabbitmq is a link that only works inside.
    if not (path / "labkit").is_dir() or not (path / "usr" / "lib" / "rabbitmq").is_dir():
        raise BrokerError(f"{path} is no root directory with RabbitMQ: `labkit image --rootfs` makes one")
    homes.check_safe(path)
    if path == default_rootfs() and not homes.is_checkout():
        # The current directory's: a repository may have brought it along, and what is in it would run.
        homes.check_safe(path.parent, forbidden=homes.ANYTHING)
    namespace()
    return Source(path.resolve(), is_rootfs=True)


def from_scripts(path: Path | None = None) -> Source:
    """Return RabbitMQ's scripts in *path*; None looks in the usual places.

    Raises:
        BrokerError: none there; the text says where we looked.
    """
    if sys.platform == "win32":
        raise BrokerError("on Windows RabbitMQ's scripts cannot be paused or killed one by one: use Docker, or a URL")
    looked = [path] if path else [Path(each) for each in (*_home_scripts(), *SCRIPT_DIRECTORIES)]
    for directory in looked:
        if all((directory / name).is_file() for name in ("rabbitmq-server", "rabbitmqctl")):
            return Source(directory, is_rootfs=False)
    raise BrokerError("no installed RabbitMQ; looked in " + ", ".join(str(each) for each in looked))


def _home_scripts() -> list[str]:
    home = os.environ.get("RABBITMQ_HOME")
    return [f"{home}/sbin"] if home else []


@functools.cache
def namespace() -> tuple[str, ...]:
    """Return the command that gives a process mounts of its own here, for root and for an ordinary user.

    Raises:
        BrokerError: this system does not allow it.
    """
    as_root = () if sys.platform == "win32" or os.geteuid() == 0 else ("--map-root-user",)
    refusals = []
    # Where "/" is no mount point (inside a chroot) its propagation cannot be changed. The broker's shell makes the
    # one tree that it mounts in private by itself, so nothing gets out that way either.
    for propagation in ((), ("--propagation", "unchanged")):
        command = ("unshare", "--mount", *as_root, *propagation)
        try:
            tried = subprocess.run([*command, "true"], capture_output=True, text=True, timeout=10, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BrokerError(f"a root directory needs the command unshare: {error}") from error
        if tried.returncode == 0:
            return command
        refusals.append(tried.stderr.strip() or f"unshare ended with {tried.returncode}")
    raise BrokerError(f"this system does not let this user run a root directory ({refusals[-1]})")
