"""Explain an error to a learner: what happened, who closed it, what to do. Pure functions, no I/O.

The texts hold no port, time or id, so a notebook may print them and compare. What the broker said is quoted: its texts
are the same on RabbitMQ 3.10 to 4.3.
"""

import re
import ssl
import textwrap
from dataclasses import dataclass

import pika.exceptions as px

from labkit import errors
from labkit.diagnosis.broker_words import WORDS
from labkit.diagnosis.cases import BROKER, NETWORK, NOBODY, Case
from labkit.diagnosis.explanations import CODES, TYPES
from labkit.errors import Kind, classify
from labkit.printable import printable
from labkit.verdicts import ENDED_BEFORE, PEER_GONE, reply_code, root_cause

WIDTH = 90  # columns; what a narrow browser window shows of a cell's output
# Where one of these has a cause, the cause says what to do; the others are a verdict already.
TOLD_BY_THEIR_CAUSE = (errors.LabkitError, errors.ConnectError, errors.NotConnected, errors.ChannelLost)


ITSELF = Case("program-failed", "the program failed by itself; no connection is to blame", NOBODY)
HUNG_UP = Case("hung-up-at-once", "the other side hung up as soon as it had accepted", NETWORK)
BROKE_OFF_TLS = Case(
    "client-certificate-refused",
    "the broker broke off the TLS handshake: it wants another certificate of us",
    BROKER,
    notebook="10",
)
OF_ITS_OWN = "the broker gave a reason of its own"
BY_NAME = {case.name: case for case in (*WORDS, *CODES, *TYPES)}
BY_CODE = {case.code: case for case in CODES}


@dataclass(frozen=True, slots=True)
class Explanation:
    """What an error means. ``str()`` is three or four facts that stay the same on every machine, in lines of at most
    90 columns.

    Attributes:
        error: The error's class; in a text, the diagnosis.
        what: What happened.
        said: The broker's own words, where it gave any; else empty.
        closed_by: ``client``, ``broker``, ``network`` or ``nobody``.
        advice: What to do.
        kind: What a retry would meet.
        diagnosis: The name of what happened, such as ``queue-missing``; the same in the atlas.
        notebook: The number of the lesson where it is met; empty if none.
    """

    error: str
    what: str
    said: str
    closed_by: str
    advice: str
    kind: Kind
    diagnosis: str = ""
    notebook: str = ""

    def __str__(self) -> str:
        lines = [
            f"{self.error}: {self.what}",
            f"the broker says: {self.said}" if self.said else "",
            f"closed by: {self.closed_by} ({self.kind.value})",
            f"what to do: {self.advice}",
        ]
        return "\n".join(wrapped(line) for line in lines if line)

    def __repr__(self) -> str:
        return str(self)


def explain(error: BaseException) -> Explanation:
    """Say what happened, who closed it (client, broker, network, nobody) and what to do.

    Raises:
        TypeError: *error* is not an exception.
    """
    verdict = classify(error)
    # Our own refusals (AuthenticationFailed ...) are verdicts; what happened is told by what they were raised from.
    told = error.__cause__ if isinstance(error, errors.ConnectError) and error.__cause__ else error
    cause = root_cause(told)
    code = reply_code(told)
    if code is not None and not isinstance(cause, px.ConnectionClosedByClient | px.ChannelClosedByClient):
        case = _by_code(code, cause)
        what, closed_by, advice = f"{case.what} ({code})", BROKER, case.advice or verdict.advice
    else:
        case = _by_type(cause)
        if isinstance(cause, px.IncompatibleProtocolError) and verdict.kind is Kind.REFUSED:
            case = BROKE_OFF_TLS
        what, closed_by, advice = case.what, case.closed_by, case.advice or verdict.advice
    ours = next((each for each in TYPES if isinstance(error, each.types)), None)
    is_ours = ours is not None and isinstance(error, errors.LabkitError | KeyboardInterrupt)
    if ours is not None and is_ours and (cause is error or type(error) not in TOLD_BY_THEIR_CAUSE):
        advice = ours.advice
        if isinstance(error, errors.OutcomeUnknown):
            what = ours.what if cause is error else f"{ours.what}; {what}"
        elif isinstance(error, errors.TlsError):
            case, what, closed_by = ours, ours.what, ours.closed_by
    said = printable(_words(cause)) if closed_by == BROKER else ""
    return Explanation(
        type(error).__name__, what, said, closed_by, advice, verdict.kind, diagnosis=case.name, notebook=case.notebook
    )


def by_words(text: str, code: int | None = None) -> Case | None:
    """Return the case that the broker's words tell of; None if none is known. With *code*, only one of that code."""
    lowered = text.lower()
    for case, signs in _WORDS:
        fits = case.code is None or code is None or case.code == code
        if fits and any(word in lowered and pattern.search(lowered) for word, pattern in signs):
            return case
    return None


_WORDS = [(case, case.patterns()) for case in WORDS]


def _by_code(code: int, cause: BaseException) -> Case:
    known = by_words(_words(cause), code)
    if known is not None:
        return known
    if isinstance(cause, px.ProbableAuthenticationError):
        return BY_NAME["login-refused"]
    return BY_CODE.get(code, Case(f"reply-code-{code}", OF_ITS_OWN, BROKER))


# Pika's "probable" errors hold the broker's close as text: ("ConnectionClosedByBroker: (530) 'NOT_ALLOWED - ...'",)
_QUOTED = re.compile(r"""\(\d{3}\) (['"])(?P<text>.*?)\1""")


def _words(cause: BaseException) -> str:
    text = getattr(cause, "reply_text", None)
    if isinstance(text, str):
        return text
    quoted = _QUOTED.search(str(cause))
    return quoted["text"] if quoted else ""


def _by_type(cause: BaseException) -> Case:
    if isinstance(cause, ValueError) and PEER_GONE in str(cause):
        return HUNG_UP
    if isinstance(cause, ValueError) and str(cause) == ENDED_BEFORE:
        return BY_NAME["connection-used-after-its-end"]
    if isinstance(cause, px.StreamLostError | px.IncompatibleProtocolError) and _UNREADABLE.search(str(cause)):
        return BY_NAME["unreadable-frame"]
    if isinstance(cause, ssl.SSLError):
        told = str(cause).lower()
        known = (case for case, signs in _OF_TLS if any(pattern.search(told) for _, pattern in signs))
        return next(known, _by_class(cause))
    return _by_class(cause)


# Pika gives a link up when it cannot read what came, and reports it lost.
_UNREADABLE = re.compile(r"\b(?:BodyTooLongError|InvalidFrameError|InvalidFieldTypeException|UnexpectedFrameError): ")
_OF_TLS = [(case, case.patterns()) for case in TYPES if any(issubclass(each, errors.TlsError) for each in case.types)]


def _by_class(cause: BaseException) -> Case:
    return next((case for case in TYPES if isinstance(cause, case.types)), ITSELF)


def wrapped(line: str) -> str:
    """The line in as many of at most 90 columns as it takes, the later ones indented; no word is cut."""
    return textwrap.fill(line, WIDTH, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
