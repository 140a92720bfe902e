"""The tree of connections and channels, as text and as a picture. No broker."""

from xml.etree import ElementTree

import pytest

from labkit.brokers.interface import ConnectionInfo
from labkit.lab.boards.architecture import MOST_CHANNELS, MOST_CONNECTIONS, Architecture

SVG = "{http://www.w3.org/2000/svg}"


def connection(client_name="web front", channels=1, *, name="127.0.0.1:50001 -> 127.0.0.1:5672", state="running"):
    return ConnectionInfo(name, client_name, "lab-01", "lab", state, channels)


def drawn(architecture):
    """The texts in the picture, without its description."""
    root = ElementTree.fromstring(architecture.svg())
    return [element.text for element in root.iter(f"{SVG}text")]


def test_the_text_is_a_tree_of_connections_and_their_channels():
    tree = Architecture([connection("worker", 1), connection("web front", 2)])

    assert str(tree).splitlines() == [
        "broker",
        "├── web front (running, lab-01)",
        "│   ├── channel",
        "│   └── channel",
        "└── worker (running, lab-01)",
        "    └── channel",
    ]


def test_the_picture_holds_a_box_for_each_connection_and_each_channel():
    texts = drawn(Architecture([connection("worker", 1), connection("web front", 2)]))

    assert texts.count("channel") == 3
    assert {"broker", "web front", "worker", "running, lab-01"} <= set(texts)


def test_the_order_in_which_the_broker_lists_connections_changes_no_byte():
    first = [connection("worker", 1, name="a:1"), connection("web", 3, name="a:2"), connection("web", 1, name="a:3")]
    second = [connection("web", 1, name="a:9"), connection("worker", 1, name="a:8"), connection("web", 3, name="a:7")]

    assert Architecture(first).svg() == Architecture(second).svg()
    assert str(Architecture(first)) == str(Architecture(second))


def test_the_broker_s_own_name_of_a_connection_is_not_shown():
    tree = Architecture([connection(name="127.0.0.1:50001 -> 127.0.0.1:5672")])

    assert "50001" not in tree.svg()
    assert "50001" not in str(tree)


def test_a_state_other_than_running_is_shown():
    tree = Architecture([connection(state="blocked")])

    assert "blocked, lab-01" in drawn(tree)
    assert "web front (blocked, lab-01)" in str(tree)


def test_the_picture_carries_its_title_and_its_text_twin():
    tree = Architecture([connection("web front", 2)])
    root = ElementTree.fromstring(tree.svg())

    assert root.findtext(f"{SVG}title") == "What the broker has now: 1 connection and 2 channels"
    assert root.findtext(f"{SVG}desc") == str(tree)
    assert repr(tree) == str(tree)


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "a & b", '"quoted"', "nul\0inside", "]]>"])
def test_a_client_s_name_cannot_break_the_picture(name):
    root = ElementTree.fromstring(Architecture([connection(name)]).svg())

    assert root.find(f".//{SVG}script") is None
    assert any(name.replace("\0", "\ufffd")[:8] in (text.text or "") for text in root.iter(f"{SVG}text"))


def test_a_line_break_in_a_name_adds_no_branch_to_the_tree():
    tree = Architecture([connection("web\n└── front", 0)])

    assert str(tree).splitlines() == ["broker", "└── web └── front (running, lab-01)"]


def test_a_connection_without_a_name_says_so():
    assert "without a name (running, lab-01)" in str(Architecture([connection("")]))


def test_a_connection_without_channels_is_shown():
    assert str(Architecture([connection(channels=0)])).splitlines() == ["broker", "└── web front (running, lab-01)"]


def test_no_connection_is_said_and_not_left_blank():
    nothing = Architecture([])

    assert str(nothing) == "broker, without a connection"
    assert "none" in drawn(nothing)


def test_channels_that_do_not_fit_are_counted():
    tree = Architecture([connection(channels=MOST_CHANNELS + 7)])

    assert drawn(tree).count("channel") == MOST_CHANNELS
    assert "and 7 more channels" in drawn(tree)
    assert str(tree).splitlines()[-1] == "    └── and 7 more channels"
    assert tree.channels == MOST_CHANNELS + 7


def test_connections_that_do_not_fit_are_counted():
    tree = Architecture([connection(f"client {number:03d}") for number in range(MOST_CONNECTIONS + 1)])

    assert "and 1 more connection" in drawn(tree)
    assert str(tree).splitlines()[-1] == "└── and 1 more connection"
    assert tree.connections == MOST_CONNECTIONS + 1


def test_every_text_lies_inside_the_picture():
    crowd = Architecture([connection(f"{'long name ' * 9}{number}", 50) for number in range(MOST_CONNECTIONS + 9)])
    root = ElementTree.fromstring(crowd.svg())

    assert len(drawn(crowd)) > MOST_CONNECTIONS
    for text in root.iter(f"{SVG}text"):
        assert 0 <= int(text.attrib["x"]) < int(root.attrib["viewBox"].split()[2])
        assert 0 < int(text.attrib["y"]) < int(root.attrib["viewBox"].split()[3])
