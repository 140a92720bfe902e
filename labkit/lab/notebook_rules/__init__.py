"""What every reference notebook must be, checked without a kernel: nbval alone lets too much through.

A rule is a function from a :class:`Sheet` to sentences; no sentence means the rule holds. nbval compares nothing for a
cell that was never run, ignores an unknown magic, and lets a tagged cell stop raising: these rules close such gaps, and
hold the notebooks to one anatomy. :func:`problems` runs them all.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from labkit.lab.notebook_file import read
from labkit.lab.notebook_rules import anatomy, code, exercises, outputs, prose, terms, timed
from labkit.lab.notebook_rules.sheet import Sheet

Rule = Callable[[Sheet], Iterator[str]]

RULES: tuple[Rule, ...] = (
    *prose.RULES,
    *terms.RULES,
    *anatomy.RULES,
    *code.RULES,
    timed.timed_cells_say_why,
    *exercises.RULES,
    *outputs.RULES,
)


@dataclass(frozen=True, slots=True)
class Problem:
    """One sentence about one notebook, and the rule that says it."""

    notebook: str
    rule: str
    text: str

    def __str__(self) -> str:
        return f"{self.notebook}: {self.text} [{self.rule}]"


def problems(path: Path) -> list[Problem]:
    """Return everything the rules say about the notebook at *path*, links checked against the files beside it.

    Raises:
        NotebookError: the file is not a notebook.
    """
    sheet = Sheet(path, read(path))
    return [Problem(path.name, rule.__name__, text) for rule in RULES for text in rule(sheet)]
