"""The check of notebook 13 tells a function that leaves no hour out from the plausible wrong ones. No broker."""

from datetime import timedelta

import pytest

from labkit.lab.checks import find_exercise, judge

HOUR = timedelta(hours=1)


def judged(answer):
    return judge(find_exercise("13.1"), answer)


def right(confirmed, now):
    hours, hour = [], confirmed + HOUR
    while hour + HOUR <= now:
        hours.append(hour)
        hour += HOUR
    return hours


def stub(confirmed, now):
    return [confirmed + HOUR]


def counts_the_hour_that_goes_on(confirmed, now):
    return [each for each in (confirmed + HOUR * n for n in range(1, 100)) if each <= now]


def is_one_step_too_strict(confirmed, now):
    return [each for each in right(confirmed, now) if each + HOUR < now]


def knows_the_newest_only(confirmed, now):
    return right(confirmed, now)[-1:]


def says_the_confirmed_one_again(confirmed, now):
    return [confirmed, *right(confirmed, now)]


def begins_with_the_newest(confirmed, now):
    return right(confirmed, now)[::-1]


def forgets_the_zone(confirmed, now):
    return [each.replace(tzinfo=None) for each in right(confirmed, now)]


def returns_numbers(confirmed, now):
    return [each.hour for each in right(confirmed, now)]


def returns_nothing(confirmed, now):
    return None


def test_a_function_that_leaves_no_hour_out_passes():
    verdict = judged(right)
    assert verdict.passed
    assert "7 runs in virtual time" in verdict.reason


def test_a_generator_of_the_right_hours_passes():
    assert judged(lambda confirmed, now: iter(right(confirmed, now))).passed


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (stub, "still going on"),
        (counts_the_hour_that_goes_on, "still going on"),
        (is_one_step_too_strict, "too strict"),
        (knows_the_newest_only, "every hour counts"),
        (says_the_confirmed_one_again, "still going on"),
        (begins_with_the_newest, "oldest first"),
        (forgets_the_zone, "in UTC"),
        (returns_numbers, "is a datetime"),
        (returns_nothing, "list of hours"),
        ("10:00", "should be a function"),
    ],
)
def test_a_wrong_one_is_told_what_to_think_about(answer, said):
    verdict = judged(answer)
    assert not verdict.passed
    assert said in verdict.reason
