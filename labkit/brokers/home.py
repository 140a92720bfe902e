"""Where the bench keeps its things: one private directory a project. Knows no broker.

Labkit acts on what lies there: it ends processes, logs in and trusts an authority. So a directory or a file of another
user, or one that another user may write, is refused by name, as ssh refuses such a ``~/.ssh``.
"""

import contextlib
import errno
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path

from labkit.errors import BrokerError

PACKAGE = Path(__file__).resolve().parents[1]
PRIVATE = 0o700  # passwords and an Erlang cookie lie inside
# RabbitMQ raises its disk alarm, and so blocks every publisher, below 50 MB.
SPACE_NEEDED = 100 * 1024 * 1024  # bytes
WRITE = stat.S_IWGRP | stat.S_IWOTH  # what other users may not do to what labkit acts on,
ANYTHING = stat.S_IRWXG | stat.S_IRWXO  # and to what holds a secret
# What tells a bench from any other directory, and keeps its secrets out of a commit.
MARK = ".gitignore"
MARKED = b"# A bench of labkit: passwords and keys are in here.\n*\n"
LOCK_FILE = "broker.lock"  # what a bench without the mark has, if a broker was ever started there
ROOT = 0  # who may write everything anyway


def is_checkout() -> bool:
    """Return whether labkit runs from a checkout, which has the compose file beside the package."""
    return (PACKAGE.parent / "docker-compose.yml").is_file()


def project() -> Path:
    """Return the checkout that labkit runs from, or the current directory where there is none."""
    return PACKAGE.parent if is_checkout() else Path.cwd()


def bench() -> Path:
    """Return the learner's bench directory. It may not exist yet: see :func:`claim`."""
    return project() / ".lab"


def is_bench(path: Path) -> bool:
    """Return whether *path* is a directory that labkit has made for a bench, or was given for one when it was empty."""
    if _is_checkouts(path):
        return path.is_dir()
    with contextlib.suppress(OSError):
        return (path / MARK).read_bytes().startswith(MARKED.splitlines()[0])
    return (path / LOCK_FILE).is_file()


def claim(path: Path, *, owners: Collection[int] = ()) -> Path:
    """Make *path* a bench's directory and return it resolved.

    Args:
        path: Made if missing. One that is there keeps its mode, unless it is the checkout's own ``.lab``.
        owners: Users whose directory it may be, beside this one and root.

    Raises:
        BrokerError: as for :func:`private_directory`; or it holds something, and that is not a bench's; or other users
            may look inside. A bench that came with somebody's archive or repository is refused by that, too.
    """
    place = private_directory(path, owners=owners)
    if not is_bench(place) and any(place.iterdir()):
        raise BrokerError(f"{path} is not empty and not a bench of labkit: it is left alone; name another directory")
    try:
        if _is_checkouts(place) and sys.platform != "win32":
            place.chmod(PRIVATE)
        check_safe(place, forbidden=ANYTHING, owners=owners)
        if not (place / MARK).exists():
            replace_file(place / MARK, MARKED)
    except OSError as error:
        raise unwritable(path, error) from error
    return place


def private_directory(path: Path, *, owners: Collection[int] = ()) -> Path:
    """Make *path* (and its parents) if missing, for this user's eyes only, and return it resolved.

    One that is there keeps its mode: somebody else may have chosen it.

    Raises:
        BrokerError: it cannot be made or written, or is not safe from others; the text names the path and the reason.
    """
    try:
        for each in reversed((path, *path.parents)):
            if not each.is_dir():
                each.mkdir(mode=PRIVATE, exist_ok=True)
        check_safe(path, owners=owners)
        probe = path / f".write-test-{os.getpid()}"
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        raise unwritable(path, error) from error
    return path.resolve()


def check_safe(
    path: Path, info: os.stat_result | None = None, *, forbidden: int = WRITE, owners: Collection[int] = ()
) -> None:
    """Check that what lies at *path* is this user's or root's alone.

    Args:
        path: A file or a directory; where a link leads counts, not the link.
        info: What the system says of it, from an open file; None asks now.
        forbidden: What nobody else may do to it, as mode bits.
        owners: Users who are trusted, too.

    Raises:
        BrokerError: another user owns it, or may do something that is forbidden.
        OSError: it cannot be looked at.
    """
    if sys.platform == "win32":  # modes say nothing there
        return
    info = path.stat() if info is None else info
    if info.st_uid not in {os.geteuid(), ROOT, *owners}:
        raise BrokerError(
            f"{path} belongs to another user (number {info.st_uid}), and labkit does what it finds there: "
            "it is left alone; run from a directory of your own"
        )
    if info.st_mode & forbidden:
        kept = stat.S_IMODE(info.st_mode) & ~forbidden
        raise BrokerError(
            f"{path} is open to other users (mode {stat.S_IMODE(info.st_mode):04o}), and labkit does what it finds "
            f"there: look inside, then `chmod {kept:o} {path}`, or remove it"
        )


def read_private(path: Path) -> bytes:
    """Return what is in *path*, a file of a bench that holds a secret.

    Raises:
        BrokerError: the file is another user's or open to one, or its directory may be written by one.
        FileNotFoundError: there is none.
        OSError: it cannot be read.
    """
    check_safe(path.parent)
    # The open file is asked, not the name: what the name means could change in between.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    with os.fdopen(descriptor, "rb") as file:
        check_safe(path, os.fstat(file.fileno()), forbidden=ANYTHING)
        return file.read()


def _is_checkouts(path: Path) -> bool:
    """Return whether *path* is the checkout's own ``.lab``: whoever made it, the place is labkit's."""
    return is_checkout() and path.resolve() == project().resolve() / ".lab"


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
