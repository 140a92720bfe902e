"""The plan of a bring-up, walked through worlds that nobody would think of: hosts, answers, errors, time."""

from collections import Counter

from hypothesis import given, seed
from hypothesis import settings as examples

from tests.unit.connector.plan_worlds import Walk, check_walk, worlds


@given(worlds())
@examples(max_examples=200)
def test_whatever_the_hosts_answer_the_plan_keeps_order_time_and_events(world):
    check_walk(world)


def test_the_worlds_have_every_end_and_more_than_one_round():
    met = Counter()
    expected = {"LookUp", "Open", "Probe", "Pause", "NoneType", "ConnectError", "AuthenticationFailed"}

    def walk_through(world):
        walk = Walk(world)
        met.update(type(step).__name__ for _, step, _ in walk.steps)
        met[type(walk.error).__name__] += 1

    # Hypothesis takes constants from the modules that are loaded, so a worker's draws depend on the tests before it.
    for number in range(20):
        seed(number)(examples(max_examples=200, database=None)(given(worlds())(walk_through)))()
        if min(met[each] for each in expected) >= 3:
            break
    assert min(met[each] for each in expected) >= 3, met
