"""Each notebook rule turns red for the mistake it is there for, and for that alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from sample_notebook import CARD, code, printed, shown, whole

from labkit.lab.notebook_file import read, write
from labkit.lab.notebook_rules import RULES, problems
from labkit.lab.notebook_rules.exercises import PREDICT_LINE

SVG = "<svg xmlns='http://www.w3.org/2000/svg'><title>a link</title><desc>cut</desc></svg>"


@pytest.fixture(autouse=True)
def _sample_exercises(monkeypatch: pytest.MonkeyPatch) -> None:
    import labkit.lab.notebook_rules.exercises as rules
    from labkit.lab.checks import find_exercise

    monkeypatch.setattr(rules, "find_exercise", lambda name: find_exercise(name, package="sample_exercises"))


def judged(notebook: Any, folder: Path, name: str = "90-cut-a-link.ipynb") -> set[str]:
    path = folder / name
    write(notebook, path)
    return {problem.rule for problem in problems(path)}


def test_a_good_notebook_breaks_no_rule(tmp_path: Path) -> None:
    write(whole(), tmp_path / "90-cut-a-link.ipynb")

    assert problems(tmp_path / "90-cut-a-link.ipynb") == []


Change = Callable[[Any], None]


def source(index: int, text: str) -> Change:
    def change(notebook: Any) -> None:
        notebook.cells[index].source = text

    return change


def add_line(index: int, text: str) -> Change:
    def change(notebook: Any) -> None:
        notebook.cells[index].source += "\n\n" + text

    return change


def output(index: int, *outputs: Any) -> Change:
    def change(notebook: Any) -> None:
        notebook.cells[index].outputs = list(outputs)

    return change


def recall(text: str) -> Change:
    def change(notebook: Any) -> None:
        notebook.cells[4].source = text
        notebook.cells[4].metadata["tags"] = ["recall"]

    return change


def tag(index: int, *tags: str) -> Change:
    def change(notebook: Any) -> None:
        notebook.cells[index].metadata["tags"] = list(tags)

    return change


def drop(*indices: int) -> Change:
    """Remove cells and count again, so that only the order of things is wrong."""

    def change(notebook: Any) -> None:
        for index in sorted(indices, reverse=True):
            del notebook.cells[index]
        for count, cell in enumerate((cell for cell in notebook.cells if cell.cell_type == "code"), start=1):
            cell.execution_count = count

    return change


def unrun(notebook: Any) -> None:
    notebook.cells[5].execution_count = None


def run_out_of_order(notebook: Any) -> None:
    notebook.cells[5].execution_count = 9


def expanded_solution(notebook: Any) -> None:
    del notebook.cells[9].metadata["jupyter"]


def collapsed_stub(notebook: Any) -> None:
    notebook.cells[7].metadata["jupyter"] = {"source_hidden": True}


def versions(notebook: Any) -> None:
    notebook.metadata["language_info"]["version"] = "3.11.2"


def widget_state(notebook: Any) -> None:
    notebook.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {}}


def timing(notebook: Any) -> None:
    notebook.cells[5].metadata["execution"] = {"iopub.status.busy": "2026-01-01T00:00:00Z"}


def model_id(notebook: Any) -> None:
    notebook.cells[4].outputs[0].data["application/vnd.jupyter.widget-view+json"] = {"model_id": "a" * 32}


def split_stream(notebook: Any) -> None:
    notebook.cells[5].outputs = [printed("1"), printed("\n")]


def attachment(notebook: Any) -> None:
    notebook.cells[3]["attachments"] = {"a.png": {"image/png": "AAAA"}}


def unknown_type(notebook: Any) -> None:
    notebook.cells[5]["outputs"] = [nbformat.from_dict({"output_type": "wonder"})]


ERROR = nbformat.v4.new_output("error", ename="ValueError", evalue="no", traceback=[])
STDERR = nbformat.v4.new_output("stream", name="stderr", text="UserWarning: old\n")

MUTATIONS: list[tuple[str, Change]] = [
    ("one_title_and_first", source(0, "Cut a link")),
    ("one_title_and_first", source(0, "# Cut a link")),
    ("one_title_and_first", add_line(3, "# Another title")),
    ("headings_skip_no_level", add_line(3, "#### Deep")),
    ("headings_skip_no_level", add_line(3, "Underlined\n-----")),
    ("no_empty_cell", source(3, "  \n")),
    ("no_empty_cell", source(5, "")),
    ("no_banned_word", add_line(3, "You simply cut it.")),
    ("no_banned_word", add_line(3, "It is Just a link.")),
    ("no_banned_word", add_line(3, "Obviously.")),
    ("no_banned_word", add_line(3, "Well done!")),
    ("pictures_have_words", add_line(3, "![](90-cut-a-link.ipynb)")),
    ("pictures_have_words", add_line(3, '<img src="90-cut-a-link.ipynb">')),
    ("pictures_have_words", add_line(3, "Click [here](90-cut-a-link.ipynb).")),
    ("links_lead_somewhere", add_line(3, "[the next one](91-missing.ipynb)")),
    ("links_lead_somewhere", add_line(3, "![a picture](missing.svg)")),
    ("links_lead_somewhere", add_line(3, "[a section](#Nowhere)")),
    ("links_lead_somewhere", add_line(3, "[root](/etc/hosts)")),
    ("links_lead_somewhere", attachment),
    ("card_is_complete", source(1, "No card.")),
    ("card_is_complete", source(1, "| | |\n| --- | --- |\n| **Question** | Why? |")),
    ("generated_lines", source(1, CARD.replace("1 to read", "0 to read"))),
    ("generated_lines", add_line(0, "Next: [91 Missing](91-missing.ipynb)")),
    ("setup_cell", source(2, 'from labkit.lab import Lab\nlab = Lab("04")')),
    ("setup_cell", source(2, 'import os\nfrom labkit.lab import Lab\nlab = Lab("90")')),
    ("clean_up_cell", drop(12)),
    ("clean_up_cell", output(12, printed("left open: 1 connection\n"))),
    ("prediction_before_observation", drop(4)),
    ("prediction_before_observation", drop(6)),
    ("prediction_before_observation", drop(4, 6)),
    ("prediction_before_observation", tag(4)),
    ("prediction_before_observation", source(4, f'{PREDICT_LINE}\nlab.predict("04.a", "How many?", ["0", "1"])')),
    ("closing_sections", source(11, "## Recap\n\nThree lines.")),
    ("closing_sections", source(11, "## Glossary\n\n**link**: see [the start](#How-many?).")),
    ("known_tags", tag(5, "raises-exeption")),
    ("known_tags", tag(3, "raises-exception")),
    ("is_python", source(5, "%matplotlib inline")),
    ("is_python", source(5, "!ls")),
    ("no_trailing_semicolon", source(5, "count;")),
    ("no_trailing_semicolon", source(5, "count;  # quiet")),
    ("no_captured_output", source(5, "from ipywidgets import Output\n\nwith Output():\n    print(1)")),
    ("no_captured_output", source(5, "out = widgets.Output()\nwith out:\n    print(1)")),
    ("no_captured_output", source(5, "@out.capture()\ndef handler(change):\n    print(1)")),
    ("no_forbidden_call", source(5, "clear_output(wait=True)")),
    ("no_forbidden_call", source(5, "display(1, display_id='x')")),
    ("no_forbidden_call", source(5, "name = input()")),
    ("no_forbidden_call", source(5, "print(Out[1])")),
    ("no_comment_marker", source(5, "# NBVAL_IGNORE_OUTPUT\nprint(1)")),
    ("short_cells", source(5, "\n".join(f"count = {line}" for line in range(21)))),
    ("public_names_only", source(5, "from labkit.pool.connections import _Entry")),
    ("no_wide_line", source(5, f"count = '{'x' * 100}'")),
    ("raw_pika_is_announced", source(5, "connection = pika.BlockingConnection(parameters)")),
    ("raw_pika_is_announced", tag(5, "raw-pika")),
    ("timed_cells_say_why", source(5, "nervous = lab.settings().replace(heartbeat=1)")),
    ("timed_cells_say_why", source(6, 'lab.compare("90.a", try_it(heartbeat=4))')),
    ("timed_cells_say_why", tag(5, "timed")),
    ("timed_cells_say_why", source(5, "def quick():\n    return lab.settings(heartbeat=2)\n\n\nquick()")),
    ("plain_pika_first", source(5, "from labkit import ConnectionPool")),
    ("plain_pika_first", source(5, "from labkit.monitor import Alert, ConnectionMonitor")),
    ("one_term_for_one_thing", add_line(3, "Then the proxy cuts the line.")),
    ("one_term_for_one_thing", source(4, f'{PREDICT_LINE}\nlab.predict("90.a", "On the slow line:", ["0", "1"])')),
    ("one_term_for_one_thing", add_line(3, "Every vhost has queues of its own.")),
    ("hints_look_the_same", source(3, "## How many?\n\nSee [the end](#Recap).")),
    ("hints_look_the_same", add_line(11, 'Run `lab.hint("90.1")` for help.')),
    ("exercise_order", drop(8)),
    ("exercise_order", drop(9)),
    ("exercise_order", drop(10)),
    ("exercise_order", drop(7)),
    ("checks_say_both", output(8, printed("PASS: twice four is eight\n"))),
    ("checks_say_both", output(10, printed("NOT YET: what is twice four?\n"))),
    ("checks_say_both", source(8, "lab.check(name, double)")),
    ("checks_say_both", source(8, 'lab.check("90.7", double)')),
    ("checks_say_both", source(5, 'lab.check("90.1", None)')),
    ("collapsed_cells", expanded_solution),
    ("collapsed_cells", collapsed_stub),
    ("collapsed_cells_tell_nothing", source(9, "def double(number):\n    return 2 * number")),
    ("collapsed_cells_tell_nothing", recall('lab.ask("90.r1", "Which?", ["0", "1"], right="1")')),
    ("collapsed_cells_tell_nothing", recall('lab.recall("90.r9")')),
    ("collapsed_cells_tell_nothing", recall('lab.recall("02.r1")')),
    ("collapsed_cells_tell_nothing", source(4, 'lab.predict("90.a", "How many?", ["0", "1"])')),
    ("every_cell_was_run", unrun),
    ("every_cell_was_run", run_out_of_order),
    ("no_swallowed_error", output(5, printed("UsageError: Line magic function `%x` not found.\n"))),
    ("errors_are_announced", output(5, ERROR)),
    ("errors_are_announced", tag(5, "raises-exception")),
    ("no_stderr", output(5, STDERR)),
    ("outputs_hold_facts", output(5, printed("/home/anna/labkit/pool/connections.py\n"))),
    ("outputs_hold_facts", output(5, printed("/tmp/x\n"))),
    ("outputs_hold_facts", output(5, printed(r"C:\Users\anna"))),
    ("outputs_hold_facts", output(5, printed("<Pool object at 0x7f00aabbccdd>\n"))),
    ("outputs_hold_facts", output(5, printed("localhost:40123\n"))),
    ("outputs_hold_facts", output(5, printed("('127.0.0.1', 40123)\n"))),
    ("outputs_hold_facts", output(5, printed("at 12:30:01\n"))),
    ("outputs_hold_facts", output(5, printed("on 2026-01-31\n"))),
    ("outputs_hold_facts", output(5, printed("took 12 ms\n"))),
    ("outputs_hold_facts", output(5, printed("took 1.2345 s\n"))),
    ("outputs_hold_facts", output(5, printed("amq.gen-JzTY20BRgKO-HjmUJj0wLg\n"))),
    ("outputs_hold_facts", output(5, printed("Thread-7 (run)\n"))),
    ("outputs_hold_facts", output(5, printed("pid 4711\n"))),
    ("pictures_have_a_text_twin", output(5, shown(**{"image/svg+xml": SVG, "text__plain": "<IPython.SVG object>"}))),
    ("pictures_have_a_text_twin", output(5, printed("1\n"), shown(**{"image/svg+xml": "<svg></svg>"}))),
    ("pictures_have_a_text_twin", output(5, shown(**{"image/png": "AAAA"}))),
    ("committed_form", versions),
    ("committed_form", widget_state),
    ("committed_form", timing),
    ("committed_form", model_id),
    ("committed_form", split_stream),
    ("valid_format", unknown_type),
]


@pytest.mark.parametrize(("rule", "change"), MUTATIONS)
def test_a_mistake_turns_its_rule_red(rule: str, change: Change, tmp_path: Path) -> None:
    notebook = whole()
    change(notebook)

    assert rule in judged(notebook, tmp_path)


def test_a_badly_named_file_turns_its_rule_red(tmp_path: Path) -> None:
    assert "file_name" in judged(whole(), tmp_path, "90 Cut a link.ipynb")


def test_every_rule_has_a_mutation() -> None:
    assert {rule.__name__ for rule in RULES} == {rule for rule, _ in MUTATIONS} | {"file_name"}


@pytest.mark.parametrize(
    "change",
    [
        source(5, "await asyncio.sleep(0)\nprint(1)"),
        source(5, "_ = count"),
        source(5, "calm = lab.settings().replace(heartbeat=600)"),
        source(5, "def quick():\n    return lab.settings(heartbeat=1)"),
        source(5, "text = 'a;'"),
        source(5, "with lab.proxy() as proxy:\n    proxy.cut()"),
        source(5, "class Out(Base): ...\noutput.append_stdout('x')"),
        output(5, printed("amqp://guest:***@localhost:5672/lab\n")),
        output(5, printed("heartbeat 60, delays 0.05 s, 0.1 s, /queue, 3/4\n")),
        output(5, shown(**{"image/svg+xml": SVG, "text__plain": "client -> broker: Start"})),
        add_line(3, "```python\nprint('just!')\n```"),
        add_line(3, "An adjustment is fair, `a != b` too; see [the site](https://www.rabbitmq.com/docs)."),
        add_line(3, "![a cut link](90-cut-a-link.ipynb)"),
        add_line(3, "| state | count |\n| --- | --- |\n| open | 1 |"),
    ],
)
def test_good_practice_is_left_alone(change: Change, tmp_path: Path) -> None:
    notebook = whole()
    change(notebook)

    assert judged(notebook, tmp_path) == set()


def test_a_timed_cell_may_be_hasty_when_the_text_says_why(tmp_path: Path) -> None:
    notebook = whole()
    add_line(3, "**Timed:** one heartbeat a second, so that three of them can be missing soon.")(notebook)
    source(5, "count = try_it(lab.settings().replace(heartbeat=1))")(notebook)
    tag(5, "timed")(notebook)

    assert judged(notebook, tmp_path) == set()


def test_an_exercise_may_have_prose_between_its_cells(tmp_path: Path) -> None:
    notebook = whole()
    notebook.cells.insert(9, nbformat.v4.new_markdown_cell("Look at the hint.", id="between"))

    assert judged(notebook, tmp_path) == set()


def test_a_cell_whose_output_varies_may_show_times_but_no_paths(tmp_path: Path) -> None:
    notebook = whole()
    notebook.cells[5] = code("print(1)", printed("at 12:30:01\n"), tags=("nbval-ignore-output",))
    notebook.cells[5].update(execution_count=3, id="cell-5")
    assert judged(notebook, tmp_path) == set()

    notebook.cells[5].outputs = [printed("/home/anna/x\n")]
    assert judged(notebook, tmp_path) == {"outputs_hold_facts"}


def test_ids_that_are_missing_are_given_the_same_way_each_time(tmp_path: Path) -> None:
    path = tmp_path / "90-cut-a-link.ipynb"
    content = json.loads(nbformat.v4.writes(whole()))
    for cell in content["cells"]:
        del cell["id"]
    path.write_text(json.dumps(content), encoding="utf-8")

    first, second = read(path), read(path)

    assert [cell["id"] for cell in first.cells] == [cell["id"] for cell in second.cells]
    assert len({cell["id"] for cell in first.cells}) == len(first.cells)
