"""One term for one thing, in the docs and in every text that a user of the bench sees. No kernel, no broker."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from labkit.lab.notebook_rules.terms import TERMS, wrong_terms

PROJECT = Path(__file__).parents[1]
DOCS = [
    PROJECT / "README.md",
    PROJECT / "CONTRIBUTING.md",
    *sorted((PROJECT / "docs").glob("*.md")),
    *sorted((PROJECT / "notebooks" / "instructor").glob("*.md")),
]
BENCH = sorted((PROJECT / "labkit" / "lab").rglob("*.py"))
RECALLS = PROJECT / "labkit" / "lab" / "recalls.toml"
WORD = re.compile(r"[A-Za-z]{2,} +[a-z]{2,} +[a-z]{2,}")  # three words in a row: a sentence, not a name


def texts_of(module: Path) -> Iterator[str]:
    """Yield the sentences of a module's code that are not docstrings: messages, labels, hints."""
    tree = ast.parse(module.read_text(encoding="utf-8"))
    docstrings = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            docstrings.add(node.value)
    for node in ast.walk(tree):
        is_text = isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docstrings
        if is_text and WORD.search(node.value) and "NOT_ALLOWED - " not in node.value:  # the broker's own words
            yield node.value


def test_there_is_something_to_read():
    assert len(DOCS) > 15
    assert len(BENCH) > 50
    assert sum(1 for module in BENCH for _ in texts_of(module)) > 300


@pytest.mark.parametrize("path", DOCS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_docs_say_one_term_for_one_thing(path: Path):
    assert list(wrong_terms(path.read_text(encoding="utf-8"))) == []


def test_the_bench_says_one_term_for_one_thing():
    found = {
        f"{module.relative_to(PROJECT)}: {problem}"
        for module in BENCH
        if module.name != "terms.py"
        for text in texts_of(module)
        for problem in wrong_terms(text)
    }
    assert found == set()


def test_recall_questions_say_one_term_for_one_thing():
    bank = tomllib.loads(RECALLS.read_text(encoding="utf-8"))
    assert bank
    texts = [text for each in bank.values() for text in [each["question"], *each["choices"], *each["why"]]]
    assert [problem for text in texts for problem in wrong_terms(text)] == []


@pytest.mark.parametrize(
    ("text", "instead"),
    [
        ("Then it cuts the line.", "link"),
        ("The line is silent.", "link"),
        ("On a slow line it takes longer.", "link"),
        ("A session has ten channels.", "connection"),
        ("A virtual connection is cheap.", "channel"),
        ("The vhost is missing.", "virtual host"),
        ("The RabbitMQ server is down.", "broker"),
        ("Write a handler function.", "handler"),
        ("A callback function is called later.", "callback"),
        ("An observer of events.", "listener"),
        ("It acks the message.", "acknowledgement, acknowledge"),
        ("A publisher acknowledgement.", "confirm"),
        ("Keepalives are sent.", "heartbeat"),
        ("The time-out is 3 s.", "timeout"),
        ("The hostname is wrong.", "host name"),
        ("It waits for ever.", "forever"),
        ("It connects anew.", "again"),
        ("It says goodbye.", "close handshake"),
    ],
)
def test_a_wrong_term_is_found_and_the_right_one_named(text: str, instead: str):
    [problem] = wrong_terms(text)
    assert f"write {instead!r}" in problem


@pytest.mark.parametrize(
    "text",
    [
        "Read the last line of the log.",
        "A caller in the line waits.",
        "`channel.basic_ack` and `vhost` are names.",
        "```python\nvhost = '/'\n```",
        "Press Enter at the end of the line.",
    ],
)
def test_other_lines_and_names_are_left_alone(text: str):
    assert list(wrong_terms(text)) == []


def test_contributing_has_the_same_terms_in_the_same_order():
    section = (PROJECT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("### One term for one thing")[2]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    assert [(write, meaning) for write, _, meaning in rows[2:]] == [(term.write, term.meaning) for term in TERMS]
    for (_, wrong, _), term in zip(rows[2:], TERMS, strict=True):
        named = [word for word in re.findall(r"`([^`]+)`", wrong) if word != "line"]  # a line may be another line
        assert all(re.search(term.found, word, re.IGNORECASE) for word in named), wrong
