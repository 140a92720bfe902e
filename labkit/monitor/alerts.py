"""What is wrong now: each thing raised once and cleared once. No I/O, no threads; the time is an argument."""

import enum
import time
from dataclasses import dataclass, field


class AlertKind(enum.Enum):
    """What a monitor warns of."""

    LOST = "connection lost"
    BAD_STATE = "bad protocol state"
    BLOCKED = "blocked"
    LAG = "lag"
    LEAK = "leak"
    CERTIFICATE = "certificate"
    POOL_EXHAUSTED = "pool exhausted"

    def __repr__(self) -> str:
        return f"AlertKind.{self.name}"


@dataclass(frozen=True, slots=True)
class Alert:
    """One thing that is wrong now. ``repr`` shows what is the same on every run.

    Attributes:
        kind: What it is.
        connection: The connection's name; None: it has none, or it is not about one.
        text: What was seen, in words.
        since: Seconds since the epoch.
    """

    kind: AlertKind
    connection: str | None = field(default=None, repr=False)
    text: str = field(default="", repr=False)
    since: float = field(default_factory=time.time, repr=False, compare=False)


Key = tuple[AlertKind, object]  # what is wrong, and with which connection or pool


class AlertBoard:
    """The alerts of now. For one thread; :attr:`now` may be read by any."""

    def __init__(self) -> None:
        self._alerts: dict[Key, Alert] = {}
        self.now: tuple[Alert, ...] = ()

    def put(self, kind: AlertKind, about: object, is_wrong: bool, text: str = "", name: str | None = None) -> bool:
        """Take note of whether that is wrong with *about*; return whether it was raised, or cleared, just now."""
        key = (kind, about)
        if is_wrong == (key in self._alerts):
            return False
        if is_wrong:
            self._alerts[key] = Alert(kind, name, text)
        else:
            del self._alerts[key]
        self.now = tuple(self._alerts.values())
        return True

    def find(self, kind: AlertKind, about: object) -> Alert | None:
        """Return that alert; None: all is well."""
        return self._alerts.get((kind, about))

    def about(self) -> set[object]:
        """Return what there are alerts about."""
        return {about for _, about in self._alerts}
