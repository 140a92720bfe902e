"""What a lesson says of Pika, of the bench and of labkit, where no cell shows it, is true of what is installed."""

import inspect
import json
import re
from dataclasses import dataclass
from pathlib import Path

import pika
import pytest
from pika.adapters.select_connection import SelectConnection

import labkit.manager
from labkit import BrokerSettings, ConnectionManager, Message, events
from labkit.brokers import encryption
from labkit.connection.states import State
from labkit.lab.boards.state_timeline import read

PROJECT = Path(__file__).parents[3]
NOTEBOOKS = PROJECT / "notebooks"


def cells(number: str) -> list[dict]:
    return json.loads(next(NOTEBOOKS.glob(f"{number}-*.ipynb")).read_text(encoding="utf-8"))["cells"]


def prose(number: str) -> str:
    return "\n".join("".join(cell["source"]) for cell in cells(number) if cell["cell_type"] == "markdown")


@dataclass(frozen=True, slots=True)
class Claim:
    """What a text says where it once said something else that is not true, and what shows it.

    *once* is empty where the sentence was missing. *shown* is a test as ``file::name``, or a cell of the notebook: its
    first line and what is stored below it; empty where it is advice, and then the instructor notes name the source.
    """

    where: str
    now: str
    once: str
    shown: tuple[str, str] | str = ""

    def is_in(self, text: str) -> bool:
        return self.now in text and not (self.once and self.once in text)


CLAIMS = [
    Claim(
        "00", "the delivery mode *persistent* lets the order in them survive it", "lets them survive a restart",
        ("night.broker.restart()", "what is left: Persistent"),
    ),
    Claim(
        "00", "a confirm, which for a persistent message comes when it is on disk", "cannot happen a second time",
        ("night.broker.restart()", "observed: 1"),
    ),
    Claim("01", "`channel_max`, 2047 here, is not a target", "many channels are normal, up to `channel_max`"),
    Claim(
        "03", "None of the three works without a limit", "",
        "tests/broker/test_consumer_timeout.py::test_a_sync_connection_tells_the_cause",
    ),
    Claim(
        "05", "`SelectConnection.create_connection` walks a list of them", "an adapter on a loop tries one host only",
        "tests/unit/lab/test_what_the_lessons_say.py"
        "::test_a_constructor_takes_one_host_and_create_connection_walks_a_list",
    ),
    Claim(
        "06", "the same name as for a link that was cut", "a cable that was pulled",
        ("reasons = []", "StreamLostError"),
    ),
    Claim(
        "06", "the broker goes on sending heartbeats, and expects none while it does not read", "heartbeats pass",
        "tests/lab/test_claims_of_the_lessons.py"
        "::test_a_blocked_connection_gets_heartbeats_and_is_not_given_up_though_it_sends_none",
    ),
    Claim(
        "09", "it joins a publisher, a consumer for each queue and two connections", "it is a short file",
        "tests/unit/lab/test_what_the_lessons_say.py"
        "::test_a_manager_is_two_connections_and_a_publisher_which_open_nothing_yet",
    ),
    Claim(
        "10", "takes the whole distinguished name", "from the certificate's **common name**",
        "tests/unit/lab/test_what_the_lessons_say.py"
        "::test_a_login_by_certificate_needs_a_plugin_and_the_common_name_has_to_be_asked_for",
    ),
    Claim(
        "docs/wire.md", "A click works while a cell\nruns, too", "A click waits for a cell",
        "tests/lab/test_fault_panel_in_the_browser.py::test_a_click_works_while_a_cell_runs",
    ),
    Claim(
        "README.md", "an exercise with a check that runs your code", "whose check cannot be cheated",
        "tests/lab/test_notebooks_can_fail.py::test_a_broken_solution_turns_its_check_red_and_a_sound_one_does_not",
    ),
]  # fmt: skip


def text_of(where: str) -> str:
    return prose(where) if where.isdigit() else (PROJECT / where).read_text(encoding="utf-8")


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: f"{claim.where}: {claim.now}")
def test_a_claim_that_was_wrong_stays_corrected_and_is_shown(claim: Claim):
    text = text_of(claim.where)
    assert claim.is_in(text)
    assert not claim.is_in(text.replace(claim.now, claim.once)), "the old words would not be noticed"
    if isinstance(claim.shown, tuple):
        first_line, stored = claim.shown
        [cell] = [each for each in cells(claim.where) if "".join(each["source"]).startswith(first_line)]
        assert stored in json.dumps(cell["outputs"])
    elif claim.shown:
        file, _, name = claim.shown.partition("::")
        assert f"def {name}(" in (PROJECT / file).read_text(encoding="utf-8")
    else:
        assert "## Sources" in (NOTEBOOKS / "instructor" / f"{claim.where}.md").read_text(encoding="utf-8")


def test_a_message_is_transient_unless_somebody_says_persistent_and_labkit_says_it():
    assert "**transient**, which is what Pika sends if you do not say" in prose("00")
    assert pika.BasicProperties().delivery_mode is None
    assert Message(b"order").to_pika().delivery_mode == pika.DeliveryMode.Persistent.value


def test_a_login_by_certificate_needs_a_plugin_and_the_common_name_has_to_be_asked_for():
    assert "`rabbitmq_auth_mechanism_ssl`, and `ssl_cert_login_from = common_name`" in prose("10")
    assert "rabbitmq_auth_mechanism_ssl" in encryption.PLUGINS
    text = encryption.configuration("127.0.0.1:5671", "/tls", demand_certificate=False)
    assert "ssl_cert_login_from = common_name\n" in text


def test_a_manager_is_two_connections_and_a_publisher_which_open_nothing_yet():
    assert "Read `labkit/manager.py`: it joins a publisher, a consumer for each queue and two connections" in prose(
        "09"
    )
    manager = ConnectionManager(BrokerSettings())
    publishing, consuming = manager._parts.publishing, manager._parts.consuming
    assert publishing is not consuming
    assert manager._parts.publisher.connection is publishing
    assert {publishing.state, consuming.state} == {State.NEW}
    assert {"Publisher", "Consumer"} <= vars(labkit.manager).keys()


def test_a_constructor_takes_one_host_and_create_connection_walks_a_list():
    assert "`SelectConnection.create_connection` walks a list of them" in prose("05")
    assert "connection_configs" in inspect.signature(SelectConnection.create_connection).parameters
    assert "parameters" in inspect.signature(SelectConnection).parameters


def test_the_events_that_notebook_06_names_beside_a_state_lead_there_on_the_board_too():
    error = OSError("refused")
    happened = [
        events.ConnectAttempted(attempt=1),
        events.ConnectionOpened(),
        events.ConnectionRecovered(generation=2),
        events.AttemptFailed(attempt=1, error=error, next_delay=1.0),
        events.ConnectionLost(reason=error, recovering=True),
        events.ConnectionLost(reason=error, recovering=False),
        events.ConnectionGivenUp(attempts=1, error=error),
        events.ConnectionClosed(),
    ]
    shown = {(read([each])[0].states, type(each).__name__) for each in happened}
    rows = re.findall(r"^\| (`[A-Z]+`(?:, `[A-Z]+`)*) \|[^|]*\|([^|]*)\|$", prose("06"), re.MULTILINE)
    told = {(tuple(re.findall(r"\w+", states)), event) for states, led in rows for event in re.findall(r"`(\w+)`", led)}
    assert told == shown
    assert {name for states, _ in rows for name in re.findall(r"\w+", states)} == {each.name for each in State}
