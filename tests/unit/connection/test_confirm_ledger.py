"""Each message is answered once, whatever the order of the broker's answers; no broker is needed for that."""

from hypothesis import given
from hypothesis import strategies as st

from labkit.connection.confirm_ledger import ConfirmLedger


class Sent:
    """A message on its way; it is stamped with its number unless a test says otherwise."""

    def __init__(self, number, *, body=b"body", routing_key="work", message_id=None, stamp=None):
        self.number, self.stamp = number, number if stamp is None else stamp
        self.body, self.routing_key, self.message_id = body, routing_key, message_id
        self.returned = None

    @property
    def facts(self):
        return "", self.routing_key, self.message_id, self.body


def back(ledger, stamp=None, *, body=b"body", routing_key="work", message_id=None):
    return ledger.returned((312, "NO_ROUTE"), ("", routing_key, message_id, body), stamp=stamp)


class Broker:
    """What the protocol lets a broker do: number the publishes of a channel, and answer each once."""

    def __init__(self):
        self.unanswered = {}
        self.count = 0

    def receive(self, number):
        self.count += 1
        self.unanswered[self.count] = number

    def answer(self, tag, multiple):
        tags = [each for each in self.unanswered if each == tag or (multiple and (each < tag or tag == 0))]
        return [self.unanswered.pop(each) for each in sorted(tags)]


STEPS = st.lists(
    st.one_of(
        st.just(("send",)),
        st.tuples(st.just("answer"), st.integers(0, 40), st.booleans()),
        st.tuples(st.just("return"), st.integers(0, 40)),
        st.just(("new channel",)),
    ),
    max_size=120,
)


@given(STEPS)
def test_any_order_of_answers_settles_each_message_exactly_once(steps):
    ledger, broker = ConfirmLedger(), Broker()
    all_of_them, settled, came_back = {}, [], set()
    for step in steps:
        if step[0] == "send":
            one = all_of_them[len(all_of_them)] = Sent(len(all_of_them))
            assert ledger.sent(one) == broker.count + 1
            broker.receive(one.number)
        elif step[0] == "answer":
            told = broker.answer(*step[1:])
            assert [each.number for each in ledger.settled(*step[1:])] == told
            settled += told
        elif step[0] == "return":
            is_ours = step[1] in broker.unanswered.values()
            found = back(ledger, stamp=step[1], body=b"body" if is_ours else b"another's")
            assert (found.number if found else None) == (step[1] if is_ours else None)
            came_back |= {found.number} if found else set()
        else:
            broker = Broker()
            again = ledger.started()
            assert [each.number for each in again] == sorted(each.number for each in again)
            for each in again:
                ledger.sent(each)
                broker.receive(each.number)
            came_back -= {each.number for each in again}
    settled += [each.number for each in ledger.settled(0, True)]
    assert sorted(settled) == list(all_of_them)
    assert len(ledger) == 0
    assert {number for number, each in all_of_them.items() if each.returned} == came_back


def test_an_answer_that_comes_twice_settles_nothing_more():
    ledger = ConfirmLedger()
    for number in range(3):
        ledger.sent(Sent(number))
    assert [each.number for each in ledger.settled(2, True)] == [0, 1]
    assert ledger.settled(2, True) == ledger.settled(1, False) == ledger.settled(99, False) == []
    assert len(ledger) == 1


def test_a_return_without_a_stamp_is_the_oldest_equal_message_that_did_not_come_back():
    ledger = ConfirmLedger()
    for number, (body, key) in enumerate([(b"a", "x"), (b"b", "x"), (b"a", "x"), (b"a", "y")]):
        ledger.sent(Sent(number, body=body, routing_key=key))
    assert back(ledger, body=b"a", routing_key="x").number == 0
    assert back(ledger, body=b"a", routing_key="x").number == 2
    assert back(ledger, body=b"a", routing_key="x") is None
    assert back(ledger, body=b"a", routing_key="y").number == 3
    assert back(ledger, body=b"b", routing_key="x", message_id="another") is None


def test_a_return_is_known_by_an_id_that_no_other_message_has():
    ledger = ConfirmLedger()
    for number in range(3):
        ledger.sent(Sent(number, message_id=f"id-{number}", stamp=f"id-{number}"))
    assert back(ledger, message_id="id-2").number == 2
    assert back(ledger, message_id="id-0").number == 0
    assert [each.returned is None for each in ledger.settled(0, True)] == [False, True, False]
    assert back(ledger, message_id="id-1") is None


def test_a_stamp_of_another_publisher_tells_nothing():
    """Whoever sends a message on sends its headers, too."""
    ledger = ConfirmLedger()
    neighbour, passed_on = Sent(1, message_id="mine"), Sent(2, body=b"passed on")
    ledger.sent(neighbour)
    ledger.sent(passed_on)
    assert back(ledger, stamp=1, body=b"passed on") is passed_on
    assert neighbour.returned is None
    assert back(ledger, stamp=["no", "number"], message_id="mine") is neighbour


def test_the_return_of_a_message_that_was_given_up_is_not_taken_for_its_equals():
    ledger = ConfirmLedger()
    late, equal = Sent(1, message_id="mine"), Sent(2, message_id="mine")
    ledger.sent(late)
    ledger.sent(equal)
    late.body = b""
    assert back(ledger, stamp=1, message_id="mine") is late
    assert equal.returned is None


def test_what_came_back_on_the_old_channel_is_not_returned_on_the_new_one():
    ledger = ConfirmLedger()
    one = Sent(7)
    ledger.sent(one)
    back(ledger, stamp=7)
    ledger.started()
    assert ledger.sent(one) == 1
    assert one.returned is None
