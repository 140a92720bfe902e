"""One thing that goes wrong, as data: how it is recognised, what it means, and what to do. No I/O.

``explanations`` and ``broker_words`` hold the cases. ``explain`` finds the one that an exception stands for,
``reading`` those that a text tells of, and the atlas lists them.
"""

import re
from dataclasses import dataclass
from enum import IntEnum

import pika.exceptions as px

from labkit.verdicts import PLACES, REPLY_CODES, Kind

CLIENT, BROKER, NETWORK, NOBODY = "client", "broker", "network", "nobody"


class Rank(IntEnum):
    """How much a case says. In a text that tells of several, the lowest is what happened; the rest came with it."""

    WORDS = 0  # the broker's own words
    CODE = 1  # its reply code
    CLIENT = 2  # what a client library or the system says
    GENERAL = 3  # likewise, where something more exact often stands beside it
    CONSEQUENCE = 4  # what follows from another failure, or wraps it


@dataclass(frozen=True, slots=True)
class Case:
    """One thing that goes wrong.

    Attributes:
        name: What it is called in ``labkit explain``, in its JSON and in the atlas.
        what: What happened.
        closed_by: ``client``, ``broker``, ``network`` or ``nobody``.
        advice: What to do; empty: what the verdict on its kind says.
        types: The exceptions that mean it.
        code: The AMQP reply code that comes with it; None if any, or none, does.
        signs: What gives it away in a text: patterns for lower case; a space stands for any white space, ``…`` for
            up to 160 characters of the same line.
        notebook: The number of the lesson where it is met; empty if none.
        rank: How much it says beside others.
        kind: What a retry would meet; None: as its code, else its first type, says.
    """

    name: str
    what: str
    closed_by: str
    advice: str = ""
    types: tuple[type[BaseException], ...] = ()
    code: int | None = None
    signs: tuple[str, ...] = ()
    notebook: str = ""
    rank: Rank = Rank.CLIENT
    kind: Kind | None = None

    def verdict(self) -> Kind:
        """What a retry would meet, as far as the case alone tells."""
        if self.kind is not None:
            return self.kind
        if self.code is not None:
            return REPLY_CODES[self.code]
        for each in self.types:
            own = getattr(each, "kind", None)
            if isinstance(own, Kind):
                return own
            return next((PLACES[cls] for cls in each.__mro__ if cls in PLACES), Kind.TRANSIENT)
        return Kind.TRANSIENT

    def patterns(self) -> list[tuple[str, re.Pattern[str]]]:
        """What finds the case in a text in lower case: a word that is in each such text, and the pattern itself.

        Every repetition in a pattern is bounded, so a search takes time in proportion to the text.
        """
        signs = [*self.signs, *(sign for each in self.types for sign in _class_signs(each))]
        return [(_word_of(each), _compiled(each)) for each in signs]


def _compiled(sign: str) -> re.Pattern[str]:
    return re.compile(sign.replace("…", r"[^\n]{0,160}?").replace(" ", r"\s{1,40}"))


def _word_of(sign: str) -> str:
    """The longest run of plain characters that no text can do without; looking for it is much faster."""
    plain = re.sub(r"\(\?:(?:[^()]|\([^()]*\))*\)\??|\[[^\]]*\]|\{[^}]*\}\??|\\.|.\?|[ ….|]", "\0", sign)
    return max(plain.split("\0"), key=len)


# Classes whose bare name others use too, or that anything may raise: their name alone says too little.
_NOT_BY_NAME = (px.AuthenticationError, px.AMQPConnectionError, TimeoutError, FileNotFoundError)


def _class_signs(cls: type[BaseException]) -> list[str]:
    name = cls.__name__.lower()
    if cls.__module__.startswith("labkit"):
        return [rf"\blabkit\.(?:\w{{1,40}}\.){{1,4}}{name}\b"]
    if cls in _NOT_BY_NAME:
        return [rf"\bpika\.(?:\w{{1,40}}\.){{1,4}}{name}\b"] if cls.__module__.startswith("pika") else []
    if cls is OSError:
        return []
    return [rf"\b{name}\b"]
