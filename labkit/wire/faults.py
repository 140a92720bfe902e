"""What can go wrong on a link, as plain data. No I/O: ``shaping`` plans, ``link`` acts.

The words are Toxiproxy's. Durations are seconds, sizes are bytes. ``upstream`` is towards the broker,
``downstream`` towards the client.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass
from typing import Final, Literal, get_args

from labkit.errors import ConfigurationError
from labkit.values import refused
from labkit.wire.frames import FRAME_NAMES

Direction = Literal["upstream", "downstream"]
Directions = Literal["upstream", "downstream", "both"]

LONGEST: Final = 3600.0  # seconds; a lab that waits longer has a unit wrong


@dataclass(frozen=True, slots=True)
class Fault:
    """One way a link can misbehave; subclasses say how."""


@dataclass(frozen=True, slots=True)
class Latency(Fault):
    """Every byte arrives *delay* seconds later, give or take *jitter*; order is kept. A round trip pays it twice."""

    delay: float
    jitter: float = 0.0

    def __post_init__(self) -> None:
        _number("Latency.delay", self.delay, at_most=LONGEST)
        _number("Latency.jitter", self.jitter, at_most=LONGEST)
        if self.jitter > self.delay:
            raise refused("Latency.jitter", self.jitter, f"at most the delay, {self.delay}")


@dataclass(frozen=True, slots=True)
class Bandwidth(Fault):
    """At most *bytes_per_second* pass; senders feel it as back-pressure, nothing is lost."""

    bytes_per_second: float

    def __post_init__(self) -> None:
        _number("Bandwidth.bytes_per_second", self.bytes_per_second, above=0)


@dataclass(frozen=True, slots=True)
class Slicer(Fault):
    """Bytes arrive in pieces of *size*, give or take *variation*, *delay* seconds apart: frames come in parts."""

    size: int = 1
    variation: int = 0
    delay: float = 0.0

    def __post_init__(self) -> None:
        check_whole("Slicer.size", self.size, at_least=1)
        check_whole("Slicer.variation", self.variation, at_least=0)
        _number("Slicer.delay", self.delay, at_most=LONGEST)
        if self.variation >= self.size:
            raise refused("Slicer.variation", self.variation, f"less than the size, {self.size}")


@dataclass(frozen=True, slots=True)
class Stall(Fault):
    """Nothing passes, not even the end of the connection, and nobody is told: a cable pulled out.

    What was held back passes when the block ends. In one direction only, it makes a half-open link.
    """


@dataclass(frozen=True, slots=True)
class ResetPeer(Fault):
    """The client gets a TCP reset, the broker an end of file; with ``direction="upstream"`` the other way round.

    What was said before reaches the side that is closed politely. The side that is reset may lose what it had not
    read yet: a reset does not wait in line (RabbitMQ does lose it).
    """


@dataclass(frozen=True, slots=True)
class LimitData(Fault):
    """After *limit* more bytes the link is closed, politely (end of file). ``LimitData(0)`` closes where it begins."""

    limit: int

    def __post_init__(self) -> None:
        check_whole("LimitData.limit", self.limit, at_least=0)


@dataclass(frozen=True, slots=True)
class SlowClose(Fault):
    """When one side closes, the other learns of it *delay* seconds later."""

    delay: float

    def __post_init__(self) -> None:
        _number("SlowClose.delay", self.delay, at_most=LONGEST)


@dataclass(frozen=True, slots=True)
class Refuse(Fault):
    """Nobody listens: new links are refused by the system, open ones are left alone. It has no direction."""


@dataclass(frozen=True, slots=True)
class DropHeartbeats(Fault):
    """Heartbeat frames vanish, everything else passes: a peer that looks dead while nothing else is said."""


Timed = (Latency, Bandwidth, Slicer)
"""Faults that change when bytes arrive, and nothing else."""
Ending = (ResetPeer, LimitData)
"""Faults that end the link."""


@dataclass(frozen=True, slots=True)
class Start:
    """Where on a link a fault begins: at once, after some bytes, or just before a frame of a given name.

    Bytes and frames are counted for each link and direction, from the moment the ``with`` block begins (a link opened
    later counts from its own first byte). The *count*-th frame of that name is the first thing **not** to pass
    unharmed: ``at_frame="Basic.Publish", count=3`` lets two publishes through.
    """

    after_bytes: int | None = None
    at_frame: str | None = None
    count: int = 1

    def __post_init__(self) -> None:
        if self.after_bytes is not None:
            check_whole("after_bytes", self.after_bytes, at_least=0)
            if self.at_frame is not None:
                raise ConfigurationError(f"at_frame: not together with after_bytes (got {self.at_frame!r})")
        check_whole("count", self.count, at_least=1)
        if self.at_frame is None:
            if self.count != 1:
                raise ConfigurationError(f"count: only together with at_frame (got {self.count})")
        elif self.at_frame not in FRAME_NAMES:
            near = difflib.get_close_matches(str(self.at_frame), FRAME_NAMES, n=1)
            meant = f"; did you mean {near[0]!r}?" if near else ""
            raise refused("at_frame", self.at_frame, f"the name of a frame such as 'Basic.Publish'{meant}")

    @property
    def at_once(self) -> bool:
        """Whether there is nothing to wait for."""
        return self.after_bytes is None and self.at_frame is None


def check_fault(faults: tuple[Fault, ...], direction: str, start: Start, *, readable: bool) -> tuple[Direction, ...]:
    """Return the directions meant, or say what cannot be. *readable*: whether the proxy can see frames."""
    if not faults:
        raise refused("faults", None, "at least one, such as ResetPeer()")
    for fault in faults:
        if not isinstance(fault, Fault):
            raise refused("faults", fault, "labkit.wire's, such as ResetPeer()")
        if isinstance(fault, Refuse) and not (direction == "both" and start.at_once):
            raise ConfigurationError("Refuse: concerns new links, so it has no direction, after_bytes or at_frame")
    if start.at_frame is not None and not readable:
        raise ConfigurationError(f"at_frame: frames cannot be read here (TLS, or the tap is off): {start.at_frame!r}")
    if not readable and any(isinstance(fault, DropHeartbeats) for fault in faults):
        raise ConfigurationError("DropHeartbeats: frames cannot be read here (TLS, or the tap is off)")
    if direction == "both":
        return ("upstream", "downstream")
    for known in get_args(Direction):
        if direction == known:
            return (known,)
    raise refused("direction", direction, "'upstream', 'downstream' or 'both'")


def check_seconds(field: str, value: object) -> None:
    """Raise ConfigurationError unless *value* is a number of seconds, 0 to an hour."""
    _number(field, value, at_most=LONGEST)


def _number(field: str, value: object, *, above: float | None = None, at_most: float = math.inf) -> None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not good or not isinstance(value, int | float) or value > at_most or value < 0 or value == above:
        least = "more than 0" if above is not None else "at least 0"
        most = "" if math.isinf(at_most) else f" and at most {at_most:g}"
        raise refused(field, value, f"a number, {least}{most}")


def check_whole(field: str, value: object, *, at_least: int) -> None:
    """Raise ConfigurationError unless *value* is a whole number, *at_least* or more."""
    if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
        raise refused(field, value, f"a whole number, at least {at_least}")
