"""The checks of notebook 14 tell a fault, and causes, from what is plausible; the recordings are of real outages."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from labkit import events
from labkit.brokers import Broker
from labkit.diagnosis import explain
from labkit.events import Event
from labkit.lab.checks import Verdict, find_exercise, judge
from labkit.lab.exercises.notebook_14 import FINDING
from labkit.lab.recordings import DIAGNOSES, FILE, Recording, all_recordings, from_data, recordings, to_data
from labkit.lab.ticket_desk import TicketDesk
from labkit.settings.settings import BrokerSettings
from labkit.wire import Proxy
from tests.broker import outages
from tests.view import until

LESSON = Path(__file__).parents[2] / "notebooks" / "14-diagnose-the-outage.ipynb"
RIGHT = {name: right for name, (right, _, _) in FINDING.items()}
Diagnose = Callable[[tuple[Event, ...]], object]


def judged(name: str, answer: object) -> Verdict:
    return judge(find_exercise(name), answer)


# -- 14.1: the service ---------------------------------------------------------------------------------------------


def test_the_finding_passes() -> None:
    assert judged("14.1", dict(RIGHT)).passed


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        (name, wrong)
        for name, (right, allowed, _) in FINDING.items()
        for wrong in (*allowed, 404, None)
        if wrong != right
    ],
)
def test_a_finding_with_one_wrong_part_does_not_and_is_told_where_to_look(name: str, wrong: object) -> None:
    verdict = judged("14.1", {**RIGHT, name: wrong})
    assert not verdict.passed
    assert verdict.reason.startswith(name)
    assert str(RIGHT[name]) not in verdict.reason.partition(":")[2] or " is one of: " in verdict.reason


@pytest.mark.parametrize("answer", [None, "acknowledged twice", {}, {"ended": "channel"}])
def test_what_is_no_finding_is_told_so(answer: object) -> None:
    verdict = judged("14.1", answer)
    assert not verdict.passed
    assert verdict.reason.startswith("finding")


@pytest.fixture
def proxy(settings: BrokerSettings) -> Iterator[Proxy]:
    with Proxy(settings) as proxy:
        yield proxy


@pytest.mark.broker
def test_an_interrupt_as_the_desk_opens_leaves_no_office(
    broker: Broker, settings: BrokerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    desk = TicketDesk(settings)
    with monkeypatch.context() as striking:
        striking.setattr(TicketDesk, "_until", interrupted)
        with pytest.raises(KeyboardInterrupt), desk:
            raise AssertionError("not reached")
    until(lambda: "ticket-desk" not in {each.name for each in threading.enumerate()})
    assert broker.count_connections(settings.virtual_host) == 0
    with desk:
        desk.sell(1)
        assert "connected: True" in desk.report()


@pytest.mark.broker
def test_the_service_has_the_fault_that_the_check_expects_and_its_page_is_green(proxy: Proxy, broker: Broker) -> None:
    with TicketDesk(proxy.settings()) as desk:
        desk.sell(1, 2, 1)
        assert desk.report() == "sold: 3 | handled: 2 | connected: True | error: none"
        frames = proxy.conversation().frames
        closes = [frame.fields for frame in frames if frame.name == "Channel.Close"]
        (close,) = (each for each in closes if each["reply_code"] != 200)  # 200: in good order, by this side
        assert close["reply_code"] == RIGHT["code"]
        assert "unknown delivery tag" in close["reply_text"]
        taken = [frame.fields["delivery_tag"] for frame in frames if frame.name == "Basic.Ack"]
        assert taken.count(2) > 1, "acknowledged twice"
        office = broker.wait_for_connections(1, proxy.settings().virtual_host)
        assert [each.channels for each in office] == [0]
    assert desk.report().endswith("connected: False | error: none")


@pytest.mark.broker
def test_the_repaired_service_handles_every_order(proxy: Proxy) -> None:
    with TicketDesk(proxy.settings(), acknowledge=lambda channel, tag, seats: channel.basic_ack(tag)) as desk:
        desk.sell(1, 2, 3)
        assert desk.report() == "sold: 3 | handled: 3 | connected: True | error: none"


@pytest.mark.broker
def test_an_office_that_loses_its_link_says_so_and_ends(proxy: Proxy) -> None:
    with TicketDesk(proxy.settings()) as desk:
        proxy.cut()
        deadline = time.monotonic() + 20
        while "connected: True" in desk.report() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert desk.report() == "sold: 0 | handled: 0 | connected: False | error: StreamLostError"


# -- 14.2: the recordings ------------------------------------------------------------------------------------------


def solution(tag: str = "solution") -> Diagnose:
    """``diagnose`` as the lesson's last cell of that tag defines it."""
    cells = json.loads(LESSON.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(each["source"]) for each in cells if tag in each["metadata"].get("tags", ())]

    class OnlyExplains:
        explain = staticmethod(explain)

    names: dict[str, Any] = {"lab": OnlyExplains, "told": events}
    exec(sources[-1], names)
    diagnose: Diagnose = names["diagnose"]
    return diagnose


def test_each_diagnosis_has_a_recording_that_is_shown_and_one_that_is_not() -> None:
    for hidden in (False, True):
        assert sorted(each.diagnosis for each in all_recordings() if each.hidden is hidden) == sorted(DIAGNOSES)
    assert len(recordings()) == len(DIAGNOSES)


def test_the_lessons_solution_passes_and_its_stub_does_not() -> None:
    verdict = judged("14.2", solution())
    assert verdict.passed, verdict.reason
    assert not judged("14.2", solution("exercise")).passed


@pytest.mark.parametrize("always", DIAGNOSES)
def test_one_diagnosis_for_everything_does_not_pass(always: str) -> None:
    assert not judged("14.2", lambda told: always).passed


def test_shown_recordings_learned_by_heart_do_not_pass() -> None:
    known = {each.events: each.diagnosis for each in all_recordings() if not each.hidden}
    verdict = judged("14.2", lambda told: known.get(told, "link-cut"))
    assert not verdict.passed
    assert verdict.reason.startswith("another recording")


def by_the_last_trouble(told: tuple[Event, ...]) -> object:
    return solution()(tuple(reversed(told))) or "leak"


def by_any_failed_attempt(told: tuple[Event, ...]) -> object:
    failed = [each for each in told if isinstance(each, events.AttemptFailed)]
    return solution()(tuple(failed)) if failed else solution()(told)


def by_the_class_of_the_error(told: tuple[Event, ...]) -> object:
    failed = told[1] if isinstance(told[1], events.AttemptFailed) else None
    if failed is not None:
        return "nobody-listens" if type(failed.error).__name__ == "AMQPConnectionError" else "no-answer"
    return solution()(told)


def by_the_loss_first(told: tuple[Event, ...]) -> object:
    lost = [each for each in told if isinstance(each, events.ConnectionLost)]
    return solution()(tuple(lost)) if lost else solution()(told)


def by_channels_ever_opened(told: tuple[Event, ...]) -> object:
    opened = [each for each in told if isinstance(each, events.ChannelOpened)]
    return "leak" if len(opened) > 3 else solution()(told)


@pytest.mark.parametrize(
    "wrong",
    [by_the_last_trouble, by_any_failed_attempt, by_the_class_of_the_error, by_the_loss_first, by_channels_ever_opened],
)
def test_a_plausible_rule_that_is_wrong_does_not_pass_and_is_told_of_the_event_to_look_at(wrong: Diagnose) -> None:
    verdict = judged("14.2", wrong)
    assert not verdict.passed
    assert "the first event that nobody wanted is " in verdict.reason


@pytest.mark.parametrize(("said", "shown"), [("cable", "'cable'"), (None, "NoneType")])
def test_what_is_no_diagnosis_is_told_so(said: object, shown: str) -> None:
    verdict = judged("14.2", lambda told: said)
    assert verdict.reason.startswith(f"recording 1: {shown} is no diagnosis; they are: {DIAGNOSES[0]}")


def test_the_answer_is_not_among_what_the_lesson_hands_out() -> None:
    assert all(isinstance(event, Event) for each in recordings() for event in each)
    assert {event.connection for each in recordings() for event in each} == {"ticketdesk"}


def test_events_and_their_errors_come_back_as_they_were_written() -> None:
    stored = json.loads(FILE.read_text(encoding="utf-8"))
    for each, recording in zip(stored, all_recordings(), strict=True):
        assert json.loads(json.dumps(to_data(recording.events))) == each["events"]


def test_an_error_of_an_unknown_module_is_not_made() -> None:
    loss = {"event": "ConnectionLost", "reason": {"error": "subprocess:Popen", "args": ["true"], "held": {}}, "at": 0}
    with pytest.raises(ValueError, match="module 'subprocess'"):
        from_data([loss])


# -- recorded again ------------------------------------------------------------------------------------------------


def shape(told: tuple[Event, ...]) -> list[str]:
    """The events' names and what explains their errors; failed attempts once, for their number is a matter of time."""
    steps: list[str] = []
    for event in told:
        error = getattr(event, "error", None) or getattr(event, "reason", None)
        cause = f" {explain(error).diagnosis}" if isinstance(error, BaseException) else ""
        steps.append(type(event).__name__ + cause)
        if len(steps) > 3 and steps[-2:] == steps[-4:-2]:
            del steps[-2:]
    return steps


def recorded(diagnosis: str, hidden: bool) -> Recording:
    return next(each for each in all_recordings() if (each.diagnosis, each.hidden) == (diagnosis, hidden))


AGAIN = [
    (kind.diagnosis, hidden, outage)
    for kind in outages.KINDS
    for hidden, outage in ((False, kind.shown), (True, kind.hidden))
    if outage
    in (
        outages.cut,
        outages.cut_and_refused,
        outages.nobody_listens,
        outages.nobody_listens_yet,
        outages.packets_lost,
        outages.channel_closed_among_others,
        outages.leak,
    )
]


@pytest.mark.broker
@pytest.mark.parametrize(("diagnosis", "hidden", "outage"), AGAIN, ids=[each.__name__ for *_, each in AGAIN])
def test_the_same_outage_is_recorded_alike_today(
    broker: Broker, settings: BrokerSettings, diagnosis: str, hidden: bool, outage: outages.Outage
) -> None:
    again = outages.record(broker, settings.virtual_host, outage)
    assert shape(again) == shape(recorded(diagnosis, hidden).events)
    assert solution()(again) == diagnosis


def test_every_kind_that_is_in_the_file_can_be_recorded() -> None:
    assert {kind.diagnosis for kind in outages.KINDS} == set(DIAGNOSES)
