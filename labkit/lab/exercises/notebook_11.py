"""The check of notebook 11: an alert rule that waits a little, rings once, and says once that it is over. No clock."""

from collections.abc import Callable
from typing import Any, Final

from labkit.lab.checks import Exercise, describe
from labkit.trials import NotYet

PATIENCE: Final = 10.0  # seconds, the rule's own

Look = tuple[float, bool, str | None]  # seconds, whether the connection is open, what the rule should say

STORIES: Final[tuple[tuple[str, str, tuple[Look, ...]], ...]] = (
    # the story, what to think about, the looks
    ("an hour without a fault", "nothing is wrong, so there is nothing to say",
     ((0, True, None), (1800, True, None), (3600, True, None))),
    ("a link that is back after 6 s", "a short loss wakes nobody: how long has it lasted?",
     ((0, True, None), (5, False, None), (8, False, None), (11, True, None))),
    ("an outage of a minute", "it is said once, however long it lasts, and its end is said once",
     ((0, True, None), (5, False, None), (14, False, None), (15, False, "raise"), (20, False, None), (64, False, None),
      (65, True, "clear"), (70, True, None), (75, True, None))),
    ("two short losses, one after the other", "each loss has its own beginning: what should the look in between undo?",
     ((0, True, None), (5, False, None), (12, False, None), (13, True, None), (14, False, None), (21, False, None),
      (23, True, None))),
    ("two outages", "the second outage is a new one, and rings again",
     ((0, False, None), (10, False, "raise"), (30, True, "clear"), (40, False, None), (50, False, "raise"),
      (60, False, None), (61, True, "clear"))),
    ("a program that begins during an outage", "time counts from the first look that found it lost",
     ((1000, False, None), (1009, False, None), (1010, False, "raise"), (1011, True, "clear"))),
)  # fmt: skip


def _rule(answer: object) -> str:
    if not isinstance(answer, type):
        raise NotYet(f"Rule should be a class; it is {type(answer).__name__} now")
    first, second = _made(answer), _made(answer)
    _say(first, -100.0, False)
    if _say(second, -97.0, False) is None and _say(second, -97.0 + PATIENCE - 1, False) is not None:
        raise NotYet("two connections have a rule each, and telling one of them changed the other")
    for story, question, looks in STORIES:
        rule = _made(answer)
        for now, is_open, wanted in looks:
            said = _say(rule, now, is_open)
            if said != wanted:
                seen = "open" if is_open else "lost"
                raise NotYet(
                    f"{story}: at {now:g} s it is {seen}, the rule says {said!r} and should say {wanted!r}; {question}"
                )
    return f"{len(STORIES)} stories: it waits, it rings once, and it says once that it is over"


def _made(rule: Callable[[float], Any]) -> Any:
    made = rule(PATIENCE)
    if not callable(getattr(made, "look", None)):
        raise NotYet("Rule(patience) should have a method look(now, is_open)")
    return made


def _say(rule: Any, now: float, is_open: bool) -> str | None:
    said = rule.look(float(now), is_open)
    if said not in (None, "raise", "clear"):
        raise NotYet(f"look returns 'raise', 'clear' or None; it returned {describe(said)}")
    return said  # type: ignore[no-any-return]


EXERCISES = (
    Exercise(
        "11.1",
        _rule,
        hints=(
            "Which two things must the rule remember from one look to the next?",
            "Since when it is lost (None: it is not), and whether it has rung. An open look forgets both.",
            "Lost and not rung, with now - self.lost_since >= self.patience: it has rung, 'raise'. Open: forget both.",
        ),
    ),
)
