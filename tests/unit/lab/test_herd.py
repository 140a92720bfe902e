"""When the clients of a broker come back after an outage, in virtual time."""

import pytest

from labkit.errors import ConfigurationError
from labkit.lab.herd import comebacks
from labkit.retry import Backoff


def test_clients_without_jitter_come_back_at_the_same_moment():
    # 0, 1, 3, 7, 15, 23 fail; the next try is at 31, one second after the broker is back
    assert comebacks(Backoff(1.0, 2.0, 8.0, "none"), outage=30.0) == [1.0] * 100


def test_clients_with_jitter_spread_over_at_most_the_longest_pause():
    times = comebacks(Backoff(1.0, 2.0, 8.0), outage=30.0)

    assert len(times) == len(set(times)) == 100
    assert 0 <= times[0] <= times[-1] <= 8.0


def test_the_same_seed_gives_the_same_herd_and_another_seed_another():
    backoff = Backoff(1.0, 2.0, 8.0)

    assert comebacks(backoff, seed=1) == comebacks(backoff, seed=1) != comebacks(backoff, seed=2)


def test_two_herds_share_no_client():
    one, two = (comebacks(Backoff(1.0, 2.0, 8.0), seed=seed) for seed in (0, 1))

    assert not set(one) & set(two)


def test_a_client_whose_attempts_are_used_up_is_missing():
    assert comebacks(Backoff(1.0, jitter="none", attempts=3), outage=30.0) == []
    assert len(comebacks(Backoff(1.0, jitter="none", attempts=3), outage=3.0)) == 100


def test_without_an_outage_everybody_is_connected_at_once():
    assert comebacks(Backoff(), clients=3, outage=0.0) == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("wrong", [{"clients": 0}, {"outage": -1.0}, {"outage": float("inf")}])
def test_a_herd_that_cannot_be_is_refused(wrong):
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        comebacks(Backoff(), **wrong)
