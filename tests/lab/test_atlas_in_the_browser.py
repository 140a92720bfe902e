"""The atlas's page in Chromium: the filter by the keyboard alone, in both themes, without a request to anywhere."""

import os
from pathlib import Path

import pytest
from playwright.sync_api import expect, sync_playwright

from labkit.lab.atlas import Atlas
from tests.lab.jupyter_page import ARGUMENTS, program

PICTURES = Path(__file__).parents[2] / ".lab" / "pictures"

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_filtered_from_the_keyboard_and_asks_nobody(scheme, tmp_path):
    rows = Atlas()
    file = tmp_path / "atlas.html"
    file.write_text(rows.as_page(), encoding="utf-8")
    asked, said = [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program(), args=ARGUMENTS, env={**os.environ})
        page = browser.new_page(viewport={"width": 1200, "height": 800}, color_scheme=scheme)
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(file.as_uri())
        PICTURES.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=PICTURES / f"atlas-{scheme}.png")
        shown = page.locator("tbody tr:visible")
        everything = shown.count()
        assert everything == sum(len(row.seen) for row in rows)
        page.keyboard.press("Tab")
        page.keyboard.type("stall heartbeat")
        expect(shown).to_have_count(1)
        expect(page.get_by_role("status")).to_have_text(f"1 of {everything} rows")
        expect(page.get_by_role("heading", level=2)).to_have_count(1)
        page.keyboard.press("Control+A")
        page.keyboard.press("Delete")
        expect(shown).to_have_count(everything)
        page.keyboard.press("Tab")  # the table can be scrolled from the keyboard, too
        expect(page.get_by_role("region", name="the rows")).to_be_focused()
        colours = page.evaluate(
            "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
        )
        browser.close()
    assert (asked, said) == ([file.as_uri()], [])
    assert colours == (
        ["rgb(26, 26, 26)", "rgb(255, 255, 255)"] if scheme == "light" else ["rgb(232, 232, 232)", "rgb(20, 20, 20)"]
    )
