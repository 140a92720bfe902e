"""The check of notebook 16 tells a table of waiting calls that holds from each of the plausible ones that do not."""

import json
import queue
import uuid
from pathlib import Path

import pytest

from labkit.lab.checks import find_exercise, judge

LESSON = Path(__file__).parents[2] / "notebooks" / "16-read-a-grown-up.ipynb"


def cell_of(tag):
    """The class that the lesson's cell of that tag makes."""
    cells = json.loads(LESSON.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(each["source"]) for each in cells if tag in each["metadata"].get("tags", ())]
    assert len(sources) == 1
    names = {"queue": queue, "uuid": uuid}
    exec(sources[0], names)
    return names["Caller"]


Stub, Solution = cell_of("exercise"), cell_of("solution")


def judged(answer):
    return judge(find_exercise("16.1"), answer)


class EntersLate(Solution):
    def call(self, body, timeout):
        msg_id = uuid.uuid4().hex
        self.send(msg_id, body)
        mine = self.waiting[msg_id] = queue.SimpleQueue()
        try:
            return mine.get(timeout=timeout)
        except queue.Empty:
            raise TimeoutError from None
        finally:
            del self.waiting[msg_id]


class RaisesWhatTheQueueRaises(Solution):
    def call(self, body, timeout):
        msg_id = uuid.uuid4().hex
        mine = self.waiting[msg_id] = queue.SimpleQueue()
        try:
            self.send(msg_id, body)
            return mine.get(timeout=timeout)
        finally:
            del self.waiting[msg_id]


class ReturnsNone(Solution):
    def call(self, body, timeout):
        try:
            return super().call(body, timeout)
        except TimeoutError:
            return None


class WaitsForever(Solution):
    def call(self, body, timeout):
        return super().call(body, None)


class LeavesItAfterAnAnswer(Solution):
    def call(self, body, timeout):
        msg_id = uuid.uuid4().hex
        mine = self.waiting[msg_id] = queue.SimpleQueue()
        self.send(msg_id, body)
        return mine.get(timeout=timeout)


class LeavesItAfterATimeout(Solution):
    def call(self, body, timeout):
        msg_id = uuid.uuid4().hex
        mine = self.waiting[msg_id] = queue.SimpleQueue()
        try:
            self.send(msg_id, body)
            answer = mine.get(timeout=timeout)
        except queue.Empty:
            raise TimeoutError from None
        del self.waiting[msg_id]
        return answer


class LeavesItWhenSendFails(Solution):
    def call(self, body, timeout):
        msg_id = uuid.uuid4().hex
        mine = self.waiting[msg_id] = queue.SimpleQueue()
        self.send(msg_id, body)
        try:
            return mine.get(timeout=timeout)
        except queue.Empty:
            raise TimeoutError from None
        finally:
            del self.waiting[msg_id]


class HidesTheErrorOfSend(Solution):
    def call(self, body, timeout):
        try:
            return super().call(body, timeout)
        except Exception as exc:
            raise TimeoutError from exc


class StumblesOverALateAnswer(Solution):
    def hear(self, msg_id, answer):
        self.waiting[msg_id].put(answer)


class KeepsALateAnswer(Solution):
    def hear(self, msg_id, answer):
        self.waiting.setdefault(msg_id, queue.SimpleQueue()).put(answer)


class OneForAll(Solution):
    def __init__(self, send):
        super().__init__(send)
        self.shared = queue.SimpleQueue()

    def call(self, body, timeout):
        msg_id = uuid.uuid4().hex
        self.waiting[msg_id] = self.shared
        try:
            self.send(msg_id, body)
            return self.shared.get(timeout=timeout)
        except queue.Empty:
            raise TimeoutError from None
        finally:
            del self.waiting[msg_id]


class OneId(Solution):
    def call(self, body, timeout):
        mine = self.waiting["1"] = queue.SimpleQueue()
        try:
            self.send("1", body)
            return mine.get(timeout=timeout)
        except queue.Empty:
            raise TimeoutError from None
        finally:
            self.waiting.pop("1", None)


class Silent(Solution):
    hear = None


def test_the_solution_passes():
    verdict = judged(Solution)
    assert verdict.passed, verdict.reason


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Stub, "the answer came while send() was running, and call() raised KeyError"),
        (EntersLate, "the answer came while send() was running"),
        (RaisesWhatTheQueueRaises, "call() raised Empty; it should be a TimeoutError"),
        (ReturnsNone, "nobody answered, and call() returned None"),
        (WaitsForever, "was still waiting"),
        (LeavesItAfterAnAnswer, "after an answer the table still has 1"),
        (LeavesItAfterATimeout, "after a timeout the table still has 1"),
        (LeavesItWhenSendFails, "after send() has raised the table still has 1"),
        (HidesTheErrorOfSend, "its caller should hear send's own error"),
        (StumblesOverALateAnswer, "hear() raised KeyError"),
        (KeepsALateAnswer, "after a late answer the table still has"),
        (OneForAll, "three calls at once: the one for"),
        (OneId, "each needs one of its own"),
        (Silent, "no method hear"),
        (7, "should be the class"),
    ],
)
def test_another_caller_is_told_the_case_in_which_it_is_wrong(answer, said):
    verdict = judged(answer)
    assert not verdict.passed
    assert said in verdict.reason
