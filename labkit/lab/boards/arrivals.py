"""Draw how many clients arrive in each second, one row of bars a herd. Pure: the same times give the same bytes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Final

from labkit.errors import ConfigurationError
from labkit.wire.svg import GREY, colour, label, picture

MOST_SLOTS: Final = 40  # what fits beside each other; later arrivals are counted in one last bar
LONGEST_BAR: Final = 40  # characters in the text twin

WIDTH: Final = 840  # what JupyterLab shows beside its file list on a screen of 1280
LEFT, RIGHT, TOP = 34, 16, 12
HEADING: Final = 30
BARS: Final = 110  # height of the highest bar
FOOT: Final = 48
BAR = colour("blue")


class Arrivals:
    """When the clients of one or more herds arrived, counted by slots of time. ``print`` it, or let Jupyter draw it.

    Immutable, so any thread may use it. All rows have the same scale.

    Args:
        herds: For each herd its name and the seconds at which its clients arrived; 0 or later, in any order.
        slot: Width of a bar, in seconds.

    Raises:
        ConfigurationError: there is no herd, a time is no number of seconds, or the slot is not above 0.
    """

    def __init__(self, herds: Mapping[str, Iterable[float]], *, slot: float = 1.0) -> None:
        if not 0 < slot < math.inf:
            raise ConfigurationError(f"Arrivals.slot: {slot!r} is not allowed; allowed: seconds, more than 0")
        if not herds:
            raise ConfigurationError("Arrivals.herds: empty is not allowed; allowed: at least one name with its times")
        self._slot = slot
        self._herds = {name: _counted(name, times, slot) for name, times in herds.items()}

    @property
    def busiest(self) -> dict[str, int]:
        """How many arrived in the fullest slot, by herd."""
        return {name: max(counts, default=0) for name, counts in self._herds.items()}

    @property
    def clients(self) -> dict[str, int]:
        """How many arrived at all, by herd."""
        return {name: sum(counts) for name, counts in self._herds.items()}

    def __str__(self) -> str:
        lines = []
        for name, counts in self._herds.items():
            lines.append(f"{name}: {self._summary(name)}")
            for index, (count, bar) in enumerate(zip(counts, self._bars(counts, LONGEST_BAR), strict=True)):
                lines.append(f"{self._label(index):>7} s {count:>4} {'#' * bar}".rstrip())
        return "\n".join(lines)

    __repr__ = __str__

    def svg(self) -> str:
        """Return the bars as an SVG; the same times give the same bytes."""
        row = HEADING + BARS + FOOT
        height = TOP + row * len(self._herds) + 4
        parts: list[str] = []
        for index, name in enumerate(self._herds):
            parts.extend(self._row(TOP + row * index, name))
        return picture(WIDTH, height, parts, title=self._title(), description=str(self))

    def _repr_html_(self) -> str:
        return self.svg()

    def _row(self, top: int, name: str) -> list[str]:
        counts = self._herds[name]
        step = (WIDTH - LEFT - RIGHT) // max(1, self._slots())
        floor = top + HEADING + BARS
        parts = [label(12, top + 16, f"{name}: {self._summary(name)}", bold=True)]
        for index, (count, bar) in enumerate(zip(counts, self._bars(counts, BARS - 18), strict=True)):
            if count:
                x, y = LEFT + step * index, floor - bar
                parts.append(f'<rect x="{x + 1}" y="{y}" width="{step - 2}" height="{bar}" fill="{BAR}"/>')
                parts.append(label(x + step // 2, y - 4, str(count), anchor="middle", size=11))
        parts.append(
            f'<line x1="{LEFT}" y1="{floor}" x2="{LEFT + step * self._slots()}" y2="{floor}" stroke="{GREY}"/>'
        )
        middle = floor - BARS // 2
        parts += [
            f'<g transform="rotate(-90 20 {middle})">{label(20, middle, "clients", anchor="middle", size=11)}</g>',
            label(LEFT, floor + 32, f"time in seconds; a bar counts who arrives within {self._slot:g} s", size=11),
        ]
        every = max(1, math.ceil(self._slots() / 20))
        marks = range(0, self._slots(), every)
        parts += [label(LEFT + step * index + 2, floor + 14, f"{self._label(index)} s", size=11) for index in marks]
        return parts

    def _bars(self, counts: list[int], longest: int) -> list[int]:
        """Lengths on one scale for all herds; whoever came is at least a dot."""
        most = max(self.busiest.values()) or 1
        return [0 if count == 0 else max(1, round(count * longest / most)) for count in counts]

    def _slots(self) -> int:
        return max(len(counts) for counts in self._herds.values())

    def _label(self, index: int) -> str:
        """Where the slot begins; the last one that can be drawn holds all later ones too."""
        return f"{index * self._slot:g}{'+' if index == MOST_SLOTS - 1 else ''}"

    def _summary(self, name: str) -> str:
        clients, busiest = self.clients[name], self.busiest[name]
        return f"{clients} client{'' if clients == 1 else 's'}, at most {busiest} within {self._slot:g} s"

    def _title(self) -> str:
        return "Arrivals by time: " + ", ".join(self._herds)  # each row has its own heading, with the numbers


def _counted(name: str, times: Iterable[float], slot: float) -> list[int]:
    counts: list[int] = []
    for time in times:
        if not 0 <= time < math.inf:
            raise ConfigurationError(f"Arrivals: {time!r} in {name!r} is not allowed; allowed: seconds, 0 or more")
        index = min(int(time / slot), MOST_SLOTS - 1)
        counts.extend([0] * (index + 1 - len(counts)))
        counts[index] += 1
    return counts
