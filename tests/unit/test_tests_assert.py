"""A test that asserts nothing is found."""

import ast
from pathlib import Path

TESTS = Path(__file__).parents[1]
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
ASSERTS = {  # by others' names: pytest's, Playwright's, Hypothesis's
    "raises",
    "warns",
    "fail",
    "expect",
    "wait_for_selector",
    "run_state_machine_as_test",
}


def can_fail(node, names):
    """Whether *node* asserts, raises, or calls one of *names*."""
    for each in ast.walk(node):
        if isinstance(each, ast.Assert | ast.Raise):
            return True
        if isinstance(each, ast.Call) and getattr(each.func, "attr", getattr(each.func, "id", "")) in names:
            return True
    return False


def without_an_assertion(trees):
    """Return the tests that neither assert nor call a helper of the tests that does, directly or not."""
    names, more = set(ASSERTS), True
    named = (*FUNCTIONS, ast.ClassDef)
    nodes = [(name, node) for name, tree in trees.items() for node in ast.walk(tree) if isinstance(node, named)]
    while more:
        found = set()
        for _, node in nodes:
            is_helper = isinstance(node, FUNCTIONS) and not node.name.startswith("test_")
            if is_helper and node.name not in names and can_fail(node, names):
                found.add(node.name)
            if isinstance(node, ast.ClassDef):
                special = [each for each in node.body if isinstance(each, FUNCTIONS) and each.name.startswith("__")]
                if any(can_fail(each, names) for each in special):
                    found.add(node.name)
        more = found - names
        names |= found
    return [
        f"{name}::{node.name}"
        for name, node in nodes
        if isinstance(node, FUNCTIONS) and node.name.startswith("test_") and not can_fail(node, names)
    ]


def test_every_test_asserts_something():
    trees = {str(path.relative_to(TESTS)): ast.parse(path.read_text()) for path in TESTS.rglob("*.py")}
    assert len(trees) > 100
    assert without_an_assertion(trees) == []


def test_a_test_that_only_calls_is_found_and_one_that_calls_an_asserting_helper_is_not():
    helpers = "def helper():\n    inner()\n\ndef inner():\n    assert 1\n\n"
    tests = "def test_a():\n    print()\n\ndef test_b():\n    helper()\n"
    assert without_an_assertion({"here": ast.parse(helpers + tests)}) == ["here::test_a"]
