"""Where a RabbitMQ without Docker comes from on this machine. Starts nothing but a probe."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from labkit.errors import BrokerError
from labkit.lab.home import project

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
    return project() / ".lab" / "rootfs"


def from_rootfs(path: Path) -> Source:
    """Return *path* as a source.

    Raises:
        BrokerError: it is no root directory of ours, or this user may not run one.
    """
    if sys.platform != "linux":
        raise BrokerError(f"a root directory runs on Linux only, not on {sys.platform}")
    # What labkit mounts over, and what it runs: /opt/rabbitmq is a link that only works inside.
    if not (path / "labkit").is_dir() or not (path / "usr" / "lib" / "rabbitmq").is_dir():
        raise BrokerError(f"{path} is no root directory with RabbitMQ: `labkit image --rootfs` makes one")
    refused = _namespace_refused()
    if refused:
        raise BrokerError(f"this system does not let an ordinary user run a root directory ({refused})")
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


def _namespace_refused() -> str:
    """Return why this user cannot have a mount namespace, or ""."""
    as_root = [] if sys.platform == "win32" or os.geteuid() == 0 else ["--map-root-user"]
    try:
        tried = subprocess.run(
            ["unshare", "--mount", *as_root, "true"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"unshare: {error}"
    return tried.stderr.strip() or f"unshare ended with {tried.returncode}" if tried.returncode else ""
