"""What became of a message is said once, to whoever waits for it and however; no broker is needed for that."""

import asyncio
import random
import threading
import time

import pytest

from labkit import ConfigurationError, DeadlineExceeded, OutcomeUnknown, Unroutable
from labkit.messaging.confirmations import Confirmation, Outcome, Pending


def pending(number, *, body=b"body", routing_key="work", message_id=None, mandatory=True):
    confirmation = Confirmation(exchange="", routing_key=routing_key, ends=0.0, message_id=message_id)
    return Pending(number, confirmation, body=body, properties=None, mandatory=mandatory, stamp=number)


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


@pytest.mark.parametrize("seconds", ["5", -1, float("nan"), True])
@pytest.mark.parametrize("wait", [Confirmation.result, Confirmation.wait])
def test_a_time_to_wait_that_is_none_is_refused(wait, seconds):
    with pytest.raises(ConfigurationError, match=r"timeout: .* allowed: "):
        wait(pending(1).confirmation, seconds)


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
