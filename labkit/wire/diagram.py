"""Draw a conversation as an SVG sequence diagram. Pure: the same rows give the same bytes.

Written by hand rather than by a drawing library: nbval compares it octet by octet, and an HTML export keeps it.
No colour carries a meaning alone: a direction is also an arrow, a loss is also a dashed line and a cross.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from labkit.wire.faults import Direction
from labkit.wire.svg import GREY, colour, label, picture, shortened

Line = tuple[str, Direction | None, str, str, bool, int, int | None]
"""Arrow as text, direction, label, fields, passed, link, channel."""

WIDTH: Final = 900
TOP: Final = 44
ROW: Final = 30
CLIENT_X, BROKER_X = 110, 370
FIELDS_X: Final = 386
LONGEST_FIELDS: Final = 74  # characters that fit beside the broker's line
UPSTREAM, DOWNSTREAM, LOST, PROXY = map(colour, ("blue", "green", "red", "violet"))


def draw(lines: Sequence[Line], *, gap: tuple[int, int] | None, title: str, description: str) -> str:
    """Return the picture.

    Args:
        lines: From top to bottom.
        gap: Before which line something was left out, and how many lines; None if nothing was.
        title: For a reader who does not see it: what this is.
        description: The same content as text.
    """
    with_link = len({line[5] for line in lines}) > 1
    height = TOP + ROW * (len(lines) + (gap is not None)) + 24
    parts = [label(12, 20, "time ↓", size=11), label(FIELDS_X + 24, 20, "fields", size=11)]
    for x, name in ((CLIENT_X, "client"), (BROKER_X, "broker")):
        parts.append(label(x, 20, name, anchor="middle", bold=True))
        parts.append(f'<line x1="{x}" y1="28" x2="{x}" y2="{height - 12}" stroke="{GREY}"/>')
    y = TOP
    for index, line in enumerate(lines):
        if gap is not None and index == gap[0]:
            y += ROW
            parts.append(label((CLIENT_X + BROKER_X) // 2, y, f"{gap[1]} more rows", anchor="middle"))
        y += ROW
        parts.extend(_row(y, line, with_link=with_link))
    return picture(WIDTH, height, parts, title=title, description=description)


def _row(y: int, line: Line, *, with_link: bool) -> list[str]:
    _, direction, name, fields, passed, link, channel = line
    middle = (CLIENT_X + BROKER_X) // 2
    side = f"link {link}" if with_link else ""
    if channel is not None:
        side = f"{side} ch {channel}".strip()
    parts = [label(CLIENT_X - 12, y + 4, side, anchor="end", size=11)] if side else []
    if direction is None:
        parts.append(
            f'<rect x="{CLIENT_X - 6}" y="{y - 12}" width="{BROKER_X - CLIENT_X + 12}" height="20" '
            f'fill="{colour("tint")}" stroke="{PROXY}"/>'
        )
        parts.append(label(middle, y + 3, shortened(name, 36), PROXY, anchor="middle", bold=True))
        return parts
    paint = LOST if not passed else UPSTREAM if direction == "upstream" else DOWNSTREAM
    start, end, step = (CLIENT_X, BROKER_X, 1) if direction == "upstream" else (BROKER_X, CLIENT_X, -1)
    parts.append(label(middle, y - 5, shortened(name, 32), paint, anchor="middle", bold=True))
    if passed:
        parts.append(
            f'<line x1="{start}" y1="{y}" x2="{end - 8 * step}" y2="{y}" stroke="{paint}" stroke-width="1.5"/>'
        )
        parts.append(f'<polygon points="{end},{y} {end - 9 * step},{y - 4} {end - 9 * step},{y + 4}" fill="{paint}"/>')
    else:
        parts.append(
            f'<line x1="{start}" y1="{y}" x2="{middle}" y2="{y}" stroke="{paint}" stroke-width="1.5" '
            'stroke-dasharray="5 4"/>'
        )
        parts.append(
            f'<path d="M{middle - 5} {y - 5}L{middle + 5} {y + 5}M{middle - 5} {y + 5}L{middle + 5} {y - 5}" '
            f'stroke="{paint}" stroke-width="2"/>'
        )
    if fields:
        parts.append(label(FIELDS_X, y + 4, shortened(fields, LONGEST_FIELDS), size=12))
    return parts
