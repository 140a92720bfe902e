"""Explain an error to a learner: what happened, who closed it, what to do. Pure functions, no I/O.

The texts hold no port, time or id, so a notebook may print them and compare. What the broker said is quoted: its texts
are the same on RabbitMQ 3.10 to 4.3.
"""

import re
import textwrap
from dataclasses import dataclass

import pika.exceptions as px

from labkit import errors
from labkit.diagnosis.explanations import BROKER, CODES, NETWORK, NOBODY, OURS, TYPES
from labkit.errors import Kind, classify
from labkit.printable import printable
from labkit.verdicts import PEER_GONE, reply_code, root_cause

WIDTH = 90  # columns; what a narrow browser window shows of a cell's output
# Where one of these has a cause, the cause says what to do; the others are a verdict already.
TOLD_BY_THEIR_CAUSE = (errors.LabkitError, errors.ConnectError, errors.NotConnected, errors.ChannelLost)


@dataclass(frozen=True, slots=True)
class Explanation:
    """What an error means. ``str()`` is three or four facts that stay the same on every machine, in lines of at most
    90 columns.

    Attributes:
        error: The error's class.
        what: What happened.
        said: The broker's own words, where it gave any; else empty.
        closed_by: ``client``, ``broker``, ``network`` or ``nobody``.
        advice: What to do.
        kind: What a retry would meet.
    """

    error: str
    what: str
    said: str
    closed_by: str
    advice: str
    kind: Kind

    def __str__(self) -> str:
        lines = [
            f"{self.error}: {self.what}",
            f"the broker says: {self.said}" if self.said else "",
            f"closed by: {self.closed_by} ({self.kind.value})",
            f"what to do: {self.advice}",
        ]
        return "\n".join(_wrapped(line) for line in lines if line)

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
    if code is not None:
        what, closed_by = CODES.get(code, "the broker gave a reason of its own"), BROKER
        if isinstance(cause, px.ProbableAuthenticationError):
            what = "the broker does not accept this user name and password"
        what = f"{what} ({code})"
        if isinstance(cause, px.ConnectionClosedByClient | px.ChannelClosedByClient):
            what, closed_by = _by_type(cause)
    else:
        what, closed_by = _by_type(cause)
        if isinstance(cause, px.IncompatibleProtocolError) and verdict.kind is Kind.REFUSED:
            what, closed_by = "the broker broke off the TLS handshake: it wants another certificate of us", BROKER
    advice = verdict.advice
    ours = next((entry for entry in OURS if isinstance(error, entry[0])), None)
    if ours is not None and (cause is error or type(error) not in TOLD_BY_THEIR_CAUSE):
        advice = ours[3]
        if isinstance(error, errors.OutcomeUnknown):
            what = ours[1] if cause is error else f"{ours[1]}; {what}"
        elif isinstance(error, errors.TlsError):
            what, closed_by = ours[1:3]
    said = printable(_words(cause)) if closed_by == BROKER else ""
    return Explanation(type(error).__name__, what, said, closed_by, advice, verdict.kind)


# Pika's "probable" errors hold the broker's close as text: ("ConnectionClosedByBroker: (530) 'NOT_ALLOWED - ...'",)
_QUOTED = re.compile(r"""\(\d{3}\) (['"])(?P<text>.*?)\1""")


def _words(cause: BaseException) -> str:
    text = getattr(cause, "reply_text", None)
    if isinstance(text, str):
        return text
    quoted = _QUOTED.search(str(cause))
    return quoted["text"] if quoted else ""


def _by_type(cause: BaseException) -> tuple[str, str]:
    if isinstance(cause, ValueError) and PEER_GONE in str(cause):
        return "the other side hung up as soon as it had accepted", NETWORK
    for cls, what, closed_by in TYPES:
        if isinstance(cause, cls):
            return what, closed_by
    return "the program failed by itself; no connection is to blame", NOBODY


def _wrapped(line: str) -> str:
    return textwrap.fill(line, WIDTH, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
