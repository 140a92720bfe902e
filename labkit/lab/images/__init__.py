"""An image, or a root directory, of RabbitMQ from Debian packages alone: where no container registry can be reached."""

import os
import subprocess
import sys
from pathlib import Path

from labkit.errors import BrokerError, ConfigurationError
from labkit.lab import home as homes
from labkit.lab.brokers.sources import default_rootfs

SCRIPT = Path(__file__).with_name("build.sh")
TIMEOUT = 900.0  # seconds; 25 on a good line
SUITES = ("forky", "sid", "trixie", "bookworm")  # RabbitMQ 4.3, 4.3, 4.0, 3.10


def build(*, rootfs: bool = False, suite: str | None = None, force: bool = False) -> str:
    """Build the image (or the project's root directory) unless a current one is there; progress goes to stderr.

    Args:
        rootfs: Make the root directory that needs no Docker.
        suite: A Debian suite; None means the newest that works.
        force: Build even if a current one is there.

    Returns:
        The image's tag, or the root directory's path.

    Raises:
        ConfigurationError: *suite* is none that has a RabbitMQ for this.
        BrokerError: it could not be built; the script's own words are on stderr.
    """
    if suite is not None and suite not in SUITES:
        raise ConfigurationError(f"suite: must be one of {', '.join(SUITES)}, not {suite!r}")
    if sys.platform != "linux":
        raise BrokerError(f"the image is built from Debian packages on a Debian machine, not on {sys.platform}")
    command = ["bash", str(SCRIPT)]
    if rootfs:
        command += ["--rootfs", str(_shared_place(default_rootfs()))]
    if suite is not None:
        command += ["--suites", suite]
    if force:
        command.append("--force")
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BrokerError(f"{SCRIPT.name} did not end: {error}") from error
    if done.returncode:
        raise BrokerError(f"{SCRIPT.name} ended with code {done.returncode}; what it said is above")
    return done.stdout.strip().splitlines()[-1]


def _shared_place(rootfs: Path) -> Path:
    """Return *rootfs* after making its parent, which stays the project owner's also when root builds."""
    parent = homes.private_directory(rootfs.parent)
    if sys.platform != "win32" and os.geteuid() == 0:
        owner = homes.project().stat()
        os.chown(parent, owner.st_uid, owner.st_gid)
    return parent / rootfs.name
