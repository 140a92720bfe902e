"""What a bench remembers about its broker: one JSON file, replaced atomically, under a lock."""

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import filelock

from labkit.brokers.home import LOCK_FILE, check_safe, read_private, replace_file, unwritable
from labkit.errors import BrokerError

STATE_FILE = "broker.json"
FORMAT = 2  # of the state file; in the first one a broker had a guest
NODE = re.compile(r"(labkit-[0-9a-f]{8}@localhost)?")
LOCK_TIMEOUT = 240.0  # seconds: whoever holds it may be pulling an image (120 s) and booting (60 s)


@dataclass(frozen=True, slots=True)
class Request:
    """What a new broker is asked to be. Of a port that is busy, or 0, another free one is taken."""

    amqp_port: int = 0
    amqps_port: int = 0
    management_port: int = 0
    own: bool = False  # ends with the process that made it
    demand_certificate: bool = False  # its TLS listener refuses clients without one


@dataclass(frozen=True, slots=True)
class Record:
    """One broker as its bench remembers it; enough for another process to drive it.

    ``wanted`` tells a broker that was stopped on purpose ("stopped") from one that died ("running").
    ``identity`` is when the process began, so that a reused process id is not taken for the broker. No program is named
    here: where RabbitMQ is, labkit finds out by itself.
    """

    backend: str
    amqp_port: int
    management_port: int
    username: str
    password: str
    wanted: str = "running"
    own: bool = False
    amqps_port: int = 0  # 0: no TLS listener; whoever started it had no such thing yet
    demand_certificate: bool = False
    # local
    rootfs: bool = False
    node: str = ""
    dist_port: int = 0
    epmd_port: int = 0
    pid: int = 0
    identity: str = ""
    # compose
    image: str = ""
    format: int = FORMAT

    def __post_init__(self) -> None:
        """Refuse what no labkit of this format has written.

        Raises:
            ValueError: a value is of another type, or impossible.
        """
        wrong = [each.name for each in fields(self) if type(getattr(self, each.name)) is not each.type]
        if wrong or self.format != FORMAT or not NODE.fullmatch(self.node):
            raise ValueError(f"not a record of format {FORMAT}: {', '.join(wrong) or 'format, node'}")

    def __repr__(self) -> str:
        """Show what it is; no port, process id or password (notebooks compare what they print)."""
        return f"Record(backend={self.backend!r}, wanted={self.wanted!r})"

    @property
    def ports(self) -> tuple[int, ...]:
        """Every port that is the broker's own; 0 stands for one that it does not have."""
        return (self.amqp_port, self.amqps_port, self.management_port, self.dist_port, self.epmd_port)

    def replace(self, **changes: Any) -> "Record":
        """Return a copy with *changes*."""
        return replace(self, **changes)


class StateFile:
    """The state file of one bench directory. Processes may share it; writers hold :meth:`lock`."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.path = home / STATE_FILE
        # One lock object a path: two StateFiles of one bench must not wait for each other in one thread.
        self._lock = filelock.FileLock(home / LOCK_FILE, is_singleton=True)

    def read(self) -> Record | None:
        """Return what is recorded, or None. A file that makes no sense counts as none.

        Raises:
            BrokerError: the file or its directory is another user's, or open to one.
        """
        try:
            data = json.loads(read_private(self.path))
            known = {field.name for field in fields(Record)}
            return Record(**{"format": 1, **{key: value for key, value in data.items() if key in known}})
        except (ValueError, TypeError, AttributeError, RecursionError, OSError):
            # None there; half a file (a full disk), another version's: the broker behind it cannot be driven any
            # more, so the bench begins again.
            return None

    def write(self, record: Record) -> Record:
        """Replace what is recorded, whole or not at all, and return *record*.

        Raises:
            BrokerError: the directory cannot be written.
        """
        replace_file(self.path, json.dumps(asdict(record), indent=1).encode())
        return record

    def remove(self) -> None:
        """Forget the broker."""
        self.path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def lock(self, timeout: float = LOCK_TIMEOUT) -> Iterator[None]:
        """Hold the bench against other processes and threads; re-entrant within one thread.

        Raises:
            BrokerError: another process kept it for *timeout* seconds.
        """
        try:
            check_safe(self.home)
            held = self._lock.acquire(timeout=timeout)
        except filelock.Timeout as error:
            raise BrokerError(
                f"another process has been starting or stopping the broker of {self.home} for {timeout:g} s; "
                "wait for it, or end it and try again"
            ) from error
        except OSError as error:
            raise unwritable(self.home, error) from error
        with held:  # not inside the try: what fails while the bench is held is not the lock's failure
            yield
