"""What somebody sees in Chromium who sends a form of a Flask application while its broker is down."""

import os
from pathlib import Path

import pytest
from playwright.sync_api import expect, sync_playwright

from labkit.wire import Proxy, Refuse
from tests.broker.flask_program import create_app, rabbitmq
from tests.broker.web import declared, served
from tests.lab.jupyter_page import ARGUMENTS, TIMEOUT, program

PICTURES = Path(__file__).parents[2] / ".lab" / "pictures"

pytestmark = [pytest.mark.browser, pytest.mark.broker, pytest.mark.slow]


def test_a_form_sent_while_the_broker_is_down_is_answered_with_a_readable_page_and_works_later(settings):
    declared(settings)
    with Proxy(settings) as proxy, sync_playwright() as playwright:
        app = create_app(proxy.settings().to_url(mask=False))
        browser = playwright.chromium.launch(executable_path=program(), args=ARGUMENTS, env={**os.environ})
        with served(app) as address:
            page = browser.new_page(viewport={"width": 800, "height": 300})
            with proxy.fault(Refuse()):
                page.goto(address)
                with page.expect_response(f"{address}/orders", timeout=TIMEOUT) as answered:
                    page.get_by_role("button", name="Send").click()
                assert (answered.value.status, answered.value.headers["retry-after"]) == (503, "5")
                expect(page.get_by_role("heading", name="Service Unavailable")).to_be_visible(timeout=TIMEOUT)
                expect(page.get_by_text("Please try again later.")).to_be_visible()
                PICTURES.mkdir(parents=True, exist_ok=True)
                page.screenshot(path=PICTURES / "flask-without-a-broker.png")
            page.goto(address)
            with page.expect_response(f"{address}/orders", timeout=TIMEOUT) as answered:
                page.get_by_role("button", name="Send").click()
            assert answered.value.status == 202
        browser.close()
        with app.app_context():
            rabbitmq.close()
