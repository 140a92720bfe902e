"""The check of notebook 15 tells a service that is repaired from one that is not, or does less than before."""

import json
from pathlib import Path

import pytest

from labkit.lab.checks import find_exercise, judge

LESSON = Path(__file__).parents[2] / "notebooks" / "15-good-practice-measured.ipynb"


def told(tag):
    """The text that the lesson's cell of that tag gives to ``repaired``."""
    cells = json.loads(LESSON.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(each["source"]) for each in cells if tag in each["metadata"].get("tags", ())]
    assert len(sources) == 1
    names = {}
    exec(sources[0], names)
    return names["repaired"]


STUB, SOLUTION = told("exercise"), told("solution")
IN_LABKIT = """
from labkit import BrokerSettings, ConnectionManager, Queue

manager = ConnectionManager(BrokerSettings.from_env())

def take(delivery):
    print("sold:", delivery.body)
    delivery.ack()

def serve():
    with manager.channel() as channel:
        channel.declare(Queue("orders"))
    manager.publish("", "orders", "two seats").result()
    manager.consume("orders", take)
"""


def judged(answer):
    return judge(find_exercise("15.1"), answer)


@pytest.mark.parametrize("text", [SOLUTION, IN_LABKIT], ids=["in Pika", "in labkit"])
def test_a_repaired_service_passes(text):
    verdict = judged(text)
    assert verdict.passed, verdict.reason


def test_the_service_of_the_lesson_has_seven_problems():
    reason = judged(STUB).reason
    found = reason.removeprefix("the audit finds ").partition(";")[0].split(", ")
    assert len(set(found)) == 7


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("heartbeat=60", "heartbeat=0", "heartbeat-out-of-range"),
        ("heartbeat=60, ssl_options=pika.SSLOptions(context)", "heartbeat=60", "no-tls"),
        ('os.environ["SHOP_PASSWORD"]', '"hunter3"', "password-in-source"),
        (", durable=True", "", "transient-queue"),
        (", mandatory=True", "", "publish-not-mandatory"),
        (", stored", "", "publish-not-persistent"),
        ('"orders", take)', '"orders", take, auto_ack=True)', "auto-ack"),
        ('"orders", take)', '"orders", take, auto_ack=True)  # labkit: ignore[auto-ack]', "auto-ack"),
    ],
)
def test_each_problem_that_is_left_is_named(old, new, said):
    assert old in SOLUTION
    verdict = judged(SOLUTION.replace(old, new))
    assert not verdict.passed
    assert said in verdict.reason


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('    channel.queue_declare("orders", durable=True)\n', "", "declares the queue"),
        ('    channel.basic_publish("", "orders", b"two seats", stored, mandatory=True)\n', "", "publishes an order"),
        ('    channel.basic_consume("orders", take)', "", "consumes the orders"),
        ("    channel.basic_ack(method.delivery_tag)\n", "", "acknowledges them"),
        ('"orders"', '"sales"', "which queue"),
    ],
)
def test_a_service_that_does_less_than_before_is_not_repaired(old, new, said):
    assert old in SOLUTION
    verdict = judged(SOLUTION.replace(old, new))
    assert not verdict.passed
    assert said in verdict.reason


@pytest.mark.parametrize(
    ("answer", "said"),
    [("def serve(:\n", "not Python"), (7, "is the text of the service"), ("", "the shop has to sell")],
)
def test_what_is_no_service_is_told_so(answer, said):
    verdict = judged(answer)
    assert not verdict.passed
    assert said in verdict.reason
