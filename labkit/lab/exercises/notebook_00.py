"""Exercises of 00: settings that were broken by one word."""

import contextlib

import pika

from labkit.lab.checks import Exercise, NotYet
from labkit.settings import BrokerSettings


def _repaired(answer: object) -> str:
    if not isinstance(answer, BrokerSettings):
        raise NotYet(f"answer should be settings, made with planted.replace(...); it is {type(answer).__name__} now")
    if answer.virtual_host == "tickets":
        raise NotYet("the virtual host is still the wrong one: which field does the error name?")
    with contextlib.closing(pika.BlockingConnection(answer.to_pika())) as connection:
        if answer.virtual_host != "lab-00":
            raise NotYet(f"it connects, but to {answer.virtual_host!r}, where the queue orders is not")
        found = connection.channel().queue_declare("orders", passive=True).method.message_count
    return f"connected, and the queue orders is there with {found} messages"


EXERCISES = (
    Exercise(
        "00.1",
        _repaired,
        hints=(
            "Read the error again: it quotes the word that is wrong.",
            "Print lab.settings() and compare it with planted, field by field.",
            "planted.replace(virtual_host=...) makes a copy with another one; lab.settings() has the right one.",
        ),
    ),
)
