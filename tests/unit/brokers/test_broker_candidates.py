"""Which image the compose backend takes."""

import contextlib

import pytest

from labkit.brokers import candidates, engine
from labkit.brokers.candidates import Pins


@pytest.mark.parametrize(
    ("variable", "pinned", "wanted"),
    [("", None, None), ("rabbitmq:4.0", None, "rabbitmq:4.0"), ("rabbitmq:4.0", "mine:1", "mine:1")],
)
def test_the_compose_files_variable_names_the_image_unless_a_caller_insists(monkeypatch, variable, pinned, wanted):
    asked = []
    monkeypatch.setenv(candidates.IMAGE_VARIABLE, variable)
    monkeypatch.setattr(engine, "connected", contextlib.nullcontext)
    monkeypatch.setattr(engine, "compose_command", lambda: ["docker", "compose"])
    monkeypatch.setattr(engine, "available_image", lambda image, say, **_: asked.append(image) or "any")
    candidates.candidates("compose", Pins(image=pinned))[0].prepare(print)
    assert asked == [wanted]
