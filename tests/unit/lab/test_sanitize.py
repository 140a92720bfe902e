"""Each rule of tests/nbval-sanitize.cfg does what its comment says, and no more."""

import re
from pathlib import Path

import pytest
from nbval.plugin import get_sanitize_patterns

TEXT = (Path(__file__).parents[2] / "nbval-sanitize.cfg").read_text(encoding="utf-8")
RULES = get_sanitize_patterns(TEXT)


def sanitized(text: str) -> str:
    for pattern, replacement in RULES:
        text = re.sub(pattern, replacement, text)
    return text


CASES = [
    ("<labkit.Pool object at 0x7f3a1c2b4d50>", "<labkit.Pool object at ADDRESS>"),
    ("id 123e4567-e89b-12d3-a456-426614174000 kept", "id UUID kept"),
    ("/tmp/ipykernel_4711/123456.py:3: UserWarning", "CELL.py:3: UserWarning"),
    (r"C:\Temp\ipykernel_1\22.py:3", "CELL.py:3"),
    ("from ('127.0.0.1', 41234) to ('::1', 5672, 0, 0)", "from ('LOOPBACK', PORT) to ('LOOPBACK', PORT)"),
    ("Exception in thread Thread-12 (run)", "Exception in thread Thread-N (run)"),
    ("queue amq.gen-JzTY20BRgKO-HjmUJj0wLg declared", "queue amq.gen-NAME declared"),
    ("tag ctag1.0123456789abcdef0123456789abcdef", "tag CONSUMER_TAG"),
    ("tag amq.ctag-JzTY20BRgKO-HjmUJj0wLg", "tag CONSUMER_TAG"),
]


@pytest.mark.parametrize(("text", "expected"), CASES)
def test_a_rule_replaces_what_differs_from_run_to_run(text: str, expected: str) -> None:
    assert sanitized(text) == expected


def test_every_rule_is_needed_by_a_case() -> None:
    assert RULES
    for pattern, _ in RULES:
        assert any(re.search(pattern, text) for text, _ in CASES), pattern


@pytest.mark.parametrize(
    "fact",
    [
        "frame_max 0x20000",
        "0xCE",
        "heartbeat 60",
        "12:00:01",
        "3 of 4 connections",
        "amqp://guest:***@localhost:5672/",
        "('127.0.0.1', 80)",
        "thread labkit-io",
        "queue amq.gen",
        "ctag1",
        "channel 1, delivery tag 7",
        "CONNECTION_FORCED - instructor pressed the button",
    ],
)
def test_facts_are_left_alone(fact: str) -> None:
    assert sanitized(fact) == fact


def test_nbval_reads_every_rule_of_the_file() -> None:
    assert len(RULES) == TEXT.count("\nregex:") == TEXT.count("\nreplace:")


def test_there_are_at_most_ten_rules_each_with_a_comment_above() -> None:
    lines = TEXT.splitlines()
    places = [number for number, line in enumerate(lines) if line.startswith("regex: ")]

    assert 1 <= len(places) <= 10
    assert all(lines[place - 1].startswith("# ") for place in places)
