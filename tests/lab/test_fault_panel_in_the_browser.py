"""The fault panel and the conversation in a real JupyterLab in a real Chromium: a click, and what it does to Pika."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Locator, expect

from labkit.lab.server import NotebookServer
from tests.lab import jupyter_page
from tests.lab.jupyter_page import TIMEOUT, NotebookPage, serving

PICTURES = Path(__file__).parents[2] / ".lab" / "pictures"
NAME = "break-it.ipynb"

SETUP = """\
import pika
from pika.adapters.utils.connection_workflow import AMQPConnectorStackTimeout
from pika.exceptions import AMQPError
from labkit.lab import Lab

lab = Lab("panel")"""
CONNECT = "connection = pika.BlockingConnection(proxy.settings().to_pika())\nchannel = connection.channel()"
PUBLISH = """\
try:
    channel.basic_publish("", queue, b"one more")
    print("confirmed")
except AMQPError as error:
    print("publish:", type(error).__name__)"""
RECONNECT = """\
try:
    pika.BlockingConnection(proxy.settings(stack_timeout=1.0).to_pika()).close()
    print("reached the broker")
except (AMQPError, AMQPConnectorStackTimeout) as error:
    print("connect:", type(error).__name__)"""
FRAMES = ("Connection.StartOk", "Queue.DeclareOk", "Confirm.Select", "Basic.Publish", "Basic.Ack")
CELLS = (
    SETUP,
    f"proxy = lab.proxy()\n{CONNECT}",
    'queue = channel.queue_declare("jobs").method.queue\nchannel.confirm_delivery()',
    'channel.basic_publish("", queue, b"resize picture 7")\nproxy.conversation()',
    "lab.board()",
    PUBLISH,
    RECONNECT,
    "proxy.close()",
    "lab.close()",
)

pytestmark = [pytest.mark.browser, pytest.mark.broker, pytest.mark.slow]


@pytest.fixture(scope="module")
def server(broker, tmp_path_factory) -> Iterator[NotebookServer]:
    """JupyterLab on one notebook, whose kernel uses the test bench."""
    with serving(broker, tmp_path_factory.mktemp("panel"), NAME, CELLS) as server:
        yield server


@pytest.fixture
def page(server) -> Iterator[NotebookPage]:
    """The notebook with the conversation drawn and the panel shown; nothing is broken yet."""
    with jupyter_page.page_of(server, NAME) as page:
        page.run_above(PUBLISH.splitlines()[1].strip())
        yield page
        assert page.error_outputs() == []
        assert page.errors == []


def panel_of(page: NotebookPage) -> Locator:
    return page.notebook.locator(".jp-OutputArea-output", has=page.page.get_by_role("button", name="DropHeartbeats"))


def click(page: NotebookPage, name: str) -> None:
    panel = panel_of(page)
    panel.scroll_into_view_if_needed(timeout=TIMEOUT)
    panel.get_by_role("button", name=name, exact=True).click(timeout=TIMEOUT)


def is_pressed(page: NotebookPage, name: str, yes: bool) -> None:
    button = panel_of(page).get_by_role("button", name=name, exact=True)
    expect(button).to_have_class(re.compile("mod-active") if yes else re.compile("^(?!.*mod-active)"), timeout=TIMEOUT)
    row = panel_of(page).locator(".widget-hbox", has=page.page.get_by_role("button", name=name, exact=True))
    expect(row.locator(".widget-label").first).to_have_text("on" if yes else "off", timeout=TIMEOUT)


def said(page: NotebookPage, text: str) -> None:
    expect(panel_of(page).get_by_role("status")).to_have_text(text, timeout=TIMEOUT)


def printed(page: NotebookPage, source: str, text: str) -> None:
    cell = page.notebook.locator(".jp-CodeCell", has_text=source).first
    expect(cell.locator(".jp-OutputArea-output").last).to_contain_text(text, timeout=TIMEOUT)


def test_a_click_on_cut_costs_the_next_publish_its_connection(page):
    said(page, "Everything passes.")
    page.run_cell("one more")
    printed(page, "one more", "confirmed")
    click(page, "Cut")
    said(page, "Cut: 1 link ended.")
    page.run_cell("one more")
    printed(page, "one more", "publish: StreamLostError")
    page.screenshot(PICTURES / "fault-panel-cut.png")


def test_a_stall_lasts_from_one_click_to_the_next(page):
    click(page, "Stall")
    said(page, "Stall is on, both directions.")
    is_pressed(page, "Stall", True)
    page.run_cell("reached the broker")
    printed(page, "reached the broker", "connect: AMQPConnectorStackTimeout")
    panel_of(page).screenshot(path=PICTURES / "fault-panel.png")
    click(page, "Stall")
    said(page, "Stall is off. Everything passes.")
    page.run_cell("reached the broker")
    printed(page, "reached the broker", "reached the broker")


def test_a_click_works_while_a_cell_runs(page):
    click(page, "Stall")
    said(page, "Stall is on, both directions.")
    page.start_cell("one more")
    publishing = page.notebook.locator(".jp-CodeCell", has_text="one more").first.locator(".jp-InputPrompt")
    expect(publishing).to_have_text("[*]:", timeout=TIMEOUT)
    click(page, "Stall")
    said(page, "Stall is off. Everything passes.")
    printed(page, "one more", "confirmed")


def test_an_error_is_shown_in_the_panel(page):
    page.run_cell("proxy.close()")
    click(page, "Refuse")
    expect(panel_of(page).get_by_role("status")).to_contain_text("Not done.", timeout=TIMEOUT)
    expect(panel_of(page).get_by_role("status")).to_contain_text("the proxy is not open", timeout=TIMEOUT)
    is_pressed(page, "Refuse", False)


def test_the_conversation_is_drawn_with_its_title(page):
    picture = conversation_of(page)
    picture.scroll_into_view_if_needed(timeout=TIMEOUT)
    texts = picture.locator("text").all_text_contents()
    assert texts[0].startswith("Conversation of a client and a broker")
    assert [name for name in FRAMES if name not in texts] == []
    assert picture.bounding_box()["width"] > 400
    picture.screenshot(path=PICTURES / "conversation.png")


def test_pictures_follow_the_theme_of_jupyterlab(page):
    dark_text = "rgb(230, 230, 230)"
    title, panel_title = conversation_of(page).locator("text").first, link_of(page).locator("text").first
    assert filled(title) == filled(panel_title) == "rgb(34, 34, 34)"
    page.choose_theme("JupyterLab Dark")
    assert filled(title) == filled(panel_title) == dark_text
    # No slab: behind the picture is the page.
    paper = (
        'picture => [...picture.querySelectorAll("rect")].some(r => r.getBBox().width >= picture.viewBox.baseVal.width)'
    )
    assert not conversation_of(page).evaluate(paper)
    conversation_of(page).scroll_into_view_if_needed(timeout=TIMEOUT)
    page.screenshot(PICTURES / "conversation-dark.png")


def test_the_link_is_drawn_broken_where_it_is(page):
    title = link_of(page).locator("text").first
    expect(title).to_have_text("Nothing is broken on the link", timeout=TIMEOUT)
    page.notebook.get_by_role("button", name="upstream", exact=True).click(timeout=TIMEOUT)
    click(page, "Stall")
    expect(title).to_have_text("The link is broken upstream only", timeout=TIMEOUT)
    expect(link_of(page).get_by_text("Stall", exact=True)).to_have_count(1)
    # On is a warning, not a shade of off.
    on, off = (page.notebook.get_by_role("button", name=name, exact=True) for name in ("Stall", "Refuse"))
    assert on.evaluate("b => getComputedStyle(b).backgroundColor") != off.evaluate(
        "b => getComputedStyle(b).backgroundColor"
    )
    panel_of(page).screenshot(path=PICTURES / "fault-panel-on.png")


def conversation_of(page: NotebookPage) -> Locator:
    return page.notebook.locator("svg", has_text="Conversation of a client and a broker")


def link_of(page: NotebookPage) -> Locator:
    return (
        panel_of(page)
        .locator("svg", has_text="on the link")
        .or_(panel_of(page).locator("svg", has_text="The link is broken"))
    )


def filled(text: Locator) -> str:
    return text.evaluate("text => getComputedStyle(text).fill")
