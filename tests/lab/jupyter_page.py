"""Open a notebook in JupyterLab in a headless Chromium, run it, hand over the page (Playwright, system browser)."""

import contextlib
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from nbformat.v4 import new_code_cell, new_notebook
from playwright.sync_api import Locator, Page, expect, sync_playwright

from labkit.brokers import Broker
from labkit.lab.copies import LANDING
from labkit.lab.notebook_file import write
from labkit.lab.server import NotebookServer

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
# Without a GPU, as root, and with Chromium's own errands switched off: they cost seconds where there is no internet.
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
TIMEOUT = 60_000  # milliseconds, Playwright's unit, for one step
RUN_TIMEOUT = 90.0  # seconds for all cells of a notebook
# What each cell that is there now has printed, by its place: read in one go, because JupyterLab takes cells out.
OUTPUTS = """cells => cells.map(cell => [
    Number(cell.dataset.windowedListIndex),
    [...cell.querySelectorAll(".jp-OutputArea-output")].map(output => output.innerText).join("\\n"),
])"""
# The kernel is really there only when the status bar says so: the toolbar's indicator says idle before it is
# connected, and Run All then loses cells.
KERNEL_IDLE = re.compile(r"\| Idle$")


KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}}


@contextlib.contextmanager
def serving(broker: Broker, project: Path, name: str, cells: Sequence[str]) -> Iterator[NotebookServer]:
    """Serve one notebook of *cells*, whose kernel uses *broker*, from *project*/work."""
    (project / "work").mkdir()
    write(new_notebook(cells=[new_code_cell(cell) for cell in cells], metadata=KERNEL), project / "work" / name)
    with pytest.MonkeyPatch.context() as patch:
        if broker.home is not None:
            patch.setenv("LABKIT_BROKER", str(broker.home))
        server = NotebookServer(project / "work", project)
        server.start()
    try:
        yield server
    finally:
        server.stop()


def program() -> str | None:
    """The Chromium of this machine, if it has one."""
    return next((found for name in PROGRAMS if (found := shutil.which(name))), None)


@dataclass
class NotebookPage:
    """One notebook, opened; *errors* is what the browser's console called an error."""

    page: Page
    notebook: Locator
    errors: list[str] = field(default_factory=list)

    def run_all(self) -> None:
        self.page.get_by_role("menuitem", name="Run", exact=True).click()
        self.page.get_by_role("menuitem", name=re.compile("^Run All Cells")).first.click()
        self.wait_until_run()

    def wait_until_run(self) -> None:
        """Until no cell waits ("[*]") or is still to be run ("[ ]").

        Raises:
            AssertionError: a cell failed, after which JupyterLab leaves the rest at "[ ]", or time ran out.
        """
        waiting = self.notebook.locator(".jp-CodeCell .jp-InputPrompt", has_text=re.compile(r"\[[* ]\]"))
        deadline = time.monotonic() + RUN_TIMEOUT
        while waiting.count():
            failed = self.error_outputs()
            assert not failed, failed
            assert time.monotonic() < deadline, f"{waiting.count()} cells have not run after {RUN_TIMEOUT:.0f} s"
            self.page.wait_for_timeout(200)

    def choose_theme(self, name: str) -> None:
        """Choose a theme from the menu, and wait until it is there."""
        dark = name.endswith("Dark")
        self.page.get_by_role("menuitem", name="Settings", exact=True).click()
        menu = self.page.locator(".lm-Menu-item")
        menu.filter(has_text=re.compile(r"^Theme\b")).first.hover()
        menu.filter(has_text=re.compile(rf"^{name}\s*$")).first.click()
        chosen = f'body[data-jp-theme-light="{"false" if dark else "true"}"]'
        self.page.locator(chosen).wait_for(state="attached", timeout=TIMEOUT)

    def save(self) -> None:
        self.page.keyboard.press("Control+s")
        expect(self.page.locator(".jp-mod-dirty")).to_have_count(0, timeout=TIMEOUT)

    def load_again(self) -> None:
        """What the browser's reload does; the kernel lives on."""
        self.page.reload()
        self.wait_until_ready()

    def restart_kernel(self) -> None:
        self.page.get_by_role("menuitem", name="Kernel", exact=True).click()
        self.page.get_by_role("menuitem", name=re.compile("^Restart Kernel…")).first.click()
        self.page.locator(".jp-Dialog .jp-mod-accept").click(timeout=TIMEOUT)
        expect(self.page.locator(".jp-Dialog")).to_have_count(0, timeout=TIMEOUT)

    def wait_until_ready(self) -> None:
        """Until the cells are there, and the kernel."""
        self.notebook.locator(".jp-Cell").first.wait_for(timeout=TIMEOUT)
        expect(self.page.get_by_role("button", name=KERNEL_IDLE)).to_be_visible(timeout=TIMEOUT)

    def choose(self, question: str, choice: str) -> None:
        """Click a choice of a question, as a learner does."""
        view = self.notebook.locator(".jp-OutputArea-output", has_text=question).first
        view.scroll_into_view_if_needed(timeout=TIMEOUT)
        view.get_by_role("button", name=choice, exact=True).click(timeout=TIMEOUT)

    def run_above(self, source: str) -> None:
        """Run every cell above the one that holds *source*."""
        self._select(source)
        self.page.get_by_role("menuitem", name="Run", exact=True).click()
        self.page.get_by_role("menuitem", name=re.compile("^Run All Above")).click()
        self._wait_until_idle()

    def start_cell(self, source: str) -> None:
        """Run the code cell that holds *source*, and wait for nothing."""
        self._select(source)
        self.page.keyboard.press("Control+Enter")

    def run_cell(self, source: str) -> None:
        """Run the code cell that holds *source*."""
        self.start_cell(source)
        self._wait_until_idle()

    def _select(self, source: str) -> None:
        self.notebook.locator(".jp-CodeCell", has_text=source).first.locator(".cm-content").click()

    def _wait_until_idle(self) -> None:
        running = self.notebook.locator(".jp-CodeCell .jp-InputPrompt", has_text="[*]")
        self.page.wait_for_timeout(300)  # a cell shows [*] only when the kernel has been asked
        expect(running).to_have_count(0, timeout=TIMEOUT)

    def error_outputs(self) -> list[str]:
        """Tracebacks, and anything on stderr: JupyterLab draws both alike, and a lesson has neither."""
        return self.notebook.locator('[data-mime-type="application/vnd.jupyter.stderr"]').all_inner_texts()

    def text(self) -> str:
        """Everything the cells printed; scrolls through the notebook, since JupyterLab holds only what is near view."""
        found: dict[int, str] = {}
        window = self.notebook.locator(".jp-WindowedPanel-outer").first
        top, height, end = 0, 1, 1
        while top < end:
            window.evaluate("(element, top) => { element.scrollTop = top }", top)
            self.page.wait_for_timeout(300)  # JupyterLab puts cells in and out when it has the time
            found |= dict(self.notebook.locator(".jp-CodeCell").evaluate_all(OUTPUTS))
            height, end = window.evaluate("element => [element.clientHeight, element.scrollHeight]")
            top += height // 2
        return "\n".join(found[index] for index in sorted(found))

    def screenshot(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=path)


@contextlib.contextmanager
def browser_page(
    server: NotebookServer,
    name: str,
    *,
    size: tuple[int, int] = (1280, 1000),
    errors: list[str] | None = None,
    reset: bool = True,
) -> Iterator[Page]:
    """A browser that shows one of the server's files; *errors* gets what its console calls an error.

    Without *reset*, the workspace is shown, too.
    """
    noted = [] if errors is None else errors
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program(), args=ARGUMENTS, env={**os.environ})
        page = browser.new_page(viewport={"width": size[0], "height": size[1]})
        page.on("console", lambda message: noted.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: noted.append(str(error)))
        page.goto(server.address.replace(f"{LANDING}?", f"{name}?{'reset&' if reset else ''}"))
        try:
            yield page
        finally:
            browser.close()


@contextlib.contextmanager
def page_of(server: NotebookServer, name: str, *, size: tuple[int, int] = (1280, 1000)) -> Iterator[NotebookPage]:
    """A page that shows one of the server's notebooks, its kernel ready; the kernel ends with it."""
    errors: list[str] = []
    with browser_page(server, name, size=size, errors=errors) as page:
        opened = NotebookPage(page, page.locator(".jp-NotebookPanel:not(.lm-mod-hidden)"), errors)
        opened.wait_until_ready()
        yield opened
