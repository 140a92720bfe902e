"""A notebook as the rules see it: cells with a name to print, Markdown without its code, Python as a tree."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from labkit.lab.notebook_file import Cell, Notebook, number_of, tags

_FENCE = re.compile(r"^(?P<mark>```+|~~~+).*?^(?P=mark)[ \t]*$", re.MULTILINE | re.DOTALL)
_CODE_SPAN = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)", re.DOTALL)
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)


@dataclass(frozen=True)
class Place:
    """A cell and how to name it in a sentence; *count* counts code cells from 1 and is 0 for Markdown."""

    cell: Cell
    index: int
    count: int

    def __str__(self) -> str:
        return f"code cell {self.count}" if self.count else f"cell {self.index + 1} (Markdown)"

    @property
    def source(self) -> str:
        """The text of the cell."""
        return str(self.cell.source)

    @property
    def tags(self) -> list[str]:
        """The tags of the cell."""
        return tags(self.cell)

    @cached_property
    def prose(self) -> str:
        """The text of a Markdown cell without code and comments."""
        return prose_of(self.source)

    @cached_property
    def tree(self) -> ast.Module | None:
        """The syntax tree of a code cell, top-level ``await`` allowed; None when it is not Python (a magic, say)."""
        try:
            flags = ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
            tree = compile(self.source, "cell", "exec", flags, dont_inherit=True)
        except (SyntaxError, ValueError):
            return None
        assert isinstance(tree, ast.Module)  # noqa: S101 - what PyCF_ONLY_AST promises, for mypy
        return tree

    def nodes(self) -> Iterator[ast.AST]:
        """Walk the syntax tree; nothing when there is none."""
        return ast.walk(self.tree) if self.tree is not None else iter(())

    def calls(self, *names: str) -> Iterator[ast.Call]:
        """Yield the calls of a function or method with one of these names."""
        for node in self.nodes():
            if isinstance(node, ast.Call) and last_name(node.func) in names:
                yield node


class Sheet:
    """One notebook, read for the rules."""

    def __init__(self, path: Path, notebook: Notebook) -> None:
        self.path = path
        self.notebook = notebook
        self.places = list(_places(notebook))

    @property
    def number(self) -> str:
        """The two digits of the file name."""
        return number_of(self.path)

    @cached_property
    def code(self) -> list[Place]:
        """The code cells."""
        return [place for place in self.places if place.count]

    @cached_property
    def markdown(self) -> list[Place]:
        """The Markdown cells."""
        return [place for place in self.places if place.cell.cell_type == "markdown"]

    @cached_property
    def headings(self) -> list[tuple[Place, int, str]]:
        """Each heading: where, level, text. ATX style (``##``) only; a rule forbids the other."""
        found = []
        for place in self.markdown:
            for line in _FENCE.sub("", place.source).splitlines():
                heading = re.match(r"(#{1,6})\s+(.*?)\s*#*$", line)
                if heading:
                    found.append((place, len(heading[1]), heading[2]))
        return found


def prose_of(markdown: str) -> str:
    """Return *markdown* without its code and its comments."""
    return _CODE_SPAN.sub("``", _COMMENT.sub("", _FENCE.sub("", markdown)))


def last_name(node: ast.AST) -> str:
    """Return ``c`` for the expressions ``c`` and ``a.b.c``, else an empty text."""
    if isinstance(node, ast.Name):
        return node.id
    return node.attr if isinstance(node, ast.Attribute) else ""


def first_text(call: ast.Call) -> str | None:
    """Return the first argument of a call when it is a literal text."""
    first = call.args[0] if call.args else None
    return first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else None


def _places(notebook: Notebook) -> Iterator[Place]:
    count = 0
    for index, cell in enumerate(notebook.cells):
        is_code = cell.cell_type == "code"
        count += is_code
        yield Place(cell, index, count if is_code else 0)
