"""``labkit audit``: what it prints and how it ends."""

import json

import pytest
from typer.testing import CliRunner

from labkit.lab.commands import app

BAD = "import pika.compat\nchannel.basic_get('q', auto_ack=True)\n"


@pytest.fixture
def run():
    """Run ``labkit audit`` with these arguments."""
    return lambda *arguments, **variables: CliRunner().invoke(app, ["audit", *map(str, arguments)], env=variables)


@pytest.fixture
def bad(tmp_path):
    path = tmp_path / "service.py"
    path.write_text(BAD)
    return path


def test_what_is_found_ends_it_with_1_and_nothing_with_0(run, bad):
    done = run(bad)
    assert (done.exit_code, "service.py:2: auto-ack" in done.stdout) == (1, True)
    bad.write_text("x = 1\n")
    done = run(bad)
    assert (done.exit_code, done.stdout) == (0, "nothing found\n")


def test_versions_may_be_given_one_by_one_or_with_commas(run, bad):
    for arguments in (("--for", "pika-1.5,rabbitmq-4.3"), ("--for", "pika-1.5", "--for", "rabbitmq-4.3")):
        listed = json.loads(run(bad, *arguments, "--format", "json").stdout)
        assert [each["rule"] for each in listed] == ["pika-compat"]


def test_sarif_is_what_a_code_host_reads(run, bad):
    log = json.loads(run(bad, "--format", "sarif").stdout)
    assert [each["ruleId"] for each in log["runs"][0]["results"]] == ["pika-compat", "auto-ack"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [((), "nothing was given"), (("nowhere",), "path: 'nowhere'"), ((".", "--for", "pika-9"), "allowed: pika-1.5")],
)
def test_what_cannot_be_looked_at_is_named_and_ends_it_with_2(run, arguments, said):
    done = run(*arguments)
    assert (done.exit_code, said in done.stderr, done.stdout) == (2, True, "")


def test_settings_are_those_of_the_environment_and_their_password_is_not_shown(run):
    done = run("--settings", LABKIT_URL="amqp://orders:hunter2@rabbit.example.org/")
    assert done.exit_code == 1
    assert "settings: settings-no-tls: tls: none, and rabbit.example.org is another machine" in done.stdout
    assert "hunter2" not in done.stdout + done.stderr


def test_what_a_file_holds_cannot_steer_the_terminal(run, bad):
    bad.write_text("pika.ConnectionParameters('\\x1b[2Jrabbit')\n")
    done = run(bad)
    assert "\x1b" not in done.stdout
