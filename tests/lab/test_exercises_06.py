"""The checks of notebook 06 tell a right answer from each of the plausible wrong ones; 06.1 agrees with a broker."""

from collections.abc import Iterator

import pytest

from labkit import Backoff, Connection, State, Timeline, events
from labkit.brokers import Broker
from labkit.events import AttemptFailed, ConnectionRecovered
from labkit.lab.checks import Verdict, find_exercise, judge
from labkit.lab.exercises.notebook_06 import BELL, ORDER, STATUS
from labkit.settings.settings import BrokerSettings
from labkit.wire import Proxy, Refuse

PATIENCE = 30.0  # seconds; each wait takes a fraction of one
RIGHT = list(ORDER)


def judged(name: str, answer: object) -> Verdict:
    return judge(find_exercise(name), answer)


def without(*positions: int) -> list[str]:
    return [name for position, name in enumerate(RIGHT) if position not in positions]


def instead(position: int, name: str) -> list[str]:
    return [*RIGHT[:position], name, *RIGHT[position + 1 :]]


# -- 06.1: put the events in order --------------------------------------------------------------------------------


@pytest.fixture
def proxy(settings: BrokerSettings) -> Iterator[Proxy]:
    with Proxy(settings) as proxy:
        yield proxy


@pytest.mark.broker
def test_the_order_that_passes_is_what_a_real_connection_tells(broker: Broker, proxy: Proxy) -> None:
    timeline = Timeline()
    settings = proxy.settings()
    connection = Connection(settings, recovery=True, backoff=Backoff(initial=0.2, jitter="none"), listeners=[timeline])
    with connection:
        with proxy.fault(Refuse()):
            assert broker.close_connections("an operator", settings.virtual_host) == 1
            timeline.wait_for(AttemptFailed, timeout=PATIENCE, count=2)
        timeline.wait_for(ConnectionRecovered, timeout=PATIENCE)
    told = timeline.names()
    # How often it was refused depends on when the port came back; what a refusal looks like does not.
    while told.count("AttemptFailed") > 2:
        last = len(told) - 1 - told[::-1].index("AttemptFailed")
        del told[last - 1 : last + 1]
    assert tuple(told) == ORDER
    assert connection.state is State.CLOSED


def test_the_right_order_passes_as_names_and_as_classes() -> None:
    assert judged("06.1", RIGHT).passed
    assert judged("06.1", tuple(RIGHT)).passed
    assert judged("06.1", [getattr(events, name) for name in RIGHT]).passed


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        pytest.param(["ConnectAttempted", "ConnectionOpened", "ConnectionLost", "ConnectionClosed"],
                     "this side closes", id="the stub"),
        pytest.param(without(0), "somebody tries", id="no first attempt"),
        pytest.param(instead(8, "ConnectionOpened"), "open again", id="opened a second time"),
        pytest.param(instead(2, "ConnectionClosed"), "Here an operator did", id="closed instead of lost"),
        pytest.param([*RIGHT[:3], "ConnectionClosed", *RIGHT[3:]], "this side closes", id="lost and closed"),
        pytest.param(without(5, 6), "refused twice", id="one refusal"),
        pytest.param(without(5), "announced before it fails", id="a failure without its attempt"),
        pytest.param(without(7), "that works is announced", id="a recovery without its attempt"),
        pytest.param([*RIGHT[:5], "ConnectionGivenUp", *RIGHT[5:]], "nobody gave up", id="given up in between"),
        pytest.param(without(3, 4, 5, 6, 7), "somebody tries first", id="it comes back by itself"),
        pytest.param([*RIGHT[:9], "ConnectionOpened", RIGHT[9]], "it is open already", id="recovered and opened"),
        pytest.param(RIGHT[:-1], "9 of 10", id="the evening is missing"),
        pytest.param([*RIGHT, "ConnectionLost"], "nothing else is told", id="one too many"),
        pytest.param(instead(0, "ConnectionAttempted"), "no event 'ConnectionAttempted'", id="a wrong name"),
        pytest.param([], "very first", id="nothing"),
        pytest.param("ConnectAttempted", "list of event names", id="a text"),
        pytest.param([1], "it holds int", id="numbers"),
    ],
)  # fmt: skip
def test_a_wrong_order_is_told_where_and_why(answer: object, hint: str) -> None:
    verdict = judged("06.1", answer)

    assert not verdict.passed
    assert hint in verdict.reason


# -- 06.2: write a status line ------------------------------------------------------------------------------------


class StatusLine:
    """A right answer, in the way of a lookup; the notebook's solution is another one."""

    def __init__(self) -> None:
        self.text = "new"
        self.link = 0

    def __call__(self, event: events.Event) -> None:
        self.text = self.line(event)

    def line(self, event: events.Event) -> str:
        match event:
            case events.ConnectAttempted():
                return "connecting"
            case events.ConnectionOpened(generation=link) | events.ConnectionRecovered(generation=link):
                self.link = link
                return f"open, link {link}"
            case events.ConnectionBlocked(reason=why):
                return f"open, link {self.link}, blocked: {why}"
            case events.ConnectionUnblocked():
                return f"open, link {self.link}"
            case events.AttemptFailed(error=error):
                return f"failed: {type(error).__name__}"
            case events.ConnectionLost(reason=error):
                return f"lost: {type(error).__name__}"
            case events.ConnectionGivenUp():
                return "given up"
            case events.ConnectionClosed():
                return "closed"
        return self.text


class TheStub(StatusLine):
    def line(self, event):
        known = (events.ConnectAttempted, events.ConnectionOpened, events.ConnectionClosed)
        return super().line(event) if isinstance(event, known) else self.text


class KnowsNoRecovery(StatusLine):
    def line(self, event):
        return self.text if isinstance(event, events.ConnectionRecovered) else super().line(event)


class ForgetsTheLink(StatusLine):
    def line(self, event):
        return "open, link 1" if isinstance(event, events.ConnectionUnblocked) else super().line(event)


class ClearsAtOtherEvents(StatusLine):
    def line(self, event):
        return "" if isinstance(event, events.ChannelOpened) else super().line(event)


class UnblocksAtAnyEvent(StatusLine):
    def line(self, event):
        return f"open, link {self.link}" if isinstance(event, events.ChannelClosed) else super().line(event)


class ShowsTheText(StatusLine):
    def line(self, event):
        return f"lost: {event.reason}" if isinstance(event, events.ConnectionLost) else super().line(event)


class KeepsTheAlarm(StatusLine):
    blocked = ""

    def line(self, event):
        if isinstance(event, events.ConnectionBlocked):
            self.blocked = f", blocked: {event.reason}"
        if isinstance(event, events.ConnectionUnblocked):
            self.blocked = ""
        line = super().line(event)
        return line if "blocked" in line else line + self.blocked


class SharesOnceTold(StatusLine):
    def __call__(self, event):
        type(self).text = self.line(event)

    def __init__(self) -> None:
        self.link = 0
        if "text" not in vars(type(self)):
            type(self).text = "new"


class Raises(StatusLine):
    def line(self, event):
        return f"lost: {event.error}" if isinstance(event, events.ConnectionLost) else super().line(event)


class Prints(StatusLine):
    def __call__(self, event):
        print(self.line(event))


class IsNoListener:
    text = "new"


def test_a_right_status_line_passes_whatever_its_way() -> None:
    verdict = judged("06.2", StatusLine)

    assert verdict.passed, verdict.reason
    assert f"{sum(map(len, STATUS))} events" in verdict.reason


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (TheStub, "after ConnectionBlocked(reason='low on memory')"),
        (KnowsNoRecovery, "after ConnectionRecovered"),
        (ForgetsTheLink, "should read 'open, link 2'; it reads 'open, link 1'"),
        (ClearsAtOtherEvents, "after ChannelOpened(number=1)"),
        (UnblocksAtAnyEvent, "after ChannelClosed(number=1)"),
        (ShowsTheText, "should read 'lost: StreamLostError'"),
        (KeepsTheAlarm, "should read 'lost: StreamLostError'; it reads 'lost: StreamLostError, blocked"),
        (SharesOnceTold, "changed the other"),
        (Raises, "your listener raised AttributeError"),
        (Prints, "after ConnectAttempted(attempt=1) the line should read 'connecting'; it reads 'new'"),
        (IsNoListener, "needs a method __call__"),
        (StatusLine(), "give the class StatusLine itself"),
        (None, "give the class StatusLine itself"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_a_wrong_status_line_is_told_after_which_event(answer: object, hint: str) -> None:
    verdict = judged("06.2", answer)

    assert not verdict.passed
    assert hint in verdict.reason


# -- 06.3: the bell that never stops ------------------------------------------------------------------------------


def bell(rings: type | tuple[type, ...], silent: type | tuple[type, ...]) -> type:
    class Bell:
        def __init__(self) -> None:
            self.ringing = False

        def __call__(self, event: events.Event) -> None:
            if isinstance(event, rings):
                self.ringing = True
            elif isinstance(event, silent):
                self.ringing = False

    return Bell


STOPS = (events.ConnectionLost, events.ConnectionBlocked, events.ConnectionGivenUp)
SELLS = (events.ConnectionOpened, events.ConnectionRecovered, events.ConnectionUnblocked, events.ConnectionClosed)


def but(group: tuple[type, ...], left_out: type) -> tuple[type, ...]:
    return tuple(each for each in group if each is not left_out)


class NeverMade:
    ringing = "no"

    def __call__(self, event):
        """Hear of nothing."""


def test_a_repaired_bell_passes() -> None:
    verdict = judged("06.3", bell(STOPS, SELLS))

    assert verdict.passed, verdict.reason
    assert f"all {len(BELL)} stories" in verdict.reason


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        pytest.param(bell(STOPS[:2], (events.ConnectionOpened, events.ConnectionUnblocked)),
                     "a link is lost and comes back: after ConnectionRecovered", id="the bug"),
        pytest.param(bell(STOPS, (*SELLS, events.ConnectAttempted)), "after ConnectAttempted", id="silent when trying"),
        pytest.param(bell((*STOPS, events.AttemptFailed), SELLS), "nobody answers", id="rings at each attempt"),
        pytest.param(bell(but(STOPS, events.ConnectionGivenUp), SELLS), "nobody answers", id="given up is silent"),
        pytest.param(bell(but(STOPS, events.ConnectionBlocked), SELLS), "an alarm comes", id="deaf to alarms"),
        pytest.param(bell(STOPS, but(SELLS, events.ConnectionUnblocked)), "an alarm comes", id="an alarm for ever"),
        pytest.param(bell(STOPS, but(SELLS, events.ConnectionClosed)), "the program closes", id="rings after the end"),
        pytest.param(bell((*STOPS, events.ConnectionClosed), but(SELLS, events.ConnectionClosed)),
                     "should be silent, and it rings", id="a planned end rings"),
        pytest.param(bell((), ()), "should ring, and it is silent", id="never rings"),
        pytest.param(bell(events.Event, ()), "should be silent, and it rings", id="always rings"),
        pytest.param(NeverMade, "True or False", id="a text"),
    ],
)  # fmt: skip
def test_a_wrong_bell_is_told_in_which_story(answer: object, hint: str) -> None:
    verdict = judged("06.3", answer)

    assert not verdict.passed
    assert hint in verdict.reason
