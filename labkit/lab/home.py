"""Where the bench keeps its things: one private directory a project. Knows no broker."""

import contextlib
import errno
import os
import shutil
import tempfile
from pathlib import Path

from labkit.errors import BrokerError

PACKAGE = Path(__file__).resolve().parents[1]
PRIVATE = 0o700  # passwords and an Erlang cookie lie inside
# RabbitMQ raises its disk alarm, and so blocks every publisher, below 50 MB.
SPACE_NEEDED = 100 * 1024 * 1024  # bytes


def project() -> Path:
    """Return the checkout that labkit runs from, or the current directory where there is none.

    A checkout is recognised by the compose file beside the package.
    """
    checkout = PACKAGE.parent
    return checkout if (checkout / "docker-compose.yml").is_file() else Path.cwd()


def bench() -> Path:
    """Return the learner's bench directory. It may not exist yet: see :func:`private_directory`."""
    return project() / ".lab"


def private_directory(path: Path) -> Path:
    """Make *path* (and its parents) if missing, for this user's eyes only, and return it resolved.

    Raises:
        BrokerError: it cannot be made or written; the text names the path and the reason.
    """
    try:
        path.mkdir(mode=PRIVATE, parents=True, exist_ok=True)
        if os.name != "nt":
            path.chmod(PRIVATE)
        probe = path / f".write-test-{os.getpid()}"
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        raise unwritable(path, error) from error
    return path.resolve()


def replace_file(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Write *content* to *path*, whole or not at all; who may read it is settled before anything is in it.

    Raises:
        BrokerError: its directory cannot be written.
    """
    temporary = ""
    try:
        # mkstemp makes it readable to this user alone.
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
        with os.fdopen(descriptor, "wb") as file:
            if os.name != "nt":
                Path(temporary).chmod(mode)
            file.write(content)
        os.replace(temporary, path)  # noqa: PTH105 - the atomic one, spelled out
    except OSError as error:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise unwritable(path.parent, error) from error


def require_space(path: Path, needed: int = SPACE_NEEDED) -> None:
    """Check that the file system of *path* has *needed* bytes free.

    Raises:
        BrokerError: it has not. A broker there would start with its disk alarm on, or not at all.
    """
    free = shutil.disk_usage(path).free
    if free < needed:
        raise BrokerError(
            f"{path} has {free // 2**20} MB free and a broker needs {needed // 2**20} MB there: "
            "make room, or move the project to a larger disk"
        )


def unwritable(path: Path, error: OSError) -> BrokerError:
    """Return the error to raise when *path* could not be written because of *error*."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return BrokerError(f"no space left at {path}: make room, or move the project to a larger disk")
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return BrokerError(
            f"cannot write {path} ({error.strerror}): the bench keeps its broker there; "
            "make it writable, or run from a directory that is yours"
        )
    return BrokerError(f"cannot use {path} as the bench's directory: {error}")
