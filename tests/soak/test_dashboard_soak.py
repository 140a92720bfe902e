"""What the dashboard costs a kernel and a page while a pool of 20 publishes 2,000 messages a second.

The same kernel does the same work twice: first without the dashboard, then with it on the page. What a page feels is
measured in the browser: the gaps between two frames, and from a key to the frame after it.
"""

import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page

from labkit.lab.server import NotebookServer
from tests.lab import jupyter_page
from tests.lab.jupyter_page import TIMEOUT, NotebookPage, serving
from tests.soak.measured import write_table

NAME = "busy.ipynb"
SECONDS = float(os.environ.get("LABKIT_DASHBOARD_SECONDS", "60"))
SETUP = """\
import json, resource, threading, time
from pathlib import Path
from labkit import ConnectionPool, Message
from labkit.lab import Lab

lab = Lab("busy")
pool = ConnectionPool(lab.settings(), min_size=20, max_size=20)
pool.open(wait=True)
sent, going = [0] * 20, threading.Event()

def work(number):
    due = time.monotonic()
    while going.is_set():
        with pool.connection() as connection:
            channel = connection.channel()
            for _ in range(20):  # a lease a fifth of a second
                channel.publish(Message(b"x" * 100), routing_key="nowhere")
                sent[number] += 1
                due += 0.01
                time.sleep(max(0, due - time.monotonic()))
            channel.close()

def measure(seconds):
    going.set()
    workers = [threading.Thread(target=work, args=(number,)) for number in range(20)]
    for each in workers: each.start()
    time.sleep(3)
    begun, cpu, count = time.perf_counter(), time.process_time(), sum(sent)
    time.sleep(seconds)
    taken = time.perf_counter() - begun
    found = {"cpu": (time.process_time() - cpu) / taken, "rate": (sum(sent) - count) / taken, "memory": memory()}
    going.clear()
    for each in workers: each.join()
    return found

def memory():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6"""
CELLS = (
    SETUP,
    'print("before:", json.dumps(measure(SECONDS / 2)))'.replace("SECONDS", str(SECONDS)),
    "view = lab.dashboard()\ntold = []\nview",
    "view.dashboard.listeners.append(lambda found: told.append(len(json.dumps(found))))\nbegun = memory()",
    'print("with it:", json.dumps(measure(SECONDS) | {"begun": begun, "told": told}))'.replace("SECONDS", str(SECONDS)),
    "pool.close()\nlab.close()",
)
FRAMES = """() => {
    window.gaps = []; let last = performance.now();
    const frame = now => {
        if (window.gaps) { window.gaps.push(now - last); last = now; requestAnimationFrame(frame); }
    };
    requestAnimationFrame(frame);
}"""
KEYS = """() => {
    window.keys = [];
    document.addEventListener("keydown", event => requestAnimationFrame(() => setTimeout(
        () => window.keys.push(performance.now() - event.timeStamp))), true);
}"""

pytestmark = [pytest.mark.soak, pytest.mark.browser, pytest.mark.broker, pytest.mark.timeout(600)]


@pytest.fixture
def server(broker, tmp_path) -> Iterator[NotebookServer]:
    with serving(broker, tmp_path, NAME, CELLS) as server:
        yield server


def printed(page: NotebookPage, word: str, seconds: float) -> dict:
    """Return what the cell has printed after *word*."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = re.search(rf"^{word}: (\{{.*\}})$", page.text(), re.MULTILINE)
        if found:
            return json.loads(found[1])
        page.page.wait_for_timeout(500)
    raise AssertionError(f"nothing was printed after {word!r}; errors: {page.error_outputs()}")


def feel(page: Page, seconds: float) -> tuple[list[float], list[float]]:
    """Press a key each second, and return the gaps between frames and the times from a key to its paint, in ms."""
    page.evaluate(FRAMES)
    page.evaluate(KEYS)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        page.keyboard.press("Shift")  # reaches the page, and changes nothing
        page.wait_for_timeout(1000)
    return page.evaluate("() => { const found = [window.gaps, window.keys]; window.gaps = null; return found; }")


def at(share: float, values: list[float]) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def test_a_busy_pool_leaves_the_page_responsive_and_the_kernel_its_time(server):
    with jupyter_page.page_of(server, NAME, size=(1280, 1600)) as page:
        page.run_above("begun = memory()")
        before = printed(page, "before", SECONDS)
        page.run_cell("begun = memory()")
        quiet_gaps, quiet_keys = feel(page.page, 10)
        page.start_cell("with it:")
        page.page.wait_for_timeout(3000)
        board = page.notebook.locator(".labkit-live").first
        board.scroll_into_view_if_needed(timeout=TIMEOUT)
        gaps, keys = feel(page.page, SECONDS - 5)
        page.screenshot(Path(__file__).parents[2] / ".lab" / "pictures" / "dashboard-busy.png")
        heap = page.page.evaluate("() => performance.memory.usedJSHeapSize / 1e6")
        found = printed(page, "with it", SECONDS + 60)
        page.run_cell("pool.close()")
        assert page.error_outputs() == []
        assert page.errors == []
    assert found["rate"] > 0, found
    told = found["told"]
    rows = [
        ["messages a second", f"{before['rate']:,.0f}", f"{found['rate']:,.0f}"],
        ["kernel's share of a core, the publishing included", f"{before['cpu']:.0%}", f"{found['cpu']:.0%}"],
        ["kernel's memory, MB", f"{before['memory']:.0f}", f"{found['memory']:.0f}"],
        ["differences a second; bytes of each, median and most", "",
         f"{len(told) / (SECONDS + 3):.1f}; {at(0.5, told):,}, {max(told):,}"],
        ["gap between two frames, ms: median, 99 %, longest", *(
            f"{at(0.5, each):.0f}, {at(0.99, each):.0f}, {max(each):.0f}" for each in (quiet_gaps, gaps))],
        ["from a key to its paint, ms: median, longest", *(
            f"{at(0.5, each):.0f}, {max(each):.0f}" for each in (quiet_keys, keys))],
        ["page's heap, MB", "", f"{heap:.0f}"],
    ]  # fmt: skip
    write_table("the dashboard of a busy pool", ["", "without, or idle", "with it, busy"], rows)
    assert len(told) / (SECONDS + 3) <= 10
    assert found["memory"] - found["begun"] < 60
    assert at(0.99, gaps) < 500
    assert at(0.5, keys) < 200
