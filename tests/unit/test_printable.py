"""What a broker, a client or a learner's code has said is printed without steering the terminal that shows it."""

import sys

import pika
import pytest

from labkit import brokers, classify
from labkit.brokers import ConnectionInfo
from labkit.cli import main
from labkit.connector.failures import connect_error
from labkit.diagnosis.explain import explain
from labkit.errors import BrokerError, ConnectError, NotConnected, PoolTimeout, describe
from labkit.event_log import log_event
from labkit.events import ConnectionBlocked, ConnectionLost
from labkit.lab.boards.architecture import Architecture
from labkit.lab.boards.state_timeline import StateTimeline
from labkit.lab.checks import describe as describe_answer
from labkit.printable import printable

# Clear the screen, set the window's title, turn the line round, begin another line, and the old one-byte escape.
EVIL = "gone \x1b[2J\x1b]0;owned\x07 \u202etxt\u202c \r\u2028\x85 \x9b31m"
SHOWN = r"gone \x1b[2J\x1b]0;owned\x07 \u202etxt\u202c \r\u2028\x85 \x9b31m"
CLOSED = pika.exceptions.ConnectionClosedByBroker(320, EVIL)


def is_harmless(text: str) -> bool:
    return all(line.replace("\t", "").isprintable() for line in text.split("\n"))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (EVIL, SHOWN),
        ("plain – ünïcode 日本 🐇", "plain – ünïcode 日本 🐇"),
        ("a\nb\tc", r"a\nb\tc"),
        ("\udce9 \U000e0001", r"\udce9 \U000e0001"),
        ("", ""),
    ],
)
def test_what_steers_a_terminal_is_shown_as_an_escape(text: str, shown: str) -> None:
    assert printable(text) == shown
    printable(text).encode()


def test_lines_stay_lines_where_they_are_wanted() -> None:
    assert printable("a\nb\x1b\tc", keep="\n\t") == "a\nb\\x1b\tc"


@pytest.mark.parametrize("cls", [BrokerError, ConnectError, NotConnected, PoolTimeout])
def test_every_error_of_ours_prints_harmlessly_and_keeps_its_lines(cls: type[Exception]) -> None:
    error = cls(f"no:\n  {EVIL}")
    assert str(error) == f"no:\n  {SHOWN}".replace("\\r", r"\r")
    assert is_harmless(repr(error))


def test_what_a_broker_said_is_described_and_explained_harmlessly() -> None:
    assert describe(CLOSED) == f"ConnectionClosedByBroker: (320) {SHOWN}"
    explained = explain(CLOSED)
    assert (explained.said, is_harmless(str(explained))) == (SHOWN, True)
    assert is_harmless(describe_answer(ValueError(EVIL)))
    refused = explain(
        connect_error(
            pika.exceptions.ProbableAccessDeniedError(f"(530) '{EVIL}'"), hosts=["h"], attempts=1, elapsed=0.1
        )
    )
    assert is_harmless(str(refused))


def test_what_a_broker_said_is_logged_harmlessly(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    for event in (ConnectionBlocked(connection=EVIL, reason=EVIL), ConnectionLost(connection="x", reason=CLOSED)):
        log_event(event)
    assert len(caplog.messages) == 2
    assert all(each.isprintable() for each in caplog.messages)


def test_pictures_of_what_others_named_are_harmless() -> None:
    named = ConnectionInfo("1", EVIL, EVIL, "lab", "running", 1)
    happened = [ConnectionBlocked(connection=EVIL, reason=EVIL), ConnectionLost(connection="x", reason=CLOSED)]
    timeline = StateTimeline(happened)
    for picture in (Architecture([named]), timeline):
        assert is_harmless(str(picture))
        assert is_harmless(picture.svg())


class Talkative:
    """A broker whose log and version are somebody's."""

    backend, capabilities, is_paused, is_running, version = "url", frozenset[str](), False, True, EVIL
    management_url = "http://127.0.0.1:1"

    def settings(self, **_: object) -> "Talkative":
        return self

    def to_url(self, **_: object) -> str:
        return "amqp://h"

    def logs(self, lines: int) -> str:
        return f"one\n{EVIL}"


@pytest.mark.parametrize("words", [["logs"], ["status"], ["up"]])
def test_the_command_prints_a_log_and_answers_harmlessly(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("labkit.lab.commands.known", lambda _: Talkative())
    monkeypatch.setattr(brokers, "up", lambda *_: Talkative())
    monkeypatch.setattr(sys, "argv", ["labkit", *words])
    with pytest.raises(SystemExit):
        main()
    said = capsys.readouterr().out
    assert r"\x1b[2J" in said
    assert is_harmless(said)


@pytest.mark.parametrize("wrong", [None, "gone", 7, ValueError, b"x"])
def test_what_is_no_exception_is_refused_by_its_name(wrong: object) -> None:
    for ask in (classify, describe, explain):
        with pytest.raises(TypeError, match="is not an exception"):
            ask(wrong)  # type: ignore[arg-type]
