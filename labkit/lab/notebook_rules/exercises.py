"""Rules about exercises: a check that never failed is no check, and a solution nobody runs rots."""

import re
from collections.abc import Iterator

from labkit.errors import ConfigurationError
from labkit.lab.checks import find_exercise
from labkit.lab.notebook_file import COLLAPSED, shown_text
from labkit.lab.notebook_rules.sheet import Place, Sheet, first_text
from labkit.lab.questions import question_bank

_ROLES = ("exercise", "check", "solution")
PREDICT_LINE = "# Run this cell, choose, then go on."
HINT_LINE = 'Stuck? Run `lab.hint("{name}")` in a new cell. Each call says a little more.'
_ORDER = ["exercise", "check", "solution", "check"]


def exercise_order(sheet: Sheet) -> Iterator[str]:
    """Each exercise is stub, check, solution, check: code cells in a row, prose between them as you like."""
    roles = [(place, next((tag for tag in place.tags if tag in _ROLES), "")) for place in sheet.code]
    index = 0
    while index < len(roles):
        place, role = roles[index]
        if role == "exercise":
            following = [found for _, found in roles[index : index + 4]]
            if following != _ORDER:
                found = ", ".join(name or "another cell" for name in following)
                yield f"{place}: an exercise is followed by check, solution, check; here it is {found}"
            index += _length_of_exercise(following)
        else:
            if role:
                yield f"{place}: a {role} without an exercise before it"
            index += 1


def checks_say_both(sheet: Sheet) -> Iterator[str]:
    """The stored output of the first check is NOT YET and of the second PASS, for the same exercise."""
    checks: dict[str, list[Place]] = {}
    for place in sheet.code:
        calls = list(place.calls("check"))
        if "check" in place.tags:
            name = first_text(calls[0]) if len(calls) == 1 else None
            if name is None:
                yield f"{place}: a check cell calls lab.check once, with the exercise's name as a literal text"
            else:
                checks.setdefault(name, []).append(place)
        elif calls:
            yield f"{place} calls check() and has no tag 'check'"
    for name, places in checks.items():
        if len(places) != 2:
            yield f"the exercise {name!r} is checked {len(places)} times, not twice"
        for place, wanted in zip(places, ("NOT YET", "PASS"), strict=False):
            if not shown_text(place.cell).startswith(wanted + ":"):
                yield f"{place}: the check of {name!r} did not print {wanted!r}"
        yield from _known(name, sheet)


def collapsed_cells(sheet: Sheet) -> Iterator[str]:
    """A solution is a collapsed cell, and so is a question, which its widget shows; nothing else is."""
    for place in sheet.code:
        hidden = bool(place.cell.metadata.get("jupyter", {}).get("source_hidden"))
        kind = next((tag for tag in place.tags if tag in COLLAPSED), "")
        if hidden and not kind:
            yield f"{place}: is collapsed, and has none of the tags {', '.join(COLLAPSED)}"
        elif kind and not hidden:
            yield f"{place}: a {kind} cell that is not collapsed"


def collapsed_cells_tell_nothing(sheet: Sheet) -> Iterator[str]:
    """The first line of a solution or a prediction is a comment; a recall cell names a question of the bank.

    JupyterLab shows the first line of a collapsed cell beside three dots, and all of it after a click.
    """
    for place in sheet.code:
        first = place.source.partition("\n")[0]
        if "solution" in place.tags and not first.startswith("# "):
            yield f"{place}: a collapsed solution still shows its first line; make that a comment that says nothing"
        if "predict" in place.tags and first != PREDICT_LINE:
            yield f"{place}: the first line of a prediction is {PREDICT_LINE!r}, which is all that a reader sees of it"
        if "recall" in place.tags:
            name = re.fullmatch(r'lab\.recall\("([^"]+)"\)', place.source.strip())
            if name is None:
                yield f'{place}: a recall cell is lab.recall("{sheet.number}.r1"), and holds no answer'
            elif name[1] not in question_bank() or not name[1].startswith(f"{sheet.number}."):
                yield f"{place}: the question bank has no {name[1]!r} for this notebook"


def hints_look_the_same(sheet: Sheet) -> Iterator[str]:
    """The text before an exercise has the same line everywhere, which says how to get a hint."""
    text = ""
    expected = set()
    for index, place in enumerate(sheet.places):
        if not place.count:
            text = place.source
        elif "exercise" in place.tags:
            check = next((each for each in sheet.places[index:] if "check" in each.tags), None)
            calls = [] if check is None else list(check.calls("check"))
            line = HINT_LINE.format(name=first_text(calls[0]) if calls else "")
            expected.add(line)
            if line not in text.splitlines():
                yield f"{place}: the text before it has no line: {line}"
    for place in sheet.markdown:
        others = [line for line in place.source.splitlines() if "lab.hint(" in line and line not in expected]
        if others:
            yield f"{place}: another way to say where hints are: {others[0]!r}"


def _known(name: str, sheet: Sheet) -> Iterator[str]:
    if not name.startswith(f"{sheet.number}."):
        yield f"the exercise {name!r} does not begin with '{sheet.number}.'"
        return
    try:
        find_exercise(name)
    except ConfigurationError as error:
        yield str(error)


def _length_of_exercise(following: list[str]) -> int:
    """Return how many of *following* belong to this exercise, so that each mistake is reported once."""
    length = 1
    while length < len(following) and following[length] in ("check", "solution"):
        length += 1
    return length


RULES = (exercise_order, checks_say_both, collapsed_cells, collapsed_cells_tell_nothing, hints_look_the_same)
