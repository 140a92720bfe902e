"""Each rule finds what it is there for, where it is, and nothing else."""

import ast
import json
import re
from pathlib import Path

import jsonschema
import pika
import pytest

import labkit
import labkit.audit.running  # its rules
from labkit import BrokerSettings, ConfigurationError, TlsSettings
from labkit.audit import RULES, TARGETS, Finding, as_json, as_sarif, as_table, audit_code, audit_settings
from labkit.audit.reading import read, source_of
from labkit.audit.rules import chosen
from labkit.brokers.certificates import LabCertificates
from tests.unit.audit.samples import FOUND, NOT_FOUND

CODE = [each.name for each in chosen("code")]


def found(name, text):
    source = source_of(text)
    return [(node, detail) for node, detail in RULES[name].check(source) if not source.is_ignored(node, name)]


@pytest.mark.parametrize("name", CODE)
def test_every_rule_finds_what_is_wrong_and_nothing_where_all_is_well(name):
    assert FOUND[name]
    assert [text for text in FOUND[name] if not found(name, text)] == []
    assert NOT_FOUND[name]
    assert [(text, detail) for text in NOT_FOUND[name] for _, detail in found(name, text)] == []


def test_a_sample_belongs_to_a_rule():
    assert set(FOUND) == set(NOT_FOUND) == set(CODE)


def test_every_rule_says_why_what_to_do_and_where_it_is_written():
    for each in RULES.values():
        assert each.why, each.name
        assert each.fix, each.name
        assert each.reference.startswith("https://"), each.name
        assert each.check.__doc__, each.name


def test_the_page_lists_every_rule():
    rows = [
        f"| `{each.name}` | {'' if each.since is None else each.since[0] + ' ' + '.'.join(map(str, each.since[1]))} "
        f"| {each.why} | {each.fix.replace('|', chr(92) + '|')} |"
        for about in ("code", "settings", "broker")
        for each in chosen(about)
    ]
    page = (Path(labkit.__file__).parent.parent / "docs" / "audit.md").read_text()
    assert [row for row in page.splitlines() if row.startswith("| `")] == rows


def test_a_comment_silences_the_rules_that_it_names_on_its_line():
    text = "channel.basic_get('q', auto_ack=True)  # labkit: ignore[auto-ack, no-tls]"
    assert found("auto-ack", text) == []
    assert found("auto-ack", text.replace("auto-ack,", "no-prefetch,")) != []
    assert found("auto-ack", "# Direct. labkit: ignore[auto-ack]\nchannel.basic_get('q', auto_ack=True)") == []
    assert found("auto-ack", "x = 1  # labkit: ignore[auto-ack]\nchannel.basic_get('q', auto_ack=True)") != []


@pytest.fixture
def notebook(tmp_path):
    """Write a notebook with these code cells, and return its file."""

    def write(*cells):
        listed = [{"cell_type": "markdown", "source": ["# Title"]}]
        listed += [{"cell_type": "code", "source": each.splitlines(keepends=True)} for each in cells]
        path = tmp_path / "lesson.ipynb"
        path.write_text(json.dumps({"cells": listed}))
        return path

    return write


def test_a_notebook_is_read_as_one_program_and_a_finding_names_its_cell(notebook):
    path = notebook(
        "%pip install pika\nBEAT = 1\n", "await ready()\npika.ConnectionParameters(heartbeat=BEAT)\nobject?"
    )
    (finding,) = [each for each in audit_code([path]) if each.rule == "heartbeat-out-of-range"]
    assert (finding.cell, finding.line) == (2, 2)
    assert str(finding) == f"{path.as_posix()} cell 2:2: heartbeat-out-of-range: heartbeat=1"


def test_a_cell_of_another_language_is_left_out(notebook):
    assert audit_code([notebook("%%bash\nfor each in *; do :; done")]) == []


def test_a_file_that_is_no_python_is_a_finding_and_the_others_are_read(tmp_path):
    (tmp_path / "broken.py").write_text("def:\n")
    (tmp_path / "bytes.py").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "lesson.ipynb").write_text("{}")
    (tmp_path / "well.py").write_text("import pika.compat\n")
    assert [each.rule for each in audit_code([tmp_path])] == ["unreadable", "unreadable", "unreadable", "pika-compat"]


def test_folders_that_are_not_ours_to_read_are_left_out(tmp_path):
    for each in (".venv", "site-packages", "__pycache__"):
        (tmp_path / each).mkdir()
        (tmp_path / each / "x.py").write_text("import pika.compat\n")
    assert audit_code([tmp_path]) == []


def test_one_path_is_as_good_as_a_list_of_one(tmp_path):
    (tmp_path / "old.py").write_text("import pika.compat\n")
    assert [each.rule for each in audit_code(str(tmp_path / "old.py"))] == ["pika-compat"]
    assert audit_code(tmp_path) == audit_code([str(tmp_path)]) == audit_code([tmp_path])


@pytest.mark.parametrize("path", ["nowhere", "tests/nbval-sanitize.cfg"])
def test_a_path_that_cannot_be_read_is_named(path):
    with pytest.raises(ConfigurationError, match=path):
        audit_code([Path(path)])


def test_the_kit_itself_keeps_every_rule():
    """But for the exercises, some of which are about what the rules are about, and the failures of the atlas."""
    found = audit_code([Path(labkit.__file__).parent])
    assert [str(each) for each in found if not re.search(r"/lab/(exercises|atlas)/", each.path)] == []


# -- the rehearsal of an upgrade -----------------------------------------------------------------------------------


def names(*targets):
    return {each.name for each in chosen("code", targets)}


def test_a_target_leaves_the_rules_that_matter_with_it():
    assert names("pika-1.5") == {"deprecated-adapter", "pika-compat"}
    assert "failure-not-counted" in names("rabbitmq-4.3") - names("rabbitmq-4.1")
    assert names("rabbitmq-4.0") < names("rabbitmq-4.1") < names("rabbitmq-4.3")
    assert names("rabbitmq-4.3", "rabbitmq-4.0") == names("rabbitmq-4.3")
    assert names(*TARGETS) < names()


def test_an_unknown_target_is_named_with_those_there_are():
    with pytest.raises(ConfigurationError, match=r"targets: 'rabbitmq-9' is not allowed; allowed: pika-1\.5"):
        chosen("code", ["rabbitmq-9"])


# -- settings --------------------------------------------------------------------------------------------------------

FAR = {
    "host": "rabbit.example.org",
    "username": "orders",
    "password": "a-long-and-random-one",
    "connection_name": "orders",
}
WELL = BrokerSettings(**FAR, tls=TlsSettings())
SMALL = 4096  # bytes of a frame
SETTINGS = {
    "settings-heartbeat": WELL.replace(heartbeat=2),
    "settings-blocked-timeout": WELL.replace(blocked_connection_timeout=None),
    "settings-no-tls": WELL.replace(tls=None),
    "settings-tls-not-verified": WELL.replace(tls=TlsSettings(insecure=True)),
    "settings-guest": WELL.replace(username="guest"),
    "settings-weak-password": WELL.replace(password="orders"),
    "settings-no-name": WELL.replace(connection_name=None),
}
if pika.spec.FRAME_MIN_SIZE <= SMALL:  # Pika 1.5 refuses such frames itself
    SETTINGS["settings-small-frames"] = WELL.replace(frame_max=SMALL)


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_that_break_one_rule_are_found_by_that_rule(name):
    assert [each.rule for each in audit_settings(SETTINGS[name])] == [name]


def test_settings_that_keep_the_rules_are_left_alone():
    assert audit_settings(WELL) == []
    assert audit_settings(BrokerSettings(connection_name="x", heartbeat=None)) == []


@pytest.mark.parametrize(
    ("password", "detail"), [("short", "5 characters"), ("ChangeMe", "common"), ("orders", "common")]
)
def test_a_password_is_judged_and_never_shown(password, detail):
    (finding,) = audit_settings(WELL.replace(password=password))
    assert finding.detail == f"password: {detail}"


def test_a_client_certificate_that_ends_soon_is_found(tmp_path):
    certificates = LabCertificates(tmp_path)

    def found(pair):
        shown = TlsSettings(cert_file=str(pair.cert_file), key_file=str(pair.key_file))
        return [each.rule for each in audit_settings(WELL.replace(tls=shown))]

    assert found(certificates.client("orders")) == []
    assert found(certificates.server("expired")) == ["settings-certificate-ends"]


# -- what is reported ------------------------------------------------------------------------------------------------

FINDINGS = [
    Finding("a.py", None, 3, "auto-ack", "basic_get(auto_ack=True)"),
    Finding("b.ipynb", 2, 1, "no-tls", "amqp://"),
]


def test_the_table_has_each_place_and_each_rule_once():
    text = as_table([*FINDINGS, FINDINGS[0]])
    assert "a.py:3: auto-ack: basic_get(auto_ack=True)" in text
    assert "b.ipynb cell 2:1: no-tls: amqp://" in text
    assert text.count(RULES["auto-ack"].fix) == 1
    assert text.endswith("found: 3 places")
    assert as_table([]) == "nothing found"


def test_json_has_the_place_and_what_to_do():
    first, second = json.loads(as_json(FINDINGS))
    assert (first["path"], first["line"], first["cell"], first["rule"]) == ("a.py", 3, None, "auto-ack")
    assert first["fix"] == RULES["auto-ack"].fix
    assert second["cell"] == 2
    assert json.loads(as_json([])) == []


# What the standard (SARIF 2.1.0, sections 3.13 to 3.49) requires of a log, and the types of what we write beside that.
TEXT = {"type": "object", "required": ["text"], "properties": {"text": {"type": "string"}}}
SARIF = {
    "type": "object", "required": ["version", "runs"],
    "properties": {"version": {"const": "2.1.0"}, "runs": {"type": "array", "items": {
        "type": "object", "required": ["tool", "results"],
        "properties": {
            "tool": {"type": "object", "required": ["driver"], "properties": {"driver": {
                "type": "object", "required": ["name", "rules"],
                "properties": {"rules": {"type": "array", "items": {
                    "type": "object", "required": ["id", "shortDescription"], "properties": {"help": TEXT}}}}}}},
            "results": {"type": "array", "items": {
                "type": "object", "required": ["message", "ruleId", "ruleIndex", "locations"],
                "properties": {"message": TEXT, "ruleIndex": {"type": "integer", "minimum": 0}, "locations": {
                    "type": "array", "items": {"type": "object", "required": ["physicalLocation"], "properties": {
                        "physicalLocation": {"type": "object", "required": ["artifactLocation"], "properties": {
                            "region": {"type": "object", "properties": {
                                "startLine": {"type": "integer", "minimum": 1}}}}}}}}}}}}}}},
}  # fmt: skip


def test_sarif_has_the_fields_that_the_standard_requires():
    log = json.loads(as_sarif([*FINDINGS, Finding("c.py", None, 0, "unreadable", "SyntaxError")]))
    jsonschema.validate(log, SARIF)
    run = log["runs"][0]
    assert [each["id"] for each in run["tool"]["driver"]["rules"]] == ["auto-ack", "no-tls", "unreadable"]
    for each in run["results"]:
        assert run["tool"]["driver"]["rules"][each["ruleIndex"]]["id"] == each["ruleId"]
    assert run["results"][1]["locations"][0]["logicalLocations"] == [{"name": "cell 2"}]
    jsonschema.validate(json.loads(as_sarif([])), SARIF)


def test_reading_runs_nothing(tmp_path):
    path = tmp_path / "loud.py"
    path.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    assert isinstance(read(path).tree, ast.Module)
    assert audit_code([path]) == []
    assert not (tmp_path / "ran").exists()
