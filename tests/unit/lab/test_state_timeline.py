"""Events as states, as text and as a picture. No broker, no widgets."""

from xml.etree import ElementTree

import pytest
from pika.exceptions import ConnectionClosedByBroker, StreamLostError

from labkit import events as happened
from labkit.events import (
    AttemptFailed,
    ChannelOpened,
    ConnectAttempted,
    ConnectionBlocked,
    ConnectionClosed,
    ConnectionGivenUp,
    ConnectionLost,
    ConnectionOpened,
    ConnectionRecovered,
    ConnectionUnblocked,
    Event,
)
from labkit.lab.boards.state_lanes import COLOURS, LANES
from labkit.lab.boards.state_timeline import MOST_CONNECTIONS, MOST_STEPS, StateTimeline, read

SVG = "{http://www.w3.org/2000/svg}"


def lost(code: int | None = None) -> ConnectionLost:
    reason = StreamLostError("eof") if code is None else ConnectionClosedByBroker(code, "go")
    return ConnectionLost(reason=reason, recovering=True)


def drawn(timeline: StateTimeline) -> ElementTree.Element:
    return ElementTree.fromstring(timeline.svg())


def texts(timeline: StateTimeline) -> list[str]:
    return [element.text or "" for element in drawn(timeline).iter(f"{SVG}text")]


def bars(timeline: StateTimeline) -> list[str]:
    """The states that have a bar, in the order in which they were drawn."""
    colours = {colour: [name for name in LANES if COLOURS[name] == colour] for colour in COLOURS.values()}
    found = []
    for rect in drawn(timeline).iter(f"{SVG}rect"):
        names = [n for n in colours.get(rect.get("fill", ""), []) if LANES[n] == int(rect.get("x", "0")) + 4]
        found += names
    return found


def test_a_life_is_read_as_states_and_a_flag():
    life = [
        ConnectAttempted(attempt=1),
        AttemptFailed(attempt=1, error=ConnectionRefusedError(), next_delay=0.1),
        ConnectAttempted(attempt=2),
        ConnectionOpened(attempts=2),
        ConnectionBlocked(reason="low on memory"),
        ChannelOpened(number=1),
        ConnectionUnblocked(),
        ConnectionClosed(),
    ]

    assert str(StateTimeline(life)).splitlines() == [
        "NEW",
        "CONNECTING      ConnectAttempted(attempt=1)",
        "WAITING         AttemptFailed(attempt=1, error=ConnectionRefusedError)",
        "CONNECTING      ConnectAttempted(attempt=2)",
        "OPEN            ConnectionOpened(attempts=2, generation=1)",
        "OPEN blocked    ConnectionBlocked(reason='low on memory')",
        "OPEN blocked    ChannelOpened(number=1)",
        "OPEN            ConnectionUnblocked()",
        "CLOSING CLOSED  ConnectionClosed(clean=True)",
    ]
    assert bars(StateTimeline(life)) == [
        "NEW", "CONNECTING", "WAITING", "CONNECTING", "OPEN", "OPEN", "OPEN", "CLOSED",
    ]  # fmt: skip


def test_giving_up_ends_in_failed_and_the_last_failed_attempt_does_not_wait():
    end = [
        ConnectAttempted(attempt=1),
        AttemptFailed(attempt=1, error=OSError()),
        ConnectionGivenUp(attempts=1, error=OSError()),
    ]

    assert [step.state for step in read(end)] == ["CONNECTING", "CONNECTING", "FAILED"]


def test_a_loss_is_the_end_where_nobody_recovers():
    steps = read([ConnectionOpened(), ConnectionLost(reason=StreamLostError("eof"))])

    assert [step.state for step in steps] == ["OPEN", "FAILED"]


def test_a_loss_takes_the_blocked_flag_with_it():
    steps = read([ConnectionOpened(), ConnectionBlocked(reason="disk"), lost(), ConnectAttempted(attempt=1)])

    assert [step.blocked for step in steps] == [False, True, False, False]


def test_the_state_is_where_the_connection_is_and_not_what_it_passed():
    assert StateTimeline([ConnectionOpened(), ConnectionClosed()]).state == "CLOSED"
    assert StateTimeline([ConnectionOpened(), ConnectionBlocked(reason="disk")]).state == "OPEN blocked"


def test_a_recovery_is_open_again():
    again = [ConnectionOpened(), lost(), ConnectAttempted(attempt=1), ConnectionRecovered(generation=2)]

    assert StateTimeline(again).state == "OPEN"


@pytest.mark.parametrize("kind", Event.__subclasses__(), ids=lambda kind: kind.__name__)
def test_every_event_can_be_shown_wherever_it_stands(kind):
    event = {
        "attempt": 1, "attempts": 1, "error": OSError(), "reason": OSError("why"), "generation": 2, "number": 1,
        "exchange": "", "routing_key": "orders", "what": "queue 'orders'",
        "kind": "blocked",
    }  # fmt: skip
    given = {name: value for name, value in event.items() if name in kind.__dataclass_fields__}
    for before in ([], [ConnectionOpened()], [ConnectionClosed()]):
        timeline = StateTimeline([*before, kind(**given)])
        assert kind.__name__ in texts(timeline)
        assert timeline.steps[-1].state in ("", *LANES)


def test_there_are_events_to_show():
    assert len(Event.__subclasses__()) == len([n for n in dir(happened) if n[0].isupper() and _is_event(n)])


def _is_event(name: str) -> bool:
    kind = getattr(happened, name)
    return isinstance(kind, type) and issubclass(kind, Event) and kind is not Event


def test_the_same_life_at_another_time_gives_the_same_bytes():
    first = [ConnectAttempted(attempt=1, at=1.0, port=5672), ConnectionOpened(seconds=0.1, at=2.0), lost()]
    second = [ConnectAttempted(attempt=1, at=9.0, port=40000), ConnectionOpened(seconds=7.1, at=99.0), lost()]

    assert StateTimeline(first).svg() == StateTimeline(second).svg()
    assert str(StateTimeline(first)) == str(StateTimeline(second))


def test_the_picture_carries_its_title_and_its_text_twin():
    timeline = StateTimeline([ConnectAttempted(attempt=1), ConnectionOpened()])

    assert drawn(timeline).findtext(f"{SVG}title") == "State timeline of a connection: 2 events, now OPEN"
    assert drawn(timeline).findtext(f"{SVG}desc") == str(timeline) == repr(timeline)


def test_a_reply_code_is_shown_beside_the_loss():
    timeline = StateTimeline([ConnectionOpened(), lost(320)])

    assert "reason=ConnectionClosedByBroker(320), generation=1" in texts(timeline)


def test_blocked_is_said_in_words_and_framed():
    timeline = StateTimeline([ConnectionOpened(), ConnectionBlocked(reason="low on memory")])

    assert "blocked" in texts(timeline)
    assert [rect for rect in drawn(timeline).iter(f"{SVG}rect") if rect.get("stroke-dasharray")]


def test_what_was_skipped_still_says_where_the_rest_begins():
    life = [ConnectAttempted(attempt=1), ConnectionOpened(), ConnectionBlocked(reason="disk"), ChannelOpened(number=1)]

    assert str(StateTimeline(life, skip=3)).splitlines() == ["OPEN blocked", "OPEN blocked    ChannelOpened(number=1)"]
    assert StateTimeline(life, skip=3).steps[0].moved is False
    assert str(StateTimeline([*life, ConnectionClosed(), ChannelOpened(number=2)], skip=5)).splitlines()[0] == "CLOSED"


def test_several_connections_have_a_timeline_each():
    mixed = [
        ConnectAttempted(attempt=1, connection="orders"),
        ConnectAttempted(attempt=1, connection="tickets"),
        ConnectionOpened(connection="orders"),
        lost(),
        ConnectionClosed(connection="tickets"),
    ]

    assert str(StateTimeline(mixed)).splitlines() == [
        "connection orders",
        "NEW",
        "CONNECTING      ConnectAttempted(attempt=1)",
        "OPEN            ConnectionOpened(attempts=1, generation=1)",
        "connection tickets",
        "NEW",
        "CONNECTING      ConnectAttempted(attempt=1)",
        "CLOSING CLOSED  ConnectionClosed(clean=True)",
        "connection without a name",
        "OPEN",
        "WAITING         ConnectionLost(reason=StreamLostError, generation=1)",
    ]
    assert {"orders", "tickets", "without a name"} <= set(texts(StateTimeline(mixed)))


def test_two_connections_of_one_name_are_two_lines():
    timeline = StateTimeline(
        [
            ConnectionOpened(connection="worker", source=1),
            ConnectionOpened(connection="worker", source=2),
            ConnectionClosed(connection="worker", source=1),
        ]
    )

    assert str(timeline).splitlines() == [
        "connection worker (1 of 2)",
        "CONNECTING",
        "OPEN            ConnectionOpened(attempts=1, generation=1)",
        "CLOSING CLOSED  ConnectionClosed(clean=True)",
        "connection worker (2 of 2)",
        "CONNECTING",
        "OPEN            ConnectionOpened(attempts=1, generation=1)",
    ]
    assert timeline.state == "OPEN"


def test_connections_that_do_not_fit_are_counted():
    crowd = StateTimeline([ConnectionOpened(connection=f"worker {n}") for n in range(MOST_CONNECTIONS + 2)])

    assert str(crowd).splitlines()[0] == "after 2 earlier connections"
    assert "after 2 earlier connections" in texts(crowd)


def test_of_a_long_life_the_newest_events_are_shown_and_the_others_counted():
    life = [ConnectAttempted(attempt=1), ConnectionOpened()]
    life += [ChannelOpened(number=number + 1) for number in range(MOST_STEPS)]
    timeline = StateTimeline(life)

    assert str(timeline).splitlines()[0] == "after 2 earlier events"
    assert len(str(timeline).splitlines()) == MOST_STEPS + 1
    assert texts(timeline).count("ChannelOpened") == MOST_STEPS
    assert bars(timeline) == ["OPEN"]


def test_nothing_is_said_and_not_left_blank():
    assert str(StateTimeline([])) == "nothing happened yet"
    assert StateTimeline([]).state == ""
    assert "nothing happened yet" in texts(StateTimeline([]))


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", "a & b", "nul\0inside", "]]>", "line\nbreak"])
def test_the_broker_s_words_cannot_break_the_picture(text):
    timeline = StateTimeline([ConnectionOpened(connection=text), ConnectionBlocked(reason=text, connection="b")])

    assert drawn(timeline).find(f".//{SVG}script") is None


def test_every_text_lies_inside_the_picture():
    crowd = StateTimeline(
        [ConnectionBlocked(reason="long " * 60, connection=f"{n}") for n in range(MOST_CONNECTIONS + 1)] * MOST_STEPS
    )
    _, _, width, height = map(int, drawn(crowd).attrib["viewBox"].split())

    assert len(texts(crowd)) > MOST_STEPS
    for text in drawn(crowd).iter(f"{SVG}text"):
        assert 0 <= int(text.attrib["x"]) < width
        assert 0 < int(text.attrib["y"]) < height
