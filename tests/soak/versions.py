"""The RabbitMQ versions the kit promises to run on, each unpacked from the Debian release that ships it."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "labkit" / "brokers" / "images" / "build.sh"
UNPACK_TIMEOUT = 600  # seconds; 25-35 measured


@dataclass(frozen=True, slots=True)
class Version:
    number: str
    suite: str

    @property
    def rootfs(self) -> Path:
        # Kept between runs and shared by all checkouts: three trees of 180 MB.
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        return cache / "labkit" / f"rabbitmq-{self.number}"

    @property
    def image(self) -> str:
        return f"labkit-rabbitmq:{self.number}-management"

    def unpack(self) -> Path:
        """Make the root directory; at once when it is there and current."""
        self.rootfs.parent.mkdir(parents=True, exist_ok=True)
        self._build("--rootfs", str(self.rootfs))
        return self.rootfs

    def build_image(self) -> str:
        self._build()
        return self.image

    def _build(self, *arguments: str) -> None:
        command = [SCRIPT, "--suites", self.suite, "--tag", self.image, *arguments]
        subprocess.run(command, check=True, timeout=UNPACK_TIMEOUT, capture_output=True)


VERSIONS = (Version("3.10", "bookworm"), Version("4.0", "trixie"), Version("4.3", "forky"))


def why_not() -> str:
    """Why no version can be unpacked here; empty if it can."""
    if os.name != "posix" or os.geteuid() != 0 or not shutil.which("apt-get"):
        return "unpacking RabbitMQ versions takes root on Debian"
    return ""
