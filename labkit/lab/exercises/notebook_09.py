"""Exercises of 09: the order of an end, forwarding without loss, a manager for the eight faults (on the broker)."""

import itertools
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from labkit.errors import OutcomeUnknown, Unroutable
from labkit.lab.checks import Exercise, describe, run
from labkit.manager import ConnectionManager
from labkit.messaging.confirmations import Confirmation, Outcome
from labkit.settings.settings import BrokerSettings
from labkit.topology import Message
from labkit.trials import EIGHT, Manager, NotYet, run_trials

# -- 09.1: the order of an end -------------------------------------------------------------------------------------

STOP, FINISH, CONFIRM, CLOSE = "take no more", "let the handlers finish", "wait for the confirms", "close the links"
END: Final = (STOP, FINISH, CONFIRM, CLOSE)
WHY: Final = {
    (FINISH, STOP): "while one handler finishes, the next order is taken: that never ends",
    (CONFIRM, STOP): "orders are still being taken, and each may publish: there is always one more confirm",
    (CONFIRM, FINISH): "a handler that finishes may publish once more, and nobody would wait for that confirm",
    (CLOSE, STOP): "on a closed link there is nothing left to stop; what was on its way is lost to you",
    (CLOSE, FINISH): "a handler that finishes wants to acknowledge, and its link is closed: the order comes again",
    (CLOSE, CONFIRM): "a confirm cannot come over a closed link: what is on its way stays unknown",
}
"""What goes wrong when the first is done before the second."""


def _end(answer: object) -> str:
    if not isinstance(answer, list | tuple):
        raise NotYet(f"ending should be a list of the four steps; it is {type(answer).__name__} now")
    for step in answer:
        if step not in END:
            raise NotYet(f"there is no step {step!r}")
    missing = [step for step in END if step not in answer]
    if missing or len(answer) != len(END):
        raise NotYet(f"each of the four steps once; yours has {len(answer)}, and {len(missing)} of them are missing")
    for earlier, later in itertools.combinations(answer, 2):
        if (earlier, later) in WHY:
            raise NotYet(f"{earlier!r} before {later!r}: {WHY[earlier, later]}")
    return "what takes, then what works, then what sends, then the links"


# -- 09.2: forward without loss ------------------------------------------------------------------------------------

SLOWLY: Final = 0.15  # seconds until the broker's answer comes
ORDER: Final = Message("order 7", message_id="order-7")


class _Delivery:
    """An order from a queue. Has what a labkit Delivery has, and remembers when it was settled."""

    def __init__(self, story: list[str]) -> None:
        self.message, self.body, self.redelivered = ORDER, ORDER.body, False
        self._story = story

    def ack(self) -> None:
        """The order may be forgotten."""
        self._story.append("ack")

    def nack(self, *, requeue: bool = True) -> None:
        """The message goes back, or to the dead letters."""
        self._story.append("back" if requeue else "dead letter")

    def reject(self, *, requeue: bool = False) -> None:
        """The same."""
        self.nack(requeue=requeue)


class _Forwarder:
    """A manager whose broker answers slowly, and not always with yes."""

    def __init__(self, story: list[str], outcome: Outcome, error: Exception | None) -> None:
        self.sent: list[tuple[str, str, Message]] = []
        self._story, self._outcome, self._error = story, outcome, error

    def publish(self, exchange: str, routing_key: str, body: bytes | str | Message, *_: Any, **__: Any) -> Confirmation:
        """As a ConnectionManager does: return the future at once."""
        self.sent.append((exchange, routing_key, Message.of(body)))
        confirmation = Confirmation(exchange=exchange, routing_key=routing_key, ends=time.monotonic() + 5)

        def answer() -> None:
            self._story.append("answer")
            confirmation.settle(self._outcome, self._error)

        threading.Timer(SLOWLY, answer).start()
        return confirmation


def _forwards(answer: object) -> str:
    story, sent, error = _told(answer, Outcome.CONFIRMED, None)
    if error is not None:
        raise NotYet(f"the broker confirmed it, and forward() raised {describe(error)}")
    if [each[:2] for each in sent] != [("", "tickets")]:
        raise NotYet("it should publish once, to the exchange '' with the routing key 'tickets'")
    if sent[0][2].body != ORDER.body:
        raise NotYet("what was published is not the order that was delivered")
    if story.count("ack") != 1:
        raise NotYet(f"it acknowledged {story.count('ack')} times: once is right, at the end")
    if story != ["answer", "ack"]:
        raise NotYet("it acknowledged before the broker had confirmed: a cut in between, and nobody has the order")
    for outcome, refusal in (
        (Outcome.RETURNED, Unroutable("no queue for it", exchange="", routing_key="tickets")),
        (Outcome.UNKNOWN, OutcomeUnknown("no answer by its deadline", message_id=None)),
    ):
        story, _, error = _told(answer, outcome, refusal)
        what = "no queue took it" if outcome is Outcome.RETURNED else "no answer came"
        if "ack" in story:
            raise NotYet(f"{what}, and it acknowledged all the same: nobody has the order")
        if error is None and not {"back", "dead letter"} & set(story):
            raise NotYet(f"{what}, and forward() returned in silence: the order stays with you, unsettled, forever")
    if sent[0][2].message_id != ORDER.message_id:
        raise NotYet("the order's message_id is gone: whoever gets it twice cannot know. Publish delivery.message")
    return "confirmed first, acknowledged second; what is not confirmed is not acknowledged"


def _told(
    answer: object, outcome: Outcome, refusal: Exception | None
) -> tuple[list[str], list[tuple[str, str, Message]], Exception | None]:
    """Have the learner's function forward one order; return what happened in order, what was sent, what was raised."""
    story: list[str] = []
    manager = _Forwarder(story, outcome, refusal)
    error: Exception | None = None
    try:
        run(answer, manager, _Delivery(story))
    except NotYet:
        raise
    except Exception as exc:  # noqa: BLE001 - raising is one right answer to a refusal
        error = exc
    ends = time.monotonic() + 1.0
    while manager.sent and "answer" not in story and time.monotonic() < ends:
        time.sleep(0.01)  # until the answer has come, so that it is not told into the next case
    return list(story), manager.sent, error


# -- 09.3: eight faults --------------------------------------------------------------------------------------------


def _survives(answer: object) -> str:
    if answer is ConnectionManager or (isinstance(answer, type) and issubclass(answer, ConnectionManager)):
        raise NotYet("that one is finished. Put your own together, from Connection, Publisher and Consumer")
    if not callable(answer):
        raise NotYet(f"Manager should be a class; it is {type(answer).__name__} now")
    report = run_trials(_made_by(answer), stop_early=True)
    failed = report.first_failure
    if failed is not None:
        raise NotYet(f"fault {failed.trial.number} of {len(EIGHT)}, {failed.trial.fault}: {failed.said}")
    return f"{report.passed} of {len(EIGHT)} faults survived"


def _made_by(answer: Callable[[BrokerSettings], Any]) -> Callable[[BrokerSettings], Manager]:
    def make(settings: BrokerSettings) -> Manager:
        manager = answer(settings)
        held = getattr(manager, "__dict__", {}).values()
        if any(isinstance(each, ConnectionManager) for each in (manager, *held)):
            raise NotYet("there is a ConnectionManager inside. Use its parts: Connection, Publisher and Consumer")
        return manager  # type: ignore[no-any-return]

    return make


EXERCISES: tuple[Exercise, ...] = (
    Exercise(
        "09.1",
        _end,
        hints=(
            "Who can still make work for whom? A handler publishes. A publish needs a confirm. Both need a link.",
            "Begin with what brings new work in, end with what all the others need.",
            "First 'take no more', last 'close the links'. What may a handler do while it finishes?",
        ),
    ),
    Exercise(
        "09.2",
        _forwards,
        hints=(
            "The link is cut between the first line and the second. Where is the order now?",
            "publish() returns a future at once. Which of its methods waits for the broker's answer?",
            "result() returns on a confirm and raises otherwise. What must come after it?",
        ),
    ),
    Exercise(
        "09.3",
        _survives,
        hints=(
            "run_trials(Manager) shows all eight at once. Which of your three verbs does each failure name?",
            "Publisher(settings) reconnects, sends again and waits for confirms. Which verb gets shorter with it?",
            "Consumer(connection, queue, handler) needs a connection with recovery=True, and open().",
            "Fault 7: acknowledgements must not share the publisher's connection. Give the consumers one of their own.",
        ),
        seconds=150.0,
    ),
)
