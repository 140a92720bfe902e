"""The checks of notebook 02 tell a right answer from the wrong ones that people give. No broker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import quote, quote_plus

import pika
import pytest

from labkit.lab.checks import Exercises
from labkit.lab.exercises.notebook_02 import LOGINS, WANTED
from labkit.settings.settings import BrokerSettings

UrlFor = Callable[[str, str, str, str, int], Any]


@pytest.fixture
def exercises() -> Exercises:
    return Exercises("02")


def encoded(safe: str = "", encode: Callable[..., str] = quote) -> UrlFor:
    def url_for(host: str, virtual_host: str, username: str, password: str, heartbeat: int) -> str:
        vhost, user, secret = (encode(text, safe=safe) for text in (virtual_host, username, password))
        return f"amqp://{user}:{secret}@{host}/{vhost}?heartbeat={heartbeat}"

    return url_for


def by_settings(mask: bool) -> UrlFor:
    def url_for(host: str, virtual_host: str, username: str, password: str, heartbeat: int) -> str:
        settings = BrokerSettings(
            host=host, virtual_host=virtual_host, username=username, password=password, heartbeat=heartbeat
        )
        return settings.to_url(mask=mask)

    return url_for


def naive(host: str, virtual_host: str, username: str, password: str, heartbeat: int) -> str:
    return f"amqp://{username}:{password}@{host}/{virtual_host}?heartbeat={heartbeat}"


def learnt_by_heart(host: str, virtual_host: str, username: str, password: str, heartbeat: int) -> str:
    known = {each.arguments(): encoded()(*each.arguments()) for each in LOGINS}
    return known.get((host, virtual_host, username, password, heartbeat), naive(host, "tickets", "web", "x", 45))


def without_heartbeat(host: str, virtual_host: str, username: str, password: str, heartbeat: int) -> str:
    return encoded()(host, virtual_host, username, password, 30)


def encoded_twice(host: str, virtual_host: str, username: str, password: str, heartbeat: int) -> str:
    return encoded()(host, virtual_host, quote(username, safe=""), quote(password, safe=""), heartbeat)


def test_the_specified_settings_pass(exercises: Exercises) -> None:
    verdict = exercises.verdict("02.1", WANTED.replace())

    assert verdict.passed
    assert "nothing else" in verdict.reason


@pytest.mark.parametrize(
    ("answer", "clue"),
    [
        (BrokerSettings(connection_name="nightly-report"), "virtual_host"),
        (WANTED.to_url(mask=False), "BrokerSettings"),
        (WANTED.to_pika(), "list"),
        (lambda: WANTED, "function"),
        (WANTED.replace(password="n1ght%2Fshift"), "percent-encoding"),
        (WANTED.replace(virtual_host="reports%2Feu"), "percent-encoding"),
        (WANTED.replace(virtual_host="/reports/eu"), "virtual_host"),
        (WANTED.replace(socket_timeout=5.0, stack_timeout=2.0), "changed places"),
        (WANTED.replace(hosts=("rabbit-b:5673", "rabbit-a")), "order"),
        (WANTED.replace(hosts=("rabbit-a:5673", "rabbit-b:5673")), "only rabbit-b"),
        (WANTED.replace(hosts=("rabbit-a", "rabbit-b")), "port 5673"),
        (WANTED.replace(host="rabbit-a", port=None), "addresses"),
        (WANTED.replace(connection_attempts=2), "the first try counts"),
        (WANTED.replace(blocked_connection_timeout=1.0), "the unit is seconds"),
        (WANTED.replace(blocked_connection_timeout=None), "the unit is seconds"),
        (WANTED.replace(connect_deadline=30.0), "20 seconds"),
        (WANTED.replace(frame_max=65536, locale="de_DE"), "frame_max, locale"),
        (WANTED.replace(client_properties={"product": "report"}), "client_properties"),
    ],
)
def test_settings_that_differ_from_the_specification_get_the_line_to_read_again(
    exercises: Exercises, answer: object, clue: str
) -> None:
    verdict = exercises.verdict("02.1", answer)

    assert not verdict.passed
    assert clue in verdict.reason


def test_no_hint_on_settings_says_the_password(exercises: Exercises) -> None:
    verdict = exercises.verdict("02.1", WANTED.replace(password="another"))

    assert not verdict.passed
    assert "n1ght" not in verdict.reason
    assert "another" not in verdict.reason


@pytest.mark.parametrize("url_for", [encoded(), by_settings(mask=False)], ids=["quote", "to_url"])
def test_a_url_that_reads_back_the_same_passes(exercises: Exercises, url_for: UrlFor) -> None:
    verdict = exercises.verdict("02.2", url_for)

    assert verdict.passed, verdict.reason
    assert "labkit and by Pika" in verdict.reason


@pytest.mark.parametrize(
    ("answer", "clue"),
    [
        (naive, "mean something in a URL"),
        (encoded(safe="/"), "mean something in a URL"),
        (encoded(encode=quote_plus), "a space is %20"),
        (encoded_twice, "mean something in a URL"),
        (by_settings(mask=True), "masked"),
        (without_heartbeat, "heartbeat=45"),
        (learnt_by_heart, "are all arguments used"),
        (lambda *_: None, "NoneType"),
        (lambda *_: pika.ConnectionParameters(), "ConnectionParameters"),
        (lambda *_: "amqp://web:simple@rabbit-a.example/tickets?heartbeat=45", "came back"),
        (lambda *_: "amqp://", "came back"),
        (lambda *_: "http://rabbit-a.example", "cannot read the URL"),
        ("amqp://web:x@rabbit-a.example", "function"),
    ],
)
def test_a_url_that_loses_something_gets_the_reason(exercises: Exercises, answer: object, clue: str) -> None:
    verdict = exercises.verdict("02.2", answer)

    assert not verdict.passed
    assert clue in verdict.reason


def test_an_encoder_that_forgets_one_character_does_not_pass(exercises: Exercises) -> None:
    for forgotten in "/%:?#":

        def url_for(*arguments: Any, kept: str = forgotten) -> Any:
            return encoded(safe=kept)(*arguments)

        verdict = exercises.verdict("02.2", url_for)
        assert not verdict.passed, forgotten
