"""What is recorded is what was declared and not deleted, by its full identity."""

import itertools

from labkit import Binding, Exchange, Queue
from labkit.connection.topology_record import FORMER_MAX, TopologyRecord


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
    assert [each for each, _ in it.around(("exchange", "b"))] == [Exchange("b"), to, out]


def test_what_is_around_a_queue_is_itself_its_bindings_and_the_auto_delete_exchanges_that_go_with_it():
    first, second = Exchange("first", auto_delete=True), Exchange("second", auto_delete=True)
    around = [
        first, second, Queue("work"),
        Binding("second", "work"), Binding("logs", "work"), Binding("first", second), Binding("logs", first),
    ]  # fmt: skip
    it = record(Exchange("logs"), Queue("other"), Binding("logs", "other"), *around)
    assert set(held(it)) > set(around)
    found = [each for each, _ in it.around(("queue", "work"))]
    assert set(found) == set(around)
    assert len(found) == len(around)


def test_what_passes_is_what_is_auto_delete_and_the_same_on_every_link():
    it = record(
        Exchange("logs"), Exchange("passing", auto_delete=True), Queue("work"), Queue("passing", auto_delete=True)
    )
    it.declared(Queue("mine", exclusive=True, auto_delete=True), "mine", home=it)
    it.declared(Queue(auto_delete=True), "amq.gen-1", home=it)
    assert it.passing() == [("queue", "passing"), ("exchange", "passing")]


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
    queue, *bindings = it.steps()
    assert queue == (Queue(exclusive=True), "amq.gen-3")
    assert {each for each, _ in bindings} == {
        Binding("logs", "amq.gen-3", "a"),
        Binding("logs", "work"),
        Binding("logs", "amq.gen-1", kind="exchange"),
    }
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


def test_a_queue_stays_as_long_as_one_of_those_who_declared_it():
    it, binding = record(Exchange("logs")), Binding("logs", "work")
    for keeper in ("first", "second", None):
        it.declared(Queue("work"), "work", keeper=keeper)
    it.declared(binding)
    it.released("work", "first")
    it.deleted(Queue("work"))  # by the user: the second declares it again
    it.released("work", "somebody else")
    assert held(it) == [Exchange("logs"), Queue("work"), binding]
    it.released("work", "second")
    assert held(it) == [Exchange("logs")]


def test_of_the_names_that_a_queue_has_had_the_first_and_the_last_are_understood():
    it = TopologyRecord()
    names = [f"amq.gen-{number}" for number in range(3 * FORMER_MAX)]
    it.declared(Queue(exclusive=True), names[0])
    it.declared(Binding("logs", names[0]))
    for old, new in itertools.pairwise(names):
        assert it.renamed(old, new)
    understood = [name for name in names if it.current(name) == names[-1]]
    assert understood == [names[0], *names[-FORMER_MAX - 1 :]]
    assert len(it._by_name) == len(understood)
    it.deleted(Queue(names[0]))
    assert (len(it), len(it._by_name)) == (0, 0)


def test_what_only_one_connection_can_declare_is_no_step_of_another():
    it = record(Exchange("logs"))
    it.declared(Queue("shared"), "shared", home="one")
    it.declared(Queue("mine", exclusive=True), "mine", home="one")
    it.declared(Queue(), "amq.gen-1", home="two")
    bindings = [Binding("logs", each) for each in ("shared", "mine", "amq.gen-1", "unknown")]
    for each in bindings:
        it.declared(each)
    shared, mine, named, unknown = bindings
    one, two = ({entity for entity, _ in it.steps(home)} for home in ("one", "two"))
    assert one == {Exchange("logs"), Queue("shared"), Queue("mine", exclusive=True), shared, mine, unknown}
    assert two == {Exchange("logs"), Queue("shared"), Queue(), shared, named, unknown}
    assert it.keeps(("queue", "mine"), "one")
    assert not it.keeps(("queue", "mine"), "two")


def test_what_is_bound_is_a_queue_with_a_binding_and_an_exchange_with_one_in_or_out():
    it = record(Binding("a", "work"), Binding("b", Exchange("c")))
    bound = [("queue", "work"), ("exchange", "a"), ("exchange", "b"), ("exchange", "c")]
    assert [
        each for each in [*bound, ("queue", "c"), ("exchange", "work"), ("queue", "")] if it.is_bound(each)
    ] == bound
