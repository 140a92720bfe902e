"""Keep docs/measured.md: one table a heading, between two marker comments, rewritten by the run that measured it.

A table that is not on the page yet gets its heading and its place at the end.
"""

import platform
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "measured.md"


def commit() -> str:
    """The commit of this checkout, in short."""
    command = ["git", "-C", str(PAGE.parent), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False).stdout.strip() or "unknown"


def write_table(
    name: str, columns: Sequence[str], rows: Sequence[Sequence[object]], *, beside_others: bool = False
) -> None:
    """Replace the table called *name*, or add it; the rest of the page stays as it is.

    With *beside_others*, each row says its commit, and rows whose first value is none of the new ones stay: a part may
    be measured by a run of its own.
    """
    page = PAGE.read_text()
    found = re.search(rf"<!-- {re.escape(name)} -->.*?<!-- /{re.escape(name)} -->", page, re.DOTALL)
    lines = ["| " + " | ".join(str(value) for value in row) + " |" for row in rows]
    where = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    if beside_others:
        columns = [*columns, "commit"]
        lines = [f"{line} {commit()} |" for line in lines]
        kept = found.group().splitlines()[3:] if found else []  # below the marker and the head of the table
        new = {str(row[0]) for row in rows}
        lines[:0] = [
            line for line in kept if line.startswith("| ") and line.split(" | ")[0].removeprefix("| ") not in new
        ]
    else:
        where += f", at commit {commit()}"
    head = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    block = "\n".join([f"<!-- {name} -->", *head, *lines, "", f"Measured on {where}.", f"<!-- /{name} -->"])
    if found:
        PAGE.write_text(page[: found.start()] + block + page[found.end() :])
    else:
        PAGE.write_text(f"{page.rstrip()}\n\n## {name.capitalize()}\n\n{block}\n")
