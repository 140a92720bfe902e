"""Check what a learner answered: NOT YET with a hint, or PASS with the reason. Knows no broker and no widgets.

A check is proven both ways in its notebook: the stub must get NOT YET and the solution PASS, and nbval compares both.

An exercise module reads::

    def _survivor(answer: object) -> str:
        if run(answer, 3) != [1, 2, 4]:
            raise NotYet("the pause doubles: 1, 2, 4")
        return "each pause is twice the one before"

    EXERCISES = (Exercise("07.1", _survivor, hints=("What is the second pause?", "...")),)
"""

import asyncio
import contextlib
import contextvars
import ctypes
import functools
import importlib
import importlib.util
import inspect
import pkgutil
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from labkit.errors import ConfigurationError
from labkit.lab.feedback import Feedback, show
from labkit.printable import printable
from labkit.trials import NotYet

PACKAGE = "labkit.lab.exercises"
CHECK_SECONDS = 10.0  # for a whole check; class exercises answer in well under one
_WAIT_FOR_THE_END = 1.0  # seconds for a thread to notice that it was told to stop
_LONGEST = 200
_ADDRESS = re.compile(r"0x[0-9a-fA-F]{6,}")


class _Stopped(BaseException):
    """Raised inside code whose time is up. A BaseException, so that ``except Exception`` lets it through."""


@dataclass(frozen=True, slots=True)
class Exercise:
    """One exercise.

    Attributes:
        name: ``"02.1"``: the notebook's number, a dot, which one.
        check: gets the answer; returns why it is right, or raises :class:`NotYet`.
        hints: the ladder, from a question to nearly the solution.
        seconds: how long the whole check may take.
    """

    name: str
    check: Callable[[Any], str]
    hints: tuple[str, ...] = ()
    seconds: float = CHECK_SECONDS


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a check says; its text is what a notebook prints."""

    passed: bool
    reason: str

    def __str__(self) -> str:
        return f"{'PASS' if self.passed else 'NOT YET'}: {self.reason}"


class Exercises:
    """The exercises of one notebook, and how many hints its learner has read.

    One owner: the kernel's main thread. Answers run in a thread of their own, so that one that never returns costs
    ``Exercise.seconds`` and not the lesson.
    """

    def __init__(self, lab_id: str, *, say: Callable[[Feedback], None] = show, package: str = PACKAGE) -> None:
        self._lab_id = lab_id
        self._say = say
        self._package = package
        self._hints_read: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"Exercises({self._lab_id!r})"

    def check(self, name: str, answer: object) -> None:
        """Print ``NOT YET: <hint>`` or ``PASS: <why>``. Returns None, so that a cell shows nothing else.

        Raises:
            ConfigurationError: this notebook has no such exercise; the text lists what it has.
        """
        verdict = self.verdict(name, answer)
        self._say(Feedback(str(verdict), "right" if verdict.passed else "not yet"))

    def verdict(self, name: str, answer: object) -> Verdict:
        """Return what :meth:`check` would print. Ends within the exercise's seconds, whatever the answer does.

        Raises:
            ConfigurationError: this notebook has no such exercise; the text lists what it has.
        """
        return judge(self._exercise(name), answer)

    def hint(self, name: str) -> None:
        """Print the next hint; the last one again when there is no further.

        Raises:
            ConfigurationError: this notebook has no such exercise; the text lists what it has.
        """
        exercise = self._exercise(name)
        if not exercise.hints:
            self._say(Feedback("no hints here: run the check, it says what is missing", "hint"))
            return
        rung = min(self._hints_read.get(name, 0), len(exercise.hints) - 1)
        self._hints_read[name] = rung + 1
        self._say(Feedback(f"hint {rung + 1} of {len(exercise.hints)}: {exercise.hints[rung]}", "hint"))

    def _exercise(self, name: str) -> Exercise:
        if not isinstance(name, str) or name.partition(".")[0] != self._lab_id:
            raise ConfigurationError(
                f"exercise {name!r} is not of this notebook: its exercises begin with '{self._lab_id}.'"
            )
        return find_exercise(name, package=self._package)


def find_exercise(name: str, *, package: str = PACKAGE) -> Exercise:
    """Return the exercise with this name.

    Raises:
        ConfigurationError: there is none; the text lists what its notebook has.
    """
    known = exercises_of(name.partition(".")[0], package=package)
    if name not in known:
        raise ConfigurationError(f"there is no exercise {name!r}; there is: {', '.join(sorted(known)) or 'none'}")
    return known[name]


@functools.cache
def exercises_of(number: str, *, package: str = PACKAGE) -> Mapping[str, Exercise]:
    """Return the exercises of one notebook by name; empty when it has no module.

    Raises:
        ConfigurationError: the module names an exercise twice, or one of another notebook.
    """
    module_name = f"{package}.notebook_{number}"
    if not number.isalnum() or importlib.util.find_spec(module_name) is None:
        return {}
    found: dict[str, Exercise] = {}
    for exercise in importlib.import_module(module_name).EXERCISES:
        if exercise.name in found or exercise.name.partition(".")[0] != number:
            raise ConfigurationError(f"{module_name}: the name {exercise.name!r} is taken, or of another notebook")
        found[exercise.name] = exercise
    return found


def all_exercises(*, package: str = PACKAGE) -> list[Exercise]:
    """Return every exercise there is, in order."""
    modules = pkgutil.iter_modules(importlib.import_module(package).__path__)
    numbers = [module.name.removeprefix("notebook_") for module in modules if module.name.startswith("notebook_")]
    return [exercise for number in sorted(numbers) for exercise in exercises_of(number, package=package).values()]


def judge(exercise: Exercise, answer: object) -> Verdict:
    """Run one check within its seconds. Never raises for what an answer does; an interrupt of the cell goes through."""
    try:
        why = _within(exercise.seconds, lambda: exercise.check(answer))
    except NotYet as hint:
        return Verdict(passed=False, reason=str(hint))
    except TimeoutError:
        text = f"no answer within {exercise.seconds:g} s. Which line can wait forever?"
        return Verdict(passed=False, reason=text)
    except Exception as error:  # noqa: BLE001 - whatever the learner's code raises is the answer to show
        return Verdict(passed=False, reason=f"your code raised {describe(error)}")
    return Verdict(passed=True, reason=why)


def checked_function(answer: object) -> Callable[..., Any]:
    """Return *answer* if it is a function; asked before a broker is started for it.

    Raises:
        NotYet: it is not.
    """
    if not callable(answer):
        raise NotYet(f"this should be a function; it is {type(answer).__name__} now")
    return answer


def run(function: object, *arguments: object, **keywords: object) -> Any:
    """Call a learner's function from a check; a coroutine function is run in an event loop of its own.

    Raises:
        NotYet: it is not a function.
    """
    result = checked_function(function)(*arguments, **keywords)
    if inspect.iscoroutine(result):
        return asyncio.run(result)
    return result


def describe(error: BaseException) -> str:
    """Return an exception in one line without addresses: ``ValueError: no such queue``."""
    first = printable(str(error).strip().split("\n")[0])
    text = f"{type(error).__name__}: {first}" if first else type(error).__name__
    text = _ADDRESS.sub("0x...", text)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def _within(seconds: float, work: Callable[[], str]) -> str:
    """Do *work* in a thread and return its result.

    After *seconds* the thread is told to stop, which ends any loop written in Python. One that waits inside C code goes
    on (it is a daemon thread: it does not keep the kernel alive) until that wait ends.

    Raises:
        TimeoutError: it was not done in time.
    """
    outcome: list[tuple[bool, Any]] = []
    stopping = threading.Lock()
    is_over = threading.Event()

    def target() -> None:
        with contextlib.suppress(_Stopped):
            try:
                outcome.append((True, work()))
            except _Stopped:
                raise
            except BaseException as error:  # noqa: BLE001 - handed to the caller's thread, SystemExit too
                outcome.append((False, error))
            with stopping:  # from here on nobody stops this thread, nor another one that gets its number
                is_over.set()

    # With the cell's context, so that what the answer prints lands in the cell that runs the check.
    context = contextvars.copy_context()
    thread = threading.Thread(target=context.run, args=(target,), name="labkit-check", daemon=True)
    thread.start()
    try:
        thread.join(seconds)
    finally:
        with stopping:
            if thread.is_alive() and not is_over.is_set():
                _raise_in(thread)
        thread.join(_WAIT_FOR_THE_END)
    if not outcome:
        raise TimeoutError
    worked, value = outcome[0]
    if worked:
        return str(value)
    if isinstance(value, Exception):
        raise value
    raise NotYet(f"your code raised {describe(value)}, which ends a program")


def _raise_in(thread: threading.Thread) -> None:
    identifier = ctypes.c_ulong(thread.ident or 0)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(identifier, ctypes.py_object(_Stopped))
