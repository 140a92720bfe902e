"""The atlas to look things up in: as text, in a notebook, as a page of its own, as Markdown. No broker, no widget."""

import html
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from labkit.lab.atlas.rows import Row, recorded
from labkit.lab.atlas.seen import NOTHING, Seen

TITLE = "The atlas of failures"
HOW = (
    "Each row was really run: plain Pika, a real RabbitMQ, a line that breaks, or a server that lies. "
    "What is said of it is what lab.explain(error) and labkit explain say."
)
COLUMNS = ("what happens", "what the program gets", "who closed", "why", "what to do")
NOTHING_TO_DO = "nothing: the call returns"
WIDTH = 100  # columns of the text


class Atlas(Sequence[Row]):
    """Rows of the atlas, in order. ``repr()`` is a text, a notebook shows a table; :meth:`find` makes it shorter.

    Args:
        rows: Those to hold; None: all that come with labkit.
    """

    def __init__(self, rows: Iterable[Row] | None = None) -> None:
        self._rows = list(recorded() if rows is None else rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:  # type: ignore[override]
        return self._rows[index]

    def find(self, words: str) -> "Atlas":
        """The rows that hold each of the *words*, in any case: "heartbeat", "404 queue", "StreamLostError"."""
        wanted = words.lower().split()
        return Atlas(row for row in self._rows if all(word in _all_of(row).lower() for word in wanted))

    def __repr__(self) -> str:
        if not self._rows:
            return "no such row"
        lines = []
        for group, rows in self._groups():
            lines += ["", group.upper()]
            lines += [line for row in rows for line in _text(row)]
        return "\n".join(lines[1:])

    def _repr_html_(self) -> str:
        groups = "".join(
            f"<details open><summary>{html.escape(_heading(group))} ({len(rows)})</summary>{_table(rows)}</details>"
            for group, rows in self._groups()
        )
        return f'<div class="labkit-atlas">{groups or "no such row"}</div>'

    def as_page(self) -> str:
        """A page that needs nothing else: a filter box, both themes, no request to anywhere."""
        body = "".join(
            f"<section><h2>{html.escape(_heading(group))}</h2>{_table(rows)}</section>"
            for group, rows in self._groups()
        )
        return PAGE.format(title=TITLE, how=html.escape(HOW), count=len(self), body=body)

    def as_markdown(self) -> str:
        """The same for ``docs/atlas.md``."""
        lines = [f"# {TITLE}", "", HOW, ""]
        lines += [
            "`labkit atlas WORDS` looks something up, `labkit atlas --html FILE` writes a page with a filter box, and",
            "`labkit atlas --run` runs all of it at your desk (two minutes) and says what differs. In a notebook:",
            '`lab.atlas`, `lab.atlas.find("heartbeat")`. In brackets: what a retry would meet. This page is generated.',
        ]
        lines += [
            "",
            "The rows are of brokers that run as processes. In containers all of them were run, too, on 3.10, 4.0 and",
            "4.3 (`LABKIT_BROKER=compose pytest tests/broker/test_atlas.py`): none differs. A node's name is left out.",
        ]
        differ = [row.when for row in self._rows if len(row.seen) > 1]
        if differ:
            lines += ["", "RabbitMQ's versions differ where:", "", *(f"- {_escaped(each)}" for each in differ)]
        for group, rows in self._groups():
            head = f"| {' | '.join(COLUMNS)} |"
            lines += ["", f"## {_heading(group)}", "", head, "| --- | --- | --- | --- | --- |"]
            lines += [
                _markdown(cells, seen) for row in rows for cells, (_, seen) in zip(_cells(row), row.seen, strict=True)
            ]
        return "\n".join(lines) + "\n"

    def _groups(self) -> Iterator[tuple[str, list[Row]]]:
        for group, rows in groupby(self._rows, key=lambda row: row.group):
            yield group, list(rows)


def _heading(group: str) -> str:
    return f"{group[0].upper()}{group[1:]}"


def _cells(row: Row) -> Iterator[tuple[str, str, str, str, str]]:
    """A line for each way in which it ended; more than one where the versions of RabbitMQ differ."""
    for versions, seen in row.seen:
        where = f" (RabbitMQ {', '.join(versions)})" if len(row.seen) > 1 else ""
        yield row.when + where, _raised(seen), _closed(seen), _why(seen), _to_do(seen)


def _raised(seen: Seen) -> str:
    return f"{seen.raised} with {seen.inside} inside" if seen.inside else seen.raised


def _closed(seen: Seen) -> str:
    return f"{seen.closed_by} ({seen.retry})" if seen.closed_by else ""


def _why(seen: Seen) -> str:
    return f"{seen.what}; it says: {seen.said}" if seen.said else seen.what


def _to_do(seen: Seen) -> str:
    if seen.raised == NOTHING:
        return NOTHING_TO_DO
    return f"{seen.advice}; notebook {seen.notebook}" if seen.notebook else seen.advice


def _all_of(row: Row) -> str:
    told = [" ".join((*cells, seen.diagnosis)) for cells, (_, seen) in zip(_cells(row), row.seen, strict=True)]
    return " ".join((row.group, row.name, *told))


def _text(row: Row) -> list[str]:
    lines = []
    for when, raised, closed, why, to_do in _cells(row):
        lines.append(f"- {when}")
        told = [f"-> {raised}" + (f"; closed by: {closed}" if closed else ""), why, f"what to do: {to_do}"]
        lines += [
            textwrap.fill(each, WIDTH, initial_indent="  ", subsequent_indent="     ", break_on_hyphens=False)
            for each in told
            if each
        ]
    return lines


def _table(rows: Iterable[Row]) -> str:
    head = "".join(f'<th scope="col" style="text-align: left">{name}</th>' for name in COLUMNS)
    lines = []
    for row in rows:
        for when, *rest in _cells(row):
            cells = "".join(f'<td style="text-align: left">{html.escape(each)}</td>' for each in rest)
            lines.append(f'<tr><th scope="row" style="text-align: left">{html.escape(when)}</th>{cells}</tr>')
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _markdown(cells: tuple[str, ...], seen: Seen) -> str:
    """A line of a table; names and the broker's words stand as code."""
    told = [_escaped(each) for each in cells]
    for each in filter(None, (seen.raised if seen.raised != NOTHING else "", seen.inside, seen.said)):
        column = 3 if each == seen.said else 1
        told[column] = told[column].replace(_escaped(each), f"`{each.replace('|', '&#124;')}`", 1)
    return f"| {' | '.join(told)} |"


def _escaped(cell: str) -> str:
    """Markdown's own characters, where somebody's words hold them."""
    text = html.escape(cell, quote=False)
    return "".join(f"\\{each}" if each in "|`*" else each for each in text)


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --line: #767676; --quiet: #f2f2f2; --text: #1a1a1a; --page: #ffffff; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --line: #8c8c8c; --quiet: #262626; --text: #e8e8e8; --page: #141414; }}
}}
body {{ color: var(--text); background: var(--page); font: 16px/1.5 system-ui, sans-serif; margin: 0 auto;
  max-width: 90rem; padding: 1rem; }}
.bar {{ background: var(--page); padding: .5rem 0; position: sticky; top: 0; }}
input {{ background: var(--page); border: 1px solid var(--line); color: inherit; font: inherit; max-width: 100%;
  padding: .4rem; width: 30rem; }}
input::placeholder {{ color: var(--line); opacity: 1; }}
input:focus-visible, .wide:focus-visible {{ outline: 3px solid #2f7fd1; outline-offset: 2px; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; width: 100%; }}
th, td {{ border-bottom: 1px solid var(--line); padding: .4rem .6rem; vertical-align: top; }}
thead th {{ background: var(--quiet); }}
tbody th {{ font-weight: 600; width: 22%; }}
[hidden] {{ display: none; }}
</style>
</head>
<body>
<main>
<h1>{title}</h1>
<p>{how}</p>
<div class="bar">
<label for="filter">Show the rows that hold these words:</label>
<input id="filter" type="search" autocomplete="off" placeholder="heartbeat, 404, StreamLostError ...">
<span id="count" role="status">{count} rows</span>
</div>
<div class="wide" tabindex="0" role="region" aria-label="the rows">
{body}
</div>
</main>
<script>
const box = document.getElementById("filter");
const rows = [...document.querySelectorAll("tbody tr")];
const groups = [...document.querySelectorAll("section")];
box.addEventListener("input", () => {{
  const words = box.value.toLowerCase().split(/\\s+/).filter(Boolean);
  for (const row of rows) {{
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
  }}
  for (const group of groups) group.hidden = !group.querySelector("tbody tr:not([hidden])");
  const shown = rows.filter((row) => !row.hidden).length;
  document.getElementById("count").textContent = shown + " of " + rows.length + " rows";
}});
</script>
</body>
</html>
"""
