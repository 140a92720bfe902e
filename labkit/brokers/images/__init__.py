"""An image, or a root directory, of RabbitMQ from Debian packages alone: where no container registry can be reached."""

import os
import subprocess
import sys
from pathlib import Path

from labkit.brokers import home as homes
from labkit.brokers.sources import default_rootfs
from labkit.errors import BrokerError, ConfigurationError

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
    """Return *rootfs* after making its parent; what root makes there belongs to who called sudo."""
    parent = rootfs.parent
    asked_for = os.environ.get("SUDO_UID", "")
    if sys.platform == "win32" or os.geteuid() != 0 or not asked_for.isdecimal():
        return homes.claim(parent) / rootfs.name
    is_new = not parent.exists()
    claimed = homes.claim(parent, owners=[int(asked_for)])
    if is_new:
        for path in (claimed, claimed / homes.MARK):
            os.chown(path, int(asked_for), -1)
    return claimed / rootfs.name
