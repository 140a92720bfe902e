"""Rules about exercises: a check that never failed is no check, and a solution nobody runs rots."""

from collections.abc import Iterator

from labkit.errors import ConfigurationError
from labkit.lab.checks import find_exercise
from labkit.lab.notebook_rules.sheet import Place, Sheet, first_text

_ROLES = ("exercise", "check", "solution")
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
            text = "".join(output.get("text", "") for output in place.cell.outputs)
            if not text.startswith(wanted + ":"):
                yield f"{place}: the check of {name!r} did not print {wanted!r}"
        yield from _known(name, sheet)


def solutions_are_collapsed(sheet: Sheet) -> Iterator[str]:
    """A solution is a collapsed cell, and nothing else is."""
    for place in sheet.code:
        hidden = bool(place.cell.metadata.get("jupyter", {}).get("source_hidden"))
        if hidden != ("solution" in place.tags):
            yield f"{place}: " + ("is collapsed and no solution" if hidden else "a solution that is not collapsed")


def collapsed_cells_tell_nothing(sheet: Sheet) -> Iterator[str]:
    """The first line of a solution is a comment, and that of a recall question does not hold the answer.

    JupyterLab shows the first line of a collapsed cell beside three dots.
    """
    for place in sheet.code:
        first = place.source.partition("\n")[0]
        if "solution" in place.tags and not first.startswith("# "):
            yield f"{place}: a collapsed solution still shows its first line; make that a comment that says nothing"
        if "recall" in place.tags and ("right=" in first or "why=" in first):
            yield f"{place}: a collapsed question still shows its first line, and this one holds the answer"


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


RULES = (exercise_order, checks_say_both, solutions_are_collapsed, collapsed_cells_tell_nothing)
