"""The pause before a recovery, which grows with the failures in a row. No broker."""

import queue
from types import SimpleNamespace

import pytest

from labkit.opening import start_recovery
from labkit.retry import Backoff


@pytest.mark.parametrize(
    ("factor", "failures", "pause"), [(2.0, 0, 0.1), (2.0, 1, 0.1), (2.0, 3, 0.4), (2.0, 9, 1.0), (1e300, 9, 1.0)]
)
def test_the_pause_grows_with_the_failures_up_to_the_maximum(factor, failures, pause):
    pauses = queue.Queue()

    class Stop:
        def wait(self, seconds):
            pauses.put(seconds)
            return True  # set: nobody wants the connection any more

    backoff = Backoff(initial=0.1, factor=factor, maximum=1.0, jitter="none")
    start_recovery(None, SimpleNamespace(stop=Stop()), None, backoff, failures, None)
    assert pauses.get(timeout=10) == pytest.approx(pause)
