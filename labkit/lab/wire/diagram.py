"""Draw a conversation as an SVG sequence diagram. Pure: the same rows give the same bytes.

Written by hand rather than by a drawing library: nbval compares it octet by octet, and an HTML export keeps it.
Colours have a contrast of at least 4.5 on the white they are drawn on (WCAG 1.4.3), and none carries a meaning alone:
a direction is also an arrow, a loss is also a dashed line and a cross.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from xml.sax.saxutils import escape

from labkit.lab.wire.faults import Direction

Line = tuple[str, Direction | None, str, str, bool, int, int | None]
"""Arrow as text, direction, label, fields, passed, link, channel."""

WIDTH: Final = 900
TOP: Final = 44
ROW: Final = 30
CLIENT_X, BROKER_X = 110, 370
FIELDS_X: Final = 386
LONGEST_FIELDS: Final = 74  # characters that fit beside the broker's line
UPSTREAM, DOWNSTREAM, LOST, PROXY, TEXT = "#1f5fa8", "#1b6e3c", "#b00020", "#5b3a8c", "#222222"
LIFELINE: Final = "#8a8a8a"


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
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"',
        f' style="width:100%;max-width:{WIDTH}px"',
        ' role="img" font-family="sans-serif" font-size="13">',
        f"<title>{_xml(title)}</title>",
        f"<desc>{_xml(description)}</desc>",
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
    ]
    for x, name in ((CLIENT_X, "client"), (BROKER_X, "broker")):
        parts.append(_label(x, 20, name, TEXT, "middle", bold=True))
        parts.append(f'<line x1="{x}" y1="28" x2="{x}" y2="{height - 12}" stroke="{LIFELINE}"/>')
    y = TOP
    for index, line in enumerate(lines):
        if gap is not None and index == gap[0]:
            y += ROW
            parts.append(_label((CLIENT_X + BROKER_X) // 2, y, f"{gap[1]} more rows", TEXT, "middle"))
        y += ROW
        parts.extend(_row(y, line, with_link=with_link))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _row(y: int, line: Line, *, with_link: bool) -> list[str]:
    _, direction, label, fields, passed, link, channel = line
    middle = (CLIENT_X + BROKER_X) // 2
    side = f"link {link}" if with_link else ""
    if channel is not None:
        side = f"{side} ch {channel}".strip()
    parts = [_label(CLIENT_X - 12, y + 4, side, TEXT, "end", size=11)] if side else []
    if direction is None:
        parts.append(
            f'<rect x="{CLIENT_X - 6}" y="{y - 12}" width="{BROKER_X - CLIENT_X + 12}" height="20" '
            f'fill="#f3eefa" stroke="{PROXY}"/>'
        )
        parts.append(_label(middle, y + 3, _short(label, 36), PROXY, "middle", bold=True))
        return parts
    colour = LOST if not passed else UPSTREAM if direction == "upstream" else DOWNSTREAM
    start, end, step = (CLIENT_X, BROKER_X, 1) if direction == "upstream" else (BROKER_X, CLIENT_X, -1)
    parts.append(_label(middle, y - 5, _short(label, 32), colour, "middle", bold=True))
    if passed:
        parts.append(
            f'<line x1="{start}" y1="{y}" x2="{end - 8 * step}" y2="{y}" stroke="{colour}" stroke-width="1.5"/>'
        )
        parts.append(f'<polygon points="{end},{y} {end - 9 * step},{y - 4} {end - 9 * step},{y + 4}" fill="{colour}"/>')
    else:
        parts.append(
            f'<line x1="{start}" y1="{y}" x2="{middle}" y2="{y}" stroke="{colour}" stroke-width="1.5" '
            'stroke-dasharray="5 4"/>'
        )
        parts.append(
            f'<path d="M{middle - 5} {y - 5}L{middle + 5} {y + 5}M{middle - 5} {y + 5}L{middle + 5} {y - 5}" '
            f'stroke="{colour}" stroke-width="2"/>'
        )
    if fields:
        parts.append(_label(FIELDS_X, y + 4, _short(fields, LONGEST_FIELDS), TEXT, "start", size=12))
    return parts


def _label(x: int, y: int, text: str, colour: str, anchor: str, *, bold: bool = False, size: int = 0) -> str:
    weight = ' font-weight="bold"' if bold else ""
    smaller = f' font-size="{size}"' if size else ""
    return f'<text x="{x}" y="{y}" fill="{colour}" text-anchor="{anchor}"{weight}{smaller}>{_xml(text)}</text>'


def _short(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _xml(text: str) -> str:
    return escape(_printable(text))


def _printable(text: str) -> str:
    """Replace what XML cannot hold at all, such as a NUL in a password."""
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)
