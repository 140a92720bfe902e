"""Looks at a pool, one row each: as text, and as a picture. Pure: the same looks give the same bytes.

A row has a place in the order and no time, so two runs that went the same way look the same. No colour
carries a meaning alone: full, framed, dashed and empty differ in shape.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from labkit.wire.svg import RULE, colour, label, picture, shortened

WIDTH: Final = 840  # what JupyterLab shows beside its file list on a screen of 1280
TOP: Final = 44
ROW: Final = 30
NAME_X: Final = 12
PLACES_X: Final = 290
LINE_X: Final = 540
SAID_X: Final = 828
LONGEST_LABEL: Final = 38  # characters that fit left of the places
PITCH: Final = 24  # pixels from one place to the next, while ten of them fit
MOST_IN_LINE: Final = 5  # circles that fit; the rest is counted
MOST_LOOKS: Final = 24  # what fits on a screen; the earlier ones are counted
IN_USE, IDLE, OPENING, WAITING, FREE = map(colour, ("blue", "green", "amber", "red", "grey"))
NOTHING: Final = "nobody has looked yet"
KEY: Final = "full: in use · framed: idle · dashed: being opened · point: a free place · circle: a caller who waits"


@dataclass(frozen=True, slots=True)
class Look:
    """A pool at one moment.

    Attributes:
        label: What had happened, in the words of who looked.
        in_use: Entries that are lent.
        idle: Entries that are ready.
        opening: Entries that are being made.
        waiting: Callers in the line.
        places: Entries there may be at most; None: not known.
    """

    label: str
    in_use: int = 0
    idle: int = 0
    opening: int = 0
    waiting: int = 0
    places: int | None = None

    @property
    def size(self) -> int:
        """Places taken."""
        return self.in_use + self.idle + self.opening

    @property
    def said(self) -> str:
        """The numbers as words: ``3 in use, 0 idle, 5 waiting``."""
        opening = f", {self.opening} opening" if self.opening else ""
        return f"{self.in_use} in use, {self.idle} idle{opening}, {self.waiting} waiting"


class PoolHistory:
    """Looks at a pool in their order. ``print`` it, or let Jupyter draw it. Immutable, so any thread may use it.

    Args:
        looks: The looks, oldest first; of more than ``MOST_LOOKS`` the last ones are shown.
    """

    def __init__(self, looks: Iterable[Look]) -> None:
        self.looks = tuple(looks)
        self._shown = self.looks[-MOST_LOOKS:]

    def __str__(self) -> str:
        if not self.looks:
            return NOTHING
        labels = [_one_line(look.label) for look in self._shown]
        width = max(map(len, labels))
        lines = [f"{'':<{width}}  in use  idle  waiting"]
        lines += [
            f"{name:<{width}}  {look.in_use:>6}  {look.idle:>4}  {look.waiting:>7}"
            + (f"  ({look.opening} being opened)" if look.opening else "")
            for name, look in zip(labels, self._shown, strict=True)
        ]
        return "\n".join([*self._earlier(), *lines])

    __repr__ = __str__

    def svg(self) -> str:
        """Return the picture; the same looks give the same bytes."""
        y = TOP
        body: list[str] = []
        for text in self._earlier() or ([] if self.looks else [NOTHING]):
            body.append(label(NAME_X, y + 18, text))
            y += ROW
        for look in self._shown:
            body += _row(look, y + ROW // 2)
            y += ROW
        height = y + 30
        parts = [
            label(NAME_X, 24, "what had happened, time ↓", bold=True),
            label(PLACES_X, 24, _places(self._shown), bold=True),
            label(LINE_X, 24, "the line", bold=True),
            f'<line x1="{NAME_X}" y1="34" x2="{SAID_X}" y2="34" stroke="{RULE}"/>',
            *body,
            label(NAME_X, height - 10, KEY, size=11),
        ]
        return picture(WIDTH, height, parts, title=self._title(), description=str(self))

    def _repr_html_(self) -> str:
        return self.svg()

    def _title(self) -> str:
        if not self.looks:
            return f"Pool gauge: {NOTHING}"
        return f"Pool gauge: {len(self.looks)} look{'' if len(self.looks) == 1 else 's'}, last: {self.looks[-1].said}"

    def _earlier(self) -> list[str]:
        left_out = len(self.looks) - len(self._shown)
        return [f"after {left_out} earlier look{'' if left_out == 1 else 's'}"] if left_out else []


def _places(looks: Sequence[Look]) -> str:
    counts = sorted({look.places for look in looks if look.places is not None})
    return f"places (at most {' or '.join(map(str, counts))})" if counts else "places"


def _row(look: Look, y: int) -> list[str]:
    parts = [label(NAME_X, y + 5, shortened(_one_line(look.label), LONGEST_LABEL))]
    kinds = [IN_USE] * look.in_use + [IDLE] * look.idle + [OPENING] * look.opening
    kinds += [FREE] * ((look.places or 0) - look.size)
    pitch = min(float(PITCH), (LINE_X - PLACES_X - 10) / max(1, len(kinds)))
    for number, kind in enumerate(kinds):
        parts.append(_place(kind, PLACES_X + number * pitch, y, max(1.0, min(18.0, pitch - 3))))
    shown = min(look.waiting, MOST_IN_LINE)
    parts += [f'<circle cx="{LINE_X + 7 + number * 17}" cy="{y}" r="6" fill="{WAITING}"/>' for number in range(shown)]
    if look.waiting > shown:
        parts.append(label(LINE_X + shown * 17 + 2, y + 5, f"+{look.waiting - shown}"))
    parts.append(label(SAID_X, y + 5, look.said, anchor="end", size=11))
    return parts


def _place(kind: str, x: float, y: int, side: float) -> str:
    top = y - side / 2
    if kind == FREE:
        return f'<circle cx="{x + side / 2:g}" cy="{y}" r="2" fill="{FREE}"/>'
    full = kind == IN_USE
    dashes = ' stroke-dasharray="3 2"' if kind == OPENING else ""
    return (
        f'<rect x="{x:g}" y="{top:g}" width="{side:g}" height="{side:g}" fill="{kind if full else "none"}" '
        f'stroke="{kind}" stroke-width="2"{dashes}/>'
    )


def _one_line(text: str) -> str:
    return " ".join(text.split())
