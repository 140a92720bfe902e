"""Whose mistake ended a link, and what is not tried again for it. The whole rule; no I/O, no thread of its own.

Most mistakes cost their channel only, and name themselves by that. Some make the broker end the whole connection: a
frame that is too large, ``get`` on a stream, an exchange type that an old broker does not know, a feature that it does
not permit any more. Its words do not say which of the calls on their way it means, so what is tried again on the next
link would end that too, and the next. The rule:

* Why an open link ended never ends recovery. Lost links, silence and an operator's close blame nobody.
* Only a close with a code of :data:`MISTAKES` (or 541, "deprecated") blames, and only if exactly one step was in hand:
  one that was begun on the link and not answered.
* After such a close, messages that were in hand go one at a time, so that the next one names its cause.
* Two of them without a success of that step in between set it aside, until it is asked for again.
"""

from collections import Counter
from collections.abc import Collection, Hashable, Iterable

import pika.exceptions as px

from labkit.topology import Binding, Exchange, Queue
from labkit.verdicts import DEPRECATED, LIMIT_REACHED, Kind, classify

# AMQP 0-9-1, section 1.2 (Constants): frame error, syntax error, command invalid, channel error, unexpected frame, not
# allowed, not implemented. Not 506 (resource error) and 541 (internal error): those are the broker's own trouble.
MISTAKES = frozenset({501, 502, 503, 504, 505, 530, 540})
INTERNAL_ERROR = 541
STRIKES = 2  # closes over the same step after which it is set aside: one may be a coincidence

Step = Hashable
#: A call of the user's own, or the opening of a channel: it may be to blame, and is not repeated, so not set aside.
SOMEBODY: Step = "somebody"


def declaring(entity: Exchange | Queue | Binding, name: str) -> Step:
    """Return the step of declaring *entity*: the same for whoever declares what has that *name*."""
    return entity if isinstance(entity, Binding) else (type(entity), name)


def is_mistake(reason: BaseException) -> bool:
    """Whether the broker ended the connection over something that it was sent."""
    if not isinstance(reason, px.ConnectionClosedByBroker):
        return False
    code, text = reason.reply_code, str(reason.reply_text)
    if code == INTERNAL_ERROR:
        return bool(DEPRECATED.search(text))
    return code in MISTAKES and not LIMIT_REACHED.search(text)


def kind_of_loss(reason: BaseException) -> Kind:
    """Return what the end of an *open* link means for the next attempt: BUSY, wait longer first, or TRANSIENT."""
    return Kind.BUSY if classify(reason).kind is Kind.BUSY else Kind.TRANSIENT


class Suspects:
    """Steps one of which is to blame: each is tried alone until it has succeeded. For one thread."""

    def __init__(self) -> None:
        self._steps: set[Step] = set()
        self._alone: Step | None = None

    def __len__(self) -> int:
        return len(self._steps)

    def __repr__(self) -> str:
        return f"Suspects({len(self._steps)})"

    def add(self, steps: Iterable[Step]) -> None:
        """Suspect *steps* from now on."""
        self._steps.update(steps)

    def must_wait(self, step: Step, *, is_any_in_hand: bool) -> bool:
        """Whether *step* may not begin now: a suspect is in hand alone, or *step* is one and something is in hand."""
        return self._alone is not None or (step in self._steps and is_any_in_hand)

    def began(self, step: Step) -> None:
        """Take note that *step* is in hand now."""
        if step in self._steps:
            self._alone = step

    def stopped(self, steps: Collection[Step]) -> None:
        """Take note that *steps* are not in hand any more, and have not succeeded."""
        if self._alone in steps:
            self._alone = None

    def clear(self, step: Step) -> None:
        """Suspect *step* no more: it has succeeded, or will not be tried again."""
        self._steps.discard(step)
        if self._alone == step:
            self._alone = None


class Blame:
    """What the ends of one connection's links say about the steps that it repeats. On the I/O thread.

    Attributes:
        suspects: Messages that were in hand when the broker ended a link over a mistake.
        aside: What is not tried any more, and the close that it is to blame for.
    """

    def __init__(self) -> None:
        self.suspects = Suspects()
        self.aside: dict[Step, BaseException] = {}
        self._strikes: Counter[Step] = Counter()

    def __repr__(self) -> str:
        return f"Blame(suspects={len(self.suspects)}, aside={len(self.aside)})"

    def __bool__(self) -> bool:
        return bool(self.aside or self._strikes or self.suspects)

    def link_ended(self, in_hand: Collection[Step], reason: BaseException) -> None:
        """Judge the end of a link: *in_hand* is what was begun on it and not answered, each step once."""
        if not is_mistake(reason) or len(in_hand) != 1:
            return
        (step,) = in_hand
        if step == SOMEBODY:
            return
        self._strikes[step] += 1
        if self._strikes[step] >= STRIKES:
            self.clear(step)
            self.aside[step] = reason

    def clear(self, step: Step) -> None:
        """Forget what is held against *step*: it has succeeded, is not wanted any more, or is asked for again."""
        self._strikes.pop(step, None)
        self.aside.pop(step, None)
        self.suspects.clear(step)
