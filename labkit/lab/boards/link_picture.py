"""The link between a client and the broker, and where the faults of the panel break it. Pure."""

from collections.abc import Sequence
from typing import Final

from labkit.wire.svg import GREY, GROUND, colour, label, picture, shortened

WIDTH: Final = 640
HEIGHT: Final = 104
BOX_WIDTH, BOX_HEIGHT = 80, 64
CLIENT_X, PROXY_X, BROKER_X = 12, 280, 548
TOP: Final = 18
WAYS: Final = {"upstream": TOP + 16, "downstream": TOP + 48}
"""The y of each way: what goes to the broker above, what comes from it below."""
LONGEST_NAMES: Final = 28  # characters that fit between two boxes
PASSES, BREAKS = colour("green"), colour("red")


def draw(on: Sequence[str], direction: str) -> str:
    """Return the picture: an arrow for each way, and on each that is broken a cross and the names of the faults.

    Args:
        on: The names of the faults that are on.
        direction: What they break: ``both``, ``upstream`` or ``downstream``; ``Refuse`` breaks both.
    """
    broken = {way: [name for name in on if direction in ("both", way) or name == "Refuse"] for way in WAYS}
    body = [part for way, names in broken.items() for part in _way(way, names)]
    for x, name in ((CLIENT_X, "client"), (PROXY_X, "proxy"), (BROKER_X, "broker")):
        body.append(
            f'<rect x="{x}" y="{TOP}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="5" fill="{GROUND}" '
            f'stroke="{GREY}" stroke-width="1.5"/>'
        )
        body.append(label(x + BOX_WIDTH / 2, TOP + BOX_HEIGHT / 2 + 5, name, anchor="middle", bold=True))
    said = "\n".join(f"{way}: {', '.join(names) or 'everything passes'}" for way, names in broken.items())
    return picture(WIDTH, HEIGHT, body, title=_title(broken), description=said)


def _title(broken: dict[str, list[str]]) -> str:
    ways = [way for way, names in broken.items() if names]
    if not ways:
        return "Nothing is broken on the link"
    return f"The link is broken {'in both directions' if len(ways) == len(WAYS) else f'{ways[0]} only'}"


def _way(way: str, faults: list[str]) -> list[str]:
    """Return one way in two halves. The cross is on the half behind the proxy, where what is broken would arrive."""
    y, to_broker = WAYS[way], way == "upstream"
    halves = [(CLIENT_X + BOX_WIDTH, PROXY_X), (PROXY_X + BOX_WIDTH, BROKER_X)]
    (start, end), (from_proxy, to_end) = halves if to_broker else halves[::-1]
    paint = BREAKS if faults else PASSES
    name_y = y - 8 if to_broker else y + 18
    parts = [
        *_arrow(start, end, y, PASSES, to_broker=to_broker),
        *_arrow(from_proxy, to_end, y, paint, to_broker=to_broker),
        label((start + end) / 2, name_y, way, anchor="middle", size=11),
    ]
    if faults:
        x = (from_proxy + to_end) / 2
        parts += [
            f'<path d="M{x - 7:g} {y - 7}l14 14m-14 0l14 -14" stroke="{BREAKS}" stroke-width="3"/>',
            label(x, name_y, shortened(", ".join(faults), LONGEST_NAMES), BREAKS, anchor="middle", bold=True, size=11),
        ]
    return parts


def _arrow(left: int, right: int, y: int, paint: str, *, to_broker: bool) -> list[str]:
    tip, step = (right, 1) if to_broker else (left, -1)
    return [
        f'<line x1="{left}" y1="{y}" x2="{right}" y2="{y}" stroke="{paint}" stroke-width="2"/>',
        f'<polygon points="{tip},{y} {tip - 9 * step},{y - 5} {tip - 9 * step},{y + 5}" fill="{paint}"/>',
    ]
