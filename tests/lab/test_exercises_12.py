"""The check of notebook 12 tells a truthful answer from those that are nearly so. No broker, no Flask."""

import pytest

from labkit import LabkitError, Unroutable
from labkit.lab.checks import find_exercise, judge

LATER = 503, {"Retry-After": "5"}


def judged(answer):
    return judge(find_exercise("12.1"), answer)


def right(publish, body):
    try:
        publish(body).result()
    except Unroutable:
        return 500, {}
    except LabkitError:
        return LATER
    return 202, {}


def stub(publish, body):
    publish(body)
    return 202, {}


def catches_nothing(publish, body):
    publish(body).result()
    return 202, {}


def always_later(publish, body):
    try:
        publish(body).result()
    except LabkitError:
        return LATER
    return 202, {}


def never_says_when(publish, body):
    status, _ = right(publish, body)
    return status, {}


def says_it_as_a_number(publish, body):
    status, headers = right(publish, body)
    return status, {name: int(value) for name, value in headers.items()}


def looks_only_at_publish(publish, body):
    try:
        confirmation = publish(body)
    except LabkitError:
        return LATER
    confirmation.result()
    return 202, {}


def sends_twice(publish, body):
    publish(body)
    return right(publish, body)


def all_is_an_error(publish, body):
    try:
        publish(body).result()
    except LabkitError:
        return 500, {}
    return 202, {}


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (stub, "before result"),
        (catches_nothing, "came out of answer"),
        (always_later, "in a minute"),
        (never_says_when, "when may the customer come again"),
        (says_it_as_a_number, "as text"),
        (looks_only_at_publish, "came out of answer"),
        (sends_twice, "is called once"),
        (all_is_an_error, "503 is right"),
        (lambda publish, body: publish(body).result() or 202, "a status and a dictionary"),
        (None, "should be a function"),
    ],
)
def test_an_answer_that_is_nearly_true_is_not_yet(answer, hint):
    verdict = judged(answer)
    assert not verdict.passed
    assert hint in verdict.reason


def test_a_true_answer_passes():
    assert judged(right).passed
