"""The checks of notebook 05 tell a right answer from each of the plausible wrong ones. 05.2 is run on a broker."""

from collections.abc import Iterator

import pytest

from labkit import classify
from labkit.brokers import Broker
from labkit.lab.checks import Verdict, find_exercise, judge
from labkit.lab.exercises import notebook_05

RIGHT = {
    "nightly report": "blocking",
    "seat map": "tornado",
    "scanner gateway": "gevent",
    "ticket service": "asyncio",
    "label printers": "connect",
}


def judged(name: str, answer: object) -> Verdict:
    return judge(find_exercise(name), answer)


# -- 05.1 ------------------------------------------------------------------------------------------------------------


def test_the_five_programs_pass_with_the_adapter_of_their_loop():
    assert judged("05.1", RIGHT).passed


def test_asyncio_fits_the_tornado_site_too():
    assert judged("05.1", {**RIGHT, "seat map": "asyncio"}).passed


@pytest.mark.parametrize("everywhere", notebook_05.CHOICES)
def test_no_single_adapter_fits_all_five(everywhere):
    assert not judged("05.1", dict.fromkeys(RIGHT, everywhere)).passed


@pytest.mark.parametrize(
    ("program", "choice"),
    [
        (program, choice)
        for program, (fitting, _) in notebook_05.PROGRAMS.items()
        for choice in notebook_05.CHOICES
        if choice not in fitting
    ],
)
def test_a_choice_that_does_not_fit_gets_a_hint_for_its_own_program(program, choice):
    verdict = judged("05.1", {**RIGHT, program: choice})
    assert not verdict.passed
    assert verdict.reason.startswith(f"{program}: ")


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (["blocking"], "dictionary"),
        ({}, "nightly report"),
        ({**RIGHT, "seat map": "Tornado"}, "choose from"),
        ({**RIGHT, "seat map": ["tornado"]}, "choose from"),
        ({**RIGHT, "label printers": "thread_safe"}, "choose from"),
    ],
)
def test_what_is_no_choice_is_said(answer, hint):
    verdict = judged("05.1", answer)
    assert not verdict.passed
    assert hint in verdict.reason


# -- 05.2 ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def lab_05(broker: Broker, monkeypatch) -> Iterator[Broker]:
    """What the notebook's setup cell makes: the virtual host, on the broker that the check will find."""
    monkeypatch.setattr(notebook_05.brokers, "up", lambda: broker)
    monkeypatch.setattr(notebook_05, "HANG", 1.0)
    broker.vhost(notebook_05.VIRTUAL_HOST)
    yield broker
    broker.delete_vhost(notebook_05.VIRTUAL_HOST)


def probe(opened="close", failed="stop", closed="stop", says=lambda error: classify(error).kind.name, default=None):
    """An answer to 05.2 that does in each callback what the word says; None: it has no such callback."""

    def answer(factory):
        said = []

        def do(what, connection):
            if what == "close":
                connection.close()
            elif what == "stop":
                connection.ioloop.stop()
            elif what == "both":
                connection.close()
                connection.ioloop.stop()

        def on_open(connection):
            said.append("open")
            do(opened, connection)

        def on_failed(connection, error):
            said.append(says(error))
            do(failed, connection)

        callbacks = {"on_open_callback": on_open}
        if failed is not None:
            callbacks["on_open_error_callback"] = on_failed
        if closed is not None:
            callbacks["on_close_callback"] = lambda connection, reason: do(closed, connection)
        connection = factory.select(**callbacks)
        connection.ioloop.start()
        connection.ioloop.close()
        return said[0] if said else default

    return answer


@pytest.mark.broker
def test_a_probe_that_ends_in_every_case_passes(lab_05):
    assert judged("05.2", probe()).passed


@pytest.mark.broker
@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (probe(opened="stop"), "left the connection open"),
        (probe(opened="both"), "half closed"),
        (probe(opened=None), "never stops"),
        (probe(closed=None), "never stops"),
        (probe(failed=None), "on_open_error_callback"),
        (probe(failed="nothing"), "never stops"),
        (probe(says=lambda error: classify(error).kind), "it should return 'REFUSED'"),
        (probe(says=lambda error: "REFUSED"), "it should return 'TRANSIENT'"),
        (probe(says=lambda error: type(error).__name__), "it should return 'REFUSED'"),
        (lambda factory: "open", "should call factory.select"),
        (lambda factory: factory.blocking().close() or "open", "should call factory.select"),
        (lambda factory: factory.select() and "open", "nothing happened"),
        ("open", "should be a function"),
    ],
)
def test_a_probe_that_leaves_something_open_or_says_something_else_is_told_so(lab_05, answer, hint):
    verdict = judged("05.2", answer)
    assert not verdict.passed
    assert hint in verdict.reason, verdict.reason
