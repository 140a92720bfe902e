"""The exercise of 16: a table of who waits for which answer. No broker."""

import threading
import time
from collections.abc import Callable
from typing import Any, Final

from labkit.lab.checks import Exercise, describe, run
from labkit.trials import NotYet

SOON: Final = 2.0  # seconds in which a call has its answer, many times over
SHORT: Final = 0.2  # seconds of patience of a call that nobody answers
STUCK: Final = 3.0  # seconds after which a call that does not end is given up


class LinkLostError(Exception):
    """What ``send`` raises in the check."""


class _Call(threading.Thread):
    """One call on a thread of its own, and what came of it."""

    def __init__(self, caller: Any, body: str, timeout: float) -> None:
        super().__init__(daemon=True)
        self._caller, self._body, self._timeout = caller, body, timeout
        self.result: object = None
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        """Call."""
        try:
            self.result = self._caller.call(self._body, self._timeout)
        except BaseException as exc:  # noqa: BLE001 - the check looks at it
            self.error = exc

    def ended(self) -> "_Call":
        """Return self when the call has ended.

        Raises:
            NotYet: it does not end.
        """
        self.join(STUCK)
        if self.is_alive():
            raise NotYet(f"a call with a timeout of {self._timeout:g} s was still waiting after {STUCK:g} s")
        return self


def _caller(answer: object) -> str:
    if not isinstance(answer, type):
        raise NotYet(f"Caller should be the class; it is {type(answer).__name__} now")
    for name in ("call", "hear"):
        if not callable(getattr(answer, name, None)):
            raise NotYet(f"Caller has no method {name}")
    _an_answer_may_be_early(answer)
    _nobody_answers(answer)
    _send_fails(answer)
    _a_late_answer_is_dropped(answer)
    _each_gets_its_own(answer)
    return "early, late, missing and mixed-up answers: each call ends with its own or an error, and the table is empty"


def _an_answer_may_be_early(made: Callable[..., Any]) -> None:
    caller: Any = run(made, lambda msg_id, body: caller.hear(msg_id, f"re: {body}"))
    call = _Call(caller, "row 7", SOON).ended()
    if call.error is not None:
        raise NotYet(
            f"the answer came while send() was running, and call() raised {type(call.error).__name__}. "
            "Who has to be in the table before the request goes out?"
        )
    if call.result != "re: row 7":
        raise NotYet(f"call() should return the answer 're: row 7'; it returned {call.result!r:.40}")
    _is_empty(caller, "after an answer")


def _nobody_answers(made: Callable[..., Any]) -> None:
    caller = run(made, lambda msg_id, body: None)  # noqa: ARG005
    call = _Call(caller, "row 8", SHORT).ended()
    if call.error is None:
        raise NotYet(f"nobody answered, and call() returned {call.result!r:.40}")
    if not isinstance(call.error, TimeoutError):
        raise NotYet(f"nobody answered, and call() raised {describe(call.error)}; it should be a TimeoutError")
    _is_empty(caller, "after a timeout")


def _send_fails(made: Callable[..., Any]) -> None:
    def lose(msg_id: str, body: str) -> None:  # noqa: ARG001
        raise LinkLostError("the link is gone")

    caller = run(made, lose)
    call = _Call(caller, "row 9", SHORT).ended()
    if not isinstance(call.error, LinkLostError):
        seen = "nothing" if call.error is None else describe(call.error)
        raise NotYet(f"send() raised LinkLostError, and call() raised {seen}: its caller should hear send's own error")
    _is_empty(caller, "after send() has raised")


def _a_late_answer_is_dropped(made: Callable[..., Any]) -> None:
    sent: list[str] = []
    caller = run(made, lambda msg_id, body: sent.append(msg_id))  # noqa: ARG005
    _Call(caller, "row 10", SHORT).ended()
    try:
        caller.hear(sent[0], "late")
        caller.hear("nobody's", "lost")
    except Exception as exc:
        raise NotYet(
            f"an answer came that nobody waits for, and hear() raised {type(exc).__name__}: that ends the thread which "
            "hears the answers, and nobody gets one any more"
        ) from exc
    _is_empty(caller, "after a late answer")


def _each_gets_its_own(made: Callable[..., Any]) -> None:
    sent: dict[str, str] = {}
    caller = run(made, sent.__setitem__)
    calls = {body: _Call(caller, body, SOON) for body in ("row 1", "row 2", "row 3")}
    ends = time.monotonic() + SOON
    while len(sent) < len(calls):
        if time.monotonic() > ends:
            raise NotYet(f"three calls at once, and {len(sent)} different ids were sent: each needs one of its own")
        time.sleep(0.005)
    for msg_id in reversed(list(sent)):
        caller.hear(msg_id, f"re: {sent[msg_id]}")
    for body, call in calls.items():
        if call.ended().result != f"re: {body}":
            seen = describe(call.error) if call.error else repr(call.result)
            raise NotYet(f"three calls at once: the one for {body!r} got {seen:.60}")
    _is_empty(caller, "after three calls at once")


def _is_empty(caller: Any, when: str) -> None:
    if len(caller.waiting):
        raise NotYet(
            f"{when} the table still has {len(caller.waiting)} entry: a service that calls for weeks fills its memory"
        )


EXERCISES = (
    Exercise(
        "16.1",
        _caller,
        hints=(
            "Suppose send() is fast, and the answer is here before it returns. Where does hear() put it?",
            "Three ways lead out of call(): an answer, a timeout, an error of send(). What runs on all three?",
            "Make the entry first; then try: send and get; except queue.Empty: raise TimeoutError; finally: del.",
            "And hear() asks with self.waiting.get(msg_id): None means that nobody waits any more.",
        ),
        seconds=20.0,
    ),
)
