"""Draw which connections a broker has, and how many channels each carries. Pure: the same state gives the same bytes.

What is drawn is what the broker answered, so a picture cannot show a connection that is not there. The broker's own
name of a connection holds a port, which differs from run to run; it is left out, and equal rows stand in a fixed order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, TypeVar

from labkit.brokers.interface import ConnectionInfo
from labkit.printable import printable
from labkit.wire.svg import GREY, GROUND, colour, label, picture, shortened

MOST_CONNECTIONS: Final = 30  # what fits on a screen; the rest is counted
MOST_CHANNELS: Final = 4  # boxes in a row; the rest is counted
LONGEST_NAME: Final = 26  # characters that fit into a box

Item = TypeVar("Item")

WIDTH: Final = 840  # what JupyterLab shows beside its file list on a screen of 1280
TOP: Final = 44
ROW: Final = 60
BOX: Final = 44
BROKER_X, BROKER_WIDTH = 12, 96
CONNECTION_X, CONNECTION_WIDTH = 148, 224
CHANNEL_X, CHANNEL_WIDTH, CHANNEL_STEP = 392, 68, 76
BROKER, CONNECTION, CHANNEL = colour("violet"), colour("blue"), colour("green")


class Architecture:
    """A tree: the broker, its connections, the channels of each. ``print`` it, or let Jupyter draw it.

    Immutable, so any thread may use it. It shows the moment at which *connections* were asked for; make another one to
    see the next.

    Args:
        connections: What ``lab.broker.connections()`` returned.
    """

    def __init__(self, connections: Iterable[ConnectionInfo]) -> None:
        self._connections = tuple(
            sorted(connections, key=lambda each: (each.virtual_host, each.client_name, each.channels, each.state))
        )

    @property
    def connections(self) -> int:
        """How many connections there are, drawn or counted."""
        return len(self._connections)

    @property
    def channels(self) -> int:
        """How many channels they carry together."""
        return sum(each.channels for each in self._connections)

    def __str__(self) -> str:
        shown = self._connections[:MOST_CONNECTIONS]
        branches = [(_heading(each), _boxes(each)) for each in shown]
        if len(shown) < len(self._connections):
            branches.append((_more(len(self._connections) - len(shown), "connection"), []))
        lines = ["broker"] if branches else ["broker, without a connection"]
        for last, (heading, boxes) in _marking_last(branches):
            lines.append(f"{'└── ' if last else '├── '}{heading}")
            for end, box in _marking_last(boxes):
                lines.append(f"{'    ' if last else '│   '}{'└── ' if end else '├── '}{box}")
        return printable("\n".join(lines), keep="\n")

    __repr__ = __str__

    def svg(self) -> str:
        """Return the tree as an SVG; the same state gives the same bytes."""
        shown = self._connections[:MOST_CONNECTIONS]
        left_out = len(self._connections) - len(shown)
        height = TOP + ROW * max(1, len(shown)) + (24 if left_out else 0) + 8
        parts = [
            label(CONNECTION_X, 24, "connections (one TCP link each)"),
            label(CHANNEL_X, 24, "channels inside them"),
            *_box(BROKER_X, TOP, BROKER_WIDTH, BROKER, "broker"),
        ]
        if not shown:
            parts.append(label(CONNECTION_X, TOP + 27, "none"))
        elif len(shown) > 1:
            trunk = (BROKER_X + BROKER_WIDTH + CONNECTION_X) // 2
            parts.append(_line(trunk, TOP + BOX // 2, trunk, TOP + ROW * (len(shown) - 1) + BOX // 2))
        for index, each in enumerate(shown):
            parts.extend(_row(TOP + ROW * index, each, first=index == 0))
        if left_out:
            parts.append(label(CONNECTION_X, TOP + ROW * len(shown) + 12, _more(left_out, "connection")))
        return picture(WIDTH, height, parts, title=self._title(), description=str(self))

    def _repr_html_(self) -> str:
        return self.svg()

    def _title(self) -> str:
        return (
            f"What the broker has now: {_count(self.connections, 'connection')} and {_count(self.channels, 'channel')}"
        )


def _row(y: int, connection: ConnectionInfo, *, first: bool) -> list[str]:
    middle = y + BOX // 2
    start = BROKER_X + BROKER_WIDTH
    parts = [_line(start if first else (start + CONNECTION_X) // 2, middle, CONNECTION_X, middle)]
    boxes = _boxes(connection)
    if boxes:
        parts.append(
            _line(CONNECTION_X + CONNECTION_WIDTH, middle, CHANNEL_X + CHANNEL_STEP * (len(boxes) - 1), middle)
        )
    name, where = _name(connection), f"{connection.state}, {connection.virtual_host}"
    parts.extend(
        _box(
            CONNECTION_X, y, CONNECTION_WIDTH, CONNECTION, shortened(name, LONGEST_NAME), shortened(where, LONGEST_NAME)
        )
    )
    for index, box in enumerate(boxes):
        x = CHANNEL_X + CHANNEL_STEP * index
        if index < MOST_CHANNELS:
            parts.extend(_box(x, y + 8, CHANNEL_WIDTH, CHANNEL, box, height=BOX - 16))
        else:
            parts.append(label(x + 2, middle + 4, box))
    return parts


def _box(x: int, y: int, width: int, colour: str, text: str, below: str = "", *, height: int = BOX) -> list[str]:
    middle = x + width // 2
    parts = [
        (
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="5" fill="{GROUND}" stroke="{colour}" '
            'stroke-width="1.5"/>'
        ),
        label(middle, y + height // 2 + (-3 if below else 4), text, colour, anchor="middle", bold=True),
    ]
    if below:
        parts.append(label(middle, y + height // 2 + 14, below, anchor="middle", size=11))
    return parts


def _line(x1: int, y1: int, x2: int, y2: int) -> str:
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{GREY}"/>'


def _heading(connection: ConnectionInfo) -> str:
    return f"{_name(connection)} ({connection.state}, {connection.virtual_host})"


def _name(connection: ConnectionInfo) -> str:
    # Somebody else's text: a line break in it would add a branch to the tree that is not there.
    return " ".join(connection.client_name.split()) or "without a name"


def _boxes(connection: ConnectionInfo) -> list[str]:
    boxes = ["channel"] * min(connection.channels, MOST_CHANNELS)
    if connection.channels > MOST_CHANNELS:
        boxes.append(_more(connection.channels - MOST_CHANNELS, "channel"))
    return boxes


def _more(count: int, noun: str) -> str:
    return f"and {_count(count, f'more {noun}')}"


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _marking_last(items: Sequence[Item]) -> Iterable[tuple[bool, Item]]:
    return ((index == len(items) - 1, item) for index, item in enumerate(items))
