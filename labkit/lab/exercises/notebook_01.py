"""Exercises of 01: in which order frames cross the wire, and who ended a connection.

Both checks open connections of their own and compare with what a tap records then and there, so that they stay right
when a client library or a broker changes what it says.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator

import pika
from pika.exceptions import AMQPError

from labkit import brokers
from labkit.lab.checks import Exercise, checked_function, run
from labkit.settings.settings import BrokerSettings
from labkit.trials import NotYet
from labkit.wire import Conversation, Proxy
from labkit.wire.conversation import Row

VIRTUAL_HOST = "lab-01"
QUEUE = "orders-of-the-check"
HEARTBEAT = 600  # seconds; none may fall into a conversation that lasts a moment
LIMIT = 5.0  # seconds for Pika to notice what has happened already

QUEUE_IS_THERE = "ch 2 Queue.DeclareOk"
MESSAGE_IS_WHOLE = "ch 1 ContentBody"
WHO = ("client", "broker", "nobody")


def _settings() -> BrokerSettings:
    return brokers.up().vhost(VIRTUAL_HOST)


@contextlib.contextmanager
def _connected(proxy: Proxy) -> Iterator[pika.BlockingConnection]:
    connection = pika.BlockingConnection(proxy.settings(heartbeat=HEARTBEAT).to_pika())
    try:
        yield connection
    finally:
        if connection.is_open:
            # Pika may not have noticed a cut: then close() raises what the next call would have raised.
            with contextlib.suppress(AMQPError):
                connection.close()


# -- 01.1: two channels -------------------------------------------------------------------------------------------


def recorded_cards() -> list[str]:
    """Run the script of exercise 01.1 and return its frames as cards, in the order in which a tap saw them."""
    with Proxy(_settings()) as proxy, _connected(proxy) as connection:
        mark = proxy.mark()
        front = connection.channel()
        report = connection.channel()
        report.queue_declare(QUEUE, exclusive=True)
        front.basic_publish("", QUEUE, b"order 1")
        report.close()
        return [f"ch {frame.channel} {frame.name}" for frame in proxy.conversation().since(mark).frames]


def _ordered(answer: object) -> str:
    if not isinstance(answer, (list, tuple)) or not all(isinstance(card, str) for card in answer):
        raise NotYet("answer should be the list of cards, each a text such as 'ch 1 Channel.Open'")
    given = [" ".join(card.split()) for card in answer]
    recorded = recorded_cards()
    _the_same_cards(given, recorded)
    for channel in ("ch 1", "ch 2"):
        _in_order(channel, given, recorded)
    if given.index(MESSAGE_IS_WHOLE) < given.index(QUEUE_IS_THERE):
        raise NotYet(
            "each channel is in order, but the message is whole before the broker has said that the queue is there: "
            "it can be dropped without a word. Channels do not wait for each other; the program has to"
        )
    if given == recorded:
        return "the tap recorded the same order"
    return "a legal order, though not the recorded one: only frames of one channel have an order, and Pika waits longer"


def _the_same_cards(given: list[str], recorded: list[str]) -> None:
    for card in given:
        if card not in recorded:
            raise NotYet(f"{card!r} is not one of the cards: move the lines, and leave their text as it is")
    missing, doubled = Counter(recorded) - Counter(given), Counter(given) - Counter(recorded)
    if missing:
        raise NotYet(f"{len(missing)} of {len(recorded)} cards are missing, such as {min(missing)!r}")
    if doubled:
        raise NotYet(f"the card {min(doubled)!r} is there more than once")


def _in_order(channel: str, given: list[str], recorded: list[str]) -> None:
    wanted = [card for card in recorded if card.startswith(channel)]
    for card, right in zip([card for card in given if card.startswith(channel)], wanted, strict=True):
        if card != right:
            raise NotYet(
                f"look at {channel} alone: {card.removeprefix(channel).strip()} comes too early. "
                "Which frame of the same channel must have crossed before it?"
            )


# -- 01.2: who ended it -------------------------------------------------------------------------------------------


def _client_closes(proxy: Proxy) -> None:
    with _connected(proxy) as connection:
        connection.channel()


def _client_closes_after_a_404(proxy: Proxy) -> None:
    with _connected(proxy) as connection:
        _ask_for_a_missing_queue(connection)


def _broker_refuses(proxy: Proxy) -> None:
    elsewhere = proxy.settings(virtual_host=f"{VIRTUAL_HOST}-nowhere", connection_attempts=1)
    with contextlib.suppress(AMQPError):
        pika.BlockingConnection(elsewhere.to_pika()).close()


def _cut_after_a_404(proxy: Proxy) -> None:
    with _connected(proxy) as connection:
        _ask_for_a_missing_queue(connection)
        proxy.cut()
        with contextlib.suppress(AMQPError):
            # Not process_data_events: after a 404 its first call only clears up the channel, and reads nothing.
            connection.sleep(LIMIT)


def _ask_for_a_missing_queue(connection: pika.BlockingConnection) -> None:
    with contextlib.suppress(AMQPError):
        connection.channel().queue_declare("no-such-queue", passive=True)


CASES: tuple[tuple[str, Callable[[Proxy], None], str], ...] = (
    ("the client closed its connection", _client_closes, "client"),
    ("the broker closed a channel, and later the client closed the connection", _client_closes_after_a_404, "client"),
    ("the broker refused the virtual host", _broker_refuses, "broker"),
    ("the broker closed a channel, and later the link was cut", _cut_after_a_404, "nobody"),
)


def _conversation(happens: Callable[[Proxy], None]) -> Conversation:
    with Proxy(_settings()) as proxy:
        happens(proxy)
        return proxy.conversation()


def _said_by(rows: tuple[Row, ...]) -> str:
    """Return who said Connection.Close first, or ``nobody``."""
    closes = [row for row in rows if row.what == "Connection.Close"]
    if not closes:
        return "nobody"
    return "client" if closes[0].direction == "upstream" else "broker"


def _names_who_ended(answer: object) -> str:
    checked_function(answer)
    for story, happens, right in CASES:
        rows = _conversation(happens).rows()
        if _said_by(rows) != right:  # pragma: no cover - the broker did something else than this exercise is about
            raise NotYet(f"the bench could not play this: {story}. Run the check again")
        given = run(answer, rows)
        if given is None:
            raise NotYet("your function returns None: is there a path without a return?")
        if given not in WHO:
            raise NotYet(f"your function returns {given!r}; it should be one of {', '.join(WHO)}")
        if given != right:
            raise NotYet(f"{story}: your function says {given!r}. Which row tells, and on which channel?")
    return f"{len(CASES)} of {len(CASES)} endings named, each played on a connection of its own"


EXERCISES = (
    Exercise(
        "01.1",
        _ordered,
        hints=(
            "Which of the two, Open or OpenOk, is a question, and which is its answer?",
            "Sort the cards of each channel on their own first. Then merge the two piles like cards.",
            "Pika waits for the answer after channel(), queue_declare() and close(), and not after basic_publish().",
            "Channel 1: Open, OpenOk, Publish, header, body. Channel 2: Open, OpenOk, Declare, DeclareOk, the rest.",
        ),
    ),
    Exercise(
        "01.2",
        _names_who_ended,
        hints=(
            "Which frame says that a connection, and not a channel, is to end?",
            "Each row has .what (the frame's name) and .direction ('upstream' is client to broker, 'downstream' back).",
            "Return at the first row whose .what is 'Connection.Close'. What is left to say after the loop?",
        ),
    ),
)
