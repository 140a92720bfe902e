"""Run a test that is a coroutine function, and see that it leaves nothing behind."""

import asyncio
import functools
import inspect
import threading
import time

TIME_LIMIT = 60.0


def asynchronous(test):
    """Give *test* an event loop; it must leave no task, no socket, no thread, and no error that nobody awaits."""

    @functools.wraps(test)
    def run(**fixtures):
        threads = set(threading.enumerate())
        asyncio.run(_watched(test, fixtures))
        ends = time.monotonic() + 5.0
        while left := set(threading.enumerate()) - threads:  # some begin or end just now: neither can be joined safely
            assert time.monotonic() < ends, left
            time.sleep(0.005)

    run.__signature__ = inspect.signature(test)
    return run


async def until(question, timeout=15.0):
    """Ask until the answer is true; return it."""
    ends = time.monotonic() + timeout
    while not (answer := question()):
        assert time.monotonic() < ends, f"not true within {timeout} s"
        await asyncio.sleep(0.02)
    return answer


def sockets():
    """The descriptors that this loop waits for; one of them is its own."""
    return set(asyncio.get_running_loop()._selector.get_map())


async def _watched(test, fixtures):
    errors = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
    before = sockets()
    await asyncio.wait_for(test(**fixtures), TIME_LIMIT)
    await until(lambda: sockets() == before and asyncio.all_tasks() == {asyncio.current_task()}, 5.0)
    assert not errors, [(each["message"], each.get("exception")) for each in errors]
