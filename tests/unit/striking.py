"""Something happens in the middle: at any chosen one of the points where Python itself would look for a signal.

CPython looks for signals after a call, at the start of a function and on a jump backwards, and nowhere else. That is
where an interrupt or a signal handler comes, and where another thread goes on. The collector runs finalizers in other
places too, but none of them is between two steps that the code here takes for one.
"""

import dis
import importlib.util
import sys

SPLITS = {"RESUME", "CALL", "CALL_FUNCTION_EX", "CALL_KW", "JUMP_BACKWARD"}


def files_of(*modules):
    """Return the files of the modules of labkit that have these names."""
    return [importlib.util.find_spec(f"labkit.{each}").origin for each in modules]


class StrikeAt:
    """Calls *strike* in this thread, once, at the *number*-th such point of the files *parts*."""

    def __init__(self, number, strike, parts):
        self.left = number
        self._strike = strike
        self._parts = parts
        self._after = {}  # by frame: whether the instruction before was one after which Python looks

    def __enter__(self):
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_):
        sys.settrace(None)

    @property
    def has_struck(self):
        return self.left <= 0

    def _trace(self, frame, event, argument):
        if frame.f_code.co_filename not in self._parts:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            looks = self._after.get(frame, False)
            name = dis.opname[frame.f_code.co_code[frame.f_lasti]]
            self._after[frame] = name in SPLITS
            if looks:
                self.left -= 1
                if self.left == 0:
                    self._after.clear()
                    sys.settrace(None)
                    self._strike()
        elif event == "exception":  # after a call that raised, Python goes to the handler without a look
            self._after[frame] = False
        elif event == "return":
            self._after.pop(frame, None)
        return self._trace


def struck_everywhere(make, act, strike, parts, *, at_least):
    """Run ``act(made)`` with ``strike(made)`` at each point of it; yield what ``make()`` made, and what was raised.

    Args:
        make: Returns something new for each run.
        act: What is struck.
        strike: Called in the middle. What it raises leaves *act*.
        parts: The files whose steps count.
        at_least: How many points there must be, or the tracer saw nothing.
    """
    with StrikeAt(sys.maxsize, None, parts):  # Python 3.12 reports the steps of a function from its second call on
        act(make())
    number = 0
    while True:
        number += 1
        made, raised = make(), None
        struck = StrikeAt(number, lambda made=made: strike(made), parts)
        try:
            with struck:
                act(made)
        except BaseException as exc:
            raised = exc
        yield made, raised
        if not struck.has_struck:
            assert number > at_least, "the tracer saw too few points"
            return
