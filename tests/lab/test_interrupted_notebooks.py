"""The stop button in the middle of a lesson's cell: the kernel is as good as before, and the lesson goes on."""

import queue
import random
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from jupyter_client.manager import KernelManager

from labkit.brokers.home import private_directory
from labkit.lab.notebook_file import clear, code_cells, notebooks, read, tags
from tests.lab.test_lessons_at_the_pace_of_a_class import ROOT, environment_of

pytestmark = [pytest.mark.broker, pytest.mark.slow, pytest.mark.timeout(400)]
SHORT = ("03", "05", "08")  # they block, live on a loop, and share; `make soak` takes all, with more interrupts
FIRST_INTERRUPTS = 4
MOST = 0.4  # seconds into a cell
IN_TIME = 20.0  # seconds for the end of an interrupted cell: a bench may have a broker to close
WHOLE = 90.0  # seconds for a whole cell


class Kernel:
    """Runs code as a notebook does."""

    def __init__(self, client, manager):
        self._client, self._manager = client, manager

    def run(self, code, *, within=WHOLE):
        """Return how it ended: "ok", or the error's name."""
        ended = self._answer(self._ask(code), within)
        assert ended is not None, f"still running after {within} s: {code[:200]}"
        return ended

    def interrupt(self, code, after):
        """Return None if *code* was interrupted, *after* so many seconds; else how it ended before."""
        ended = self._answer(self._ask(code), after)
        if ended is None:
            self._manager.interrupt_kernel()
            # Not its own answer: interrupted as it begins or ends, it may have none.
            assert self.run("assert 6 * 7 == 42", within=IN_TIME) == "ok"
        return ended

    def _ask(self, code):
        return self._client.execute(code, allow_stdin=False, stop_on_error=False)

    def _answer(self, asked, seconds):
        ends = time.monotonic() + seconds
        while (left := ends - time.monotonic()) > 0:
            try:
                message = self._client.get_shell_msg(timeout=left)
            except queue.Empty:
                break
            if message["parent_header"].get("msg_id") == asked:
                content = message["content"]
                return "ok" if content["status"] == "ok" else content.get("ename", content["status"])
        return None


@contextmanager
def kernel(broker, folder):
    environment = environment_of(broker)
    private_directory(Path(environment["IPYTHONDIR"]))
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(env=environment, cwd=str(folder))
    client = manager.blocking_client()
    try:
        client.start_channels()
        client.wait_for_ready(timeout=120)
        yield Kernel(client, manager)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
        manager.cleanup_resources()


def lesson_under_interrupts(path, broker, folder, *, seed, most):
    """Run the notebook, interrupt up to *most* of its cells and run those again; return how many were interrupted."""
    rng, struck = random.Random(seed), 0
    with kernel(broker, folder) as lesson:
        for position, cell in enumerate(code_cells(clear(read(path))), 1):
            if "nbval-skip" in tags(cell):
                continue
            where = f"{path.stem}, code cell {position}, seed {seed}"
            may_fail = "raises-exception" in tags(cell)
            if struck < most and position > 1:
                ended = lesson.interrupt(cell.source, rng.uniform(0.01, MOST))
                if ended is None:
                    struck += 1
                    ended = lesson.run(cell.source)
            else:
                ended = lesson.run(cell.source)
            assert ended == "ok" or may_fail, f"{where}: {ended}"
    return struck


def short_or_soak(path):
    marks = [] if path.name.startswith(SHORT) else [pytest.mark.soak]
    return pytest.param(path, id=path.stem, marks=marks)


@pytest.mark.parametrize("path", [short_or_soak(path) for path in notebooks(ROOT)])
def test_a_cell_that_is_interrupted_leaves_a_kernel_in_which_the_lesson_goes_on(path, broker, tmp_path):
    assert lesson_under_interrupts(path, broker, tmp_path, seed=1, most=FIRST_INTERRUPTS) > 0


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(2, 5))
@pytest.mark.parametrize("path", notebooks(ROOT), ids=lambda path: path.stem)
def test_every_slow_cell_is_interrupted_and_the_lesson_goes_on(path, seed, broker, tmp_path):
    assert lesson_under_interrupts(path, broker, tmp_path, seed=seed, most=100) > 0
