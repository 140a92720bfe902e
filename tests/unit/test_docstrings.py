"""A docstring can be read by whoever lands on it from a search: its first word is no pronoun without a noun."""

import ast
import re
from pathlib import Path

import labkit

PRONOUN = re.compile(r"(It|They|Its|Them|None) ")


def summaries(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield getattr(node, "name", ""), text.partition("\n")[0]


def test_no_docstring_begins_with_a_pronoun():
    package = Path(labkit.__file__).parent
    found = [
        f"{path.relative_to(package)}: {name}: {line}"
        for path in package.rglob("*.py")
        for name, line in summaries(ast.parse(path.read_text()))
        if PRONOUN.match(line)
    ]
    assert found == []


def test_one_that_does_is_found():
    (found,) = summaries(ast.parse('def f():\n    """It is ready."""'))
    assert PRONOUN.match(found[1])
