"""The checks of notebook 07 tell a right answer from the wrong ones that people give. No broker, no waiting."""

import random
import socket
import time

import pytest
from pika.exceptions import AMQPConnectionError, AMQPError, ProbableAccessDeniedError, ProbableAuthenticationError

from labkit import Backoff, ConnectError, call_with_retry, classify
from labkit.errors import Kind, Verdict
from labkit.lab.checks import find_exercise, judge
from labkit.lab.exercises.notebook_07 import CASES


def judged(name, answer):
    return judge(find_exercise(name), answer)


# -- 07.1: should_retry(error) ------------------------------------------------------------------------------------


def by_verdict(error):
    return classify(error).is_retryable


def by_kind(error):
    return classify(error).kind in (Kind.TRANSIENT, Kind.BUSY)


@pytest.mark.parametrize("answer", [by_verdict, by_kind])
def test_whoever_asks_classify_passes(answer):
    verdict = judged("07.1", answer)

    assert verdict.passed, verdict.reason


def all_of_pikas(error):
    return isinstance(error, AMQPConnectionError)


def all_but_refusals(error):
    refused = (ProbableAuthenticationError, ProbableAccessDeniedError)
    return isinstance(error, (AMQPError, OSError)) and not isinstance(error, refused)


def all_but_the_login(error):
    return isinstance(error, AMQPError | OSError) and not isinstance(error, ProbableAuthenticationError)


def by_the_text(error):
    return "ACCESS_REFUSED" not in str(error)


def transient_only(error):
    return classify(error).kind is Kind.TRANSIENT


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (
            all_of_pikas,
            "the login is refused (403), ProbableAuthenticationError: you say True. Think: the same password",
        ),
        (all_but_the_login, "the peer accepts and stays silent, AMQPConnectorStackTimeout: you say False"),
        (all_but_refusals, "the peer accepts and stays silent, AMQPConnectorStackTimeout: you say False"),
        (by_the_text, "no such virtual host (530), ProbableAccessDeniedError: you say True"),
        (transient_only, "the connection limit is reached (530), ProbableAccessDeniedError: you say False"),
        (lambda error: not isinstance(error, AMQPError), "nobody listens, AMQPConnectionError: you say False"),
        (lambda error: isinstance(error, AMQPError | socket.gaierror), "the login is refused (403)"),
        (lambda error: True, "it says True to all 16 errors"),
        (lambda error: False, "it says False to all 16 errors"),
        (classify, "return True or False; it returned Verdict("),
        (lambda error: classify(error).kind, "return True or False; it returned Kind.TRANSIENT"),
        (True, "this should be a function"),
    ],
)
def test_an_answer_that_misjudges_an_error_is_told_which_one_and_why(answer, hint):
    verdict = judged("07.1", answer)

    assert not verdict.passed
    assert hint in verdict.reason


def test_the_cases_are_judged_as_labkit_judges_them():
    assert len(CASES) == 16
    assert [case.what for case in CASES if by_verdict(case.error) is not case.retry] == []


def test_the_cases_hold_every_kind_of_verdict():
    found = {classify(case.error) for case in CASES}

    assert all(isinstance(each, Verdict) for each in found)
    assert {each.kind for each in found} == set(Kind)


# -- 07.2: one layer ----------------------------------------------------------------------------------------------


def one_layer(connect, clock):
    return call_with_retry(connect, deadline=10.0, backoff=Backoff(initial=1.0, attempts=3), clock=clock)


def one_loop_by_hand(connect, clock):
    for attempt in range(3):
        try:
            return connect()
        except Exception as error:
            pause = random.uniform(0.1, 2**attempt)
            if attempt == 2 or not classify(error).is_retryable or clock.now() + pause >= 10.0:
                raise
        clock.sleep(pause)
    return None


def with_an_error_of_its_own(connect, clock):
    try:
        return one_layer(connect, clock)
    except Exception as error:
        raise ConnectError("no order today", hosts=()) from error


@pytest.mark.parametrize("answer", [one_layer, one_loop_by_hand, with_an_error_of_its_own])
def test_one_layer_that_tells_the_caller_why_passes(answer):
    verdict = judged("07.2", answer)

    assert verdict.passed, verdict.reason


def the_stub(connect, clock):
    for _order in range(3):
        for _link in range(3):
            try:
                return connect()
            except Exception:
                clock.sleep(1.0)
    return None


def a_loop_around_the_helper(connect, clock):
    for _ in range(3):
        try:
            return one_layer(connect, clock)
        except Exception:
            clock.sleep(1.0)
    return None


def swallows(connect, clock):
    try:
        return one_layer(connect, clock)
    except Exception:
        return None


def forgets_the_cause(connect, clock):
    try:
        return one_layer(connect, clock)
    except Exception:
        raise RuntimeError("no order today") from None


def gives_up_at_once(connect, clock):
    return connect()


def never_pauses(connect, clock):
    return call_with_retry(connect, deadline=10.0, backoff=Backoff(0.0, 1.0, 0.0, attempts=3), clock=clock)


def real_sleep(connect, clock):
    for attempt in range(3):
        try:
            return connect()
        except Exception:
            if attempt == 2:
                raise
            time.sleep(0.001)
    return None


def pauses_after_the_last(connect, clock):
    error = None
    for _ in range(3):
        try:
            return connect()
        except Exception as caught:
            error = caught
            clock.sleep(random.uniform(0.1, 1.0))
    raise error


def without_jitter(connect, clock):
    backoff = Backoff(initial=1.0, jitter="none", attempts=3)
    return call_with_retry(connect, deadline=10.0, backoff=backoff, clock=clock)


def pauses_too_long(connect, clock):
    backoff = Backoff(initial=30.0, maximum=60.0, jitter="none", attempts=3)
    return call_with_retry(connect, deadline=1000.0, backoff=backoff, clock=clock)


def without_classify(connect, clock):
    backoff = Backoff(initial=1.0, attempts=3)
    return call_with_retry(connect, deadline=10.0, on=(Exception,), backoff=backoff, clock=clock)


def without_a_deadline(connect, clock):
    return call_with_retry(connect, deadline=1e6, backoff=Backoff(initial=1.0, attempts=3), clock=clock)


def without_an_end(connect, clock):
    while True:
        try:
            return connect()
        except Exception:
            clock.sleep(1.0)


def without_the_link(connect, clock):
    one_layer(connect, clock)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (the_stub, "9 connects for one order, and 3 are allowed"),
        (a_loop_around_the_helper, "9 connects for one order, and 3 are allowed"),
        (swallows, "the caller got None. The last error should reach the caller"),
        (
            forgets_the_cause,
            "RuntimeError: no order today; the error of the last connect is neither that nor its cause",
        ),
        (gives_up_at_once, "1 of 3 connects"),
        (never_pauses, "it tried again at once"),
        (real_sleep, "it tried again at once"),
        (pauses_after_the_last, "3 pauses for 3 connects"),
        (without_jitter, "two clients pause 1 s and 2 s, both"),
        (pauses_too_long, "the pauses alone took 90 s"),
        (without_classify, "a refused login was tried 3 times"),
        (without_a_deadline, "10 s are promised"),
        (without_an_end, "more than 50 connects for one order"),
        (without_the_link, "the caller should get what it returned, and got None"),
        (None, "this should be a function"),
    ],
)
def test_a_retry_that_hurts_somebody_is_told_whom(answer, hint):
    verdict = judged("07.2", answer)

    assert not verdict.passed
    assert hint in verdict.reason


# -- 07.3: a herd that keeps the limit ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer", [Backoff(0.5, 2.0, 20.0), Backoff(maximum=20.0), Backoff(1.0, 2.0, 25.0), Backoff(0.1, 3.0, 16.0)]
)
def test_pauses_that_spread_the_herd_far_enough_and_no_further_pass(answer):
    verdict = judged("07.3", answer)

    assert verdict.passed, verdict.reason


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (Backoff(), "of 100 clients within one second, and the broker takes 20: spread them over a longer time"),
        (Backoff(1.0, 2.0, 8.0), "spread them over a longer time"),
        (Backoff(1.0, 2.0, 20.0, jitter="none"), "100 of 100 clients within one second"),
        (Backoff(1.0, 2.0, 25.0, jitter="none"), "no client differs from another"),
        (Backoff(1.0, 2.0, 60.0), "the last client was back after"),
        (Backoff(20.0, 1.0, 20.0), "after one short loss a client may pause 20 s"),
        (Backoff(1.0, 2.0, 20.0, attempts=5), "clients had given up"),
        (Backoff(0.5, 1.0, 20.0), "spread them over a longer time"),
        (Backoff(0.01, 1.0, 0.01), "no pause is longer than 0.01 s"),
        (20.0, "answer should be Backoff(...)"),
    ],
)
def test_pauses_that_break_the_limit_are_told_which_one(answer, hint):
    verdict = judged("07.3", answer)

    assert not verdict.passed
    assert hint in verdict.reason
