"""Exercises of 00: settings that were broken by one word."""

import contextlib

import pika
from pika.exceptions import AMQPError, ChannelClosedByBroker

from labkit.lab.checks import Exercise, describe
from labkit.settings.settings import BrokerSettings
from labkit.trials import NotYet

VIRTUAL_HOST = "lab-00"
PLANTED = "tickets"


def _repaired(answer: object) -> str:
    if not isinstance(answer, BrokerSettings):
        raise NotYet(f"answer should be settings, made with planted.replace(...); it is {type(answer).__name__} now")
    if answer.virtual_host == PLANTED:
        raise NotYet("the virtual host is still the wrong one: which field does the error name?")
    try:
        connection = pika.BlockingConnection(answer.to_pika())
    except AMQPError as error:
        raise NotYet(f"your copy cannot connect either, {describe(error)}. One word of planted was wrong") from None
    with contextlib.closing(connection):
        if answer.virtual_host != VIRTUAL_HOST:
            raise NotYet(f"it connects, but to {answer.virtual_host!r}, where the queue orders is not")
        try:
            found = connection.channel().queue_declare("orders", passive=True).method.message_count
        except ChannelClosedByBroker:
            raise NotYet("it connects, but nobody has made the queue orders yet: run the cells above first") from None
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
