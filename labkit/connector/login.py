"""Ask a program for the user name and the password of an attempt: on a thread of its own, for it may wait for a vault.

Knows no plan and no Pika connection. The thread is a daemon, and is left behind when the attempt's time is over.
"""

import queue
from collections.abc import Callable
from typing import Any

from labkit.concurrency.guard import guard
from labkit.concurrency.threads import start_thread
from labkit.settings.settings import BrokerSettings

Answer = Any  # Pika's credentials, or the exception instead of them
Deliver = Callable[[Answer], object]


class LogIn:
    """The ``credentials`` of *settings*, asked for one attempt after the other.

    There is one thread at most: an attempt that finds the former one's function still at work gets that one's answer,
    so a vault that hangs through a long outage costs one thread and not one an attempt.
    """

    def __init__(self, settings: BrokerSettings) -> None:
        self._settings = settings
        self._lock = guard()
        self._deliver: Deliver | None = None  # who waits; None: nobody has asked since the last answer

    def ask(self, deliver: Deliver) -> None:
        """Call the function; *deliver* gets the answer, on another thread."""
        with self._lock:
            is_asked, self._deliver = self._deliver is not None, deliver
        if is_asked:
            return
        try:
            start_thread(self._ask, "labkit-credentials")
        except OSError as exc:
            self._answer(exc)

    def _ask(self) -> None:
        try:
            answer: Answer = self._settings.ask_credentials()
        except BaseException as exc:  # noqa: BLE001 - whoever waits gets it
            answer = exc
        self._answer(answer)

    def _answer(self, answer: Answer) -> None:
        with self._lock:
            deliver, self._deliver = self._deliver, None
        if deliver is not None:
            deliver(answer)


def credentials(answer: Answer) -> Any:
    """Return the credentials in *answer*, or raise the error that it is."""
    if isinstance(answer, Exception):
        raise answer
    if isinstance(answer, BaseException):  # sys.exit(), say: not on this thread
        raise OSError(f"credentials: the function raised {type(answer).__name__}") from answer
    return answer


def no_credentials(seconds: float) -> TimeoutError:
    """Return the error for a function that takes longer than *seconds*."""
    return TimeoutError(f"credentials: the function did not return within {seconds:.1f} s")


def wait_for_credentials(login: LogIn, seconds: float) -> Any:
    """Return the credentials, on a thread that may wait.

    Raises:
        OSError: there are none; not within *seconds*, if it is a ``TimeoutError``.
        ConfigurationError: what the function returned is no user name and password.
    """
    answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
    login.ask(answers.put)
    try:
        return credentials(answers.get(timeout=seconds))
    except queue.Empty:
        raise no_credentials(seconds) from None
