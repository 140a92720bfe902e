"""Rules about cells whose subject is silence: what they show happens while nothing is said, in a time of their own.

Everywhere else a reader may think for minutes between two cells, and sees the same.
"""

import ast
from collections.abc import Iterator

from labkit.lab.notebook_rules.sheet import Place, Sheet, last_name

TIMED = "timed"
REASON = "**Timed:**"
OUTLASTED = 5  # seconds: a shorter heartbeat than this is over before anybody has read what a cell shows
_LEARNERS_OWN = {"exercise", "solution", "check"}
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def timed_cells_say_why(sheet: Sheet) -> Iterator[str]:
    """A cell with a heartbeat that no reader outlasts has the tag ``timed``, and the text before it gives the reason.

    The reason is a line that begins with :data:`REASON`. Other cells may have the tag too, for the same price.
    """
    hasty: set[str] = set()  # names of settings with such a heartbeat, and of functions that use it
    text = ""
    for before, place in zip([None, *sheet.places], sheet.places, strict=False):
        if not place.count:
            text = place.source if before is None or before.count else f"{text}\n{place.source}"
            continue
        hasty |= set(_names_made_hasty(place, hasty))
        uses = place.tree is not None and any(_is_hasty(node, hasty) for node in _run_now(place.tree))
        if uses and TIMED not in place.tags and not _LEARNERS_OWN.intersection(place.tags):
            yield (
                f"{place} agrees on a heartbeat of less than {OUTLASTED} s, so what it shows depends on when it runs: "
                f"give it a longer one, or the tag {TIMED!r}"
            )
        if TIMED in place.tags and not any(line.startswith(REASON) for line in text.splitlines()):
            yield f"{place} has the tag {TIMED!r}, and the text before it no line that begins with {REASON!r}: say why"


def _run_now(node: ast.AST) -> Iterator[ast.AST]:
    """Walk a syntax tree, without the bodies of functions: those run when they are called."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, _FUNCTIONS):
            yield from _run_now(child)


def _is_hasty(node: ast.AST, hasty: set[str]) -> bool:
    if isinstance(node, ast.Name):
        return isinstance(node.ctx, ast.Load) and node.id in hasty
    return (
        isinstance(node, ast.keyword)
        and node.arg == "heartbeat"
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, int)
        and 0 < node.value.value < OUTLASTED
    )


def _names_made_hasty(place: Place, hasty: set[str]) -> Iterator[str]:
    for node in place.nodes():
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if any(_is_hasty(inner, hasty) for inner in ast.walk(node)):
                yield node.name
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            call = node.value
            if last_name(call.func) in ("replace", "settings") and any(
                _is_hasty(each, hasty) for each in call.keywords
            ):
                yield from filter(None, map(last_name, node.targets))
