"""The table of a connection's states, the picture that is drawn from it, and what a step outside it costs."""

from pathlib import Path

import labkit
from labkit.connection.states import TRANSITIONS, State, Trigger, after, can_reach

ARCHITECTURE = Path(labkit.__file__).parent.parent / "ARCHITECTURE.md"


def diagram():
    """The table as a picture: what GitHub and JupyterLab draw from this text."""
    steps = [f"    {start.name} --> {end.name}: {trigger.value}" for (start, trigger), end in TRANSITIONS.items()]
    return "\n".join(["```mermaid", "stateDiagram-v2", f"    [*] --> {State.NEW.name}", *steps, "```"])


def test_architecture_md_has_the_picture_that_the_table_draws():
    drawn = diagram()
    assert drawn.count("-->") == len(TRANSITIONS) + 1
    assert drawn in ARCHITECTURE.read_text()


def test_a_trigger_leads_to_one_state_wherever_it_comes():
    for trigger in Trigger:
        assert len({end for (_, each), end in TRANSITIONS.items() if each is trigger}) == 1


def test_every_state_but_the_first_has_a_way_in_and_every_state_has_a_way_out():
    assert set(TRANSITIONS.values()) == set(State) - {State.NEW}
    assert {start for start, _ in TRANSITIONS} == set(State)


def test_close_is_possible_from_everywhere_and_leads_to_the_end():
    assert [each for each in State if (each, Trigger.CLOSE) not in TRANSITIONS] == [State.CLOSING]
    assert [each for each in State if not can_reach(each, State.CLOSED, recovers=False)] == []


def test_a_step_that_the_table_does_not_have_is_an_error_in_the_log_and_taken(impossible_steps):
    assert after(State.FAILED, Trigger.LOSE) is State.WAITING
    assert impossible_steps == ["a step that cannot be: the link is lost, with recovery, in the state failed"]
    impossible_steps.clear()
    assert after(State.OPEN, Trigger.LOSE) is State.WAITING
    assert impossible_steps == []
