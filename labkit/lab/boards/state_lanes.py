"""Draw states as lanes and events as marks between them, from top to bottom. Pure: the same rows give the same bytes.

Each lane is a state. A thick bar stands in the lane of the state the connection is in, an arrow leads to the next one,
and beside it stands the event that led there. Height says nothing about time: every event gets one row.
Colours have a contrast of at least 4.5 on white (WCAG 1.4.3) and none carries a meaning alone: a state is its lane.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from xml.sax.saxutils import escape

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
    "NEW": "#5b5b5b",
    "CONNECTING": "#1f5fa8",
    "OPEN": "#1b6e3c",
    "WAITING": "#8a4b00",
    "FAILED": "#b00020",
    "CLOSING": "#5b5b5b",
    "CLOSED": "#5b5b5b",
}
TEXT, RULE, BLOCKED = "#222222", "#d8d8d8", "#8a4b00"
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


def draw(lanes: Sequence[Lane], *, title: str, description: str, below: Sequence[str] = ()) -> str:
    """Return the picture.

    Args:
        lanes: One a connection, from top to bottom.
        title: For a reader who does not see it: what this is.
        description: The same content as text.
        below: Lines of text under the last one.
    """
    y = TOP
    body: list[str] = []
    for lane in lanes:
        y = _lane(body, y, lane)
    for text in below or ([] if lanes else [description]):
        y += 20
        body.append(_text(NAME_X, y, text, TEXT))
    height = y + 16
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"',
            f' style="width:100%;max-width:{WIDTH}px" role="img" font-family="sans-serif" font-size="13">',
            f"<title>{_xml(title)}</title>",
            f"<desc>{_xml(description)}</desc>",
            f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
            _text(NAME_X, 24, "what happened", TEXT),
            *(_text(x, 24, name, COLOURS[name], anchor="middle", bold=True, size=10) for name, x in LANES.items()),
            *(f'<line x1="{x}" y1="32" x2="{x}" y2="{height - 8}" stroke="{RULE}"/>' for x in LANES.values()),
            *body,
            "</svg>",
            "",
        ]
    )


def _lane(body: list[str], y: int, lane: Lane) -> int:
    """Add one connection below *y*; return where it ends. Bars first, so that arrows and marks lie upon them."""
    for text, bold in ((lane.heading, True), (lane.earlier, False)):
        if text:
            body.append(_text(NAME_X, y + 14, text, TEXT, bold=bold))
            y += 24
    state, blocked, since = lane.start, lane.blocked, y
    marks: list[str] = []
    for row in lane.rows:
        at = y + ROW // 2
        y += ROW
        marks += [_text(NAME_X, at - 2, row.name, TEXT, bold=True)]
        if row.facts:
            marks.append(_text(NAME_X, at + 12, _short(row.facts), TEXT, size=11))
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
        parts.append(_text(x + 14, top + height // 2 + 4, "blocked", BLOCKED, bold=True, size=10))
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
    colour = COLOURS.get(state, TEXT)
    return (
        f'<circle cx="{x}" cy="{y}" r="6" fill="{colour if moved else "#ffffff"}" stroke="{colour}" stroke-width="2"/>'
    )


def _text(x: int, y: int, text: str, colour: str, *, anchor: str = "start", bold: bool = False, size: int = 13) -> str:
    weight = ' font-weight="bold"' if bold else ""
    smaller = "" if size == 13 else f' font-size="{size}"'
    return f'<text x="{x}" y="{y}" fill="{colour}" text-anchor="{anchor}"{weight}{smaller}>{_xml(text)}</text>'


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_FACTS else text[: LONGEST_FACTS - 1] + "…"


def _xml(text: str) -> str:
    """Escape *text*, and replace what XML cannot hold at all: a reason is the broker's own text."""
    return escape("".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text))
