"""Keep docs/measured.md: one table a heading, between two marker comments, rewritten by the run that measured it.

A table that is not on the page yet gets its heading and its place at the end.
"""

import platform
import re
from collections.abc import Sequence
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "measured.md"


def write_table(name: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Replace the table called *name*, or add it; the rest of the page stays as it is."""
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(str(value) for value in row) + " |" for row in rows]
    machine = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    block = f"<!-- {name} -->\n" + "\n".join(lines) + f"\n\nMeasured on {machine}.\n<!-- /{name} -->"
    page = PAGE.read_text()
    pattern = re.compile(rf"<!-- {re.escape(name)} -->.*?<!-- /{re.escape(name)} -->", re.DOTALL)
    if pattern.search(page):
        PAGE.write_text(pattern.sub(lambda _: block, page))
    else:
        PAGE.write_text(f"{page.rstrip()}\n\n## {name.capitalize()}\n\n{block}\n")
