"""One sitting at the bench, from the command line: the broker, the learner's copies, JupyterLab, and their end."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from labkit import brokers
from labkit.brokers import home
from labkit.lab import copies
from labkit.lab.notebook_file import all_of
from labkit.lab.server import NotebookServer, ended_by_signals, serve


def hold(*, port: int | None, open_browser: bool, say: Callable[[str], None]) -> None:
    """Serve ``work/`` until the learner is done; ends the broker only if it was started here.

    Raises:
        NotebookError: there are no notebooks here, as where the package alone is installed; or work/ cannot be written.
        BrokerError: no broker could be had.
        ServerError: JupyterLab did not start.
    """
    all_of(home.project())  # before anything is started or written
    state = home.claim(home.bench())  # also where the broker is elsewhere: the notebook server's token lies there
    ours = brokers.find() is None
    server = NotebookServer(copies.make_work(home.project()), state, port=port)

    def end() -> None:
        server.stop()
        if ours and brokers.down():  # none, where it did not start
            say("the broker is down")

    with ended_by_signals(end, say):
        server.begin()
        with ThreadPoolExecutor(1) as beside:
            work = beside.submit(_bring_work_up_to_date)
            broker = brokers.up("auto", None, say)
            refreshed, lesson = work.result()
        for copy in refreshed:
            if copy.mine:
                say(f"work/{copy.path.name} is new; what you ran is kept as {copy.mine.name}")
        say(f"RabbitMQ {broker.version} ({broker.backend}), management page: {broker.management_url}")
        serve(server, say=say, open_browser=open_browser, lesson=lesson)


def _bring_work_up_to_date() -> tuple[list[copies.Copy], str | None]:
    """Return what was done, and the lesson that comes next."""
    import httpx  # noqa: F401 - broker and JupyterLab are asked by it in a moment; to import it takes 0.3 s

    return copies.refresh_work(), copies.next_lesson()
