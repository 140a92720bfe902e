"""The fault panel without a browser and without a broker: a proxy that listens, and nobody behind it."""

import socket
import threading

import pytest

from labkit.errors import ConfigurationError, LabkitError
from labkit.lab.boards.fault_panel import ALL_PASSES, SWITCHES, FaultPanel
from labkit.lab.boards.fault_panel_view import FaultPanelView
from labkit.settings.settings import BrokerSettings
from labkit.wire import Fault, Proxy

FRESH = """\
Fault panel, breaks both directions
  [ ] Latency         bytes arrive later                  0.2 s
  [ ] Bandwidth       limited bandwidth                   10,000 bytes/s
  [ ] Slicer          bytes arrive in pieces              1 bytes
  [ ] Stall           nothing passes, nobody is told
  [ ] DropHeartbeats  heartbeats vanish
  [ ] SlowClose       the close arrives late              1 s
  [ ] LimitData       an end of file after so many bytes  1,000 bytes
  [ ] ResetPeer       a TCP reset, for every link
  [ ] Refuse          new connections are refused
Everything passes."""


@pytest.fixture
def proxy():
    with Proxy(BrokerSettings(host="127.0.0.1", port=9)) as proxy:
        yield proxy


@pytest.fixture
def panel(proxy):
    return FaultPanel(proxy)


@pytest.fixture
def view(panel):
    view = FaultPanelView(panel)
    yield view
    view.close()


def is_refused(proxy) -> bool:
    try:
        socket.create_connection(("127.0.0.1", proxy.settings().port), 5).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:  # taken, and then let go: nobody is behind the proxy
        return False
    return False


def armed(proxy) -> list[tuple[Fault, tuple[str, ...]]]:
    """What the proxy itself has been asked to break, in its own order."""
    return [(fault, where) for faults, where, _, _ in proxy._engine._faults.values() for fault in faults]


def test_every_fault_has_a_switch():
    assert set(SWITCHES) == {fault.__name__ for fault in Fault.__subclasses__()}


def test_a_fresh_panel_is_the_same_text_each_time_in_every_representation(panel, view):
    assert panel.twin() == FRESH
    assert repr(view) == FRESH
    assert view._repr_mimebundle_()["text/plain"] == FRESH


@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_puts_its_fault_on_the_proxy_and_takes_it_away(proxy, panel, name):
    panel.switch_on(name)
    panel.switch_on(name)
    assert [type(fault).__name__ for fault, _ in armed(proxy)] == [name]
    assert panel.on == (name,)
    assert f"[x] {name}" in panel.twin()
    panel.switch_off(name)
    panel.switch_off(name)
    assert armed(proxy) == []
    assert panel.said == f"{name} is off. {ALL_PASSES}"


def test_faults_apply_in_the_order_in_which_they_were_switched_on_and_all_end_at_once(proxy, panel):
    for name in ("Stall", "Latency", "Refuse"):
        panel.switch_on(name)
    assert [type(fault).__name__ for fault, _ in armed(proxy)] == ["Stall", "Latency", "Refuse"]
    assert is_refused(proxy)
    panel.all_off()
    assert armed(proxy) == []
    assert not is_refused(proxy)
    assert panel.said == ALL_PASSES


def test_an_amount_changes_a_fault_that_is_on_and_waits_for_one_that_is_off(proxy, panel):
    panel.set_amount("Latency", 0.5)
    assert (armed(proxy), panel.said) == ([], "Latency is off: 0.5 s.")
    panel.switch_on("Latency")
    panel.set_amount("Latency", 1.0)
    assert [fault.delay for fault, _ in armed(proxy)] == [1.0]
    assert panel.said == "Latency is on: 1 s."


def test_a_direction_moves_what_is_on_and_leaves_refuse_which_has_none(proxy, panel):
    for name in ("Stall", "Refuse", "Latency"):
        panel.switch_on(name)
    panel.set_direction("upstream")
    assert [(type(fault).__name__, where) for fault, where in armed(proxy)] == [
        ("Stall", ("upstream",)),
        ("Refuse", ("upstream", "downstream")),
        ("Latency", ("upstream",)),
    ]
    assert panel.said == "Faults break upstream only."
    assert panel.twin().startswith("Fault panel, breaks upstream only\n")


@pytest.mark.parametrize(
    ("act", "names"),
    [
        (lambda p: p.switch_on("Stal"), "Stall"),
        (lambda p: p.switch_off("Nothing"), "Refuse"),
        (lambda p: p.set_direction("sideways"), "upstream"),
        (lambda p: p.set_amount("Stall", 3), "nothing to set"),
        (lambda p: p.set_amount("Latency", -1), "Latency.delay"),
        (lambda p: p.set_amount("Bandwidth", 0), "Bandwidth.bytes_per_second"),
    ],
)
def test_what_cannot_be_is_refused_by_name_and_changes_nothing(proxy, panel, act, names):
    panel.switch_on("Latency")
    before = panel.twin()
    with pytest.raises(ConfigurationError, match=names):
        act(panel)
    assert panel.twin() == before
    assert [fault.delay for fault, _ in armed(proxy)] == [0.2]


def test_closing_the_proxy_switches_everything_off_and_the_next_verb_says_so(proxy, panel):
    panel.switch_on("Stall")
    proxy.close()
    with pytest.raises(LabkitError, match="not open"):
        panel.cut()
    assert panel.on == ()
    proxy.open()
    panel.switch_on("Stall")
    assert len(armed(proxy)) == 1


def test_a_fault_that_needs_frames_is_refused_where_none_can_be_read(proxy, panel):
    proxy.tap(False)
    with pytest.raises(ConfigurationError, match="frames cannot be read"):
        panel.switch_on("DropHeartbeats")
    assert panel.on == ()


# -- the widgets -------------------------------------------------------------------------------------------------


def test_a_button_does_what_its_verb_does(proxy, panel, view):
    view.toggles["Stall"].value = True
    assert panel.on == ("Stall",)
    assert view.marks["Stall"].value == "on"
    assert "Stall is on, both directions." in view.note.value
    view.directions.value = "downstream"
    assert [where for _, where in armed(proxy)] == [("downstream",)]
    view.all_off.click()
    assert armed(proxy) == []
    assert view.toggles["Stall"].value is False
    view.cut.click()
    assert "Cut: no link was open." in view.note.value
    view.reset.click()
    assert "Reset: no link was open." in view.note.value


def test_a_slider_sets_the_amount(proxy, panel, view):
    view.toggles["Latency"].value = True
    view.sliders["Latency"].value = 1.5
    assert [fault.delay for fault, _ in armed(proxy)] == [1.5]
    view.sliders["Slicer"].value = 7
    view.sliders["Bandwidth"].value = 1000.0
    view.sliders["LimitData"].value = 200
    for name in ("Slicer", "Bandwidth", "LimitData"):
        view.toggles[name].value = True
    faults = [fault for fault, _ in armed(proxy)][1:]
    assert (faults[0].size, faults[1].bytes_per_second, faults[2].limit) == (7, 1000.0, 200)


def test_the_widgets_follow_what_code_does(panel, view):
    panel.set_amount("Latency", 0.75)
    panel.set_direction("upstream")
    panel.switch_on("Latency")
    assert (view.sliders["Latency"].value, view.directions.value) == (0.75, "upstream")
    assert view.toggles["Latency"].value is True


def test_an_error_is_shown_and_the_button_springs_back(proxy, panel, view):
    proxy.close()
    view.toggles["Stall"].value = True
    assert panel.failed
    assert panel.said.startswith("EngineClosedError: ") or panel.said.startswith("LabkitError: ")
    assert "Not done." in view.note.value
    assert "the proxy is not open" in view.note.value
    assert view.toggles["Stall"].value is False
    assert view.marks["Stall"].value == "off"
    proxy.open()
    view.cut.click()
    assert not panel.failed
    assert "Not done." not in view.note.value


def test_an_error_s_text_cannot_become_markup(panel, view):
    def fails():
        raise ValueError("<script>alert(1)</script>")

    panel.attempt(fails)
    assert "<script>" not in view.note.value
    assert "ValueError: &lt;script&gt;" in view.note.value


def test_clicks_from_several_threads_leave_one_state(proxy, panel, view):
    def click(name):
        for _ in range(50):
            panel.attempt(panel.switch_on, name)
            panel.attempt(panel.switch_off, name)

    threads = [threading.Thread(target=click, args=(name,)) for name in ("Stall", "Latency", "Refuse", "Slicer")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not panel.failed, panel.said
    assert (panel.on, armed(proxy)) == ((), [])
    assert [name for name, toggle in view.toggles.items() if toggle.value] == []


def test_two_views_of_one_panel_show_the_same(panel, view):
    other = FaultPanelView(panel)
    other.toggles["Refuse"].value = True
    assert view.toggles["Refuse"].value is True
    other.close()
