"""What publishers and consumers have counted, from their beginning, through every link and every close and open.

Kept apart from who counts, so that a monitor can read the last numbers of one that is gone. No I/O.
"""

import time
from bisect import bisect_left

from labkit.concurrency.guard import guard

# Seconds up to which a confirm counts for each bucket; the last one has no end.
CONFIRM_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class PublishTally:
    """What became of messages, and how long the broker took to confirm them. Thread-safe.

    Attributes:
        outcomes: How many messages had each outcome, by its word.
        sent: Messages written to a link, copies that were sent again included.
        buckets: How many confirms came within each of ``CONFIRM_BUCKETS``, and later.
        confirm_seconds: What all confirmed messages waited together, from ``publish()`` on.
    """

    def __init__(self) -> None:
        self.outcomes: dict[str, int] = {}
        self.sent = 0
        self.buckets = [0] * (len(CONFIRM_BUCKETS) + 1)
        self.confirm_seconds = 0.0
        self._lock = guard()

    def settled(self, outcome: str, began: float) -> None:
        """Count a message that was handed over at *began*, on the monotonic clock."""
        with self._lock:
            self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1
            if outcome == "confirmed":
                seconds = time.monotonic() - began
                self.buckets[bisect_left(CONFIRM_BUCKETS, seconds)] += 1
                self.confirm_seconds += seconds

    def numbers(self) -> dict[tuple[str, str], float]:
        """Return what was counted, by metric (``labkit.monitor.table``) and label."""
        with self._lock:
            found: dict[tuple[str, str], float] = {
                ("messages_published_total", outcome): count for outcome, count in self.outcomes.items()
            }
            found |= {("publish_confirm_seconds", str(index)): count for index, count in enumerate(self.buckets)}
            found["publish_confirm_seconds_sum", ""] = self.confirm_seconds
            found["messages_sent_total", ""] = self.sent
            return found


class ConsumeTally:
    """What became of deliveries. Each number is written by one thread at a time, and read by any.

    Attributes:
        delivered: Deliveries that came from the broker.
        handled: From how many the handler has returned.
        failed: From how many it raised.
        settled: Answers that were written, by their verb: "ack", "nack", "reject".
        dropped: Answers for deliveries of a link or a channel that was gone.
    """

    def __init__(self) -> None:
        self.delivered = 0
        self.handled = 0
        self.failed = 0
        self.settled = {"ack": 0, "nack": 0, "reject": 0}
        self.dropped = 0

    def numbers(self) -> dict[tuple[str, str], float]:
        """Return what was counted, by metric (``labkit.monitor.table``) and label."""
        return {
            ("deliveries_total", ""): self.delivered,
            ("deliveries_handled_total", "returned"): self.handled,
            ("deliveries_handled_total", "raised"): self.failed,
            **{("settlements_total", verb): count for verb, count in self.settled.items()},
            ("settlements_total", "dropped"): self.dropped,
        }
