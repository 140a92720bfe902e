"""The atlas as a text, in a notebook, as a page and as a document; what is kept of a run."""

import html.parser
import re
from pathlib import Path

import pytest
from pika.exceptions import ConnectionClosedByBroker

from labkit.diagnosis.explain import BY_NAME
from labkit.lab import Lab
from labkit.lab.atlas import Atlas, Row, Seen
from labkit.lab.atlas.rows import as_json, merged, recorded
from labkit.lab.atlas.seen import NOTHING

DOCUMENT = Path(__file__).parents[3] / "docs" / "atlas.md"
OLD = Seen("StreamLostError", diagnosis="link-lost", what="<b>gone</b>", closed_by="network")
NEW = Seen("AMQPHeartbeatTimeout", diagnosis="no-heartbeat-from-broker", what="silent", closed_by="client")


class Tags(html.parser.HTMLParser):
    """What a page is made of; fails on one that is not closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href") and value]
        if tag not in ("meta", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_each_row_has_a_diagnosis_that_explain_knows_and_something_to_do():
    rows = Atlas()
    assert len(rows) > 70
    for row in rows:
        for _, seen in row.seen:
            if seen.raised != NOTHING:
                assert seen.diagnosis in {*BY_NAME, "program-failed", "hung-up-at-once"}
                assert seen.what
                assert seen.closed_by in {"client", "broker", "network", "nobody"}
                assert seen.advice


def test_no_row_holds_what_differs_from_run_to_run():
    assert re.findall(r"127\.0\.0\.1|0x[0-9a-f]{4}|amq\.gen|labkit-[0-9a-f]|<0\.\d+", as_json(recorded())) == []


@pytest.mark.parametrize("node", ["labkit-4de9aa3b@localhost", "rabbit@rabbitmq"])
def test_the_name_of_a_node_is_left_out_of_what_the_broker_says(node):
    said = f"NOT_ALLOWED - number of channels opened for user '{node}' has reached the maximum"
    assert "for user '…' has" in Seen.of(ConnectionClosedByBroker(530, said)).said


def test_find_wants_each_of_the_words():
    found = Atlas().find("stall Heartbeat")
    assert [row.name for row in found] == ["AMQPHeartbeatTimeout"]
    assert len(Atlas().find("no such words")) == 0
    assert repr(Atlas().find("no such words")) == "no such row"


def test_the_text_the_table_and_the_page_hold_the_same_rows():
    rows = Atlas()
    page, table, text = rows.as_page(), rows._repr_html_(), repr(rows)
    count = sum(len(row.seen) for row in rows)
    assert Tags(page).seen.count("tr") - Tags(page).seen.count("thead") == count
    assert Tags(table).seen.count("tr") - Tags(table).seen.count("thead") == count
    assert text.count("\n- ") == count
    assert "script" not in Tags(table).seen
    assert Tags(page).addresses == []
    assert "http" not in page


def test_what_the_broker_says_cannot_become_markup():
    rows = Atlas([Row("a", "g", "<i>when</i>", ((("4.3",), OLD),))])
    for shown in (rows.as_page(), rows._repr_html_(), rows.as_markdown()):
        assert "<b>" not in shown
        assert "&lt;b&gt;gone" in shown


def test_versions_that_differ_are_named_and_others_are_not():
    same = merged(merged([], "4.0", {"a": ("g", "w", OLD)}), "4.3", {"a": ("g", "w", OLD)})
    assert [versions for versions, _ in same[0].seen] == [("4.3", "4.0")]
    assert "RabbitMQ 4" not in repr(Atlas(same))
    other = merged(same, "3.10", {"a": ("g", "w", NEW)})
    assert [versions for versions, _ in other[0].seen] == [("4.3", "4.0"), ("3.10",)]
    assert (other[0].on("3.10"), other[0].on("4.0"), other[0].on("5.0")) == (NEW, OLD, None)
    assert "w (RabbitMQ 3.10)" in repr(Atlas(other))


def test_a_version_that_is_run_again_replaces_what_it_said():
    first = merged([], "4.3", {"a": ("g", "w", OLD), "b": ("g", "w", OLD)})
    assert [(row.name, row.on("4.3")) for row in merged(first, "4.3", {"a": ("g", "w", NEW)})] == [("a", NEW)]


def test_the_document_is_what_the_rows_say():
    assert DOCUMENT.read_text(encoding="utf-8") == Atlas().as_markdown()


def test_a_lab_has_it_at_hand():
    assert len(Lab("atlas").atlas.find("StreamLostError")) > 3


@pytest.mark.parametrize("words", [(), ("heartbeat",)])
def test_the_command_writes_a_page(words, tmp_path, monkeypatch, capsys):
    from labkit.cli import main

    page = tmp_path / "page.html"
    monkeypatch.setattr("sys.argv", ["labkit", "atlas", *words, "--html", str(page)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert f"{len(Atlas().find(' '.join(words)))} rows in" in capsys.readouterr().out
    assert page.read_text(encoding="utf-8") == Atlas().find(" ".join(words)).as_page()
