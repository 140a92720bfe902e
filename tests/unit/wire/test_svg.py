"""Pictures follow the theme of the page, and can be read in each."""

import re
from xml.etree import ElementTree

import pytest

from labkit.events import ConnectionOpened
from labkit.lab.boards import link_picture
from labkit.lab.boards.architecture import Architecture
from labkit.lab.boards.arrivals import Arrivals
from labkit.lab.boards.pool_gauge_picture import Look, PoolHistory
from labkit.lab.boards.state_timeline import StateTimeline
from labkit.wire import Conversation, svg

PICTURES = [
    Architecture([]),
    Arrivals({"herd": [0.5, 1.0]}),
    PoolHistory([Look("begun", in_use=1, idle=1, waiting=1, opening=1, places=4)]),
    StateTimeline([ConnectionOpened()]),
    Conversation([]),
]
LEAST_CONTRAST = 4.5  # WCAG 1.4.3


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("name", ["text", "grey", "blue", "green", "amber", "red", "violet"])
def test_what_is_written_can_be_read_on_the_ground_of_its_theme(name, theme):
    assert contrast(svg.PALETTE[name][theme], svg.PALETTE["ground"][theme]) >= LEAST_CONTRAST


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: type(picture).__name__)
def test_a_picture_has_no_colour_of_its_own_and_no_paper(picture):
    root = ElementTree.fromstring(picture._repr_html_())
    paints = {each.get(kind) for each in root.iter() for kind in ("fill", "stroke")} - {None, "none"}
    assert paints
    assert all(re.fullmatch(r"var\(--labkit-\w+, #[0-9a-f]{6}\)", paint) for paint in paints), paints
    width = root.get("viewBox").split()[2]
    assert all(rect.get("width") != width for rect in root.iter("{http://www.w3.org/2000/svg}rect"))


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: type(picture).__name__)
def test_the_title_of_a_picture_is_visible(picture):
    root = ElementTree.fromstring(picture.svg())
    texts = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert root.findtext("{http://www.w3.org/2000/svg}title") == texts[0]


@pytest.mark.parametrize(
    ("on", "direction", "broken"),
    [
        ([], "both", "Nothing is broken on the link"),
        (["Stall"], "both", "The link is broken in both directions"),
        (["Stall", "Latency"], "upstream", "The link is broken upstream only"),
        (["Refuse"], "downstream", "The link is broken in both directions"),
    ],
)
def test_the_picture_of_the_link_has_a_cross_on_each_direction_that_is_broken(on, direction, broken):
    root = ElementTree.fromstring(link_picture.draw(on, direction))
    assert root.findtext("{http://www.w3.org/2000/svg}title") == broken
    crosses = list(root.iter("{http://www.w3.org/2000/svg}path"))
    assert (
        len(crosses)
        == {"Nothing": 0, "both": 2, "only": 1}[next(w for w in ("Nothing", "both", "only") if w in broken)]
    )
    names = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert names.count(", ".join(on)) == len(crosses)
