"""One term for one thing: which words the lessons, the docs and the messages do not use, and what they say instead.

The list is also in CONTRIBUTING.md, for people. Code spans, fenced code and comments are not looked at: an identifier
is what it is.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

from labkit.lab.notebook_rules.sheet import Sheet, prose_of


@dataclass(frozen=True, slots=True)
class Term:
    """A wording that is not used: how to find it, what to write instead, and what that means."""

    found: str
    write: str
    meaning: str


_BROKEN = r"(?:cut|stall|break|broke|drop|encrypt|lock)\w*"
TERMS = (
    Term(
        rf"\b{_BROKEN} (?:the|a|our|this) line\b|\b(?:the|a|our) line (?:is|was) (?:cut|broken|silent|encrypted)\b"
        r"|\b(?:slow|silent|open|TLS|real) line\b|\bline to the broker\b|\ba line that stalls\b|\bcross the line\b",
        "link",
        "the TCP link below a connection; a line is a line of text or of code, or callers who wait",
    ),
    Term(r"\bsessions?\b(?! ticket)", "connection", "a link on which somebody has logged in"),
    Term(r"\bvirtual connections?\b", "channel", "a numbered conversation inside a connection"),
    Term(r"\bvhosts?\b", "virtual host", "a part of a broker with queues of its own"),
    Term(r"\b(?:RabbitMQ|AMQP|message) servers?\b", "broker", "the server that takes messages and hands them on"),
    Term(r"\bmessage (?:callback|listener)s?\b|\bhandler functions?\b", "handler", "your function of one message"),
    Term(r"\bcallback functions?\b|\bhooks?\b", "callback", "your function that Pika calls when something happened"),
    Term(r"\b(?:subscriber|observer)s?\b", "listener", "your function of one event of a connection"),
    Term(r"\backs\b|\backed\b|\backing\b", "acknowledgement, acknowledge", "your word that a message is done"),
    Term(r"\bpublisher acknowledge?ments?\b", "confirm", "the broker's word that it has a message"),
    Term(r"\bkeep-?alives?\b(?! probe)", "heartbeat", "the frame that says that a side is alive"),
    Term(r"\btime-outs?\b", "timeout", "the longest one step may take"),
    Term(r"\bhostnames?\b", "host name", "the name of a machine"),
    Term(r"\bgoodbyes?\b", "close handshake", "Close and CloseOk, which end a connection"),
    Term(r"\bfor ever\b", "forever", "without an end"),
    Term(r"\banew\b", "again", "once more"),
)
"""In the order of CONTRIBUTING.md."""


def wrong_terms(text: str) -> Iterator[str]:
    """Yield a sentence for each wording in *text*, which may be Markdown, that :data:`TERMS` replaces."""
    prose = prose_of(text)
    for term in TERMS:
        for found in re.findall(term.found, prose, re.IGNORECASE):
            yield f"{found!r}: write {term.write!r} ({term.meaning})"


def one_term_for_one_thing(sheet: Sheet) -> Iterator[str]:
    """The prose and the questions use the terms of CONTRIBUTING.md."""
    for place in sheet.markdown:
        for problem in wrong_terms(place.source):
            yield f"{place}: {problem}"
    for place in sheet.code:
        for text in (node for call in place.calls("predict") for node in ast.walk(call)):
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                for problem in wrong_terms(text.value):
                    yield f"{place}: {problem}"


RULES = (one_term_for_one_thing,)
