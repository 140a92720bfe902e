"""Rules about the order of things: card, setup, prediction before observation, recap, clean-up."""

import ast
import copy
from collections.abc import Iterator

from labkit.lab.generated import fill_in
from labkit.lab.notebook_file import CARD_ROWS, NAME, card, shown_text
from labkit.lab.notebook_rules.sheet import Sheet, first_text

CLOSED = "nothing left open"
CLOSING_HEADINGS = ("Recap", "Glossary")
KNOWN_TAGS = {
    # ours
    "check", "exercise", "predict", "raw-pika", "recall", "solution", "timed",
    # nbval's and nbclient's
    "nbval-check-output", "nbval-ignore-output", "nbval-skip", "raises-exception",
}  # fmt: skip


def file_name(sheet: Sheet) -> Iterator[str]:
    """Two digits, a verb, an object; lower case, hyphens: spaces break shell loops."""
    if not NAME.fullmatch(sheet.path.name):
        yield "is not named NN-verb-object.ipynb (two digits, lower case, hyphens)"


def card_is_complete(sheet: Sheet) -> Iterator[str]:
    """The second cell is the card: question, goals, needs, minutes, broker, faults."""
    second = sheet.places[1] if len(sheet.places) > 1 else None
    about = card(sheet.notebook)
    if second is None or second.cell.cell_type != "markdown" or "|" not in second.source or not about.question:
        labels = ", ".join(label.capitalize() for label in CARD_ROWS)
        yield f"its second cell is not a card: a table with the rows {labels}"
        return
    for label, field in CARD_ROWS.items():
        if label != "minutes" and not getattr(about, field):
            yield f"its card has no row {label.capitalize()!r}, or an empty one"
    if not about.minutes_to_read or not about.minutes_to_do:
        yield "its card does not say the minutes, as in: 10 to read, 20 to do"


def generated_lines(sheet: Sheet) -> Iterator[str]:
    """The links to the neighbours and the minutes are what ``labkit refresh`` writes: all there, and none too few."""
    typed = [cell.source for cell in sheet.notebook.cells[:2]]
    wanted = [cell.source for cell in fill_in(copy.deepcopy(sheet.notebook), sheet.path).cells[:2]]
    if typed != wanted:
        yield "its links to other notebooks or its minutes are not up to date: run `labkit refresh`"


def setup_cell(sheet: Sheet) -> Iterator[str]:
    """The first code cell is the same everywhere but for the number: import Lab, make one."""
    wanted = f'from labkit.lab import Lab; lab = Lab("{sheet.number}")'
    tree = sheet.code[0].tree if sheet.code else None
    body = [] if tree is None else tree.body
    if len(body) != 2 or ast.unparse(body[0]) != "from labkit.lab import Lab":
        yield f"its first code cell is not: {wanted}"
        return
    made = ast.unparse(body[1])
    if made not in (f"lab = Lab('{sheet.number}')", f"lab = Lab('{sheet.number}', own_broker=True)"):
        yield f"its first code cell makes {made}, not: {wanted}"


def clean_up_cell(sheet: Sheet) -> Iterator[str]:
    """The last code cell is ``lab.close()`` and its stored output says that nothing was left open."""
    last = sheet.code[-1] if sheet.code else None
    if last is None or last.source.strip() != "lab.close()":
        yield "its last code cell is not lab.close()"
    elif CLOSED not in shown_text(last.cell):
        yield f"lab.close() did not print {CLOSED!r}"


def prediction_before_observation(sheet: Sheet) -> Iterator[str]:
    """There is a prediction; each is compared with what was observed, in a later cell, and none only afterwards."""
    asked: dict[str, int] = {}
    compared: dict[str, int] = {}
    for place in sheet.code:
        for call in place.calls("predict"):
            name = first_text(call)
            if name is None or not name.startswith(f"{sheet.number}."):
                yield f"{place}: a prediction is named {name!r}; its name begins with '{sheet.number}.'"
            elif name in asked:
                yield f"{place}: the prediction {name!r} is made twice"
            else:
                asked[name] = place.count
            if "predict" not in place.tags:
                yield f"{place} makes a prediction and has no tag 'predict'"
        for call in place.calls("compare"):
            compared.setdefault(first_text(call) or "", place.count)
    if not asked:
        yield "asks for no prediction"
    for name, count in asked.items():
        if name not in compared:
            yield f"the prediction {name!r} is never compared"
        elif compared[name] <= count:
            yield f"the prediction {name!r} is compared before, or in the cell where, it is made"
    for name in compared.keys() - asked.keys():
        yield f"compares the prediction {name!r}, which is never made"


def closing_sections(sheet: Sheet) -> Iterator[str]:
    """A notebook closes with a recap and a glossary."""
    texts = [text for _, _, text in sheet.headings]
    for heading in CLOSING_HEADINGS:
        if not any(text.startswith(heading) for text in texts):
            yield f"has no heading {heading!r}"


def known_tags(sheet: Sheet) -> Iterator[str]:
    """A tag is one we know, and on a code cell: a mistyped one would switch a check off in silence."""
    for place in sheet.places:
        for tag in place.tags:
            if tag not in KNOWN_TAGS:
                yield f"{place}: unknown tag {tag!r}; known are {', '.join(sorted(KNOWN_TAGS))}"
            elif not place.count:
                yield f"{place}: the tag {tag!r} does nothing on a Markdown cell"


RULES = (
    file_name,
    card_is_complete,
    generated_lines,
    setup_cell,
    clean_up_cell,
    prediction_before_observation,
    closing_sections,
    known_tags,
)
