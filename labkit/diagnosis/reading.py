"""Read what a text tells of: a traceback, a line of a client's log, a broker's log. Pure functions, no I/O.

The text may come from anywhere, so the work is bounded: only its first :data:`LONGEST` characters are read, every
pattern takes time in proportion to them, and what is quoted is short, printable, and shows no password.
"""

import json
import re
from dataclasses import dataclass

from labkit.diagnosis.broker_words import WORDS
from labkit.diagnosis.cases import BROKER, Case, Rank
from labkit.diagnosis.explain import Explanation, wrapped
from labkit.diagnosis.explanations import CODES, TYPES
from labkit.printable import printable
from labkit.values import check_type
from labkit.verdicts import ADVICE

LONGEST = 300_000  # characters
QUOTED = 200  # characters of a line that are shown
MASK = "***"
NOT_KNOWN = "not known"

# A reply code counts where it stands beside its name, or in a form that only an AMQP client prints: "404" and "not
# found" alone may be a web server's.
_CODE_NAMES = {
    "CONTENT_TOO_LARGE": 311,
    "NO_ROUTE": 312,
    "NO_CONSUMERS": 313,
    "CONNECTION_FORCED": 320,
    "INVALID_PATH": 402,
    "ACCESS_REFUSED": 403,
    "NOT_FOUND": 404,
    "RESOURCE_LOCKED": 405,
    "PRECONDITION_FAILED": 406,
    "FRAME_ERROR": 501,
    "SYNTAX_ERROR": 502,
    "COMMAND_INVALID": 503,
    "CHANNEL_ERROR": 504,
    "UNEXPECTED_FRAME": 505,
    "RESOURCE_ERROR": 506,
    "NOT_ALLOWED": 530,
    "NOT_IMPLEMENTED": 540,
    "INTERNAL_ERROR": 541,
}
_NAMES = "|".join(_CODE_NAMES)
_CODE = re.compile(
    rf"\b(?P<name>{_NAMES}) ?[-–] ?"  # every client: NOT_FOUND - no queue 'q'
    rf"|\((?P<beside>\d{{3}})\)[ ,]{{1,3}}(?:{_NAMES})\b"  # py-amqp: (404) NOT_FOUND
    rf"|\bexception (?P<logged>{_NAMES.lower()})\b"  # the broker's log: caused a channel exception not_found
    rf"|\{{amqp_error,\s{{0,40}}(?P<term>{_NAMES.lower()})\b"  # and as a term of Erlang's: {{amqp_error,not_found,
    r"|ClosedByBroker(?:: )?\((?P<pika>\d{3})\b"
    r"|initiated by Peer, code=(?P<net>\d{3})\b"
    r"|\berror; protocol method: #method<(?:connection|channel)\.close>\(reply-code=(?P<java>\d{3})\b"
)
# RabbitMQ's text ends with the quotes, or the comma, that the client puts around it.
_SAID = re.compile(rf"\b(?:{_NAMES}) ?[-–] ?[^\n\"]{{1,{QUOTED}}}")
_LOGGED = re.compile(rf"\bexception (?:{_NAMES.lower()}): ?\"?(?P<text>[^\n\"]{{1,{QUOTED}}})")
_END = re.compile(r"(?:'\)|'\s?,|, ?class[-_ ]?id|,? ?\(\d{1,3}, ?\d{1,3}\)).*$", re.IGNORECASE)
_SECRETS = (
    re.compile(r"(://[^\s:@/]{0,200}:)\S{1,500}(?=@)"),
    re.compile(r"(?i)((?:password|passwd|pwd|secret|token)['\"]?\s{0,3}[=:]\s{0,3}['\"]?)[^\s'\",;)]{1,500}"),
    re.compile(r'(amqp_params_network,\s{0,40}<<"[^"]{0,200}">>,\s{0,40}<<")[^"]{1,500}'),  # a crash report of Erlang's
)
_COLOUR = re.compile(r"\x1b\[[0-9;]{0,20}m")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a text tells of.

    Attributes:
        explanation: What it means.
        line: The number of the line where it stands first, from 1.
        quote: That line, cut to 200 characters, passwords masked.
        rank: How much it says; the lowest is what happened.
    """

    explanation: Explanation
    line: int
    quote: str
    rank: Rank


def explain_text(text: str) -> list[Finding]:
    """Say what a traceback, a log line or a broker's log tells of: what happened first, then what else stands there.

    Returns:
        An empty list where nothing is recognised, or *text* is binary: that is not known.
    """
    check_type("text", text, str)
    text = _COLOUR.sub("", text[:LONGEST])
    if "\0" in text or text.count("\N{REPLACEMENT CHARACTER}") * 10 > len(text):
        return []  # not a text
    text = masked(text).replace('\\"', '"').replace("\\n", "  ")
    # Of two that say as much, the earlier line; on one line, the one that the tables have first.
    matches = sorted(_matches(text), key=lambda each: (each[0].rank, text.count("\n", 0, each[1])))
    findings = [_finding(text, case, start) for case, start in matches]
    if any(each.rank == Rank.WORDS for each in findings):  # then the code of the same reply says nothing new
        findings = [each for each in findings if each.rank != Rank.CODE]
    return findings


def as_text(findings: list[Finding]) -> str:
    """The findings for a person: the first in full, of the others a line each."""
    if not findings:
        return f"{NOT_KNOWN}: nothing here that labkit recognises; it does not guess"
    first, *others = findings
    lines = [str(first.explanation)]
    if first.explanation.notebook:
        lines.append(f"practise it: notebook {first.explanation.notebook}")
    lines.append(wrapped(f"seen in line {first.line}: {first.quote}"))
    told = [f"line {each.line}: {each.explanation.diagnosis}: {each.explanation.what}" for each in others]
    if told:
        lines += ["", "also there:", *(wrapped(f"  {each}") for each in told)]
    return "\n".join(lines)


def as_json(findings: list[Finding]) -> str:
    """The findings for a program: ``{"known": ..., "findings": [...]}``."""
    told = [
        {
            "diagnosis": each.explanation.diagnosis,
            "what": each.explanation.what,
            "said": each.explanation.said,
            "closed_by": each.explanation.closed_by,
            "retry": each.explanation.kind.value,
            "advice": each.explanation.advice,
            "notebook": each.explanation.notebook or None,
            "line": each.line,
            "quote": each.quote,
        }
        for each in findings
    ]
    return json.dumps({"known": bool(told), "findings": told}, indent=2)


def masked(text: str) -> str:
    """Return *text* without the passwords in its URLs, or behind words such as ``password=``."""
    for pattern in _SECRETS:
        text = pattern.sub(rf"\g<1>{MASK}", text)
    return text


_SIGNS = [(case, case.patterns()) for case in (*WORDS, *TYPES)]
_BY_CODE = {case.code: case for case in CODES}


def _matches(text: str) -> list[tuple[Case, int]]:
    lowered = text.lower()
    if len(lowered) != len(text):  # a few letters have two in lower case; then positions would be wrong
        text = "".join(each if len(each.lower()) == 1 else "?" for each in text)
        lowered = text.lower()
    found: dict[str, tuple[Case, int]] = {}
    for case, signs in _SIGNS:
        starts = [
            match.start()
            for word, pattern in signs
            if word in lowered and (match := pattern.search(lowered)) is not None
        ]
        if starts:
            found[case.name] = case, min(starts)
    for match in _CODE.finditer(text):
        number = next(value for value in match.groups() if value is not None)
        code = int(number) if number.isdigit() else _CODE_NAMES[number.upper()]
        if code in _BY_CODE and code != 200:  # 200: somebody asked for it, and the text says who
            case = _BY_CODE[code]
            found.setdefault(case.name, (case, match.start()))
    return list(found.values())


def _finding(text: str, case: Case, start: int) -> Finding:
    line = text.count("\n", 0, start) + 1
    begin = text.rfind("\n", 0, start) + 1
    end = text.find("\n", start)
    whole = text[begin : end if end >= 0 else len(text)]
    shown = whole.strip() if len(whole) <= QUOTED else text[max(begin, start - 40) : start + QUOTED - 40].strip()
    kind = case.verdict()
    explanation = Explanation(
        error=case.name,
        what=case.what,
        said=_said(text[max(begin, start - 2 * QUOTED) : start + 2 * QUOTED]) if case.closed_by == BROKER else "",
        closed_by=case.closed_by,
        advice=case.advice or ADVICE[kind],
        kind=kind,
        diagnosis=case.name,
        notebook=case.notebook,
    )
    return Finding(explanation, line, printable(shown), case.rank)


def _said(around: str) -> str:
    """The broker's words in a line, as far as they can be told from what the client puts around them."""
    found = _SAID.search(around)
    text = found[0] if found else ""
    if not text:
        logged = _LOGGED.search(around)
        text = logged["text"] if logged else ""
    text = _END.sub("", text).strip(' "')
    if text.count("'") % 2:  # one of them is the client's
        text = text.removesuffix("'") if text.endswith("'") else f"{text}'"
    return printable(text)
