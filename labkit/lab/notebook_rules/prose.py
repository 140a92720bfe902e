"""Rules about the text: headings, words, links, pictures."""

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from labkit.lab.notebook_rules.sheet import Sheet

# What is simple for the writer is not for the reader, and the word helps neither.
BANNED_WORDS = re.compile(r"\b(simply|just|obviously)\b", re.IGNORECASE)
VAGUE_LINKS = {"here", "click here", "this", "link", "this link", "read more", "more"}

_LINK = re.compile(r"(?P<picture>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]*)(?:\s+\"[^\"]*\")?\)")
_HTML_PICTURE = re.compile(r"<img\b[^>]*>", re.IGNORECASE)
_ALT = re.compile(r"\balt\s*=\s*(\"[^\"]+\"|'[^']+')", re.IGNORECASE)
_HTML_TARGET = re.compile(r"<(?:img|a)\b[^>]*\b(?:src|href)\s*=\s*[\"']([^\"']+)[\"']", re.IGNORECASE)
_OUTSIDE = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)


def one_title_and_first(sheet: Sheet) -> Iterator[str]:
    """The first cell begins with the only H1, and it carries the number of the file."""
    titles = [(place, text) for place, level, text in sheet.headings if level == 1]
    if len(titles) != 1:
        yield f"has {len(titles)} H1 headings; it needs exactly one"
    first = sheet.places[0] if sheet.places else None
    if first is None or first.cell.cell_type != "markdown" or not first.source.startswith("# "):
        yield "does not begin with a Markdown cell whose first line is the H1"
    elif not first.source.startswith(f"# {sheet.number} "):
        yield f"its title does not begin with '# {sheet.number} '"


def headings_skip_no_level(sheet: Sheet) -> Iterator[str]:
    """An H3 comes below an H2: screen readers navigate by level. Underlined headings are not seen here: forbidden."""
    before = 0
    for place, level, text in sheet.headings:
        if level > before + 1:
            yield f"{place}: heading {text!r} jumps from level {before} to level {level}"
        before = level
    for place in sheet.markdown:
        if re.search(r"^[^\s|>#*-].*\n(=+|-+)[ \t]*$", place.prose, re.MULTILINE):
            yield f"{place}: a heading is underlined; write it with #"


def no_empty_cell(sheet: Sheet) -> Iterator[str]:
    """No cell is empty."""
    for place in sheet.places:
        if not place.source.strip():
            yield f"{place} is empty"


def no_banned_word(sheet: Sheet) -> Iterator[str]:
    """No 'simply', 'just', 'obviously', no exclamation mark in prose."""
    for place in sheet.markdown:
        for word in BANNED_WORDS.findall(place.prose):
            yield f"{place}: the word {word!r}"
        if "!" in _LINK.sub(lambda link: link["text"], place.prose).replace("!=", "").replace("<!", ""):
            yield f"{place}: an exclamation mark"


def pictures_have_words(sheet: Sheet) -> Iterator[str]:
    """Every picture has an alternative text; every link says where it leads."""
    for place in sheet.markdown:
        for link in _LINK.finditer(place.prose):
            text = link["text"].strip()
            if link["picture"] and not text:
                yield f"{place}: the picture {link['target']} has no alternative text"
            if not link["picture"] and text.lower() in VAGUE_LINKS | {""}:
                yield f"{place}: the link text {text!r} does not say where {link['target']} leads"
        for picture in _HTML_PICTURE.findall(place.prose):
            if not _ALT.search(picture):
                yield f"{place}: {picture} has no alt text"


def links_lead_somewhere(sheet: Sheet) -> Iterator[str]:
    """Every link and picture inside the project exists; every #fragment is a heading or an id. Nothing is fetched."""
    anchors = {text.replace("`", "").replace(" ", "-") for _, _, text in sheet.headings}
    for place in sheet.markdown:
        targets = [link["target"] for link in _LINK.finditer(place.prose)]
        for target in targets + _HTML_TARGET.findall(place.prose):
            file, _, fragment = unquote(target).partition("#")
            if _OUTSIDE.match(target):
                continue
            if file.startswith("/"):
                yield f"{place}: the link {target} is absolute"
            elif file and not (sheet.path.parent / Path(file)).exists():
                yield f"{place}: the link {target} leads to no file"
            elif not file and fragment not in anchors:
                yield f"{place}: no heading answers to #{fragment}"
        if place.cell.get("attachments"):
            yield f"{place}: a picture is attached; put the file into the folder, where it can be reviewed"


RULES = (
    one_title_and_first,
    headings_skip_no_level,
    no_empty_cell,
    no_banned_word,
    pictures_have_words,
    links_lead_somewhere,
)
