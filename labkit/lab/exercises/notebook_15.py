"""The check of notebook 15: a small service, repaired until the audit finds nothing, and still at its work."""

from typing import Final

from labkit.audit.reading import Source, source_of
from labkit.audit.rules import RULES, chosen
from labkit.lab.checks import Exercise
from labkit.trials import NotYet

QUEUE: Final = "orders"
WORK: Final[tuple[tuple[str, tuple[str, ...]], ...]] = (
    # what the service does, and the calls that do it: Pika's, and labkit's
    ("declares the queue", ("queue_declare", "Queue")),
    ("publishes an order", ("basic_publish", "publish", "publish_many", "try_publish")),
    ("consumes the orders", ("basic_consume", "consume", "Consumer")),
    ("acknowledges them", ("basic_ack", "ack")),
)


def _repaired(answer: object) -> str:
    if not isinstance(answer, str):
        raise NotYet(f"repaired is the text of the service; it is {type(answer).__name__} now")
    try:
        source = source_of(answer)
    except (SyntaxError, ValueError) as exc:
        raise NotYet(f"it is not Python: {exc}") from exc
    # A comment that silences a rule repairs nothing, so none is looked at here.
    found = [(source.place(node)[1], rule.name) for rule in chosen("code") for node, _ in rule.check(source)]
    if found:
        line, first = min(found)
        names = ", ".join(dict.fromkeys(name for _, name in sorted(found)))
        raise NotYet(f"the audit finds {names}; line {line}: {RULES[first].why}")
    for what, calls in WORK:
        if not list(source.named(*calls)):
            raise NotYet(f"the audit finds nothing, and no line {what} any more: the shop has to sell")
    if not _names_the_queue(source):
        raise NotYet(f"the audit finds nothing, and {QUEUE!r} is not there any more: which queue is the office's?")
    return f"the audit finds nothing, and the service still {WORK[0][0]}, publishes, consumes and acknowledges"


def _names_the_queue(source: Source) -> bool:
    return any(source.value(each) == QUEUE for call in source.calls for each in call.given.values())


EXERCISES = (
    Exercise(
        "15.1",
        _repaired,
        hints=(
            "Take the findings one by one: `print(RULES[name].fix)` says what to do instead.",
            "Parameters: heartbeat=60, a password from os.environ, pika.SSLOptions(context). The queue: durable=True.",
            "The publish: mandatory, delivery_mode=2. The consumer: no auto_ack, basic_qos first, basic_ack last.",
        ),
    ),
)
