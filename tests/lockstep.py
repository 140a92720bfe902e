"""Two threads that run the same lines at the same moment: what a race needs, without luck."""

import sys
import threading
from contextlib import suppress

BESIDE = 0.5  # seconds that a thread waits for the other at a line


def in_lockstep(function, *modules, timeout=30.0):
    """Run *function* in two threads, which wait for each other at each line of *modules* that both come to."""
    files, meeting, errors = {each.__file__ for each in modules}, threading.Barrier(2), []

    def at_line(frame, event, _):
        if event == "line":
            with suppress(threading.BrokenBarrierError):  # the other has gone another way, or has ended
                meeting.wait(BESIDE)
        return at_line

    def at_call(frame, _, __):
        return at_line if frame.f_code.co_filename in files else None

    def run():
        sys.settrace(at_call)
        try:
            function()
        except BaseException as exc:
            errors.append(exc)
        finally:
            sys.settrace(None)
            meeting.abort()

    threads = [threading.Thread(target=run, daemon=True) for _ in range(2)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(timeout)
    assert not any(each.is_alive() for each in threads)
    assert errors == []
