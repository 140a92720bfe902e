"""What all pictures of the bench share: colours that follow JupyterLab's theme, a visible title, and text for XML.

Pure: the same content gives the same bytes. A picture goes into the page itself (``text/html``), because JupyterLab
shows ``image/svg+xml`` as an ``<img>``, which no colour of the page reaches.

Each colour has a contrast of at least 4.5 (WCAG 1.4.3) on the background of its theme, and none carries a meaning
alone. Outside JupyterLab, and in its light theme, the first one of each pair applies.
"""

from typing import Final
from xml.sax.saxutils import escape

PALETTE: Final = {
    "text": ("#222222", "#e6e6e6"),
    "grey": ("#5b5b5b", "#b0b0b0"),
    "blue": ("#1f5fa8", "#82b8f2"),
    "green": ("#1b6e3c", "#74cf94"),
    "amber": ("#8a4b00", "#f0b060"),
    "red": ("#b00020", "#ff8f98"),
    "violet": ("#5b3a8c", "#c3a8f0"),
    # Lines and grounds: nothing is written in these.
    "rule": ("#d8d8d8", "#484848"),
    "tint": ("#f3eefa", "#2c2440"),
    "ground": ("#ffffff", "#111111"),
}
"""Name: the colour in a light theme, the colour in a dark one."""
HEAD: Final = 26  # pixels that the title takes above what is drawn
_DARK: Final = "".join(f"--labkit-{name}:{dark};" for name, (_, dark) in PALETTE.items())
_STYLE: Final = f'<style>[data-jp-theme-light="false"] .labkit-picture{{{_DARK}}}</style>'


def colour(name: str) -> str:
    """Return the paint of that name, as an attribute of an SVG takes it."""
    return f"var(--labkit-{name}, {PALETTE[name][0]})"


TEXT, GREY, RULE, GROUND = colour("text"), colour("grey"), colour("rule"), colour("ground")


def picture(width: int, height: int, body: list[str], *, title: str, description: str) -> str:
    """Return the SVG: the title, visible, then *body* below it.

    Args:
        width: Of *body*, in pixels; the picture shrinks to the page, and grows no further.
        height: Of *body*.
        body: Elements, with y counted from below the title.
        title: What is shown, in one line.
        description: The same content as text, for a reader who does not see it.
    """
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height + HEAD}" class="labkit-picture"',
            f' style="width:100%;max-width:{width}px" role="img" font-family="sans-serif" font-size="13">',
            f"<title>{xml(title)}</title>",
            f"<desc>{xml(description)}</desc>",
            _STYLE,
            f'<text x="12" y="18" fill="{TEXT}" font-weight="bold" font-size="14">{xml(title)}</text>',
            f'<g transform="translate(0 {HEAD})">',
            *body,
            "</g>",
            "</svg>",
            "",
        ]
    )


def label(
    x: float, y: float, text: str, fill: str = TEXT, *, anchor: str = "start", bold: bool = False, size: int = 13
) -> str:
    """Return one line of text; *anchor* is ``start``, ``middle`` or ``end``."""
    weight = ' font-weight="bold"' if bold else ""
    smaller = "" if size == 13 else f' font-size="{size}"'
    return f'<text x="{x:g}" y="{y:g}" fill="{fill}" text-anchor="{anchor}"{weight}{smaller}>{xml(text)}</text>'


def shortened(text: str, longest: int) -> str:
    """Return *text*, cut to *longest* characters."""
    return text if len(text) <= longest else text[: longest - 1] + "…"


def xml(text: str) -> str:
    """Escape *text*, and replace what XML cannot hold at all: a name or a reason may be anybody's text."""
    return escape("".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text))
