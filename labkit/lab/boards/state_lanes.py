"""Draw states as lanes and events as marks between them, from top to bottom. Pure: the same rows give the same bytes.

Each lane is a state. A thick bar stands in the lane of the state the connection is in, an arrow leads to the next one,
and beside it stands the event that led there. Height says nothing about time: every event gets one row.
Colours have a contrast of at least 4.5 on white (WCAG 1.4.3) and none carries a meaning alone: a state is its lane.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from labkit.wire.svg import GROUND, RULE, TEXT, colour, label, picture, shortened

STATE_COLUMN: Final = 16  # characters of the text twin's first column
WIDTH: Final = 840  # what JupyterLab shows beside its file list on a screen of 1280
TOP: Final = 40
ROW: Final = 36
NAME_X: Final = 12
LONGEST_FACTS: Final = 58  # characters that fit left of the lanes
LANES: Final = {
    "NEW": 420,
    "CONNECTING": 480,
    "OPEN": 552,
    "WAITING": 614,
    "FAILED": 676,
    "CLOSING": 738,
    "CLOSED": 800,
}
"""The middle of each state's lane. What a healthy connection passes stands to the left."""
COLOURS: Final = {
    "NEW": colour("grey"),
    "CONNECTING": colour("blue"),
    "OPEN": colour("green"),
    "WAITING": colour("amber"),
    "FAILED": colour("red"),
    "CLOSING": colour("grey"),
    "CLOSED": colour("grey"),
}
BLOCKED: Final = colour("amber")
BAR: Final = 8  # width of a state's bar; a blocked one is framed


@dataclass(frozen=True, slots=True)
class Row:
    """One event: its name, its facts, the states it led through, and whether the connection is blocked after it."""

    name: str
    facts: str
    states: tuple[str, ...]
    blocked: bool
    moved: bool


@dataclass(frozen=True, slots=True)
class Lane:
    """One connection: an optional heading, the state it began in (empty: not known), its rows."""

    heading: str
    start: str
    blocked: bool
    earlier: str
    rows: tuple[Row, ...]


def draw(lanes: Sequence[Lane], *, title: str, description: str, above: Sequence[str] = ()) -> str:
    """Return the picture.

    Args:
        lanes: One a connection, from top to bottom.
        title: For a reader who does not see it: what this is.
        description: The same content as text.
        above: Lines of text before the first one.
    """
    y = TOP
    body: list[str] = []
    for text in above or ([] if lanes else [description]):
        y += 20
        body.append(label(NAME_X, y, text, TEXT))
    y += 12 if above else 0
    for lane in lanes:
        y = _lane(body, y, lane)
    height = y + 16
    parts = [
        label(NAME_X, 24, "what happened (time runs down)", TEXT),
        label((LANES["NEW"] + LANES["CLOSED"]) // 2, 8, "state of the connection", TEXT, anchor="middle", size=11),
        *(label(x, 24, name, COLOURS[name], anchor="middle", bold=True, size=10) for name, x in LANES.items()),
        *(f'<line x1="{x}" y1="32" x2="{x}" y2="{height - 8}" stroke="{RULE}"/>' for x in LANES.values()),
        *body,
    ]
    return picture(WIDTH, height, parts, title=title, description=description)


def _lane(body: list[str], y: int, lane: Lane) -> int:
    """Add one connection below *y*; return where it ends. Bars first, so that arrows and marks lie upon them."""
    for text, bold in ((lane.heading, True), (lane.earlier, False)):
        if text:
            body.append(label(NAME_X, y + 14, text, TEXT, bold=bold))
            y += 24
    state, blocked, since = lane.start, lane.blocked, y
    marks: list[str] = []
    for row in lane.rows:
        at = y + ROW // 2
        y += ROW
        marks += [label(NAME_X, at - 2, row.name, TEXT, bold=True)]
        if row.facts:
            marks.append(label(NAME_X, at + 12, shortened(row.facts, LONGEST_FACTS), TEXT, size=11))
        if row.moved:
            body += _bar(state, since, at, blocked=blocked)
            since = at
            for number, following in enumerate(row.states, start=1):
                marks += _arrow(state, following, at)
                state = following
                if number < len(row.states):
                    marks.append(_mark(state, at, moved=False))  # passed through
            blocked = row.blocked
        marks.append(_mark(state, at, moved=row.moved))
    body += _bar(state, since, y + 4, blocked=blocked)
    body += marks
    return y + 12


def _bar(state: str, top: int, bottom: int, *, blocked: bool) -> list[str]:
    x = LANES.get(state)
    if x is None:
        return []
    height = bottom - top
    parts = [f'<rect x="{x - BAR // 2}" y="{top}" width="{BAR}" height="{height}" fill="{COLOURS[state]}"/>']
    if blocked:
        parts.append(
            f'<rect x="{x - 9}" y="{top}" width="18" height="{height}" fill="none" stroke="{BLOCKED}" '
            'stroke-width="2" stroke-dasharray="4 3"/>'
        )
        parts.append(label(x + 14, top + height // 2 + 4, "blocked", BLOCKED, bold=True, size=10))
    return parts


def _arrow(start: str, end: str, y: int) -> list[str]:
    x1, x2 = LANES.get(start), LANES.get(end)
    if x1 is None or x2 is None or x1 == x2:
        return []
    step = 1 if x2 > x1 else -1
    tip = x2 - 7 * step
    return [
        f'<line x1="{x1}" y1="{y}" x2="{tip}" y2="{y}" stroke="{TEXT}" stroke-width="1.5"/>',
        f'<polygon points="{tip},{y} {tip - 8 * step},{y - 4} {tip - 8 * step},{y + 4}" fill="{TEXT}"/>',
    ]


def _mark(state: str, y: int, *, moved: bool) -> str:
    """Return a full circle where the event changed something, an empty one where it only happened."""
    x = LANES.get(state, LANES["NEW"])
    paint = COLOURS.get(state, TEXT)
    return f'<circle cx="{x}" cy="{y}" r="6" fill="{paint if moved else GROUND}" stroke="{paint}" stroke-width="2"/>'
