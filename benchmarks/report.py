"""What the benchmarks share: a table in docs/measured.md, and bars as an SVG that needs no drawing library."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
OURS, THEIRS = "#1f77b4", "#aaaaaa"
WIDEST = 400  # pixels


def write_block(name: str, lines: list[str]) -> None:
    """Put *lines* between the markers ``<!-- name -->`` and ``<!-- /name -->`` of docs/measured.md."""
    page = DOCS / "measured.md"
    block = f"<!-- {name} -->\n" + "\n".join(lines) + f"\n<!-- /{name} -->"
    text, count = re.subn(
        rf"<!-- {re.escape(name)} -->.*?<!-- /{re.escape(name)} -->", lambda _: block, page.read_text(), flags=re.DOTALL
    )
    if count != 1:
        raise LookupError(f"{page.name} has no markers for {name!r}")
    page.write_text(text)


def bars(groups: Mapping[str, Mapping[str, float]], show: Callable[[float], str]) -> str:
    """Return an SVG with a heading for each group and a bar for each value in it, all to one scale.

    Args:
        groups: Values by name, by heading. A name that begins with "labkit" stands out.
        show: Says a value in words.
    """
    longest = max(max(each.values()) for each in groups.values())
    names = 8 * max(len(name) for each in groups.values() for name in each)
    rows, y = [], 20
    for heading, values in groups.items():
        rows.append(f'<text x="10" y="{y + 12}" font-weight="bold">{heading}</text>')
        for name, value in values.items():
            y += 20
            width = max(1, round(WIDEST * value / longest))
            color = OURS if name.startswith("labkit") else THEIRS
            rows.append(f'<text x="10" y="{y + 12}">{name}</text>')
            rows.append(f'<rect x="{names + 20}" y="{y}" width="{width}" height="15" fill="{color}"/>')
            rows.append(f'<text x="{names + 25 + width}" y="{y + 12}">{show(value)}</text>')
        y += 30
    style = 'font-family="sans-serif" font-size="12"'
    width = names + WIDEST + 130
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{y}" {style}>'
    return "\n".join([head, f'<rect width="{width}" height="{y}" fill="white"/>', *rows, "</svg>\n"])
