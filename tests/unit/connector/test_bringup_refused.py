"""How long a bring-up goes on when the broker refuses, and which attempts count. No broker: the clock is a fake."""

import pika.exceptions as px
import pytest

from labkit import AccessRefused, AuthenticationFailed, BrokerSettings, ConnectError, Timeline
from labkit.connection.opening import NotRestored
from labkit.connector.blocking import Bringup
from labkit.events import Dispatcher
from labkit.retry import Backoff, FakeClock

REFUSED = px.ProbableAuthenticationError("ConnectionClosedByBroker: (403) 'ACCESS_REFUSED - Login was refused'")
VHOST_MISSING = px.ProbableAccessDeniedError("ConnectionClosedByBroker: (530) 'NOT_ALLOWED - vhost x not found'")
GONE = ConnectionRefusedError(111, "refused")
SLOW = Backoff(initial=1.0, maximum=5.0, jitter="none")


def bring_up(errors, **options):
    """Run a bring-up whose attempts end with *errors*, in turn, and then work; return what came of it and the clock."""
    clock, left = FakeClock(), list(errors)

    def open_one(parameters):
        if left:
            raise left.pop(0)
        return "link"

    settings = BrokerSettings(host="127.0.0.1")
    bringup = Bringup(
        settings, Dispatcher([Timeline()]), clock, open_one, **{"deadline": 1e6, "backoff": SLOW} | options
    )
    try:
        return bringup.run(), clock
    except ConnectError as exc:
        return exc, clock


@pytest.mark.parametrize(("error", "named"), [(REFUSED, AuthenticationFailed), (VHOST_MISSING, AccessRefused)])
def test_a_refusal_is_final_unless_seconds_are_given_for_it(error, named):
    answer, clock = bring_up([error])
    assert (type(answer), clock.slept) == (named, [])


@pytest.mark.parametrize("error", [REFUSED, VHOST_MISSING])
def test_a_refusal_is_tried_again_every_five_seconds_for_the_seconds_given(error):
    answer, clock = bring_up([error] * 3, retry_refused=60.0)
    assert (answer, clock.slept) == ("link", [5.0, 5.0, 5.0])
    answer, clock = bring_up([error] * 99, retry_refused=60.0)
    assert isinstance(answer, ConnectError)
    assert clock.time == 60.0


def test_no_more_than_ten_logins_are_refused_whatever_the_seconds():
    _, clock = bring_up([REFUSED] * 99, retry_refused=3.0, backoff=Backoff(initial=0.01, maximum=0.01, jitter="none"))
    assert len(clock.slept) == 10
    assert clock.slept == [pytest.approx(0.3)] * 10


def test_the_seconds_begin_with_the_first_refusal_of_those_in_a_row():
    answer, clock = bring_up([GONE] * 140 + [REFUSED] * 8 + [GONE] + [REFUSED] * 8, retry_refused=60.0)
    assert answer == "link"
    assert clock.time > 200


def test_a_link_that_is_lost_before_all_is_restored_is_none_of_the_attempts():
    lost = [NotRestored(px.ConnectionClosedByBroker(540, "NOT_IMPLEMENTED")) for _ in range(5)]
    answer, clock = bring_up(
        lost, backoff=Backoff(initial=1.0, maximum=5.0, jitter="none", attempts=2), is_free=lambda e: e in lost
    )
    assert (answer, clock.slept) == ("link", [1.0, 2.0, 4.0, 5.0, 5.0])
    mixed = [lost[0], GONE, lost[1], GONE, GONE]
    answer, _ = bring_up(mixed, backoff=Backoff(initial=1.0, jitter="none", attempts=2), is_free=lambda e: e in lost)
    assert isinstance(answer, ConnectError)
    assert answer.attempts == 4
