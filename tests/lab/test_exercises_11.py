"""The check of notebook 11 tells an alert rule that rings once from each of the plausible wrong ones. No broker."""

from collections.abc import Callable
from typing import Any, ClassVar

import pytest

from labkit.lab.checks import Verdict, find_exercise, judge


def judged(answer: object) -> Verdict:
    return judge(find_exercise("11.1"), answer)


class Right:
    def __init__(self, patience: float) -> None:
        self.patience = patience
        self.lost_since: float | None = None
        self.has_rung = False

    def look(self, now: float, is_open: bool) -> str | None:
        if is_open:
            was_rung, self.lost_since, self.has_rung = self.has_rung, None, False
            return "clear" if was_rung else None
        if self.lost_since is None:
            self.lost_since = now
        if not self.has_rung and now - self.lost_since >= self.patience:
            self.has_rung = True
            return "raise"
        return None


def test_the_right_rule_passes() -> None:
    assert judged(Right).passed


class Stub(Right):
    def look(self, now: float, is_open: bool) -> str | None:
        return None if is_open else "raise"


class ClearsAlways(Right):
    def look(self, now: float, is_open: bool) -> str | None:
        return super().look(now, is_open) or ("clear" if is_open else None)


class RingsAtEachLook(Right):
    def look(self, now: float, is_open: bool) -> str | None:
        said = super().look(now, is_open)
        return "raise" if self.has_rung else said


class NeverClears(Right):
    def look(self, now: float, is_open: bool) -> str | None:
        said = super().look(now, is_open)
        return None if said == "clear" else said


class ClearsAShortLoss(Right):
    def look(self, now: float, is_open: bool) -> str | None:
        was_lost = self.lost_since is not None
        said = super().look(now, is_open)
        return "clear" if is_open and was_lost else said


class KeepsTheBeginning(Right):
    def look(self, now: float, is_open: bool) -> str | None:
        before = self.lost_since
        said = super().look(now, is_open)
        if said is None and before is not None:
            self.lost_since = before
        return said


class RingsOnlyOnce(Right):
    rang_ever = False

    def look(self, now: float, is_open: bool) -> str | None:
        said = super().look(now, is_open)
        if said == "raise":
            if self.rang_ever:
                return None
            self.rang_ever = True
        return said


class CountsFromTheEpoch(Right):
    def look(self, now: float, is_open: bool) -> str | None:
        if not is_open and self.lost_since is None:
            self.lost_since = 0.0
        return super().look(now, is_open)


class WaitsLonger(Right):
    def look(self, now: float, is_open: bool) -> str | None:
        if not is_open and self.lost_since is not None and now - self.lost_since == self.patience:
            return None
        return super().look(now, is_open)


class Shared(Right):
    since: ClassVar[list[float]] = []

    def look(self, now: float, is_open: bool) -> str | None:
        if not is_open and not self.since:
            self.since.append(now)
        if self.since:
            self.lost_since = self.since[0]
        return super().look(now, is_open)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        pytest.param(Stub, "at 5 s it is lost, the rule says 'raise' and should say None", id="the stub"),
        pytest.param(ClearsAlways, "nothing is wrong", id="clears though nothing was wrong"),
        pytest.param(RingsAtEachLook, "it is said once", id="rings at each look"),
        pytest.param(NeverClears, "its end is said once", id="never clears"),
        pytest.param(ClearsAShortLoss, "a short loss wakes nobody", id="clears what it never raised"),
        pytest.param(KeepsTheBeginning, "each loss has its own beginning", id="adds up short losses"),
        pytest.param(RingsOnlyOnce, "the second outage is a new one", id="rings once in its life"),
        pytest.param(CountsFromTheEpoch, "time counts from|a short loss|it is said once", id="counts from zero"),
        pytest.param(WaitsLonger, "at 15 s it is lost", id="waits longer than its patience"),
        pytest.param(Shared, "changed the other", id="one memory for all rules"),
        pytest.param(Right(10.0), "should be a class", id="an object"),
        pytest.param(dict, "NOT YET|look|should", id="another class"),
    ],
)
def test_a_rule_that_is_nearly_right_does_not_pass(answer: Any, hint: str) -> None:
    verdict = judged(answer)

    assert not verdict.passed
    assert any(part in str(verdict) for part in hint.split("|")), verdict


@pytest.mark.parametrize("said", [True, "ring", 1])
def test_a_rule_that_says_something_else_is_told_what_to_say(said: object) -> None:
    make: Callable[..., Any] = type("Says", (Right,), {"look": lambda self, now, is_open: said})

    assert "returns 'raise', 'clear' or None" in judged(make).reason
