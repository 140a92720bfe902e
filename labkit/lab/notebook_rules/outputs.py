"""Rules about what is stored: the outputs are the expectations, so they must be there and hold facts only."""

import copy
import json
import re
from collections.abc import Iterator
from typing import Any

import nbformat

from labkit.lab.notebook_file import fingerprint, normalise
from labkit.lab.notebook_rules.sheet import Place, Sheet

# Ports that are the same for everybody: AMQP and the management page, with and without TLS.
_WELL_KNOWN_PORTS = r"(?!(?:5671|5672|15671|15672|15692)\b)"
VARYING = {
    "a path of this machine": re.compile(
        r"(?<![\w.:/])/(?:home|root|tmp|Users|usr|var|opt|private|mnt|work|workspace)/\w|\b[A-Z]:\\\w"
    ),
    "an object's address": re.compile(r"\bat 0x[0-9a-fA-F]{6,}"),
    "a port": re.compile(
        rf"(?:localhost|127\.0\.0\.1|\[?::1\]?|\bport)(?:'?,|:|=|\s)\s*{_WELL_KNOWN_PORTS}\d{{4,5}}\b", re.IGNORECASE
    ),
    "a time of day": re.compile(r"\b[0-2]\d:[0-5]\d:[0-5]\d\b"),
    "a date": re.compile(r"\b20\d\d-[01]\d-[0-3]\d\b"),
    "a measured time": re.compile(r"\b\d+\.\d{3,}\s*(?:s|seconds)\b|\b\d+(?:\.\d+)?\s*(?:ms|µs|us|ns)\b"),
    "a random id": re.compile(
        r"\b[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}\b"
        r"|\bamq\.(?:gen|ctag)-\w|\bctag\d+\.\w{8}|\b[0-9a-f]{32}\b"
    ),
    "the number of an unnamed thread": re.compile(r"\bThread-\d+"),
    "a process id": re.compile(r"\bpid[ =:]\s*\d+", re.IGNORECASE),
}
_PICTURES = ("image/svg+xml", "image/png", "image/jpeg")
_SVG_WORDS = (re.compile(r"<title\b[^>]*>\s*\S"), re.compile(r"<desc\b[^>]*>\s*\S"))
_USELESS_TWIN = re.compile(r"^<.*>$", re.DOTALL)
MAY_VARY = "nbval-ignore-output"


def every_cell_was_run(sheet: Sheet) -> Iterator[str]:
    """Each code cell carries its count, 1 to n: nbval compares nothing for a cell that was never run."""
    expected = 0
    for place in sheet.code:
        expected += 1
        count = place.cell.execution_count
        if "nbval-skip" in place.tags and count is None:
            continue
        if count is None:
            yield f"{place} was never run"
        elif count != expected:
            yield f"{place} has the count {count}: run the notebook once, from a fresh kernel"


def no_swallowed_error(sheet: Sheet) -> Iterator[str]:
    """No UsageError in the outputs: an unknown magic prints one, and the rest of its cell never ran."""
    for place in sheet.code:
        if "UsageError" in "".join(_texts(place)):
            yield f"{place}: a UsageError is stored; the cell did not do what it says"


def errors_are_announced(sheet: Sheet) -> Iterator[str]:
    """A stored error is in a cell tagged ``raises-exception``, and such a cell stores one: else nothing demands it."""
    for place in sheet.code:
        raised = any(output.output_type == "error" for output in place.cell.outputs)
        tagged = "raises-exception" in place.tags
        if raised and not tagged:
            yield f"{place}: an error is stored and the tag raises-exception is missing"
        if tagged and not raised:
            yield f"{place}: tagged raises-exception and no error is stored, so nothing demands one"


def no_stderr(sheet: Sheet) -> Iterator[str]:
    """Nothing on stderr: warnings name temporary files, logs name addresses."""
    for place in sheet.code:
        if any(output.get("name") == "stderr" for output in place.cell.outputs):
            yield f"{place} writes to stderr; record warnings and events, and print facts"


def outputs_hold_facts(sheet: Sheet) -> Iterator[str]:
    """No paths, ports, times or ids. A cell tagged nbval-ignore-output may show times and ports, but no paths."""
    for place in sheet.code:
        text = "\n".join(_texts(place))
        for kind, pattern in VARYING.items():
            found = pattern.search(text)
            if found and not (MAY_VARY in place.tags and kind != "a path of this machine"):
                yield f"{place}: the output holds {kind}: {found[0]!r}"


def pictures_have_a_text_twin(sheet: Sheet) -> Iterator[str]:
    """Each SVG has a title and a description; beside each picture its facts are printed."""
    for place in sheet.code:
        printed = any(output.output_type == "stream" and output.text.strip() for output in place.cell.outputs)
        for output in place.cell.outputs:
            data = output.get("data", {})
            kinds = [kind for kind in _PICTURES if kind in data]
            inline = "<svg" in data.get("text/html", "")
            if not kinds and not inline:
                continue
            svg = data.get("image/svg+xml", data.get("text/html", ""))
            if "<svg" in svg and not all(words.search(svg) for words in _SVG_WORDS):
                yield f"{place}: the SVG has no <title> or no <desc>"
            twin = data.get("text/plain", "").strip()
            if not printed and (not twin or _USELESS_TWIN.match(twin)):
                yield f"{place}: a picture without a text twin: print its facts, or give the object a repr"


def committed_form(sheet: Sheet) -> Iterator[str]:
    """The file is in the form ``labkit refresh`` writes: no versions, no times, no widget state, no odd metadata."""
    clean = copy.deepcopy(sheet.notebook)
    normalise(clean)
    if json.dumps(clean.metadata, sort_keys=True) != json.dumps(sheet.notebook.metadata, sort_keys=True):
        extra = sorted(set(sheet.notebook.metadata) - set(clean.metadata)) or "kernelspec or language_info"
        yield f"its metadata is not in the committed form: {extra}"
    for place, tidy in zip(sheet.places, clean.cells, strict=True):
        if place.cell.metadata != tidy.metadata:
            yield f"{place}: its metadata is not in the committed form: {sorted(place.cell.metadata)}"
        if place.cell.get("id") != tidy.get("id"):
            yield f"{place}: its id is missing or not unique"
        if place.count and json.dumps(place.cell.outputs) != json.dumps(tidy.outputs):
            yield f"{place}: its outputs are not in the committed form (split streams, widget views, output metadata)"
    if fingerprint(clean) != fingerprint(sheet.notebook) or sheet.notebook.nbformat_minor != 5:
        yield "is not written in format 4.5"


def valid_format(sheet: Sheet) -> Iterator[str]:
    """The file is a valid notebook of format 4."""
    try:
        nbformat.validate(copy.deepcopy(sheet.notebook))
    except nbformat.ValidationError as error:
        yield f"is not a valid notebook: {str(error).splitlines()[0]}"


def _texts(place: Place) -> Iterator[str]:
    for output in place.cell.outputs:
        yield from _strings(output)


def _strings(value: Any) -> Iterator[str]:
    """Yield the texts of an output that a reader sees; not the bytes of a picture, not the frames of a traceback."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            if key not in ("image/png", "image/jpeg", "traceback", "metadata", "output_type"):
                yield from _strings(inner)


RULES = (
    every_cell_was_run,
    no_swallowed_error,
    errors_are_announced,
    no_stderr,
    outputs_hold_facts,
    pictures_have_a_text_twin,
    committed_form,
    valid_format,
)
