"""When is a silent link noticed? The window of each who looks, for a heartbeat: as text, and as a picture. Pure.

Silence is counted from the last byte that came. RabbitMQ looks once a heartbeat, and two looks without a byte are the
end; Pika looks every heartbeat + 5 s, and one look is; labkit looks once a second, and 2 x heartbeat is.

Reference: RabbitMQ, "Detecting Dead TCP Connections with Heartbeats"; Pika's ``heartbeat.py``; labkit's ``Watchdog``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from labkit.errors import ConfigurationError
from labkit.wire.svg import GREY, RULE, colour, label, picture

LONGEST: Final = 600  # seconds; who wants a longer one wants none
PIKA_ADDS: Final = 5.0  # seconds between a heartbeat and Pika's looks
LABKIT_LOOKS: Final = 1.0  # seconds between two looks of labkit's
FRAME: Final = 8  # octets of a heartbeat: header of 7, no payload, end mark
WIDTH, LEFT, RIGHT, ROW, TOP = 640, 190, 90, 34, 8
NEVER: Final = "heartbeat 0: nobody looks. A silent link is noticed by the next write at the earliest, or by nobody."


@dataclass(frozen=True, slots=True)
class DetectionWindow:
    """Who notices, and when: at *earliest* and at *latest*, in seconds after the last byte."""

    who: str
    earliest: float
    latest: float

    def __str__(self) -> str:
        return f"{self.who:<22} after {self.earliest:g} to {self.latest:g} s"


class HeartbeatWindows:
    """What a heartbeat means for a link that has gone silent. ``print`` it, or let Jupyter draw it. Immutable.

    Args:
        heartbeat: Seconds, as agreed with the broker; 0: none.

    Raises:
        ConfigurationError: it is no whole number of seconds from 0 to 600.
    """

    def __init__(self, heartbeat: int) -> None:
        if isinstance(heartbeat, bool) or not isinstance(heartbeat, int) or not 0 <= heartbeat <= LONGEST:
            allowed = f"whole seconds from 0 to {LONGEST}"
            raise ConfigurationError(
                f"heartbeat: {heartbeat!r} is not allowed; allowed: {allowed}", field="heartbeat", allowed=allowed
            )
        self.heartbeat = heartbeat

    @property
    def windows(self) -> tuple[DetectionWindow, ...]:
        """One for each who looks; none without a heartbeat."""
        beat = float(self.heartbeat)
        if not beat:
            return ()
        return (
            DetectionWindow("labkit's Connection", 2 * beat, 2 * beat + LABKIT_LOOKS),
            DetectionWindow("RabbitMQ", 2 * beat, 3 * beat),
            DetectionWindow("Pika's own timer", beat + PIKA_ADDS, 2 * (beat + PIKA_ADDS)),
        )

    @property
    def octets_an_hour(self) -> int:
        """What heartbeats cost an idle connection, both directions together: each side sends two in a heartbeat."""
        return round(2 * 3600 / (self.heartbeat / 2) * FRAME) if self.heartbeat else 0

    def __str__(self) -> str:
        if not self.heartbeat:
            return NEVER
        cost = f"an idle connection costs {self.octets_an_hour / 1000:,.1f} kB an hour, both directions together"
        return "\n".join([f"heartbeat {self.heartbeat} s: a silent link is noticed by", *map(str, self.windows), cost])

    __repr__ = __str__

    def svg(self) -> str:
        """Return the windows on one axis of time; the same heartbeat gives the same bytes."""
        windows = self.windows
        latest = max((each.latest for each in windows), default=1.0)
        height = TOP + ROW * max(1, len(windows)) + 30

        def x(seconds: float) -> float:
            return LEFT + (WIDTH - LEFT - RIGHT) * seconds / latest

        parts = [] if windows else [label(12, TOP + 20, NEVER, size=12)]
        for row, each in enumerate(windows):
            y = TOP + ROW * row
            start, end = x(each.earliest), x(each.latest)
            # Until it begins nobody can have noticed: dashes; then somewhere within the bar.
            dashes = f'y1="{y + 16}" y2="{y + 16}" stroke="{GREY}" stroke-dasharray="3 3"'
            size = f'y="{y + 8}" width="{max(3.0, end - start):.1f}" height="16"'
            parts += [
                label(12, y + 20, each.who),
                f'<line x1="{LEFT}" x2="{start:.1f}" {dashes}/>',
                f'<rect x="{start:.1f}" {size} fill="{colour("blue")}"/>',
                label(max(end, start + 3) + 6, y + 20, f"{each.earliest:g} to {each.latest:g} s", size=11),
            ]
        if windows:
            floor = TOP + ROW * len(windows)
            parts += [
                f'<line x1="{LEFT}" y1="{TOP}" x2="{LEFT}" y2="{floor}" stroke="{RULE}"/>',
                label(LEFT, floor + 18, "the last byte came", anchor="middle", size=11),
                label(x(latest), floor + 18, f"{latest:g} s later", anchor="middle", size=11),
            ]
        title = f"When a silent link is noticed, heartbeat {self.heartbeat} s"
        return picture(WIDTH, height, parts, title=title, description=str(self))

    def _repr_html_(self) -> str:
        return self.svg()
