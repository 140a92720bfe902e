"""The pool gauge without a browser: what a look keeps, what the picture says, what follows what. No broker."""

import gc
import threading
import xml.etree.ElementTree as ElementTree

import pytest

from labkit import ConnectionPool
from labkit.errors import ConfigurationError
from labkit.lab import Lab
from labkit.lab.boards.pool_gauge import PoolGauge
from labkit.lab.boards.pool_gauge_picture import MOST_LOOKS, Look, PoolHistory
from labkit.lab.boards.pool_gauge_view import PoolGaugeView
from labkit.pool.stats import PoolStats
from labkit.settings.settings import BrokerSettings

PATIENCE = 30.0  # seconds; nothing here takes one of them
SVG = "{http://www.w3.org/2000/svg}"


class Numbers:
    """A pool that says what it is told to say."""

    max_size = 3

    def __init__(self) -> None:
        self.say(0, 0, 0)

    def say(self, leased: int, idle: int, waiting: int, connecting: int = 0) -> None:
        size = leased + idle + connecting
        self.stats = PoolStats(size=size, idle=idle, leased=leased, waiting=waiting, connecting=connecting)

    def get_stats(self) -> PoolStats:
        return self.stats


@pytest.fixture
def pool():
    return Numbers()


@pytest.fixture
def gauge(pool):
    gauge = PoolGauge(pool)
    yield gauge
    gauge.stop()


@pytest.fixture
def view(gauge):
    view = PoolGaugeView(gauge)
    yield view
    view.close()


def drawn(history: PoolHistory) -> ElementTree.Element:
    return ElementTree.fromstring(history.svg())


def test_a_look_keeps_the_numbers_of_its_moment(pool, gauge):
    pool.say(3, 0, 5)
    gauge.look("three are out")
    pool.say(0, 3, 0)
    assert str(gauge.look("all came back")).splitlines() == [
        "               in use  idle  waiting",
        "three are out       3     0        5",
        "all came back       0     3        0",
    ]


def test_what_is_between_two_looks_leaves_no_row(pool, gauge):
    gauge.look("before")
    for waiting in range(5):
        pool.say(3, 0, waiting)
        gauge.refresh()
    pool.say(0, 0, 0)
    assert [look.label for look in gauge.look("after").looks] == ["before", "after"]
    assert {look.said for look in gauge.look("again").looks} == {"0 in use, 0 idle, 0 waiting"}


def test_a_history_does_not_change_after_it_was_returned(pool, gauge):
    history = gauge.look("first")
    picture = history.svg()
    gauge.look("second")
    gauge.start_afresh()
    assert (len(history.looks), history.svg()) == (1, picture)


def test_the_attributes_are_of_now_and_change_together(pool, gauge):
    seen = []
    gauge.observe(lambda _: seen.append((gauge.in_use, gauge.idle, gauge.opening, gauge.waiting)), names=["in_use"])
    pool.say(2, 1, 4, connecting=0)
    gauge.refresh()
    pool.say(1, 0, 0, connecting=1)
    gauge.refresh()
    assert seen == [(2, 1, 0, 4), (1, 0, 1, 0)]
    assert gauge.said == "Now: 1 in use, 0 idle, 1 opening, 0 waiting."


def test_the_same_looks_give_the_same_bytes_and_a_different_number_other_ones():
    looks = [Look("a", in_use=1, places=3), Look("b", idle=1, waiting=2, places=3)]
    assert PoolHistory(looks).svg() == PoolHistory(list(looks)).svg()
    assert PoolHistory(looks).svg() != PoolHistory([looks[0], Look("b", idle=1, waiting=3, places=3)]).svg()


def test_the_picture_has_a_title_and_the_text_as_its_description():
    history = PoolHistory([Look("three <are> out & away", in_use=3, waiting=5, places=3)])
    root = drawn(history)
    assert root.attrib["role"] == "img"
    assert root.findtext(f"{SVG}title") == "Pool gauge: 1 look, last: 3 in use, 0 idle, 5 waiting"
    assert root.findtext(f"{SVG}desc") == str(history)


@pytest.mark.parametrize(
    ("look", "full", "framed", "dashed", "circles"),
    [
        (Look("", places=3), 0, 0, 0, 3),  # a point for each free place
        (Look("", in_use=2, idle=1, places=3), 2, 1, 0, 0),
        (Look("", in_use=1, opening=1, waiting=4, places=3), 1, 0, 1, 5),
        (Look("", in_use=4, places=3), 4, 0, 0, 0),  # after a resize
        (Look("", idle=2), 0, 2, 0, 0),  # who knows no maximum shows what is there
    ],
)
def test_each_place_and_each_caller_is_one_mark(look, full, framed, dashed, circles):
    root = drawn(PoolHistory([look]))
    marks = list(root.iter(f"{SVG}rect"))
    assert sum(mark.attrib["fill"] != "none" for mark in marks) == full
    assert sum("stroke-dasharray" in mark.attrib for mark in marks) == dashed
    assert len(marks) == full + framed + dashed
    assert len(list(root.iter(f"{SVG}circle"))) == circles


def test_a_large_pool_and_a_long_line_stay_inside_their_columns():
    root = drawn(PoolHistory([Look("x" * 200, in_use=100, waiting=40, places=200)]))
    right = max(
        float(m.attrib["x"]) + float(m.attrib["width"]) for m in root.iter(f"{SVG}rect") if "stroke" in m.attrib
    )
    assert right < 540
    texts = [text.text or "" for text in root.iter(f"{SVG}text")]
    assert "+35" in texts
    assert max(len(text) for text in texts if text.startswith("x")) < 40


def test_the_last_looks_are_shown_and_the_earlier_ones_counted():
    history = PoolHistory([Look(f"look {number}") for number in range(MOST_LOOKS + 2)])
    assert str(history).splitlines()[0] == "after 2 earlier looks"
    assert "look 1 " not in str(history)
    assert any(text.text == "after 2 earlier looks" for text in drawn(history).iter(f"{SVG}text"))


def test_without_a_look_it_says_so():
    assert str(PoolHistory([])) == "nobody has looked yet"
    assert "nobody has looked yet" in PoolHistory([]).svg()


def test_the_view_shows_what_the_gauge_says(pool, gauge, view):
    pool.say(1, 2, 0)
    gauge.refresh()
    assert "Now: 1 in use, 2 idle, 0 waiting." in view.note.value
    assert view.picture.value == gauge.picture
    assert view._repr_mimebundle_()["text/plain"] == repr(view)
    assert repr(view).splitlines()[-1].split() == ["now", "1", "2", "0"]


def test_the_buttons_take_a_look_and_start_afresh(pool, gauge, view):
    view.look.click()
    assert [look.label for look in gauge.now().looks] == ["you looked", "now"]
    view.afresh.click()
    assert [look.label for look in gauge.now().looks] == ["now"]


def test_a_gauge_that_follows_sees_a_change_by_itself_and_stops(pool, gauge, view):
    changed = threading.Event()
    gauge.observe(lambda change: change["new"] == 2 and changed.set(), names=["in_use"])
    gauge.follow()
    gauge.follow()
    pool.say(2, 0, 0)
    assert changed.wait(PATIENCE)
    gauge.stop()
    gauge.stop()
    gauge.follow()
    assert [thread.name for thread in threading.enumerate() if thread.name == "labkit-pool-gauge"] == []


def test_a_gauge_keeps_no_pool_alive_and_shows_how_it_was_last():
    pool = Numbers()
    gauge = PoolGauge(pool)
    pool.say(1, 1, 0)
    gauge.look("before it went")
    del pool
    gc.collect()
    assert gauge._pool() is None
    assert gauge.look("after").looks[-1].said == "1 in use, 1 idle, 0 waiting"


def test_a_lab_has_one_gauge_a_pool_and_stops_it_at_its_end():
    with Lab("gauge") as lab:
        first, second = ConnectionPool(BrokerSettings()), Numbers()
        assert lab.board("pool", first) is lab.board("pool", first)
        assert lab.board("pool", first) is not lab.board("pool", second)
        assert repr(lab.board("pool", first)).splitlines()[-1].split() == ["now", "0", "0", "0"]
    assert [thread.name for thread in threading.enumerate() if thread.name == "labkit-pool-gauge"] == []


@pytest.mark.parametrize("what", [None, 3, []])
def test_a_lab_says_what_a_gauge_needs(what):
    with Lab("gauge") as lab, pytest.raises(ConfigurationError, match="has no get_stats"):
        lab.board("pool", what)
