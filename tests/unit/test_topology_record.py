"""What is recorded is what was declared and not deleted, by its full identity."""

from labkit import Binding, Exchange, Queue
from labkit.topology_record import TopologyRecord


def record(*entities):
    it = TopologyRecord()
    for each in entities:
        it.declared(each, getattr(each, "name", ""))
    return it


def held(it):
    return [entity for entity, _ in it.steps()]


def test_exchanges_come_before_queues_and_queues_before_bindings():
    binding, queue, exchange = Binding("logs", "work"), Queue("work"), Exchange("logs")
    assert held(record(binding, queue, exchange)) == [exchange, queue, binding]


def test_bindings_that_differ_only_in_arguments_are_two():
    one = Binding("headers", "work", arguments={"x-match": "all", "kind": ["a"]})
    two = Binding("headers", "work", arguments={"x-match": "all", "kind": ["b"]})
    it = record(one, two, Binding("headers", "work", arguments={"x-match": "all", "kind": ["a"]}))
    assert held(it) == [one, two]
    it.deleted(one)
    assert held(it) == [two]


def test_declaring_again_changes_nothing():
    assert len(record(Queue("work"), Queue("work"), Exchange("logs"), Exchange("logs"))) == 2


def test_a_deleted_queue_takes_its_bindings_with_it():
    other = Binding("logs", "other")
    it = record(Exchange("logs"), Queue("work"), Queue("other"), Binding("logs", "work"), other)
    it.deleted(Queue("work"))
    assert held(it) == [Exchange("logs"), Queue("other"), other]


def test_a_deleted_exchange_takes_the_bindings_from_and_to_it_with_it():
    it = record(
        Exchange("a"), Exchange("b"), Queue("b"), Binding("a", Exchange("b")), Binding("b", "b"), Binding("a", "b")
    )
    it.deleted(Exchange("b"))
    assert held(it) == [Exchange("a"), Queue("b"), Binding("a", "b")]


def test_what_is_around_an_exchange_is_itself_and_the_bindings_from_and_to_it():
    to, out = Binding("a", Exchange("b")), Binding("b", "b")
    it = record(Exchange("a"), Exchange("b"), Queue("b"), to, out, Binding("a", "b"))
    assert [each for each, _ in it.around("b")] == [Exchange("b"), to, out]


def test_an_auto_delete_exchange_goes_with_its_last_binding():
    passing = Exchange("passing", auto_delete=True)
    one, two = Binding("passing", "work", "a"), Binding("passing", "work", "b")
    it = record(passing, Queue("work"), one, two)
    it.deleted(one)
    assert passing in held(it)
    it.deleted(two)
    assert held(it) == [Queue("work")]


def test_an_auto_delete_queue_goes_with_its_last_consumer():
    it = record(Exchange("logs"), Queue("passing", auto_delete=True), Queue("work"), Binding("logs", "passing"))
    for queue in ("passing", "passing", "work"):
        it.consumed(queue)
    it.cancelled("passing")
    assert Queue("passing", auto_delete=True) in held(it)
    it.cancelled("passing")
    it.cancelled("work")
    assert held(it) == [Exchange("logs"), Queue("work")]


def test_an_auto_delete_queue_whose_consumer_was_lost_is_kept():
    it = record(Queue("passing", auto_delete=True))
    for _ in range(3):  # links
        it.consumed("passing")
        it.lost("passing")
    assert len(it) == 1
    it.consumed("passing")
    it.cancelled("passing")
    assert len(it) == 0


def test_the_consumers_of_a_renamed_queue_are_counted_under_its_new_name():
    it = TopologyRecord()
    it.declared(Queue(auto_delete=True), "amq.gen-1")
    it.consumed("amq.gen-1")
    it.consumed("amq.gen-1")
    it.renamed("amq.gen-1", "amq.gen-2")
    it.cancelled("amq.gen-2")
    assert len(it) == 1
    it.cancelled("amq.gen-2")
    assert len(it) == 0


def test_a_queue_that_the_broker_named_is_renamed_in_its_bindings():
    it = TopologyRecord()
    it.declared(Queue(exclusive=True), "amq.gen-1")
    it.declared(Binding("logs", "amq.gen-1", "a"))
    it.declared(Binding("logs", "work"))
    it.declared(Binding("logs", "amq.gen-1", kind="exchange"))
    it.renamed("amq.gen-1", "amq.gen-2")
    it.renamed("amq.gen-2", "amq.gen-3")
    assert it.steps() == [
        (Queue(exclusive=True), "amq.gen-3"),
        (Binding("logs", "amq.gen-3", "a"), ""),
        (Binding("logs", "work"), ""),
        (Binding("logs", "amq.gen-1", kind="exchange"), ""),
    ]
    assert {it.current(name) for name in ("amq.gen-1", "amq.gen-2", "amq.gen-3")} == {"amq.gen-3"}
    it.deleted(Queue("amq.gen-3"))
    assert len(it) == 2


def test_what_was_deleted_meanwhile_is_not_held():
    it = record(Queue("work"), Exchange("logs"), Binding("logs", "work"))
    steps = it.steps()
    assert all(it.holds(*each) for each in steps)
    it.deleted(Queue("work"))
    assert [it.holds(*each) for each in steps] == [True, False, False]


def test_what_is_said_under_a_replaced_name_is_about_the_queue_that_has_another_now():
    it = TopologyRecord()
    it.declared(Queue(exclusive=True), "amq.gen-1")
    it.declared(Binding("logs", "amq.gen-1", "a"))
    assert it.renamed("amq.gen-1", "amq.gen-2")
    assert not it.renamed("amq.gen-2", "amq.gen-2")
    it.declared(Binding("logs", "amq.gen-1", "b"))
    assert held(it)[1:] == [Binding("logs", "amq.gen-2", "a"), Binding("logs", "amq.gen-2", "b")]
    it.deleted(Binding("logs", "amq.gen-1", "a"))
    assert held(it)[1:] == [Binding("logs", "amq.gen-2", "b")]
    it.deleted(Queue("amq.gen-1"))
    assert len(it) == 0


def test_only_queues_have_replaced_names():
    it = TopologyRecord()
    it.declared(Queue(), "amq.gen-1")
    it.renamed("amq.gen-1", "amq.gen-2")
    same = [Queue(), Queue("work"), Exchange("amq.gen-1"), Binding("logs", "amq.gen-1", kind="exchange")]
    assert [it.present(each) for each in same] == same
    assert it.present(Queue("amq.gen-1", durable=False)) == Queue("amq.gen-2", durable=False)


def test_queues_without_a_consumer_leave_no_count_behind():
    it = record(Queue("queue-1"))
    for number in range(3):
        it.consumed(f"queue-{number}")
        it.consumed("work")
    it.cancelled("queue-0")
    it.lost("queue-1")
    it.renamed("queue-1", "another name")
    it.cancelled("work")
    assert dict(it._consumers) == {"queue-2": 1, "work": 2}
