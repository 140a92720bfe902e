"""When a silent link is noticed, as the explorer says it. No broker; a test of that name has one."""

import re

import pytest

from labkit.connection.link import Watchdog
from labkit.errors import ConfigurationError
from labkit.lab import Lab
from labkit.lab.boards.heartbeat_windows import NEVER, HeartbeatWindows


def test_the_text_says_who_notices_when_and_what_it_costs():
    assert str(HeartbeatWindows(10)) == (
        "heartbeat 10 s: a silent link is noticed by\n"
        "labkit's Connection    after 20 to 21 s\n"
        "RabbitMQ               after 20 to 30 s\n"
        "Pika's own timer       after 15 to 30 s\n"
        "an idle connection costs 11.5 kB an hour, both directions together"
    )


def test_without_a_heartbeat_nobody_notices():
    assert str(HeartbeatWindows(0)) == NEVER
    assert HeartbeatWindows(0).windows == ()
    assert NEVER in HeartbeatWindows(0).svg()


@pytest.mark.parametrize("wrong", [-1, 601, 1.5, True, "10", None])
def test_what_is_no_heartbeat_is_refused_with_what_is_allowed(wrong):
    with pytest.raises(ConfigurationError, match="allowed: whole seconds from 0 to 600"):
        HeartbeatWindows(wrong)


@pytest.mark.parametrize("heartbeat", [1, 7, 60])
def test_labkits_window_is_what_its_watchdog_does(heartbeat):
    window = HeartbeatWindows(heartbeat).windows[0]
    dog = Watchdog(float(heartbeat), 0.0)
    dog.is_silent(0.0, 100)
    looks = [second for second in range(1000) if dog.is_silent(float(second), 100)]
    assert window.earliest < looks[0] <= window.latest


@pytest.mark.parametrize("heartbeat", [1, 60, 600])
def test_every_bar_of_the_picture_lies_between_its_label_and_the_edge(heartbeat):
    picture = HeartbeatWindows(heartbeat).svg()
    bars = re.findall(r'<rect x="([\d.]+)" y="\d+" width="([\d.]+)"', picture)
    assert len(bars) == 3
    assert all(float(x) > 190 and float(x) + float(width) <= 640 - 90 + 0.1 for x, width in bars)
    assert str(HeartbeatWindows(heartbeat)).splitlines()[1].partition(" after ")[2] in picture.replace("&#x27;", "'")


def test_the_slider_changes_the_picture_and_its_text():
    with Lab("slider") as lab:
        view = lab.board("heartbeat")
        assert lab.board("heartbeat") is view
        view.slider.value = 2
        assert "after 7 to 14 s" in view.note.value
        assert view.picture.value == HeartbeatWindows(2).svg()
        assert view._repr_mimebundle_()["text/plain"] == str(HeartbeatWindows(2))
