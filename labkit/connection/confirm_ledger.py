"""Which publish does the broker's answer belong to? The numbers of one channel in confirm mode. No I/O, no Pika.

The order of the broker's answers is where the bugs hide, and here every order can be tried without a broker.

Reference: RabbitMQ, "Consumer Acknowledgements and Publisher Confirms"; AMQP 0-9-1, section 1.8.3 (basic.return).
"""

from collections import OrderedDict
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

Facts = tuple[str, str, str | None, bytes]  # exchange, routing key, message_id, body


class Sent(Protocol):
    """What was sent.

    Attributes:
        returned: The broker's reply code and text if it came back.
    """

    returned: tuple[int, str] | None

    @property
    def stamp(self) -> object:
        """By what it is known if it comes back, different for each; None: by its facts only."""

    @property
    def facts(self) -> Facts:
        """All that the broker says of it if it comes back."""


S = TypeVar("S", bound=Sent)


class ConfirmLedger(Generic[S]):
    """Pair the broker's answers with what was sent on one channel. For one thread.

    The broker numbers the publishes of a channel from 1, beginning with the first after ``Confirm.Select``; so does
    this. It must be told of each publish that was written, of none that was not, and of each channel's end.
    """

    def __init__(self) -> None:
        self._open: OrderedDict[int, S] = OrderedDict()  # what the broker has not answered, oldest first
        self._stamped: dict[object, S] = {}  # the same, by stamp
        self._next = 1

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[S]:
        return iter(self._open.values())

    def __repr__(self) -> str:
        return f"ConfirmLedger({len(self._open)} on their way)"

    def started(self) -> list[S]:
        """Begin a new channel; return what the old one left unanswered, oldest first."""
        again = list(self._open.values())
        self._open.clear()
        self._stamped.clear()
        self._next = 1
        return again

    def sent(self, each: S) -> int:
        """Count a publish that was written (and not one that could not be encoded); return its number."""
        tag = self._next
        self._open[tag] = each
        if each.stamp is not None:
            self._stamped[each.stamp] = each
        self._next += 1
        each.returned = None
        return tag

    def settled(self, tag: int, multiple: bool) -> list[S]:
        """Return those that an answer is for, oldest first: each once, and none for an answer that comes again.

        Args:
            tag: The number in the answer; with *multiple*, 0 means all.
            multiple: Whether the answer is for all up to that number.
        """
        done: list[S] = []
        if not multiple:
            if tag in self._open:
                done.append(self._open.pop(tag))
        else:
            while self._open and (tag == 0 or next(iter(self._open)) <= tag):
                done.append(self._open.popitem(last=False)[1])
        for each in done:
            self._stamped.pop(each.stamp, None)
        return done

    def returned(self, reply: tuple[int, str], facts: Facts, *, stamp: object = None) -> S | None:
        """Note that a message came back; its confirm is still to come. Return which, None if none fits.

        A return carries no number. With a stamp it is known by that. Without, it is the oldest that equals it in all
        that is given here and has not come back: messages that equal one another in all that are the same to a reader.
        So is one with another publisher's stamp, which a message that is passed on may bring along.
        """
        _, _, message_id, _ = facts
        found = self._stamped.get(message_id) or (self._stamped.get(stamp) if isinstance(stamp, int) else None)
        if found is None or found.facts[2] != message_id:
            found = next((each for each in self._open.values() if each.returned is None and each.facts == facts), None)
        if found is not None:
            found.returned = reply
        return found
