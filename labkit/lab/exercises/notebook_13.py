"""The check of notebook 13: which hours a report is missing for, played in virtual time. No clock."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from labkit.lab.checks import Exercise, describe
from labkit.trials import NotYet

HOUR: Final = timedelta(hours=1)
MIDNIGHT: Final = datetime(2026, 3, 28, tzinfo=UTC)  # a Saturday; that night many countries turn their clocks

STORIES: Final[tuple[tuple[str, str, float, float, tuple[int, ...]], ...]] = (
    # the story, what to think about, the last confirmed hour, the time now (hours after midnight), hours to report
    ("a run in the middle of the next hour", "an hour that is still going on has no number yet",
     9, 10.5, ()),
    ("a run as that hour ends", "it is over now: is the comparison one step too strict?",
     9, 11, (10,)),
    ("a run a minute late", "late is no reason to leave it out",
     9, 11 + 1 / 60, (10,)),
    ("a second run in the same hour", "the first one was confirmed: nothing is sent twice for no reason",
     10, 11.5, ()),
    ("the first run after an outage of five hours", "every hour counts, the oldest first",
     9, 15.25, (10, 11, 12, 13, 14)),
    ("an outage through midnight, as the clocks are turned", "in UTC no hour is missing and none comes twice",
     46, 51, (47, 48, 49, 50)),
    ("a clock that was set back", "the hour was reported before: there is nothing to do, and nothing to undo",
     10, 9.5, ()),
)  # fmt: skip


def _hours(answer: object) -> str:
    if not callable(answer):
        raise NotYet(f"hours_to_report should be a function; it is {type(answer).__name__} now")
    for story, question, confirmed, now, wanted in STORIES:
        said = _said(answer, MIDNIGHT + confirmed * HOUR, MIDNIGHT + now * HOUR)
        expected = [MIDNIGHT + each * HOUR for each in wanted]
        if said != expected:
            raise NotYet(f"{story}: it returned {_shown(said)}; to be reported: {_shown(expected)}; {question}")
    return f"{len(STORIES)} runs in virtual time: no hour is left out, and none is reported before it is over"


def _said(function: Callable[[datetime, datetime], Any], confirmed: datetime, now: datetime) -> list[datetime]:
    said = function(confirmed, now)
    try:
        hours = list(said)
    except TypeError:
        raise NotYet(f"it returns a list of hours; it returned {describe(said)}") from None
    for each in hours:
        if not isinstance(each, datetime) or each.tzinfo is None:
            raise NotYet(f"each hour is a datetime in UTC, as confirmed is; it returned {describe(each)}")
        if len(hours) > 1000:
            raise NotYet("it returned more than a thousand hours: when does it end?")
    return hours


def _shown(hours: list[datetime]) -> str:
    return ", ".join(f"{each:%H:%M}" for each in hours) or "no hour"


EXERCISES = (
    Exercise(
        "13.1",
        _hours,
        hints=(
            "Begin with the hour after the confirmed one. When is it over?",
            "An hour is over when its end, its beginning + HOUR, is not after now. Collect such hours in a loop.",
            "while hour + HOUR <= now: append the hour, then go on to the next one.",
        ),
    ),
)
