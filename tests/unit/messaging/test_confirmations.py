"""Each message is settled once, whatever the order of the broker's answers; no broker is needed for that."""

import asyncio
import random
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit import ConfigurationError, DeadlineExceeded, OutcomeUnknown, Unroutable
from labkit.messaging.confirmations import Confirmation, ConfirmLedger, Outcome, Pending


def pending(number, *, body=b"body", routing_key="work", message_id=None, mandatory=True):
    confirmation = Confirmation(exchange="", routing_key=routing_key, ends=0.0, message_id=message_id)
    return Pending(number, confirmation, body=body, properties=None, mandatory=mandatory, stamp=number)


def back(ledger, stamp=None, *, body=b"body", routing_key="work", message_id=None):
    facts = {"exchange": "", "routing_key": routing_key, "message_id": message_id, "body": body}
    return ledger.returned((312, "NO_ROUTE"), stamp=stamp, **facts)


class Broker:
    """What the protocol lets a broker do: number the publishes of a channel, and answer each once."""

    def __init__(self):
        self.unanswered = {}
        self.count = 0

    def receive(self, number):
        self.count += 1
        self.unanswered[self.count] = number

    def answer(self, tag, multiple):
        tags = [each for each in self.unanswered if each == tag or (multiple and (each < tag or tag == 0))]
        return [self.unanswered.pop(each) for each in sorted(tags)]


STEPS = st.lists(
    st.one_of(
        st.just(("send",)),
        st.tuples(st.just("answer"), st.integers(0, 40), st.booleans()),
        st.tuples(st.just("return"), st.integers(0, 40)),
        st.just(("new channel",)),
    ),
    max_size=120,
)


@given(STEPS)
def test_any_order_of_answers_settles_each_message_exactly_once(steps):
    ledger, broker = ConfirmLedger(), Broker()
    all_of_them, settled, came_back = {}, [], set()
    for step in steps:
        if step[0] == "send":
            one = all_of_them[len(all_of_them)] = pending(len(all_of_them))
            assert ledger.sent(one) == broker.count + 1
            broker.receive(one.number)
        elif step[0] == "answer":
            told = broker.answer(*step[1:])
            assert [each.number for each in ledger.settled(*step[1:])] == told
            settled += told
        elif step[0] == "return":
            is_ours = step[1] in broker.unanswered.values()
            found = back(ledger, stamp=step[1], body=b"body" if is_ours else b"another's")
            assert (found.number if found else None) == (step[1] if is_ours else None)
            came_back |= {found.number} if found else set()
        else:
            broker = Broker()
            again = ledger.started()
            assert [each.number for each in again] == sorted(each.number for each in again)
            for each in again:
                assert each.is_doubtful
                ledger.sent(each)
                broker.receive(each.number)
            came_back -= {each.number for each in again}
    settled += [each.number for each in ledger.settled(0, True)]
    assert sorted(settled) == list(all_of_them)
    assert len(ledger) == 0
    assert {number for number, each in all_of_them.items() if each.returned} == came_back


def test_an_answer_that_comes_twice_settles_nothing_more():
    ledger = ConfirmLedger()
    for number in range(3):
        ledger.sent(pending(number))
    assert [each.number for each in ledger.settled(2, True)] == [0, 1]
    assert ledger.settled(2, True) == ledger.settled(1, False) == ledger.settled(99, False) == []
    assert len(ledger) == 1


def test_a_return_without_a_stamp_is_the_oldest_equal_message_that_did_not_come_back():
    ledger = ConfirmLedger()
    for number, (body, key) in enumerate([(b"a", "x"), (b"b", "x"), (b"a", "x"), (b"a", "y")]):
        ledger.sent(pending(number, body=body, routing_key=key))
    assert back(ledger, body=b"a", routing_key="x").number == 0
    assert back(ledger, body=b"a", routing_key="x").number == 2
    assert back(ledger, body=b"a", routing_key="x") is None
    assert back(ledger, body=b"a", routing_key="y").number == 3
    assert back(ledger, body=b"b", routing_key="x", message_id="another") is None


def test_a_return_is_known_by_an_id_that_no_other_message_has():
    ledger = ConfirmLedger()
    for number in range(3):
        confirmation = Confirmation(exchange="", routing_key="work", ends=0.0, message_id=f"id-{number}")
        ledger.sent(Pending(number, confirmation, body=b"body", properties=None, stamp=f"id-{number}"))
    assert back(ledger, message_id="id-2").number == 2
    assert back(ledger, message_id="id-0").number == 0
    assert [each.returned is None for each in ledger.settled(0, True)] == [False, True, False]
    assert back(ledger, message_id="id-1") is None


def test_a_stamp_of_another_publisher_tells_nothing():
    """Whoever sends a message on sends its headers, too."""
    ledger = ConfirmLedger()
    neighbour, passed_on = pending(1, message_id="mine"), pending(2, body=b"passed on")
    ledger.sent(neighbour)
    ledger.sent(passed_on)
    assert back(ledger, stamp=1, body=b"passed on") is passed_on
    assert neighbour.returned is None
    assert back(ledger, stamp=["no", "number"], message_id="mine") is neighbour


def test_the_return_of_a_message_that_was_given_up_is_not_taken_for_its_equals():
    ledger = ConfirmLedger()
    late, equal = pending(1, message_id="mine"), pending(2, message_id="mine")
    ledger.sent(late)
    ledger.sent(equal)
    late.drop_body()
    assert back(ledger, stamp=1, message_id="mine") is late
    assert equal.returned is None


def test_what_came_back_on_the_old_channel_is_not_returned_on_the_new_one():
    ledger = ConfirmLedger()
    one = pending(7)
    ledger.sent(one)
    back(ledger, stamp=7)
    ledger.started()
    assert ledger.sent(one) == 1
    assert one.returned is None


def test_the_first_outcome_counts():
    one = pending(1).confirmation
    assert (one.done, one.outcome, repr(one)) == (False, None, "Confirmation(pending)")
    assert one.settle(Outcome.CONFIRMED)
    assert not one.settle(Outcome.UNKNOWN, OutcomeUnknown("too late"))
    assert (one.done, one.outcome, one.error) == (True, Outcome.CONFIRMED, None)
    one.result()


def test_result_raises_the_same_error_each_time():
    one = pending(1).confirmation
    one.settle(Outcome.RETURNED, Unroutable("no queue for it", routing_key="work"))
    for _ in range(2):
        with pytest.raises(Unroutable, match="no queue for it"):
            one.result(timeout=0)


def test_result_of_a_pending_message_ends_with_its_time():
    one = pending(1).confirmation
    with pytest.raises(DeadlineExceeded):
        one.result(timeout=0.01)
    assert not one.done


def test_every_thread_that_waits_is_woken():
    one = pending(1).confirmation
    woken = []
    threads = [threading.Thread(target=lambda: woken.append(one.wait(30))) for _ in range(4)]
    for each in threads:
        each.start()
    started = time.monotonic()
    one.settle(Outcome.CONFIRMED)
    for each in threads:
        each.join(10)
    assert woken == [True] * 4
    assert time.monotonic() - started < 10


def confirmation(seconds=30.0):
    return Confirmation(routing_key="work", exchange="", ends=time.monotonic() + seconds)


def test_an_awaited_confirmation_returns_or_raises_as_result_does():
    async def wait_for(outcome, error):
        sent = confirmation()
        asyncio.get_running_loop().call_soon(
            lambda: threading.Thread(target=sent.settle, args=(outcome, error)).start()
        )
        await sent

    asyncio.run(wait_for(Outcome.CONFIRMED, None))
    with pytest.raises(Unroutable):
        asyncio.run(wait_for(Outcome.RETURNED, Unroutable("no queue")))


def test_many_coroutines_and_threads_may_await_one_confirmation():
    async def main():
        sent = confirmation()
        waiting = [asyncio.create_task(_result_of(sent)) for _ in range(10)]
        in_threads = [asyncio.create_task(asyncio.to_thread(sent.result)) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        sent.settle(Outcome.CONFIRMED)
        await asyncio.gather(*waiting[1:], *in_threads)
        await sent  # settled already

    asyncio.run(main())


async def _result_of(sent):
    await sent


def test_a_confirmation_settled_as_somebody_begins_to_await_it_wakes_them():
    class Late(Confirmation):
        """Settled after its outcome was looked at, and before anybody watches it."""

        def __setattr__(self, name, value):
            if name == "_watchers" and value:
                self.settle(Outcome.CONFIRMED)
            super().__setattr__(name, value)

    async def main():
        await asyncio.wait_for(_result_of(Late(routing_key="", exchange="", ends=time.monotonic() + 30)), 5)

    asyncio.run(main())


def test_a_confirmation_that_stays_pending_is_awaited_no_longer_than_its_time():
    with pytest.raises(DeadlineExceeded):
        asyncio.run(_result_of(confirmation(seconds=-1.0)))


def test_a_confirmation_settled_after_its_event_loop_has_ended_raises_nothing():
    sent = confirmation()

    async def main():
        task = asyncio.create_task(_result_of(sent))
        await asyncio.sleep(0)
        task.cancel()

    asyncio.run(main())
    assert sent.settle(Outcome.CONFIRMED)
    sent.result()


def test_a_callback_is_called_once_with_the_confirmation_and_at_once_if_it_is_settled(caplog):
    sent, seen = pending(1).confirmation, []
    sent.add_done_callback(lambda each: seen.append(("first", each.outcome)))
    sent.add_done_callback(lambda each: 1 / 0)
    sent.add_done_callback(lambda each: seen.append(("second", each.outcome)))
    assert seen == []
    assert sent.settle(Outcome.CONFIRMED)
    assert seen == [("first", Outcome.CONFIRMED), ("second", Outcome.CONFIRMED)]
    assert "a callback failed on Confirmation(confirmed)" in caplog.text
    sent.add_done_callback(lambda each: seen.append(("late", each.error)))
    assert seen[2:] == [("late", None)]
    with pytest.raises(ConfigurationError, match="callback"):
        sent.add_done_callback("no function")


def test_a_callback_added_as_the_outcome_comes_is_called_exactly_once():
    random_ = random.Random(11)
    calls = []
    for _ in range(2000):
        sent, mine = pending(1).confirmation, []
        settling = threading.Thread(target=sent.settle, args=(Outcome.CONFIRMED,))
        settling.start()
        for _ in range(random_.randrange(60)):
            pass
        sent.add_done_callback(mine.append)
        settling.join()
        calls.append(mine)
    assert all(len(mine) == 1 for mine in calls)
