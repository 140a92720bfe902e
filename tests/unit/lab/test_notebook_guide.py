"""docs/notebooks.md tells authors about every rule there is, and about no other."""

from __future__ import annotations

import re
from pathlib import Path

from labkit.lab.notebook_file import CARD_ROWS
from labkit.lab.notebook_rules import RULES
from labkit.lab.pytest_plugin import SAFE_DIST

GUIDE = (Path(__file__).parents[3] / "docs" / "notebooks.md").read_text(encoding="utf-8")


def test_every_rule_is_explained_to_authors() -> None:
    table = GUIDE.partition("## The rules")[2].partition("What no rule can see")[0]
    first_columns = [row.split("|")[1] for row in table.splitlines() if row.startswith("|")]
    explained = {name for column in first_columns for name in re.findall(r"`([a-z_]+)`", column)}

    assert explained == {rule.__name__ for rule in RULES}


def test_the_card_in_the_guide_has_every_row() -> None:
    labels = re.findall(r"^\| \*\*(.+?)\*\* \|", GUIDE, re.MULTILINE)

    assert [label.lower() for label in labels] == list(CARD_ROWS)


def test_the_guide_names_the_ways_to_run_in_parallel_that_are_allowed() -> None:
    assert all(f"`{name}`" in GUIDE for name in SAFE_DIST - {"no"})
