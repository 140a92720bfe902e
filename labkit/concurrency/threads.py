"""Threads that are there while they are needed, asked for from anywhere: by a signal handler, or a finalizer, too."""

import _thread
import errno
import threading
from collections.abc import Callable


class ThreadOnDemand:
    """A daemon thread, begun when it is needed, and again when it has ended. Thread-safe.

    Who needs it takes no lock, so an interrupt leaves none taken, and whoever comes in the middle may need it, too.
    The order of steps is what makes it right. Who needs it first puts down what there is to do, then looks whether
    there is a thread. The thread, about to end, first says so, then looks whether there is something to do.

    Args:
        name: The thread's.
        work: What it does; it returns when :meth:`may_end` has said yes.

    Attributes:
        thread: The one that works; None: there is none.
    """

    def __init__(self, name: str, work: Callable[[], object]) -> None:
        self._name = name
        self._work = work
        self.thread: threading.Thread | None = None
        self._lives = 0  # how often one has begun, or has gone on when it was about to end
        self._asked_after = -1  # how many lives there had been when the next one was last asked for
        self._turn = threading.Lock()  # of these threads among themselves; no other takes it

    def need(self) -> None:
        """Have a thread work, unless one does. What there is to do must be there already.

        Raises:
            RuntimeError: no thread can be started (the interpreter is ending).
        """
        lives = self._lives  # first: a thread that is there now, and ends, counts up before it could be missed
        if self.thread is None and self._asked_after != lives:
            start_daemon(self._begin, self._name)
            self._asked_after = lives  # only now: the start may be interrupted

    @property
    def is_current(self) -> bool:
        """Whether the calling thread is the one that works."""
        thread = self.thread
        return thread is not None and thread.ident == threading.get_ident()

    def may_end(self, has_work: Callable[[], bool]) -> bool:
        """Whether the thread, which asks this, is to end now: nothing was put down for it before it said so."""
        with self._turn:
            thread, self.thread = self.thread, None
            if has_work():
                self.thread = thread
                self._lives += 1  # who has seen none meanwhile has asked for one that will not come
                return False
            return True

    def _begin(self) -> None:
        with self._turn:
            if self.thread is not None:  # another one that was asked for at the same moment
                return
            self._lives += 1
            me = self.thread = threading.current_thread()
        try:
            self._work()
        finally:
            if self.thread is me:  # it was not to end, but it does
                self.thread = None


def start_daemon(target: Callable[[], object], name: str) -> None:
    """Have *target* run on a daemon thread soon, and return at once.

    ``Thread.start()`` takes locks of Python's own and waits until the thread runs. Who interrupts it on the same
    thread, and starts another, waits forever; so it is called by a thread that nothing interrupts.

    Raises:
        RuntimeError: no thread can be started (the interpreter is ending).
    """
    _thread.start_new_thread(_start, (target, name))


def _start(target: Callable[[], object], name: str) -> None:
    try:
        threading.Thread(target=target, name=name, daemon=True).start()
    except RuntimeError:  # no second one: this one will do, without its name
        target()


def start_thread(target: Callable[[], object], name: str) -> None:
    """Run *target* on a daemon thread that nobody waits for.

    Raises:
        OSError: the process has too many threads. Python's own RuntimeError would pass for a mistake in the program,
            after which nothing is tried again; and later there may be fewer.
    """
    try:
        threading.Thread(target=target, name=name, daemon=True).start()
    except RuntimeError as exc:
        raise OSError(errno.EAGAIN, f"no thread can be started: {exc}") from exc
