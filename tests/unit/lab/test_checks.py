"""Checks say NOT YET or PASS in one line, and end, whatever the answer does."""

from __future__ import annotations

import threading
import time

import pytest

from labkit.errors import ConfigurationError
from labkit.lab import checks
from labkit.lab.checks import Exercise, Exercises, all_exercises, describe, exercises_of, find_exercise, judge, run
from labkit.trials import NotYet

PACKAGE = "sample_exercises"


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def exercises(said: list[str]) -> Exercises:
    return Exercises("90", say=said.append, package=PACKAGE)


def verdict_of(check: object, answer: object = None, seconds: float = 5.0) -> str:
    return str(judge(Exercise("90.9", check, seconds=seconds), answer))  # type: ignore[arg-type]


def test_a_stub_gets_a_hint_and_a_solution_the_reason(exercises: Exercises, said: list[str]) -> None:
    exercises.check("90.1", lambda number: number)
    exercises.check("90.1", lambda number: 2 * number)

    assert said == ["NOT YET: what is twice four?", "PASS: twice four is eight"]


def test_a_learners_error_is_one_line(exercises: Exercises, said: list[str]) -> None:
    def broken(number: int) -> int:
        raise KeyError(f"no {number}\nand more")

    def mistaken(number: int) -> int:
        return number["key"]  # type: ignore[index]

    exercises.check("90.1", broken)
    exercises.check("90.1", mistaken)
    exercises.check("90.1", 7)
    exercises.check("90.2", 7)

    assert said == [
        "NOT YET: your code raised KeyError: 'no 4\\nand more'",
        "NOT YET: your code raised TypeError: 'int' object is not subscriptable",
        "NOT YET: this should be a function; it is int now",
        "NOT YET: your code raised TypeError: 'int' object is not subscriptable",
    ]


def test_an_endless_loop_ends_with_the_time_and_leaves_no_thread(exercises: Exercises) -> None:
    def endless(number: int) -> int:
        while True:
            number += 1

    start = time.monotonic()
    verdict = judge(Exercise("90.9", lambda answer: str(run(answer, 1)), seconds=0.2), endless)

    assert str(verdict) == "NOT YET: no answer within 0.2 s. Which line can wait forever?"
    assert time.monotonic() - start < 2.0
    assert not [thread for thread in threading.enumerate() if thread.name == "labkit-check"]


def test_an_answer_that_catches_every_exception_is_still_stopped() -> None:
    def stubborn(_answer: object) -> str:
        while True:
            try:
                sum(range(1000))
            except Exception:
                continue

    assert verdict_of(stubborn, seconds=0.2).startswith("NOT YET: no answer within 0.2 s")
    assert not [thread for thread in threading.enumerate() if thread.name == "labkit-check"]


def test_a_wait_in_c_code_costs_the_time_and_no_more() -> None:
    release = threading.Event()

    def waits(_answer: object) -> str:
        release.wait(30.0)
        return "done"

    start = time.monotonic()
    try:
        assert verdict_of(waits, seconds=0.2).startswith("NOT YET: no answer within")
        assert time.monotonic() - start < 3.0
    finally:
        release.set()


def test_an_answer_that_ends_as_its_time_does_is_still_there_when_it_is_told_to_stop(monkeypatch) -> None:
    """Else its thread's number may be another thread's by then, which would be stopped instead."""
    ended, seen = threading.Event(), []
    tell = checks._raise_in

    def late(thread: threading.Thread) -> None:
        assert ended.wait(10.0)
        thread.join(0.2)
        seen.append(thread.is_alive())
        tell(thread)

    def answer(_answer: object) -> str:
        time.sleep(0.3)
        ended.set()
        return "done"

    monkeypatch.setattr(checks, "_raise_in", late)
    verdict_of(answer, seconds=0.1)
    assert seen == [True]
    assert not [thread for thread in threading.enumerate() if thread.name == "labkit-check"]


def test_a_coroutine_function_is_run() -> None:
    async def double(number: int) -> int:
        return 2 * number

    assert run(double, 4) == 8


def test_exit_in_an_answer_is_an_answer_too() -> None:
    def leaves(_answer: object) -> str:
        raise SystemExit(3)

    assert verdict_of(leaves) == "NOT YET: your code raised SystemExit: 3, which ends a program"


def test_a_hint_raised_by_a_check_is_what_the_learner_reads() -> None:
    def picky(_answer: object) -> str:
        raise NotYet("look again")

    assert verdict_of(picky) == "NOT YET: look again"


def test_addresses_do_not_reach_the_text() -> None:
    assert describe(ValueError("<f at 0x7f0011223344> is no queue")) == "ValueError: <f at 0x...> is no queue"
    assert describe(ValueError()) == "ValueError"
    assert len(describe(ValueError("x" * 900))) == 200


def test_each_hint_goes_one_rung_further_and_the_last_one_stays(exercises: Exercises, said: list[str]) -> None:
    for _ in range(4):
        exercises.hint("90.1")
    exercises.hint("90.2")

    assert said == [
        "hint 1 of 3: Read the name.",
        "hint 2 of 3: Use *.",
        "hint 3 of 3: return 2 * number",
        "hint 3 of 3: return 2 * number",
        "no hints here: run the check, it says what is missing",
    ]


def test_an_unknown_name_lists_what_there_is(exercises: Exercises) -> None:
    with pytest.raises(ConfigurationError, match=r"no exercise '90.7'; there is: 90.1, 90.2"):
        exercises.check("90.7", None)
    with pytest.raises(ConfigurationError, match=r"begin with '90\.'"):
        exercises.hint("03.1")
    with pytest.raises(ConfigurationError, match="there is: none"):
        find_exercise("99.1", package=PACKAGE)


def test_exercises_are_discovered_by_number() -> None:
    assert list(exercises_of("90", package=PACKAGE)) == ["90.1", "90.2"]
    assert [exercise.name for exercise in all_exercises(package=PACKAGE)] == ["90.1", "90.2"]
    assert exercises_of("../90", package=PACKAGE) == {}


def test_no_exercise_of_the_course_accepts_an_empty_answer_or_starts_a_broker_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[object] = []
    monkeypatch.setattr("labkit.brokers.up", lambda *given: started.append(given))
    assert find_exercise("90.1", package=PACKAGE)  # the loop below is not the only thing that can fail here
    accepted = [exercise.name for exercise in all_exercises() if judge(exercise, None).passed]

    assert (accepted, started) == ([], [])
