"""The bars of a herd's arrivals, as text and as a picture. No broker."""

from xml.etree import ElementTree

import pytest

from labkit.errors import ConfigurationError
from labkit.lab.boards.arrivals import MOST_SLOTS, Arrivals

SVG = "{http://www.w3.org/2000/svg}"


def picture(arrivals):
    return ElementTree.fromstring(arrivals.svg())


def bars(arrivals):
    """The heights of the bars."""
    return [int(bar.get("height")) for bar in picture(arrivals).iter(f"{SVG}rect")]


def test_the_text_has_one_line_for_each_slot_on_one_scale():
    board = Arrivals({"fixed": [1.0, 1.5, 1.9, 1.2], "jitter": [0.2, 1.1, 2.999]})

    assert str(board).splitlines() == [
        "fixed: 4 clients, at most 4 within 1 s",
        "      0 s    0",
        f"      1 s    4 {'#' * 40}",
        "jitter: 3 clients, at most 1 within 1 s",
        f"      0 s    1 {'#' * 10}",
        f"      1 s    1 {'#' * 10}",
        f"      2 s    1 {'#' * 10}",
    ]


def test_a_bar_is_drawn_for_each_slot_that_somebody_came_in():
    board = Arrivals({"fixed": [1.0] * 9, "jitter": [0.5, 2.5, 2.6]})
    heights = bars(board)

    assert len(heights) == 3
    assert heights[0] == max(heights)
    assert heights[2] == pytest.approx(2 * heights[1], abs=1)


def test_a_single_client_among_thousands_is_still_seen():
    board = Arrivals({"herd": [0.0] * 5000 + [3.0]})

    assert str(board).endswith("      3 s    1 #")
    assert min(bars(board)) >= 1


def test_the_order_of_the_times_changes_no_byte():
    assert Arrivals({"a": [3.0, 0.1, 2.0]}).svg() == Arrivals({"a": (0.1, 2.0, 3.0)}).svg()


def test_times_within_a_slot_change_no_byte():
    assert Arrivals({"a": [0.1, 1.9]}).svg() == Arrivals({"a": [0.8, 1.2]}).svg()


def test_what_comes_later_than_can_be_drawn_is_counted_in_the_last_bar():
    board = Arrivals({"a": [0.0, 1000.0, 2000.0]})

    assert str(board).splitlines()[-1].split() == [f"{MOST_SLOTS - 1}+", "s", "2", "#" * 40]
    assert (board.clients, board.busiest) == ({"a": 3}, {"a": 2})


def test_slots_can_be_wider_or_narrower_than_a_second():
    assert Arrivals({"a": [0.1, 0.6, 0.7]}, slot=0.5).busiest == {"a": 2}
    assert "within 0.5 s" in str(Arrivals({"a": [0.1]}, slot=0.5))
    assert Arrivals({"a": [1.0, 9.0]}, slot=10).busiest == {"a": 2}


def test_a_herd_of_which_nobody_came_is_named_all_the_same():
    board = Arrivals({"gave up": [], "came": [1.0]})

    assert "gave up: 0 clients" in str(board)
    assert len(bars(board)) == 1
    assert str(Arrivals({"gave up": []})) == "gave up: 0 clients, at most 0 within 1 s"
    assert bars(Arrivals({"gave up": []})) == []


def test_the_picture_carries_its_title_and_its_text_twin():
    board = Arrivals({"fixed": [1.0, 1.5]})
    root = picture(board)

    assert root.findtext(f"{SVG}title") == "Arrivals by time: fixed"
    assert root.findtext(f"{SVG}desc") == str(board) == repr(board)


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "a & b", '"quoted"', "nul\0inside", "]]>"])
def test_a_herd_s_name_cannot_break_the_picture(name):
    root = picture(Arrivals({name: [1.0]}))

    assert root.find(f".//{SVG}script") is None
    assert any(name.replace("\0", "\ufffd")[:8] in (text.text or "") for text in root.iter(f"{SVG}text"))


@pytest.mark.parametrize(
    ("herds", "slot"),
    [({}, 1.0), ({"a": [-0.1]}, 1.0), ({"a": [float("nan")]}, 1.0), ({"a": [float("inf")]}, 1.0), ({"a": [1.0]}, 0)],
)
def test_what_cannot_be_drawn_is_refused(herds, slot):
    with pytest.raises(ConfigurationError, match="allowed: "):
        Arrivals(herds, slot=slot)
